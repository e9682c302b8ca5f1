"""Every state that a session can reach, and every event that it can meet there.

What belongs here: the canonical form of a state, what follows from each move, the judgement of
liveness, and the report. What can happen is environment.py; what must hold is properties.py; the
breadth-first search is search.py, and telling what it found is story.py.

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

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Turn
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.rules import (
    ENDED_RESPONSE,
    EVENT_KEYS,
    RULES,
    SPURIOUS_DEADLINE,
    STALE_GENERATION,
    EventKey,
    Handling,
    Transition,
    step,
)
from bridgecore.recovery.state import Phase, SessionState, Waiting
from bridgecore.recovery.timers import Deadline, Timers
from bridgecore.verify.environment import Bounds, Move, bounded, moves, terms_of
from bridgecore.verify.model import Model, one_ended, own_names
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.search import Search

Step = Callable[[Policy, SessionState, Event, int], Transition]


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
    counterexamples: list[Counterexample] = attrs.Factory(list)

    @property
    def broken(self) -> dict[Property, Counterexample]:
        """The properties that do not hold, each with its shortest counterexample."""
        return {found.prop: found for found in self.counterexamples}


def never_fired(reports: Sequence[Report]) -> list[str]:
    """Rules that can apply but never did, in any of ``reports``."""
    able = {rule.id for rule in RULES.values() if rule.handling is not Handling.ILLEGAL}
    fired = {rule for report in reports for rule in report.rules_fired}
    return sorted((able | _BEFORE_THE_TABLE) - fired)


def never_met(reports: Sequence[Report]) -> list[tuple[Phase, EventKey]]:
    """Ruled pairs, other than illegal ones, in which no event was met in any of ``reports``."""
    met = {pair for report in reports for pair in report.pairs_met}
    return [
        pair
        for pair, rule in RULES.items()
        if rule.handling is not Handling.ILLEGAL and pair not in met
    ]


PAIRS = len(Phase) * len(EVENT_KEYS)


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
    tip = state.cached_response

    def name(anchor: str | None) -> str | None:
        return None if anchor is None else "tip" if anchor == tip else "old"

    numbers: list[tuple[int | None, int]] = []
    running = state.running
    if running is not None:
        numbers.append((running.turn.id, 1))
        running = attrs.evolve(
            running,
            turn=Turn(1, running.turn.standing, name(running.turn.anchor)),
            responses=own_names(running.responses, state.ended, name),
            doubtful=name(running.doubtful),
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
        one_ended([name(response) or "" for response in state.ended]),
        running,
        tuple(waiting),
        tuple(sorted(refusals.items(), key=str)),
        state.past_lifetime,
        state.remote,
        Timers(tuple([(timer, at - passed) for timer, at in state.timers.entries])),
    )
    return folded, _Naming(generation, tip, tuple(numbers), passed)


def _is_canonical(state: SessionState) -> bool:
    """Whether the names are those of ``canonical`` already; False if that is not quickly seen."""
    running, waiting = state.running, state.waiting
    if state.generation > 2 or len(state.refusals) > 1 or len(waiting) > 1:
        return False
    tip = state.cached_response
    if state.ended not in ((), ("old",) if tip is None else (tip,)):
        return False
    if running is None:
        return not waiting
    if any(name not in state.ended for name in running.responses):
        return False
    return running.turn.id == 1 and (not waiting or waiting[0].turn.id == 2)


def _renamed(model: Model, naming: _Naming) -> Model:
    def name(anchor: str | None) -> str | None:
        return None if anchor is None else "tip" if anchor == naming.tip else "old"

    if naming.plain:
        same: dict[int | None, int] = {turn.id: turn.id for turn in model.turns}
        return model.folded(
            naming.generation, lambda anchor: anchor, same, naming.passed, plain=True
        )
    return model.folded(naming.generation, name, dict(naming.numbers), naming.passed)


def later(state: SessionState, passed: int) -> SessionState:
    """The same state, all times ``passed`` less."""
    running = state.running
    if running is not None:
        running = attrs.evolve(running, deadline=running.deadline - passed)
    return attrs.evolve(
        state,
        running=running,
        waiting=tuple([Waiting(w.turn, w.deadline - passed) for w in state.waiting]),
        timers=Timers(tuple([(timer, at - passed) for timer, at in state.timers.entries])),
    )


def key_of(state: SessionState) -> tuple[object, ...]:
    """Equal for equal states. Names instead of enumerations and values: hashed much faster.

    The running turn's deadline is that of its timer: here no turn comes with one of its own.
    """
    running = state.running
    turn: tuple[object, ...] | None = None
    if running is not None:
        turn = (
            running.turn.id,
            running.turn.standing._value_,
            running.turn.anchor,
            running.phase._value_,
            None if running.form is None else running.form._value_,
            None if running.sent is None else running.sent._value_,
            running.responses,
            running.doubtful,
            running.replays,
            tuple(sorted([kind._value_ for kind in running.recovered])),
            None if running.fallback is None else running.fallback._value_,
            running.paused,
        )
    return (
        state.lifecycle._value_,
        state.generation,
        state.cached_response,
        state.ended,
        turn,
        tuple([(w.turn.id, w.turn.standing._value_, w.turn.anchor, w.deadline)
               for w in state.waiting]),
        state.refusals,
        state.past_lifetime,
        state.remote,
        tuple([(timer._value_, at) for timer, at in state.timers.entries]),
    )  # fmt: skip


# ---------------------------------------------------------------- the search


def explore(
    policy: Policy,
    bounds: Bounds,
    *,
    stepper: Step = step,
    most: int = 1,
    reduced: bool = True,
    without: frozenset[Property] = frozenset(),
    progress: Callable[[Report], None] | None = None,
    found: Callable[[Counterexample], None] | None = None,
) -> Report:
    """Explore ``policy`` within ``bounds``.

    Args:
        stepper: the transition function; a mutant's, when mutants are explored.
        most: keep the shortest counterexample of each property, and stop altogether once this many
            properties have one.
        reduced: False: name nothing by symmetry but the times, and try every move in every world;
            ``bounds.depth`` has to end it. ``states`` counts canonical ones all the same.
        without: properties that are not demanded.
        progress: called every few thousand states.
        found: called for each counterexample as soon as it is found.
    """
    search = _Search(bounded(policy, bounds), bounds, stepper, most, reduced, without)
    search.progress, search.found_one = progress, found
    return search.run()


_DONE, _TOLD, _RETRY = "done", "told", "retry"
_Ending = tuple[int, str | None]  # the world after a move, and how the turn that ran ended
_BITS = 32  # for each of the two numbers that are kept in one
_MASK = (1 << _BITS) - 1


@attrs.define(eq=False)  # not frozen: they are made by the hundred thousand, and change no more
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


@attrs.define(eq=False)
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
        without: frozenset[Property],
    ) -> None:
        self.policy = policy
        self.bounds = bounds
        self.stepper = stepper
        self.most = most
        self.reduced = reduced
        self.without = without
        self.progress: Callable[[Report], None] | None = None
        self.found_one: Callable[[Counterexample], None] | None = None
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
        # Worlds, by the numbers of their state and their books in one.
        self.worlds: Search[int, str] = Search(most=bounds.max_states, depth=bounds.depth)
        self.healthy: dict[int, _Ending] = {}
        self.quiet: dict[int, dict[str, _Ending]] = {}  # by world without turns and submission
        self.menus: dict[object, tuple[Move, ...]] = {}
        self.resent: dict[tuple[object, ...], bool] = {}
        self.broken: set[Property] = set()

    def run(self) -> Report:
        """Explore, then judge liveness."""
        report, bounds = self.report, self.bounds
        terms = attrs.evolve(terms_of(self.policy), without=self.without)
        self._begin(SessionState(), Model(terms))
        if bounds.remote:
            self._begin(SessionState(remote=True), Model(terms, remote=True))
        self.worlds.run(self._expand, self._progressed, every=2048)
        report.complete = self.worlds.complete
        report.states = len(self.worlds) if self.reduced else len(self.reached())
        if report.complete and bounds.depth is None and len(self.broken) < self.most:
            self._judge_liveness()
        return report

    def reached(self) -> set[tuple[object, object]]:
        """The keys of the canonical forms of all worlds."""
        worlds = [(self.states[one >> _BITS], self.models[one & _MASK]) for one in self.worlds]
        if not self.reduced:
            worlds = [canonical(*world, 0) for world in worlds]
        return {(key_of(state), model.key) for state, model in worlds}

    def _begin(self, state: SessionState, model: Model) -> None:
        self.worlds.reach(self._state(state) << _BITS | self._model(model))

    def _progressed(self) -> None:
        if self.progress is not None:
            self.report.states, self.report.ahead = len(self.worlds), self.worlds.ahead
            self.progress(self.report)

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

    def _expand(self, index: int, world: int) -> bool:
        """Try every move out of a world; False: enough was found."""
        state, model = world >> _BITS, world & _MASK
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
        reach = self.worlds.reach
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
                reached = reach(edge.after << _BITS | books, index, label)
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
        opened = [one.generation for one in effects if type(one) is fx.OpenConnection]
        if after.generation != (opened or [state.generation])[-1]:
            text = f"the session takes {after.generation} for the latest generation"
            return _Edge(move, 0, None, error=ViolationError(Property.LIVE_GENERATION, text))
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
        tip = after.cached_response
        # Without a tip what was called so is an old one, here and in the books.
        if not (_is_canonical(after) and tip == state.cached_response and tip in (None, "tip")):
            folded, naming = self._folded(after, 0)
        outcome = self._outcome(event, effects, deadline, naming)
        return _Edge(move, outcome, self._state(folded), ended=ended)

    def _folded(self, state: SessionState, passed: int) -> tuple[SessionState, _Naming]:
        if self.reduced:
            return _folded(state, passed)
        return later(state, passed), _Naming(state.generation, None, (), passed, plain=True)

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
        unlike = self.resent.setdefault(loss, again) is not again and not again
        if unlike and Property.RECONNECT_COSTS_NO_REPLAY not in self.without:
            text = "a turn lost alike was sent again, after as many replays"
            raise ViolationError(Property.RECONNECT_COSTS_NO_REPLAY, text)

    def _violated(self, index: int, label: str, prop: Property, text: str) -> bool:
        """Note a violation; False: enough was found."""
        if prop not in self.broken and prop not in self.without:
            self.broken.add(prop)
            start, way = self.worlds.way(index)
            path = (*way, label) if label else way
            found = Counterexample(prop, text, path, remote=start == 1)
            self.report.counterexamples.append(found)
            if self.found_one is not None:
                self.found_one(found)
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
_BEFORE_THE_TABLE = frozenset({STALE_GENERATION, SPURIOUS_DEADLINE, ENDED_RESPONSE})


def _ending(effects: tuple[fx.Effect, ...], turn: int) -> str | None:
    for effect in effects:
        if isinstance(effect, fx.CompleteTurn) and effect.turn == turn:
            return _DONE
        if isinstance(effect, fx.FailTurn) and effect.turn == turn:
            told = effect.answer in (FailureReply.NOT_FOUND, FailureReply.UPSTREAM_ERROR)
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
    running = state.running
    return (
        state.phase._value_,
        state.generation,
        state.cached_response is None,
        state.ended,
        None if running is None else (running.responses, running.doubtful),
        len(state.waiting),
        tuple([(timer._value_, at > 0) for timer, at in state.timers.entries]),
        None if (first := state.timers.next()) is None else first.reason._value_,
    )
