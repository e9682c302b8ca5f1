"""Tests of wire/request_heads.py: which heads are accepted and refused, and how outlines are kept.

What belongs here: one head at a time, given to an ``HttpServer``, because what a refusal is for is
what becomes of the connection. Refused ones are given byte by byte, too, with the same result.
"""

from __future__ import annotations

import time

import pytest

from bridgecore.wire import request_heads
from bridgecore.wire.http import BadRequest, HttpLimits, HttpPhase, HttpServer
from bridgecore.wire.request_heads import RequestHead
from tests.http_input import GET, LIMITS, feed, one_by_one, phase_of, refused, served, with_fields

# ---------------------------------------------------------------------- lawful heads


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://a/v1/responses", "/v1/responses", b""),
        (b"HTTP://A/v1/responses", "/v1/responses", b""),
        (b"https://a/v1/responses", "/v1/responses", b""),
        (b"http://elsewhere.example:8080/livez?q=1?2", "/livez", b"q=1?2"),
        (b"http://[::1]:80/livez", "/livez", b""),
        (b"http://a", "/", b""),
        (b"http://a/", "/", b""),
        (b"http://a?q=/x", "/", b"q=/x"),
        (b"http://a//b", "//b", b""),
        (b"/http://a/b", "/http://a/b", b""),
    ],
)
def test_targets_in_absolute_form(target: bytes, path: str, query: bytes) -> None:
    head, _ = served(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert (head.path, head.query) == (path, query)
    assert head.headers == [(b"host", b"a")]
    old, _ = served(b"GET %b HTTP/1.0\r\n\r\n" % target)
    assert (old.path, old.query) == (path, query)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET //x/%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \r\n\r\n".replace(b"Host: ", b"Host: a\t "),
        b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: caf\xc3\xa9\tau lait\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    ],
)
def test_unusual_but_lawful(request_head: bytes) -> None:
    served(request_head)


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"127.0.0.1:8080",
        b"[::1]:8080",
        b"[::ffff:127.0.0.1]",
        b"a_b.example.",
        b"a%2Db",
        b"a:",
        b"a:65535",
    ],
)
def test_lawful_hosts(host: bytes) -> None:
    head, _ = served(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert head.headers == [(b"host", host)]


# ---------------------------------------------------------------------- refusals


MALFORMED: dict[str, tuple[bytes, str]] = {
    # Ambiguous body length.
    "length and coding": (
        with_fields(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        "both Content-Length and Transfer-Encoding",
    ),
    "coding and length": (
        with_fields(b"Transfer-Encoding: chunked", b"Content-Length: 3"),
        "both Content-Length and Transfer-Encoding",
    ),
    "lengths differ": (with_fields(b"Content-Length: 1", b"content-length: 2"), "more than one"),
    "lengths equal": (with_fields(b"Content-Length: 1", b"Content-Length: 1"), "more than one"),
    "length list": (with_fields(b"Content-Length: 1, 1"), "decimal digits"),
    "length signed": (with_fields(b"Content-Length: +5"), "decimal digits"),
    "length negative": (with_fields(b"Content-Length: -5"), "decimal digits"),
    "length hex": (with_fields(b"Content-Length: 0x5"), "decimal digits"),
    "length underscore": (with_fields(b"Content-Length: 1_0"), "decimal digits"),
    "length empty": (with_fields(b"Content-Length:"), "decimal digits"),
    "length spaced": (with_fields(b"Content-Length: 1 0"), "decimal digits"),
    "length not ASCII": (with_fields("Content-Length: ٣".encode()), "decimal digits"),
    "length of zeros": (with_fields(b"Content-Length: " + b"0" * 25), "not valid HTTP/1.1"),
    "coding in 1.0": (
        with_fields(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"),
        "does not exist in HTTP/1.0",
    ),
    "coding gzip": (with_fields(b"Transfer-Encoding: gzip"), "chunked and nothing else"),
    "coding list": (with_fields(b"Transfer-Encoding: gzip, chunked"), "chunked and nothing else"),
    "coding identity": (with_fields(b"Transfer-Encoding: identity"), "chunked and nothing else"),
    "coding empty": (with_fields(b"Transfer-Encoding:"), "chunked and nothing else"),
    "coding quoted": (with_fields(b'Transfer-Encoding: "chunked"'), "chunked and nothing else"),
    "coding parameter": (with_fields(b"Transfer-Encoding: chunked;a=b"), "chunked and nothing"),
    "coding twice": (
        with_fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        "chunked and nothing else",
    ),
    # Lines.
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: a\n\n", "bare LF"),
    "bare LF once": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", "bare LF"),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", "bare LF"),
    "bare LF first": (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bare LF"),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", "bare CR"),
    "bare CR ends lines": (b"GET / HTTP/1.1\rHost: a\r\r", "bare CR"),
    "two CR": (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", "bare CR"),
    "CR and LF apart": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \ry\n\r\n\r\n", "bare CR"),
    "many empty lines": (b"\r\n" * 9 + GET, "empty lines"),
    "NUL": (with_fields(b"X: a\0b"), "control character"),
    "escape": (with_fields(b"X: a\x1bb"), "control character"),
    "vertical tab": (with_fields(b"Transfer-Encoding: \x0bchunked"), "control character"),
    "DEL": (with_fields(b"X: a\x7fb"), "control character"),
    "TLS": (bytes.fromhex("16030100e2010000de0303"), "TLS"),
    # Fields.
    "folded": (with_fields(b"X: a", b" b"), "folded"),
    "folded with tab": (with_fields(b"X: a", b"\tb: c"), "folded"),
    "first line folded": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "folded"),
    "space before colon": (with_fields(b"Content-Length : 3"), "white space before its colon"),
    "tab before colon": (with_fields(b"X\t: 3"), "white space before its colon"),
    "no colon": (with_fields(b"X"), "no colon"),
    "no name": (with_fields(b": x"), "not a token"),
    "name with space": (with_fields(b"X Y: z"), "not a token"),
    "name not ASCII": (with_fields(b"X\xff: z"), "not a token"),
    # Host.
    "no host": (with_fields(host=b""), "no Host header"),
    "two hosts": (with_fields(b"Host: a"), "more than one Host"),
    "two hosts in 1.0": (with_fields(b"Host: a", line=b"GET / HTTP/1.0"), "more than one Host"),
    **{
        f"host {host!r}": (with_fields(host=b"Host: " + host), "Host header is malformed")
        for host in [
            b"",
            b"a b",
            b"a, b",
            b"a,b",
            b"user@a",
            b"a:b",
            b"a:-1",
            b"a:65536",
            b"a:123456",
            b"a:80:80",
            b":80",
            b"a/b",
            b"http://a",
            b"a?b",
            b"a#b",
            b"a%2",
            b"a\\b",
            b'"a"',
            b"::1",
            b"[::1",
            b"[]",
            b"[:::1]",
            b"[::1]a",
            b"[fe80::1%25eth0]",
            b"\xc3\xa9",
        ]
    },
    # Request line.
    "HTTP/0.9": (b"GET /\r\n\r\n", "one space each"),
    "no method": (b" / HTTP/1.1\r\nHost: a\r\n\r\n", "not a token"),
    "two spaces": (with_fields(line=b"GET  / HTTP/1.1"), "one space each"),
    "tab for space": (with_fields(line=b"GET\t/ HTTP/1.1"), "one space each"),
    "trailing space": (with_fields(line=b"GET / HTTP/1.1 "), "one space each"),
    "space in target": (with_fields(line=b"GET /a b HTTP/1.1"), "one space each"),
    "method not a token": (with_fields(line=b"G(T / HTTP/1.1"), "not a token"),
    "version 2.0": (with_fields(line=b"PRI * HTTP/2.0"), "version is not spoken"),
    "version 1.2": (with_fields(line=b"GET / HTTP/1.2"), "version is not spoken"),
    "version 0.9": (with_fields(line=b"GET / HTTP/0.9"), "version is not spoken"),
    "version short": (with_fields(line=b"GET / HTTP/1"), "HTTP version"),
    "version long": (with_fields(line=b"GET / HTTP/1.10"), "HTTP version"),
    "version lower-case": (with_fields(line=b"GET / http/1.1"), "HTTP version"),
    "not HTTP": (with_fields(line=b"GET / ICY/1.1"), "HTTP version"),
    **{
        f"target {target!r}": (with_fields(line=b"GET %b HTTP/1.1" % target), why)
        for target, why in [
            (b"http://a/#b", "fragment"),
            (b"http://", "authority is malformed"),
            (b"http:///livez", "authority is malformed"),
            (b"http://?x", "authority is malformed"),
            (b"http://user@a/", "authority is malformed"),
            (b"http://a:65536/", "authority is malformed"),
            (b"http://a:b/", "authority is malformed"),
            (b"http://[::1/", "authority is malformed"),
            (b"http://a,b/", "authority is malformed"),
            (b"http://a%2/", "authority is malformed"),
            (b"http:/a/", "must be a path or an http URL"),
            (b"http:a", "must be a path or an http URL"),
            (b"ftp://a/", "must be a path or an http URL"),
            (b"ws://a/", "must be a path or an http URL"),
            (b"httpx://a/", "must be a path or an http URL"),
            (b"a:80", "must be a path or an http URL"),
        ]
    },
    "absolute-form without Host": (b"GET http://a/ HTTP/1.1\r\n\r\n", "no Host header"),
    "absolute-form, bad Host": (
        b"GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        "Host header is malformed",
    ),
    "CONNECT to a URL": (with_fields(line=b"CONNECT http://a/ HTTP/1.1"), "must be a path"),
    "authority-form": (with_fields(line=b"CONNECT a:80 HTTP/1.1"), "must be a path"),
    "CONNECT to a path": (with_fields(line=b"CONNECT / HTTP/1.1"), "must be a path"),
    "asterisk-form": (with_fields(line=b"OPTIONS * HTTP/1.1"), "must be a path"),
    "relative": (with_fields(line=b"GET a HTTP/1.1"), "must be a path"),
    "query only": (with_fields(line=b"GET ?a HTTP/1.1"), "must be a path"),
    "fragment": (with_fields(line=b"GET /a#b HTTP/1.1"), "fragment"),
    "target not ASCII": (with_fields(line=b"GET /\xc3\xa9 HTTP/1.1"), "percent-encoded"),
    "no target": (with_fields(line=b"GET HTTP/1.1"), "one space each"),
}


@pytest.mark.parametrize(("data", "why"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_heads_are_refused(data: bytes, why: str) -> None:
    refusal = refused(data)
    assert (refusal.status, refusal.code) == (400, "malformed_request")
    assert why in refusal.message


def test_refusals_do_not_quote_the_request() -> None:
    for data, _ in MALFORMED.values():
        secret = data.replace(b"\r\nX", b"\r\nAuthorization: Bearer sekrit\r\nX")
        assert "sekrit" not in refused(secret).message
    assert "sekrit" not in refused(with_fields(b"Authorization Bearer sekrit")).message


# ---------------------------------------------------------------------- limits


def head_of_size(size: int) -> bytes:
    empty = with_fields(b"X: ")
    return with_fields(b"X: " + b"x" * (size - len(empty)))


def test_a_head_may_be_as_large_as_the_limit() -> None:
    data = head_of_size(LIMITS.max_header)
    assert len(data) == LIMITS.max_header
    served(data)
    assert len(feed(HttpServer(LIMITS), *one_by_one(data))) == 2


@pytest.mark.parametrize(
    "data",
    [
        head_of_size(LIMITS.max_header + 1),
        head_of_size(200_000),
        b"G" * LIMITS.max_header,  # never ends
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000,
        head_of_size(LIMITS.max_header + 1)[:-1] + b"\0",  # what is beyond the limit is not parsed
    ],
)
def test_a_larger_head_is_refused(data: bytes) -> None:
    refusal = refused(data)
    assert (refusal.status, refusal.code) == (431, "head_too_large")
    assert "4096 bytes" in refusal.message


def test_a_head_that_never_ends_is_refused_at_the_limit() -> None:
    server = HttpServer(LIMITS)
    assert feed(server, b"x" * (LIMITS.max_header - 1)) == []
    assert phase_of(server) is HttpPhase.HEAD
    (refusal,) = feed(server, b"x")
    assert isinstance(refusal, BadRequest)
    assert refusal.status == 431


def test_the_number_of_fields_is_limited() -> None:
    fields = [b"X: y"] * 255
    assert len(served(with_fields(*fields))[0].headers) == 256
    refusal = refused(with_fields(*fields, b"X: y"))
    assert (refusal.status, refusal.code) == (431, "head_too_large")
    assert "256" in refusal.message


@pytest.mark.parametrize("length", [b"1001", b"99999999999999999999", b"9" * 30, b"9" * 3900])
def test_a_larger_length_is_refused_before_any_of_the_body(length: bytes) -> None:
    refusal = refused(with_fields(b"Content-Length: " + length))
    assert (refusal.status, refusal.code) == (413, "body_too_large")
    assert "1000 bytes" in refusal.message


# ---------------------------------------------------------------------- cost


def cpu_seconds(request_head: bytes) -> float:
    server = HttpServer(HttpLimits(max_header=len(request_head), max_body=0))
    begin = time.process_time()
    assert len(feed(server, *one_by_one(request_head))) == 2
    return time.process_time() - begin


def test_the_cost_of_a_head_is_linear_however_finely_it_is_cut() -> None:
    small = min(cpu_seconds(head_of_size(16_000)) for _ in range(3))
    # 16 times the size is 16 times the work; rescanning would make it more than 200 times.
    assert cpu_seconds(head_of_size(256_000)) < 64 * small


# ---------------------------------------------------------------------- the outlines


def sized(*fields: bytes, line: bytes = b"POST /v1/responses HTTP/1.1", length: int = 2) -> bytes:
    lines = [line, b"Host: a", *fields, b"Content-Length: %d" % length, b"Accept: */*"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + b"x" * length


def heads(*requests: bytes) -> list[RequestHead]:
    """The heads of ``requests`` on one connection, each answered."""
    found = []
    server = HttpServer(HttpLimits(16384, 1000))
    for wire in requests:
        server.receive(wire)
        head = server.next_event()
        assert isinstance(head, RequestHead)
        assert server.next_event() is not None
        server.respond(200, [], b"")
        server.start_next()
        found.append(head)
    return found


def parsed() -> int:
    """How many outlines were parsed since the last call."""
    count = request_heads._parse_outline.cache_info().misses
    request_heads._parse_outline.cache_clear()
    return count


@pytest.mark.parametrize("name", [name for name, _ in request_heads._VALUES[1:]])
def test_heads_that_differ_in_values_are_parsed_once(name: bytes) -> None:
    parsed()
    first, second, third = heads(
        sized(name.title() + b": one", length=3),
        sized(name.title() + b":two", length=44),
        sized(name.title() + b":  \xe9 3\t", length=0),
    )
    assert parsed() == 1
    assert (first.content_length, second.content_length, third.content_length) == (3, 44, 0)
    assert first.headers == [
        *[(b"host", b"a"), (name, b"one"), (b"content-length", b"3"), (b"accept", b"*/*")],
    ]
    assert second.headers[1:3] == [(name, b"two"), (b"content-length", b"44")]
    assert third.headers[1:3] == [(name, b"\xe9 3"), (b"content-length", b"0")]


def test_other_differences_are_other_outlines() -> None:
    parsed()
    first, second, third = heads(sized(b"x: 1"), sized(b"x: 2"), sized(b"X: 2"))
    assert parsed() == 3
    assert first.headers[1] == (b"x", b"1")
    assert second.headers == third.headers


def test_the_first_of_two_fields_is_the_value() -> None:
    parsed()
    first, second = heads(
        sized(b"X-Request-Id:1", b"x-request-id: 2"), sized(b"X-Request-Id: 3", b"x-request-id: 2")
    )
    assert parsed() == 1
    assert first.headers[1:3] == [(b"x-request-id", b"1"), (b"x-request-id", b"2")]
    assert second.headers[1:3] == [(b"x-request-id", b"3"), (b"x-request-id", b"2")]


def test_a_caller_may_change_the_headers_it_got() -> None:
    (first,) = heads(sized())
    first.headers.clear()
    (second,) = heads(sized())
    assert len(second.headers) == 3


@pytest.mark.parametrize("name", [b"Authorization", b"api-key"])
def test_credentials_are_not_kept(name: bytes) -> None:
    parsed()
    heads(sized(name + b": secret"))
    kept = sized(name + b":0", length=0).replace(b"Length: 0", b"Length:0")
    assert request_heads._parse_outline(kept) is not None
    assert parsed() == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        sized(b"Expect: 100-continue"),
        sized(b"Connection: close"),
        sized(line=b"POST / HTTP/1.0"),
        sized(line=b"HEAD / HTTP/1.1"),
        b"GET /livez HTTP/1.1\r\nHost: a\r\nx-request-id: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        sized(b"x: " + b"y" * request_heads._MAX_OUTLINE),
    ],
)
def test_irregular_heads_are_parsed_as_a_whole(request_bytes: bytes) -> None:
    raw = request_bytes.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert request_heads.read_known_head(raw, 1000) is None
    server = HttpServer(HttpLimits(16384, 1000))
    server.receive(request_bytes)
    assert isinstance(server.next_event(), RequestHead)


def test_few_outlines_are_kept() -> None:
    heads(*[sized(b"x: %d" % i) for i in range(request_heads._MAX_OUTLINES + 10)])
    assert request_heads._parse_outline.cache_info().currsize == request_heads._MAX_OUTLINES
