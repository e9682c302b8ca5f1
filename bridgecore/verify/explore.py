"""Every state that a session can reach, and every event that it can meet there.

What belongs here: the environment (which events can happen when), the canonical form of a state,
the search, and the report. What must hold is properties.py; this file only looks for states and
shows the shortest way to one in which something does not hold.

Theory of operation. A *world* is a session's state and the reference model that watches it. The
search is breadth-first from a closed session, so the first way found to a world is a shortest one.
Time is discrete: every duration is a small number of ticks, one tick passes at a time, and at a
time at which a deadline is due any other event may still come first. Worlds are folded by symmetry,
so that the search ends by itself, without a bound on its depth: deadlines are kept relative, turns
are named by their place, responses by what the socket knows of them, connection generations by
whether an older one can still speak. A move that a session ignores without a change of its state is
tried once for all worlds that look alike to it (``_signature``). What is bounded is in ``Bounds``,
and only there.

Liveness is judged on the explored graph: one move out of each world is what a healthy upstream
would do next, and along these moves every turn has to end, and every client that retries as it is
told has to be answered.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Answer
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    Closed,
    ErrorFrame,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.policy import Policy, Situation, Timeouts
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
from bridgecore.recovery.state import Phase, SessionState, Waiting
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timers
from bridgecore.verify.properties import Model, Property, Terms, ViolationError
from bridgecore.verify.scenario import command_of, describe, replay

Step = Callable[[Policy, SessionState, Event, int], Transition]


@attrs.frozen
class Bounds:
    """What an exploration leaves out. Everything that is not bounded here is explored."""

    name: str
    waiting: int  # turns that may wait at a time
    standings: tuple[Standing, ...]
    timeouts: Timeouts  # in ticks
    refusals: int  # bounded refusals of one anchor
    queued: tuple[Standing, ...] = (Standing.UNANCHORED, Standing.BOUND)  # of turns that wait
    remote: bool = True  # begin with a session that another replica owns, too
    causes: bool = True  # several kinds of lost connects and of refusals, else one of each
    depth: int | None = None  # moves from the beginning; None: to the end
    max_states: int = 5_000_000


_ALL = tuple(Standing)
_SHORT = Timeouts(connect=1, created=1, idle=1, turn=1, lifetime=1, expiry=1)
_FINE = Timeouts(connect=1, created=2, idle=2, turn=4, lifetime=4, expiry=2)
BOUNDS = {
    "small": Bounds("small", 0, _ALL, _SHORT, 1),
    "ci": Bounds("ci", 1, _ALL, _SHORT, 1),
    "nightly": Bounds("nightly", 1, _ALL, _FINE, 2),
}


@attrs.frozen
class Move:
    """One thing that can happen: its name, and the event; None: a tick passes."""

    label: str
    event: Event | None


@attrs.frozen
class Counterexample:
    """A shortest way to a violation: the moves, and what the last of them broke."""

    prop: Property
    text: str
    path: tuple[str, ...]
    remote: bool = False  # it begins with a session that another replica owns


@attrs.define
class Report:
    """What an exploration found."""

    policy: str
    bounds: Bounds
    states: int = 0
    edges: int = 0
    ahead: int = 0  # worlds that were found and not yet looked into
    complete: bool = False
    rules_fired: Counter[str] = attrs.Factory(Counter)
    pairs_met: set[tuple[Phase, EventKey]] = attrs.Factory(set)
    checked: Counter[Property] = attrs.Factory(Counter)
    counterexamples: list[Counterexample] = attrs.Factory(list)

    @property
    def broken(self) -> dict[Property, Counterexample]:
        """The properties that do not hold, each with its shortest counterexample."""
        return {found.prop: found for found in self.counterexamples}

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


PAIRS = len(Phase) * len(EVENT_KEYS)


# ---------------------------------------------------------------- the environment

_NOT_FOUND = ErrorFrame(status=400, code=NOT_FOUND_CODE)
_LIMIT = ErrorFrame(status=400, code="websocket_connection_limit_reached")
_INVALID = ErrorFrame(status=400, code="invalid_prompt")
_CLOSED = Closed(1006)


def moves(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    """Everything that can happen in ``state``, each with a name that means the same everywhere."""
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
        if bounds.causes:
            yield Move("upgrade 401", ev.ConnectionLost(generation, UpgradeRefused(401)))
    elif phase is not Phase.CLOSED:
        yield Move("lost", ev.ConnectionLost(generation, _CLOSED))
        yield from _upstream(state, bounds)
    if generation > 0 and phase is Phase.CLOSED:
        # The socket was closed from here, but something of it was on its way.
        yield Move("late loss", ev.ConnectionLost(generation, _CLOSED))
        yield Move("late open", ev.ConnectionOpened(generation))
    if generation > 0 and phase in (Phase.CLOSED, Phase.RECONNECTING):
        yield from _upstream(state, bounds)
    if generation > 1:
        yield Move("stale loss", ev.ConnectionLost(generation - 1, _CLOSED))
        yield Move("stale created", ev.ResponseCreated(generation - 1))


def _turns(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    running = state.running
    taken = [waiting.turn.id for waiting in state.waiting]
    if running is not None:
        taken.append(running.turn.id)
    fresh = max(taken, default=0) + 1
    if len(state.waiting) <= bounds.waiting:
        allowed = bounds.standings if running is None else bounds.queued
        for standing in allowed:
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


def _upstream(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    generation = state.generation
    yield Move("frame sent", ev.FrameSent(generation))
    yield from _answers(generation)
    yield Move("refused: not found", ev.UpstreamRefused(generation, _NOT_FOUND))
    yield Move("refused: connection limit", ev.UpstreamRefused(generation, _LIMIT))
    yield Move("refused: invalid", ev.UpstreamRefused(generation, _INVALID))


def _answers(generation: int) -> Iterator[Move]:
    yield Move("created", ev.ResponseCreated(generation))
    yield Move("output", ev.OutputReceived(generation))
    yield Move("progress", ev.OutputReceived(generation, bearing=False))
    for outcome in Outcome:
        yield Move(outcome.value, ev.ResponseEnded(generation, outcome, "new"))


# ---------------------------------------------------------------- the canonical form


class _Naming(NamedTuple):
    """How what a state names is called from now on, for the books to follow."""

    generation: int
    tip: str | None  # the response that the socket knows; any other is an old one
    numbers: tuple[tuple[int | None, int], ...]  # of turns, and what they are called
    passed: int  # ticks
    plain: bool = False  # responses and turns keep their names


_SAME = _Naming(0, None, (), 0)  # all names stay, the books are not touched


def canonical(state: SessionState, model: Model, passed: int) -> tuple[SessionState, Model]:
    """The same world, named by symmetry, ``passed`` ticks later."""
    folded, naming = _folded(state, passed)
    return folded, _renamed(model, naming)


def _folded(state: SessionState, passed: int) -> tuple[SessionState, _Naming]:
    """``state``, named by symmetry, ``passed`` ticks later; and the naming."""
    tip = state.live_anchor

    def name(anchor: str | None) -> str | None:
        return None if anchor is None else "tip" if anchor == tip else "old"

    numbers: list[tuple[int | None, int]] = []
    running = state.running
    if running is not None:
        numbers.append((running.turn.id, 1))
        running = attrs.evolve(
            running,
            turn=Turn(1, running.turn.standing, name(running.turn.anchor)),
            deadline=running.deadline - passed,
        )
    waiting = []
    for number, entry in enumerate(state.waiting, 2):
        numbers.append((entry.turn.id, number))
        turn = Turn(number, entry.turn.standing, name(entry.turn.anchor))
        waiting.append(Waiting(turn, entry.deadline - passed))
    refusals: dict[str | None, int] = {}
    for anchor, count in state.refusals:
        # The largest count of those that fold together: as if there were one old response.
        refusals[name(anchor)] = max(count, refusals.get(name(anchor), 0))
    generation = min(state.generation, 2)
    folded = SessionState(
        state.lifecycle,
        generation,
        name(tip),
        running,
        tuple(waiting),
        tuple(sorted(refusals.items(), key=str)),
        state.worn,
        state.remote,
        Timers(tuple([(timer, at - passed) for timer, at in state.timers.entries])),
    )
    return folded, _Naming(generation, tip, tuple(numbers), passed)


def _is_canonical(state: SessionState) -> bool:
    """Whether the names are those of ``canonical`` already; False if that is not quickly seen."""
    running, waiting = state.running, state.waiting
    if state.generation > 2 or len(state.refusals) > 1 or len(waiting) > 1:
        return False
    if running is None:
        return not waiting
    return running.turn.id == 1 and (not waiting or waiting[0].turn.id == 2)


def _renamed(model: Model, naming: _Naming) -> Model:
    def name(anchor: str | None) -> str | None:
        return None if anchor is None else "tip" if anchor == naming.tip else "old"

    if naming.plain:
        same: dict[int | None, int] = {turn.id: turn.id for turn in model.turns}
        return model.folded(naming.generation, lambda anchor: anchor, same, naming.passed)
    return model.folded(naming.generation, name, dict(naming.numbers), naming.passed)


def _later(state: SessionState, passed: int) -> SessionState:
    running = state.running
    return attrs.evolve(
        state,
        running=running and attrs.evolve(running, deadline=running.deadline - passed),
        waiting=tuple([Waiting(w.turn, w.deadline - passed) for w in state.waiting]),
        timers=Timers(tuple([(timer, at - passed) for timer, at in state.timers.entries])),
    )


def key_of(state: SessionState) -> tuple[object, ...]:
    """Equal for equal states. Names instead of enumerations and values: hashed much faster."""
    running = state.running
    turn: tuple[object, ...] | None = None
    if running is not None:
        turn = (
            running.turn.id,
            running.turn.standing._value_,
            running.turn.anchor,
            running.deadline,
            running.phase._value_,
            None if running.form is None else running.form._value_,
            running.replays,
            tuple(sorted([kind._value_ for kind in running.recovered])),
            None if running.fallback is None else running.fallback._value_,
            running.paused,
        )
    return (
        state.lifecycle._value_,
        state.generation,
        state.live_anchor,
        turn,
        tuple([(w.turn.id, w.turn.standing._value_, w.turn.anchor, w.deadline)
               for w in state.waiting]),
        state.refusals,
        state.worn,
        state.remote,
        tuple([(timer._value_, at) for timer, at in state.timers.entries]),
    )  # fmt: skip


# ---------------------------------------------------------------- the search


def bounded(policy: Policy, bounds: Bounds) -> Policy:
    """``policy`` with the times and budgets of ``bounds``."""
    budgets = attrs.evolve(
        policy.budgets,
        waiting=bounds.waiting,
        refusals=min(policy.budgets.refusals, bounds.refusals),
    )
    return attrs.evolve(policy, timeouts=bounds.timeouts, budgets=budgets)


_OWNER_ROWS = (
    Situation.OWNER_LOST,
    Situation.OWNER_LOST_DISPATCHED,
    Situation.OWNER_LOST_OUTPUT,
)


def terms_of(policy: Policy) -> Terms:
    """What the model has to be told of ``policy``: its numbers, and whether it is one that lets
    other replicas take over sessions of our own."""
    hands_over = any(
        remedy.answer is Answer.OWNER_UNREACHABLE
        for (situation, _), remedy in policy.cells.items()
        if situation not in _OWNER_ROWS
    )
    budgets = policy.budgets
    return Terms(
        policy.timeouts, budgets.refusals, budgets.waiting, budgets.replays, hands_over=hands_over
    )


def explore(
    policy: Policy,
    bounds: Bounds,
    *,
    stepper: Step = step,
    most: int = 1,
    reduced: bool = True,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Explore ``policy`` within ``bounds``.

    Args:
        stepper: the transition function; a mutant's, when mutants are explored.
        most: keep the shortest counterexample of each property, and stop altogether once this many
            properties have one.
        reduced: False: name nothing by symmetry but the times, and try every move in every world;
            ``bounds.depth`` has to end it. ``states`` counts canonical ones all the same.
        progress: called every few thousand states.
    """
    return _Search(bounded(policy, bounds), bounds, stepper, most, reduced, progress).run()


