"""Tests of wire/requests.py: what is read of a request body, and what stays unchanged."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire.jsontext import write_object
from bridgecore.wire.requests import MAX_RESPONSE_ID, InvalidBodyError, parse_create

Json = dict[str, Any]


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
    ("text", "found"),
    [
        ('"conv_1"', "conv_1"),
        ('{"id":"conv_1"}', "conv_1"),
        ('{"x":[{}],"id":"conv\\u005f1"}', "conv_1"),
        *[(text, None) for text in ("null", '""', "7", "[]", "{}", '{"id":7}', '{"id":{"id":""}}')],
        ("[" * 5000 + "]" * 5000, None),
        ('{"id":' + "[" * 5000 + "]" * 5000 + "}", None),
    ],
)
def test_the_conversation_of_a_turn(text: str, found: str | None) -> None:
    body = f'{{"model":"m","conversation":{text}}}'.encode()
    with contextlib.suppress(InvalidBodyError):  # it may be nested too deeply to be read at all
        request = parse_create(body)
        assert request.conversation == found
        assert request.frame.endswith(f'"conversation":{text}}}'.encode())


def test_a_turn_without_a_conversation() -> None:
    assert parse_create(b'{"model":"m"}').conversation is None


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
