"""Rules broken on purpose, to see that the properties notice.

What belongs here: the mutants of the decision core, how each is explored, and the table of those
that no property can notice, each with the argument why. A mutant is a stepper that wraps ``step``,
or a policy with other cells or budgets; nothing is patched, so nothing can be left behind.

Mutants are drawn from what was seen: an exploration of the rules as they are notes, for each rule,
which effects it had, which fields of the state it changed and which timers it set or cleared. Each
of these is then dropped, doubled, swapped or kept from happening, one at a time, for every
transition by that rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Answer, Effect
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.policy import Action, Policy, Remedy, Timeouts
from bridgecore.recovery.rules import SPURIOUS_DEADLINE, STALE_GENERATION, Transition, step
from bridgecore.recovery.state import AttemptPhase, Lifecycle, SessionState
from bridgecore.recovery.timers import Timer
from bridgecore.verify.environment import Bounds
from bridgecore.verify.explore import Step, explore
from bridgecore.verify.properties import Property

_TICKS = Timeouts(connect=1, created=1, idle=1, turn=1, lifetime=1, expiry=1)
_LONGER = Timeouts(connect=1, created=1, idle=1, turn=2, lifetime=2, expiry=1)
_QUEUE = (Standing.UNANCHORED, Standing.BOUND)
# Tried in this order: most mutants die in the first, and soon.
BOUNDS: Sequence[Bounds] = (
    Bounds("mutants", 0, tuple(Standing), _TICKS, 1),
    Bounds("mutants, a queue", 1, _QUEUE, _TICKS, 1, causes=False),
    Bounds("mutants, longer times", 0, (*_QUEUE, Standing.HELD), _LONGER, 1),
)

Change = Callable[[SessionState, Event, Transition], Transition]


@attrs.frozen(eq=False)
class Mutant:
    """A policy or a transition function with one thing wrong. ``name`` tells which."""

    name: str
    rule: str  # the rule, cell or budget that is wrong
    policy: Policy
    stepper: Step = step


@attrs.frozen
class Verdict:
    """What became of a mutant: the property that noticed it first and how long that took; None if
    it survived."""

    mutant: str
    rule: str
    killer: Property | None
    states: int
    argument: str | None  # why it cannot be told from the original, if it is equivalent


@attrs.define
class Seen:
    """What a rule was seen to do."""

    effects: set[type[Effect]] = attrs.Factory(set)
    repeated: set[type[Effect]] = attrs.Factory(set)
    answers: set[Answer] = attrs.Factory(set)
    orders: set[tuple[type[Effect], type[Effect]]] = attrs.Factory(set)
    fields: set[str] = attrs.Factory(set)
    running: set[str] = attrs.Factory(set)
    cleared: set[Timer] = attrs.Factory(set)
    set: set[Timer] = attrs.Factory(set)


_FIELDS = ("lifecycle", "generation", "live_anchor", "waiting", "refusals", "worn", "remote")
_RUNNING = ("phase", "form", "replays", "recovered", "fallback", "paused")


def observe(policy: Policy, bounds: Sequence[Bounds] = BOUNDS) -> dict[str, Seen]:
    """What each rule does in an exploration of ``policy``, by rule id."""
    seen: dict[str, Seen] = {}

    def watching(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        transition = step(policy, state, event, now)
        _note(seen.setdefault(transition.rule, Seen()), state, event, transition)
        return transition

    for bound in bounds:
        explore(policy, bound, stepper=watching)
    return seen


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
    seen.set.update(timer for timer in now if was.get(timer) != now[timer])


# ---------------------------------------------------------------- the mutants


def mutants(policy: Policy, seen: Mapping[str, Seen] | None = None) -> Iterator[Mutant]:
    """Every mutant of ``policy`` and of the rules, in an order that never changes."""
    seen = observe(policy) if seen is None else seen
    for rule in sorted(seen):
        does = seen[rule]
        if rule in (STALE_GENERATION, SPURIOUS_DEADLINE):
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
    if does.fields or does.running or does.cleared or does.set or does.effects - {fx.Ignored}:
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
        for new in Answer:
            if new is not old:
                yield f"{old.value} told as {new.value}", _telling(old, new)
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
    for timer in sorted(does.set, key=str):
        yield f"{timer.value} not set", _timer_kept(timer)
        yield f"{timer.value} set too late", _timer_late(timer)


def _dropped(before: SessionState, event: Event, transition: Transition) -> Transition:
    state = before
    if isinstance(event, ev.DeadlineReached):
        state = attrs.evolve(before, timers=before.timers.clear(event.timer))
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


def _telling(old: Answer, new: Answer) -> Change:
    def retold(effects: tuple[Effect, ...]) -> list[Effect]:
        return [
            attrs.evolve(one, answer=new)
            if isinstance(one, fx.FailTurn) and one.answer is old
            else one
            for one in effects
        ]

    return _with_effects(retold)


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
        was = before.timers.get(timer)
        fired = isinstance(event, ev.DeadlineReached) and event.timer is timer
        timers = transition.state.timers
        timers = timers.clear(timer) if was is None or fired else timers.set(timer, was)
        return attrs.evolve(transition, state=attrs.evolve(transition.state, timers=timers))

    return change


def _timer_late(timer: Timer) -> Change:
    def change(before: SessionState, event: Event, transition: Transition) -> Transition:
        timers = transition.state.timers
        at = timers.get(timer)
        if at is None or at == before.timers.get(timer):
            return transition
        timers = timers.set(timer, at + 1)
        return attrs.evolve(transition, state=attrs.evolve(transition.state, timers=timers))

    return change


# ---------------------------------------------------------------- what holds in every phase


def _mechanics(policy: Policy) -> Iterator[Mutant]:
    def any_generation(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """The generation of an event is not looked at."""
        if getattr(event, "generation", state.generation) != state.generation:
            changed: Any = event  # one of those that have a generation
            event = attrs.evolve(changed, generation=state.generation)
        return step(p, state, event, now)

    def too_early(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """A deadline that is not due passes all the same."""
        return step(p, state, event, now + (1 if isinstance(event, ev.DeadlineReached) else 0))

    def strictly(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """``<`` for ``<=``: a deadline is due only after its time."""
        if isinstance(event, ev.DeadlineReached) and state.timers.get(event.timer) == now:
            return Transition(state, (fx.Ignored("not due yet"),), SPURIOUS_DEADLINE)
        return step(p, state, event, now)

    def never_cleared(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """A deadline that passed stays set, unless the rule set it anew."""
        transition = step(p, state, event, now)
        if not isinstance(event, ev.DeadlineReached):
            return transition
        timers, at = transition.state.timers, state.timers.get(event.timer)
        if at is None or timers.get(event.timer) is not None:
            return transition
        kept = attrs.evolve(transition.state, timers=timers.set(event.timer, at))
        return attrs.evolve(transition, state=kept)

    def waits_on(p: Policy, state: SessionState, event: Event, now: int) -> Transition:
        """``<`` for ``<=``: a waiting turn whose budget ends now waits on."""
        timer = event.timer if isinstance(event, ev.DeadlineReached) else None
        if timer is not Timer.TURN:
            return step(p, state, event, now)
        later = [attrs.evolve(w, deadline=w.deadline + (w.deadline == now)) for w in state.waiting]
        return step(p, attrs.evolve(state, waiting=tuple(later)), event, now)

    for stepper in (any_generation, too_early, strictly, never_cleared, waits_on):
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
        others = [Remedy(remedy.action, answer) for answer in Answer if answer is not remedy.answer]
        if remedy.action is Action.SURFACE:
            others = []  # its answer is the upstream's
        others += [other for action, other in actions.items() if action is not remedy.action]
        for other in others:
            mutated = policy.with_cell(situation, standing, other)
            yield Mutant(f"cell {place}: {other}", place, mutated)


# ---------------------------------------------------------------- judging


def judge(mutant: Mutant, bounds: Sequence[Bounds] = BOUNDS) -> Verdict:
    """Explore ``mutant`` until a property notices it."""
    states = 0
    for bound in bounds:
        report = explore(mutant.policy, bound, stepper=mutant.stepper)
        states += report.states
        if report.counterexamples:
            killer = report.counterexamples[0].prop
            return Verdict(mutant.name, mutant.rule, killer, states, None)
    return Verdict(mutant.name, mutant.rule, None, states, argument(mutant.name))


def argument(name: str) -> str | None:
    """Why the mutant of that name cannot be told from the original; None if it can."""
    for pattern, why in EQUIVALENT.items():
        if re.fullmatch(pattern, name):
            return why
    return None


_NO_SOCKET = "in a state without a socket nobody looks at it, and a connect sets it anew"
# Patterns of names, and why the mutant does nothing that anybody could notice.
EQUIVALENT: Mapping[str, str] = {
    r"[\w-]+: (FailTurn|RebindSession|CompleteTurn) before CloseConnection": (
        "the two are told to different peers in the same step; neither waits for the other"
    ),
    r"[\w-]+: CloseConnection before (FailTurn|RebindSession|CompleteTurn)": (
        "the two are told to different peers in the same step; neither waits for the other"
    ),
    r"[\w-]+: OpenConnection before (FailTurn|CompleteTurn)": (
        "the turn that ended and the connect for the next one concern different peers"
    ),
    r"[\w-]+: SendTurn before (FailTurn|CompleteTurn)": (
        "the turn that ended and the send of the next one concern different peers"
    ),
    r"[\w-]+: FailTurn before FailTurn": "two different turns end, each client hears of its own",
}
