"""Which sessions belong to the same client's family, and what their latest turns were like.

What belongs here: the index that placement looks for an idle session in, for a turn that begins a
conversation. A value: an explorer can compare it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import attrs


@attrs.frozen
class LatestTurn:
    """What is kept of a session's latest turn.

    ``family``: equal for turns of one credential, ``prompt_cache_key`` and thread; None without a
    key. ``continued``: it was anchored. ``repeats``: it brought a history, so its client keeps
    histories and names no ids.
    """

    family: bytes | None
    continued: bool
    repeats: bool


@attrs.define(eq=False)
class Families:
    """The latest turn of each session, and the sessions of each family; the session used longest
    ago first."""

    _latest: OrderedDict[int, LatestTurn] = attrs.Factory(OrderedDict)
    _members: dict[bytes, OrderedDict[int, None]] = attrs.Factory(dict)

    def note(self, session: int, turn: LatestTurn) -> None:
        """A turn goes to ``session``, which is its family's latest used from now on."""
        self.leave(session)
        self._latest[session] = turn
        if turn.family is not None:
            self._members.setdefault(turn.family, OrderedDict())[session] = None

    def leave(self, session: int) -> None:
        """The session is over; or its latest turn was of another family than the next one."""
        turn = self._latest.pop(session, None)
        if turn is None or turn.family is None:
            return
        members = self._members[turn.family]
        del members[session]
        if not members:
            del self._members[turn.family]

    def latest(self, session: int) -> LatestTurn:
        """What is kept of the latest turn of ``session``, which has had one."""
        return self._latest[session]

    def members(self, family: bytes) -> Iterator[int]:
        """The sessions of ``family``, the latest used first."""
        return reversed(self._members.get(family, {}))
