"""Every state that a session can reach, and every event that it can meet there.

What belongs here: the environment (which events can happen when), the canonical form of a state,
the search, and the report. What must hold is properties.py; this file only looks for states and
shows the shortest way to one in which something does not hold.

Theory of operation. A *world* is a session's state and the reference model that watches it. The
search is breadth-first from a closed session, so the first way found to a world is a shortest one.
Time is discrete: every duration is a small number of ticks that keeps the order of the real ones,
one tick passes at a time, and at a time at which a deadline is due any other event may still come
first. Worlds are folded by symmetry, so that the search ends by itself, without a bound on its
depth: deadlines are kept relative, turns are named by their place, responses by what the socket
knows of them, connection generations by whether an older one can still speak. What is bounded is
in ``Bounds``, and only there.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

import attrs

from bridgecore.recovery import events as ev
from bridgecore.recovery.errors import BridgecoreError
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    Closed,
    ErrorFrame,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.policy import Budgets, Policy, Timeouts
from bridgecore.recovery.rules import (
    EVENT_KEYS,
    RULES,
    SESSION_TIMERS,
    SPURIOUS_DEADLINE,
    STALE_GENERATION,
    EventKey,
    Handling,
    Transition,
    step,
)
from bridgecore.recovery.state import Phase, Running, SessionState, Waiting
from bridgecore.recovery.timers import Timers
from bridgecore.verify.properties import Model, Property, ViolationError

Step = Callable[[Policy, SessionState, Event, int], Transition]


@attrs.frozen
class Bounds:
    """What an exploration leaves out. Everything that is not bounded here is explored."""

    name: str
    waiting: int  # turns that may wait at a time
    standings: tuple[Standing, ...]
    timeouts: Timeouts  # in ticks
    refusals: int  # bounded refusals of one anchor
    remote: bool = False  # begin with a session that another replica owns, too
    max_states: int = 5_000_000


_TICKS = Timeouts(connect=1, created=2, idle=2, turn=5, lifetime=4, expiry=3)
_FINE = Timeouts(connect=1, created=2, idle=3, turn=7, lifetime=6, expiry=4)
BOUNDS = {
    "small": Bounds("small", 0, tuple(Standing), _TICKS, 1, remote=True),
    "ci": Bounds("ci", 1, tuple(Standing), _TICKS, 2, remote=True),
    "nightly": Bounds("nightly", 2, tuple(Standing), _FINE, 2, remote=True),
}


@attrs.frozen(cache_hash=True)
class World:
    """A session's state and the books of the model that watches it. Times are relative to now."""

    state: SessionState
    model: Model


@attrs.frozen
class Move:
    """One thing that can happen: its name, and the event; None: a tick passes."""

    label: str
    event: Event | None


@attrs.frozen
class Counterexample:
    """A shortest way to a violation: the moves, and what the last of them broke."""

    prop: Property | None  # None: the rules raised an error
    text: str
    path: tuple[str, ...]


@attrs.define
class Report:
    """What an exploration found."""

    policy: str
    bounds: Bounds
    states: int = 0
    edges: int = 0
    complete: bool = False
    rules_fired: Counter[str] = attrs.Factory(Counter)
    pairs_met: set[tuple[Phase, EventKey]] = attrs.Factory(set)
    counterexamples: list[Counterexample] = attrs.Factory(list)

    @property
    def rules_never_fired(self) -> list[str]:
        """Rules that can apply but never did."""
        able = {rule.id for rule in RULES.values() if rule.handling is not Handling.ILLEGAL}
        return sorted((able | {STALE_GENERATION, SPURIOUS_DEADLINE}) - set(self.rules_fired))

    @property
    def pairs_never_met(self) -> list[tuple[Phase, EventKey]]:
        """Ruled pairs, other than illegal ones, in which no event was met."""
        return [
            pair
            for pair, rule in RULES.items()
            if rule.handling is not Handling.ILLEGAL and pair not in self.pairs_met
        ]


# ---------------------------------------------------------------- the environment

_NOT_FOUND = ErrorFrame(status=400, code=NOT_FOUND_CODE)
_LIMIT = ErrorFrame(status=400, code="websocket_connection_limit_reached")
_INVALID = ErrorFrame(status=400, code="invalid_prompt")
_SERVER = ErrorFrame(code="server_error")
_CLOSED = Closed(1006)


