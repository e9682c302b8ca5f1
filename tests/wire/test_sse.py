"""Tests of wire/sse.py: what is encoded is decoded again by a reader that follows the standard."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire.responses import EventKind, UpstreamEvent
from bridgecore.wire.sse import COMMENT, encode_event, encode_events


def decode(stream: bytes) -> list[tuple[str, str]]:
    """The events of a stream: WHATWG HTML, section 9.2.6."""
    found = []
    name, data = "", ""
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n")[:-1]:
        if not line:
            if data:
                found.append((name, data.removesuffix("\n")))
            name, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
    return found


def event(data: bytes) -> UpstreamEvent:
    return UpstreamEvent(EventKind.OTHER, b"some.type", data)


def test_one_line() -> None:
    assert encode_event(event(b'{"a":1}')) == b'event: some.type\ndata: {"a":1}\n\n'


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_several_lines(end: bytes) -> None:
    encoded = encode_event(event(b'{"a":' + end + b"1}" + end))
    assert encoded == b'event: some.type\ndata: {"a":\ndata: 1}\n\n'


def test_a_comment_is_not_read_as_an_event() -> None:
    assert COMMENT.startswith(b":")
    assert decode(COMMENT) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_round_trip(value: object, indent: int | None, carriage_return: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if carriage_return:
        text = text.replace("\n", "\r\n")
    found = decode(encode_event(event(text.encode())) * 2)
    assert [name for name, _ in found] == ["some.type"] * 2
    assert [json.loads(data) for _, data in found] == [value] * 2
    if "\n" not in text:
        assert found[0][1] == text


@given(st.lists(st.sampled_from([b"{}", b'{"a":1}', b"{\n}", b"{\r}", b"{\r\n}"]).map(event)))
def test_events_are_encoded_one_after_the_other(events: list[UpstreamEvent]) -> None:
    assert encode_events(events) == b"".join([encode_event(each) for each in events])
