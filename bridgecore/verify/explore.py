"""Explores every state that a session can reach and every event that can occur in it.

What belongs here: the canonical form of a state, the successors of each state, the check of
liveness, and the report. Which events can occur is environment.py; what must hold is properties.py;
the breadth-first search is search.py; counterexamples are explained by story.py.

Theory of operation. A *world* is a session's state together with the reference model that checks
it. The search is breadth-first from a closed session, so the first path found to a world is a
shortest one. Time is discrete: every duration is a small number of ticks, one tick passes at a
time, and at a time at which a deadline is due any other event may still come first.

The state space is made finite by symmetry reduction, so that the search ends without a bound on its
depth: deadlines are relative to now, turns are numbered by their position, responses are reduced to
"the one cached on the connection" and "an older one", and connection generations to whether an
older connection can still send events. A move that a session ignores without a change of its state
is tried once for all worlds with the same ``_signature``. All other bounds are in ``Bounds``.

Liveness is checked on the explored graph: in each world one move is what a healthy upstream would
do next, and along these moves every turn has to end and every client that retries as its errors say
has to be answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.search import Search
from bridgecore.verify.shown import shown

Step = Callable[[Policy, SessionState, Event, int], Transition]


@attrs.frozen
class Counterexample:
    """A violation with a shortest path to it: the moves, and what the last of them broke."""

    prop: Property
    text: str
    path: tuple[str, ...]
    remote: bool = False  # the session starts as one that another replica owns


@attrs.define
class Report:
    """The result of an exploration."""

    policy: str
    bounds: Bounds
    states: int = 0
    edges: int = 0
    ahead: int = 0  # worlds found and not yet expanded
    complete: bool = False
    rules_fired: Counter[str] = attrs.Factory(Counter)
    pairs_met: set[tuple[Phase, EventKey]] = attrs.Factory(set)
    counterexamples: list[Counterexample] = attrs.Factory(list)

    @property
    def broken(self) -> dict[Property, Counterexample]:
        """The properties that do not hold, each with its shortest counterexample."""
        return {found.prop: found for found in self.counterexamples}


def never_fired(reports: Sequence[Report]) -> list[str]:
    """The rules that can apply but fired in none of ``reports``."""
    able = {rule.id for rule in RULES.values() if rule.handling is not Handling.ILLEGAL}
    fired = {rule for report in reports for rule in report.rules_fired}
    return sorted((able | _BEFORE_THE_TABLE) - fired)


def never_met(reports: Sequence[Report]) -> list[tuple[Phase, EventKey]]:
    """The (phase, event) pairs, illegal ones excepted, in which no event occurred in any of
    ``reports``."""
    met = {pair for report in reports for pair in report.pairs_met}
    return [
        pair
        for pair, rule in RULES.items()
        if rule.handling is not Handling.ILLEGAL and pair not in met
    ]


PAIRS = len(Phase) * len(EVENT_KEYS)


# ---------------------------------------------------------------- the canonical form


class _Naming(NamedTuple):
    """A renaming of what a state refers to, so that the model can be renamed in the same way."""

    generation: int
    tip: str | None  # the response cached on the connection; any other is "old"
    numbers: tuple[tuple[int | None, int], ...]  # old and new ids of turns
    passed: int  # ticks by which all times are shifted
    plain: bool = False  # responses and turns keep their names (no symmetry reduction)


_SAME = _Naming(0, None, (), 0)  # the identity: the model is not changed


def canonical(state: SessionState, model: Model, passed: int) -> tuple[SessionState, Model]:
    """The canonical form of a world, ``passed`` ticks later: equal for symmetric worlds."""
    folded, naming = _folded(state, passed)
    return folded, _renamed(model, naming)


def _folded(state: SessionState, passed: int) -> tuple[SessionState, _Naming]:
    """The canonical form of ``state``, ``passed`` ticks later, and the renaming that
    leads to it."""
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
        # Old responses are merged and keep the highest refusal count among them, so that the bound
        # on refusals is reached as soon as it is for any of them.
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
        state.remembers,
        Timers(tuple([(timer, at - passed) for timer, at in state.timers.entries])),
    )
    return folded, _Naming(generation, tip, tuple(numbers), passed)


def _is_canonical(state: SessionState) -> bool:
    """Whether ``state`` certainly is in canonical form; a cheap check that may return False for one
    that is. It saves the rebuilding of most states."""
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
    """``state`` with all times ``passed`` ticks earlier."""
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
    """A hash key: equal for equal states. It uses names and numbers instead of enum members and
    attrs values, which hash much slower.

    The running turn's deadline is left out: it equals that of its timer, because no turn here has a
    deadline of its own.
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
            running.over_http,
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
        state.remembers._value_,
        tuple([(timer._value_, at) for timer, at in state.timers.entries]),
    )  # fmt: skip


