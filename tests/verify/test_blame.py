"""Tests of verify/blame.py: what is responsible for a violation is named, and what would hold."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    PR397,
    V1_12,
    Action,
    Policy,
    Remedy,
    Situation,
    can_carry_out,
)
from bridgecore.recovery.rules import step
from bridgecore.verify.blame import ALL, Blame, Blamer, Extent
from bridgecore.verify.bugs import BUGS, Bug
from bridgecore.verify.environment import BOUNDS
from bridgecore.verify.explore import Counterexample, explore
from bridgecore.verify.properties import Property

FEW = attrs.evolve(BOUNDS["quick"][0], max_states=1500)


def first(policy: Policy, prop: Property) -> Counterexample:
    report = explore(policy, FEW, without=ALL - {prop}, local_first=True)
    return report.broken[prop]


def blamed(policy: Policy, prop: Property) -> Blame:
    return Blamer(policy).blame(FEW, first(policy, prop))


def test_the_lost_conversation_of_the_broken_policy() -> None:
    blame = blamed(V1_12, Property.NOT_FOUND_IS_EARNED)
    assert blame.because == (
        "socket is open but does not know the anchor / held = refuse (previous_response_not_found)"
    )
    assert [str(trial.remedy) for trial in blame.holding] == ["rehydrate (upstream_unavailable)"]
    assert blame.extent is Extent.DEFAULT
    broken = {trial.remedy.action: trial.breaks for trial in blame.failing}
    assert broken[Action.SEND] is Property.ANCHOR_IS_KNOWN
    assert broken[Action.REFUSE] is Property.CONTINUED_AT_ONCE
    lines = blame.lines()
    assert "would hold: rehydrate (upstream_unavailable)" in lines
    assert any(line.startswith("would break CONTINUED_AT_ONCE: ") for line in lines)


_REFUSE = Remedy(Action.REFUSE, FailureReply.UPSTREAM_UNAVAILABLE)


@pytest.mark.parametrize(
    ("situation", "standing", "remedy", "prop"),
    [
        (
            Situation.LOST_SENT,
            Standing.HELD,
            Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE),
            Property.NO_AMBIGUOUS_RESEND,
        ),
        (Situation.SEND_SKIPPED, Standing.BOUND, _REFUSE, Property.REFUSALS_ARE_BOUNDED),
        (
            Situation.CONNECT_FAILED,
            Standing.UNANCHORED,
            Remedy(Action.REFUSE, FailureReply.STREAM_INCOMPLETE),
            Property.ANSWER_TELLS_WHAT_HAPPENED,
        ),
    ],
)
def test_one_careless_cell_is_named(
    situation: Situation, standing: Standing, remedy: Remedy, prop: Property
) -> None:
    blame = blamed(DEFAULT.with_cell(situation, standing, remedy), prop)
    assert blame.cell is not None
    assert (blame.cell.situation, blame.cell.standing) == (situation, standing)
    usual = DEFAULT.remedy(situation, standing)
    assert str(usual) in [str(trial.remedy) for trial in blame.holding]


@pytest.mark.parametrize("standing", [Standing.STORED, Standing.HELD, Standing.INJECTED])
def test_what_no_bridge_can_do_there_is_not_tried(standing: Standing) -> None:
    """A policy with such a cell would be refused: only a held context can be rehydrated, and only
    the full input that a client has sent can be sent."""
    remedy = Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE)
    policy = DEFAULT.with_cell(Situation.LOST_SENT, standing, remedy)
    bounds = attrs.evolve(FEW, standings=(standing,))
    report = explore(policy, bounds, without=ALL - {Property.NO_AMBIGUOUS_RESEND})
    (found,) = report.counterexamples
    blame = Blamer(policy).blame(bounds, found)
    assert blame.cell is not None
    assert blame.cell.standing is standing
    tried = {trial.remedy.action for trial in (*blame.holding, *blame.failing)}
    assert Action.REFUSE in tried
    assert [action for action in tried if not can_carry_out(action, standing)] == []


def test_a_takeover_is_tried_where_there_is_something_to_take_over() -> None:
    """In the session of the path, of which no other replica knows, it is another word for a
    resend."""
    remedy = Remedy(Action.FAIL, FailureReply.UPSTREAM_UNAVAILABLE)
    policy = DEFAULT.with_cell(Situation.NOT_FOUND, Standing.INJECTED, remedy)
    bounds = attrs.evolve(FEW, standings=(Standing.INJECTED,), remote=False)
    report = explore(policy, bounds, without=ALL - {Property.RECOVERED_AT_ONCE})
    (found,) = report.counterexamples
    blame = Blamer(policy).blame(bounds, found)
    assert Action.REBIND not in {trial.remedy.action for trial in blame.holding}
    broken = {trial.remedy.action: trial.breaks for trial in blame.failing}
    assert broken[Action.REBIND] is Property.OWNER_LOSS_REBINDS


@pytest.mark.parametrize("situation", [Situation.LOST_SENDING, Situation.LOST_SENT])
def test_a_promise_for_the_next_try_is_tried_without_the_context(situation: Situation) -> None:
    """The transcript can be gone when the client tries again."""
    remedy = Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE)
    policy = DEFAULT.with_cell(situation, Standing.HELD, remedy)
    blame = blamed(policy, Property.NO_AMBIGUOUS_RESEND)
    assert blame.complete
    assert [trial.remedy.action for trial in blame.holding] == [Action.REFUSE, Action.FAIL]
    broken = {trial.remedy.action: trial.breaks for trial in blame.failing}
    assert broken[Action.REFUSE_THEN_REHYDRATE] is Property.NOT_FOUND_IS_EARNED


def test_a_cell_before_the_last_one_can_be_responsible() -> None:
    """The turn was resent after an ambiguous loss; then no connection could be opened."""
    found = first(V1_12, Property.REBIND_CODE_IS_PROVEN)
    blame = Blamer(V1_12, effort=0).blame(FEW, found)
    assert found.path[-1] == "connect fails"
    assert blame.cell is not None
    assert blame.cell.situation is Situation.LOST_SENDING
    assert blame.lines() == [f"because: {blame.cell.words}"]  # without an effort nothing is tried


def test_a_budget_can_be_responsible() -> None:
    blame = blamed(PR397, Property.RECONNECT_COSTS_NO_REPLAY)
    assert blame.because == "the budget reconnect_uses_replay=True"
    assert blame.value == "reconnect_uses_replay=False"
    assert "would hold: reconnect_uses_replay=False" in blame.lines()
    nothing = Blamer(PR397, effort=0).blame(FEW, first(PR397, Property.RECONNECT_COSTS_NO_REPLAY))
    assert nothing.lines() == [f"because: {blame.because}"]


def test_no_violation_takes_the_effort_of_those_after_it() -> None:
    """One after the other: the last one is tried with as much as the first."""
    found = first(V1_12, Property.NOT_FOUND_IS_EARNED)
    last = first(V1_12, Property.CONTINUED_AT_ONCE)
    blamer = Blamer(V1_12, effort=1, findings=9)
    for _ in range(8):
        blamer.blame(FEW, found)
    assert blamer.effort <= 0
    assert "would hold: rehydrate (upstream_unavailable)" in blamer.blame(FEW, last).lines()


@pytest.mark.parametrize(
    ("shared", "line"),
    [
        (True, "would hold: none was found; --property NAME looks for this one alone (with the "),
        (False, "would hold: none was found (with the other cells of the policy; not every "),
    ],
)
def test_it_is_said_that_no_remedy_was_found(shared: bool, line: str) -> None:
    blame = blamed(V1_12, Property.NOT_FOUND_IS_EARNED)
    blame = Blame(blame.cell, extent=Extent.POLICY, shared=shared)
    assert any(one.startswith(line) for one in blame.lines())


def test_among_other_wrong_cells_a_remedy_must_break_nothing_on_the_path() -> None:
    """The cell is that of ``default``; only beside others of the policy it is wrong."""
    blame = blamed(V1_12, Property.REBIND_CODE_IS_NOT_WITHHELD)
    assert blame.cell is not None
    assert blame.cell.remedy == DEFAULT.remedy(blame.cell.situation, blame.cell.standing)
    assert blame.extent is Extent.POLICY
    answers = {trial.remedy.answer for trial in blame.holding}
    assert answers == {FailureReply.OWNER_UNREACHABLE}


RULES = [
    ("an eviction in mid-answer", "evict-idle"),
    ("a turn that never ends", "output-uncreated"),
    ("a failed response that is continued", "ended"),
]


@pytest.mark.parametrize(("name", "rule"), RULES)
def test_a_wrong_rule_is_named(name: str, rule: str) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == name)
    assert rule_of(bug) == rule


def rule_of(bug: Bug) -> str:
    assert bug.stepper is not step
    without = ALL - {bug.found_by}
    report = explore(bug.policy, bug.bounds, stepper=bug.stepper, without=without)
    blamer = Blamer(bug.policy, stepper=bug.stepper)
    blame = blamer.blame(bug.bounds, report.broken[bug.found_by])
    assert (blame.cell, blame.budget) == (None, "")
    return blame.rule
