"""Bodies of requests that are given by parts, and answers with any status, streamed.

What belongs here: what ``HttpServer`` does for requests that are passed through. Whole bodies and
answers are in test_http.py.
"""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.http import (
    BadRequest,
    BodyPart,
    HttpEvent,
    HttpLimits,
    HttpPhase,
    HttpServer,
    RequestBody,
)
from bridgecore.wire.request_heads import RequestHead
from tests.http_input import feed

HOST = b" HTTP/1.1\r\nhost: a\r\n"
SIZED = b"POST /parts" + HOST + b"content-length: %d\r\n\r\n"
CHUNKED = b"POST /parts" + HOST + b"transfer-encoding: chunked\r\n\r\n"


def server() -> HttpServer:
    return HttpServer(HttpLimits(1000, 10), by_parts=lambda head: head.path == "/parts")


def body_of(events: list[HttpEvent]) -> bytes:
    head, *parts, last = events
    assert isinstance(head, RequestHead)
    assert isinstance(last, RequestBody)
    return b"".join(part.data for part in parts if isinstance(part, BodyPart)) + last.data


def test_parts_come_as_they_are_received_beyond_the_limit() -> None:
    http = server()
    assert [type(event) for event in feed(http, SIZED % 50)] == [RequestHead]
    assert feed(http, b"a" * 20) == [BodyPart(b"a" * 20)]
    assert http.buffered == 0
    assert feed(http, b"b" * 30) == [RequestBody(b"b" * 30)]
    assert http.phase is HttpPhase.ANSWERING


def test_chunks_of_one_read_are_one_part() -> None:
    http = server()
    feed(http, CHUNKED)
    assert feed(http, b"2\r\nab\r\n14\r\n" + b"c" * 15) == [BodyPart(b"ab" + b"c" * 15)]
    assert feed(http, b"c" * 5, b"\r", b"\n0\r\n") == [BodyPart(b"c" * 5)]
    assert feed(http, b"\r\n") == [RequestBody(b"")]


@pytest.mark.parametrize("head", [SIZED % 0, b"GET /parts" + HOST + b"\r\n"])
def test_no_body_is_an_empty_last_part(head: bytes) -> None:
    assert feed(server(), head)[1:] == [RequestBody(b"")]


def test_the_limit_holds_for_other_requests() -> None:
    for head in (SIZED, CHUNKED + b"b\r\n"):
        head = head.replace(b"/parts", b"/whole")
        *_, refusal = feed(server(), head % 11 if b"%" in head else head)
        assert isinstance(refusal, BadRequest)
        assert refusal.status == 413


@pytest.mark.parametrize("length", [b"9" * 30, b"18446744073709551616"])
def test_a_length_that_nothing_has_is_refused(length: bytes) -> None:
    (refusal,) = feed(server(), (SIZED % 1).replace(b": 1\r", b": %b\r" % length))
    assert isinstance(refusal, BadRequest)
    assert refusal.status == 413


def test_malformed_chunks_end_a_body_by_parts() -> None:
    *_, part, refusal = feed(server(), CHUNKED + b"1\r\na\r\n", b"x\r\n")
    assert part == BodyPart(b"a")
    assert isinstance(refusal, BadRequest)


@given(st.binary(max_size=60), st.booleans(), st.data())
def test_a_body_does_not_depend_on_how_it_was_split(
    body: bytes, chunked: bool, data: st.DataObject
) -> None:
    if chunked:
        sizes = data.draw(st.lists(st.integers(1, 9), max_size=9))
        raw, at = CHUNKED, 0
        for size in [*sizes, len(body)]:
            if part := body[at : at + size]:
                raw += b"%x;e=1\r\n%b\r\n" % (len(part), part)
                at += size
        raw += b"0\r\nx: y\r\n\r\n"
    else:
        raw = SIZED % len(body) + body
    raw += b"GET /next" + HOST + b"\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    places = [0, *cuts, len(raw)]
    http = server()
    events = feed(http, *(raw[a:b] for a, b in pairwise(places)))
    assert body_of(events) == body
    http.respond(200, [], b"")
    http.start_next()
    head, _ = feed(http, b"")
    assert isinstance(head, RequestHead)
    assert head.path == "/next"