# ---------------------------------------------------------------- the search


def explore(
    policy: Policy,
    bounds: Bounds,
    *,
    stepper: Step = step,
    most: int = 1,
    until: Property | None = None,
    reduced: bool = True,
    without: frozenset[Property] = frozenset(),
    local_first: bool = False,
    progress: Callable[[Report], None] | None = None,
    found: Callable[[Counterexample], None] | None = None,
) -> Report:
    """Explore ``policy`` within ``bounds``.

    Args:
        stepper: the transition function; a mutated one when mutants are judged.
        most: keep the shortest counterexample of each property, and stop once this many
            properties have one.
        until: stop, too, as soon as this property has one.
        reduced: False: no symmetry reduction except for times, and every move is tried in every
            world; ``bounds.depth`` has to end the search. ``states`` still counts canonical ones.
        without: properties that are not checked.
        local_first: explore everything that a session of this replica can reach before one that
            another replica owns. A counterexample is then ``remote`` only if there is no other for
            its property; otherwise, if it is the shortest one.
        progress: called every few thousand states.
        found: called for each counterexample as soon as it is found.
    """
    search = _Search(bounded(policy, bounds), bounds, stepper, most, reduced, without)
    search.progress, search.found_one, search.until = progress, found, until
    return search.run(local_first)


_DONE, _FINAL, _RETRY = "done", "final", "retry"
_Ending = tuple[int, str | None]  # the world after a move, and how the turn that ran ended
_BITS = 32  # state and model numbers are packed into one int, to save memory
_MASK = (1 << _BITS) - 1


@attrs.define(eq=False)  # not frozen: there are 100,000s, slow to make
class _Edge:
    """The result of ``move`` in a state, independent of the model.

    ``outcome`` is the number of the ``_Outcome`` that the model is given; ``after`` the number of
    the next state, None when the session is retired. ``ended``: how the turn ended that the move is
    about.
    """

    move: Move
    outcome: int
    after: int | None
    rule: str = ""
    inert: bool = False  # nothing changed: the event is ignored or its turn rejected
    ended: str | None = None
    error: ViolationError | None = None


@attrs.define(eq=False)
class _Outcome:
    """What the model is given after a move: the event (None: a tick passes), its effects, the next
    deadline, and the renaming of the state."""

    event: Event | None
    effects: tuple[fx.Effect, ...]
    deadline: Deadline | None
    naming: _Naming


