"""Effects: what a session asks its driver to do. A closed union of frozen values.

Named in the imperative. What belongs here: the outputs of ``step`` and the failure replies that
they carry. The HTTP status, code and message of a reply are chosen at the edge
(``bridgecore.api_error``) and never read back: a recovery must not depend on the wording of an
answer.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from bridgecore.recovery.failure import Failure


# fmt: off
class RequestForm(enum.Enum):
    """The form in which a turn is sent upstream."""

    __hash__ = object.__hash__  # by identity: looked up for every event

    AS_IS = "as_is"  # as the client sent it, or with an injected anchor; its anchor included
    REHYDRATED = "rehydrated"  # no anchor, the full input from the transcript
    CLIENT_FULL = "client_full"  # no anchor, the client's own full input

class FailureReply(enum.Enum):
    """The failure that ends a turn, as its client gets it. The value is the public error code.

    All but ``NOT_FOUND`` and some of ``UPSTREAM_ERROR`` ask the client to retry. NOT_FOUND makes it
    drop its ``previous_response_id`` and resend the whole conversation.
    """

    __hash__ = object.__hash__  # by identity: looked up for every event

    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    OWNER_UNREACHABLE = "bridge_owner_unreachable"
    STREAM_INCOMPLETE = "stream_incomplete"
    REQUEST_TIMEOUT = "upstream_request_timeout"
    NOT_FOUND = "previous_response_not_found"
    UPSTREAM_ERROR = "upstream_error"  # the upstream's own error, relayed
    OVERLOADED = "bridge_overloaded"  # the session's queue is full

@attrs.frozen
class OpenConnection:
    """Connect to the upstream or, if ``remote``, to the replica that owns the session. Report
    ``ConnectionOpened`` or ``ConnectionLost`` with ``generation``.

    ``http``: over HTTP, because the upstream does not take the running turn over WebSocket.
    Otherwise the caller chooses.
    """
    generation: int
    remote: bool = False
    http: bool = False

@attrs.frozen
class CloseConnection:
    """Close the connection of ``generation``, or abort its connect. Report nothing more of it."""
    generation: int

@attrs.frozen
class SendTurn:
    """Send the ``response.create`` frame of ``turn`` (its id) in ``form``; report ``FrameSent``."""
    generation: int
    turn: int
    form: RequestForm

@attrs.frozen
class DeliverEvent:
    """Deliver the event that is being handled to the client of ``turn``.

    ``held``: do not deliver it yet, because the turn may still be replayed, or because the event
    may belong to an earlier response. Deliver it right before the next event of the turn that is
    not held; drop it when the turn is sent again, or when the response that it names turns out not
    to be the turn's.
    """
    turn: int
    held: bool = False

@attrs.frozen
class CompleteTurn:
    """Complete the answer of ``turn``: the event that is being handled is its terminal event.

    ``responses``: the ids that the upstream used for the response, usually one; the id in the
    terminal event is the last.
    """
    turn: int
    responses: tuple[str, ...] = ()

@attrs.frozen
class FailTurn:
    """Fail ``turn`` with ``answer``: an HTTP status, or ``response.failed`` if its stream has
    begun.

    ``failure``: what happened; None if nothing did (a full queue).
    """
    turn: int
    answer: FailureReply
    failure: Failure | None

@attrs.frozen
class StopInjecting:
    """Never inject the anchor of ``turn`` again, in any conversation: the upstream refused it."""
    turn: int

@attrs.frozen
class StopRebuilding:
    """Do not rebuild the input of ``turn`` from its transcript again: the upstream refused it, and
    the next attempt has to differ."""
    turn: int

@attrs.frozen
class RebindSession:
    """Take over the session: its owner, another replica, has not sent the running turn.

    ``failure``: how that became known: the owner said so, or could not be reached.
    """
    failure: Failure | None = None

@attrs.frozen
class WarmSession:
    """Preload a new connection with the context of ``anchor`` (``generate: false``), if possible.

    The connection that could continue ``anchor`` was closed for its age, and no turn is waiting.
    """
    anchor: str

@attrs.frozen
class RetireSession:
    """Forget the session: it has ended."""

@attrs.frozen
class Ignored:
    """Do nothing: the event was a harmless race, which ``reason`` describes."""
    reason: str

Effect: TypeAlias = (
    OpenConnection | CloseConnection | SendTurn | DeliverEvent | CompleteTurn | FailTurn
    | StopInjecting | StopRebuilding | RebindSession | WarmSession | RetireSession | Ignored
)
"""What ``Session.handle`` returns."""
# fmt: on