def moves(world: World, bounds: Bounds) -> Iterator[Move]:
    """Everything that can happen in ``world``, each with a name that means the same everywhere."""
    state = world.state
    generation = state.generation
    yield from _turns(state, bounds)
    deadline = state.timers.next()
    if deadline is None or deadline.at > 0:
        if deadline is not None:
            yield Move("a tick passes", None)
    else:
        yield Move(f"deadline {deadline.reason.value}", ev.DeadlineReached(deadline.reason))
    for timer in SESSION_TIMERS:
        at = state.timers.get(timer)
        if at is None or at > 0:
            yield Move(f"spurious deadline {timer.value}", ev.DeadlineReached(timer))
    yield Move("evict", ev.EvictionRequested())
    phase = state.phase
    if phase is Phase.RECONNECTING:
        yield Move("opened", ev.ConnectionOpened(generation))
        yield Move("connect fails", ev.ConnectionLost(generation, Unreachable("refused")))
        yield Move("upgrade 401", ev.ConnectionLost(generation, UpgradeRefused(401)))
    elif phase is not Phase.CLOSED:
        yield Move("lost", ev.ConnectionLost(generation, _CLOSED))
        yield from _upstream(state)
    if generation > 0 and phase is Phase.CLOSED:
        # The socket was closed from here, but something of it was on its way.
        yield Move("late loss", ev.ConnectionLost(generation, _CLOSED))
        yield Move("late open", ev.ConnectionOpened(generation))
        yield from _answers(generation)
    if generation > 1:
        yield Move("stale loss", ev.ConnectionLost(generation - 1, _CLOSED))
        yield Move("stale created", ev.ResponseCreated(generation - 1))


def _menu(world: World, bounds: Bounds, known: dict[object, tuple[Move, ...]]) -> tuple[Move, ...]:
    """``moves``, once for all worlds that look alike to it."""
    state = world.state
    key = (
        state.phase.value,
        state.generation,
        state.live_anchor is None,
        state.running is None,
        len(state.waiting),
        tuple([(timer.value, at > 0) for timer, at in state.timers.entries]),
        None if (first := state.timers.next()) is None else first.reason.value,
    )
    found = known.get(key)
    if found is None:
        found = known[key] = tuple(moves(world, bounds))
    return found