_DONE, _TOLD, _RETRY = "done", "told", "retry"
_Ending = tuple[int, str | None]  # the world after a move, and how the turn that ran ended
_BITS = 32  # for each of the two numbers that are kept in one
_MASK = (1 << _BITS) - 1


@attrs.frozen(eq=False)
class _Edge:
    """What a session does when ``move`` happens in a state, whatever its books say.

    ``outcome`` is all that the books have to be told of it, by number; ``after`` the state that it
    leads to, by number: None when the session is forgotten. ``ended``: how the turn ended that the
    move is about.
    """

    move: Move
    outcome: int
    after: int | None
    inert: bool = False  # it kept its very state and did nothing but to say so, or to reject a turn
    ended: str | None = None
    error: ViolationError | None = None


@attrs.frozen(eq=False)
class _Outcome:
    """What the books are told: the event (None: a tick passes), what was done about it, the next
    deadline, and how things are called from now on."""

    event: Event | None
    effects: tuple[fx.Effect, ...]
    deadline: Deadline | None
    naming: _Naming


class _Search:
    """One exploration.

    States and books are kept once each, by number, and a world is a pair of numbers: most worlds
    are made of a state and of books that were met before, in other company, and then what happens
    there is known already.
    """

    def __init__(
        self,
        policy: Policy,
        bounds: Bounds,
        stepper: Step,
        most: int,
        reduced: bool,
        progress: Callable[[Report], None] | None,
    ) -> None:
        self.policy = policy
        self.bounds = bounds
        self.stepper = stepper
        self.most = most
        self.reduced = reduced
        self.progress = progress
        self.report = Report(policy.name, bounds)
        self.states: list[SessionState] = []
        self.state_numbers: dict[object, int] = {}
        self.edges: list[tuple[_Edge, ...] | None] = []  # by state
        self.cures: list[str | None] = []  # by state: the move that a healthy upstream makes next
        self.models: list[Model] = []
        self.model_numbers: dict[object, int] = {}
        self.outcomes: dict[object, int] = {}
        self.told: list[_Outcome] = []  # by number
        self.after: dict[int, int | ViolationError] = {}  # books and outcome, to books
        self.found: dict[int, int] = {}  # worlds, to their index in the order of their discovery
        self.origins: list[tuple[int, str]] = []  # of each world: the one before, and the move
        self.depths: list[int] = []
        self.queue: deque[tuple[int, int, int]] = deque()
        self.healthy: dict[int, _Ending] = {}
        self.quiet: dict[int, dict[str, _Ending]] = {}  # by world without turns and submission
        self.menus: dict[object, tuple[Move, ...]] = {}
        self.resent: dict[tuple[object, ...], bool] = {}
        self.broken: set[Property] = set()

    def run(self) -> Report:
        """Explore, then judge liveness."""
        report, bounds = self.report, self.bounds
        terms = terms_of(self.policy)
        self._begin(SessionState(), Model(terms))
        if bounds.remote:
            self._begin(SessionState(remote=True), Model(terms, remote=True))
        queue, ticks = self.queue, 0
        while queue and len(self.found) < bounds.max_states:
            index, state, model = queue.popleft()
            if bounds.depth is not None and self.depths[index] >= bounds.depth:
                continue
            if not self._expand(index, state, model):
                break
            ticks += 1
            if self.progress is not None and ticks % 2048 == 0:
                report.states, report.ahead = len(self.found), len(queue)
                self.progress(report)
        report.complete = not queue
        report.states = len(self.found) if self.reduced else len(self.reached())
        if report.complete and bounds.depth is None and len(self.broken) < self.most:
            self._judge_liveness()
        return report

    def reached(self) -> set[tuple[object, object]]:
        """The keys of the canonical forms of all worlds."""
        worlds = [(self.states[one >> _BITS], self.models[one & _MASK]) for one in self.found]
        if not self.reduced:
            worlds = [canonical(*world, 0) for world in worlds]
        return {(key_of(state), model.key) for state, model in worlds}

    def _begin(self, state: SessionState, model: Model) -> None:
        self._reach(self._state(state), self._model(model), -1, "")

    def _state(self, state: SessionState) -> int:
        number = self.state_numbers.setdefault(key_of(state), len(self.states))
        if number == len(self.states):
            self.states.append(state)
            self.edges.append(None)
            self.cures.append(_cure(state))
        return number

    def _model(self, model: Model) -> int:
        number = self.model_numbers.setdefault(model.key, len(self.models))
        if number == len(self.models):
            self.models.append(model)
        return number

    def _reach(self, state: int, model: int, origin: int, label: str) -> int:
        index = self.found.setdefault(state << _BITS | model, len(self.origins))
        if index == len(self.origins):
            self.origins.append((origin, label))
            self.depths.append(0 if origin < 0 else self.depths[origin] + 1)
            self.queue.append((index, state, model))
        return index

    def _expand(self, index: int, state: int, model: int) -> bool:
        """Try every move out of a world; False: enough was found."""
        edges = self.edges[state]
        fresh = None
        if edges is None:
            signature = _signature(self.states[state])
            menu = self.menus.get(signature) if self.reduced else None
            if menu is None:
                menu, fresh = tuple(moves(self.states[state], self.bounds)), signature
            edges = self.edges[state] = tuple([self._happen(state, move) for move in menu])
        cure = self.cures[state]
        if cure == _ACCEPTS and not self.models[model].known:
            cure = _KNOWS_NOT
        quiet = self.states[state].running is None
        self.report.edges += len(edges)
        inert = []
        for edge in edges:
            label = edge.move.label
            books = edge.error or self.after.get(model << _BITS | edge.outcome)
            if books is None:
                books = self._watch(model, edge.outcome)
            if isinstance(books, ViolationError):
                if not self._violated(index, label, books.prop, str(books)):
                    return False
                continue
            reached = index
            if edge.inert and books == model:
                inert.append(edge)
            elif edge.after is not None:
                reached = self._reach(edge.after, books, index, label)
            if label == cure:
                self.healthy[index] = reached, edge.ended
            elif quiet and isinstance(edge.move.event, ev.TurnSubmitted):
                self.quiet.setdefault(index, {})[label] = reached, edge.ended
        if fresh is not None:
            self.menus[fresh] = tuple([edge.move for edge in edges if edge not in inert])
        return True

    def _happen(self, number: int, move: Move) -> _Edge:
        """What the session does in the state of that number when ``move`` happens."""
        state, event = self.states[number], move.event
        if event is None:
            after, naming = self._folded(state, 1)
            return _Edge(move, self._outcome(None, (), None, naming), self._state(after))
        try:
            transition = self.stepper(self.policy, state, event, 0)
            _ = transition.state.phase  # there is none in a state that makes no sense
        except Exception as error:  # whatever it is, for an event that can happen it is a bug
            text = f"{event}: {type(error).__name__}: {error}"
            return _Edge(move, 0, None, error=ViolationError(Property.NO_INTERNAL_ERROR, text))
        after, effects, rule = transition.state, transition.effects, transition.rule
        self.report.rules_fired[rule] += 1
        if rule not in _BEFORE_THE_TABLE:
            key: EventKey = event.timer if isinstance(event, ev.DeadlineReached) else type(event)
            self.report.pairs_met.add((state.phase, key))
        deadline = after.timers.next()
        turn = event.turn.id if isinstance(event, ev.TurnSubmitted) else 1
        ended = _ending(effects, turn)
        if len(effects) == 1 and type(effects[0]) in _INERT and after == state:
            outcome = self._outcome(event, effects, deadline, _SAME)
            return _Edge(move, outcome, number, inert=True, ended=ended)
        if effects and type(effects[-1]) is fx.RetireSession:
            # The session is forgotten: nothing more can happen to it.
            outcome = self._outcome(event, effects, deadline, _SAME)
            return _Edge(move, outcome, None, ended=ended)
        folded, naming = after, _SAME
        tip = after.live_anchor
        # Without a tip what was called so is an old one, here and in the books.
        if not (_is_canonical(after) and tip == state.live_anchor and tip in (None, "tip")):
            folded, naming = self._folded(after, 0)
        outcome = self._outcome(event, effects, deadline, naming)
        return _Edge(move, outcome, self._state(folded), ended=ended)

    def _folded(self, state: SessionState, passed: int) -> tuple[SessionState, _Naming]:
        if self.reduced:
            return _folded(state, passed)
        return _later(state, passed), _Naming(state.generation, None, (), passed, plain=True)

    def _outcome(
        self,
        event: Event | None,
        effects: tuple[fx.Effect, ...],
        deadline: Deadline | None,
        naming: _Naming,
    ) -> int:
        due = None if deadline is None else (deadline.at, deadline.reason)
        number = self.outcomes.setdefault((event, effects, due, naming), len(self.told))
        if number == len(self.told):
            self.told.append(_Outcome(event, effects, deadline, naming))
        return number

    def _watch(self, number: int, told: int) -> int | ViolationError:
        """The books after an outcome; or what it breaks."""
        model, outcome = self.models[number], self.told[told]
        books: int | ViolationError
        try:
            after = model
            if outcome.event is not None:
                after = model.after(outcome.event, outcome.effects, 0, outcome.deadline)
                self._compare(model, outcome.event, outcome.effects)
            if outcome.naming is not _SAME:
                after = _renamed(after, outcome.naming)
            books = self._model(after)
        except ViolationError as violation:
            books = violation
        self.after[number << _BITS | told] = books
        return books

    def _compare(self, model: Model, event: Event, effects: tuple[fx.Effect, ...]) -> None:
        """Whether turns that are lost alike are treated alike."""
        if not effects or type(event) not in _LOSSES:
            return
        loss = model.loss_of(event, 0)
        if loss is None:
            return
        again = not any(type(effect) is fx.FailTurn for effect in effects)
        if self.resent.setdefault(loss, again) is not again and not again:
            text = "a turn lost alike was sent again, after as many replays"
            raise ViolationError(Property.RECONNECT_COSTS_NO_REPLAY, text)

    def _violated(self, index: int, label: str, prop: Property, text: str) -> bool:
        """Note a violation; False: enough was found."""
        if prop not in self.broken:
            self.broken.add(prop)
            path = [label] if label else []
            while self.origins[index][0] >= 0:
                index, before = self.origins[index]
                path.append(before)
            found = Counterexample(prop, text, tuple(reversed(path)), remote=index == 1)
            self.report.counterexamples.append(found)
        return len(self.broken) < self.most

    # ------------------------------------------------------------ liveness

    def _judge_liveness(self) -> None:
        ends: dict[int, _Ending | None] = {}
        for index in self.healthy:
            if index not in ends and not self._run_down(index, ends):
                return
        for index, submissions in self.quiet.items():
            for label in submissions:
                tries = self._retry(index, label, ends)
                if tries is not None:
                    text = f"RETRIES_END: {label}: {tries} tries were not enough"
                    self._violated(index, label, Property.RETRIES_END, text)
                    return

    def _run_down(self, index: int, ends: dict[int, _Ending | None]) -> bool:
        """Follow healthy moves from ``index`` until the turn that runs has ended."""
        way: list[int] = []
        end: _Ending | None = None
        at = index
        while True:
            if at in ends:
                end = ends[at]
                break
            if at in way or len(way) > _STEPS:
                text = f"TURNS_END: no end after {len(way)} healthy moves"
                return self._violated(index, "", Property.TURNS_END, text)
            way.append(at)
            if at not in self.healthy:
                break  # what comes next is a violation that was reported already
            at, ended = self.healthy[at]
            if ended is not None:
                end = at, ended
                break
        for passed in way:
            ends[passed] = end
        return True

    def _retry(self, index: int, label: str, ends: dict[int, _Ending | None]) -> int | None:
        """Submit until there is an answer that is not to be retried; None: there was one."""
        most = self.policy.budgets.refusals + 2
        for _ in range(most):
            submissions = self.quiet.get(index, {})
            # The id is the same; whether the socket knows it may have changed.
            name = label if label in submissions else label.replace(" tip", " old")
            if name not in submissions:
                return None
            after, ended = submissions[name]
            if ended is None:
                end = ends.get(after)
                if end is None:
                    return None
                after, ended = end
            if ended != _RETRY:
                return None
            index = after
        return most


