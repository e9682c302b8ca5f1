"""The answer to one turn, as its client is shown it: a stream of events, or one JSON body.

What belongs here: when the head of a stream goes out, what keeps a quiet stream alive, how a
failure looks before and after the head, and how a JSON answer is put together. It is the same for
every protocol that a client may speak; a front writes the effects in its own framing.

The head of a stream is held back until there is something to show, so that a turn that fails early
is answered with a status that HTTP clients and their SDKs retry. It is not held for ever: proxies
and clients give up on a silent connection, so at a deadline the head goes out, and from then on a
failure is a ``response.failed`` event.
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
from bridgecore.wire.responses import (
    CreateRequest,
    EventKind,
    UpstreamEvent,
    created_event,
    failed_event,
    final_response,
    keepalive_event,
)


@attrs.define(eq=False)
class Exchange:
    """One turn and its answer, as far as that went out.

    ``deadline``: when ``timeout`` is to be called, ns; None: never. ``ended``: the answer is
    complete, and nothing more is to be done for it. ``blocked``: the client reads too slowly.
    """

    turn: int
    stream: bool
    deadline: int | None
    blocked: bool = False
    ended: bool = False
    _anchor: str | None = None  # the turn's previous_response_id
    _model: str | None = None
    _keepalive: int = 0  # ns without a word after which a stream is given one
    _begun: bool = False  # the head of the stream went out
    _created: UpstreamEvent | None = None  # the response.created event that the client has seen
    _last: UpstreamEvent | None = None  # the latest numbered event that the client has seen
    _spoke: int = 0  # ns: when something was last shown

    @classmethod
    def of(cls, turn: int, request: CreateRequest, config: Config, now: int) -> Exchange:
        """The exchange of ``turn``, whose ``request`` came at ``now``."""
        return cls(
            turn,
            request.stream,
            now + config.head_timeout if request.stream else None,
            anchor=request.previous_response_id,
            model=request.model,
            keepalive=config.keepalive,
        )

    @property
    def timer(self) -> Timer:
        """Which timer ``deadline`` is of."""
        return Timer.KEEPALIVE if self._begun else Timer.HEAD

    def deliver(self, effect: AnswerEvents, now: int) -> list[AnswerEffect]:
        """Show the events of ``effect``; a terminal one, which is the last, ends the answer."""
        events = effect.events
        if not self.stream:
            return self._collect(events[-1])
        out: list[AnswerEffect] = [] if self._begun else [self._begin(now)]
        out.append(effect)
        if self._created is None:
            for event in events:
                if event.kind is EventKind.CREATED:
                    self._created = event
        # An event of an unknown type need not have a number. If it has one, numbers go on from it.
        for event in reversed(events):
            if event.kind is not EventKind.OTHER or event.sequence_number >= 0:
                self._last = event
                break
        self._spoke = now
        if events[-1].kind is EventKind.ENDED:
            out.append(self._end())
        return out

    def _begin(self, now: int) -> BeginAnswer:
        self._begun = True
        self.deadline = now + self._keepalive
        return BeginAnswer(self.turn)

    def _end(self) -> EndAnswer:
        self.ended = True
        self.deadline = None
        return EndAnswer(self.turn)

    def _collect(self, last: UpstreamEvent) -> list[AnswerEffect]:
        """A JSON answer is the response object of the terminal event."""
        if last.kind is not EventKind.ENDED:
            return []
        self.ended = True
        if last.type == b"response.failed":
            error = render_failed_response(last.error, self._anchor)
            return [FailAnswer(self.turn, error)]
        return [AnswerBody(self.turn, final_response(last))]

    def fail(self, error: ApiError) -> list[AnswerEffect]:
        """End the answer with ``error``: by itself before the head, as ``response.failed`` after.

        After the head the first event is ``response.created`` in any case: the stream helpers of
        SDKs raise an error of their own if it is another, which hides the one that happened.
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
        """``deadline`` has come: let the head go out, or keep a quiet stream alive."""
        if not self._begun:
            self._spoke = now
            return [self._begin(now), AnswerKeepalive(self.turn)]
        out: list[AnswerEffect] = []
        if self._spoke + self._keepalive <= now and not self.blocked:
            out.append(AnswerKeepalive(self.turn, self._keepalive_event()))
            self._spoke = now
        # A client that reads too slowly still has something to read: it needs no keepalive.
        self.deadline = (now if self.blocked else self._spoke) + self._keepalive
        return out

    def _keepalive_event(self) -> UpstreamEvent | None:
        """None before the first event: SDK helpers insist that it be ``response.created``."""
        if self._last is None:
            return None
        # It repeats the number of the event before it: the upstream's next one goes on from there.
        return keepalive_event(max(0, self._last.sequence_number))
