"""Tests of upstream.py: the life of one upstream connection, driven by a WebSocket server."""

from __future__ import annotations

import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Malformed,
    TimedOut,
    UpgradeRefused,
)
from bridgecore.recovery.timers import Timer
from bridgecore.upstream import Heard, Stage, Upstream
from bridgecore.wire.websocket import WebSocketServer

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/v1/responses"))


def asked() -> tuple[Upstream, WebSocketServer]:
    upstream = Upstream(CONFIG, 1, [(b"authorization", b"Bearer k")], 0)
    server = WebSocketServer(max_message=1000)
    assert upstream.close() == b""  # nobody could understand it yet
    server.receive(upstream.connected())
    assert upstream.close() == b""
    return upstream, server


def opened() -> tuple[Upstream, WebSocketServer]:
    upstream, server = asked()
    heard = upstream.receive(server.accept(), 0)
    assert heard == Heard(opened=True)
    assert (upstream.stage, upstream.timer) == (Stage.OPEN, Timer.PING)
    assert upstream.deadline == CONFIG.ping_interval
    return upstream, server


def test_messages() -> None:
    upstream, server = opened()
    heard = upstream.receive(server.send_text(b"a") + server.ping() + server.send_text(b"b"), 1)
    assert heard.messages == [b"a", b"b"]
    assert heard.reply  # the pong
    assert heard.loss is None


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
    heard = upstream.receive(server.send_text(b"a") + server.close(1012), 1)
    assert heard.messages == [b"a"]
    assert heard.loss is not None
    assert (heard.loss.cause, heard.loss.goodbye) == (Closed(1012), True)
    assert heard.reply
    assert upstream.send(b"late") == b""


@pytest.mark.parametrize("upgraded", [True, False])
def test_an_end_without_a_close(upgraded: bool) -> None:
    upstream, _ = opened() if upgraded else asked()
    loss = upstream.receive_eof(1).loss
    assert loss is not None
    assert (loss.cause, loss.goodbye) == (Closed(1006), False)


def test_a_protocol_error_is_told() -> None:
    upstream, _ = opened()
    heard = upstream.receive(b"\xff\xff\xff\xff", 1)
    assert heard.loss is not None
    assert isinstance(heard.loss.cause, Malformed)
    assert heard.loss.goodbye
    assert heard.reply


def test_pings() -> None:
    upstream, server = opened()
    interval, late = CONFIG.ping_interval, CONFIG.ping_timeout
    assert upstream.receive(server.send_text(b"a"), 5).messages
    assert upstream.timeout(interval) == b""  # it was heard of in the meantime
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
    assert isinstance(ping, bytes)  # a fresh ping, not a miss
    assert ping


def test_parting() -> None:
    upstream, _ = opened()
    assert upstream.close()
    upstream.part(7)
    assert (upstream.stage, upstream.timer) == (Stage.CLOSING, Timer.CLOSE_HANDSHAKE)
    assert upstream.deadline == 7 + CONFIG.close_timeout
    assert upstream.close() == b""
    assert upstream.timeout(upstream.deadline) == TimedOut(Timer.CLOSE_HANDSHAKE)
