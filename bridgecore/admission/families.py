"""Groups sessions by client family, with what matters of each session's latest turn.

What belongs here: the index in which placement finds an idle session for a turn that starts a
conversation. It is a value that the explorer can copy and compare.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import attrs


@attrs.frozen
class LatestTurn:
    """What placement needs to know of a session's latest turn.

    ``family``: a digest, equal for turns that may use one connection (see
    ``continuity.memory.Family``); None without one. ``continued``: the turn had an anchor.
    ``repeats``: it had a history, or a conversation that the upstream keeps, so its client does not
    go on by ids.
    """

    family: bytes | None
    continued: bool
    repeats: bool


@attrs.define(eq=False)
class Families:
    """The latest turn of each session, and the sessions of each family, least recently used
    first."""

    _latest: OrderedDict[int, LatestTurn] = attrs.Factory(OrderedDict)
    _members: dict[bytes, OrderedDict[int, None]] = attrs.Factory(dict)

    def note(self, session: int, turn: LatestTurn) -> None:
        """Record ``turn`` as the latest of ``session``, now its family's most recently used."""
        self.leave(session)
        self._latest[session] = turn
        if turn.family is not None:
            self._members.setdefault(turn.family, OrderedDict())[session] = None

    def leave(self, session: int) -> None:
        """Remove ``session``: it has ended, or is about to be added to another family."""
        turn = self._latest.pop(session, None)
        if turn is None or turn.family is None:
            return
        members = self._members[turn.family]
        del members[session]
        if not members:
            del self._members[turn.family]

    def latest(self, session: int) -> LatestTurn:
        """The latest turn of ``session``. Raises KeyError if it had none."""
        return self._latest[session]

    def members(self, family: bytes) -> Iterator[int]:
        """The sessions of ``family``, most recently used first."""
        return reversed(self._members.get(family, {}))