class _Search:
    """One exploration.

    States and models are stored once each, by number, and a world is a pair of numbers. Most worlds
    combine a state and a model that were each met before, so the result of a move is usually
    cached.
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
        # Whether to save time where a result is known beforehand: what a session ignores in all
        # states of one signature, which states are canonical, which are equal.
        self.shortcuts = reduced
        self.progress: Callable[[Report], None] | None = None
        self.found_one: Callable[[Counterexample], None] | None = None
        self.until: Property | None = None
        self.report = Report(policy.name, bounds)
        self.states: list[SessionState] = []
        self.state_numbers: dict[object, int] = {}
        self.foldings: dict[object, tuple[int, _Naming]] = {}  # by state, not yet in that form
        self.edges: list[tuple[_Edge, ...] | None] = []  # by state
        self.healthy_moves: list[str | None] = []  # by state: the next move of a healthy upstream
        self.models: list[Model] = []
        self.model_numbers: dict[object, int] = {}
        self.outcomes: dict[object, int] = {}
        self.numbered: list[_Outcome] = []  # outcomes, by number
        self.after: dict[int, int | ViolationError] = {}  # packed (model, outcome) to model
        # State and model numbers, packed.
        self.worlds: Search[int, str] = Search(most=bounds.max_states, depth=bounds.depth)
        self.healthy: dict[int, _Ending] = {}
        self.quiet: dict[int, dict[str, _Ending]] = {}  # by world without turns, and submission
        self.fresh_moves: dict[object, tuple[Move, ...]] = {}
        # Each way in which a turn was lost: its number, and whether the first such turn was resent.
        self.resent: dict[tuple[object, ...], tuple[int, bool]] = {}
        self.losses: dict[int, int] = {}  # packed (model, outcome) to that number, negative: failed
        self.broken: set[Property] = set()
        self.remote_start: int | None = None  # the number of that world

    def run(self, local_first: bool = False) -> Report:
        """Explore, then check liveness."""
        report, bounds = self.report, self.bounds
        terms = attrs.evolve(terms_of(self.policy), without=self.without)
        self._begin(SessionState(), Model(terms))
        if local_first:
            self._run()
        if bounds.remote:
            self.remote_start = len(self.worlds)
            self._begin(SessionState(remote=True), Model(terms, remote=True))
        self._run()
        report.complete = self.worlds.complete
        report.states = len(self.worlds) if self.reduced else len(self.reached())
        if report.complete and bounds.depth is None and self._goes_on():
            self._judge_liveness()
        return report

    def _run(self) -> None:
        if self._goes_on():
            self.worlds.run(self._expand, self._progressed, every=2048)

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
        key: object = key_of(state) if self.shortcuts else state
        number = self.state_numbers.setdefault(key, len(self.states))
        if number == len(self.states):
            self.states.append(state)
            self.edges.append(None)
            self.healthy_moves.append(_healthy_move(state))
        return number

    def _model(self, model: Model) -> int:
        number = self.model_numbers.setdefault(model.key, len(self.models))
        if number == len(self.models):
            self.models.append(model)
        return number

    def _expand(self, index: int, world: int) -> bool:
        """Try every move in a world; False: enough violations were found."""
        state, model = world >> _BITS, world & _MASK
        edges = self.edges[state]
        fresh = None
        if edges is None:
            signature = _signature(self.states[state])
            found = self.fresh_moves.get(signature) if self.shortcuts else None
            if found is None:
                found, fresh = tuple(moves(self.states[state], self.bounds)), signature
            edges = self.edges[state] = tuple([self._happen(state, move) for move in found])
        healthy = self.healthy_moves[state]
        if healthy == _ACCEPTS and not self.models[model].known:
            healthy = _REFUSES_ANCHOR
        quiet = self.states[state].running is None
        reach = self.worlds.reach
        self.report.edges += len(edges)
        inert = []
        for edge in edges:
            label = edge.move.label
            checked = edge.error or self.after.get(model << _BITS | edge.outcome)
            if checked is None:
                checked = self._model_after(model, edge.outcome)
                if not isinstance(checked, ViolationError):
                    unlike = self._unlike(model, edge.outcome)
                    if unlike is not None and not self._violated(index, label, _COMPARED, unlike):
                        return False
            if isinstance(checked, ViolationError):
                if not self._violated(index, label, checked.prop, str(checked)):
                    return False
                continue
            reached = index
            if edge.inert and checked == model:
                inert.append(edge)
            elif edge.after is not None:
                reached = reach(edge.after << _BITS | checked, index, label)
            if label == healthy:
                self.healthy[index] = reached, edge.ended
            elif quiet and isinstance(edge.move.event, ev.TurnSubmitted):
                self.quiet.setdefault(index, {})[label] = reached, edge.ended
        if fresh is not None:
            self.fresh_moves[fresh] = tuple([edge.move for edge in edges if edge not in inert])
        return True

    def _happen(self, number: int, move: Move) -> _Edge:
        """The result of ``move`` in the state with that number."""
        state, event = self.states[number], move.event
        if event is None:
            after, naming = self._folded(state, 1)
            return _Edge(move, self._outcome(None, (), None, naming), self._state(after))
        try:
            transition = self.stepper(self.policy, state, event, 0)
            _ = transition.state.phase  # raises for a contradictory state
        except Exception as error:  # any exception is a bug: the event can happen
            text = f"{shown(event)}: {type(error).__name__}: {error}"
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
            return _Edge(move, outcome, number, rule, inert=True, ended=ended)
        if effects and type(effects[-1]) is fx.RetireSession:
            # The session was retired: nothing more can happen to it.
            outcome = self._outcome(event, effects, deadline, _SAME)
            return _Edge(move, outcome, None, rule, ended=ended)
        tip = after.cached_response
        # Without a cached response every anchor is an old one, in the state and in the model.
        plain = self.shortcuts and _is_canonical(after)
        if plain and tip == state.cached_response and tip in (None, "tip"):
            reached, naming = self._state(after), _SAME
        else:
            reached, naming = self._fold(after)
        outcome = self._outcome(event, effects, deadline, naming)
        return _Edge(move, outcome, reached, rule, ended=ended)

    def _fold(self, state: SessionState) -> tuple[int, _Naming]:
        """The number of the canonical form of ``state``, and the renaming that leads to it."""
        key: object = key_of(state) if self.shortcuts else None
        found = self.foldings.get(key)
        if found is None:
            folded, naming = self._folded(state, 0)
            found = self._state(folded), naming
            if self.shortcuts:
                self.foldings[key] = found
        return found

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
        number = self.outcomes.setdefault((event, effects, due, naming), len(self.numbered))
        if number == len(self.numbered):
            self.numbered.append(_Outcome(event, effects, deadline, naming))
        return number

    def _model_after(self, number: int, outcome_number: int) -> int | ViolationError:
        """The model after an outcome, or the violation that it detects."""
        model, outcome = self.models[number], self.numbered[outcome_number]
        checked: int | ViolationError
        try:
            after = model
            if outcome.event is not None:
                after = check_step(model, outcome.event, outcome.effects, 0, outcome.deadline)
            if outcome.naming is not _SAME:
                after = _renamed(after, outcome.naming)
            checked = self._model(after)
        except ViolationError as violation:
            checked = violation
        self.after[number << _BITS | outcome_number] = checked
        return checked

    def _unlike(self, number: int, outcome_number: int) -> str | None:
        """What differs, if the outcome loses a turn, and one lost in the same way got another
        remedy; to be asked once for each outcome of a model."""
        model, outcome = self.models[number], self.numbered[outcome_number]
        event, effects = outcome.event, outcome.effects
        if not effects or not isinstance(event, _LOSSES):
            return None
        loss = model.loss_of(event, 0)
        if loss is None:
            return None
        again = not any(type(effect) is fx.FailTurn for effect in effects)
        kind, first = self.resent.setdefault(loss, (len(self.resent) + 1, again))
        self.losses[number << _BITS | outcome_number] = kind if again else -kind
        if first is again:
            return None
        return f"a turn lost in the same way after as many replays was {_REMEDY[first]}"

    def _violated(self, index: int, label: str, prop: Property, text: str) -> bool:
        """Record a violation; False: enough violations were found."""
        if prop not in self.broken and prop not in self.without:
            self.broken.add(prop)
            start, way = self.worlds.way(index)
            path = (*way, label) if label else way
            found = Counterexample(prop, text, path, remote=start == self.remote_start)
            self.report.counterexamples.append(found)
            if self.found_one is not None:
                self.found_one(found)
        return self._goes_on()

    def _goes_on(self) -> bool:
        return len(self.broken) < self.most and self.until not in self.broken

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
                    text = f"RETRIES_END: {label}: still refused after {tries} tries"
                    self._violated(index, label, Property.RETRIES_END, text)
                    return

    def _run_down(self, index: int, ends: dict[int, _Ending | None]) -> bool:
        """Follow a healthy upstream's moves from ``index`` until the running turn has ended."""
        way: list[int] = []
        end: _Ending | None = None
        at = index
        while True:
            if at in ends:
                end = ends[at]
                break
            if at in way or len(way) > _STEPS:
                text = f"TURNS_END: no end after {len(way)} moves of a healthy upstream"
                return self._violated(index, "", Property.TURNS_END, text)
            way.append(at)
            if at not in self.healthy:
                break  # the next state is a violation, already reported
            at, ended = self.healthy[at]
            if ended is not None:
                end = at, ended
                break
        for passed in way:
            ends[passed] = end
        return True

    def _retry(self, index: int, label: str, ends: dict[int, _Ending | None]) -> int | None:
        """Submit the turn until an answer is not retriable; None: one was."""
        most = self.policy.budgets.refusals + _TRIES
        for _ in range(most):
            submissions = self.quiet.get(index, {})
            # The retry names the same response, but the connection may not have it cached any more.
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


