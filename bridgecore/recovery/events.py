"""What can happen to a session. Past tense; a closed union of frozen values.

What belongs here: the inputs of ``step``. Payloads are opaque: ids, numbers and flags, never
bodies. Every event from a connection carries the generation of that connection.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.failure import Evidence
from bridgecore.recovery.timers import Timer


# fmt: off
class Standing(enum.Enum):
    """What the bridge has in hand for a turn if its socket does not know the turn's anchor."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    UNANCHORED = "unanchored"  # no anchor: the turn needs no server-side state
    HELD = "held"  # the bridge holds the whole chain and can send it in full
    HELD_STORED = "held_stored"  # both: the id costs a few bytes, the chain works without it
    STORED = "stored"  # the response was made with store=true: any socket can continue it
    BOUND = "bound"  # known, but it lives only in the memory of the socket that made it
    UNKNOWN = "unknown"  # the bridge has never seen the id: only the upstream can tell
    INJECTED = "injected"  # the bridge put the anchor in place of history that the client sent

@attrs.frozen
class Turn:
    """One turn as recovery sees it. ``anchor`` is the response id that it depends on: None for an
    unanchored turn, and for no other, or ``LocalProtocolError``."""
    id: int
    standing: Standing = Standing.UNANCHORED
    anchor: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.anchor is None) is not (self.standing is Standing.UNANCHORED):
            what = f"is {self.standing.value}, with anchor {self.anchor}"
            raise LocalProtocolError(f"turn {self.id} {what}")

class Outcome(enum.Enum):
    """How the upstream ended a response, by its terminal event."""
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"

@attrs.frozen
class TurnSubmitted:
    """A client's turn was routed to this session.

    ``deadline``: when its whole budget ends, in ns, as its way here may have taken time. None: the
    budget of the policy begins now.
    """
    turn: Turn
    deadline: int | None = None

@attrs.frozen
class TurnAbandoned:
    """The client of ``turn`` (its id) left before its answer was complete."""
    turn: int

@attrs.frozen
class ConnectionOpened:
    """The connect of ``generation`` succeeded: TCP, TLS and upgrade. Its socket is to be replaced
    ``early`` ns before its lifetime is over, so that not all sockets of an age go at once."""
    generation: int
    early: int = 0

@attrs.frozen
class ConnectionLost:
    """The socket of ``generation`` is gone, or could not be opened. ``cause`` tells how.

    ``unsent``: nothing of the frame of the last ``SendTurn`` has left, because the loss was read
    together with the event that the send answers. Then the loss is not ambiguous.
    """
    generation: int
    cause: Evidence
    unsent: bool = False

@attrs.frozen
class FrameSent:
    """The turn's frame was handed to the operating system completely; or, ``whole`` being False,
    one more part of a large one, and others follow."""
    generation: int
    whole: bool = True

# Events of an answer carry the id of the response that they name, where they name one: an upstream
# may send copies and stragglers of an earlier response after the next turn's frame went out.

@attrs.frozen
class ResponseCreated:
    """``response.created`` came: the upstream has accepted the turn. ``response``: its id."""
    generation: int
    response: str | None = None

@attrs.frozen
class OutputReceived:
    """An event of a running answer came.

    ``bearing``: it bears output. ``room``: there is room to hold it back. ``response``: the id that
    it names. While a turn is in its output, further ones may be folded into ``Session.touch``.
    """
    generation: int
    bearing: bool = True
    room: bool = True
    response: str | None = None

@attrs.frozen
class ResponseEnded:
    """The terminal event came. ``response`` is the id of the response that ended; ``cause``, why
    it failed, if it did: the upstream's words, or ``Malformed`` if the event cannot be read."""
    generation: int
    outcome: Outcome
    response: str | None = None
    cause: Evidence | None = None

@attrs.frozen
class UpstreamRefused:
    """An in-band error frame came. ``unsent``: the frame was not sent, because the upstream has
    refused that very frame before, for ``cause``."""
    generation: int
    cause: Evidence
    unsent: bool = False

@attrs.frozen
class RelayPaused:
    """The client of ``turn`` reads too slowly, so upstream is not read; or it reads again."""
    turn: int
    paused: bool

@attrs.frozen
class EvictionRequested:
    """Room is needed: an idle session gives up its socket and its state."""

@attrs.frozen
class DeadlineReached:
    """The deadline of ``timer`` passed."""
    timer: Timer

Event: TypeAlias = (
    TurnSubmitted | TurnAbandoned | ConnectionOpened | ConnectionLost | FrameSent
    | ResponseCreated | OutputReceived | ResponseEnded | UpstreamRefused | RelayPaused
    | EvictionRequested | DeadlineReached
)
"""What ``Session.handle`` takes."""
# fmt: on
