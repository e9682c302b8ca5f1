"""Turns a counterexample of the explorer into a readable history and a scenario.

What belongs here: replaying the moves of a counterexample with ids that are never reused and with
seconds for ticks, and writing the result as text. Drawing it is diagram.py.
"""

from __future__ import annotations

import attrs

from bridgecore.recovery import events as ev
from bridgecore.recovery.events import Event, Turn
from bridgecore.recovery.policy import DEFAULT, Policy, Timeouts
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.environment import Bounds, bounded, moves, terms_of
from bridgecore.verify.explore import Counterexample, Step, canonical
from bridgecore.verify.model import Model
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.scenario import command_of, describe, replay


@attrs.frozen
class Seen:
    """One event on the path to a violation, and the transition that it caused."""

    at: int  # ns since the beginning
    event: Event
    before: Phase
    transition: Transition
    note: str = ""  # printed behind the event, such as that it is assumed


@attrs.frozen
class Story:
    """A counterexample with concrete names and times: unique ids, seconds for ticks."""

    prop: Property
    text: str
    seen: tuple[Seen, ...]
    scenario: str  # with the output of the original rules, for the scenario runner

    def __str__(self) -> str:
        return explain(self)


def tell(policy: Policy, bounds: Bounds, found: Counterexample, *, stepper: Step = step) -> Story:
    """Replay the moves of ``found`` with unique ids; one tick is one second."""
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
            pending -= _MOMENT  # this event comes just before the deadline
        if pending:
            lines.append(f"advance {pending // _MOMENT}ms")
            now += pending
            pending = 0
        event = move.event
        if isinstance(event, ev.TurnSubmitted):
            turns += 1
            turn, anchor = event.turn, event.turn.anchor
            if anchor is not None:
                anchor = state.cached_response if anchor == "tip" else (live or ["resp_0"])[-1]
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
                pass  # the runner reports a deadline that is due by itself
            elif at is not None and at > now:
                lines.append(f"advance {(at - now) // _MOMENT}ms")
            else:
                lines.append(command_of(event))
            now = max(now, at or now)
        else:
            lines.append(command_of(event))
        happens(event)
        if state.cached_response is not None and state.cached_response not in live:
            live.append(state.cached_response)
        transition = stepper(ticking, folded, move.event, 0)
        try:
            watched = check_step(
                model, move.event, transition.effects, 0, transition.state.timers.next()
            )
        except ViolationError:
            break
        folded, model = canonical(transition.state, watched, 0)
    settings = [f"{name}={n}s" for name, n in times.items()]
    budgets = real.budgets
    settings += [f"{name}={getattr(budgets, name)}" for name in ("replays", "refusals", "waiting")]
    text = f"# {found.text.splitlines()[0]}\npolicy {policy.name} {' '.join(settings)}\n"
    text += "remote\n" if found.remote else ""
    text += "show rules next\n"  # the rule that decided is the subject
    text += "".join(f"\n{line}\n" for line in lines)
    return Story(found.prop, found.text, tuple(seen), replay(text, policies={policy.name: policy}))


_MOMENT = NS_PER_SECOND // 1000


def _raw_turn(folded: SessionState, state: SessionState, number: int) -> int:
    """The id in ``state`` of the turn numbered ``number`` in ``folded``."""
    if folded.running is not None and folded.running.turn.id == number and state.running:
        return state.running.turn.id
    for one, other in zip(folded.waiting, state.waiting, strict=False):
        if one.turn.id == number:
            return other.turn.id
    return 0  # a turn that has ended


def reasons(transition: Transition) -> list[str]:
    """The cells of the policy's table that decided, in words, each with the remedy of ``default``
    if that is another one. Empty if no cell was read: then the rule alone decided."""
    lines = []
    for cell in transition.cells:
        usual = DEFAULT.remedy(cell.situation, cell.standing)
        differs = "" if usual == cell.remedy else f"; `default` has {usual}"
        lines.append(f"because: {cell.words}{differs}")
    return lines


def explain(story: Story) -> str:
    """The story as lines of text: when, what happened, by which rule and cell, with which
    effects."""
    lines = [f"{story.prop.name}: {story.prop.value}", ""]
    for one in story.seen:
        lines.append(f"{one.at / NS_PER_SECOND:7.3f}  {command_of(one.event)}")
        after = one.transition.state.phase.value
        lines.append(f"         {one.before.value} -> {after} by {one.transition.rule}")
        lines += [f"           {reason}" for reason in reasons(one.transition)]
        lines += [f"           {describe(effect)}" for effect in one.transition.effects]
    lines += ["", f"broken: {story.text}", f"costs:  {story.prop.cost}"]
    return "\n".join(lines)
