"""What an event means for the frame of the turn in flight.

What belongs here: the questions about a frame that a driver asks before it can report an event to
a session, or act on what it reported: they take evidence and the session's state, and their answer
decides what is sent again. Total, pure functions; no bytes.
"""

from __future__ import annotations

from typing import Final

from bridgecore.recovery.failure import Evidence, FailureKind, classify
from bridgecore.recovery.state import Phase, SessionState

UNANSWERED: Final = frozenset({Phase.SENDING, Phase.SENT})
ANSWERING: Final = frozenset({Phase.CREATED, Phase.OUTPUT})


def proves_too_large(state: SessionState, cause: Evidence) -> bool:
    """Whether ``cause`` shows that the upstream never takes the frame in flight, for its size.

    Such a frame is not sent again, by no turn: an upload of megabytes would end the same way. A
    frame that the upstream has begun to answer was not too large, whatever closed the connection
    afterwards. ``state``: of the session before it hears of ``cause``.
    """
    return state.phase in UNANSWERED and classify(cause).kind is FailureKind.TOO_LARGE


def concerns_unsent(cause: Evidence) -> bool:
    """Whether an error concerns a turn although it was read before the turn's frame left.

    It cannot be an answer to that frame, so it says nothing about the turn. But if it says that the
    connection is too old, the frame must not be sent on this connection.
    """
    return classify(cause).kind is FailureKind.CONNECTION_LIMIT
