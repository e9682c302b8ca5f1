"""Placement: decides which session a turn is routed to.

``route`` is the whole decision; the functions before it are its parts. All are pure functions of
what is known about the turn and about the sessions that could take it. Whether there is room for a
new session is decided in ``bridgecore.admission.limits``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, TypeAlias

import attrs

from bridgecore.recovery.events import Standing


class Placement(enum.Enum):
    """Where to route a turn that has a session for its anchor."""

    JOIN = "join"  # to that session, where it runs or waits
    # To a new session. The connection of a session can continue only its latest response, so a turn
    # that branches off earlier would take that away from the conversation.
    BRANCH = "branch"


def place(standing: Standing, *, known: bool, idle: bool, displaces: bool) -> Placement:
    """Decide whether a turn joins the session of its anchor.

    Args:
        standing: of the turn.
        known: there is a session for the turn's anchor.
        idle: that session has neither a running nor a waiting turn.
        displaces: that session's connection can continue a response, and it is not this anchor.
    """
    if not known:
        return Placement.BRANCH
    if standing is Standing.BOUND:
        # Only the connection that made the response can continue it: queue there, even if it is
        # busy. On any other connection the turn would fail.
        return Placement.JOIN
    if standing is Standing.UNKNOWN:
        # The session that asked for this id before has the count of its refusals, which must not
        # start anew (REFUSALS_ARE_BOUNDED). But nothing is gained by waiting for it.
        return Placement.JOIN if idle else Placement.BRANCH
    # The turn can be continued on any connection, so it need not wait, and must not displace the
    # response that another turn may continue.
    return Placement.JOIN if idle and not displaces else Placement.BRANCH


# Bounds of ``take_over``, in sessions of one family. Small numbers suffice: a family is usually one
# user's conversations, and each protected session costs a connection.
PROTECTED: Final = 8  # the most recently used that are kept for their own conversation
SINGLES: Final = 32  # that may be idle after a single turn before one of them is taken over
LOOKED_AT: Final = 64  # the most recently used that are considered, to bound the time of a decision


@attrs.frozen
class Idle:
    """An idle session of a turn's family: same credential and thread, and same ``conversation`` or
    ``prompt_cache_key``.

    ``continued``: its latest turn had an anchor, so its client will probably continue on this
    connection. ``dispensable``: the response that its connection can continue is not needed there:
    there is none, or it can be continued elsewhere, or its client does not go on by ids.
    """

    continued: bool
    dispensable: bool


def take_over(family: Sequence[Idle], *, repeats: bool) -> int | None:
    """Choose an idle session of ``family`` for a turn without an anchor; None: create one.

    An upstream starts a new chain on any connection, and forgets the response that it could
    continue there. Without reuse, a client whose histories are never recognised, or whose
    conversation the upstream keeps, would leave one more idle connection behind with each turn. But
    many conversations may share one ``prompt_cache_key``, and must not keep taking each other's
    connections. So a session that is being continued is left alone unless it is old, and a turn
    that starts a conversation takes over a session only once many have had just a single turn.

    Args:
        family: the idle sessions, most recently used first.
        repeats: the turn has a history, which was not recognised, or a conversation that the
            upstream keeps.

    Returns:
        An index into ``family``, or None.
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
    """What placement needs to know of a session.

    ``key``: its number. ``idle``: it has neither a running nor a waiting turn. ``live``: the
    response that its connection can continue, if any.
    """

    key: int
    idle: bool
    live: str | None


@attrs.frozen
class Kin(Idle):
    """A session of the turn's family. ``key``: its number. Only an ``idle`` one can be taken."""

    key: int
    idle: bool


@attrs.frozen
class Arrival:
    """What placement needs to know of a turn.

    ``anchor``: the response that it depends on. ``recognised``: it has none, but its history was
    found in the transcripts. ``repeats``: it has a history, or a conversation at the upstream.
    """

    standing: Standing
    anchor: str | None
    recognised: bool
    repeats: bool


@attrs.frozen
class Join:
    """Route the turn to the session ``key``. ``inject``: the index of the candidate to anchor it at
    in place of its history; None: send it as it is."""

    key: int
    inject: int | None = None


@attrs.frozen
class Branch:
    """Create a session for the turn."""


Route: TypeAlias = Join | Branch


def route(
    turn: Arrival,
    *,
    candidates: Iterable[tuple[str, Seat | None]],
    home: Seat | None,
    family: Iterable[Kin],
) -> Route:
    """Decide which session a turn is routed to.

    1. A turn that repeats a held history joins an idle session whose connection can continue that
       history, so that the history need not be sent; of several, the one with the longest history.
    2. A turn whose anchor belongs to a session joins it if ``place`` says so.
    3. Any other turn that continues something gets a new session. It will be needed again, because
       the next turn of that conversation is routed there by its anchor.
    4. A turn that starts a conversation may take over an idle session: see ``take_over``.

    Args:
        turn: the turn.
        candidates: the responses that the turn could be anchored at, the longest history first,
            with the session of each. Iterables are consumed only as far as necessary.
        home: the session that the turn's anchor, or the best candidate, belongs to.
        family: the sessions of the turn's family, most recently used first.
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
