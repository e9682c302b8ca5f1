"""Names what is responsible for a violation: a cell of the policy's table, a budget, or a rule.

What belongs here: the search for it, and the remedies that would hold in its place. Nothing is
derived: each candidate is tried, by following the path of the counterexample or by an exploration
within narrow bounds, so that what is printed has been seen.

How a cell is found. The cells that were read on the path are candidates, the last one first. The
responsible one is the first that differs from ``default`` and whose replacement by the remedy of
``default`` takes the violation away from the path. If there is none, a budget that differs is tried
in the same way; then it is the last cell that was read, whatever ``default`` has there; and if no
cell was read, the rule that was applied last.

How a remedy is tried. A policy with one wrong cell mostly has more of them, and those would hide
what another remedy does in this one. So the other cells are those of ``default`` if the cell breaks
the property there, too; otherwise those of the policy. If no remedy holds among those, other cells
break the property as well: then the path alone is followed with each remedy.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence

import attrs

from bridgecore.recovery.effects import FailureReply, RetireSession
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    Action,
    Budgets,
    Cell,
    Policy,
    Remedy,
    Situation,
    can_carry_out,
)
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import SessionState
from bridgecore.verify.environment import Bounds, bounded, moves, terms_of
from bridgecore.verify.explore import Counterexample, Report, Step, canonical, explore
from bridgecore.verify.model import Model
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.properties import Property, ViolationError

ALL = frozenset(Property)
# States that may be explored: for all counterexamples of a policy together (some seconds), for each
# of them at least, and for one remedy. The least is enough to try the remedy of `default`.
EFFORT, _LEAST_FOR_ONE, _EFFORT_OF_ONE_TRIAL = 7000, 700, 500


class Extent(enum.Enum):
    """Where a remedy was tried. The value says it in print."""

    DEFAULT = "with the other cells of `default`"
    POLICY = "with the other cells of the policy"
    PATH = "on this path alone; other cells break the property elsewhere"


@attrs.frozen
class Trial:
    """Another remedy in the cell. ``breaks``: the first property that is broken then, None if none
    is in ``states`` states."""

    remedy: Remedy
    breaks: Property | None
    states: int


@attrs.frozen
class Blame:
    """What is responsible for a violation: one of ``cell``, ``budget`` and ``rule``.

    ``holding``: the remedies by which no property is broken, one of each action. ``failing``: those
    that break another property than the one in question. ``extent``: where both were tried; None if
    nothing was tried. ``complete``: whether every remedy was tried; ``shared``: whether the effort
    was shared with other violations, so that more are tried for this one alone. ``value``: for a
    budget, the value with which the property is not broken, such as
    ``reconnect_uses_replay=False``, and ``states``: in how many states.
    """

    cell: Cell | None = None
    budget: str = ""  # such as "reconnect_uses_replay=True"
    rule: str = ""
    holding: tuple[Trial, ...] = ()
    failing: tuple[Trial, ...] = ()
    extent: Extent | None = None
    complete: bool = False
    shared: bool = False
    value: str = ""
    states: int = 0

    @property
    def because(self) -> str:
        """What is responsible, in words."""
        if self.cell is not None:
            return self.cell.words
        return f"the budget {self.budget}" if self.budget else f"the rule {self.rule}"

    @property
    def tried(self) -> str:
        """What was tried to find the remedies that would hold, in words; empty if nothing was."""
        if self.extent is None:
            return ""
        most = max((trial.states for trial in self.holding), default=self.states)
        what = "no property" if self.extent is Extent.DEFAULT else "this property not"
        seen = f"{what} broken in {most:,} states, " if most else ""
        partly = "" if self.complete else "; not every remedy was tried"
        return f"{seen}{self.extent.value}{partly}"

    def lines(self) -> list[str]:
        """What is responsible and what would hold in its place, as lines of text."""
        lines = [f"because: {self.because}"]
        if self.extent is None:
            return lines
        if self.holding:
            lines.append(f"would hold: {'; '.join(str(trial.remedy) for trial in self.holding)}")
            lines.append(f"  ({self.tried})")
        elif self.value:
            lines += [f"would hold: {self.value}", f"  ({self.tried})"]
        elif self.complete:
            lines.append(f"would hold: no other remedy, {self.tried}")
        else:
            hint = "; --property NAME looks for this one alone" if self.shared else ""
            lines.append(f"would hold: none was found{hint} ({self.tried})")
        broken: dict[str, list[str]] = {}
        for trial in self.failing:
            if trial.breaks is not None:
                broken.setdefault(trial.breaks.name, []).append(trial.remedy.action.value)
        for name, actions in broken.items():
            lines.append(f"would break {name}: {'; '.join(actions)}")
        return lines


class Blamer:
    """Finds what is responsible for the counterexamples of one policy.

    ``effort`` is the number of states that may be explored for all of them, ``findings``, together.
    Each has its share of it, and of what those before have left. Without an effort no remedies are
    tried.
    """

    def __init__(
        self, policy: Policy, *, stepper: Step = step, effort: int = EFFORT, findings: int = 1
    ) -> None:
        self.policy = policy
        self.stepper = stepper
        self.effort = effort
        self._tries = effort > 0
        self._shared = findings > 1
        self._ahead = findings
        self._tried: dict[object, Report] = {}

    def blame(self, bounds: Bounds, found: Counterexample) -> Blame:
        """What is responsible for ``found``, which was found within ``bounds``."""
        share = max(_LEAST_FOR_ONE, self.effort // max(1, self._ahead))
        least = self.effort - share
        self._ahead -= 1
        path: list[Transition] = []
        changed: Transition | None = None  # the last one that the original rules would not make
        with contextlib.suppress(ViolationError):
            for transition, original in _replayed(self.policy, bounds, found, self.stepper):
                path.append(transition)
                changed = transition if transition != original else changed
        if changed is not None:
            return Blame(rule=changed.rule)
        cells: list[Cell] = []
        for one in reversed(path):
            cells += [cell for cell in reversed(one.cells) if not _has(cells, cell)]
        narrow = _narrow(bounds, found)
        breaks = self._judge_of(bounds, narrow, found)
        for cell in cells:
            usual = DEFAULT.remedy(cell.situation, cell.standing)
            if cell.remedy == usual:
                continue
            if not breaks(self.policy.with_cell(cell.situation, cell.standing, usual)):
                return self._with_trials(cell, bounds, narrow, found, least)
        for name in _differing_budgets(self.policy):
            usual_budgets = attrs.evolve(
                self.policy.budgets, **{name: getattr(DEFAULT.budgets, name)}
            )
            other = attrs.evolve(self.policy, budgets=usual_budgets)
            if not breaks(other):
                return self._of_budget(name, other, narrow, found)
        if cells:
            return self._with_trials(cells[0], bounds, narrow, found, least)
        return Blame(rule=path[-1].rule if path else "")

    def _judge_of(
        self, bounds: Bounds, narrow: Bounds, found: Counterexample
    ) -> Callable[[Policy], bool]:
        """Whether another policy breaks the same property: on the same path if the violation can be
        seen there, otherwise in an exploration."""
        prop = found.prop

        def on_path(policy: Policy) -> bool:
            return _violation(policy, bounds, found, self.stepper) is prop

        def explored(policy: Policy) -> bool:
            return prop in self._explore(policy, narrow, ALL - {prop}).broken

        return on_path if on_path(self.policy) else explored

    def _explore(
        self, policy: Policy, bounds: Bounds, without: frozenset[Property] = frozenset()
    ) -> Report:
        """Explore until the first violation. One table is not explored twice."""
        cells = tuple(policy.cells[key] for key in DEFAULT.cells)
        limits = bounds.standings, bounds.remote, bounds.max_states, bounds.name
        place = (cells, policy.budgets, *limits, without)
        if place not in self._tried:
            report = explore(policy, bounds, stepper=self.stepper, without=without)
            self.effort -= report.states
            self._tried[place] = report
        return self._tried[place]

    def _of_budget(self, name: str, other: Policy, narrow: Bounds, found: Counterexample) -> Blame:
        """The blame for the budget ``name``. ``other``: the policy with the value of ``default``,
        by which the property is not broken on the path."""
        blame = Blame(budget=f"{name}={getattr(self.policy.budgets, name)}")
        if not self._tries:
            return blame
        report = self._explore(other, narrow, ALL - {found.prop})
        sound = not report.broken
        return attrs.evolve(
            blame,
            value=f"{name}={getattr(other.budgets, name)}",
            extent=Extent.POLICY if sound else Extent.PATH,
            states=report.states if sound else 0,
            complete=True,
        )

    def _with_trials(
        self, cell: Cell, bounds: Bounds, narrow: Bounds, found: Counterexample, least: int
    ) -> Blame:
        """The blame for ``cell``, with the other remedies that were tried there until no more than
        ``least`` is left of the effort."""
        if not self._tries:
            return Blame(cell)
        prop, place = found.prop, (cell.situation, cell.standing)
        isolated = DEFAULT.with_cell(*place, cell.remedy)
        as_default = prop in self._explore(isolated, narrow, ALL - {prop}).broken
        base = DEFAULT if as_default else self.policy
        without = frozenset[Property]() if as_default else ALL - {prop}
        holding: dict[Action, Trial] = {}
        failing: dict[Action, Trial] = {}
        complete = True
        alternatives = _alternatives(self.policy, cell)
        for remedy in alternatives:
            if remedy.action in holding:
                continue
            if self.effort <= least:
                complete = False
                break
            other = base.with_cell(*place, remedy)
            # Among other wrong cells only the one property can be judged, so the path has to be
            # free of any violation.
            broken = None if as_default else _violation(other, bounds, found, self.stepper)
            trial = Trial(remedy, broken, 0)
            if broken is None:
                report = self._explore(other, narrow, without)
                wide = _wide(remedy, cell.standing, narrow)
                if wide is not None and not report.broken:
                    report = self._explore(other, wide, without)
                trial = Trial(remedy, next(iter(report.broken), None), report.states)
            if trial.breaks is None:
                holding[remedy.action] = trial
            else:
                failing.setdefault(remedy.action, trial)
        extent = Extent.DEFAULT if as_default else Extent.POLICY
        if not (as_default or holding):
            extent, complete = Extent.PATH, True
            for remedy in alternatives:
                other = self.policy.with_cell(*place, remedy)
                if _violation(other, bounds, found, self.stepper) is None:
                    holding.setdefault(remedy.action, Trial(remedy, None, 0))
        others = [
            trial
            for action, trial in failing.items()
            if action not in holding and trial.breaks is not prop
        ]
        return Blame(
            cell,
            holding=tuple(holding.values()),
            failing=tuple(others),
            extent=extent,
            complete=complete,
            shared=self._shared,
        )


def _violation(
    policy: Policy, bounds: Bounds, found: Counterexample, stepper: Step
) -> Property | None:
    """The first property that ``policy`` breaks on the path of ``found``, as far as it can be
    followed."""
    try:
        for _ in _replayed(policy, bounds, found, stepper):
            pass
    except ViolationError as violation:
        return violation.prop
    return None


def _replayed(
    policy: Policy, bounds: Bounds, found: Counterexample, stepper: Step
) -> Iterator[tuple[Transition, Transition]]:
    """Each transition on the path of ``found``, and what the original rules make of the event.

    Raises:
        ViolationError: a property is broken, by the last one.
    """
    ticking = bounded(policy, bounds)
    state = SessionState(remote=found.remote)
    model = Model(terms_of(ticking), remote=found.remote)
    for label in found.path:
        move = next((one for one in moves(state, bounds) if one.label == label), None)
        if move is None:
            return  # the last move led to another state than on the path
        if move.event is None:
            state, model = canonical(state, model, 1)
            continue
        transition = stepper(ticking, state, move.event, 0)
        original = transition if stepper is step else step(ticking, state, move.event, 0)
        yield transition, original
        effects = transition.effects
        model = check_step(model, move.event, effects, 0, transition.state.timers.next())
        if effects and type(effects[-1]) is RetireSession:
            return
        state, model = canonical(transition.state, model, 0)


def _narrow(bounds: Bounds, found: Counterexample) -> Bounds:
    """``bounds``, with what the path has only: its standings, and a remote session only if it
    starts with one."""
    words = {label.split()[1] for label in found.path if label.startswith("submit ")}
    standings = tuple(one for one in bounds.standings if one.value in words) or bounds.standings
    return attrs.evolve(
        bounds,
        standings=standings,
        remote=found.remote,
        late=bounds.late and any(label.startswith("late ") for label in found.path),
        max_states=min(bounds.max_states, _EFFORT_OF_ONE_TRIAL),
    )


def _wide(remedy: Remedy, standing: Standing, narrow: Bounds) -> Bounds | None:
    """``narrow`` with more of what ``remedy`` needs to show its effect, which the path that is
    explained may do without; None: there is no more."""
    if remedy.action is Action.REBIND and not narrow.remote:
        return attrs.evolve(narrow, remote=True)  # another replica owns the session
    if remedy.action is Action.REFUSE_THEN_REHYDRATE and standing in _WITHOUT_CONTEXT:
        # The transcript may be gone when the client tries again.
        standings = dict.fromkeys((*narrow.standings, _WITHOUT_CONTEXT[standing]))
        most = 2 * narrow.max_states  # twice as many turns can be submitted
        return attrs.evolve(narrow, standings=tuple(standings), max_states=most)
    return None


_WITHOUT_CONTEXT = {Standing.HELD: Standing.BOUND, Standing.HELD_STORED: Standing.STORED}


def _has(cells: Sequence[Cell], cell: Cell) -> bool:
    place = cell.situation, cell.standing
    return any((one.situation, one.standing) == place for one in cells)


def _differing_budgets(policy: Policy) -> list[str]:
    names = [field.name for field in attrs.fields(Budgets)]
    return [n for n in names if getattr(policy.budgets, n) != getattr(DEFAULT.budgets, n)]


def _alternatives(policy: Policy, cell: Cell) -> list[Remedy]:
    """The other remedies for ``cell``: that of ``default`` first, then every action that a bridge
    can carry out there, because a policy with another one is refused, with each answer that is
    plausible: one that ``default`` has in the row, the cell's own, and that for a takeover if the
    policy lets other replicas take over."""
    usual = DEFAULT.remedy(cell.situation, cell.standing)
    answers = [usual.answer, *_row(cell.situation), cell.remedy.answer]
    if terms_of(policy).hands_over:
        answers.append(FailureReply.OWNER_UNREACHABLE)
    remedies = [usual]
    for action in Action:
        if not can_carry_out(action, cell.standing):
            continue
        if action is Action.SURFACE:
            remedies.append(Remedy(action, FailureReply.UPSTREAM_ERROR))
        else:
            remedies += [Remedy(action, answer) for answer in answers]
    wanted: dict[str, Remedy] = {}
    for remedy in remedies:
        if str(remedy) != str(cell.remedy):
            wanted.setdefault(str(remedy), remedy)
    return list(wanted.values())


def _row(situation: Situation) -> list[FailureReply]:
    answers = [DEFAULT.remedy(situation, standing).answer for standing in Standing]
    return [one for one in answers if one is not FailureReply.UPSTREAM_ERROR]
