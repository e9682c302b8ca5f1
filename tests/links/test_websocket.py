"""Tests of links/websocket.py: one upstream connection, driven by a WebSocket server."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore.links import ReadResult, Stage
from bridgecore.links.websocket import WebSocketConnection
from bridgecore.messages import SendFrame
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Malformed,
    TimedOut,
    UpgradeRefused,
)
from bridgecore.recovery.timers import Timer
from bridgecore.wire.websocket import FRAGMENT, MessageReceived, WebSocketServer

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/v1/responses"))


def asked(max_message: int = 1000) -> tuple[WebSocketConnection, WebSocketServer]:
    upstream = WebSocketConnection(CONFIG, 1, [(b"authorization", b"Bearer k")], 0)
    server = WebSocketServer(max_message=max_message)
    assert upstream.close() == b""  # before the upgrade a close frame has no meaning
    server.receive(upstream.connected().reply)
    assert upstream.close() == b""
    return upstream, server


def opened(max_message: int = 1000) -> tuple[WebSocketConnection, WebSocketServer]:
    upstream, server = asked(max_message)
    read = upstream.receive(server.accept(), 0)
    assert read == ReadResult(opened=True)
    assert (upstream.stage, upstream.timer) == (Stage.OPEN, Timer.PING)
    assert upstream.deadline == CONFIG.ping_interval
    return upstream, server


def test_messages() -> None:
    upstream, server = opened()
    read = upstream.receive(server.send_text(b"a") + server.ping() + server.send_text(b"b"), 1)
    assert read.messages == [b"a", b"b"]
    assert read.reply  # the pong
    assert read.loss is None


@pytest.mark.parametrize("shortcuts", [True, False])
def test_messages_around_other_frames_of_one_read(shortcuts: bool) -> None:
    upstream = WebSocketConnection(attrs.evolve(CONFIG, shortcuts=shortcuts), 1, [], 0)
    server = WebSocketServer(max_message=1000)
    server.receive(upstream.connected().reply)
    first = upstream.receive(server.accept() + server.send_text(b"a") + server.ping(), 1)
    assert (first.opened, first.messages, first.loss) == (True, [b"a"], None)
    server.receive(first.reply)
    ping = upstream.timeout(1 + CONFIG.ping_interval)
    assert isinstance(ping, bytes)
    server.receive(ping)
    pong = server.data_to_send()
    assert pong
    at = upstream.deadline
    events = [server.send_text(b"b"), pong, server.send_text(b"c")]
    assert upstream.receive(b"".join(events), 9) == ReadResult(messages=[b"b", b"c"])
    assert upstream.receive(server.send_text(b"d"), 10) == ReadResult(messages=[b"d"])
    assert upstream.deadline == at  # it is looked at when it is due
    last = upstream.receive(server.send_text(b"e") + server.close(1001), 11)
    assert last.messages == [b"e"]
    assert last.loss is not None
    assert last.loss.cause == Closed(1001)


@pytest.mark.parametrize(
    ("headers", "body", "wait"),
    [
        ([(b"Retry-After", b"7")], b'{"error":{"code":"c","message":"m"}}', 7),
        ([(b"retry-after-ms", b"6001")], b'{"error":{"code":"c","message":"m"}}', 7),
        ([], b'{"error":{"code":"c","message":"m","resets_in_seconds":7}}', 7),
        ([(b"Retry-After", b"7")], b'{"code":"c","message":"m","retry_after":6}', 7),
        ([(b"Retry-After", b"Sun, 06 Nov 1994 08:49:37 GMT")], b'{"code":"c","message":"m"}', None),
        ([(b"X-Odd", b"caf\xe9")], b'{"error":{"code":"c","message":"m"}}', None),
    ],
)
def test_a_refusal(headers: list[tuple[bytes, bytes]], body: bytes, wait: int | None) -> None:
    upstream, server = asked()
    loss = upstream.receive(server.reject(429, headers, body), 1).loss
    assert loss is not None
    assert loss.cause == UpgradeRefused(429, wait)
    assert loss.error is not None
    assert (loss.error.code, loss.error.message, loss.goodbye) == ("c", "m", False)


def test_a_refusal_in_plain_text() -> None:
    upstream, server = asked()
    loss = upstream.receive(server.reject(403, [], b"No access.\n"), 1).loss
    assert loss is not None
    assert loss.error == ErrorFrame(message="No access.")


def test_a_close() -> None:
    upstream, server = opened()
    read = upstream.receive(server.send_text(b"a") + server.close(1012), 1)
    assert read.messages == [b"a"]
    assert read.loss is not None
    assert (read.loss.cause, read.loss.goodbye) == (Closed(1012), True)
    assert read.reply
    assert upstream.send(SendFrame(1, b"late"), 1) == b""


@pytest.mark.parametrize("upgraded", [True, False])
def test_an_end_without_a_close(upgraded: bool) -> None:
    upstream, _ = opened() if upgraded else asked()
    loss = upstream.receive_eof(1).loss
    assert loss is not None
    assert (loss.cause, loss.goodbye) == (Closed(1006), False)


def test_a_protocol_error_is_reported_as_malformed() -> None:
    upstream, _ = opened()
    read = upstream.receive(b"\xff\xff\xff\xff", 1)
    assert read.loss is not None
    assert isinstance(read.loss.cause, Malformed)
    assert read.loss.goodbye
    assert read.reply


def test_pings() -> None:
    upstream, server = opened()
    interval, late = CONFIG.ping_interval, CONFIG.ping_timeout
    assert upstream.receive(server.send_text(b"a"), 5).messages
    assert upstream.timeout(interval) == b""  # bytes were received in the meantime
    assert upstream.deadline == 5 + interval
    ping = upstream.timeout(5 + interval)
    assert isinstance(ping, bytes)
    assert ping
    assert upstream.deadline == 5 + interval + late
    server.receive(ping)
    upstream.receive(server.data_to_send(), 6 + interval)
    assert isinstance(upstream.timeout(5 + interval + late), bytes)


def test_a_missed_pong() -> None:
    upstream, _ = opened()
    assert upstream.timeout(CONFIG.ping_interval)
    assert upstream.deadline is not None
    assert upstream.timeout(upstream.deadline) == TimedOut(Timer.PING)


def test_a_pong_cannot_be_missed_while_nothing_is_read() -> None:
    upstream, _ = opened()
    assert upstream.timeout(CONFIG.ping_interval)
    upstream.paused = True
    for _ in range(3):
        assert upstream.deadline is not None
        assert upstream.timeout(upstream.deadline) == b""
    upstream.paused = False
    assert upstream.deadline is not None
    ping = upstream.timeout(upstream.deadline)
    assert isinstance(ping, bytes)  # a new ping, not a timeout
    assert ping


def test_closing_waits_for_the_peer_within_a_deadline() -> None:
    upstream, _ = opened()
    assert upstream.close()
    upstream.part(7)
    assert (upstream.stage, upstream.timer) == (Stage.CLOSING, Timer.CLOSE_HANDSHAKE)
    assert upstream.deadline == 7 + CONFIG.close_timeout
    assert upstream.close() == b""
    assert upstream.timeout(upstream.deadline) == TimedOut(Timer.CLOSE_HANDSHAKE)


# ------------------------------------------------------------------ a long message

LONG = b"x" * (3 * FRAGMENT)


def uploading() -> tuple[WebSocketConnection, WebSocketServer]:
    """The first of three frames was written, at 1 ns."""
    upstream, server = opened()
    assert len(upstream.send(SendFrame(1, LONG), 1)) < FRAGMENT + 20
    return upstream, server


def test_a_long_message_leaves_at_the_pace_of_the_transport() -> None:
    upstream, server = opened(len(LONG))
    wire = upstream.send(SendFrame(1, LONG), 1)
    assert upstream.send(SendFrame(1, b"next"), 1) == b""  # it follows when the first one is out
    while frame := upstream.frame_sent(2):
        wire += frame
    assert server.receive(wire) == [MessageReceived(LONG), MessageReceived(b"next")]
    assert upstream.send(SendFrame(1, b"at once"), 3)


def test_a_ping_is_answered_between_two_frames() -> None:
    upstream, server = uploading()
    read = upstream.receive(server.ping(), 2)
    assert read.reply
    assert read.loss is None


def test_a_close_in_the_middle_drops_the_rest() -> None:
    upstream, server = uploading()
    read = upstream.receive(server.close(1009), 2)
    assert read.loss is not None
    assert read.loss.cause == Closed(1009)
    assert upstream.frame_sent(3) == b""


def test_an_upstream_that_takes_frames_is_alive() -> None:
    """It may be too busy reading to send, for longer than an idle one has."""
    upstream, _ = opened()
    upstream.send(SendFrame(1, b"x" * (40 * FRAGMENT)), 0)
    now = 0
    for _ in range(30):
        now += CONFIG.ping_interval - 1
        assert upstream.frame_sent(now)
        while upstream.deadline is not None and upstream.deadline <= now:
            assert upstream.timeout(now) == b""


def test_an_upstream_that_does_not_read_is_closed_as_late_as_a_quiet_one() -> None:
    upstream, _ = uploading()
    said = [upstream.timeout(CONFIG.ping_interval)]
    assert upstream.deadline is not None
    said.append(upstream.timeout(upstream.deadline))
    assert isinstance(said[0], bytes)
    assert said[1] == TimedOut(Timer.PING)


def test_an_upstream_that_sends_but_does_not_read_is_closed_at_the_same_time() -> None:
    """Its bytes show that it is alive, but the message would never be sent."""
    upstream, server = uploading()
    end = 1 + CONFIG.ping_interval + CONFIG.ping_timeout
    now = 0
    said: bytes | TimedOut = b""
    while not isinstance(said, TimedOut):
        assert upstream.deadline is not None
        assert now < upstream.deadline <= end
        now = upstream.deadline
        said = upstream.timeout(now)
        if now < end:
            upstream.receive(server.send_text(b"I am here") + server.ping(), now)
    assert (now, said) == (end, TimedOut(Timer.PING))


def test_an_upload_does_not_time_out_while_reading_is_paused() -> None:
    """The upstream may wait for us to read its events before it reads on."""
    upstream, _ = uploading()
    upstream.paused = True
    for _ in range(5):
        assert upstream.deadline is not None
        assert upstream.timeout(upstream.deadline) == b""
    upstream.paused = False
    assert upstream.deadline is not None
    assert isinstance(upstream.timeout(upstream.deadline), bytes)
