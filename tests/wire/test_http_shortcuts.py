"""The shortcuts of wire/http.py and request_heads.py: with and without, a connection is the same.

What belongs here: ``HttpServer(..., shortcuts=True)`` against ``shortcuts=False``, compared after
each read and each answer, and against h11 alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from http import HTTPStatus
from itertools import pairwise
from typing import TypeVar

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.errors import LocalProtocolError
from bridgecore.wire import request_heads
from bridgecore.wire.codings import BodyDecoder
from bridgecore.wire.http import HttpLimits, HttpServer
from bridgecore.wire.request_heads import RequestHead

T = TypeVar("T")

# For a long run by hand: HTTP_SHORTCUT_CASES=100000 pytest --timeout 0 THIS_FILE
CASES = int(os.environ.get("HTTP_SHORTCUT_CASES", "300"))

USUAL_LIMITS = HttpLimits(4096, 1000)
ODD_LIMITS = [HttpLimits(4096, 5), HttpLimits(4096, 0), HttpLimits(200, 1000)]


def mostly(usual: list[T], odd: list[T]) -> st.SearchStrategy[T]:
    """One of ``usual`` in four cases of five, so that whole connections of usual requests are
    frequent, else one of ``odd``."""
    return st.integers(0, 4).flatmap(lambda n: st.sampled_from(usual if n else odd))


# ---------------------------------------------------------------------- requests

REQUEST_LINES = mostly(
    [b"POST /v1/responses HTTP/1.1"],
    [
        b"POST /v1/responses?a=b HTTP/1.1",
        b"POST http://a/v1/responses HTTP/1.1",
        b"POST http://a:99999/ HTTP/1.1",
        b"POST * HTTP/1.1",
        b"POST /v1/responses HTTP/1.0",
        b"POST /v1/responses HTTP/2.0",
        b"POST /v1/responses  HTTP/1.1",
        b"POST /\xe9 HTTP/1.1",
        b"HEAD /v1/responses HTTP/1.1",
        b"GET /livez HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1",
        b"\r\nPOST / HTTP/1.1",
        b"POST /content-length: HTTP/1.1",
    ],
)

# ``LEN`` becomes a length, ``ID`` an id.
USUAL_FIELDS = st.sampled_from(
    [
        b"Authorization: Bearer ID",
        b"x-request-id: ID",
        b"X-REQUEST-ID:ID ",
        b"traceparent: \tID",
        b"Accept: */*",
        b"accept-encoding:  gzip, br ",
        b"x-latin: caf\xe9",
        b"x: content-length: LEN",
        b"x-content-length: LEN",
        b"Connection: keep-alive",
        b"content-encoding: gzip",
    ]
)
ODD_FIELDS = st.sampled_from(
    [
        b"x-request-id:",
        b"x-request-id : ID",
        b"x-request-id",
        b"x-request-id: ID\r\n folded",
        b"x-request-id: ID\r\n\tcontent-length: LEN",
        b"x: a\ncontent-length: LEN",
        b"x: a\rcontent-length: LEN",
        b"content-length-x: LEN",
        b"content_length: LEN",
        b" content-length: LEN",
        b"content-length: LEN",
        b"content-length : LEN",
        b"content-length\t: LEN",
        b"Content-Length: LEN, LEN",
        b"content-length: LEN;",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding:identity",
        b"Connection: close",
        b"connection: te, Close",
        b"Connection: ID",
        *[b"Expect: 100-continue"] * 4,
        b"Upgrade: websocket",
        b"Host: b",
        b"host:",
        b"x\0: y",
        b"x: \0",
        b": y",
        b"",
    ]
)
LENGTH_FIELDS = mostly(
    [b"Content-Length: LEN", b"content-length: LEN", b"Content-Length:LEN"],
    [b"CONTENT-LENGTH:\t LEN \t", b"Content-length:\xa0LEN", b"Content-Length: LEN\x0b", b"LEN"],
)
LENGTHS = mostly(
    [b"%d"],
    [
        *[b"0%d", b"+%d", b"-%d", b" %d", b"%d ", b"%d %d", b"%d,%d", b"0x%d", b"%d_0", b"%d.0"],
        *[b"00000000000000000000%d", b"1%d", b"0", b"00", b"9999999999999999999%d"],
        *[b"99999999999999999999999%d", b"", b"\xb2", b"\xd9\xa1", b"%d\0"],
        *[b"%d\r\n", b"%d\r\nx: y", b"%d\nx: y"],
    ],
)
IDS = mostly(
    [b"0", b"abc", b"a b", b"", b"\xff", b"a\tb", b'{"a":"b"}', b"close"],
    [
        *[b"a\r\nx: y", b"a\r\ncontent-length: 3", b"a\nb", b"a\r", b"\r\n", b"a\r\n b"],
        *[b"a\0", b"\x7f", b"x" * 300],
    ],
)
BODIES = st.sampled_from([b"", b"{}", b"hello", b"\r\n\r\n", b"POST / HTTP/1.1\r\n", b"x" * 120])


@st.composite
def templates(draw: st.DrawFn) -> bytes:
    """A head whose lengths and ids are left open."""
    fields = draw(st.lists(USUAL_FIELDS, max_size=3))
    if draw(st.integers(0, 19)):
        fields.insert(draw(st.integers(0, len(fields))), b"Host: a")
    if draw(st.integers(0, 19)):
        fields.insert(draw(st.integers(0, len(fields))), draw(LENGTH_FIELDS))
    if not draw(st.integers(0, 2)):
        fields.insert(draw(st.integers(0, len(fields))), draw(ODD_FIELDS))
    return b"\r\n".join([draw(REQUEST_LINES), *fields, b"", b""])


@st.composite
def connections(draw: st.DrawFn) -> bytes:
    """The input of a connection: a few heads, with other lengths and ids each time."""
    wire = b""
    heads = draw(st.lists(templates(), min_size=1, max_size=2))
    for _ in range(draw(st.integers(1, 5))):
        body = draw(BODIES)
        length = draw(LENGTHS).replace(b"%d", b"%d" % len(body))
        head = draw(st.sampled_from(heads)).replace(b"LEN", length)
        head = b"".join(part + draw(IDS) for part in head.split(b"ID")[:-1]) + head.split(b"ID")[-1]
        if b"chunked" in head and draw(st.booleans()):
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        wire += head + body
    if not draw(st.integers(0, 9)):  # damage
        at = draw(st.integers(0, len(wire)))
        wire = (
            wire[:at] + draw(st.sampled_from([b"\n", b"\r", b" ", b"\0", b":", b"0"])) + wire[at:]
        )
    return wire


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


# ---------------------------------------------------------------------- the same, step by step

ANSWER_FIELDS = st.lists(
    st.sampled_from(
        [
            *[(b"content-type", b"application/json"), (b"cache-control", b"no-cache")] * 3,
            *[(b"x-request-id", b"req_1"), (b"allow", b"GET, POST")] * 3,
            (b"Content-Type", b"text/event-stream"),
            (b"x-request-id", b""),
            (b"x-request-id", b" a"),
            (b"x-request-id", b"a\r\nb: c"),
            (b"x-request-id", b"a\n"),
            (b"x-request-id", b"\xff"),
            (b"x-request-id\n", b"a"),
            (b"content-length", b"1"),
            (b"Connection", b"close"),
            (b"x y", b"a"),
            (b"", b"a"),
        ]
    ),
    max_size=3,
)


class Both:
    """A server with shortcuts and one without: each step must have the same outcome."""

    def __init__(self, limits: HttpLimits) -> None:
        self.servers = [HttpServer(limits, shortcuts=shortcuts) for shortcuts in (True, False)]

    def do(self, step: Callable[[HttpServer], object]) -> object:
        """The result of ``step``, or the error that it raised."""
        short, plain = [outcome(server, step) for server in self.servers]
        assert short == plain
        return short[0]

    def receive(self, data: bytes) -> None:
        self.do(lambda server: server.receive(data))


def outcome(server: HttpServer, step: Callable[[HttpServer], object]) -> tuple[object, ...]:
    result: object
    try:
        result = step(server)
    except LocalProtocolError as exc:
        result = str(exc)
    if isinstance(result, RequestHead):
        assert {type(part) for field in result.headers for part in field} <= {bytes}
    return (result, server.phase, server.must_close, server.answer_done, server.buffered)


def answer(both: Both, data: st.DataObject) -> None:
    """Try to answer the current request in one of the possible ways, and to begin the next."""
    fields = data.draw(ANSWER_FIELDS)
    status = data.draw(st.sampled_from([200, 200, 204, 299, 404, 1]))
    body = data.draw(st.sampled_from([b"", b"{}"]))
    close = not data.draw(st.integers(0, 4))
    if data.draw(st.booleans()):
        both.do(lambda server: server.start_stream(fields))
        both.do(lambda server: server.stream(b"event"))
        both.do(lambda server: server.end_stream())
    both.do(lambda server: server.respond(status, fields, body, close=close))
    both.do(lambda server: server.respond(404, [], b"", close=close))  # if all that was refused
    both.do(lambda server: server.start_next())


@settings(max_examples=CASES)
@given(
    mostly([USUAL_LIMITS], ODD_LIMITS),
    connections(),
    st.lists(st.integers(0, 10_000), max_size=6),
    st.sampled_from([*["when complete"] * 3, "at the head", "never"]),
    st.data(),
)
def test_each_step_is_the_same(
    limits: HttpLimits, wire: bytes, places: list[int], when: str, data: st.DataObject
) -> None:
    request_heads._parse_outline.cache_clear()  # to be able to repeat a case
    both = Both(limits)
    for piece in cut(wire, places):
        both.receive(piece)
        while (event := both.do(lambda server: server.next_event())) is not None:
            if isinstance(event, RequestHead):
                both.do(lambda server: server.wants_body())
                if (b"content-encoding", b"gzip") in event.headers:
                    both.do(lambda server: server.decode_body(BodyDecoder(["gzip"], 100)))
            if when == ("at the head" if isinstance(event, RequestHead) else "when complete"):
                answer(both, data)
    both.do(lambda server: server.respond(408, [], b"{}", close=True))


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("status", [None, 200, 204, 304, 404, 299])
def test_h11_writes_the_same_heads(
    shortcuts: bool, method: bytes, version: bytes, connection: bytes, status: int | None
) -> None:
    wire = b"%b / HTTP/%b\r\nHost: a\r\n%b\r\n" % (method, version, connection)
    server = HttpServer(HttpLimits(4096, 0), shortcuts=shortcuts)
    server.receive(wire)
    assert isinstance(server.next_event(), RequestHead)
    fields = [(b"content-type", b"a/b"), (b"X-Request-ID", b"1"), (b"allow", b"GET, POST")]
    stream = status is None
    short = server.start_stream(fields) if stream else server.respond(status or 0, fields, b"")

    peer = h11.Connection(h11.SERVER)
    peer.receive_data(wire)
    peer.next_event()
    reason = HTTPStatus(status or 200).phrase.encode() if status != 299 else b""
    sized = [] if status in (None, 204, 304) else [(b"content-length", b"0")]
    answer_head = h11.Response(status_code=status or 200, headers=fields + sized, reason=reason)
    assert short == peer.send(answer_head)
