"""openai-python: turns continue the previous response by its id.

Variants: ``sync`` and ``async`` (``responses.create``), ``helpers`` (``responses.stream`` and
``responses.parse``, with a format of the text), ``connect`` and ``connect-async`` (WebSocket).
"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from conversation import (
    MODEL,
    QUESTIONS,
    STREAM,
    TASK,
    TOOL,
    VARIANT,
    async_http,
    report,
    run_call,
    sync_http,
)
from pydantic import BaseModel

COMMON: dict[str, Any] = {"model": MODEL, "tools": [TOOL], "store": False}


class Said(BaseModel):
    """The format of an answer."""

    text: str


def outputs(response: Any) -> list[Any]:
    """The outputs of the calls in ``response``."""
    return [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": run_call(item.arguments),
        }
        for item in response.output
        if item.type == "function_call"
    ]


def text_of(response: Any) -> str:
    """The text of an answer; in ``helpers`` it has a format."""
    if VARIANT != "helpers":
        return str(response.output_text)
    return str(response.output_parsed.text)


def sync_ask(client: openai.OpenAI, given: Any, previous: str | None) -> Any:
    ask: dict[str, Any] = {"input": given, "previous_response_id": previous, **COMMON}
    if VARIANT == "helpers":
        if not STREAM:
            return client.responses.parse(text_format=Said, **ask)
        with client.responses.stream(text_format=Said, **ask) as stream:
            return stream.get_final_response()
    if not STREAM:
        return client.responses.create(**ask)
    for event in client.responses.create(stream=True, **ask):
        if event.type == "response.completed":
            return event.response
    raise RuntimeError("the stream ended without response.completed")


async def async_ask(client: openai.AsyncOpenAI, given: Any, previous: str | None) -> Any:
    ask: dict[str, Any] = {"input": given, "previous_response_id": previous, **COMMON}
    if not STREAM:
        return await client.responses.create(**ask)
    async for event in await client.responses.create(stream=True, **ask):
        if event.type == "response.completed":
            return event.response
    raise RuntimeError("the stream ended without response.completed")


def with_sync() -> list[str]:
    answers, previous = [], None
    http = sync_http(openai.DefaultHttpxClient)
    with openai.OpenAI(
        base_url=TASK["base_url"], api_key=TASK["key"], max_retries=0, http_client=http
    ) as client:
        for question in QUESTIONS:
            response = sync_ask(client, question, previous)
            while given := outputs(response):
                response = sync_ask(client, given, response.id)
            previous = response.id
            answers.append(text_of(response))
    return answers


async def with_async() -> list[str]:
    answers, previous = [], None
    http = async_http(openai.DefaultAsyncHttpxClient)
    async with openai.AsyncOpenAI(
        base_url=TASK["base_url"], api_key=TASK["key"], max_retries=0, http_client=http
    ) as client:
        for question in QUESTIONS:
            response = await async_ask(client, question, previous)
            while given := outputs(response):
                response = await async_ask(client, given, response.id)
            previous = response.id
            answers.append(text_of(response))
    return answers


def with_connect() -> list[str]:
    answers, previous = [], None
    client = openai.OpenAI(base_url=TASK["base_url"], api_key=TASK["key"])
    with client, client.responses.connect() as connection:

        def ask(given: Any) -> Any:
            more: dict[str, Any] = {} if previous is None else {"previous_response_id": previous}
            if isinstance(given, str):
                given = [{"type": "message", "role": "user", "content": given}]
            connection.response.create(input=given, **more, **COMMON)
            for event in connection:
                if event.type == "response.completed":
                    return event.response
                if event.type == "error":
                    raise RuntimeError(event.to_json())
            raise RuntimeError("the connection was closed")

        for question in QUESTIONS:
            response = ask(question)
            while given := outputs(response):
                previous = response.id
                response = ask(given)
            previous = response.id
            answers.append(text_of(response))
    return answers


async def with_connect_async() -> list[str]:
    answers, previous = [], None
    client = openai.AsyncOpenAI(base_url=TASK["base_url"], api_key=TASK["key"])
    async with client, client.responses.connect() as connection:

        async def ask(given: Any) -> Any:
            more: dict[str, Any] = {} if previous is None else {"previous_response_id": previous}
            if isinstance(given, str):
                given = [{"type": "message", "role": "user", "content": given}]
            await connection.response.create(input=given, **more, **COMMON)
            async for event in connection:
                if event.type == "response.completed":
                    return event.response
                if event.type == "error":
                    raise RuntimeError(event.to_json())
            raise RuntimeError("the connection was closed")

        for question in QUESTIONS:
            response = await ask(question)
            while given := outputs(response):
                previous = response.id
                response = await ask(given)
            previous = response.id
            answers.append(text_of(response))
    return answers


if __name__ == "__main__":
    if VARIANT == "async":
        report(asyncio.run(with_async()))
    elif VARIANT == "connect":
        report(with_connect())
    elif VARIANT == "connect-async":
        report(asyncio.run(with_connect_async()))
    else:
        report(with_sync())
