"""Mutants of the rules and policies, to measure what the properties detect.

What belongs here: the mutants of the decision core, how each is explored, and the table of
equivalent mutants, which no property can detect, each with the argument why. A mutant is a
transition function that wraps ``step``, or a policy with other cells or budgets; nothing is
patched, so nothing needs to be restored.

Mutants are derived from observation: an exploration of the original rules records for each rule
which effects it had, which fields of the state it changed and which timers it set or cleared. Each
of these is then dropped, doubled, swapped or undone, one at a time, in every transition by that
rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply
from bridgecore.recovery.events import Event, Remembers, Standing
from bridgecore.recovery.policy import Action, Policy, Remedy, Situation, Timeouts
from bridgecore.recovery.rules import (
    ENDED_RESPONSE,
    SPURIOUS_DEADLINE,
    STALE_GENERATION,
    Transition,
    step,
)
from bridgecore.recovery.state import AttemptPhase, Lifecycle, SessionState
from bridgecore.recovery.timers import Timer
from bridgecore.verify.environment import Bounds, due
from bridgecore.verify.explore import Step, explore
from bridgecore.verify.properties import Property

_TICKS = Timeouts(connect=1, created=1, idle=1, turn=1, lifetime=1, expiry=1)
_LONGER = Timeouts(connect=1, created=1, idle=1, turn=2, lifetime=2, expiry=1)
_QUEUE = (Standing.UNANCHORED, Standing.BOUND)
_STORED = (Standing.UNANCHORED, Standing.HELD_STORED)
_OVER_HTTP = (*_QUEUE, Standing.HELD)
# In the order in which they are tried: most mutants are detected in the first, after few states.
BOUNDS: Sequence[Bounds] = (
    Bounds("mutants", 0, tuple(Standing), _TICKS, 1, late=False),
    Bounds("mutants, a queue", 1, _QUEUE, _TICKS, 1, causes=False, late=False),
    Bounds("mutants, longer times", 0, (*_QUEUE, Standing.HELD), _LONGER, 1, late=False),
    Bounds("mutants, late events", 0, _STORED, _TICKS, 1, remote=False, causes=False),
    Bounds("mutants, over HTTP", 0, _OVER_HTTP, _TICKS, 1, remote=False, late=False, http=True),
)

Change = Callable[[SessionState, Event, Transition], Transition]


@attrs.frozen(eq=False)
class Mutant:
    """A policy or a transition function with one defect. ``name`` says which."""

    name: str
    rule: str  # the rule, cell or budget that is mutated
    policy: Policy
    stepper: Step = step
    cell: tuple[Situation, Standing] | None = None


@attrs.frozen
class Verdict:
    """The result for a mutant: the property that detected it first and the number of states until
    then; None if it survived."""

    mutant: str
    rule: str
    killer: Property | None
    states: int
    argument: str | None  # if it is equivalent: why no property can detect it


@attrs.define
class Seen:
    """What a rule was observed to do."""

    effects: set[type[Effect]] = attrs.Factory(set)
    answers: set[FailureReply] = attrs.Factory(set)
    orders: set[tuple[type[Effect], type[Effect]]] = attrs.Factory(set)
    fields: set[str] = attrs.Factory(set)
    running: set[str] = attrs.Factory(set)
    cleared: set[Timer] = attrs.Factory(set)
    started: set[Timer] = attrs.Factory(set)


@attrs.frozen
class Met:
    """A transition that occurred in an exploration."""

    policy: Policy
    state: SessionState
    event: Event
    transition: Transition


@attrs.define
class Observed:
    """All that occurred in an exploration: what each rule does, and each transition by its rule and
    by the cells of the table that were read for it. That includes cells read ahead (``foreseen``):
    another remedy in a cell changes these transitions only."""

    seen: dict[str, Seen] = attrs.Factory(dict)
    by_rule: dict[str, list[Met]] = attrs.Factory(dict)
    by_cell: dict[tuple[Situation, Standing], list[Met]] = attrs.Factory(dict)


_FIELDS = (
    *(
        "lifecycle",
        "generation",
        "cached_response",
        "ended",
        "waiting",
        "refusals",
        "past_lifetime",
        "remote",
        "remembers",
    ),
)
_RUNNING = (
    *("phase", "form", "sent", "responses", "doubtful", "replays", "recovered", "fallback"),
    *("paused", "over_http"),
)


def observe(policy: Policy, bounds: Sequence[Bounds] = BOUNDS) -> Observed:
    """What occurs in an exploration of ``policy``."""
    observed = Observed()

    def watching(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        transition = step(policy, state, event, now)
        rule = transition.rule
        _note(observed.seen.setdefault(rule, Seen()), state, event, transition)
        met = Met(policy, state, event, transition)
        observed.by_rule.setdefault(rule, []).append(met)
        for cell in cells_read(transition):
            observed.by_cell.setdefault(cell, []).append(met)
        return transition

    for bound in bounds:
        explore(policy, bound, stepper=watching)
    return observed


def cells_read(transition: Transition) -> set[tuple[Situation, Standing]]:
    """The cells of the table on which ``transition`` depends: those that decided, and the one that
    was read ahead to know whether an event is held back."""
    foreseen = () if transition.foreseen is None else (transition.foreseen,)
    return {(cell.situation, cell.standing) for cell in (*transition.cells, *foreseen)}


def _note(seen: Seen, before: SessionState, event: Event, transition: Transition) -> None:
    after, effects = transition.state, transition.effects
    kinds = [type(effect) for effect in effects]
    seen.effects.update(kinds)
    seen.orders.update(pairwise(kinds))
    seen.answers.update(one.answer for one in effects if isinstance(one, fx.FailTurn))
    if after is before:
        return
    seen.fields.update(f for f in _FIELDS if getattr(before, f) != getattr(after, f))
    if before.running is not None and after.running is not None:
        same = before.running.turn.id == after.running.turn.id
        for field in _RUNNING if same else ():
            if getattr(before.running, field) != getattr(after.running, field):
                seen.running.add(field)
    was, now = dict(before.timers.entries), dict(after.timers.entries)
    fired = event.timer if isinstance(event, ev.DeadlineReached) else None
    seen.cleared.update(timer for timer in was if timer not in now and timer is not fired)
    seen.started.update(timer for timer in now if was.get(timer) != now[timer])


# ---------------------------------------------------------------- the mutants


def mutants(policy: Policy, observed: Observed | None = None) -> Iterator[Mutant]:
    """Every mutant of ``policy`` and of the rules, in a fixed order.

    Mutants that change nothing are left out: those that give, in every reachable state and for
    every event that can occur there, the transition of the original.
    """
    observed = observe(policy) if observed is None else observed
    for mutant in candidates(policy, observed.seen):
        if not changes_nothing(mutant, observed):
            yield mutant


def changes_nothing(mutant: Mutant, observed: Observed) -> bool:
    """Whether ``mutant`` gives the transitions of the original in all that ``observed`` has, except
    for parts of the state that no rule reads (``as_read``)."""
    if mutant.cell is not None:
        met = observed.by_cell.get(mutant.cell, [])
    elif mutant.rule in observed.by_rule:
        met = observed.by_rule[mutant.rule]
    else:  # a mutant of all rules together
        met = [one for of_rule in observed.by_rule.values() for one in of_rule]
    policies: dict[int, Policy] = {}
    for one in met:
        policy = policies.get(id(one.policy))
        if policy is None:
            policy = one.policy
            if mutant.cell is not None:
                policy = policy.with_cell(*mutant.cell, mutant.policy.cells[mutant.cell])
            policies[id(one.policy)] = policy
        after = mutant.stepper(policy, one.state, one.event, 0)
        same = (after.state, after.effects) == (one.transition.state, one.transition.effects)
        if not same and not _alike(one.policy, after, one.transition):
            return False
    return True


def _alike(policy: Policy, one: Transition, other: Transition) -> bool:
    if _by_recipient(one.effects) != _by_recipient(other.effects):
        return False
    if fx.RetireSession() in one.effects:
        return True  # the session is retired, and its state discarded
    return as_read(policy, one.state) == as_read(policy, other.state)


def _by_recipient(effects: tuple[Effect, ...]) -> dict[object, list[Effect]]:
    """The effects for each recipient, in order: each turn's client, the upstream, the owner
    registry, the plans. Only the order for one recipient is visible from outside."""
    effects_of: dict[object, list[Effect]] = {}
    for effect in effects:
        peer: object = None
        if isinstance(effect, fx.FailTurn | fx.CompleteTurn | fx.DeliverEvent):
            peer = effect.turn
        elif isinstance(effect, fx.RebindSession | fx.StopInjecting | fx.StopRebuilding):
            peer = type(effect)
        effects_of.setdefault(peer, []).append(effect)
    return effects_of


def as_read(policy: Policy, state: SessionState) -> SessionState:
    """``state`` normalised in what no rule reads in it. Tests check that the rules behave alike in
    the normalised state.

    SEND_SKIPPED is equivalent to OPEN. Without a connection no rule reads what it remembers, and
    while one is opened only a policy that falls back to HTTP does. While a connect is under way, no
    rule reads how far the last attempt had come. While an answer is awaited, no rule reads the
    planned form or the fallback answer: each way back to a send decides them anew.
    """
    running, lifecycle = state.running, state.lifecycle
    if lifecycle is Lifecycle.SEND_SKIPPED:
        lifecycle = Lifecycle.OPEN
    remembers = state.remembers
    if lifecycle is Lifecycle.CLOSED or (
        lifecycle is Lifecycle.RECONNECTING and not _falls_back(policy)
    ):
        remembers = Remembers.LATEST
    if running is not None and lifecycle is Lifecycle.RECONNECTING:
        running = attrs.evolve(running, phase=AttemptPhase.UNSENT)
    elif running is not None:
        phase = running.phase
        if phase is AttemptPhase.CREATED and _one_row(policy):
            phase = AttemptPhase.OUTPUT
        running = attrs.evolve(running, phase=phase, form=None, fallback=None)
    return attrs.evolve(state, running=running, lifecycle=lifecycle, remembers=remembers)


def _falls_back(policy: Policy) -> bool:
    return any(remedy.action is Action.FALL_BACK for remedy in policy.cells.values())


def _one_row(policy: Policy) -> bool:
    """Whether ``policy`` has the same remedies for a loss before the output and during it."""
    return all(
        policy.remedy(Situation.LOST_CREATED, standing)
        == policy.remedy(Situation.LOST_OUTPUT, standing)
        for standing in Standing
    )


def candidates(policy: Policy, seen: Mapping[str, Seen]) -> Iterator[Mutant]:
    """Every mutant that could be made, whether or not it changes anything."""
    for rule in sorted(seen):
        does = seen[rule]
        if rule in (STALE_GENERATION, SPURIOUS_DEADLINE, ENDED_RESPONSE):
            continue
        for what, change in _changes(does):
            yield Mutant(f"{rule}: {what}", rule, policy, _changing(rule, change))
    yield from _mechanics(policy)
    yield from _budgets(policy)
    yield from _cells(policy)


def _changing(rule: str, change: Change) -> Step:
    def stepper(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        transition = step(policy, state, event, now)
        return change(state, event, transition) if transition.rule == rule else transition

    return stepper


def _changes(does: Seen) -> Iterator[tuple[str, Change]]:
    if does.fields or does.running or does.cleared or does.started or does.effects - {fx.Ignored}:
        yield "dropped", _dropped
    else:
        for lifecycle in Lifecycle:
            yield f"made {lifecycle.value}", _next_lifecycle(lifecycle)
        return
    for kind in sorted(does.effects - {fx.Ignored}, key=str):
        yield f"without {kind.__name__}", _without(kind)
        yield f"{kind.__name__} twice", _doubled(kind)
    for first, second in sorted(does.orders, key=str):
        yield f"{second.__name__} before {first.__name__}", _swapped(first, second)
    for old in sorted(does.answers, key=str):
        for new in FailureReply:
            if new is not old:
                yield f"{old.value} told as {new.value}", _reporting(old, new)
    for field in sorted(does.fields):
        yield f"{field} forgotten", _keeping(field)
    for field in sorted(does.running):
        yield f"running.{field} forgotten", _keeping_running(field)
    for lifecycle in Lifecycle:
        yield f"next {lifecycle.value}", _next_lifecycle(lifecycle)
    for phase in AttemptPhase:
        yield f"next attempt {phase.value}", _assigning_phase(phase)
    for timer in sorted(does.cleared, key=str):
        yield f"{timer.value} not cleared", _timer_kept(timer)
    for timer in sorted(does.started, key=str):
        yield f"{timer.value} not set", _timer_kept(timer)
        yield f"{timer.value} set too late", _timer_late(timer)


def _dropped(before: SessionState, event: Event, transition: Transition) -> Transition:
    state = before
    if isinstance(event, ev.DeadlineReached):
        state = due(before, event.timer, None)
    return Transition(state, (fx.Ignored("dropped"),), transition.rule)


def _with_effects(make: Callable[[tuple[Effect, ...]], Sequence[Effect]]) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        return attrs.evolve(transition, effects=tuple(make(transition.effects)))

    return change


def _without(kind: type[Effect]) -> Change:
    return _with_effects(lambda effects: [one for one in effects if type(one) is not kind])


def _doubled(kind: type[Effect]) -> Change:
    return _with_effects(
        lambda effects: [one for each in effects for one in [each] * (1 + (type(each) is kind))]
    )


def _swapped(first: type[Effect], second: type[Effect]) -> Change:
    def swap(effects: tuple[Effect, ...]) -> list[Effect]:
        swapped = list(effects)
        for index in range(len(swapped) - 1):
            if (type(swapped[index]), type(swapped[index + 1])) == (first, second):
                swapped[index : index + 2] = [swapped[index + 1], swapped[index]]
                break
        return swapped

    return _with_effects(swap)


def _reporting(old: FailureReply, new: FailureReply) -> Change:
    def changed(effects: tuple[Effect, ...]) -> list[Effect]:
        return [
            attrs.evolve(one, answer=new)
            if isinstance(one, fx.FailTurn) and one.answer is old
            else one
            for one in effects
        ]

    return _with_effects(changed)


def _keeping(field: str) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        kept = {field: getattr(before, field)}
        return attrs.evolve(transition, state=attrs.evolve(transition.state, **kept))

    return change


def _keeping_running(field: str) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        was, running = before.running, transition.state.running
        if was is None or running is None or was.turn.id != running.turn.id:
            return transition
        running = attrs.evolve(running, **{field: getattr(was, field)})
        return attrs.evolve(transition, state=attrs.evolve(transition.state, running=running))

    return change


def _next_lifecycle(lifecycle: Lifecycle) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        state = attrs.evolve(transition.state, lifecycle=lifecycle)
        return attrs.evolve(transition, state=state)

    return change


def _assigning_phase(phase: AttemptPhase) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        running = transition.state.running
        if running is None:
            return transition
        running = attrs.evolve(running, phase=phase)
        return attrs.evolve(transition, state=attrs.evolve(transition.state, running=running))

    return change


def _timer_kept(timer: Timer) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        fired = isinstance(event, ev.DeadlineReached) and event.timer is timer
        was = None if fired else before.timers.get(timer)
        return attrs.evolve(transition, state=due(transition.state, timer, was))

    return change


def _timer_late(timer: Timer) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        at = transition.state.timers.get(timer)
        if at is None or at == before.timers.get(timer):
            return transition
        return attrs.evolve(transition, state=due(transition.state, timer, at + 1))

    return change


# ---------------------------------------------------------------- checks before every rule


def _mechanics(policy: Policy) -> Iterator[Mutant]:
    def any_generation(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """The generation of an event is ignored."""
        if getattr(event, "generation", state.generation) != state.generation:
            changed: Any = event  # one of the events with a generation
            event = attrs.evolve(changed, generation=state.generation)
        return step(p, state, event, now)

    def any_response(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """Whether the response of an event has ended is ignored."""
        if isinstance(event, ev.ResponseCreated | ev.OutputReceived | ev.ResponseEnded):
            return step(p, attrs.evolve(state, ended=()), event, now)
        return step(p, state, event, now)

    def too_early(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """A deadline is handled before it is due."""
        return step(p, state, event, now + (1 if isinstance(event, ev.DeadlineReached) else 0))

    def strictly(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """``<`` for ``<=``: a deadline is handled only after its time."""
        if isinstance(event, ev.DeadlineReached) and state.timers.get(event.timer) == now:
            return Transition(state, (fx.Ignored("not due yet"),), SPURIOUS_DEADLINE)
        return step(p, state, event, now)

    def never_cleared(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """A deadline that was handled stays set, unless the rule set it anew."""
        transition = step(p, state, event, now)
        if not isinstance(event, ev.DeadlineReached):
            return transition
        timers, at = transition.state.timers, state.timers.get(event.timer)
        if at is None or timers.get(event.timer) is not None:
            return transition
        return attrs.evolve(transition, state=due(transition.state, event.timer, at))

    def waits_on(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """``<`` for ``<=``: a waiting turn is not failed at the end of its budget."""
        timer = event.timer if isinstance(event, ev.DeadlineReached) else None
        if timer is not Timer.TURN:
            return step(p, state, event, now)
        later = [attrs.evolve(w, deadline=w.deadline + (w.deadline == now)) for w in state.waiting]
        return step(p, attrs.evolve(state, waiting=tuple(later)), event, now)

    def http_caches(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """A connection that speaks HTTP is taken to have its latest response cached."""
        transition = step(p, state, event, now)
        after = transition.state
        ended = [one for one in transition.effects if isinstance(one, fx.CompleteTurn)]
        if after.remembers is not Remembers.STORED or not ended or not ended[0].responses:
            return transition
        cached = ended[0].responses[-1]
        return attrs.evolve(transition, state=attrs.evolve(after, cached_response=cached))

    steppers = (any_generation, any_response, too_early, strictly, never_cleared, waits_on)
    for stepper in (*steppers, http_caches):
        yield Mutant(f"step: {stepper.__name__.replace('_', ' ')}", "step", policy, stepper)


def _budgets(policy: Policy) -> Iterator[Mutant]:
    for name in ("replays", "refusals", "waiting"):
        for change in (-1, 1):
            yield Mutant(f"budget {name} {change:+d}", name, policy, _budgeting(name, change))


def _budgeting(name: str, change: int) -> Step:
    made: list[tuple[Policy, Policy]] = []

    def stepper(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        if not made or made[0][0] is not policy:
            number = max(0, getattr(policy.budgets, name) + change)
            budgets = attrs.evolve(policy.budgets, **{name: number})
            made[:] = [(policy, attrs.evolve(policy, budgets=budgets))]
        return step(made[0][1], state, event, now)

    return stepper


def _cells(policy: Policy) -> Iterator[Mutant]:
    """Each cell of the table, with every other answer and with every other action."""
    remedies = sorted(set(policy.cells.values()), key=str)
    actions = {remedy.action: remedy for remedy in reversed(remedies)}
    for (situation, standing), remedy in policy.cells.items():
        place = f"{situation.name}/{standing.value}"
        others = [
            Remedy(remedy.action, answer) for answer in FailureReply if answer is not remedy.answer
        ]
        surfaces = remedy.action is Action.SURFACE
        if surfaces:
            others = []  # its answer is the upstream's
        for action, usual in actions.items():
            # with the right answer, so that only the action is wrong
            if action is not remedy.action:
                others.append(usual if surfaces else Remedy(action, remedy.answer))
        for other in others:
            mutated = policy.with_cell(situation, standing, other)
            cell = (situation, standing)
            yield Mutant(f"cell {place}: {other}", place, mutated, cell=cell)


# ---------------------------------------------------------------- judging


def judge(
    mutant: Mutant,
    bounds: Sequence[Bounds] = BOUNDS,
    without: frozenset[Property] = frozenset(),
) -> Verdict:
    """Explore ``mutant`` until a property, not one of ``without``, detects it."""
    states = 0
    for bound in bounds:
        report = explore(mutant.policy, bound, stepper=mutant.stepper, without=without)
        states += report.states
        if report.counterexamples:
            killer = report.counterexamples[0].prop
            return Verdict(mutant.name, mutant.rule, killer, states, None)
    return Verdict(mutant.name, mutant.rule, None, states, argument(mutant.name))


def argument(name: str) -> str | None:
    """Why the mutant named ``name`` is equivalent to the original; None if it is not
    known to be."""
    for pattern, why in EQUIVALENT.items():
        if re.fullmatch(pattern, name):
            return why
    return None


def witness(
    prop: Property, killed: Sequence[Mutant], bounds: Sequence[Bounds] = BOUNDS
) -> Mutant | None:
    """A mutant among those ``killed`` first by ``prop`` that no other property detects; None:
    ``prop`` detects nothing that the others together do not detect."""
    for mutant in killed:
        try:
            unnoticed = judge(mutant, bounds, frozenset({prop})).killer is None
        except (LookupError, StopIteration):
            # Without ``prop`` the model loses track of this mutant: it proves nothing.
            continue
        if unnoticed:
            return mutant
    return None


# Patterns of names of mutants, and why no property can detect them.
EQUIVALENT: Mapping[str, str] = {
    r"(connect-deadline|lost-connecting): running\.recovered forgotten": (
        "only the loss of the owner is recorded there, and a rebound session has no owner to lose"
    ),
    r"cell CONNECTION_LIMIT/(unanchored|stored|unknown): send \(upstream_unavailable\)": (
        "a resend on the new connection also sends it as it is"
    ),
    r"cell CONNECTION_LIMIT/held: rehydrate \(upstream_unavailable\)": (
        "no new connection knows the anchor: it is rehydrated there in any case"
    ),
    r"cell CONNECTION_LIMIT/injected: send full \(upstream_unavailable\)": (
        "no new connection knows the anchor: the full input is sent there in any case"
    ),
    r"cell (LOST|OWNER_LOST)_(CREATED|OUTPUT)/unanchored: refuse, then not-found .*": (
        "the beginning of an answer resets the count of refusals, and nothing else counts those of "
        "a turn without an anchor: the bound is never reached"
    ),
    r"cell NOT_FOUND/(held|injected): resend \(upstream_unavailable\)": (
        "the refusal evicted the anchor: a resend sends the full input, too"
    ),
    r"lost-in-flight: running\.(form|doubtful) forgotten": (
        "no new connection knows the anchor, so the form is decided anew with the same result; and "
        "nothing reads what is in doubt until the turn is sent again, which resets it"
    ),
    r"cell (LOST_(SENDING|SENT|CREATED|OUTPUT)|SILENT|OWNER_LOST_(DISPATCHED|OUTPUT))/unanchored: "
    r"refuse, next try rehydrates .*": (
        "it counts a try in vain, and nothing reads the count of a turn without an anchor"
    ),
    r"(connect-deadline|lost-connecting|refused|ended): running\.form forgotten": (
        "the form is decided anew, with the same result: no new connection knows the anchor"
    ),
}

# Properties for which no mutant of the default policy is detected by them alone, and why they are
# checked all the same. That other properties detect their mutants, too, was established by judging
# without the property.
KEPT: Mapping[Property, str] = {
    Property.INJECTED_IS_INVISIBLE: (
        "an undeserved not-found also breaks NOT_FOUND_IS_EARNED; this one forbids it even after "
        "refusals of the injected anchor were counted"
    ),
    Property.REFUSED_IS_NOT_REPEATED: (
        "repeated sends of a refused id also end in too many refusals (REFUSALS_ARE_BOUNDED); this "
        "one fails at the second send already, for every form of the input"
    ),
    Property.REPLAYS_ARE_BOUNDED: (
        "the default policy never replays; for policies that do, it counts replays over all paths, "
        "while RECOVERY_DESCENDS compares one try with the next"
    ),
    Property.RECONNECT_COSTS_NO_REPLAY: (
        "the default policy never replays; it detects this defect of pr397"
    ),
    Property.NO_REPLAY_AFTER_ANSWER: (
        "the default policy never replays; it detects a policy that does so after it delivered "
        "what it should hold back (tests/verify)"
    ),
    Property.DELIVERED_TO_ITS_TURN: (
        "a connection carries one turn, so an event delivered wrongly is also missing in the right "
        "answer (ANSWER_IS_WHOLE); the bug 'a turn that never ends' is found by it"
    ),
    Property.OPEN_IS_OPEN: (
        "a session that uses a connection that is not open soon closes or reopens it as well "
        "(LIVE_GENERATION); this one fails at the send, where the mistake is"
    ),
    Property.NOTHING_IS_STRANDED: (
        "a stranded turn also misses a deadline (DEADLINES_ARE_KEPT) if one is set; this one "
        "needs no deadline"
    ),
    Property.SPURIOUS_IS_NOTHING: (
        "acting on an event that should be ignored soon breaks a deadline or an answer, too; this "
        "one fails at once, and also for effects without a recipient"
    ),
    Property.REBIND_CODE_IS_PROVEN: (
        "the default policy never answers the code for a local session, so there it also breaks "
        "ANSWER_TELLS_WHAT_HAPPENED; for policies that do, as pr397, only this one checks it"
    ),
    Property.FALLBACK_IS_PROVEN: (
        "the default policy never falls back; for a policy that does, it detects one that does not "
        "stay with HTTP, or asks for it without a reason (tests/verify)"
    ),
    Property.RECOVERY_DESCENDS: (
        "a try that uses up no budget also breaks a property of forms or answers; this one proves "
        "that recovery ends, by a ranking function"
    ),
    Property.TURNS_END: (
        "a session in a loop also closes connections without a reason (SOUND_SOCKETS_STAY) or "
        "retries without a bound (RECOVERY_DESCENDS); this one checks the graph itself and needs "
        "neither of the two (tests/verify)"
    ),
    Property.RETRIES_END: (
        "it follows from REFUSALS_ARE_BOUNDED; it is checked on the graph itself, by retrying as a "
        "client would"
    ),
}
