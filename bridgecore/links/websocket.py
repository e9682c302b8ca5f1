"""An upstream connection that speaks WebSocket (RFC 6455): upgrade, messages, pings, close.

What belongs here: opening and closing a link, sending a long message in parts so that pongs can be
sent between them, and giving up an upstream that does not respond.
"""

from __future__ import annotations

from typing import assert_never

from bridgecore.config import Config
from bridgecore.links import Loss, ReadResult, Stage
from bridgecore.messages import SendFrame
from bridgecore.recovery.failure import (
    Closed,
    Evidence,
    Malformed,
    TimedOut,
    UpgradeRefused,
)
from bridgecore.recovery.timers import Timer
from bridgecore.wire import websocket as ws
from bridgecore.wire.errors import longest, read_error_body, read_wait


class WebSocketConnection:
    """The WebSocket connection that carries ``link``; an ``UpstreamConnection``."""

    __slots__ = (
        "_config",
        "_pong_due",
        "_seen",
        "_sending",
        "_socket",
        "_taken",
        "deadline",
        "link",
        "paused",
        "stage",
        "url",
    )
    unsent = False  # the first frame of a message is handed to the transport at once

    def __init__(
        self, config: Config, link: int, headers: list[tuple[bytes, bytes]], now: int
    ) -> None:
        self._config = config
        self._socket = ws.WebSocketClient(
            authority=config.upstream.authority,
            target=config.upstream.target,
            headers=headers,
            max_message=config.max_message,
            shortcuts=config.shortcuts,
        )
        self._seen = now  # ns, the upstream's last sign of life
        self._pong_due: int | None = None  # ns; None: no ping is unanswered
        self._sending = False  # the transport has not taken the last frame of a message yet
        self._taken = now  # ns, when the transport last took a frame
        self.link = link
        self.url = config.upstream
        self.stage = Stage.CONNECTING
        self.paused = False
        self.deadline: int | None = None

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return Timer.CLOSE_HANDSHAKE if self.stage is Stage.CLOSING else Timer.PING

    # ------------------------------------------------------------ input

    def connected(self) -> ReadResult:
        """The transport is connected: send the upgrade request."""
        self.stage = Stage.UPGRADING
        return ReadResult(reply=self._socket.connect())

    def receive(self, data: bytes, now: int) -> ReadResult:
        """Parse received bytes.

        No deadline moves: ``timeout`` looks at the time of the last sign of life when it is due.
        """
        self._alive(now)  # any byte is a sign of life, not only a pong
        found = self._socket.receive_raw(data)
        messages = [item for item in found if isinstance(item, bytes)]
        if len(messages) == len(found):  # nearly every read; a ping is no event, but has a reply
            return ReadResult(messages=messages, reply=self._socket.data_to_send())
        # Only the upgrade comes before a message, only a close after it, and a pong says nothing
        # more: the order between the messages and the other events is that of ReadResult.
        return self._read(messages, [item for item in found if not isinstance(item, bytes)], now)

    def receive_eof(self, now: int) -> ReadResult:
        """The upstream has ended its sending side; the link is lost, unless it was before."""
        read = self._read([], self._socket.receive_eof(), now)
        if read.loss is None:
            read.loss = Loss(Closed(1006))
        return read

    def _read(
        self, messages: list[bytes], events: list[ws.ConnectionEvent], now: int
    ) -> ReadResult:
        read = ReadResult(messages=messages)
        for event in events:
            if isinstance(event, ws.Upgraded):
                read.opened = True
                self.stage = Stage.OPEN
                self.deadline = now + self._config.ping_interval
            elif isinstance(event, ws.UpgradeRejected):
                error = read_error_body(event.body)
                fields = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers]
                wait = longest(read_wait(fields), error.retry_after)
                read.loss = Loss(UpgradeRefused(event.status, wait), error)
            elif isinstance(event, ws.CloseReceived):
                read.loss = Loss(Closed(event.code), goodbye=True)
            elif isinstance(event, ws.Failed):
                read.loss = Loss(_failure(event.code))
            elif isinstance(event, ws.PongReceived):
                pass
            elif isinstance(event, ws.UpgradeRequested | ws.MessageReceived):
                raise AssertionError(f"not an event of receive_raw at a client: {event!r}")
            else:
                assert_never(event)
        read.reply = self._socket.data_to_send()
        if read.loss is not None and read.reply:
            read.loss.goodbye = True
        return read

    # ------------------------------------------------------------ output

    @property
    def whole(self) -> bool:
        """Whether the transport has taken all of the message."""
        return not self._sending

    def send(self, message: SendFrame, now: int) -> bytes:
        """Queue a text message; return its first frame to send now.

        Empty if the link is closing or an earlier message is still being sent. A large message has
        several frames. The others are returned by ``frame_sent``, one by one, so that answers to
        the upstream's pings wait for one frame and not for megabytes.
        """
        # What a bridge sends consists of bodies and messages that were checked when they came.
        self._socket.queue_text(message.data, checked=True)
        if self._sending:
            return b""
        return self._next_frame(now)

    def frame_sent(self, now: int) -> bytes:
        """The transport has taken the last frame; return the next one, if any."""
        # The transport buffers little, so the upstream has read something: a sign of life.
        self._alive(now)
        return self._next_frame(now)

    def _next_frame(self, now: int) -> bytes:
        frame = self._socket.next_frame()
        self._sending = bool(frame)
        self._taken = now
        return frame

    def _alive(self, now: int) -> None:
        self._seen = now
        self._pong_due = None

    def close(self) -> bytes:
        """Our close frame; empty before the upgrade is complete and after a close."""
        return self._socket.close(1000) if self.stage is Stage.OPEN else b""

    def part(self, now: int) -> None:
        """Our side is closed: set the deadline for the peer's close."""
        self.stage = Stage.CLOSING
        self.paused = False
        self.deadline = now + self._config.close_timeout

    def timeout(self, now: int) -> bytes | TimedOut:
        """``deadline`` has passed: return bytes to send, or that the upstream does not respond."""
        config = self._config
        if self.stage is Stage.CLOSING:
            return TimedOut(Timer.CLOSE_HANDSHAKE)
        if self.paused:
            # While the link is not read, a pong would not be seen, and an upstream that cannot send
            # may have stopped reading. So neither deadline applies.
            self._pong_due = None
            self._taken = now
            self.deadline = now + config.ping_interval
            return b""
        if self._pong_due is not None and self._pong_due <= now:
            return TimedOut(Timer.PING)
        # An upstream may send, pongs included, but not read our message. It is given up after the
        # same time as a silent one, because our own pongs are stuck behind the frame that it does
        # not read.
        stalled = self._taken + config.ping_interval + config.ping_timeout
        if self._sending and stalled <= now:
            return TimedOut(Timer.PING)
        ping = b""
        if self._pong_due is not None:
            due = self._pong_due
        elif (due := self._seen + config.ping_interval) <= now:
            ping = self._socket.ping()
            due = self._pong_due = now + config.ping_timeout
        self.deadline = min(due, stalled) if self._sending else due
        return ping


def _failure(code: int) -> Evidence:
    return Closed(code) if code == 1006 else Malformed(f"protocol error {code}")
