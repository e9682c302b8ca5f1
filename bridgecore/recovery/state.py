"""The state of a session, as frozen and hashable values.

What belongs here: the state that ``step`` takes and returns, and properties derived from it. It has
no behaviour, so that the verifier can compare, hash and store states by the million.
"""

from __future__ import annotations

import enum

import attrs

from bridgecore.recovery.effects import FailureReply, RequestForm
from bridgecore.recovery.events import Remembers, Turn
from bridgecore.recovery.failure import FailureKind
from bridgecore.recovery.timers import Timers


# fmt: off
class Lifecycle(enum.Enum):
    """The state of a session's upstream connection."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    OPEN = "open"  # usable
    CLOSED = "closed"  # there is none
    RECONNECTING = "reconnecting"  # a connect is under way, for the running turn or a waiting one
    SEND_SKIPPED = "send_skipped"  # usable, but it did not know the last turn's anchor

class AttemptPhase(enum.Enum):
    """How far one attempt to send a turn has come. It only advances; a new attempt starts at
    UNSENT.

    From SENDING to CREATED it is unknown whether the upstream has accepted the turn.
    """
    __hash__ = object.__hash__  # by identity: looked up for every event
    UNSENT = "unsent"  # nothing was written
    SENDING = "sending"  # the frame is being written
    SENT = "sent"  # the operating system has the whole frame
    CREATED = "created"  # response.created came
    OUTPUT = "output"  # output came, and has been delivered to the client

class Phase(enum.Enum):
    """The phase of a session: with the event's type, the key of the table of rules (rules.py)."""
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
    """The running turn, and what was tried for it."""
    turn: Turn
    phase: AttemptPhase = AttemptPhase.UNSENT
    form: RequestForm | None = None  # the form of the next send, once decided
    sent: RequestForm | None = None  # the form of the latest send
    responses: tuple[str, ...] = ()  # the ids that the upstream used for its response, oldest first
    # The id of a held-back response.created that may be a late copy: it names an ended response.
    doubtful: str | None = None
    replays: int = 0  # resends after a loss, over all paths together (REPLAYS_ARE_BOUNDED)
    recovered: frozenset[FailureKind] = frozenset()  # kinds of refusal that were recovered from
    fallback: FailureReply | None = None  # the answer if the current recovery fails, too
    paused: bool = False  # its client reads too slowly
    over_http: bool = False  # the upstream did not take it over WebSocket
    deadline: int = 0  # ns: the end of its whole budget, waits and replays included

@attrs.frozen
class Waiting:
    """A turn that waits for the running one to end."""
    turn: Turn
    deadline: int  # ns
# fmt: on

# An UNSENT turn is waiting for its connect, so the lifecycle, RECONNECTING, is the phase.
_OF_ATTEMPTS = tuple(AttemptPhase)[1:]
_PHASES = {one: Phase(one.value) for one in (*Lifecycle, *_OF_ATTEMPTS)}


@attrs.frozen
class SessionState:
    """The state of one session: its connection, its turns, its anchors' refusals, its deadlines."""

    lifecycle: Lifecycle = Lifecycle.CLOSED
    generation: int = 0  # the number of the latest connect; 0: none yet. Grows, is never reused
    # The response that the present connection can continue: in WebSocket mode only its latest one,
    # over HTTP none.
    cached_response: str | None = None
    ended: tuple[str, ...] = ()  # ids of responses that ended on this connection, latest last
    running: Running | None = None
    waiting: tuple[Waiting, ...] = ()
    refusals: tuple[tuple[str | None, int], ...] = ()  # refusals so far, by anchor
    past_lifetime: bool = False  # the connection is to be replaced as soon as no turn runs
    remote: bool = False  # another replica owns the session; the connection leads to that replica
    remembers: Remembers = Remembers.LATEST  # what the latest connection does
    timers: Timers = attrs.Factory(Timers)

    @property
    def phase(self) -> Phase:
        """The phase, derived from ``lifecycle`` and ``running``."""
        if self.running is None or self.lifecycle is Lifecycle.RECONNECTING:
            return _PHASES[self.lifecycle]
        return _PHASES[self.running.phase]

    @property
    def idle(self) -> bool:
        """Whether no turn is running or waiting."""
        return self.running is None and not self.waiting
