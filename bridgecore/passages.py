"""Joins the connection of a client with one to the upstream's HTTP API, for one request.

What belongs here: passing the parts of a request and of its answer from one connection to the
other, with backpressure in both directions, and the end of one if the other ends.

Nothing is collected: of a passage, no more is in memory than what was read at once and what the
driver has not written yet. If one side takes nothing (``WriteBlocked``), the other is not read
(``PauseReading``). The exception is a request whose whole body is needed first (see
``wire.passing.REBUILT``), which ``max_body`` limits.

An answer that was cut off must never look complete. A failure before its head is answered with 502;
one after it ends the connection of the client in mid-answer.

Call structure: the endpoint reports what happens on either connection; each method returns the
effects for the connection to the upstream, and the answer is written to ``front.out``. Then the
endpoint looks at ``Passage.over`` and ``front.broken``, and sends what is in ``out``.
"""

from __future__ import annotations

from typing import assert_never

import attrs

from bridgecore import transport as tp
from bridgecore.api_error import SHUTTING_DOWN, ApiError, api_error
from bridgecore.config import Config
from bridgecore.fronts.http import HttpConnection
from bridgecore.links.passage import PassageConnection
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.timers import Timer
from bridgecore.wire.headers import request_id_of
from bridgecore.wire.http import BodyPart, RequestBody
from bridgecore.wire.http_client import (
    AnswerDone,
    AnswerHead,
    AnswerPart,
    BadAnswerError,
    InterimHead,
)
from bridgecore.wire.passing import PassedRequest, deleted_response


@attrs.define(eq=False)
class Passage:
    """One request on its way to the upstream, and its answer on its way back.

    ``number``: the connection to the upstream. ``client``, ``front``: that of the client.
    ``deleted``: the response that its client has just deleted. ``over``: the answer is complete,
    or the passage was given up.
    """

    number: int
    client: int
    front: HttpConnection
    request: PassedRequest
    link: PassageConnection
    client_blocked: bool
    upstream_blocked: bool = False
    held: bool = False  # the client is not read
    paused: bool = False  # the upstream is not read
    status: int | None = None  # of the answer, once it has begun
    upstream_id: str | None = None  # the upstream's x-request-id
    sent: int = 0  # bytes of the body
    received: int = 0  # bytes of the answer's body
    deleted: str | None = None
    over: bool = False


