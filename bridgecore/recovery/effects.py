"""What a session tells its driver to do. Imperative; a closed union of frozen values.

What belongs here: the outputs of ``step`` and the names of the answers they carry. How an answer
looks on HTTP (status, code, words) is rendered at the edge, in ``bridgecore.api_error``, and never
read back.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from bridgecore.recovery.failure import Failure


# fmt: off
class RequestForm(enum.Enum):
    """In which form a turn goes upstream."""
    AS_IS = "as_is"  # as the client (or the reduction) made it, its anchor included
    REHYDRATED = "rehydrated"  # no anchor, the full input from the transcript
    CLIENT_FULL = "client_full"  # no anchor, the client's own full input

class FailureReply(enum.Enum):
    """What a client is told when its turn cannot be answered."""
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    OWNER_UNREACHABLE = "bridge_owner_unreachable"
    STREAM_INCOMPLETE = "stream_incomplete"
    REQUEST_TIMEOUT = "upstream_request_timeout"
    NOT_FOUND = "previous_response_not_found"
    UPSTREAM_ERROR = "upstream_error"  # the upstream's own error, relayed
    OVERLOADED = "bridge_overloaded"

@attrs.frozen
class OpenConnection:
    """Connect upstream, or to the replica that owns the session if ``remote``; report
    ``ConnectionOpened`` or ``ConnectionLost`` of ``generation``."""
    generation: int
    remote: bool = False

@attrs.frozen
class CloseConnection:
    """Close (or stop opening) the socket of ``generation``. Nothing more of it is reported."""
    generation: int

@attrs.frozen
class SendTurn:
    """Send the turn's ``response.create`` in ``form``; report ``FrameSent``."""
    generation: int
    turn: int
    form: RequestForm

@attrs.frozen
class DeliverEvent:
    """The event at hand belongs to ``turn``: pass it on to its client.

    ``held``: keep it, and pass it on right before the next event of the turn that is not held;
    because the turn may yet be replayed, or because it may belong to an earlier response. What is
    held is dropped when the turn is sent again, and when it names a response that turns out not
    to be the turn's.
    """
    turn: int
    held: bool = False

@attrs.frozen
class CompleteTurn:
    """The event at hand was the terminal one of ``turn``: its answer is complete. ``responses``:
    the ids by which the upstream has called it, one as a rule, the terminal event's own last."""
    turn: int
    responses: tuple[str, ...] = ()

@attrs.frozen
class FailTurn:
    """End ``turn`` with ``answer``: an HTTP status before the head, ``response.failed`` after it.

    ``failure`` is what happened; None when nothing did (a full queue).
    """
    turn: int
    answer: FailureReply
    failure: Failure | None

@attrs.frozen
class StopInjecting:
    """The anchor that was put in place of the history of ``turn`` was refused: never put it there
    again, in any conversation."""
    turn: int

@attrs.frozen
class StopRebuilding:
    """The input that was rebuilt for ``turn`` was refused: do not rebuild it from what is held
    again, so that the next try is another one."""
    turn: int

@attrs.frozen
class RebindSession:
    """The session's owner is gone: this replica is the owner from now on."""

@attrs.frozen
class WarmSession:
    """The socket was given up for its age and no turn waits: bring ``anchor``, which it knew, to a
    new one by a turn of the bridge's own, if that is possible."""
    anchor: str

@attrs.frozen
class RetireSession:
    """The session is over: forget it."""

@attrs.frozen
class Ignored:
    """A benign race; ``reason`` names it. Nothing is to be done."""
    reason: str

Effect: TypeAlias = (
    OpenConnection | CloseConnection | SendTurn | DeliverEvent | CompleteTurn | FailTurn
    | StopInjecting | StopRebuilding | RebindSession | WarmSession | RetireSession | Ignored
)
"""What ``Session.handle`` returns."""
# fmt: on
