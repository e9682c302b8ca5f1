"""Limits: decides whether there is room for one more session, and which session to evict for it.

Pure functions; the caller carries an eviction out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import attrs


@attrs.frozen
class Resident:
    """What limits need to know of a session.

    ``key``: its number. ``spare``: no client's turn is running or waiting in it. ``linked``: it has
    a connection, or one is being opened for it.
    """

    key: int
    spare: bool
    linked: bool


@attrs.frozen
class Admitted:
    """There is room for one more session. ``evict``: the session to evict first, if any."""

    evict: int | None = None


@attrs.frozen
class Full:
    """There is no room, and every session has a turn."""


Admission: TypeAlias = Admitted | Full


def admit(sessions: int, limit: int, residents: Iterable[Resident]) -> Admission:
    """Decide whether one more session can be created.

    Below ``limit`` it can. At the limit the least recently used spare session is evicted. Without a
    spare one the answer is ``Full`` at once: a client can retry elsewhere, which it could not while
    it waits in a queue.

    Args:
        sessions: how many there are, those under creation included.
        limit: how many there may be.
        residents: the sessions, least recently used first; iterated only at the limit, because
            usually there is room.
    """
    if sessions < limit:
        return Admitted()
    oldest = longest_spare(residents)
    return Full() if oldest is None else Admitted(oldest)


def longest_spare(residents: Iterable[Resident], *, linked: bool = False) -> int | None:
    """The least recently used spare session; None if there is none.

    Args:
        residents: the sessions, least recently used first.
        linked: consider only those with a connection, because a file descriptor is what is needed.
    """
    for resident in residents:
        if resident.spare and (resident.linked or not linked):
            return resident.key
    return None
