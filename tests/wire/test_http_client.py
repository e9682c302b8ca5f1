"""The client's side of an HTTP connection, against answers of servers of all kinds."""

from __future__ import annotations

import pytest

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.http_client import (
    AnswerDone,
    AnswerHead,
    AnswerPart,
    BadAnswerError,
    HttpClient,
    InterimHead,
)

HEADERS = [(b"host", b"a:81"), (b"x-one", b"1")]


def asked() -> HttpClient:
    client = HttpClient(1_000)
    client.request(b"POST", b"/v1/forward", HEADERS, b"body")
    return client


def received(client: HttpClient, *pieces: bytes) -> list[AnswerPart]:
    return [part for piece in pieces for part in client.receive(piece)]


def test_a_request_has_its_headers_and_its_body() -> None:
    sent = HttpClient(1_000).request(b"POST", b"/v1/forward", HEADERS, b"body")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.lower().split(b"\r\n") == [
        b"post /v1/forward http/1.1",
        b"host: a:81",
        b"x-one: 1",
        b"content-length: 4",
    ]
    assert body == b"body"


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "status", "body", "reusable"),
    [
        (CHUNKED, 200, b"abc", True),
        (b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno", 403, b"no", True),
        (b"HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx", 503, b"x", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED, 200, b"abc", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nno", 200, b"no", False),
        (b"HTTP/1.1 204 No Content\r\nx: 1\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
        # Names in any case, several values, white space, extensions and trailers.
        (
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie:\tb  c \r\nTransfer-Encoding: Chunked"
            b"\r\n\r\n3;x=y\r\nabc\r\n0\r\nx-checksum: 7\r\n\r\n",
            200,
            b"abc",
            True,
        ),
    ],
)
def test_answers_are_read_in_any_pieces(
    text: bytes, status: int, body: bytes, reusable: bool
) -> None:
    for pieces in ([text], [text[i : i + 1] for i in range(len(text))]):
        head, *parts, done = received(asked(), *pieces)
        assert isinstance(head, AnswerHead)
        assert head.status == status
        assert b"".join(part for part in parts if isinstance(part, bytes)) == body
        assert done == AnswerDone(reusable)


def test_one_exchange_follows_the_other() -> None:
    client = asked()
    assert received(client, CHUNKED)[-1] == AnswerDone(True)
    client.request(b"POST", b"/v1/forward", HEADERS, b"more")
    assert received(client, CHUNKED)[-1] == AnswerDone(True)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    client = asked()
    head, body = received(client, b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert isinstance(head, AnswerHead)
    assert body == b"abc"
    assert received(client, b"") == [AnswerDone(False)]


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 2_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        CHUNKED + b"HTTP/1.1 200 OK\r\n\r\n",  # no second request was sent
    ],
)
def test_what_is_no_answer_is_refused(text: bytes) -> None:
    with pytest.raises(BadAnswerError):
        received(asked(), text)


@pytest.mark.parametrize("header", [(b"x", b"a\r\nb: c"), (b"x y", b""), (b"x", b" a")])
def test_a_header_that_would_break_the_request_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        HttpClient(1_000).request(b"POST", b"/", [header], b"")


def test_an_answer_that_is_cut_off_is_refused() -> None:
    client = asked()
    received(client, CHUNKED[:-9])
    with pytest.raises(BadAnswerError):
        received(client, b"")


# ------------------------------------------------------------------ requests by parts


def begun(
    method: bytes = b"GET", length: int | None = None, *, chunked: bool = False
) -> tuple[HttpClient, bytes]:
    client = HttpClient(1_000)
    return client, client.begin(method, b"/v1/files", HEADERS, length, chunked=chunked)


@pytest.mark.parametrize(
    ("length", "chunked", "framing", "sent"),
    [
        (None, False, b"", b""),
        (0, False, b"content-length: 0\r\n", b""),
        (3, False, b"content-length: 3\r\n", b"abc"),
        (None, True, b"transfer-encoding: chunked\r\n", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
    ],
)
def test_a_request_can_be_sent_by_parts(
    length: int | None, chunked: bool, framing: bytes, sent: bytes
) -> None:
    client, head = begun(b"POST", length, chunked=chunked)
    assert head == b"POST /v1/files HTTP/1.1\r\nhost: a:81\r\nx-one: 1\r\n" + framing + b"\r\n"
    if sent:
        assert client.body(b"a") + client.body(b"") + client.body(b"bc", last=True) == sent
    else:
        assert client.body(b"", last=True) == b""


@pytest.mark.parametrize(("part", "last"), [(b"abcd", False), (b"ab", True)])
def test_a_body_of_another_length_is_not_sent(part: bytes, last: bool) -> None:
    client, _ = begun(b"POST", 3)
    with pytest.raises(LocalProtocolError, match="another length"):
        client.body(part, last=last)


def test_interim_answers_are_given_for_a_request_by_parts() -> None:
    client, _ = begun()
    hints, head, done = received(
        client,
        b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    )
    assert hints == InterimHead(103, [(b"link", b"a")])
    assert head == AnswerHead(204, [])
    assert done == AnswerDone(True)


def test_a_change_of_protocol_is_refused() -> None:
    with pytest.raises(BadAnswerError, match="not asked for"):
        received(asked(), b"HTTP/1.1 101 Switching Protocols\r\n\r\n")


@pytest.mark.parametrize(
    ("framing", "length"),
    [(b"content-length: 7", 7), (b"transfer-encoding: chunked", None), (b"x: y", None)],
)
def test_an_answer_to_head_has_no_body(framing: bytes, length: int | None) -> None:
    client, _ = begun(b"HEAD")
    head, done = received(client, b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
    assert isinstance(head, AnswerHead)
    assert head.length == length
    assert done == AnswerDone(True)
