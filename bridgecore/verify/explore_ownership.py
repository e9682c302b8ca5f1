"""Explores how two replicas can come to own the same conversations, over one store.

What belongs here: the search through the worlds of ``ownership_world``, their continuation without
faults (for liveness), and the bounds. How a session treats a turn that it may send is the subject
of explore.py. The search itself is search.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import attrs

from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.ownership.holdings import Holdings
from bridgecore.verify.ownership_value import key, state
from bridgecore.verify.ownership_world import (
    ALL,
    FAULTS,
    PATIENCE,
    REPLICAS,
    Move,
    OwnershipBounds,
    OwnershipProperty,
    OwnershipViolationError,
    Phase,
    World,
    key_of,
)
from bridgecore.verify.search import Search
from bridgecore.verify.store_model import StoreModel


@attrs.frozen
class OwnershipCounterexample:
    """A violation with a shortest path to it."""

    prop: OwnershipProperty
    text: str
    path: tuple[str, ...]


@attrs.define
class OwnershipReport:
    """The result of an exploration."""

    bounds: OwnershipBounds
    worlds: int = 0
    edges: int = 0
    complete: bool = False
    checked: Counter[OwnershipProperty] = attrs.Factory(Counter)
    counterexamples: list[OwnershipCounterexample] = attrs.Factory(list)


# ---------------------------------------------------------------- liveness

_P = OwnershipProperty


class _Probe:
    """Continues worlds without faults, to see what a client that retries gets.

    Many worlds are alike once what is on its way has arrived; each of those is tried once.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._tried: set[tuple[bytes, int, bool]] = set()
        self._waited: set[bytes] = set()

    def look(self, world: World, value: bytes) -> None:
        """Try each replica, with the other one sound, and with the other one dead."""
        if _P.RELEASES_ARE_REPEATED in world.judged and any(map(world.kept, REPLICAS)):
            self._wait(world)
        if not {_P.LIVENESS, _P.EVERY_TURN_IS_RESOLVED} & set(world.judged):
            return
        stored = any(world.store.epoch(key_of(each)) for each in range(world.begun))
        # What is still to happen in this tick, without a fault, leads to a world that is looked at.
        if value in self._known or not world.may_tick() or not (stored or world.turns):
            return
        self._known.add(value)
        # Of two processes with one name, one waits as long as the other one lives.
        for replica in REPLICAS:
            for alone in (True,) if world.bounds.one_name else (False, True):
                trial = world.copy()
                trial.judged = set(world.judged) & {_P.LIVENESS, _P.EVERY_TURN_IS_RESOLVED}
                self._mend(trial, replica, alone)
                self._settle(trial, replica, alone)
                name = (state(trial), replica, alone)
                if name not in self._tried:
                    self._tried.add(name)
                    self._try(trial, replica, alone)

    def _wait(self, world: World) -> None:
        """See whether what could not be released is, although no client asks for it. What was
        reported as failed and has not been carried out is lost."""
        trial = world.copy()
        trial.judged = {_P.RELEASES_ARE_REPEATED}
        trial.messages = {
            query: message
            for query, message in trial.messages.items()
            if not (message.failed and isinstance(message.question, st.Release))
        }
        self._mend(trial, 0, alone=False)
        self._settle(trial, 0, alone=False)
        name = state(trial)
        if name in self._waited:
            return
        self._waited.add(name)
        for _ in range(PATIENCE):
            trial.now += 1
            self._settle(trial, 0, alone=False)
        for replica in REPLICAS:
            kept = trial.kept(replica)
            trial.check(
                _P.RELEASES_ARE_REPEATED,
                not kept,
                *("replica", replica, "does not release", *kept, "in", PATIENCE, "ticks"),
            )

    def _mend(self, trial: World, replica: int, alone: bool) -> None:
        for each in REPLICAS:
            process = trial.own(each)
            if alone and each != replica:
                process.paused = True
                continue
            process.paused = False
            holdings = process.holdings
            ended = holdings is None or holdings.snapshot()[0].stage in _ENDED
            if ended:
                if holdings is not None:
                    trial.of_process("crash", each)
                trial.start(each)
        trial.turns = {
            conversation: turn
            for conversation, turn in trial.turns.items()
            if not trial.processes[turn.replica].paused
        }

    def _settle(self, trial: World, replica: int, alone: bool) -> None:
        """Let everything happen that happens within a tick."""
        busy = True
        while busy:
            busy = False
            for query in list(trial.messages):
                if query in trial.messages:
                    if trial.messages[query].answer is None:
                        trial.carry_out(query)
                        busy = True
                    if query in trial.messages and not trial.processes[query[0]].paused:
                        message = trial.messages.pop(query)
                        trial.deliver(query, message, message.answer)
                        busy = True
            for each in REPLICAS:
                if trial.is_up(each) and trial.is_due(each):
                    trial.call(each, lambda holdings, now: holdings.timeout(now))
                    busy = True
        trial.turns = {  # those that run end, or are cut off
            conversation: turn
            for conversation, turn in trial.turns.items()
            if turn.phase is not Phase.RUNNING
        }

    def _try(self, trial: World, replica: int, alone: bool) -> None:
        left = set(range(trial.begun))
        for _ in range(PATIENCE + 1):
            for conversation in sorted(left):
                if self._gets(trial, conversation, replica, alone):
                    left.discard(conversation)
            if not left and not trial.turns:
                break
            trial.now += 1
            self._settle(trial, replica, alone)
        trial.check(
            _P.EVERY_TURN_IS_RESOLVED, not trial.turns, "still waiting:", *trial.turns.values()
        )
        trial.check(
            _P.LIVENESS,
            not left,
            *(f"replica {replica} does not get {sorted(left)} in {PATIENCE} ticks", alone),
        )

    def _gets(self, trial: World, conversation: int, replica: int, alone: bool) -> bool:
        """Whether a client that asks ``replica`` for ``conversation`` now gets an answer."""
        key = key_of(conversation)
        if trial.store.epoch(key) == 0:
            return True  # it is not stored: there is nothing to get
        answer = self._ask(trial, conversation, replica, alone)
        if not isinstance(answer, st.OwnedElsewhere):
            return answer is True
        other = 1 - replica
        holdings = trial.processes[other].holdings
        if alone or holdings is None or answer.owner != holdings.owner:
            return False
        return self._ask(trial, conversation, other, alone) is True

    def _ask(self, trial: World, conversation: int, replica: int, alone: bool) -> object:
        """What a client gets: True if the replica owns the conversation."""
        key, holdings = key_of(conversation), trial.processes[replica].holdings
        if holdings is not None and holdings.may_send(key, trial.clock(replica)):
            return True
        if conversation in trial.turns:
            return None  # an earlier turn still waits
        trial.submit(conversation, replica, Phase.RESOLVING)
        trial.results = []
        trial.resume(conversation, replica, trial.submitted)
        self._settle(trial, replica, alone)
        holdings = trial.processes[replica].holdings
        if holdings is not None and holdings.may_send(key, trial.clock(replica)):
            return True
        return trial.results[-1] if trial.results else None


