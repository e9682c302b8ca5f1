"""Explores two bridges that forward turns to each other, over one store.

What belongs here: the search through the worlds of ``pair_world``, their continuation without
faults (for liveness), and the bounds. How two replicas come to own a conversation is explored in
more detail in explore_ownership.py, what one bridge does with its turns in explore_bridge.py. The
search itself is search.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import attrs

from bridgecore.bridge import Bridge
from bridgecore.verify.pair_key import Key, key_of
from bridgecore.verify.pair_moves import at_rest, moves, settle, started, urgent_move
from bridgecore.verify.pair_properties import ALL, PairProperty, PairViolationError
from bridgecore.verify.pair_records import REPLICAS, TICKS, Move, PairBounds
from bridgecore.verify.pair_world import World
from bridgecore.verify.search import Search


@attrs.frozen
class PairCounterexample:
    """A violation with a shortest path to it."""

    prop: PairProperty
    text: str
    path: tuple[str, ...]


@attrs.define
class PairReport:
    """The result of an exploration."""

    bounds: PairBounds
    worlds: int = 0
    edges: int = 0
    complete: bool = False
    checked: Counter[PairProperty] = attrs.Factory(Counter)
    counterexamples: list[PairCounterexample] = attrs.Factory(list)


_P = PairProperty
Way = tuple[Move, ...]

# ---------------------------------------------------------------- liveness

# In ticks: the lease of a dead owner, or of an earlier process of the same name, ends; a question
# that was lost is given up and asked again, twice.
PATIENCE: Final = TICKS.ttl + 2 * (TICKS.timeout + TICKS.retry)


class Probe:
    """Continues worlds without faults, to see what a client that retries gets.

    Only worlds at rest are continued. In any other there is something that happens sooner or later,
    such as an answer of the upstream, and it leads to a world that is looked at, too.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def look(self, world: World, value: bytes) -> None:
        """Let each client ask at each replica."""
        if not {_P.LIVENESS, _P.ONE_END} & set(world.judged) or value in self._known:
            return
        self._known.add(value)
        if not at_rest(world):
            return
        for replica in filter(world.takes_turns, REPLICAS):
            for number, client in enumerate(world.clients):
                if not client.over:
                    trial = world.copy()
                    trial.judged = set(world.judged) & {_P.LIVENESS, _P.ONE_END}
                    self._answered(trial, number, replica)

    def _settle(self, trial: World) -> None:
        """Let everything happen that happens within a tick; the upstream answers."""
        while True:
            move = urgent_move(trial)
            if move is None:
                move = next(filter(_is_sound, moves(trial)), None)
            if move is None:
                return
            trial.happens(move)

    def _answered(self, trial: World, number: int, replica: int) -> None:
        """Let a client ask until it gets an answer."""
        tries = 0
        for _ in range(PATIENCE + 1):
            if trial.clients[number].attempt is None:
                break
            self._tick(trial)
        trial.check(_P.ONE_END, trial.clients[number].attempt is None, "an attempt does not end")
        before, began = trial.clients[number], trial.now
        if before.over:
            return
        while trial.now - began <= PATIENCE:
            tries += 1
            trial.happens(Move("ask", (number, replica)))
            self._settle(trial)
            while trial.clients[number].attempt is not None and trial.now - began <= PATIENCE:
                self._tick(trial)
            client = trial.clients[number]
            if client.turns > before.turns:
                trial.checked[_P.LIVENESS] += 1
                return
            error = trial.errors.get(number)
            wait = 1 if error is None else error.retry_after or 0
            if client.over or (error is not None and not wait):
                break
            for _ in range(wait):
                self._tick(trial)
        gone = before.last is not None and not trial.is_stored(before.last)
        trial.check(
            _P.LIVENESS,
            gone,
            *("client", number, "gets no answer of replica", replica, "in", tries, "tries and"),
            *(trial.now - began, "ticks:", trial.errors.get(number)),
        )

    def _tick(self, trial: World) -> None:
        trial.happens(Move("tick"))
        self._settle(trial)


def _is_sound(move: Move) -> bool:
    return move.what in ("opened", "completed")


# ---------------------------------------------------------------- the search


def _both(one: str, other: str) -> PairBounds:
    """Both go wrong, in any order."""
    return PairBounds(f"{one} and {other}", 1, 2, 3, 2, frozenset({one, other}))


_RETRIED = PairBounds("anything goes wrong once", 1, 2, 3, 1)
PAIR_BOUNDS: Mapping[str, Sequence[PairBounds]] = {
    "quick": (PairBounds("a replica crashes", 1, 2, 2, 1, frozenset({"crash"})),),
    "small": (attrs.evolve(_RETRIED, attempts=2),),
    "ci": (
        _RETRIED,
        _both("slow", "evict"),
        _both("drain", "pause"),
        _both("cut", "break"),
        PairBounds("two conversations", 2, 2, 3, 1, frozenset({"drain", "evict"})),
    ),
    "nightly": (
        attrs.evolve(_RETRIED, name="three turns", turns=3),
        *(_both("slow", other) for other in ("cut", "drain", "evict", "pause")),
        *(_both("crash", other) for other in ("fail", "lose", "pause")),
        PairBounds("two conversations", 2, 2, 3, 1, frozenset({"crash", "lose"})),
    ),
}


def explore_pair(
    bounds: PairBounds,
    *,
    make: Callable[..., Bridge] = Bridge,
    judged: Collection[PairProperty] = ALL,
    progress: Callable[[PairReport], None] | None = None,
) -> PairReport:
    """Explore bridges made by ``make``, until the first violation of a property in ``judged`` or
    the end of the bounds."""
    report = PairReport(bounds)
    search: Search[Key, Way] = Search(most=bounds.max_worlds)
    probe = Probe()
    start = started(bounds, make, judged, report.checked)
    worlds = {search.reach(key_of(start)): start}  # those that are not yet expanded

    def look(number: int, name: Key) -> bool:
        here = worlds.pop(number)
        world: World | None = None
        try:
            probe.look(here, name[2])
            for move in moves(here):
                report.edges += 1
                world = here.copy()
                world.happens(move)
                settle(world)
                found = len(search)
                if search.reach(key_of(world), number, tuple(world.trail)) == found:
                    worlds[found] = world
                world = None
        except PairViolationError as violation:
            way = [move for moves in search.way(number)[1] for move in moves]
            if world is not None:
                way += world.trail
            names = tuple(map(str, way))
            shown = PairCounterexample(violation.prop, violation.text, names)
            report.counterexamples.append(shown)
            return False
        return True

    def show() -> None:
        report.worlds = len(search)
        if progress is not None:
            progress(report)

    search.run(look, show, 1000)
    report.worlds = len(search)
    report.complete = search.complete
    return report