_ACCEPTS, _KNOWS_NOT = "created", "refused: not found"
_STEPS = 8  # healthy moves that one turn may take; a reconnect, a refusal and a resend included
_LOSSES = (ev.ConnectionLost, ev.DeadlineReached)
_INERT = (fx.Ignored, fx.FailTurn)  # nothing done, or a turn rejected
_BEFORE_THE_TABLE = frozenset({STALE_GENERATION, SPURIOUS_DEADLINE})


def _ending(effects: tuple[fx.Effect, ...], turn: int) -> str | None:
    for effect in effects:
        if isinstance(effect, fx.CompleteTurn) and effect.turn == turn:
            return _DONE
        if isinstance(effect, fx.FailTurn) and effect.turn == turn:
            told = effect.answer in (Answer.NOT_FOUND, Answer.UPSTREAM_ERROR)
            return _TOLD if told else _RETRY
    return None


def _cure(state: SessionState) -> str | None:
    """The move that a healthy upstream makes next, if it knows the anchor."""
    phase = state.phase
    if phase is Phase.RECONNECTING:
        return "opened"
    if phase is Phase.SENDING:
        return "frame sent"
    if phase is Phase.SENT:
        return _ACCEPTS
    if phase in (Phase.CREATED, Phase.OUTPUT):
        return "completed"
    return None


