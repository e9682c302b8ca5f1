"""A random number generator seeded by a key, so that a run can be repeated exactly.

What belongs here: the generator; what is drawn with it is decided by the callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Rng:
    """SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014),
    seeded by a key of integers. The same key gives the same numbers on every machine and version.
    Different keys, even neighbouring ones, give unrelated numbers, so each turn or client has a
    generator of its own, and removing one does not change what the others draw."""

    __slots__ = ("_state",)

    def __init__(self, *key: int) -> None:
        self._state = 0
        for part in key:
            self._state = (self.bits() ^ part) & _MASK

    def bits(self) -> int:
        """64 random bits."""
        self._state = z = (self._state + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.bits() % (high - low + 1)

    def one_in(self, n: int) -> bool:
        """True once in ``n`` times."""
        return self.bits() % n == 0

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``, each as likely as the others."""
        return options[self.bits() % len(options)]