def test_an_early_refusal_drops_the_rest_of_a_body_by_parts() -> None:
    http = server()
    feed(http, SIZED % 50, b"a" * 20)
    assert b"connection: close" in http.respond(403, [], b"no").lower()
    assert feed(http, b"a" * 30) == []
    assert http.must_close


# ------------------------------------------------------------------ answers


def asked(method: bytes = b"GET", version: bytes = b"1.1") -> HttpServer:
    http = server()
    feed(http, method + b" /parts HTTP/" + version + b"\r\nhost: a\r\n\r\n")
    return http


def as_read(data: bytes, method: bytes = b"GET", *, ended: bool = False) -> tuple[int, bytes]:
    """The answer as h11 reads it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    if ended:
        client.receive_data(b"")
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return head.status_code, body


@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("status", [200, 206, 404, 599, 999])
def test_an_answer_of_any_status_is_streamed(status: int, length: int | None) -> None:
    http = asked()
    data = http.start_answer(status, [(b"x", b"1")], length, close=False)
    assert http.answering
    data += http.stream(b"a") + http.stream(b"bc") + http.end_stream()
    assert as_read(data) == (status, b"abc")
    assert not http.must_close
    http.start_next()


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [(b"HEAD", 200, 70), (b"HEAD", 200, None), (b"GET", 204, None), (b"GET", 304, 70)],
)
def test_an_answer_without_a_body(method: bytes, status: int, length: int | None) -> None:
    http = asked(method)
    data = http.start_answer(status, [], length, close=False) + http.end_stream()
    assert as_read(data, method) == (status, b"")
    assert (b"content-length: 70" in data) is (method == b"HEAD" and length == 70)
    assert not http.must_close


def test_an_answer_of_unknown_length_ends_with_the_connection_of_http_1_0() -> None:
    http = asked(version=b"1.0")
    assert http.interim(103, []) == b""
    data = http.start_answer(200, [], None, close=False) + http.stream(b"abc") + http.end_stream()
    assert as_read(data, ended=True) == (200, b"abc")
    assert http.must_close


def test_the_body_is_read_while_the_answer_is_written() -> None:
    http = server()
    feed(http, SIZED % 3, b"a")
    http.start_answer(200, [], None, close=False)
    assert feed(http, b"bc") == [RequestBody(b"bc")]
    http.end_stream()
    assert not http.must_close
    http.start_next()


def test_an_answer_that_ends_before_the_body_ends_the_connection() -> None:
    http = server()
    feed(http, SIZED % 3, b"a")
    http.start_answer(200, [], None, close=False)
    http.end_stream()
    assert http.must_close
    assert feed(http, b"bcGET / HTTP/1.1\r\n\r\n") == []


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answers(status: int) -> None:
    http = asked()
    first = http.interim(status, [(b"link", b"a")])
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert first.endswith(b"\r\nlink: a\r\n\r\n")
    assert as_read(http.respond(200, [], b"x")) == (200, b"x")


def test_misuse_is_refused() -> None:
    http = server()
    with pytest.raises(LocalProtocolError):
        http.interim(100, [])
    with pytest.raises(LocalProtocolError):
        http.start_answer(200, [], 1, close=False)
    http = asked()
    for status in (99, 101, 200):
        with pytest.raises(LocalProtocolError):
            http.interim(status, [])
    with pytest.raises(LocalProtocolError):
        http.start_answer(200, [(b"content-length", b"1")], 1, close=False)
    http.start_answer(200, [], 2, close=False)
    with pytest.raises(LocalProtocolError, match="longer"):
        http.stream(b"abc")
    http.stream(b"a")
    with pytest.raises(LocalProtocolError, match="shorter"):
        http.end_stream()
    with pytest.raises(LocalProtocolError):
        http.interim(100, [])
    http.stream(b"b")
    http.end_stream()