def _signature(state: SessionState) -> tuple[object, ...]:
    """All that the menu of a world depends on, and whether a session ignores a move."""
    return (
        state.phase._value_,
        state.generation,
        state.live_anchor is None,
        state.running is None,
        len(state.waiting),
        tuple([(timer._value_, at > 0) for timer, at in state.timers.entries]),
        None if (first := state.timers.next()) is None else first.reason._value_,
    )


# ---------------------------------------------------------------- telling it


@attrs.frozen
class Seen:
    """One thing that happened on the way to a violation, and what was done about it."""

    at: int  # ns since the beginning
    event: Event
    before: Phase
    transition: Transition


@attrs.frozen
class Story:
    """A counterexample with real names and times: ids that are never reused, seconds for ticks."""

    prop: Property
    text: str
    seen: tuple[Seen, ...]
    scenario: str  # for the scenario runner, with the output of the real rules

    def __str__(self) -> str:
        return explain(self)


def tell(policy: Policy, bounds: Bounds, found: Counterexample, *, stepper: Step = step) -> Story:
    """Go the way of ``found`` once more, with ids that are never reused; one tick is one second."""
    ticking = bounded(policy, bounds)
    times = {f.name: getattr(bounds.timeouts, f.name) for f in attrs.fields(Timeouts)}
    real = attrs.evolve(
        ticking, timeouts=Timeouts(**{name: n * NS_PER_SECOND for name, n in times.items()})
    )
    folded = SessionState(remote=found.remote)
    model = Model(terms_of(ticking), remote=found.remote)
    state = SessionState(remote=found.remote)
    now = pending = turns = responses = 0
    live: list[str] = []
    seen: list[Seen] = []
    lines: list[str] = []

    def happens(event: Event) -> None:
        nonlocal state
        before = state.phase
        transition = stepper(real, state, event, now)
        seen.append(Seen(now, event, before, transition))
        state = transition.state

    for label in found.path:
        move = next(one for one in moves(folded, bounds) if one.label == label)
        if move.event is None:
            pending += NS_PER_SECOND
            folded, model = canonical(folded, model, 1)
            continue
        due = state.timers.next()
        on_time = label.startswith("deadline")
        if pending and not on_time and due is not None and due.at <= now + pending:
            pending -= _MOMENT  # what is due then comes only after this
        if pending:
            lines.append(f"advance {pending // _MOMENT}ms")
            now += pending
            pending = 0
        event = move.event
        if isinstance(event, ev.TurnSubmitted):
            turns += 1
            turn, anchor = event.turn, event.turn.anchor
            if anchor is not None:
                anchor = state.live_anchor if anchor == "tip" else (live or ["resp_0"])[-1]
            event = ev.TurnSubmitted(Turn(turns, turn.standing, anchor))
        elif isinstance(event, ev.TurnAbandoned | ev.RelayPaused):
            event = attrs.evolve(event, turn=_raw_turn(folded, state, event.turn))
        elif isinstance(event, ev.ResponseEnded):
            responses += 1
            event = attrs.evolve(event, response=f"resp_{responses}")
        generation = getattr(event, "generation", None)
        if generation is not None:
            event = attrs.evolve(
                event, generation=state.generation - (folded.generation - generation)
            )
        if on_time and isinstance(event, ev.DeadlineReached):
            at = state.timers.get(event.timer)
            if lines and lines[-1].startswith("advance"):
                pass  # time has passed: the runner reports what is due
            elif at is not None and at > now:
                lines.append(f"advance {(at - now) // _MOMENT}ms")
            else:
                lines.append(command_of(event))
            now = max(now, at or now)
        else:
            lines.append(command_of(event))
        happens(event)
        if state.live_anchor is not None and state.live_anchor not in live:
            live.append(state.live_anchor)
        transition = stepper(ticking, folded, move.event, 0)
        try:
            watched = model.after(move.event, transition.effects, 0, transition.state.timers.next())
        except ViolationError:
            break
        folded, model = canonical(transition.state, watched, 0)
    settings = [f"{name}={n}s" for name, n in times.items()]
    budgets = real.budgets
    settings += [f"{name}={getattr(budgets, name)}" for name in ("replays", "refusals", "waiting")]
    text = f"# {found.text.splitlines()[0]}\npolicy {policy.name} {' '.join(settings)}\n"
    text += "remote\n" if found.remote else ""
    text += "".join(f"\n{line}\n" for line in lines)
    return Story(found.prop, found.text, tuple(seen), replay(text, policies={policy.name: policy}))


