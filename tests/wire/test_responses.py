"""Tests of wire/responses.py: what is read of events, and what stays unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.responses import (
    EventKind,
    UpstreamEvent,
    created_event,
    error_body,
    failed_event,
    keepalive_event,
    read_event,
)
from bridgecore.wire.terminal import read_terminal

Json = dict[str, Any]

# ------------------------------------------------------------------ events


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [
        (b'{"type":"response.created","x":1}', EventKind.CREATED, b"response.created"),
        (b'{"x":1,"type":"response.created"}', EventKind.CREATED, b"response.created"),
        (b'{ "type":"response.queued"}', EventKind.PROGRESS, b"response.queued"),
        (b'{"type":"response.in_progress"}', EventKind.PROGRESS, b"response.in_progress"),
        (b'{"type":"response.completed"}', EventKind.ENDED, b"response.completed"),
        (b'{"type":"response.failed"}', EventKind.ENDED, b"response.failed"),
        (b'{"type":"response.incomplete"}', EventKind.ENDED, b"response.incomplete"),
        (b'{"type":"response.done"}', EventKind.ENDED, b"response.done"),
        (b'{"type":"response.cancelled"}', EventKind.ENDED, b"response.cancelled"),
        (b'{"type":"response.canceled"}', EventKind.ENDED, b"response.canceled"),
        (b'{"type":"error"}', EventKind.ERROR, b"error"),
        (b'{"type":"thing"}', EventKind.OTHER, b"thing"),
        (b'{"type":"th\\u0069ng"}', EventKind.OTHER, b"thing"),
        (b'{"type":"two words"}', EventKind.OTHER, b"two words"),
        ('{"type":"größe"}'.encode(), EventKind.OTHER, "größe".encode()),
    ],
)
def test_events(data: bytes, kind: EventKind, name: bytes) -> None:
    assert read_event(data) == UpstreamEvent(kind, name, data)


@pytest.mark.parametrize(
    "name",
    [
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.annotation.added",
        "response.output_audio.delta",
        "response.refusal.delta",
        "response.reasoning.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.done",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.done",
        "response.mcp_call.in_progress",
        "response.mcp_call_arguments.delta",
        "response.mcp_list_tools.completed",
        "response.web_search_call.searching",
        "response.file_search_call.completed",
        "response.code_interpreter_call.interpreting",
        "response.code_interpreter_call_code.delta",
        "response.image_generation_call.partial_image",
        "response.audio.delta",
        "response.audio.transcript.delta",
    ],
)
def test_output(name: str) -> None:
    event = read_event(json.dumps({"type": name}).encode())
    assert event is not None
    assert event.kind is EventKind.OUTPUT


@pytest.mark.parametrize(
    "name",
    [
        "response.metadata",
        "response.new.thing",
        "response.compaction.compacting",
        "response.interrupt.accepted",
        "response.steer.pending",
        "response.rate_limits.updated",
        "response.outputs",
        "codex.response.metadata",
        "codex.rate_limits",
        "responsesapi.websocket_timing",
        "keepalive",
    ],
)
def test_unknown_events_are_not_output(name: str) -> None:
    """They do not change what can be recovered."""
    event = read_event(json.dumps({"type": name, "response": {"id": "r"}}).encode())
    assert event is not None
    assert (event.kind, event.response) == (EventKind.OTHER, "r")


NOISE = [
    b"",
    b" ",
    b"\n",
    b"garbage",
    b"ping",
    b"[DONE]",
    b"data: {}",
    b"null",
    b"5",
    b"true",
    b"NaN",
    b"[]",
    b"{}",
    b'"response.created"',
    b'"ping"',
    b'["type"]',
    b'{"event":"ping"}',
    b'{"type":7}',
    b'{"type":null}',
    b'{"type":""}',
    b'{"type":["error"]}',
    b'{"type":7,"error":null}',
    b'{"error":null}',
    b'{"type":"a\\nb"}',
    b'{"type":"a\\rdata: x"}',
    b'{"type":"a\nb","x":1}',
    b'{"type":"a\\u2028b"}',
    b'{"type":"a\\ud83d"}',
    b'{"type":"response.created"',
    b'{"type":"response.created"}}',
    b'{"type":"response.created"} {"type":"response.created"}',
    b'{"type":"response.created","x":"\xff"',
    b'{"type":"thing","x":' + b"[" * 100_000,
    b'{"type":"thing","x":"\\ud83d","y":' + b"[" * 100_000,
]


@pytest.mark.parametrize("data", NOISE, ids=lambda data: str(data[:40]))
def test_noise(data: bytes) -> None:
    assert read_event(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"error":{}}',
        b'{"error":{"code":"c"}}',
        b'{"error":"words"}',
        b'{"status":403,"error":{"message":"m"}}',
        b'{"detail":"words"}',
        b'{"type":null,"error":{"code":"c"}}',
        b'{"error":{"message":"\\ud83d"}}',
    ],
)
def test_errors_without_a_type(data: bytes) -> None:
    assert read_event(data) == UpstreamEvent(EventKind.ERROR, b"error", data)


@pytest.mark.parametrize(
    ("members", "response", "item"),
    [
        ('"response":{"id":"r"}', "r", None),
        ('"response":{"x":[1],"id":"r"},"item":{"id":"i"}', "r", "i"),
        ('"response_id":"r","item_id":"i"', "r", "i"),
        ('"item":{"type":"message","id":"i"}', None, "i"),
        ('"response":{"id":"r"},"response_id":"s"', "r", None),
        ('"response":{"id":7}', None, None),
        ('"response":{"id":7},"response_id":"s"', "s", None),
        ('"response":{"id":""},"item":{"id":null}', None, None),
        ('"response":{}', None, None),
        ('"response":null,"item":null', None, None),
        ('"response":"r","item":"i"', None, None),
        ('"response":[{"id":"r"}],"item_id":7', None, None),
        ('"response":7,"item_id":"i"', None, "i"),
        ('"x":0', None, None),
    ],
)
@pytest.mark.parametrize("half", ["", ',"y":"\\ud83d"'])
def test_the_ids_that_an_event_names(
    members: str, response: str | None, item: str | None, half: str
) -> None:
    """Odd types of members, and half a surrogate pair, do not affect the others."""
    data = f'{{"type":"response.thing",{members}{half}}}'.encode()
    event = read_event(data)
    assert event == UpstreamEvent(EventKind.OTHER, b"response.thing", data, response, item)


@given(st.text(max_size=20), st.booleans())
def test_a_type_never_leaves_its_sse_field(name: str, first: bool) -> None:
    data = json.dumps({"type": name} if first else {"x": 1, "type": name}).encode()
    event = read_event(data)
    if event is not None:
        assert event.type.decode() == name
        assert len(event.type.splitlines()) == 1


@given(st.binary(max_size=60) | st.sampled_from(NOISE))
def test_any_message_is_an_event_or_noise(data: bytes) -> None:
    event = read_event(data)
    if event is not None:
        assert isinstance(json.loads(data), dict)
        read_terminal(event, [])
        assert isinstance(event.error, ErrorFrame)
        assert event.sequence_number >= -1 or json.loads(data)["sequence_number"] < -1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"sequence_number":7}', 7),
        (b'{"sequence_number":true}', -1),
        (b'{"sequence_number":"7"}', -1),
        (b"{}", -1),
        (b"[]", -1),
        (b"nonsense", -1),
    ],
)
def test_sequence_numbers(data: bytes, expected: int) -> None:
    assert UpstreamEvent(EventKind.OTHER, b"x", data).sequence_number == expected


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (b'{"type":"response.in_progress","sequence_number":4,"response":{"id":"r","x":1.0}}', "r"),
        (b'{"type":"response.completed","sequence_number":4,"response":{"id":"r","x":1.0}}', "r"),
        (b'{"type":"response.output_text.delta","sequence_number":4,"delta":"x"}', "own"),
        (b'{"type":"response.output_text.delta","sequence_number":4,"response":7}', "own"),
    ],
)
def test_created_event(event: bytes, name: str) -> None:
    found = created_event(read_event(event), "own", "m", sequence=3)
    assert (found.kind, found.type, found.response) == (
        EventKind.CREATED, b"response.created", name,
    )  # fmt: skip
    value = json.loads(found.data)
    assert (value["type"], value["sequence_number"]) == ("response.created", 3)
    response = value["response"]
    assert (response["id"], response["status"], response["output"]) == (name, "in_progress", [])
    assert (response["error"], response["usage"]) == (None, None)
    assert (b'"x":1.0' in found.data) == (name == "r")


def test_created_event_before_nothing() -> None:
    value = json.loads(created_event(None, "own", None).data)
    assert value["sequence_number"] == 0
    assert (value["response"]["id"], value["response"]["object"]) == ("own", "response")


def test_failed_event() -> None:
    created = (
        b'{"type":"response.created","response":{"id":"r","model":"m","status":"x","h":"\\ud83d"}}'
    )
    event = failed_event(
        "c", "m", 7, UpstreamEvent(EventKind.CREATED, b"response.created", created)
    )
    assert (event.kind, event.type) == (EventKind.ENDED, b"response.failed")
    value = json.loads(event.data)
    assert (value["type"], value["sequence_number"]) == ("response.failed", 7)
    response = value["response"]
    assert (response["id"], response["model"], response["status"]) == ("r", "m", "failed")
    assert response["error"] == {"code": "c", "message": "m"}
    assert b'"h":"\\ud83d"' in event.data


@pytest.mark.parametrize("created", [b"nonsense", b'{"response":7}', b"{}"])
def test_failed_event_without_a_response(created: bytes) -> None:
    event = UpstreamEvent(EventKind.CREATED, b"response.created", created)
    response = json.loads(failed_event("c", "m", 0, event).data)["response"]
    assert response["status"] == "failed"


def test_keepalive_event() -> None:
    event = keepalive_event(7)
    assert event.type == b"keepalive"
    assert json.loads(event.data) == {"type": "keepalive", "sequence_number": 7}


def test_error_body() -> None:
    assert json.loads(error_body("m", "t", None, "p")) == {
        "error": {"message": "m", "type": "t", "code": None, "param": "p"}
    }
