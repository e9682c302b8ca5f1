"""Tests of testing/client.py: answers in any pieces are parsed, and invalid ones are errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.testing.client import (
    HttpAnswer,
    HttpEnd,
    HttpHead,
    HttpPart,
    HttpReader,
    ReadError,
    SseEvent,
    SseReader,
    read_answers,
)
from bridgecore.testing.strategies import splits

TWO = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\nX-Y:  Some Words \r\n\r\nno"
)


def plain(part: HttpPart) -> object:
    return "end" if isinstance(part, HttpEnd) else part


@given(splits(TWO))
def test_answers_are_read_in_any_pieces(pieces: list[bytes]) -> None:
    reader = HttpReader()
    parts = [part for piece in pieces for part in reader.feed(piece)]
    heads = [part for part in parts if isinstance(part, HttpHead)]
    assert [head.status for head in heads] == [200, 502]
    assert heads[1].headers == {"content-length": "2", "x-y": "Some Words"}
    bodies = b"".join(part for part in parts if isinstance(part, bytes))
    assert bodies == b"abcdeno"
    assert all(part != b"" for part in parts)
    assert reader.untouched
    assert reader.feed_eof() == []


def test_collected_answers() -> None:
    answers = read_answers(TWO)
    assert [(one.status, one.body, one.complete) for one in answers] == [
        (200, b"abcde", True),
        (502, b"no", True),
    ]
    assert [one.complete for one in read_answers(TWO[:-1])] == [True, False]
    assert [one.complete for one in read_answers(TWO[:60])] == [False]
    with pytest.raises(ReadError, match="half a head"):
        read_answers(TWO + b"HTTP/1.1 2")


def test_an_answer_to_head_has_no_body() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    first, second = read_answers(head + head + b"ok", of_head=[True])
    assert (first.body, second.body) == (b"", b"ok")
    reader = HttpReader()
    reader.expect_no_body()
    assert [plain(part) for part in reader.feed(head)][1:] == ["end"]


def test_an_interim_answer_has_no_end() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert HttpReader().feed(data) == [HttpHead(100, {})]
    assert read_answers(data + TWO)[0] == HttpAnswer(100, {}, complete=True)


def test_a_body_that_ends_with_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nsome"
    (answer,) = read_answers(data)
    assert (answer.body, answer.complete) == (b"some", True)
    reader = HttpReader(until_close=True)
    assert [plain(part) for part in (*reader.feed(data), *reader.feed(b"thing"))][1:] == [
        b"some",
        b"thing",
    ]
    assert [plain(part) for part in reader.feed_eof()] == ["end"]
    assert reader.untouched


def test_an_end_in_the_middle_of_an_answer() -> None:
    reader = HttpReader()
    reader.feed(TWO[:-1])
    with pytest.raises(ReadError, match="in the middle"):
        reader.feed_eof()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n",
    ],
)
def test_the_reader_is_strict(answer: bytes) -> None:
    with pytest.raises(ReadError):
        HttpReader().feed(answer)


# ------------------------------------------------------------------ server-sent events

STREAM = b": one\n\nevent: a\ndata: {}\n\nevent: b\ndata: [1,\ndata: 2]\n\n"
EVENTS = [SseEvent("", b": one"), SseEvent("a", b"{}"), SseEvent("b", b"[1,\n2]")]


@given(st.data())
def test_events_are_read_in_any_pieces(data: st.DataObject) -> None:
    reader = SseReader()
    pieces = data.draw(splits(STREAM))
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS
    assert not reader.unfinished
    assert SseEvent("a", b'{"b":\n1}').json == {"b": 1}


def test_half_an_event() -> None:
    reader = SseReader()
    assert reader.feed(STREAM[:-1]) == EVENTS[:2]
    assert reader.unfinished
    stream = {"content-type": "text/event-stream"}
    assert HttpAnswer(200, stream, STREAM).everything == EVENTS
    assert HttpAnswer(200, stream, STREAM).names == ["a", "b"]
    with pytest.raises(ReadError, match="half an event"):
        _ = HttpAnswer(200, stream, STREAM[:-1]).everything
    with pytest.raises(ReadError, match="a stream of text/html"):
        _ = HttpAnswer(200, {"content-type": "text/html"}, STREAM).everything


@pytest.mark.parametrize(
    "block",
    [
        b"data: {}",
        b"event: a",
        b"event: a\n: one",
        b"id: 1",
        b"event: a\nevent: b",
        b"",
        b": one\na",
    ],
)
def test_the_stream_has_no_other_fields(block: bytes) -> None:
    with pytest.raises(ReadError):
        SseReader().feed(block + b"\n\n")


def test_an_error_has_the_members_that_clients_know() -> None:
    whole = HttpAnswer(400, {}, b'{"error":{"message":"","type":"","code":"","param":null,"x":1}}')
    assert whole.error["x"] == 1
    with pytest.raises(ReadError, match="members"):
        _ = HttpAnswer(400, {}, b'{"error":{"message":"","type":"","code":""}}').error
