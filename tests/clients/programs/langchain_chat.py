"""LangChain: an agent of ``create_agent`` with ``ChatOpenAI``, which calls tools by itself.

Variants: ``history`` (the messages are sent again) and ``id`` (``use_previous_response_id``).
"""

from __future__ import annotations

from typing import Any

import openai
from conversation import MODEL, QUESTIONS, STREAM, TASK, VARIANT, get_weather, report, sync_http
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


def main() -> list[str]:
    model = ChatOpenAI(
        model=MODEL,
        base_url=TASK["base_url"],
        api_key=TASK["key"],
        max_retries=0,
        streaming=STREAM,
        use_responses_api=True,
        use_previous_response_id=VARIANT == "id",
        http_client=sync_http(openai.DefaultHttpxClient),
        store=False,
    )
    agent = create_agent(model, tools=[tool(get_weather)])
    messages: list[Any] = []
    answers = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        if STREAM:
            # Each state is the whole one after a step; the deltas arrive in between.
            for kind, part in agent.stream(
                {"messages": messages}, stream_mode=["values", "messages"]
            ):
                if kind == "values":
                    messages = list(part["messages"])
        else:
            messages = list(agent.invoke({"messages": messages})["messages"])
        answers.append(str(messages[-1].text))
    return answers


if __name__ == "__main__":
    report(main())
