"""LiteLLM as a client: ``litellm.responses``.

Variants: ``id`` (``previous_response_id``) and ``history`` (the items are sent again).
"""

from __future__ import annotations

from typing import Any

import httpx
import litellm
from conversation import MODEL, QUESTIONS, STREAM, TASK, TOOL, VARIANT, report, run_call, sync_http
from litellm.llms.custom_httpx.http_handler import HTTPHandler


def ask(given: list[Any], previous: str | None, client: HTTPHandler | None) -> Any:
    """The response to ``given``."""
    answer = litellm.responses(
        model=f"openai/{MODEL}",
        input=given,
        tools=[TOOL],
        store=False,
        stream=STREAM,
        previous_response_id=previous,
        api_base=TASK["base_url"],
        api_key=TASK["key"],
        client=client,
    )
    if not STREAM:
        return answer
    for event in answer:
        if event.type == "response.completed":
            return event.response
    raise RuntimeError("the stream ended without response.completed")


def main() -> list[str]:
    http = sync_http(httpx.Client)
    client = None if http is None else HTTPHandler(client=http)
    answers: list[str] = []
    items: list[Any] = []  # what is sent next
    previous = None
    for question in QUESTIONS:
        items.append({"type": "message", "role": "user", "content": question})
        while True:
            response = ask(items, previous, client)
            output = [item.model_dump(exclude_none=True) for item in response.output]
            if VARIANT == "id":
                items, previous = [], response.id
            else:
                items += output
            calls = [item for item in output if item["type"] == "function_call"]
            if not calls:
                break
            for call in calls:
                found = run_call(call["arguments"])
                items.append(
                    {"type": "function_call_output", "call_id": call["call_id"], "output": found}
                )
        texts = [part["text"] for item in output for part in item.get("content", [])]
        answers.append("".join(texts))
    if http is not None:
        http.close()
    return answers


if __name__ == "__main__":
    report(main())