_ENDED: Final = (ls.LeaseStage.LEAVING, ls.LeaseStage.LEFT)


# ---------------------------------------------------------------- the search

_SLOW, _PAUSE, _BACK = frozenset({"slow"}), frozenset({"pause"}), frozenset({"roll back"})
_ONCE = OwnershipBounds("anything goes wrong once", 1, 2, 1, FAULTS - _BACK)
_CLOCK = OwnershipBounds("a slow clock", 1, 2, 1, _PAUSE, skew=1)
_NAME = OwnershipBounds("two processes of one name", 1, 2, 1, joined=False, one_name=True)
_ONE_TURN = OwnershipBounds("a slow clock", 1, 1, 1, _PAUSE, skew=1)
OWNERSHIP_BOUNDS: Mapping[str, Sequence[OwnershipBounds]] = {
    "quick": (_ONCE, _ONE_TURN),
    "small": (
        _ONCE,
        _ONE_TURN,
        OwnershipBounds("two conversations", 2, 2, 1, frozenset({"crash"})),
        OwnershipBounds("the store is rolled back", 1, 2, 1, _BACK),
    ),
    "ci": (
        _ONCE,
        _CLOCK,
        _NAME,
        OwnershipBounds("late answers", 1, 3, 1, _SLOW),
        OwnershipBounds("two conversations", 2, 2, 1, FAULTS - _BACK),
        OwnershipBounds("the store is rolled back", 1, 2, 1, _BACK),
        OwnershipBounds("leaving late", 1, 1, 2, frozenset({"drain", "slow", "fail"})),
        OwnershipBounds("two questions fail", 1, 2, 2, frozenset({"fail"})),
    ),
    "nightly": (
        OwnershipBounds("anything goes wrong twice", 1, 2, 2, FAULTS - _BACK),
        OwnershipBounds("slow clocks", 1, 2, 2, frozenset({"pause", "slow"}), skew=1),
        attrs.evolve(_NAME, faults=2),
        OwnershipBounds("late answers", 1, 3, 2, _SLOW),
        OwnershipBounds("two conversations", 2, 3, 1, FAULTS - _BACK),
        OwnershipBounds("the store is rolled back", 1, 3, 2, frozenset({"slow", "roll back"})),
    ),
}


def explore_ownership(
    bounds: OwnershipBounds,
    *,
    make: Callable[..., Holdings] = Holdings,
    store: Callable[[], StoreModel] = StoreModel,
    judged: Collection[OwnershipProperty] = ALL,
    progress: Callable[[OwnershipReport], None] | None = None,
) -> OwnershipReport:
    """Explore replicas made by ``make`` over a store made by ``store``, until the first violation
    of a property in ``judged`` or the end of the bounds."""
    report = OwnershipReport(bounds)
    search: Search[tuple[int, int, bytes], Move] = Search(most=bounds.max_worlds)
    probe = _Probe()
    start = World(bounds, make, store, judged, report.checked)
    worlds = {search.reach(key(start)): start}  # those that are not yet expanded

    def look(number: int, name: tuple[int, int, bytes]) -> bool:
        here = worlds.pop(number)
        move: Move | None = None
        try:
            probe.look(here, name[2])
            for move in list(here.moves()):
                report.edges += 1
                world = here.copy()
                world.happens(move)
                found = len(search)
                if search.reach(key(world), number, move) == found:
                    worlds[found] = world
                move = None
        except OwnershipViolationError as violation:
            way = search.way(number)[1]
            names = tuple(map(str, way if move is None else (*way, move)))
            shown = OwnershipCounterexample(violation.prop, violation.text, names)
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
