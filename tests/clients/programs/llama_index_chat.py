"""LlamaIndex with ``OpenAIResponses``.

Variants: ``history`` (``FunctionAgent``, which sends the messages again and calls tools by itself)
and ``id`` (the model alone, with ``track_previous_responses``, which is given new messages only).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from conversation import (
    MODEL,
    QUESTIONS,
    STREAM,
    TASK,
    VARIANT,
    async_http,
    get_weather,
    report,
    sync_http,
)
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses


def model(**more: Any) -> OpenAIResponses:
    """The model, on the bridge."""
    return OpenAIResponses(
        model=MODEL, api_base=TASK["base_url"], api_key=TASK["key"], max_retries=0, **more
    )


async def with_agent() -> list[str]:
    http = async_http(httpx.AsyncClient)
    agent = FunctionAgent(
        llm=model(async_http_client=http),
        tools=[get_weather],
        streaming=STREAM,
        system_prompt="Help.",
    )
    memory = Memory.from_defaults()
    answers = [str(await agent.run(question, memory=memory)) for question in QUESTIONS]
    if http is not None:
        await http.aclose()
    return answers


def with_model() -> list[str]:
    http = sync_http(httpx.Client)
    llm = model(http_client=http, track_previous_responses=True)
    tool = FunctionTool.from_defaults(get_weather)
    answers = []
    for question in QUESTIONS:
        given = [ChatMessage(role="user", content=question)]
        while True:
            if STREAM:
                *_, response = llm.stream_chat_with_tools([tool], chat_history=given)
            else:
                response = llm.chat_with_tools([tool], chat_history=given)
            calls = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
            if not calls:
                break
            given = [
                ChatMessage(
                    role="tool",
                    content=get_weather(**call.tool_kwargs),
                    additional_kwargs={"tool_call_id": call.tool_id},
                )
                for call in calls
            ]
        answers.append(str(response.message.content))
    if http is not None:
        http.close()
    return answers


if __name__ == "__main__":
    report(with_model() if VARIANT == "id" else asyncio.run(with_agent()))
