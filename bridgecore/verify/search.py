"""Breadth-first search of a graph that is generated on demand.

What belongs here: the frontier, a shortest path to each node, and the limits of a search. What can
happen in a world and what must hold there is defined by the callers: explore.py searches the states
of a session, explore_bridge.py those of a bridge.

A *world* is a node of the graph, identified by its key: worlds with equal keys have the same
future, so only the first one found is expanded. Worlds are expanded in the order of their
discovery, hence by distance from the start, so the moves by which a world was first found are a
shortest path to it.
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
        most: stop once that many worlds were found.
        depth: do not expand worlds that many moves away from the start; None: no limit.
    """

    def __init__(self, *, most: int, depth: int | None = None) -> None:
        self._most = most
        self._depth = depth
        self._numbers: dict[K, int] = {}
        # for each world: its predecessor, and the move
        self._origins: list[tuple[int, M | None]] = []
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
        """How many of them are not yet expanded."""
        return len(self._frontier)

    @property
    def complete(self) -> bool:
        """Whether every world was expanded, as far as ``depth`` allows."""
        return not self._frontier and not self._broken_off

    def reach(self, key: K, origin: int = -1, move: M | None = None) -> int:
        """The number of the world with ``key``, added if it is new. ``move`` leads to it from the
        world ``origin``; without them it is a start."""
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
        """Expand each world: call ``look`` with its number and key, which calls ``reach`` for each
        successor and returns False to stop. ``progress`` is called after each ``every`` worlds."""
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
        """A shortest path to a world: the number of the start, and the moves."""
        moves: list[M] = []
        while True:
            origin, move = self._origins[number]
            if origin < 0 or move is None:
                return number, tuple(reversed(moves))
            moves.append(move)
            number = origin
