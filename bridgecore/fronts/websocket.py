"""A client that speaks WebSocket mode of the Responses API: events in both directions are messages.

What belongs here: turns of a connection, one after the other; errors as messages; pings; and the
limits after which a connection is closed. What happens to a turn when its upstream connection is
lost is the same as over HTTP: the client's own connection stays open.

A ``response.create`` that comes while a turn runs waits until that has ended, so turns of one
connection never overlap and their events need no names to be told apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from itertools import islice
from operator import itemgetter
from typing import ClassVar, Final, assert_never

from bridgecore import transport as tp
from bridgecore.api_error import SHUTTING_DOWN, ApiError, api_error
from bridgecore.config import Config
from bridgecore.messages import (
    AnswerBody,
    AnswerEffect,
    AnswerEvents,
    AnswerKeepalive,
    BeginAnswer,
    EndAnswer,
    FailAnswer,
    RequestReceived,
)
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.wire.headers import Headers, make_request_id
from bridgecore.wire.requests import InvalidBodyError, parse_type
from bridgecore.wire.responses import error_message
from bridgecore.wire.websocket import CloseReceived, Failed, WebSocketServer

# Messages that wait for the turns before them. As many as OpenAI lets run at a time on one
# connection: a client written for that service does not send more before it has read an answer.
MAX_WAITING: Final = 16
# The rate of messages and of control frames together that a connection may have for long. A client
# sends one message for each turn, and turns take seconds; a ping a second is a lot.
_RATE: Final = 20  # a second
_BURST: Final = 200  # at once, after as many seconds of silence as they take at that rate
# Fragments that count as one message. A client may well send a body of megabytes in fragments of a
# few KiB; without a limit, it could have the bridge read any number of empty ones.
_FRAGMENTS: Final = 256
_COST: Final = NS_PER_SECOND // _RATE  # of one, in ns: what a connection saves up is time

GOING_AWAY: Final = 1001
POLICY: Final = 1008
RESTART: Final = 1012
_CREATE: Final = "response.create"


class MessageConnection(ABC):
    """A client's connection, once messages can be sent; a ``ClientConnection``.

    What carries the messages differs: see the subclasses. ``headers``: of the upgrade request, with
    names in lower case; they hold for each turn. ``scope``: see ``RequestReceived``.
    """

    __slots__ = (
        *("_config", "_credit", "_credit_at", "_headers", "_last", "_now", "_opened", "_pong_due"),
        *("_request_seed", "_requests", "_scope", "_seen", "_since", "_uncounted", "_waiting"),
        *("closing", "lingering", "out", "turns"),
    )

    successor: ClassVar = None
    """There is no further upgrade."""

    def __init__(
        self, config: Config, now: int, request_seed: bytes, headers: Headers, scope: str | None
    ) -> None:
        self._config = config
        self._request_seed = request_seed
        self._requests = 0  # turns so far, and what was requested before the upgrade
        self._headers = headers
        self._scope = scope
        self._waiting: deque[bytes] = deque()
        self._last = False  # close after the running turn
        self._opened = self._now = self._seen = now
        self._since: int | None = now  # ns, when it became idle; None: with the next input
        self._pong_due: int | None = None  # ns; None: no ping is unanswered
        self._credit, self._credit_at = _BURST * _COST, now
        # Messages and control frames that ``next_request`` has yet to count, as only that knows the
        # time; None: nothing was received since.
        self._uncounted: int | None = None
        self.turns: list[int] = []  # at most one
        self.out: list[bytes] = []
        self.closing = False
        self.lingering = False

    # ------------------------------------------------------------ what carries the messages

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take what was received."""

    @abstractmethod
    def write(self, conn: int, *, notify: bool) -> list[tp.TransportEffect]:
        """The effects that send what is in ``out``."""

    @abstractmethod
    def _send(self, messages: list[bytes]) -> None:
        """Write messages to ``out``. They are valid UTF-8."""

    @abstractmethod
    def _send_close(self, code: int, reason: str) -> None:
        """Write a close to ``out``."""

    def _ping(self) -> bool:
        """Write a ping to ``out``; False if what carries the messages sends pings by itself."""
        return False

    # ------------------------------------------------------------ deadlines

    def _due(self) -> tuple[int, Timer]:
        config = self._config
        ping = self._seen + config.ping_interval if self._pong_due is None else self._pong_due
        if self.turns:
            return ping, Timer.PING  # past its lifetime, a connection ends with its turn
        since = self._now if self._since is None else self._since
        # Of two at the same time the first counts: a connection is not pinged just to be closed.
        dues = [
            (since + config.websocket_idle, Timer.CLIENT_IDLE),
            (self._opened + config.websocket_lifetime, Timer.LIFETIME),
            (ping, Timer.PING),
        ]
        return min(dues, key=itemgetter(0))

    @property
    def deadline(self) -> int | None:
        """When to call ``timeout``, ns; None: never."""
        return None if self.closing else self._due()[0]

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return self._due()[1]

    def timeout(self, now: int) -> None:
        """``deadline`` has passed: the client is silent, or the connection is too old."""
        self._now = now
        due, timer = self._due()
        if due > now:
            return  # it has moved on since it was asked for
        if timer is Timer.PING:
            if self._pong_due is not None:
                self._close(GOING_AWAY, "no answer to a ping")
                return
            self._pong_due = now + self._config.ping_timeout
            if not self._ping():
                self._alive()  # who carries the messages looks after that
        elif timer is Timer.CLIENT_IDLE:
            self._close(GOING_AWAY, "idle for too long")
        else:
            self._close(GOING_AWAY, "open for too long: connect again")

    def _alive(self) -> None:
        self._seen, self._pong_due = self._now, None

    # ------------------------------------------------------------ turns

    @property
    def idle(self) -> bool:
        """Whether no turn runs or waits."""
        return not self.turns and not self._waiting

    def _add(self, message: bytes) -> None:
        """Take a message of the client."""
        # While no turn runs, the first of those that came in one read does not wait: it begins one.
        waiting = list(self._waiting if self.turns else islice(self._waiting, 1, None))
        size = sum(map(len, waiting)) + len(message)
        if len(waiting) >= MAX_WAITING:
            self._close(POLICY, f"more than {MAX_WAITING} messages wait for an answer")
        elif waiting and size > self._config.max_body:
            self._close(POLICY, "the messages that wait for an answer are too large together")
        else:
            self._waiting.append(message)

    def _heard(self, count: int) -> None:
        """``count`` messages and control frames were received, or a part of one."""
        self._uncounted = count + (self._uncounted or 0)

    def _spend(self, count: int) -> None:
        """Count messages and control frames against the rate that a client may have."""
        saved = self._credit + self._now - self._credit_at
        self._credit = min(_BURST * _COST, saved) - count * _COST
        self._credit_at = self._now
        if self._credit < 0:
            self._close(POLICY, f"more than {_RATE} messages a second")

    def next_request(self, turn: int, now: int, *, draining: bool) -> RequestReceived | None:
        """The next message that begins a turn. Others are answered with an error."""
        self._now = now
        if self._uncounted is not None:
            count, self._uncounted = self._uncounted, None
            self._alive()
            self._spend(count)
        if self._since is None:
            self._since = now
        if draining and not self.turns and not self.closing:
            # At once, so that the client can connect elsewhere before it has its next turn. Each
            # message that waits has an error: without one, it might have begun a turn.
            for _ in self._waiting:
                self._fail(SHUTTING_DOWN)
            self.shut()
        while self._waiting and not self.turns and not self.closing:
            message = self._waiting.popleft()
            self._since = now
            if (error := _refusal(message)) is not None:
                self._fail(error)
            else:
                self.turns = [turn]
                self._requests += 1
                request_id = make_request_id(self._request_seed, self._requests)
                return RequestReceived(
                    turn,
                    message,
                    self._headers,
                    scope=self._scope,
                    request_id=request_id,
                    streamed=True,
                )
        return None

    def answer(self, effect: AnswerEffect) -> None:
        """Write an effect of the gateway to ``out``."""
        if isinstance(effect, AnswerEvents):
            self._send([event.data for event in effect.events])
        elif isinstance(effect, AnswerKeepalive):
            if effect.event is not None:
                self._send([effect.event.data])
        elif isinstance(effect, EndAnswer):
            self._ended()
        elif isinstance(effect, FailAnswer):
            self._fail(effect.error)
            self._ended()
        elif isinstance(effect, BeginAnswer | AnswerBody):
            pass  # messages have no head; and each answer is a stream
        else:
            assert_never(effect)

    def _ended(self) -> None:
        self.turns, self._since = [], None
        if self._last:
            self._close(RESTART, "the server is restarting")
        elif self._opened + self._config.websocket_lifetime <= self._now:
            self._close(GOING_AWAY, "open for too long: connect again")

    def _fail(self, error: ApiError) -> None:
        self._send([error_message(error.status, error.body, error.retry_after)])

    # ------------------------------------------------------------ the end

    def _close(self, code: int, reason: str) -> None:
        """Close the connection, after what was written before."""
        if not self.closing:
            self._send_close(code, reason)
            # The client answers with a close of its own, which must not meet a closed connection.
            self.closing = self.lingering = True
            self._waiting.clear()

    def close_after_answers(self) -> None:
        """Close the connection once the answer in progress is complete."""
        self._last = True

    def shut(self) -> None:
        """The server is stopping: close, unless a turn runs."""
        if not self.turns:
            self._close(RESTART, "the server is restarting")


