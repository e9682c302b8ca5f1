"""The answer to one turn: a stream of events or one JSON body.

What belongs here: when the head of a stream is sent, keepalives, how a failure is reported before
and after the head, and how a JSON answer is made. This is the same for all protocols of clients; a
front writes the effects in its own framing.

The head of a stream is held back until there is an event to send, so that a turn that fails early
is answered with an error status, which HTTP clients and their SDKs retry. It is held back for a
limited time only, because proxies and clients give up on a silent connection: at a deadline the
head is sent, and from then on a failure is a ``response.failed`` event.
"""

from __future__ import annotations

import attrs

from bridgecore.api_error import ApiError, render_failed_response
from bridgecore.config import Config
from bridgecore.messages import (
    AnswerBody,
    AnswerEffect,
    AnswerEvents,
    AnswerKeepalive,
    BeginAnswer,
    EndAnswer,
    FailAnswer,
)
from bridgecore.recovery.timers import Timer
from bridgecore.wire.requests import CreateRequest
from bridgecore.wire.responses import (
    FAILED,
    EventKind,
    UpstreamEvent,
    created_event,
    failed_event,
    final_response,
    keepalive_event,
)
from bridgecore.wire.terminal import lacks_error_code, with_error_code


@attrs.define(eq=False)
class Exchange:
    """The answer to one turn, and how much of it was sent.

    ``deadline``: when to call ``timeout``, ns; None: never. ``blocked``: the client reads too
    slowly. ``ended``: the answer is complete. ``forwarded``: another replica asks, for its client.
    ``asked``: when the request came, ns.
    """

    turn: int
    stream: bool
    deadline: int | None
    blocked: bool = False
    ended: bool = False
    forwarded: bool = False
    asked: int = 0
    _anchor: str | None = None  # the turn's previous_response_id
    _model: str | None = None
    _keepalive: int = 0  # ns of silence before a keepalive
    _begun: bool = False  # the head of the stream was sent
    _created: UpstreamEvent | None = None  # the response.created event that was sent
    _last: UpstreamEvent | None = None  # the latest event with a sequence number that was sent
    _spoke: int = 0  # ns, when something was last sent

    @classmethod
    def of(
        cls,
        turn: int,
        request: CreateRequest,
        config: Config,
        now: int,
        *,
        forwarded: bool = False,
    ) -> Exchange:
        """A new exchange for ``turn``, whose ``request`` was received at ``now``."""
        return cls(
            turn,
            request.stream,
            now + config.head_timeout if request.stream else None,
            anchor=request.previous_response_id,
            model=request.model,
            keepalive=config.keepalive,
            forwarded=forwarded,
            asked=now,
        )

    @property
    def begun(self) -> bool:
        """Whether the head of a stream was sent, so that a failure is an event."""
        return self._begun

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return Timer.KEEPALIVE if self._begun else Timer.HEAD

    def deliver(self, effect: AnswerEvents, now: int) -> list[AnswerEffect]:
        """Send the events of ``effect``. A terminal event, always the last one, ends the answer."""
        events = effect.events
        if not self.stream:
            return self._collect(events[-1])
        if self.goes_on and events[-1].kind is EventKind.OUTPUT:  # most often
            self.sent(events[-1], now)
            return [effect]
        out: list[AnswerEffect] = [] if self._begun else [self._begin(now)]
        if events[-1].type == FAILED and not self.forwarded:
            events = [*events[:-1], self._with_code(events[-1])]
            effect = AnswerEvents(self.turn, events)
        out.append(effect)
        if self._created is None:
            for event in events:
                if event.kind is EventKind.CREATED:
                    self._created = event
        # Events of unknown types need not have a sequence number; one that has is counted.
        for event in reversed(events):
            if event.kind is not EventKind.OTHER or event.sequence_number >= 0:
                self._last = event
                break
        self._spoke = now
        if events[-1].kind is EventKind.ENDED:
            out.append(self._end())
        return out

    def _with_code(self, failed: UpstreamEvent) -> UpstreamEvent:
        """``failed``, a ``response.failed``; if it has no error code, with the one that a JSON
        answer gives the same failure.

        Not for another replica: it makes the answer for its client, and reads more from an error as
        the upstream wrote it (a ``code`` that is a number is a status).
        """
        if not lacks_error_code(failed):
            return failed
        error = self.error_of(failed)
        return with_error_code(failed, error.code, error.message, error.more)

    def error_of(self, failed: UpstreamEvent) -> ApiError:
        """The error of ``failed``, a ``response.failed``, as a JSON answer has it."""
        return render_failed_response(failed.error, self._anchor)

    @property
    def goes_on(self) -> bool:
        """Whether it is a stream whose client has received ``response.created``, so that output is
        sent as it comes."""
        return self.stream and self._created is not None

    def sent(self, last: UpstreamEvent, now: int) -> None:
        """Record that output was sent at ``now`` (ns), ``last`` at the end."""
        self._last, self._spoke = last, now

    def _begin(self, now: int) -> BeginAnswer:
        self._begun = True
        self.deadline = now + self._keepalive
        return BeginAnswer(self.turn)

    def _end(self) -> EndAnswer:
        self.ended = True
        self.deadline = None
        return EndAnswer(self.turn)

    def _collect(self, last: UpstreamEvent) -> list[AnswerEffect]:
        """Send the JSON answer, which is the response object of the terminal event, once it is
        there."""
        if last.kind is not EventKind.ENDED:
            return []
        self.ended = True
        if last.type == FAILED:
            return [FailAnswer(self.turn, self.error_of(last))]
        return [AnswerBody(self.turn, final_response(last))]

    def fail(self, error: ApiError) -> list[AnswerEffect]:
        """End the answer with ``error``: as an error answer before the head was sent, as
        ``response.failed`` afterwards.

        If no event was sent since the head, a ``response.created`` comes first: the stream helpers
        of SDKs raise an error of their own for any other first event, which would hide this one.
        """
        if not self._begun:
            self.ended = True
            self.deadline = None
            return [FailAnswer(self.turn, error)]
        events = []
        if self._created is None:
            created = created_event(None, f"resp_failed_{self.turn}", self._model)
            self._created = self._last = created
            events.append(created)
        last = -1 if self._last is None else self._last.sequence_number
        number = max(0, last + 1)
        events.append(failed_event(error.code, error.message, number, self._created, error.more))
        return [AnswerEvents(self.turn, events), self._end()]

    def timeout(self, now: int) -> list[AnswerEffect]:
        """``deadline`` has passed: send the head, or a keepalive if the stream was silent."""
        if not self._begun:
            self._spoke = now
            return [self._begin(now), AnswerKeepalive(self.turn)]
        out: list[AnswerEffect] = []
        if self._spoke + self._keepalive <= now and not self.blocked:
            out.append(AnswerKeepalive(self.turn, self._keepalive_event()))
            self._spoke = now
        # A blocked client still has data to read, so it needs no keepalive.
        self.deadline = (now if self.blocked else self._spoke) + self._keepalive
        return out

    def _keepalive_event(self) -> UpstreamEvent | None:
        """The keepalive event; None before the first event, since SDKs require that to be
        ``response.created``."""
        if self._last is None:
            return None
        # It has the sequence number of the event before it, because the upstream's next event has
        # the number after that.
        return keepalive_event(max(0, self._last.sequence_number))
