"""Tests of wire/responses.py: what is read of requests and events, and what is left alone."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.events import Outcome
from bridgecore.wire.responses import (
    MAX_RESPONSE_ID,
    EventKind,
    InvalidBodyError,
    UpstreamEvent,
    error_body,
    failed_event,
    final_response,
    keepalive_event,
    outcome_of,
    parse_create,
    read_event,
    response_id,
    sequence_number,
)

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
    frame = json.loads(parse_create(json.dumps(members).encode()).frame)
    assert frame == {**members, "type": "response.create"}


@given(st.binary(max_size=60))
def test_any_body_is_a_request_or_invalid(body: bytes) -> None:
    with contextlib.suppress(InvalidBodyError):
        request = parse_create(body)
        assert json.loads(request.frame).get("model") == request.model


@pytest.mark.parametrize("name", ["stream_options", "stream_id", "background", "type", "stream"])
@pytest.mark.parametrize("value", ["null", "false", '{"include_obfuscation":false}', '"lane"'])
def test_what_belongs_to_http_does_not_go_upstream(name: str, value: str) -> None:
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
        (b'{"type":"response.new.thing"}\n', EventKind.OUTPUT, b"response.new.thing"),
        (b'{"type":"response.completed"}', EventKind.ENDED, b"response.completed"),
        (b'{"type":"response.failed"}', EventKind.ENDED, b"response.failed"),
        (b'{"type":"response.incomplete"}', EventKind.ENDED, b"response.incomplete"),
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
    "data",
    [
        b"",
        b"garbage",
        b"[]",
        b'"response.created"',
        b"{}",
        b'{"type":7}',
        b'{"type":null}',
        b'{"type":""}',
        b'{"type":"a\\nb"}',
        b'{"type":"a\\rdata: x"}',
        b'{"type":"a\nb","x":1}',
        b'{"type":"a\\u2028b"}',
        b'{"type":"response.created"',
        b'{"type":"response.created"}}',
        b'{"type":"thing","x":' + b"[" * 100_000,
    ],
    ids=lambda data: str(data[:40]),
)
def test_no_events(data: bytes) -> None:
    event = read_event(data)
    # A message that begins as an event and ends as an object is not looked at any further.
    assert event is None or data == b'{"type":"response.created"}}'


@given(st.text(max_size=20), st.booleans())
def test_a_type_never_leaves_its_sse_field(name: str, first: bool) -> None:
    data = json.dumps({"type": name} if first else {"x": 1, "type": name}).encode()
    event = read_event(data)
    if event is not None:
        assert event.type.decode() == name
        assert len(event.type.splitlines()) == 1


def test_outcomes() -> None:
    ends = [b"response.completed", b"response.incomplete", b"response.failed"]
    found = [outcome_of(UpstreamEvent(EventKind.ENDED, end, b"")) for end in ends]
    assert found == [Outcome.COMPLETED, Outcome.INCOMPLETE, Outcome.FAILED]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"response":{"id":"r"}}', "r"),
        (b'{"response":{"id":7}}', None),
        (b'{"response":{}}', None),
        (b'{"response":null}', None),
        (b"{}", None),
        (b"nonsense", None),
    ],
)
def test_response_ids(data: bytes, expected: str | None) -> None:
    assert response_id(UpstreamEvent(EventKind.CREATED, b"response.created", data)) == expected


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
    assert sequence_number(data) == expected


# ------------------------------------------------------------------ answers


def ended(data: bytes) -> UpstreamEvent:
    return UpstreamEvent(EventKind.ENDED, b"response.completed", data)


def test_final_response_is_as_it_came() -> None:
    response = b'{ "output":[ {"a":1.0} ],"x" : "\\u00e9"}'
    event = ended(b'{"type":"response.completed","response":' + response + b',"y":1}')
    assert final_response(event, [b'{"item":1}']) == response


@pytest.mark.parametrize("output", [b"", b'"output":[],', b'"output":null,', b'"output":[ ] ,'])
def test_final_response_without_output(output: bytes) -> None:
    event = ended(b'{"response":{' + output + b'"id":"r"}}')
    found = final_response(event, [b'{"item":{"a":1.0}}', b'{"noitem":1}', b'{"item":2}'])
    assert found is not None
    assert b'[{"a":1.0},2]' in found
    assert json.loads(found) == {"id": "r", "output": [{"a": 1.0}, 2]}


@pytest.mark.parametrize(
    "data", [b"{}", b'{"response":7}', b'{"response":null}', b"nonsense", b'{"response":{]}']
)
def test_no_final_response(data: bytes) -> None:
    assert final_response(ended(data), []) is None


def test_failed_event() -> None:
    created = b'{"type":"response.created","response":{"id":"r","model":"m","status":"x"}}'
    event = failed_event("c", "m", 7, created, "fallback")
    assert (event.kind, event.type) == (EventKind.ENDED, b"response.failed")
    value = json.loads(event.data)
    assert (value["type"], value["sequence_number"]) == ("response.failed", 7)
    response = value["response"]
    assert (response["id"], response["model"], response["status"]) == ("r", "m", "failed")
    assert response["error"] == {"code": "c", "message": "m"}


@pytest.mark.parametrize("created", [None, b"nonsense", b'{"response":7}'])
def test_failed_event_without_a_response(created: bytes | None) -> None:
    response = json.loads(failed_event("c", "m", 0, created, "fallback").data)["response"]
    assert (response["id"], response["status"]) == ("fallback", "failed")


def test_keepalive_event() -> None:
    event = keepalive_event(7)
    assert event.type == b"keepalive"
    assert json.loads(event.data) == {"type": "keepalive", "sequence_number": 7}


def test_error_body() -> None:
    assert json.loads(error_body("m", "t", None, "p")) == {
        "error": {"message": "m", "type": "t", "code": None, "param": "p"}
    }