def max_message(config: Config) -> int:
    """The bytes that a message may have: those of a body, and its type."""
    return config.max_body + 64


def _refusal(message: bytes) -> ApiError | None:
    """The error for a message that is no ``response.create``."""
    try:
        kind = parse_type(message)
    except InvalidBodyError as exc:
        return api_error(400, "invalid_request_body", exc.message, param=exc.param)
    if kind == _CREATE:
        return None
    flaw = "has no string 'type'" if kind is None else "has an unknown 'type'"
    text = f"The message {flaw}. This server takes JSON objects of type {_CREATE!r}."
    return api_error(400, "unknown_message", text, param="type")


class MessagesOnSocket(MessageConnection):
    """The same over the bytes of a WebSocket, after its upgrade. ``requests``: those that the
    connection had before, which took as many ids; ``answer``: that to the upgrade request;
    ``rest``: what was received after that request."""

    __slots__ = ("_counted", "_socket")

    def __init__(
        self,
        config: Config,
        now: int,
        request_seed: bytes,
        headers: Headers,
        *,
        requests: int,
        answer: bytes,
        rest: bytes,
    ) -> None:
        super().__init__(config, now, request_seed, headers, None)
        self._requests = requests
        self._socket = WebSocketServer.upgraded(max_message=max_message(config))
        self._counted = 0  # frames that are no result of the parser, and counted for the rate
        self.out.append(answer)
        if rest:
            self.receive(rest)

    def receive(self, data: bytes) -> None:
        """Parse received bytes."""
        if self.closing:
            return
        found = self._socket.receive_raw(data)
        if replies := self._socket.data_to_send():
            self.out.append(replies)
        frames = self._socket.pings + self._socket.fragments // _FRAGMENTS
        self._heard(len(found) + frames - self._counted)
        self._counted = frames
        for item in found:
            if isinstance(item, bytes):
                self._add(item)
            elif isinstance(item, CloseReceived | Failed):
                # The close frame that answers it, or says what is wrong, is written.
                self.closing = True
                self.lingering = isinstance(item, Failed)
                self._waiting.clear()

    def write(self, conn: int, *, notify: bool) -> list[tp.TransportEffect]:
        """The effects that send what is in ``out``."""
        if not self.out:
            return []
        data = b"".join(self.out)
        self.out.clear()
        return [tp.Send(conn, data, notify)]

    def _send(self, messages: list[bytes]) -> None:
        self.out.append(self._socket.frames(messages))

    def _send_close(self, code: int, reason: str) -> None:
        self.out.append(self._socket.close(code, reason))

    def _ping(self) -> bool:
        self.out.append(self._socket.ping())
        return True
