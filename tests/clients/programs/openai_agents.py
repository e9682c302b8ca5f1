"""openai-agents: an agent with a tool, which its runner calls by itself.

Variants, each over HTTP and, with ``-ws`` at its end, over WebSocket:

* ``id``: ``auto_previous_response_id``, so that a run sends new items only; the last id of a run is
  passed to the next one;
* ``session``: ``SQLiteSession``, which repeats the whole conversation;
* ``compaction``: ``OpenAIResponsesCompactionSession`` around such a session;
* ``conversations``: ``OpenAIConversationsSession``, which keeps the items at the upstream and
  repeats them as well;
* ``conversation``: ``conversation_id``, with which the upstream adds the earlier items itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIProvider,
    OpenAIResponsesCompactionSession,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
)
from conversation import MODEL, QUESTIONS, STREAM, TASK, VARIANT, async_http, get_weather, report


def session_of(kind: str, client: openai.AsyncOpenAI) -> Any:
    """The session of a variant, or None."""
    if kind in ("id", "conversation"):
        return None
    if kind == "conversations":
        return OpenAIConversationsSession(openai_client=client)
    session = SQLiteSession("conversation")
    if kind == "compaction":
        return OpenAIResponsesCompactionSession("conversation", session, client=client)
    return session


async def main() -> list[str]:
    kind, _, socket = VARIANT.partition("-")
    client = openai.AsyncOpenAI(
        base_url=TASK["base_url"],
        api_key=TASK["key"],
        max_retries=0,
        http_client=async_http(openai.DefaultAsyncHttpxClient),
    )
    async with client:
        provider = OpenAIProvider(
            openai_client=client, use_responses=True, use_responses_websocket=socket == "ws"
        )
        agent = Agent(
            name="agent",
            model=MODEL,
            tools=[function_tool(get_weather)],
            model_settings=ModelSettings(store=False),
        )
        more: dict[str, Any] = {"run_config": RunConfig(model_provider=provider)}
        session = session_of(kind, client)
        if session is not None:
            more["session"] = session
        elif kind == "conversation":
            more["conversation_id"] = (await client.conversations.create()).id
        else:
            more["auto_previous_response_id"] = True
        answers = []
        for question in QUESTIONS:
            if STREAM:
                result: Any = Runner.run_streamed(agent, question, **more)
                async for _ in result.stream_events():
                    pass
            else:
                result = await Runner.run(agent, question, **more)
            answers.append(str(result.final_output))
            if kind == "id":
                more["previous_response_id"] = result.last_response_id
        await provider.aclose()
    return answers


if __name__ == "__main__":
    report(asyncio.run(main()))