_MOMENT = NS_PER_SECOND // 1000


def _raw_turn(folded: SessionState, state: SessionState, number: int) -> int:
    """The id in ``state`` of the turn that is called ``number`` in ``folded``."""
    if folded.running is not None and folded.running.turn.id == number and state.running:
        return state.running.turn.id
    for one, other in zip(folded.waiting, state.waiting, strict=False):
        if one.turn.id == number:
            return other.turn.id
    return 0  # a turn that is over


def explain(story: Story) -> str:
    """The story as lines of text: when, what happened, and what was done about it."""
    lines = [f"{story.prop.name}: {story.prop.value}", ""]
    for one in story.seen:
        lines.append(f"{one.at / NS_PER_SECOND:7.3f}  {command_of(one.event)}")
        after = one.transition.state.phase.value
        lines.append(f"         {one.before.value} -> {after} by {one.transition.rule}")
        lines += [f"           {describe(effect)}" for effect in one.transition.effects]
    lines += ["", f"broken: {story.text}"]
    if story.prop in _COSTS:
        lines.append(f"costs:  {_COSTS[story.prop]}")
    return "\n".join(lines)


# What the users of a bridge pay, where the property does not say so itself.
_COSTS = {
    Property.NOT_FOUND_IS_EARNED: "the context blow-up: a client that is told so gives its anchor "
    "up and sends its whole history again, every turn that a socket is lost",
    Property.NO_AMBIGUOUS_RESEND: "a turn that runs twice: its tool calls, its side effects, its "
    "tokens",
    Property.REFUSALS_ARE_BOUNDED: "the same 502 for ever: the client retries as told and is stuck",
}
