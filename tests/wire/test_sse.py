"""Tests of wire/sse.py: what is encoded is decoded again by a reader that follows the standard."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire.responses import EventKind, UpstreamEvent
from bridgecore.wire.sse import (
    COMMENT,
    EventTooLongError,
    SseReader,
    encode_event,
    encode_events,
)


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


# ------------------------------------------------------------------ reading


def read(*pieces: bytes) -> list[bytes]:
    reader = SseReader(1_000)
    return [data for piece in pieces for data in reader.receive(piece)]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"event: a\ndata: {}\n\n", [b"{}"]),
        (b"data: {}\n\n", [b"{}"]),
        (b"data:{}\n\n", [b"{}"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"event: a\ndata: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b": comment\n\n", []),
        (b": comment\n\ndata: 1\n\n", [b"1"]),
        (b"id: 7\nretry: 5\ndata: 1\nevent: a\n\n", [b"1"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
        (b"data: 1\r\n\ndata: 2\n\r\n", [b"1", b"2"]),
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b"event: a\n\n", []),
        (b"\n\n\ndata: 1\n\n", [b"1"]),
        (b"database: x\ndata: 1\n\n", [b"1"]),
        (b"data: 1\n", []),  # not complete
        (b"\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", [b"1", b"2"]),  # a byte order mark
        (b"\xef\xbb\xbfdata: 1\r\n\r\n", [b"1"]),
        (b"\xef\xbb\xbf\ndata: 1\n\n", [b"1"]),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [b"1"]),  # only one at the beginning is a mark
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", [b"2"]),
    ],
)
def test_the_data_of_events_is_read_however_it_is_written(text: bytes, data: list[bytes]) -> None:
    assert read(text) == data
    assert read(*(text[i : i + 1] for i in range(len(text)))) == data


@given(
    st.lists(st.binary(min_size=1, max_size=20).filter(lambda each: b"\r" not in each), max_size=6),
    st.data(),
)
def test_what_is_written_is_read(datas: list[bytes], data: st.DataObject) -> None:
    datas = [each.strip(b"\n") or b"-" for each in datas]
    text = b"".join([COMMENT, *(encode_event(event(each)) for each in datas)])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == datas


def test_an_event_that_is_too_long_is_refused() -> None:
    reader = SseReader(10)
    reader.receive(b"data: 1\n\ndata: 2")
    with pytest.raises(EventTooLongError):
        reader.receive(b"345678901")
