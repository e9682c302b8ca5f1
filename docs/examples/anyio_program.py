"""Conversations side by side in a program on anyio, which share a bridge in their process."""

from __future__ import annotations

import sys

import anyio
import openai

from bridgecore import Config, UpstreamUrl
from bridgecore_httpx import BridgeTransport

SECONDS = 600  # that a conversation may take; then it is given up, and its turn ends upstream


async def converse(client: openai.AsyncOpenAI, name: str, answers: dict[str, str]) -> None:
    """One conversation: each turn has only what is new, and names the response before it."""
    with anyio.move_on_after(SECONDS):
        ask = client.responses.create
        first = await ask(model="gpt-5.4", input=f"My name is {name}.")
        stream = await ask(
            model="gpt-5.4", input=f"Who is {name}?", previous_response_id=first.id, stream=True
        )
        async for event in stream:
            if event.type == "response.output_text.delta":
                answers[name] = answers.get(name, "") + event.delta


async def main(upstream: str = "wss://api.openai.com/v1/responses") -> dict[str, str]:
    """Have several conversations at the same time; the last answer of each."""
    answers: dict[str, str] = {}
    transport = BridgeTransport(Config(upstream=UpstreamUrl.parse(upstream)))
    http = openai.DefaultAsyncHttpxClient(transport=transport)
    async with (
        openai.AsyncOpenAI(http_client=http) as client,  # the key: OPENAI_API_KEY
        anyio.create_task_group() as group,
    ):
        for name in ("Ada", "Grace", "Edsger"):
            group.start_soon(converse, client, name, answers)
    return answers


if __name__ == "__main__":
    print(anyio.run(main, backend=sys.argv[1] if sys.argv[1:] else "asyncio"))
