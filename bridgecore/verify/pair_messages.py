"""The messages of a world of two bridges: requests, the upstream's events, ends of forwards.

What belongs here: making and reading them. Attempt N of a client asks with the text ``uN``, and its
answer is the response ``rN`` with the text ``to N``, so that each shows which attempt it is of.
"""

from __future__ import annotations

import json
from typing import Any

from bridgecore.api_error import ApiError
from bridgecore.wire.requests import CreateRequest, parse_create
from bridgecore.wire.responses import created_event, failed_event


def turn_of(attempt: int) -> int:
    """The number of a client's turn; those above, up to the next, are its forwards."""
    return attempt * 10


def json_of(value: object) -> bytes:
    """``value`` as JSON."""
    return json.dumps(value).encode()


def request_of(text: str, anchor: str | None) -> CreateRequest:
    """A client's request with one message, which continues ``anchor``."""
    body: dict[str, Any] = {
        "model": "m",
        "store": False,
        "stream": True,
        "input": [{"role": "user", "content": text}],
    }
    if anchor is not None:
        body["previous_response_id"] = anchor
    return parse_create(json_of(body))


def text_of(item: Any) -> str:
    """The text of a message, of a client or of the model."""
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def answer_of(attempt: int) -> list[bytes]:
    """The upstream's events for an attempt."""
    name = f"r{attempt}"
    text = {"type": "output_text", "text": f"to {attempt}", "annotations": []}
    item = {
        "type": "message",
        "id": f"m{attempt}",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    response = {"id": name, "status": "completed", "output": [item]}
    return [
        json_of({"type": "response.created", "response": {"id": name}}),
        json_of({"type": "response.output_item.done", "item": item}),
        json_of({"type": "response.completed", "response": response}),
    ]


def failure_of(error: ApiError, *, begun: bool) -> bytes:
    """The end of a forward that has failed at its receiver, as its sender reads it: an event of a
    stream that has begun, or an error answer as ``links.forward`` reports it."""
    if begun:
        created = created_event(None, "resp_failed", "m", sequence=0)
        return failed_event(error.code, error.message, 9, created, error.more).data
    wait: dict[str, Any] = {}
    if error.retry_after is not None:
        wait["headers"] = {"retry-after": str(error.retry_after)}
    return json_of({"type": "error", "status": error.status, **wait, **json.loads(error.body)})
