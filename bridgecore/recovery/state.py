"""What a session is: frozen, hashable values.

What belongs here: the state that ``step`` takes and returns. No behaviour beyond deriving one
thing from another.
"""

from __future__ import annotations

import enum

import attrs

from bridgecore.recovery.effects import FailureReply, RequestForm
from bridgecore.recovery.events import Turn
from bridgecore.recovery.failure import FailureKind
from bridgecore.recovery.timers import Timers


# fmt: off
class Lifecycle(enum.Enum):
    """The life of a session's socket."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    OPEN = "open"  # the socket is usable
    CLOSED = "closed"  # no socket
    RECONNECTING = "reconnecting"  # a connect is under way for a waiting turn
    SEND_SKIPPED = "send_skipped"  # a usable socket that did not know the last turn's anchor

class AttemptPhase(enum.Enum):
    """How far one physical send has come. Monotone; a new attempt starts again at UNSENT."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    UNSENT = "unsent"
    SENDING = "sending"
    SENT = "sent"
    CREATED = "created"
    OUTPUT = "output"

class Phase(enum.Enum):
    """Where a session stands: the key, with the event's type, by which rules are found."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    CLOSED = "closed"
    OPEN = "open"
    SEND_SKIPPED = "send_skipped"
    RECONNECTING = "reconnecting"
    SENDING = "sending"
    SENT = "sent"
    CREATED = "created"
    OUTPUT = "output"

@attrs.frozen
class Running:
    """The turn that has the session, and what was tried for it."""
    turn: Turn
    phase: AttemptPhase = AttemptPhase.UNSENT
    form: RequestForm | None = None  # how it goes upstream next, once that is decided
    sent: RequestForm | None = None  # how it went upstream last
    responses: tuple[str, ...] = ()  # the ids by which the upstream has called its response
    doubtful: str | None = None  # the id of a response.created that names a response of before
    replays: int = 0  # resends after a loss, over all paths together (invariant 12)
    recovered: frozenset[FailureKind] = frozenset()  # upstream refusals recovered so far
    fallback: FailureReply | None = None  # what to say if the recovery under way fails, too
    paused: bool = False  # its client reads too slowly
    deadline: int = 0  # ns: when its whole budget ends

@attrs.frozen
class Waiting:
    """A turn that waits for the session."""
    turn: Turn
    deadline: int  # ns
# fmt: on

_OF_ATTEMPTS = tuple(AttemptPhase)[1:]  # while a turn is UNSENT, the lifecycle tells
_PHASES = {one: Phase(one.value) for one in (*Lifecycle, *_OF_ATTEMPTS)}


@attrs.frozen
class SessionState:
    """One conversation's upstream continuity."""

    lifecycle: Lifecycle = Lifecycle.CLOSED
    generation: int = 0  # of the latest connect; grows, never reused
    cached_response: str | None = None  # the response that the present socket remembers
    ended: tuple[str, ...] = ()  # ids of responses that ended on the present socket, latest last
    running: Running | None = None
    waiting: tuple[Waiting, ...] = ()
    refusals: tuple[tuple[str | None, int], ...] = ()  # bounded refusals used up, by anchor
    past_lifetime: bool = False  # the socket is to be replaced as soon as no turn runs
    remote: bool = False  # another replica owns the session: its socket leads there
    timers: Timers = attrs.Factory(Timers)

    @property
    def phase(self) -> Phase:
        """The key by which rules are found."""
        if self.running is None or self.lifecycle is Lifecycle.RECONNECTING:
            return _PHASES[self.lifecycle]
        return _PHASES[self.running.phase]

    @property
    def idle(self) -> bool:
        """No turn runs or waits."""
        return self.running is None and not self.waiting
