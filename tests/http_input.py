"""Requests as bytes, and what an ``HttpServer`` makes of them.

What belongs here: what the tests of the connection and those of the heads of requests share.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.http import (
    BadRequest,
    HttpEvent,
    HttpLimits,
    HttpPhase,
    HttpServer,
    RequestBody,
)
from bridgecore.wire.request_heads import RequestHead

LIMITS = HttpLimits(max_header=4096, max_body=1000)
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def drain(server: HttpServer) -> list[HttpEvent]:
    events = []
    while (event := server.next_event()) is not None:
        events.append(event)
    return events


def feed(server: HttpServer, *pieces: bytes) -> list[HttpEvent]:
    """All events of ``pieces``, collected after each."""
    events = []
    for piece in pieces:
        server.receive(piece)
        events += drain(server)
    return events


def phase_of(server: HttpServer) -> HttpPhase:
    """The phase, by a call: type checkers assume that a property does not change."""
    return server.phase


def one_by_one(data: bytes) -> Iterable[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def served(data: bytes, limits: HttpLimits = LIMITS) -> tuple[RequestHead, bytes]:
    """Head and body of the one request in ``data``."""
    head, body = feed(HttpServer(limits), data)
    assert isinstance(head, RequestHead)
    assert isinstance(body, RequestBody)
    return head, body.data


def refused(data: bytes, limits: HttpLimits = LIMITS) -> BadRequest:
    """The refusal with which ``data`` ends; the same however the input is split."""
    server = HttpServer(limits)
    whole = feed(server, data)
    assert feed(HttpServer(limits), *one_by_one(data)) == whole
    refusal = whole[-1]
    assert isinstance(refusal, BadRequest)
    # Nothing more is parsed, and the connection ends with the answer.
    assert phase_of(server) is HttpPhase.ANSWERING
    assert feed(server, GET) == []
    answer = server.respond(refusal.status, [], b"no", close=True)
    assert answer.startswith(b"HTTP/1.1 %d " % refusal.status)
    assert b"connection: close\r\n" in answer.lower()
    assert server.must_close
    assert phase_of(server) is HttpPhase.CLOSED
    with pytest.raises(LocalProtocolError):
        server.start_next()
    return refusal


def post(body: bytes, *fields: bytes) -> bytes:
    head = [b"POST /v1/responses HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def with_fields(
    *fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: a"
) -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields]) + b"\r\n\r\n"
