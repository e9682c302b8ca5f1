"""Breadth-first search of a graph that is discovered on the way.

What belongs here: the frontier, a shortest way to everything found, and the limits of a search.
What can happen in a world, and what must hold there, is for those who search: explore.py looks for
states of a session, explore_bridge.py for those of a bridge.

A *world* is a node of the graph, known by its key: worlds with equal keys go on alike, so the first
one stands for all. Worlds are looked into in the order of their discovery, hence by distance from
where the search began, and the moves by which a world was found first are a shortest way to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")


class Search(Generic[K, M]):
    """The worlds found so far, numbered in the order of their discovery.

    Args:
        most: look into no further world once that many were found.
        depth: look into no world that is that many moves away; None: into every one.
    """

    def __init__(self, *, most: int, depth: int | None = None) -> None:
        self._most = most
        self._depth = depth
        self._numbers: dict[K, int] = {}
        self._origins: list[tuple[int, M | None]] = []  # of each: the one before, and the move
        self._depths: list[int] = []
        self._frontier: deque[tuple[int, K]] = deque()
        self._broken_off = False

    def __len__(self) -> int:
        """How many worlds were found."""
        return len(self._origins)

    def __iter__(self) -> Iterator[K]:
        """Their keys, in the order of their discovery."""
        return iter(self._numbers)

    @property
    def ahead(self) -> int:
        """How many of them were not looked into yet."""
        return len(self._frontier)

    @property
    def complete(self) -> bool:
        """Whether every world was looked into, as far as ``depth`` allows."""
        return not self._frontier and not self._broken_off

    def reach(self, key: K, origin: int = -1, move: M | None = None) -> int:
        """The number of the world with ``key``, to which ``move`` leads from ``origin``; without
        them the search begins there."""
        number = self._numbers.setdefault(key, len(self._origins))
        if number == len(self._origins):
            self._origins.append((origin, move))
            self._depths.append(0 if origin < 0 else self._depths[origin] + 1)
            self._frontier.append((number, key))
        return number

    def run(
        self,
        look: Callable[[int, K], bool],
        progress: Callable[[], None] | None = None,
        every: int = 1,
    ) -> None:
        """Call ``look`` with the number and key of each world, for it to ``reach`` what follows;
        it returns False to end the search. ``progress`` is called after ``every`` so many worlds.
        """
        frontier, looked = self._frontier, 0
        while frontier and len(self._origins) < self._most:
            number, key = frontier.popleft()
            if self._depth is not None and self._depths[number] >= self._depth:
                continue
            if not look(number, key):
                self._broken_off = True
                break
            looked += 1
            if progress is not None and looked % every == 0:
                progress()

    def way(self, number: int) -> tuple[int, tuple[M, ...]]:
        """A shortest way to a world: the number of the one where it begins, and the moves."""
        moves: list[M] = []
        while True:
            origin, move = self._origins[number]
            if origin < 0 or move is None:
                return number, tuple(reversed(moves))
            moves.append(move)
            number = origin
