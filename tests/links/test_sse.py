"""A connection over HTTP to an upstream, against its answers in bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.config import Config, UpstreamUrl
from bridgecore.links import ReadResult
from bridgecore.links.sse import PART, REUSE, SseConnection
from bridgecore.messages import SendFrame
from bridgecore.recovery.failure import Closed, ErrorFrame, Malformed, TimedOut
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.wire.responses import EventKind, UpstreamEvent, read_event

CONFIG = Config(upstream=UpstreamUrl.parse("https://up/v1"))
CREATED = b'{"type":"response.created","response":{"id":"resp_1","status":"in_progress"}}'
DELTA = b'{"type":"response.output_text.delta","delta":"x"}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","status":"completed"}}'
FRAME = b'{"type":"response.create","model":"m","input":"hi"}'
END = b"0\r\n\r\n"


def opened() -> SseConnection:
    link = SseConnection(CONFIG, 1)
    assert link.connected() == ReadResult(opened=True)
    return link


def asked(now: int = 0, frame: bytes = FRAME) -> SseConnection:
    link = opened()
    assert link.send(SendFrame(1, frame), now)
    assert not link.frame_sent(now)
    return link


def head(status: int = 200, **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode()


def stream(*datas: bytes, **fields: str) -> bytes:
    fields = {"transfer_encoding": "chunked", "content_type": "text/event-stream", **fields}
    return head(200, **fields) + b"".join(map(chunk, datas))


def chunk(data: bytes) -> bytes:
    text = b"event: x\ndata: %b\n\n" % data if data.startswith(b"{") else data
    return b"%x\r\n%b\r\n" % (len(text), text)


def body(status: int, text: bytes, **fields: str) -> bytes:
    fields = {"content_length": str(len(text)), "content_type": "application/json", **fields}
    return head(status, **fields) + text


def read_all(link: SseConnection, pieces: Iterable[bytes], now: int = 1) -> ReadResult:
    """The results of all reads as one."""
    whole = ReadResult()
    for piece in pieces:
        read = link.receive(piece, now)
        whole.messages += read.messages
        whole.loss = whole.loss or read.loss
    return whole


def event(message: bytes) -> UpstreamEvent:
    found = read_event(message)
    assert found is not None
    return found


# ------------------------------------------------------------------ requests


def test_a_turn_is_a_post_request() -> None:
    link = opened()
    headers = [(b"authorization", b"Bearer k"), (b"accept", b"text/plain"), (b"user-agent", b"u")]
    headers.append((b"accept-encoding", b"gzip"))
    sent = link.send(SendFrame(1, FRAME, headers), 0)
    lines, _, data = sent.partition(b"\r\n\r\n")
    assert lines.split(b"\r\n") == [
        b"POST /v1/responses HTTP/1.1",
        b"host: up",
        b"authorization: Bearer k",
        b"user-agent: u",
        b"accept: text/event-stream",
        b"accept-encoding: identity",
        b"content-type: application/json",
        b"content-length: %d" % len(data),
    ]
    assert json.loads(data) == {"stream": True, "model": "m", "input": "hi"}
    assert b'"model":"m","input":"hi"' in data  # the client's members, byte for byte


def test_a_long_turn_is_written_part_by_part() -> None:
    link = opened()
    frame = b'{"type":"response.create","input":"%b"}' % (b"x" * (3 * PART))
    parts = [link.send(SendFrame(1, frame), 0)]
    while part := link.frame_sent(1):
        assert not link.whole
        parts.append(part)
    assert link.whole
    assert [len(part) for part in parts[:-1]] == [PART] * 3
    assert b"".join(parts).endswith(b'"input":"%b"}' % (b"x" * (3 * PART)))


# ------------------------------------------------------------------ streams

ANSWER = stream(CREATED, b": keepalive\n\n", DELTA, DONE, b"data: [DONE]\n\n") + END
MESSAGES = [CREATED, DELTA, DONE]


@given(st.lists(st.integers(1, len(ANSWER) - 1)))
def test_the_events_are_the_messages_however_they_arrive(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(ANSWER)]
    pieces = [ANSWER[begin:end] for begin, end in pairwise(edges)]
    link = asked()
    read = read_all(link, pieces)
    assert (read.messages, read.loss) == (MESSAGES, None)
    # The connection carries the next turn.
    assert link.send(SendFrame(1, FRAME), 2)
    assert read_all(link, pieces).messages == MESSAGES


def test_an_answer_may_end_with_the_connection() -> None:
    text = b"".join(b"data: %b\r\n\r\n" % data for data in MESSAGES)
    link = asked()
    assert link.receive(head(content_type="text/event-stream") + text, 1).messages == MESSAGES
    loss = link.receive_eof(2).loss
    assert loss is not None
    assert loss.cause == Closed(1000)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (
            b'{"type":"error","code":"server_error","message":"m","param":null}',
            ErrorFrame(None, "server_error", None, "m"),
        ),
        (b'{"code":"c","message":"m","plan_type":"pro"}', ErrorFrame(None, "c", None, "m")),
        (b'{"error":{"type":"t","message":"m"}}', ErrorFrame(None, None, "t", "m")),
        (b"overloaded", ErrorFrame(None, None, None, "overloaded")),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        b"event: error\ndata: %b\n\n",
        b"data: %b\nevent:error\n\n",
        b"id: 7\nevent: error\ndata: %b\n\n",
        b": a comment\nevent:error\ndata: %b\n\n",
        b"data: %b\nevent: error\nid: 7\n\n",
        b"event: error\r\ndata: %b\r\n\r\n",
    ],
)
def test_an_error_event_is_an_error_whatever_its_shape(
    said: bytes, error: ErrorFrame, form: bytes
) -> None:
    link = asked()
    read = link.receive(stream(CREATED, form % said) + END, 1)
    found = event(read.messages[1])
    assert found.kind is EventKind.ERROR
    assert (found.error.code, found.error.type, found.error.message) == (
        error.code,
        error.type,
        error.message,
    )
    assert ("plan_type" in said.decode()) is (found.error.more is not None)
    assert read.loss is None  # an error is an end


def test_an_interim_answer_changes_nothing() -> None:
    link = asked()
    read = link.receive(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER, 1)
    assert (read.messages, read.loss) == (MESSAGES, None)


# ------------------------------------------------------------------ other answers

ERROR = b'{"error":{"message":"Words.","type":"t","code":"c","param":"p","plan_type":"pro"}}'


@pytest.mark.parametrize("status", range(400, 600))
def test_an_error_keeps_its_status_and_all_that_is_said(status: int) -> None:
    link = asked()
    read = link.receive(body(status, ERROR, retry_after="7"), 1)
    (message,) = read.messages
    expected = ErrorFrame(status, "c", "t", "Words.", "p", 7, '{"plan_type":"pro"}')
    assert (event(message).kind, event(message).error) == (EventKind.ERROR, expected)
    assert read.loss is None
    assert link.send(SendFrame(1, FRAME), 2)  # the connection is kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", None),
        (b"<html>no</html>", None),
        (b"upstream connect error", "upstream connect error"),
    ],
)
def test_an_error_need_not_be_json(text: bytes, words: str | None) -> None:
    read = asked().receive(body(503, text, content_type="text/html", retry_after_ms="2500"), 1)
    assert event(read.messages[0]).error == ErrorFrame(503, message=words, retry_after=3)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    read = asked().receive(body(status, b"", location="https://elsewhere/"), 1)
    error = event(read.messages[0]).error
    assert error.status == 502
    assert str(status) in (error.message or "")


def test_a_response_in_one_piece_is_its_beginning_and_its_end() -> None:
    text = b'{"id":"resp_1","object":"response",\n "status":"completed", "output":[], "x":1e400}'
    read = asked().receive(body(200, text), 1)
    created, ended = map(event, read.messages)
    assert (created.kind, created.response) == (EventKind.CREATED, "resp_1")
    assert (ended.type, ended.response) == (b"response.completed", "resp_1")
    assert b'"x":1e400' in ended.data  # byte for byte
    assert read.loss is None


@pytest.mark.parametrize("status", ["incomplete", "failed", "cancelled"])
def test_it_ends_as_its_status_says(status: str) -> None:
    text = json.dumps({"id": "resp_1", "status": status, "output": []}).encode()
    read = asked().receive(body(200, text), 1)
    assert event(read.messages[1]).type == f"response.{status}".encode()
    assert event(read.messages[1]).kind is EventKind.ENDED


def test_an_error_with_status_200_is_an_error() -> None:
    read = asked().receive(body(200, ERROR), 1)
    assert event(read.messages[0]).error.code == "c"


NO_RESPONSE = "the answer is neither a stream of events nor a response"
TOO_LONG = f"an answer of more than {CONFIG.max_message:,} bytes"
LOSSES: dict[str, tuple[bytes, Any]] = {
    "no HTTP": (b"SSH-2.0\r\n\r\n", Malformed("unreadable answer")),
    "a compressed stream": (
        stream(b"\x1f\x8b\x08", content_encoding="gzip"),
        Malformed("an answer that is compressed, although only a plain one is taken"),
    ),
    "a page": (body(200, b"<html>", content_type="text/html"), Malformed(NO_RESPONSE)),
    "a response that runs": (body(200, b'{"id":"r","status":"queued"}'), Malformed(NO_RESPONSE)),
    "another object": (body(200, b'{"object":"list"}'), Malformed(NO_RESPONSE)),
    "no content": (head(204), Closed(1006)),
    "an end without a terminal event": (stream(CREATED, DELTA) + END, Closed(1006)),
    "an end without any event": (stream() + END, Closed(1006)),
    "an error that is too long": (body(500, b"x" * (CONFIG.max_message + 1)), Malformed(TOO_LONG)),
    "an event that is too long": (
        stream(b"data: " + b"x" * CONFIG.max_message),
        Malformed(f"an event of more than {CONFIG.max_message:,} bytes"),
    ),
    "a last answer": (stream(DONE, connection="close") + END, Closed(1000)),
    "an error that closes": (body(400, ERROR, connection="close"), Closed(1000)),
    "an answer of HTTP/1.0": (body(400, ERROR).replace(b"/1.1", b"/1.0"), Closed(1000)),
}


@pytest.mark.parametrize("case", LOSSES)
def test_other_answers_are_losses(case: str) -> None:
    data, cause = LOSSES[case]
    read = asked().receive(data, 1)
    assert read.loss is not None
    assert (read.loss.cause, read.loss.goodbye) == (cause, False)


def test_what_was_read_before_the_loss_counts() -> None:
    read = asked().receive(stream(CREATED, DELTA) + b"garbage\r\n", 1)
    assert read.messages == [CREATED, DELTA]
    assert read.loss is not None


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", 1006), (stream(CREATED), 1006), (stream(CREATED, DONE), 1000), (ANSWER, 1000)],
)
def test_the_end_of_the_connection(data: bytes, code: int) -> None:
    link = asked()
    if data:
        link.receive(data, 1)
    loss = link.receive_eof(1).loss
    assert loss is not None
    assert loss.cause == Closed(code)


def test_an_answer_to_a_part_of_a_turn_is_the_last_of_the_connection() -> None:
    """The rest cannot be taken back, and would be read as the next request."""
    link = opened()
    link.send(SendFrame(1, FRAME[:-1] + b',"x":"%b"}' % (b"x" * PART)), 0)
    read = link.receive(body(413, ERROR), 1)
    assert event(read.messages[0]).error.status == 413
    assert read.loss is not None
    assert read.loss.cause == Closed(1000)


# ------------------------------------------------------------------ between two turns


@pytest.mark.parametrize(
    ("announced", "kept"),
    [
        ({}, REUSE),
        ({"keep_alive": "timeout=75"}, 74 * NS_PER_SECOND),
        ({"keep_alive": "max=100, timeout=3"}, 2 * NS_PER_SECOND),
        ({"keep_alive": "timeout=1"}, 1),
        ({"keep_alive": "timeout=soon"}, REUSE),
    ],
)
def test_a_connection_is_kept_for_less_than_the_server_keeps_it(
    announced: dict[str, str], kept: int
) -> None:
    link = asked()
    assert link.timeout(4) == b""  # a turn runs: its own deadlines apply
    link.receive(stream(DONE, **announced) + END, 5)
    assert (link.deadline, link.timer) == (5 + kept, Timer.REUSE)
    assert link.timeout(5 + kept) == TimedOut(Timer.REUSE)
    link.send(SendFrame(1, FRAME), 6)
    assert link.deadline is None
    assert link.timeout(7) == b""


def test_the_next_turn_waits_for_the_end_of_the_answer() -> None:
    link = asked()
    assert link.receive(stream(CREATED, DONE), 1).messages == [CREATED, DONE]
    assert link.send(SendFrame(1, FRAME), 2) == b""
    assert (link.unsent, link.whole) == (True, False)
    read = link.receive(chunk(DELTA) + END, 3)  # of a response that has ended
    assert read.messages == []
    assert read.sends
    assert read.reply.endswith(b'"input":"hi"}')
    assert (link.unsent, link.whole, link.deadline) == (False, False, None)
    assert link.frame_sent(4) == b""
    assert link.receive(ANSWER, 5).messages == MESSAGES


def test_it_does_not_wait_for_ever() -> None:
    link = asked()
    link.receive(stream(CREATED, DONE), 1)
    link.send(SendFrame(1, FRAME), 2)
    assert link.deadline == 2 + NS_PER_SECOND
    assert link.timeout(2 + NS_PER_SECOND) == TimedOut(Timer.REUSE)
    assert link.unsent  # so the turn is not lost with it


def test_data_without_a_request_is_a_loss() -> None:
    """As servers send it before they close a connection that is idle."""
    link = asked()
    link.receive(ANSWER, 1)
    loss = link.receive(body(408, b""), 2).loss
    assert loss is not None
    assert loss.cause == Malformed("data without a request")


def test_it_is_closed_without_a_closing_handshake() -> None:
    """In mid-answer that cancels the turn."""
    assert asked().close() == b""