def _turns(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    running = state.running
    taken = [waiting.turn.id for waiting in state.waiting]
    if running is not None:
        taken.append(running.turn.id)
    fresh = max(taken, default=0) + 1
    if len(state.waiting) <= bounds.waiting:
        for standing in bounds.standings:
            if standing is Standing.UNANCHORED:
                yield Move("submit unanchored", ev.TurnSubmitted(Turn(fresh)))
                continue
            yield Move(
                f"submit {standing.value} old", ev.TurnSubmitted(Turn(fresh, standing, "old"))
            )
            if state.live_anchor is not None and standing is not Standing.UNKNOWN:
                turn = Turn(fresh, standing, state.live_anchor)
                yield Move(f"submit {standing.value} tip", ev.TurnSubmitted(turn))
    if running is not None:
        yield Move("running turn leaves", ev.TurnAbandoned(running.turn.id))
        yield Move("reader stalls", ev.RelayPaused(running.turn.id, True))
        yield Move("reader goes on", ev.RelayPaused(running.turn.id, False))
    for index, waiting in enumerate(state.waiting):
        yield Move(f"waiting turn {index + 1} leaves", ev.TurnAbandoned(waiting.turn.id))
    yield Move("a turn that is over leaves", ev.TurnAbandoned(fresh))
    yield Move("reader of a turn that is over stalls", ev.RelayPaused(fresh, True))


def _upstream(state: SessionState) -> Iterator[Move]:
    generation = state.generation
    yield Move("frame sent", ev.FrameSent(generation))
    yield from _answers(generation)
    for name, cause in (
        ("not found", _NOT_FOUND),
        ("connection limit", _LIMIT),
        ("invalid", _INVALID),
        ("server error", _SERVER),
    ):
        yield Move(f"refused: {name}", ev.UpstreamRefused(generation, cause))


def _answers(generation: int) -> Iterator[Move]:
    yield Move("created", ev.ResponseCreated(generation))
    yield Move("output", ev.OutputReceived(generation))
    yield Move("progress", ev.OutputReceived(generation, bearing=False))
    for outcome in Outcome:
        yield Move(outcome.value, ev.ResponseEnded(generation, outcome, "new"))


# ---------------------------------------------------------------- the canonical form


def canonical(state: SessionState, model: Model, passed: int) -> World:
    """The same world, named by symmetry, ``passed`` ticks later."""
    tip = state.live_anchor

    def name(anchor: str | None) -> str | None:
        return None if anchor is None else "tip" if anchor == tip else "old"

    numbers: dict[int | None, int] = {}
    running = state.running
    if running is not None:
        numbers[running.turn.id] = 1
        turn = running.turn
        running = Running(
            Turn(1, turn.standing, name(turn.anchor)),
            running.deadline - passed,
            running.phase,
            running.form,
            running.replays,
            running.recovered,
            running.fallback,
            running.paused,
        )
    waiting = []
    for index, entry in enumerate(state.waiting):
        numbers[entry.turn.id] = index + 2
        turn = Turn(index + 2, entry.turn.standing, name(entry.turn.anchor))
        waiting.append(Waiting(turn, entry.deadline - passed))
    entries = sorted(
        ((timer, at - passed) for timer, at in state.timers.entries), key=lambda e: e[0].value
    )
    generation = min(state.generation, 2)
    folded = SessionState(
        state.lifecycle,
        generation,
        name(tip),
        running,
        tuple(waiting),
        _folded(state.refusals, name),
        state.worn,
        state.remote,
        Timers(tuple(entries)),
    )
    watched = model.folded(generation, name, numbers)
    return World(folded, watched)


# ---------------------------------------------------------------- the search


def _folded(
    counts: tuple[tuple[str | None, int], ...], name: Callable[[str | None], str | None]
) -> tuple[tuple[str | None, int], ...]:
    """Counts by anchor, once anchors are folded: of those that fold together, the largest."""
    folded: dict[str | None, int] = {}
    for anchor, count in counts:
        key = name(anchor)
        folded[key] = max(count, folded.get(key, 0))
    return tuple(sorted(folded.items(), key=lambda item: str(item[0])))


def explore(
    policy: Policy,
    bounds: Bounds,
    *,
    stepper: Step = step,
    most: int = 1,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Explore ``policy`` within ``bounds``.

    Args:
        stepper: the transition function; a mutant's, when mutants are explored.
        most: stop looking for a property's counterexample once it has one, and stop altogether
            once this many properties have one.
        progress: called every few thousand states.
    """
    explored = attrs.evolve(
        policy,
        timeouts=bounds.timeouts,
        budgets=attrs.evolve(
            policy.budgets,
            waiting=bounds.waiting,
            refusals=min(policy.budgets.refusals, bounds.refusals),
        ),
    )
    budgets: Budgets = explored.budgets
    report = Report(policy.name, bounds)
    model = Model(replays=1, bounded=budgets.refusals, waiting=bounds.waiting)
    roots = [World(SessionState(), model)]
    if bounds.remote:
        roots.append(World(SessionState(remote=True), attrs.evolve(model, remote=True)))
    came: dict[World, tuple[World, str] | None] = dict.fromkeys(roots)
    menu: dict[object, tuple[Move, ...]] = {}
    broken: set[Property | None] = set()
    queue = deque(roots)
    while queue:
        if len(came) >= bounds.max_states:
            break
        world = queue.popleft()
        for move in _menu(world, bounds, menu):
            report.edges += 1
            try:
                after = _happen(explored, world, move, stepper, report)
            except ViolationError as violation:
                prop: Property | None = violation.prop
                text = str(violation)
            except BridgecoreError as error:
                prop, text = None, str(error)
            else:
                if after is not None:
                    origin = (world, move.label)
                    if came.setdefault(after, origin) is origin:
                        queue.append(after)
                continue
            if prop not in broken:
                broken.add(prop)
                path = (*_path(came, world), move.label)
                report.counterexamples.append(Counterexample(prop, text, path))
                if len(broken) >= most:
                    report.states = len(came)
                    return report
        if progress is not None and len(came) % 4096 < 8:
            report.states = len(came)
            progress(report)
    report.states = len(came)
    report.complete = not queue
    return report


def _happen(
    policy: Policy, world: World, move: Move, stepper: Step, report: Report
) -> World | None:
    """The world after ``move``; None if it is the same."""
    state = world.state
    if move.event is None:
        return canonical(state, world.model, 1)
    event = move.event
    transition = stepper(policy, state, event, 0)
    rule = transition.rule
    report.rules_fired[rule] += 1
    ignored = rule in _IGNORED
    if rule not in _BEFORE_THE_TABLE:
        key: EventKey = event.timer if isinstance(event, ev.DeadlineReached) else type(event)
        report.pairs_met.add((state.phase, key))
    model = world.model.after(event, transition.effects, ruled=not ignored)
    if transition.state is state and model is world.model:
        return None
    deadline = transition.state.timers.next()
    if deadline is not None and deadline.at < 0:
        raise BridgecoreError(f"{deadline.reason.value} is due before now")
    return canonical(transition.state, model, 0)


_BEFORE_THE_TABLE = frozenset({STALE_GENERATION, SPURIOUS_DEADLINE})
_IGNORED = _BEFORE_THE_TABLE | {
    rule.id for rule in RULES.values() if rule.handling is Handling.IGNORED
}


def _path(came: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    labels = []
    step_before = came[world]
    while step_before is not None:
        world, label = step_before
        labels.append(label)
        step_before = came[world]
    return tuple(reversed(labels))


PAIRS = len(Phase) * len(EVENT_KEYS)