class Passages:
    """The passages of an endpoint."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_number: dict[int, Passage] = {}  # by the connection to the upstream
        self._by_client: dict[int, Passage] = {}  # the same, by the connection of the client
        # Connections to the upstream whose answer is complete, which are being closed, and when
        # they are dropped, ns.
        self._closing: dict[int, int] = {}

    def __len__(self) -> int:
        """How many requests are being passed through."""
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        """Whether ``number`` is a connection to the upstream's HTTP API."""
        return number in self._by_number or number in self._closing

    @property
    def connections(self) -> list[int]:
        """The connections to the upstream, those that are being closed included."""
        return [*self._by_number, *self._closing]

    @property
    def clients(self) -> list[int]:
        """The clients with a passage, the latest last."""
        return list(self._by_client)

    def get(self, number: int) -> Passage | None:
        """The passage on a connection to the upstream."""
        return self._by_number.get(number)

    def of_client(self, conn: int) -> Passage | None:
        """The passage of a client's connection."""
        return self._by_client.get(conn)

    def connecting(self, number: int) -> bool:
        """Whether a connection to the upstream is being opened."""
        passage = self._by_number.get(number)
        return passage is not None and not passage.link.connected

    def deadline(self, number: int) -> int | None:
        """When ``timeout`` is due for a connection to the upstream, ns."""
        passage = self._by_number.get(number)
        return self._closing.get(number) if passage is None else passage.link.deadline

    def timer(self, number: int) -> Timer:
        """The timer to which that deadline belongs."""
        passage = self._by_number.get(number)
        return Timer.CLOSE_HANDSHAKE if passage is None else passage.link.timer

    # ------------------------------------------------------------ the client's side

    def begin(
        self,
        number: int,
        client: int,
        front: HttpConnection,
        request: PassedRequest,
        now: int,
        *,
        blocked: bool,
    ) -> list[tp.TransportEffect]:
        """Open a connection to the upstream, ``number``, for ``request``. ``blocked``: its client
        does not read at present."""
        link = PassageConnection(self._config, request, now)
        passage = Passage(number, client, front, request, link, blocked)
        self._by_number[number] = self._by_client[client] = passage
        url = link.url
        return [tp.Connect(number, url.host, url.port, url.tls)]

    def pass_part(
        self, passage: Passage, part: BodyPart | RequestBody, now: int
    ) -> list[tp.TransportEffect]:
        """Pass on the next part of a request's body. The last one is a ``RequestBody``."""
        passage.sent += len(part.data)
        last = isinstance(part, RequestBody)
        return self._send(passage, passage.link.send(part.data, now, last=last))

    def await_more(self, passage: Passage, now: int) -> list[tp.TransportEffect]:
        """More of the request is to come. Until the connection is open, only what was read with its
        head is kept, and no more is read."""
        return [] if passage.link.connected else self._hold(passage, now)

    def replace_body(self, passage: Passage, body: bytes) -> list[tp.TransportEffect]:
        """Send a request whose whole body was needed first, with ``body``."""
        passage.sent = len(body)
        return self._send(passage, passage.link.replace_body(body))

    def block_client(self, passage: Passage, blocked: bool, now: int) -> list[tp.TransportEffect]:
        """The client does not read, or reads again: so does the upstream's connection."""
        passage.client_blocked = blocked
        passage.link.alive(now)
        return self._pause(passage)

    def _send(self, passage: Passage, data: bytes) -> list[tp.TransportEffect]:
        return [tp.Send(passage.number, data)] if data else []

    def _hold(self, passage: Passage, now: int) -> list[tp.TransportEffect]:
        """Read the client only while the upstream takes what it sends."""
        held = not passage.link.connected or passage.upstream_blocked
        if held == passage.held:
            return []
        passage.held = held
        if not passage.over:
            passage.front.hold(held, now)
        return [(tp.PauseReading if held else tp.ResumeReading)(passage.client)]

    def _pause(self, passage: Passage) -> list[tp.TransportEffect]:
        """Read the upstream only while the client takes the answer."""
        if passage.client_blocked == passage.paused or not passage.link.connected:
            return []
        passage.paused = passage.client_blocked
        return [(tp.PauseReading if passage.paused else tp.ResumeReading)(passage.number)]

    # ------------------------------------------------------------ the upstream's side

    def connected(self, passage: Passage, now: int) -> list[tp.TransportEffect]:
        """The connection to the upstream is open."""
        effects = self._send(passage, passage.link.connect(now))
        return [*effects, *self._hold(passage, now), *self._pause(passage)]

    def block_upstream(self, passage: Passage, blocked: bool, now: int) -> list[tp.TransportEffect]:
        """The upstream does not take the request, or takes it again: so is the client read."""
        passage.upstream_blocked = blocked
        passage.link.alive(now)
        return self._hold(passage, now)

    def receive(self, passage: Passage, data: bytes, now: int) -> list[tp.TransportEffect]:
        """Pass on what was received of the answer; ``data`` is empty at the end of the stream."""
        try:
            parts = passage.link.receive(data, now)
        except BadAnswerError as exc:
            return self.lose(passage, str(exc), now)
        effects: list[tp.TransportEffect] = []
        for part in parts:
            effects += self._answer(passage, part, now)
        if not data and not passage.over:
            effects += self.lose(passage, "closed before its answer", now)
        return effects

    def _answer(self, passage: Passage, part: AnswerPart, now: int) -> list[tp.TransportEffect]:
        front = passage.front
        if isinstance(part, bytes):
            passage.received += len(part)
            front.pass_on(part)
        elif isinstance(part, AnswerHead):
            passage.status = part.status
            passage.upstream_id = request_id_of(part.headers)
            # 404: the upstream does not have it, and what is held of it here is all there is.
            if 200 <= part.status < 300 or part.status == 404:
                request = passage.request
                passage.deleted = deleted_response(request.method, request.segments)
            front.begin_passed(part)
        elif isinstance(part, InterimHead):
            front.interim(part)
        elif isinstance(part, AnswerDone):
            front.end_passed()
            return self._end(passage, now, tp.LogLevel.INFO, "passage.completed")
        else:
            assert_never(part)
        return []

    def lose(
        self, passage: Passage, cause: str, now: int, *, gone: bool = False
    ) -> list[tp.TransportEffect]:
        """The connection to the upstream cannot go on. ``cause``: a short text without data;
        ``gone``: it does not exist any more."""
        error = _unavailable(passage, cause)
        return self._fail(passage, error, cause, now, gone=gone)

    def without_socket(self, passage: Passage, now: int) -> list[tp.TransportEffect]:
        """The connection to the upstream could not be opened for lack of a socket."""
        message = "The bridge has no socket left to reach the upstream with. Retry later."
        error = api_error(503, FailureReply.OVERLOADED.value, message)
        return self._fail(passage, error, error.code, now, gone=True)

    def refuse(self, passage: Passage, error: ApiError, now: int) -> list[tp.TransportEffect]:
        """A request whose whole body was needed first cannot be sent: answer it with ``error``."""
        return self._fail(passage, error, error.code, now, gone=False)

    def _fail(
        self, passage: Passage, error: ApiError, cause: str, now: int, *, gone: bool
    ) -> list[tp.TransportEffect]:
        """Give up a passage, with ``error`` for its client if its answer has not begun."""
        passage.front.refuse_passed(error)
        level = tp.LogLevel.WARNING
        return self._end(passage, now, level, "passage.failed", gone=gone, cause=cause)

    def cut(self, passage: Passage, now: int) -> list[tp.TransportEffect]:
        """End a passage because the time of a drain is over."""
        passage.front.close_after_answers()
        return self._fail(passage, SHUTTING_DOWN, SHUTTING_DOWN.code, now, gone=False)

    def leave(self, passage: Passage, now: int, *, gone: bool) -> list[tp.TransportEffect]:
        """The upstream's answer is not needed: the client is ``gone``, or its request was answered
        here."""
        passage.held = passage.held and not gone
        return self._end(passage, now, tp.LogLevel.INFO, "passage.abandoned")

    # ------------------------------------------------------------ the end

    def forget(self, number: int) -> None:
        """A connection to the upstream is gone."""
        self._closing.pop(number, None)

    def timeout(self, number: int, now: int) -> list[tp.TransportEffect]:
        """The deadline of a connection to the upstream has passed."""
        passage = self._by_number.get(number)
        if passage is None:
            self._closing.pop(number, None)
            return [tp.Abort(number)]
        timer = passage.link.timer
        if passage.link.timeout(now):
            return self.lose(passage, f"timeout: {timer.value}", now)
        return []

    def _end(
        self,
        passage: Passage,
        now: int,
        level: tp.LogLevel,
        event: str,
        *,
        gone: bool = False,
        **fields: str | int,
    ) -> list[tp.TransportEffect]:
        """Part the two connections: close that to the upstream, unless it is ``gone``, and read the
        client again."""
        if passage.over:
            return []
        passage.over = True
        number = passage.number
        del self._by_number[number], self._by_client[passage.client]
        effects: list[tp.TransportEffect] = []
        if event == "passage.completed" and passage.link.sent and not passage.paused:
            effects.append(tp.Close(number))
            self._closing[number] = now + self._config.close_timeout
        elif not gone:
            effects.append(tp.Abort(number))
        if passage.held:
            passage.held = False
            effects.append(tp.ResumeReading(passage.client))
        if level >= self._config.log_level:
            effects.append(tp.Log(level, event, {**_about(passage), **fields}))
        return effects


# Names of methods that may be logged: any other is a text of the client's choice.
_METHODS = frozenset({b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"})


def _about(passage: Passage) -> dict[str, str | int]:
    request = passage.request
    return {
        "request_id": request.request_id,
        "method": request.method.decode("ascii") if request.method in _METHODS else "other",
        "route": request.route,
        "status": "-" if passage.status is None else passage.status,
        "bytes_sent": passage.sent,
        "bytes_received": passage.received,
        "upstream_request_id": passage.upstream_id or "-",
    }


def _unavailable(passage: Passage, cause: str) -> ApiError:
    said = "it may have been acted on" if passage.link.begun else "nothing of it was sent"
    message = f"The upstream's HTTP API did not answer ({cause}); {said}. Retry as is."
    return api_error(502, FailureReply.UPSTREAM_UNAVAILABLE.value, message)
