"""A heap for eviction in order of last use.

What belongs here: the order, and nothing about what is evicted.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, Protocol, TypeVar


class Evictable(Protocol):
    """An entry of the heap. ``used``: the time of last use in ns, never decreasing. ``evictable``:
    False takes the entry out of the heap when it comes to the top."""

    @property
    def used(self) -> int: ...
    @property
    def evictable(self) -> bool: ...


T = TypeVar("T", bound=Evictable)


class LruHeap(Generic[T]):
    """A heap of things in order of last use, for LRU eviction.

    Entries have the time of last use as of when they were pushed. Using a thing does not touch the
    heap; an outdated entry is pushed again when it comes to the top. So a use costs nothing, and
    uses are far more frequent than evictions.
    """

    # An entry is one number, ``used`` and then the serial number of its thing. Tuples would be
    # visited by every full garbage collection, one for each response.
    __slots__ = ("_entries", "_limit", "_serial", "_things")

    def __init__(self) -> None:
        self._entries: list[int] = []
        self._things: dict[int, T] = {}  # by serial number, one for each entry
        self._limit = 64
        self._serial = 0

    def add(self, thing: T) -> None:
        """Add ``thing``. It may be in the heap already."""
        self._serial += 1
        self._things[self._serial] = thing
        heapq.heappush(self._entries, thing.used << _SERIAL_BITS | self._serial)
        if len(self._entries) > self._limit:
            self.tidy()

    def first(self) -> T | None:
        """The least recently used thing that is evictable; it stays in the heap."""
        entries, things = self._entries, self._things
        while entries:
            entry = entries[0]
            serial = entry & _SERIAL_MASK
            thing = things[serial]
            if not thing.evictable:
                heapq.heappop(entries)
                del things[serial]
            elif (latest := thing.used << _SERIAL_BITS | serial) != entry:
                heapq.heapreplace(entries, latest)
            else:
                return thing
        return None

    def tidy(self) -> None:
        """Rebuild the heap without outdated and duplicate entries, so that its size stays within a
        constant factor of the things in it."""
        latest = {thing: serial for serial, thing in self._things.items() if thing.evictable}
        self._things = {serial: thing for thing, serial in latest.items()}
        self._entries = [
            thing.used << _SERIAL_BITS | serial for serial, thing in self._things.items()
        ]
        heapq.heapify(self._entries)
        self._limit = 64 + 4 * len(self._entries)


_SERIAL_BITS: Final = 64  # for more serial numbers than a process can use
_SERIAL_MASK: Final = (1 << _SERIAL_BITS) - 1
