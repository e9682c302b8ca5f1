"""Where a turn goes: its conversation's session, that session's queue, or a session of its own.

What belongs here: the decision, as a total function of plain facts.
"""

from __future__ import annotations

import enum

from bridgecore.recovery.events import Standing


class Placement(enum.Enum):
    """Where a turn goes."""

    JOIN = "join"  # to the conversation's session, where it runs or waits
    BRANCH = "branch"  # to a new session: a sibling must not cost the conversation its socket


def place(standing: Standing, *, known: bool, idle: bool, displaces: bool) -> Placement:
    """Place a turn.

    Args:
        standing: what the bridge has in hand for the turn.
        known: there is a session for the turn's anchor.
        idle: that session has neither a running nor a waiting turn.
        displaces: that session's socket remembers a response, but not this anchor.
    """
    if not known:
        return Placement.BRANCH
    if standing is Standing.BOUND:
        # Only the socket that made the response can continue it: wait for it, whatever it takes.
        return Placement.JOIN
    if standing is Standing.UNKNOWN:
        # The session that asked for this id before counts how often it was refused.
        return Placement.JOIN if idle else Placement.BRANCH
    # What can be continued anywhere neither waits nor displaces what another turn needs.
    return Placement.JOIN if idle and not displaces else Placement.BRANCH
