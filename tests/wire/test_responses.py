"""Tests of wire/responses.py: what is read of requests and events, and what stays unchanged."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.recovery.events import Outcome
from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.jsontext import write_object
from bridgecore.wire.responses import (
    MAX_RESPONSE_ID,
    EventKind,
    InvalidBodyError,
    Terminal,
    UpstreamEvent,
    created_event,
    error_body,
    failed_event,
    final_response,
    keepalive_event,
    parse_create,
    read_event,
    read_terminal,
)

Json = dict[str, Any]

# ------------------------------------------------------------------ requests


def test_a_create_body() -> None:
    body = b' { "input" : [ 1.0, {"a" :1e5} ] ,"stream":true, "model":"m", "x\\u0041":"\\u00e9" } '
    request = parse_create(body)
    assert request.frame == (
        b'{"type":"response.create","input":[ 1.0, {"a" :1e5} ],"model":"m","xA":"\\u00e9"}'
    )
    assert (request.model, request.stream, request.store) == ("m", True, True)
    assert request.previous_response_id is None


def test_its_own_type_is_replaced() -> None:
    frame = parse_create(b'{"type":"other","model":"m"}').frame
    assert frame == b'{"type":"response.create","model":"m"}'


@pytest.mark.parametrize(
    ("text", "store"), [("true", True), ("false", False), ("null", True), (None, True)]
)
def test_store(text: str | None, store: bool) -> None:
    member = "" if text is None else f',"store":{text}'
    request = parse_create(f'{{"model":"m"{member}}}'.encode())
    assert request.store is store
    assert (b'"store"' in request.frame) == (text is not None)


@pytest.mark.parametrize(
    "member", ["stream", "store", "previous_response_id", "model", "background"]
)
@pytest.mark.parametrize("value", ["7", "[]", "{}", "1.5"])
def test_wrong_types_are_named(member: str, value: str) -> None:
    members = {"model": '"m"', member: value}
    body = "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"
    with pytest.raises(InvalidBodyError) as caught:
        parse_create(body.encode())
    assert caught.value.param == member
    assert member in caught.value.message


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_members_pass_unchanged(members: dict[str, object]) -> None:
    members = {**members, "model": "m"}
    for name in ("type", "stream", "store", "previous_response_id", "background"):
        members.pop(name, None)
    request = parse_create(json.dumps(members).encode())
    assert json.loads(request.frame) == {**members, "type": "response.create"}
    assert write_object(request.members) == request.frame


def test_a_frame_with_other_members() -> None:
    request = parse_create(b'{"model":"m", "input":[ 1.0 ],"store" : false,"x":1e5}')
    assert request.frame_with() == request.frame
    assert request.frame_with(input=b"[]", store=None, extra=b'"y"') == (
        b'{"type":"response.create","model":"m","input":[],"x":1e5,"extra":"y"}'
    )
    assert request.members["input"] == msgspec.Raw(b"[ 1.0 ]")


_SPACE = st.sampled_from(["", "", "", " ", "\n"])
_NAMES = st.sampled_from(
    ['"input"', '"inp\\u0075t"', '"a"', '"a/b"', '"\\n"', '"\u00e9"', '"type"']
)
_VALUES = st.sampled_from(["null", '"a"', "[]", "[1,{}]", "[ 1, 2]", '{"input":[]}', "-1e3"])


@given(st.lists(st.tuples(_SPACE, _NAMES, _SPACE, _VALUES, _SPACE), max_size=5), _SPACE)
def test_the_input_is_found_in_the_body(
    members: list[tuple[str, str, str, str, str]], end: str
) -> None:
    written = [f"{a}{name}{b}:{value}{c}" for a, name, b, value, c in members]
    body = ("{" + ",".join([*written, '"model":"m"']) + "}" + end).encode()
    request = parse_create(body)
    assert request.size == len(request.frame)
    given = request.members.get("input")
    assert (given is None) == (request.input_text is None)
    if given is not None and request.input_text is not None:
        text, begin = request.input_text
        assert text[begin : begin + len(given)] == bytes(given)
    plain = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False)
    if given is not None and body == plain.encode():
        assert request.input_text is not None
        assert request.input_text[0] is body  # not copied


@pytest.mark.parametrize("text", ["\u00e9", "\u4e2d", "\U0001f600"])
@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("cut", [0, 1])
def test_utf8_is_checked_in_steps(text: str, before: int, cut: int) -> None:
    letters = text.encode() * 20_000
    good = b'{"model":"m","input":"%b%b"}' % (b"x" * before, letters)
    assert parse_create(good).size > len(letters)
    bad = good[: -2 - cut] + b"\xff" * (2 - cut)
    for body in (bad, good[:40_000] + b"\xc3" + good[40_000:], b"\x80" + good):
        with pytest.raises(UnicodeDecodeError) as expected:
            body.decode()
        with pytest.raises(InvalidBodyError) as caught:
            parse_create(body)
        assert caught.value.message.endswith(f"(byte {expected.value.start}).")


@given(st.binary(max_size=60))
def test_any_body_is_a_request_or_invalid(body: bytes) -> None:
    with contextlib.suppress(InvalidBodyError):
        request = parse_create(body)
        assert json.loads(request.frame).get("model") == request.model


@pytest.mark.parametrize("name", ["stream_options", "stream_id", "background", "type", "stream"])
@pytest.mark.parametrize("value", ["null", "false", '{"include_obfuscation":false}', '"lane"'])
def test_members_for_http_do_not_go_upstream(name: str, value: str) -> None:
    body = f'{{"input":"a","{name}":{value},"model":"m"}}'.encode()
    if name in ("background", "stream") and value[0] in '{"':
        with pytest.raises(InvalidBodyError):
            parse_create(body)
        return
    frame = parse_create(body).frame
    assert frame == b'{"type":"response.create","input":"a","model":"m"}'


@pytest.mark.parametrize(
    "member", ['"background":true', '"background" : true', '"\\u0062ackground":true']
)
@pytest.mark.parametrize("more", ["", ',"stream":true', ',"prompt":{"id":"p"}'])
def test_background_is_refused(member: str, more: str) -> None:
    with pytest.raises(InvalidBodyError, match="'background' is not supported") as caught:
        parse_create(f'{{"model":"m",{member}{more}}}'.encode())
    assert caught.value.param == "background"


@pytest.mark.parametrize("model", ["", '"model":null,'])
def test_a_prompt_brings_its_model_along(model: str) -> None:
    request = parse_create(f'{{{model}"prompt": {{"id":"pmpt_1"}}}}'.encode())
    assert request.model is None
    assert json.loads(request.frame)["prompt"] == {"id": "pmpt_1"}
    assert ("model" in json.loads(request.frame)) == bool(model)


@pytest.mark.parametrize(
    "body",
    ["{}", '{"model":null}', '{"prompt":null}', '{"prompt":"pmpt_1"}', '{"model":7,"prompt":{}}'],
)
def test_a_body_without_model_and_prompt_is_refused(body: str) -> None:
    with pytest.raises(InvalidBodyError) as caught:
        parse_create(body.encode())
    assert caught.value.param == "model"


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f600"])
def test_ids_have_any_length_up_to_a_bound_in_bytes(letter: str) -> None:
    size = len(letter.encode())
    longest = letter * (MAX_RESPONSE_ID // size)
    for text in (longest[:1500], longest):
        for ascii_only in (False, True):
            body = json.dumps({"model": "m", "previous_response_id": text}, ensure_ascii=ascii_only)
            assert parse_create(body.encode()).previous_response_id == text
    with pytest.raises(InvalidBodyError, match="longer than 4096 bytes") as caught:
        parse_create(json.dumps({"model": "m", "previous_response_id": longest + letter}).encode())
    assert caught.value.param == "previous_response_id"
    assert letter * 2 not in caught.value.message


def test_an_empty_id_is_passed_on() -> None:
    request = parse_create(b'{"model":"m","previous_response_id":""}')
    assert request.previous_response_id == ""
    assert b'"previous_response_id":""' in request.frame


def test_errors_do_not_repeat_the_body() -> None:
    with pytest.raises(InvalidBodyError) as caught:
        parse_create(b'{"model":"m","input":"secret words')
    assert "secret" not in caught.value.message


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


# ------------------------------------------------------------------ terminal events


def ended(data: bytes) -> UpstreamEvent:
    event = read_event(data)
    assert event is not None
    assert event.kind is EventKind.ENDED
    return event


def terminal(data: bytes, streamed: list[bytes] | None = None) -> Terminal:
    found = read_terminal(ended(data), streamed or [])
    assert found is not None
    return found


def completed(response: str, kind: str = "response.completed") -> bytes:
    return f'{{"type":"{kind}","sequence_number":9,"response":{response},"x":1.0}}'.encode()


def message(name: str | None, text: str) -> Json:
    return {"type": "message", "id": name, "content": [{"type": "output_text", "text": text}]}


def call(name: str, call_id: str) -> Json:
    return {"type": "function_call", "id": name, "call_id": call_id, "name": "f", "arguments": "{}"}


def done(item: object, index: object = None) -> bytes:
    event = {"type": "response.output_item.done", "output_index": index, "item": item}
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("response.completed", Outcome.COMPLETED),
        ("response.incomplete", Outcome.INCOMPLETE),
        ("response.failed", Outcome.FAILED),
    ],
)
@pytest.mark.parametrize("streamed", [[], [message("m", "a")]])
def test_a_standard_terminal_event_is_unchanged(
    kind: str, outcome: Outcome, streamed: list[Json]
) -> None:
    output = json.dumps(streamed)
    response = f'{{ "id" : "r\\u0031","output":{output} ,"store" : false,"y":"\\u00e9\\ud83d" }}'
    data = completed(response, kind)
    found = terminal(data, [done(item, index) for index, item in enumerate(streamed)])
    assert found.event.data == data
    assert found.response == final_response(found.event) == response.encode()
    assert (found.outcome, found.response_id, found.store) == (outcome, "r1", False)
    assert found.output == [json.dumps(item).encode() for item in streamed]


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"response.completed"}',
        b'{"type":"response.completed","response":7}',
        b'{"type":"response.completed","response":null}',
        b'{"type":"response.completed","response":"r"}',
        b'{"type":"response.completed","response":[]}',
        b'{"type":"response.failed","error":{"code":"c"}}',
        b'{"type":"response.done"}',
    ],
)
def test_a_terminal_event_without_a_response(data: bytes) -> None:
    assert read_terminal(ended(data), [done(message("m", "a"), 0)]) is None


# The status of a response that does not say how it ended.
STATUS = {"done": "completed", "cancelled": "cancelled", "canceled": "cancelled"}


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        *[
            (kind, status, expected)
            for kind in ("done", "cancelled", "canceled")
            for status, expected in [
                ('"completed"', "completed"),
                ('"incomplete"', "incomplete"),
                ('"failed"', "failed"),
                ('"cancelled"', "failed"),
                ('"canceled"', "failed"),
            ]
        ],
        ("done", '"in_progress"', "completed"),
        ("done", "null", "completed"),
        ("done", "7", "completed"),
        ("cancelled", '"in_progress"', "failed"),
        ("cancelled", "null", "failed"),
        ("canceled", "7", "failed"),
    ],
)
def test_other_terminal_events_become_standard_ones(kind: str, status: str, expected: str) -> None:
    """By the ``status`` of the response; without one, by the event's type."""
    response = f'{{"id":"r","status":{status},"x":"\\ud83d"}}'
    found = terminal(completed(response, f"response.{kind}"))
    assert found.event.type == f"response.{expected}".encode()
    assert found.outcome is Outcome(expected)
    value = json.loads(found.event.data)
    assert (value["type"], value["sequence_number"]) == (f"response.{expected}", 9)
    assert b'"x":1.0' in found.event.data
    assert b'"x":"\\ud83d"' in found.event.data
    # The object agrees with its event.
    told = value["response"]["status"]
    ended_as = json.loads(status)
    assert told == (STATUS[kind] if ended_as in ("in_progress", None, 7) else ended_as)
    assert bool(value["response"].get("error")) == (expected == "failed")
    assert final_response(found.event) == found.response
    assert (found.event.response, found.response_id) == ("r", "r")


