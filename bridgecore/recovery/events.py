"""Events: what can happen to a session. A closed union of frozen values.

Named in the past tense. What belongs here: the inputs of ``step``. They carry ids, numbers and
flags, never bodies: decisions must not depend on content, and logs of them hold no user data. Every
event of a connection carries the generation of that connection, so that late ones are recognised.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.failure import Evidence
from bridgecore.recovery.meant import Meant
from bridgecore.recovery.timers import Timer


# fmt: off
class Standing(Meant):
    """What the bridge has for a turn whose anchor its connection does not know: the columns of a
    policy. It decides whether and in which form the turn can be sent on a new connection.
    ``meaning`` says it in words, for ``bridgecore rules`` and the documentation."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    UNANCHORED = "unanchored", "no anchor: the turn needs no state of the upstream"
    HELD = "held", "the bridge holds the whole chain of responses, and can send it in full"
    HELD_STORED = "held_stored", "both held and stored: the id is cheaper, the chain certain"
    STORED = (
        "stored", "the response was made with store=true: any connection can continue it"
    )
    BOUND = (
        "bound",
        "the response was made with store=false: only the connection that made it can continue it",
    )
    UNKNOWN = "unknown", "the bridge has never seen the id: only the upstream can tell"
    INJECTED = (
        "injected", "the bridge has put the anchor in place of history that the client sent"
    )

class Remembers(enum.Enum):
    """Which responses a connection can continue after they have ended.

    There is no third value for a connection that remembers nothing at all: whether a response is
    stored is a property of the response, and the ``Standing`` of a turn that continues it says so.
    """
    __hash__ = object.__hash__  # by identity: looked up for every event
    LATEST = "latest"  # its latest one, stored or not: a WebSocket, or another replica
    STORED = "stored"  # only those that the upstream stores: each HTTP request starts anew

@attrs.frozen
class Turn:
    """One turn: its id, its standing, and its anchor, the response id that it depends on.

    Raises:
        LocalProtocolError: ``anchor`` is None for another standing than ``UNANCHORED``, or is not
            None for that one.
    """
    id: int
    standing: Standing = Standing.UNANCHORED
    anchor: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.anchor is None) is not (self.standing is Standing.UNANCHORED):
            what = f"is {self.standing.value}, with anchor {self.anchor}"
            raise LocalProtocolError(f"turn {self.id} {what}")

class Outcome(enum.Enum):
    """How a response ended, according to its terminal event."""

    __hash__ = object.__hash__  # by identity: looked up for every event

    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"

@attrs.frozen
class TurnSubmitted:
    """A client's turn was routed to this session.

    ``deadline``: the end of the turn's whole budget (ns), which began when its request arrived.
    None: the budget of the policy's timeouts begins now.
    """
    turn: Turn
    deadline: int | None = None

@attrs.frozen
class TurnAbandoned:
    """The client of ``turn`` (its id) disconnected before its answer was complete."""
    turn: int

@attrs.frozen
class ConnectionOpened:
    """The connect of ``generation`` succeeded: TCP, TLS and, except for HTTP, the WebSocket
    upgrade.

    ``early``: ns by which the connection's lifetime is shortened, drawn at random by the caller, so
    that connections opened together are not all replaced together. ``remembers``: which responses
    it can continue.
    """
    generation: int
    early: int = 0
    remembers: Remembers = Remembers.LATEST

@attrs.frozen
class ConnectionLost:
    """The connection of ``generation`` was lost, or could not be opened, for ``cause``.

    ``unsent``: no byte of the frame of the last ``SendTurn`` was written. This happens when one
    read brings both the end of an answer and the close: the next turn's frame is then still here,
    and the loss is not ambiguous.
    """
    generation: int
    cause: Evidence
    unsent: bool = False

@attrs.frozen
class FrameSent:
    """The operating system took the whole frame of the running turn or, if ``whole`` is False, one
    more part of a large frame."""
    generation: int
    whole: bool = True

# Events of an answer carry the id of the response that they name, if any, because an upstream may
# send copies and stragglers of an earlier response after the next turn was sent.

@attrs.frozen
class ResponseCreated:
    """``response.created`` came: the upstream accepted the turn. ``response``: the response id."""
    generation: int
    response: str | None = None

@attrs.frozen
class OutputReceived:
    """Another event of a running answer came.

    ``bearing``: it carries output, so that a client which has seen it cannot be given another
    answer. ``room``: the hold-back buffer has room for it. ``response``: the response id that it
    names. Once a turn is in its output, ``Session.touch`` may be called instead.
    """
    generation: int
    bearing: bool = True
    room: bool = True
    response: str | None = None

@attrs.frozen
class ResponseEnded:
    """The terminal event of an answer came.

    ``response``: the id of the response that ended. ``cause``: why it failed, if it did: the
    upstream's error, or ``Malformed`` if the event cannot be read.
    """
    generation: int
    outcome: Outcome
    response: str | None = None
    cause: Evidence | None = None

@attrs.frozen
class UpstreamRefused:
    """An error frame came for the running turn.

    ``unsent``: it did not come now. The turn's frame was not sent, because the upstream refused an
    identical frame for ``cause`` before and would do so again.
    """
    generation: int
    cause: Evidence
    unsent: bool = False

@attrs.frozen
class RelayPaused:
    """The client of ``turn`` reads too slowly (``paused``), so that the upstream is not read; or it
    reads again."""
    turn: int
    paused: bool

@attrs.frozen
class EvictionRequested:
    """The bridge needs room for another session, and chose this one to make it."""

@attrs.frozen
class DeadlineReached:
    """The deadline of ``timer`` has passed."""
    timer: Timer

Event: TypeAlias = (
    TurnSubmitted | TurnAbandoned | ConnectionOpened | ConnectionLost | FrameSent
    | ResponseCreated | OutputReceived | ResponseEnded | UpstreamRefused | RelayPaused
    | EvictionRequested | DeadlineReached
)
"""What ``Session.handle`` takes."""
# fmt: on
