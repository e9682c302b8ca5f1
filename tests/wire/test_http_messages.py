"""Tests of wire/http_messages.py. What it has in common with the server side of HTTP in bytes is
tested by tests/endpoint/test_requests.py."""

from __future__ import annotations

import pytest

from bridgecore.wire.http import BodyPart, HttpEvent, HttpLimits, RequestBody
from bridgecore.wire.http_messages import HttpMessages
from bridgecore.wire.request_heads import RequestHead


def passed(headers: list[tuple[bytes, bytes]], length: int | None = None) -> HttpMessages:
    """A request whose body is passed on by parts."""
    chunked = length is None
    head = RequestHead(b"GET", "/v1/models", b"", headers, length, chunked, expects_continue=False)
    return HttpMessages(HttpLimits(1000, 1000), head, lambda _: True)


def events(messages: HttpMessages) -> list[HttpEvent]:
    found = []
    while (event := messages.next_event()) is not None:
        found.append(event)
    return found


def test_a_request_without_framing_is_chunked_only_if_a_body_comes() -> None:
    empty = passed([])
    assert events(empty) == []
    empty.receive(b"")
    assert events(empty) == []
    empty.end()
    head, end = events(empty)
    assert isinstance(head, RequestHead)
    assert (head.chunked, head.content_length) == (False, None)
    assert end == RequestBody(b"")

    full = passed([])
    full.receive(b"{}")
    head, part = events(full)
    assert isinstance(head, RequestHead)
    assert head.chunked
    assert part == BodyPart(b"{}")


@pytest.mark.parametrize(("status", "length"), [(304, 70), (304, None), (204, 0)])
def test_an_answer_that_has_no_body_announces_none(status: int, length: int | None) -> None:
    """A server around the bridge would wait for it, and take the answer for one that was cut
    off."""
    messages = passed([(b"content-length", b"0")], 0)
    messages.start_answer(status, [(b"etag", b"1")], length, close=False)
    assert messages.take_head() == (status, [(b"etag", b"1")])


@pytest.mark.parametrize(
    ("headers", "length"),
    [([(b"content-length", b"2")], 2), ([(b"transfer-encoding", b"chunked")], None)],
)
def test_a_request_that_says_how_it_is_framed_is_passed_on_at_once(
    headers: list[tuple[bytes, bytes]], length: int | None
) -> None:
    (head,) = events(passed(headers, length))
    assert isinstance(head, RequestHead)
    assert head.chunked is (length is None)