_ACCEPTS, _REFUSES_ANCHOR = "created", "refused: not found"
_STEPS = 8  # moves of a healthy upstream that one turn may take, with reconnect, refusal, resend
_TRIES = 2  # that a client may need beyond the budget of refusals
_LOSSES = (ev.ConnectionLost, ev.DeadlineReached)
_COMPARED = Property.RECONNECT_COSTS_NO_REPLAY
_REMEDY = {True: "sent again", False: "not sent again"}
_INERT = (fx.Ignored, fx.FailTurn)  # the effects of an ignored event and of a rejected turn
_BEFORE_THE_TABLE = frozenset({STALE_GENERATION, SPURIOUS_DEADLINE, ENDED_RESPONSE})


def _ending(effects: tuple[fx.Effect, ...], turn: int) -> str | None:
    for effect in effects:
        if isinstance(effect, fx.CompleteTurn) and effect.turn == turn:
            return _DONE
        if isinstance(effect, fx.FailTurn) and effect.turn == turn:
            final = effect.answer in (FailureReply.NOT_FOUND, FailureReply.UPSTREAM_ERROR)
            return _FINAL if final else _RETRY
    return None


def _healthy_move(state: SessionState) -> str | None:
    """The next move of a healthy upstream, which knows every anchor that it can know."""
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
    """All that determines which moves a world has, and whether a session ignores one of them."""
    running = state.running
    return (
        state.phase._value_,
        state.generation,
        state.cached_response is None,
        state.ended,
        None if running is None else (running.responses, running.doubtful),
        len(state.waiting),
        state.remote,
        tuple([(timer._value_, at > 0) for timer, at in state.timers.entries]),
        None if (first := state.timers.next()) is None else first.reason._value_,
    )


