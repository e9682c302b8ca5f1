"""Placement: which session a turn goes to.

What belongs here: the decision, as pure functions of what the bridge knows about the turn and about
the sessions that it could go to. ``route`` is the whole of it; the functions before it are its
parts. Whether there is room for one more session is ``bridgecore.admission.limits``'.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, TypeAlias

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
LOOKED_AT: Final = 64  # sessions of one family that are looked at, the latest used


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


# ---------------------------------------------------------------- the whole decision


@attrs.frozen
class Seat:
    """A session as placement sees it.

    ``key``: its number. ``idle``: it has neither a running nor a waiting turn. ``live``: the
    response that its socket remembers, if any.
    """

    key: int
    idle: bool
    live: str | None


@attrs.frozen
class Kin(Idle):
    """A session of the turn's family, by its number. What ``Idle`` says of it counts only if it is
    ``idle``."""

    key: int
    idle: bool


@attrs.frozen
class Arrival:
    """A turn as placement sees it.

    ``anchor``: the response that it depends on. ``recognised``: it names none, but repeats the
    history of responses that are known. ``repeats``: it brings a history.
    """

    standing: Standing
    anchor: str | None
    recognised: bool
    repeats: bool


@attrs.frozen
class Join:
    """The turn goes to the session ``key``. ``inject``: at which of its candidates it is anchored
    there, by its place among them; None: it goes as it is."""

    key: int
    inject: int | None = None


@attrs.frozen
class Branch:
    """The turn gets a session of its own."""


Route: TypeAlias = Join | Branch


def route(
    turn: Arrival,
    *,
    candidates: Iterable[tuple[str, Seat | None]],
    home: Seat | None,
    family: Iterable[Kin],
) -> Route:
    """Decide where a turn goes. What is passed as an iterable is looked at only if it matters.

    1. A turn that repeats a history goes where its socket remembers that history: the history need
       not be sent. The longest history that is at hand wins.
    2. A turn whose anchor belongs to a session goes there, if ``place`` says so.
    3. Otherwise a turn that continues something gets a session of its own. What continues from
       there on is found by its anchor, so that session will be needed again.
    4. A turn that begins something may take over an idle session of its family: see ``take_over``.

    Args:
        candidates: the responses that the turn could be anchored at, the longest history first,
            with the session of each.
        home: the session that the turn's anchor, or the best candidate, belongs to.
        family: the sessions of the turn's family, the latest used first.
    """
    for index, (response, seat) in enumerate(candidates):
        if seat is not None and seat.idle and seat.live == response:
            return Join(seat.key, index)
    if home is not None:
        displaces = home.live is not None and home.live != turn.anchor
        where = place(turn.standing, known=True, idle=home.idle, displaces=displaces)
        if where is Placement.JOIN:
            return Join(home.key)
    if turn.anchor is not None or turn.recognised:
        return Branch()
    kin = [one for one in islice(family, LOOKED_AT) if one.idle]
    taken = take_over(kin, repeats=turn.repeats)
    return Branch() if taken is None else Join(kin[taken].key)
