"""Decides what an error says about the frame of the running turn: too large, or never sent.

A connection's driver needs these answers before it can report an event to a session. They affect
what is sent again, so they belong to recovery and not to the driver. Pure, total functions of the
evidence and the session's state.
"""

from __future__ import annotations

from typing import Final

from bridgecore.recovery.failure import Evidence, FailureKind, classify
from bridgecore.recovery.state import Phase, SessionState

UNANSWERED: Final = frozenset({Phase.SENDING, Phase.SENT})
ANSWERING: Final = frozenset({Phase.CREATED, Phase.OUTPUT})


def proves_too_large(state: SessionState, cause: Evidence) -> bool:
    """Whether ``cause`` proves that the upstream refuses the current frame for its size.

    Such a frame is never sent again, for any turn: an upload of megabytes would end the same way. A
    frame whose answer has begun was not too large, whatever closed the connection afterwards.

    Args:
        state: of the session, before it handles ``cause``.
    """
    return state.phase in UNANSWERED and classify(cause).kind is FailureKind.TOO_LARGE


def proves_no_websocket(cause: Evidence) -> bool:
    """Whether ``cause`` says that the upstream takes no WebSocket connection, of any session."""
    return classify(cause).kind is FailureKind.NO_WEBSOCKET


def concerns_unsent(cause: Evidence) -> bool:
    """Whether an error that was read before the turn's frame was written applies to the turn.

    It cannot be an answer to that frame, so usually it does not. But if it says that the connection
    is past the upstream's limit, the frame must not be sent on this connection.
    """
    return classify(cause).kind is FailureKind.CONNECTION_LIMIT