# ---------------------------------------------------------------- for other checkers


class TabledMove(NamedTuple):
    """What a session does at one move. ``after`` is None when it is retired; ``ended`` is how the
    turn ended that the move is about, "" if it did not end; ``broken`` is set if the session broke
    a property that needs no model, and then ``outcome`` and ``after`` say nothing."""

    label: str
    rule: str  # "" for time that passes
    outcome: int
    after: int | None
    ended: str
    inert: bool
    broken: Property | None


class TabledCheck(NamedTuple):
    """What the model says of an outcome: its next state, or the property that it finds broken.

    ``loss`` numbers the ways in which a turn can be lost that are to have the same remedy, from 1:
    positive if the turn was sent again, negative if it failed, 0 if no turn was lost.
    """

    after: int | None
    broken: Property | None
    loss: int


@attrs.frozen
class Tables:
    """An explored policy as two tables, of which a world is the product: a session's state and a
    model. States, models and outcomes are numbered from 0."""

    policy: str
    bounds: str
    states: tuple[SessionState, ...]
    moves: tuple[tuple[TabledMove, ...], ...]  # by state
    checks: tuple[Mapping[int, TabledCheck], ...]  # by model, then by outcome
    starts: tuple[tuple[int, int], ...]  # worlds
    healthy: tuple[str | None, ...]  # by state: the next move of a healthy upstream
    knowing: frozenset[int]  # models whose upstream knows the anchor that it was sent
    steps: int  # moves of a healthy upstream, within which a turn has to end
    tries: int  # of a client, within which it has to get an answer that is not retriable


def tabulate(
    policy: Policy,
    bounds: Bounds,
    *,
    stepper: Step = step,
    without: frozenset[Property] = frozenset(),
    progress: Callable[[Report], None] | None = None,
) -> Tables | None:
    """The tables of ``policy``; None if ``bounds`` end the search before its end. For the
    arguments see ``explore``.

    Nothing is taken for known beforehand here: every move is tried in every state, every state is
    brought into canonical form, and states are compared as they are. So a checker that works on
    these tables checks the shortcuts of ``explore``, too.
    """
    search = _Search(bounded(policy, bounds), bounds, stepper, len(Property), True, without)
    search.progress, search.shortcuts = progress, False
    report = search.run()
    if not report.complete or bounds.depth is not None:
        return None
    checks: list[dict[int, TabledCheck]] = [{} for _ in search.models]
    for packed, after in search.after.items():
        loss = 0 if _COMPARED in without else search.losses.get(packed, 0)
        if isinstance(after, ViolationError):
            check = TabledCheck(None, after.prop, loss)
        else:
            check = TabledCheck(after, None, loss)
        checks[packed >> _BITS][packed & _MASK] = check
    starts = [(0, 0), (1, 1)] if bounds.remote else [(0, 0)]
    return Tables(
        policy.name,
        bounds.name,
        tuple(search.states),
        tuple([tuple(map(_tabled, edges or ())) for edges in search.edges]),
        tuple(checks),
        tuple(starts),
        tuple(search.healthy_moves),
        frozenset([number for number, model in enumerate(search.models) if model.known]),
        _STEPS + 1,
        search.policy.budgets.refusals + _TRIES,
    )


def _tabled(edge: _Edge) -> TabledMove:
    broken = None if edge.error is None else edge.error.prop
    return TabledMove(
        *(edge.move.label, edge.rule, edge.outcome, edge.after),
        *(edge.ended or "", edge.inert, broken),
    )
