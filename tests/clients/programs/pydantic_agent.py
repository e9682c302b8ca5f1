"""pydantic-ai: an agent with a tool, which it calls by itself.

Variants: ``history`` (``message_history``), ``id`` (``openai_previous_response_id`` set to
``auto``), and ``websocket`` (``openai_transport``, with a session).
"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from conversation import MODEL, QUESTIONS, STREAM, TASK, VARIANT, async_http, get_weather, report
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider


def settings() -> OpenAIResponsesModelSettings:
    """The settings of a variant."""
    made = OpenAIResponsesModelSettings(openai_store=False)
    if VARIANT == "id":
        made["openai_previous_response_id"] = "auto"
    elif VARIANT == "websocket":
        made["openai_transport"] = "websocket"
    return made


async def main() -> list[str]:
    client = openai.AsyncOpenAI(
        base_url=TASK["base_url"],
        api_key=TASK["key"],
        max_retries=0,
        http_client=async_http(openai.DefaultAsyncHttpxClient),
    )
    async with client:
        model = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, tools=[get_weather], model_settings=settings())
        history: list[Any] = []
        answers = []
        async with agent:
            for question in QUESTIONS:
                if STREAM:
                    async with agent.run_stream(question, message_history=history) as result:
                        answers.append(str(await result.get_output()))
                        history = result.all_messages()
                else:
                    done = await agent.run(question, message_history=history)
                    answers.append(str(done.output))
                    history = done.all_messages()
    return answers


if __name__ == "__main__":
    report(asyncio.run(main()))
