"""Where a turn goes: its conversation's session, that session's queue, an idle session that is not
needed any more, or a session of its own.

What belongs here: the decisions, as total functions of plain facts.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import attrs

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


PROTECTED: Final = (
    8  # sessions of one family, the latest used, that no other conversation displaces
)
SINGLES: Final = 32  # sessions of one family that may be idle after a single turn


@attrs.frozen
class Idle:
    """An idle session of the family of a turn: same credential, ``prompt_cache_key`` and thread.

    ``continued``: its latest turn was anchored, so that its client is coming back to what the
    socket remembers. ``dispensable``: what its socket remembers is not needed: there is nothing,
    or it can be continued without the socket, or its client repeats histories and names no ids.
    """

    continued: bool
    dispensable: bool


def take_over(family: Sequence[Idle], *, repeats: bool) -> int | None:
    """The session of ``family`` that a turn without an anchor starts a new chain on; None: one of
    its own. The upstream allows that on any socket; it forgets the response it remembered.

    A client whose histories are never recognised would else leave a socket behind with each turn.
    But one ``prompt_cache_key`` may be shared by many conversations, and they must not take each
    other's sockets in turns. So a session that is being continued is left alone, and a turn that
    begins a conversation waits with taking over until there are many single turns' sessions.

    Args:
        family: the idle sessions, the latest used first.
        repeats: the turn brings a history, and it was not recognised.
    """
    if repeats:
        for place, idle in enumerate(family):
            if idle.dispensable and (not idle.continued or place >= PROTECTED):
                return place
        return None
    single = [place for place, idle in enumerate(family) if idle.dispensable and not idle.continued]
    return single[-1] if len(single) >= SINGLES else None
