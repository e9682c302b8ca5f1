"""Timer queue: the earliest deadline per key.

What belongs here: an index over deadlines that belong to other objects. An object that is woken
although its deadline has moved finds nothing due and sets its next deadline.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class TimerQueue(Generic[K]):
    """One deadline per key, in ns; earliest first, equal ones in the order in which they were set.

    A heap whose outdated entries are skipped when they come up, because removing them from the
    middle of a heap would be slow.
    """

    __slots__ = ("_at", "_heap", "_serial")

    def __init__(self) -> None:
        self._at: dict[K, int] = {}
        self._heap: list[tuple[int, int, K]] = []
        self._serial = 0

    def set(self, key: K, at: int | None) -> None:
        """Set the deadline of ``key``; None removes it."""
        if at is None:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            self._serial += 1
            heapq.heappush(self._heap, (at, self._serial, key))
            if len(self._heap) > 64 + 4 * len(self._at):
                self._compact()

    def next(self) -> tuple[int, K] | None:
        """The earliest deadline and its key; None if there is none."""
        heap = self._heap
        while heap:
            at, _, key = heap[0]
            if self._at.get(key) == at:
                return at, key
            heapq.heappop(heap)
        return None

    def due(self, now: int) -> Iterator[K]:
        """Remove and yield each key whose deadline has passed, earliest first."""
        while (first := self.next()) is not None and first[0] <= now:
            del self._at[first[1]]
            yield first[1]

    def _compact(self) -> None:
        """Drop outdated entries, so that memory is proportional to the number of keys."""
        live = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
        heapq.heapify(live)
        self._heap = live
