"""openai-python with a bridge in its own process: a conversation that survives a lost socket."""

from __future__ import annotations

import asyncio

import openai

from bridgecore import Config, UpstreamUrl
from bridgecore_httpx import BridgeTransport


async def main(upstream: str = "wss://api.openai.com/v1/responses") -> str:
    """Ask twice; the answer to the second question, which needs the first one."""
    config = Config(upstream=UpstreamUrl.parse(upstream))
    http = openai.DefaultAsyncHttpxClient(transport=BridgeTransport(config))
    async with openai.AsyncOpenAI(http_client=http) as client:  # the key: OPENAI_API_KEY
        ask = client.responses.create
        first = await ask(model="gpt-5.4", input="My name is Ada.")
        again = await ask(model="gpt-5.4", input="And?", previous_response_id=first.id)
        return again.output_text


if __name__ == "__main__":
    print(asyncio.run(main()))
