"""Who is to be woken next, among many.

What belongs here: an index over the deadlines that others own. It decides nothing: an owner that
is woken too early finds nothing due and says when it wants to be woken instead.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class TimerQueue(Generic[K]):
    """At most one wake-up time per key, in ns; earliest first, ties in the order of setting."""

    __slots__ = ("_at", "_heap", "_serial")

    def __init__(self) -> None:
        self._at: dict[K, int] = {}
        self._heap: list[tuple[int, int, K]] = []
        self._serial = 0

    def set(self, key: K, at: int | None) -> None:
        """Wake ``key`` at ``at``; None takes its wake-up back."""
        if at is None:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            self._serial += 1
            heapq.heappush(self._heap, (at, self._serial, key))
            if len(self._heap) > 64 + 4 * len(self._at):
                self._compact()

    def next(self) -> tuple[int, K] | None:
        """The earliest wake-up and whose it is."""
        heap = self._heap
        while heap:
            at, _, key = heap[0]
            if self._at.get(key) == at:
                return at, key
            heapq.heappop(heap)
        return None

    def due(self, now: int) -> Iterator[K]:
        """Take out each key whose time has come, earliest first."""
        while (first := self.next()) is not None and first[0] <= now:
            del self._at[first[1]]
            yield first[1]

    def _compact(self) -> None:
        """Drop the entries that were overtaken: memory follows the number of keys."""
        live = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
        heapq.heapify(live)
        self._heap = live
