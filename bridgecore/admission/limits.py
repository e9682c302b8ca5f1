"""Limits: whether there is room for one more session, and which one makes room.

What belongs here: the decisions, as pure functions. Carrying an eviction out is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import attrs


@attrs.frozen
class Resident:
    """A session as limits see it.

    ``key``: its number. ``spare``: no client's turn runs or waits there. ``linked``: it has a
    connection, or one is being opened for it.
    """

    key: int
    spare: bool
    linked: bool


@attrs.frozen
class Admitted:
    """There is room for a session, once the session ``evict`` is evicted, if that is not None."""

    evict: int | None = None


@attrs.frozen
class Full:
    """There is no room, and every session is needed."""


Admission: TypeAlias = Admitted | Full


def admit(sessions: int, limit: int, residents: Iterable[Resident]) -> Admission:
    """Decide about one more session: below ``limit`` there is room, at the limit the spare session
    that was used longest ago makes room. A full house rejects at once; it does not queue.

    ``residents``: the sessions, the one used longest ago first; looked at only at the limit.
    """
    if sessions < limit:
        return Admitted()
    oldest = longest_spare(residents)
    return Full() if oldest is None else Admitted(oldest)


def longest_spare(residents: Iterable[Resident], *, linked: bool = False) -> int | None:
    """The spare session that was used longest ago; ``linked``: of those with a connection, because
    it is a connection that is wanted. ``residents``: the one used longest ago first."""
    for resident in residents:
        if resident.spare and (resident.linked or not linked):
            return resident.key
    return None