@pytest.mark.parametrize("kind", ["done", "cancelled"])
def test_the_error_of_a_failed_response_is_kept(kind: str) -> None:
    why = '{"code":"server_error", "message":"Sorry."}'
    found = terminal(completed(f'{{"status":"failed","error":{why}}}', f"response.{kind}"))
    assert why.encode() in found.event.data


A, B, C = message("msg_a", "a"), message("msg_b", "b"), call("fc_c", "call_c")
R = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "="}


@pytest.mark.parametrize(
    ("output", "streamed", "expected"),
    [
        # Nothing to repair.
        ([], [], []),
        ([A, C], [(A, 0), (C, 1)], [A, C]),
        # Absent, in any form: the repaired answer has a list.
        (None, [], []),
        ("missing", [], []),
        ("missing", [(A, 0), (C, 1)], [A, C]),
        (None, [(A, 0), (C, 1)], [A, C]),
        ([], [(A, 0), (C, 1)], [A, C]),
        ({}, [(A, 0)], [A]),
        ("words", [(A, 0)], [A]),
        (7, [(A, 0)], [A]),
        # Shorter, from either end or the middle.
        ([A], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([B], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([C], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([A, C], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([R], [(R, 0), (C, 1)], [R, C]),
        # Items that are not items, or that lack required members.
        ([None], [(A, 0)], [A]),
        ([A, 7], [(A, 0), (B, 1)], [A, B]),
        ([{"id": "msg_a"}], [(A, 0)], [A]),
        ([{**A, "content": None}], [(A, 0)], [A]),
        ([{"type": "message", "id": "msg_a"}, C], [(A, 0), (C, 1)], [A, C]),
        ([{**C, "arguments": None}], [(C, 0)], [C]),
        ([{**C, "call_id": None}], [(C, 0)], [C]),
        # Another id in each event: an item is identified by its call id, or by its place.
        (
            [{**A, "id": "x"}, {**C, "id": "y"}],
            [(A, 0), (C, 1)],
            [{**A, "id": "x"}, {**C, "id": "y"}],
        ),
        (
            [{**C, "id": "y"}, {**A, "id": "x"}],
            [(C, 0), (A, 1)],
            [{**C, "id": "y"}, {**A, "id": "x"}],
        ),
        ([{**C, "id": "y"}], [(A, 0), (C, 1)], [A, {**C, "id": "y"}]),
        # Two calls are two calls, whatever their ids.
        ([{**C, "call_id": "call_d"}], [(C, 0)], [C, {**C, "call_id": "call_d"}]),
        # Never streamed: it is kept.
        ([A, R], [(A, 0)], [A, R]),
        ([R, A], [(A, 1)], [R, A]),
        ([A], [], [A]),
        # Out of order, without an index, twice.
        ([], [(C, 1), (A, 0)], [A, C]),
        ([], [(A, None), (C, None)], [A, C]),
        ([], [(A, True), (C, "1")], [A, C]),
        ([], [({**A, "content": []}, 0), (A, 0)], [A]),
        ([], [(A, 10**30), (C, 2)], [C, A]),
        # What was streamed is not an item.
        ([], [("words", 0), (A, 1), ({"id": "x"}, 2)], [A]),
        ([A], [(None, 0)], [A]),
    ],
)
def test_the_final_output_equals_the_streamed_one(
    output: object, streamed: list[tuple[object, object]], expected: list[Json]
) -> None:
    response = {"id": "r", "output": output, "x": 1}
    if output == "missing":
        del response["output"]
    data = completed(json.dumps(response))
    found = terminal(data, [done(item, index) for item, index in streamed])
    said = json.loads(found.response).get("output")
    assert said == expected
    assert found.output is not None
    assert [json.loads(item) for item in found.output] == expected
    if expected == output:
        assert found.event.data == data
    assert final_response(found.event) == found.response
    assert json.loads(found.event.data)["response"] == json.loads(found.response)


_ODD_ITEMS = st.sampled_from(
    [
        json.dumps(A),
        json.dumps(C, separators=(",", ":")),
        json.dumps({**B, "id": "msg_a"}),
        json.dumps({**C, "call_id": "call_d"}),
        json.dumps(R),
        '{"type":"message","id":"m"}',
        '{"type":"message","id":"","content":[]}',
        '{"type":"","id":"m"}',
        '{"type":"message","id":7,"content":[]}',
        '{"type":"message","type":"reasoning","id":"a","id":"b"}',
        '{"type":"message","id":"\\ud83d","content":[]}',
        '{"type":"message","id":"e","\\ud83d":1}',
        '{"id":"x"}',
        "null",
        "7",
        "[]",
    ]
)
_ODD_RESPONSES = st.sampled_from(
    ["", '"id":"r"', '"id":7', '"id":""', '"id":null', '"id":"a","id":"b"', '"\\ud83d":1,"id":"r"']
)
_ODD_MEMBERS = st.sampled_from(
    [
        *("", '"store":true', '"store":false', '"store":null', '"store":1', '"output":7'),
        *('"usage":{"input_tokens":5,"output_tokens":1.0}', '"usage":null', '"usage":[]'),
        *('"usage":{"input_tokens":true,"output_tokens":-1}', '"status":"failed"', '"x":"\\n"'),
        f'"usage":{{"input_tokens":{10**30}}}',
    ]
)


@given(
    st.sampled_from(["completed", "completed", "incomplete", "failed", "done", "cancelled"]),
    _ODD_RESPONSES,
    st.lists(_ODD_ITEMS, max_size=3),
    st.lists(_ODD_MEMBERS, max_size=2),
    st.data(),
)
@settings(max_examples=300)
def test_the_usual_terminal_event_is_read_like_any_other(
    kind: str, name: str, items: list[str], more: list[str], data: st.DataObject
) -> None:
    output = data.draw(st.sampled_from([f'"output":[{",".join(items)}]', '"output":null', ""]))
    members = ",".join(filter(None, [name, output, *more]))
    again = data.draw(st.sampled_from(["", ',"response":null', ',"response":{"output":[]}']))
    text = f'{{"type":"response.{kind}","response":{{{members}}}{again}}}'
    if (event := read_event(text.encode())) is None:
        return
    index = st.sampled_from(["0", "1", "2", "1.0", "true", "null", "-1"])
    streamed = [
        b'{"output_index":%b,"item":%b}'
        % (
            data.draw(index | st.just(str(number))).encode(),
            data.draw(_ODD_ITEMS | st.just(item)).encode(),
        )
        for number, item in enumerate(items[: data.draw(st.integers(0, 3))])
    ]
    usual = read_terminal(event, streamed)
    other = read_event(text.encode())
    assert other is not None
    any_ = read_terminal(other, streamed, shortcuts=False)
    assert (usual is None) == (any_ is None)
    if usual is None or any_ is None:
        return
    assert usual.event == any_.event
    assert usual.response == any_.response
    for field in ("outcome", "response_id", "output", "items", "store", "usage"):
        assert getattr(usual, field) == getattr(any_, field), field


def test_mended_items_are_as_they_came() -> None:
    item = b'{ "type":"message" , "id":"m","content":[ {"t":1.50,"text":"\\ud83d"} ] }'
    event = b'{"type":"response.output_item.done" ,"item": ' + item + b' ,"output_index":0}'
    found = terminal(completed('{"id":"\\u0072","output":[ ]}'), [event])
    assert found.output == [item]
    assert found.response == b'{"id":"\\u0072","output":[' + item + b"]}"


def test_a_failed_response_is_not_mended() -> None:
    data = completed('{"id":"r","output":[]}', "response.failed")
    assert terminal(data, [done(A, 0)]).event.data == data


@given(
    st.lists(st.sampled_from([A, B, C, R]), unique_by=json.dumps),
    st.data(),
)
def test_missing_output_is_restored_from_the_stream(items: list[Json], data: st.DataObject) -> None:
    """Stream and final response have the same items, in the same order, each once."""
    kept = data.draw(
        st.lists(st.sampled_from(items), unique_by=json.dumps) if items else st.just([])
    )
    kept.sort(key=items.index)
    order = data.draw(st.permutations(range(len(items))))
    streamed = [done(items[index], index) for index in order]
    found = terminal(completed(json.dumps({"output": kept})), streamed)
    assert json.loads(found.response)["output"] == items
    # What is complete is not changed.
    again = terminal(found.event.data, streamed)
    assert again.event.data == found.event.data


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ('{"input_tokens":5,"output_tokens":7}', (5, 7)),
        ('{"input_tokens":5}', (5, 0)),
        ('{"input_tokens":null,"output_tokens":null,"total_tokens":null}', (0, 0)),
        ('{"input_tokens":-5,"output_tokens":true}', (0, 0)),
        ('{"input_tokens":"5","output_tokens":1.5}', (0, 0)),
        ("null", (0, 0)),
        ("[]", (0, 0)),
        ('"words"', (0, 0)),
    ],
)
def test_usage(usage: str, expected: tuple[int, int]) -> None:
    assert terminal(completed(f'{{"id":"r","usage":{usage}}}')).usage == expected


@pytest.mark.parametrize(
    ("response", "name", "store"),
    [
        ("{}", None, None),
        ('{"id":7,"store":1}', None, None),
        ('{"id":"","store":null}', None, None),
        ('{"id":"r","store":true}', "r", True),
        ('{"id":"r","store":false}', "r", False),
    ],
)
def test_the_id_and_store_flag_of_a_response_are_read(
    response: str, name: str | None, store: bool | None
) -> None:
    found = terminal(completed(response))
    assert (found.response_id, found.store) == (name, store)


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
