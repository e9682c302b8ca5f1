"""A connection to another replica, against its answers in bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridgecore.config import Config, PeerUrl, UpstreamUrl
from bridgecore.links import ReadResult
from bridgecore.links.forward import ForwardConnection
from bridgecore.messages import SendFrame
from bridgecore.ownership.forwards import named_replica, read_replica
from bridgecore.recovery.failure import NO_REPLICA, Closed, Malformed, NotDispatched, TimedOut
from bridgecore.recovery.timers import NS_PER_SECOND, Timer

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/"))
DELTA = b'{"type":"response.output_text.delta","delta":"x"}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","status":"completed"}}'


def opened() -> ForwardConnection:
    link = ForwardConnection(CONFIG, 1, PeerUrl.parse("http://a:81"))
    assert link.connected() == ReadResult(opened=True)
    return link


def asked(now: int = 0) -> ForwardConnection:
    link = opened()
    sent = link.send(SendFrame(1, b'{"model":"m"}', [(b"x-bridgecore-forward", b"v1")]), now)
    assert sent.endswith(b'\r\n\r\n{"model":"m"}')
    assert not link.frame_sent(now)
    assert not link.whole  # the replica has not said that it has it
    return link


def answer(status: int, body: bytes, verdict: str | None = "taken", **more: str) -> bytes:
    headers = {"content-length": str(len(body)), **more}
    if verdict is not None:
        headers["x-bridgecore-forward"] = verdict
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


def stream(*datas: bytes) -> bytes:
    head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-bridgecore-forward: taken\r\n\r\n"
    return head.encode() + b"".join(chunk(data) for data in datas)


def chunk(data: bytes) -> bytes:
    text = b"event: x\ndata: %b\n\n" % data if data.startswith(b"{") else data
    return b"%x\r\n%b\r\n" % (len(text), text)


END = b"0\r\n\r\n"


def test_events_are_messages_and_the_connection_carries_the_next_turn() -> None:
    link = asked()
    read = link.receive(stream(DELTA), 1)
    assert (read.messages, read.progress, read.loss) == ([DELTA], True, None)
    assert link.whole
    read = link.receive(chunk(DONE) + END, 2)
    assert (read.messages, read.progress, read.loss) == ([DONE], False, None)
    link.send(SendFrame(1, b"{}"), 3)
    assert link.receive(stream(DONE) + END, 4).messages == [DONE]


def test_a_keepalive_before_the_answer_is_progress_and_no_message() -> None:
    link = asked()
    read = link.receive(stream(b": keepalive\n\n"), 1)
    assert (read.messages, read.progress) == ([], True)
    whole = [link.whole]
    read = link.receive(chunk(DELTA), 2)
    assert read.progress
    assert [*whole, link.whole] == [False, True]
    assert not link.receive(chunk(b": keepalive\n\n"), 3).progress


def test_an_error_of_the_owner_is_an_error_event() -> None:
    link = asked()
    body = b'{"error":{"message":"Slow down.","type":"x","code":"y"}}'
    read = link.receive(answer(429, body, **{"retry-after": "7"}), 1)
    assert [json.loads(message) for message in read.messages] == [
        {
            "type": "error",
            "status": 429,
            "headers": {"retry-after": "7"},
            "error": {"message": "Slow down.", "type": "x", "code": "y", "param": None},
        }
    ]
    assert (read.progress, read.loss) == (True, None)


@pytest.mark.parametrize(
    ("verdict", "status", "cause"),
    [
        ("rejected", 403, NotDispatched("forward rejected (403)", rejected=True)),
        ("rejected", 503, NotDispatched("forward rejected (503)")),  # it drains
        ("not-dispatched", 421, NotDispatched("forward not dispatched (421)")),
    ],
)
def test_a_turn_that_was_not_sent_is_said_to_be_so(
    verdict: str, status: int, cause: NotDispatched
) -> None:
    read = asked().receive(answer(status, b'{"error":{}}', verdict), 1)
    assert not read.messages
    assert read.loss is not None
    assert read.loss.cause == cause


def test_a_replica_that_has_not_sent_a_turn_says_who_it_is() -> None:
    """In a form that no header is too narrow for; and what comes is not put into the log as is."""
    for name, read in [("b-1", "b-1"), ("bridge 2, \u00fc", "bridge 2, \u00fc"), ("a\nb", "a?b")]:
        said = named_replica(name).decode("ascii")
        more = {"x-bridgecore-replica": said}
        loss = asked().receive(answer(421, b"{}", "not-dispatched", **more), 1).loss
        assert loss is not None
        assert loss.cause == NotDispatched("forward not dispatched (421)", by=read)
    assert len(read_replica(b"a" * 10_000)) == 200


CASES: dict[str, tuple[bytes, Any]] = {
    "no replica": (answer(200, b"hello", None), NO_REPLICA),
    "an unknown verdict": (answer(200, b"", "perhaps"), NO_REPLICA),
    "no HTTP": (b"SSH-2.0\r\n\r\n", NO_REPLICA),
    "an end without a terminal event": (stream(DELTA) + END, Closed(1006)),
    "an end without any event": (stream() + END, Closed(1006)),
    "an error that is too long": (
        answer(500, b"x" * (CONFIG.max_message + 1)),
        Malformed(f"an error of more than {CONFIG.max_message:,} bytes"),
    ),
    "a last answer": (answer(400, b'{"error":{}}', connection="close"), Closed(1000)),
}


@pytest.mark.parametrize("case", CASES)
def test_other_answers_are_losses(case: str) -> None:
    data, cause = CASES[case]
    read = asked().receive(data, 1)
    assert read.loss is not None
    assert read.loss.cause == cause


def test_a_replica_whose_answer_breaks_off_is_one_all_the_same() -> None:
    link = asked()
    link.receive(stream(DELTA), 1)
    loss = link.receive(b"no chunk\r\n", 2).loss
    assert loss is not None
    assert loss.cause == Malformed("unreadable answer")


def test_the_end_of_the_stream_is_a_loss() -> None:
    for link, code in ((asked(), 1006), (opened(), 1000)):
        loss = link.receive_eof(1).loss
        assert loss is not None
        assert loss.cause == Closed(code)


def test_a_silent_replica_is_given_up_and_an_idle_one_is_not() -> None:
    link = asked()
    assert (link.deadline, link.timer) == (50 * NS_PER_SECOND, Timer.PING)
    link.receive(stream(b": keepalive\n\n"), 15 * NS_PER_SECOND)
    assert link.timeout(50 * NS_PER_SECOND) == b""
    assert link.deadline == 65 * NS_PER_SECOND
    assert link.timeout(65 * NS_PER_SECOND) == TimedOut(Timer.PING)
    link.paused = True  # its client reads too slowly, so nothing is read from it
    assert link.timeout(70 * NS_PER_SECOND) == b""
    link.paused = False
    link.receive(chunk(DONE) + END, 71 * NS_PER_SECOND)
    assert link.timeout(120 * NS_PER_SECOND) == b""
    assert link.deadline is None


def test_it_is_closed_without_a_closing_handshake() -> None:
    """In mid-answer that cancels the turn."""
    assert asked().close() == b""
