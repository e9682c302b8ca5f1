"""Tests of verify/mutate.py: the properties alone, without scenarios, detect broken rules."""

from __future__ import annotations

import re

import attrs
import pytest

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, Action, Policy, Remedy, Situation
from bridgecore.recovery.rules import RULES, Handling, step
from bridgecore.verify.explore import explore
from bridgecore.verify.mutate import (
    BOUNDS,
    EQUIVALENT,
    KEPT,
    Mutant,
    Observed,
    argument,
    as_read,
    candidates,
    cells_read,
    changes_nothing,
    judge,
    mutants,
    observe,
    witness,
)
from bridgecore.verify.properties import Property

# The observation takes seconds, so all tests that share it run in one process.
pytestmark = pytest.mark.xdist_group("mutate")


@pytest.fixture(scope="module")
def observed() -> Observed:
    return observe(DEFAULT, [attrs.evolve(BOUNDS[0], max_states=3000)])


@pytest.fixture(scope="module")
def every(observed: Observed) -> list[Mutant]:
    return list(mutants(DEFAULT, observed))


def test_mutants_are_many_and_have_names_of_their_own(every: list[Mutant]) -> None:
    assert len(every) > 1000
    assert len({mutant.name for mutant in every}) == len(every)


@pytest.mark.timeout(240)
def test_a_rule_that_is_dropped_is_noticed(every: list[Mutant]) -> None:
    dropped = [mutant for mutant in every if mutant.name.endswith(": dropped")]
    handled = {rule.id for rule in RULES.values() if rule.handling is Handling.HANDLED}
    assert {mutant.rule for mutant in dropped} == handled
    assert [mutant.name for mutant in dropped if judge(mutant, BOUNDS[:1]).killer is None] == []


@pytest.mark.parametrize(
    "what",
    [
        *("any generation", "any response", "too early", "strictly", "never cleared", "waits on"),
        "http caches",
    ],
)
def test_mutants_of_the_checks_before_every_rule_are_noticed(observed: Observed, what: str) -> None:
    found = candidates(DEFAULT, observed.seen)
    (mutant,) = (mutant for mutant in found if mutant.name == f"step: {what}")
    bounds = {"waits on": BOUNDS[1:2], "any response": BOUNDS[3:], "http caches": BOUNDS[4:]}.get(
        what, BOUNDS[:1]
    )
    assert judge(mutant, bounds).killer is not None


@pytest.mark.parametrize(
    ("name", "killer"),
    [
        ("budget refusals +1", Property.REFUSALS_ARE_BOUNDED),
        ("budget refusals -1", Property.NOT_FOUND_IS_EARNED),
        ("budget waiting +1", Property.QUEUE_IS_BOUNDED),
        ("created-deadline: without CloseConnection", Property.SILENCE_DROPS_THE_SOCKET),
        ("output: without DeliverEvent", Property.ANSWER_IS_WHOLE),
        ("ended: CompleteTurn twice", Property.ONE_END),
        ("created: created not cleared", Property.DEADLINES_ARE_KEPT),
    ],
)
def test_the_property_that_notices(every: list[Mutant], name: str, killer: Property) -> None:
    (mutant,) = (mutant for mutant in every if mutant.name == name)
    assert judge(mutant, BOUNDS[:1]).killer is killer


def test_a_mutant_leaves_nothing_behind(every: list[Mutant]) -> None:
    (mutant,) = (mutant for mutant in every if mutant.name == "submit: dropped")
    assert judge(mutant, BOUNDS[:1]).killer is not None
    assert DEFAULT.budgets.refusals > 0
    short = attrs.evolve(BOUNDS[1], max_states=2000)
    assert explore(DEFAULT, short).counterexamples == []
    assert RULES[next(iter(RULES))[0], ev.TurnSubmitted].handling is Handling.HANDLED


def test_each_argument_is_about_a_mutant(every: list[Mutant]) -> None:
    names = [mutant.name for mutant in every]
    assert argument("submit: dropped") is None
    for pattern in EQUIVALENT:
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert all(len(why) > 20 for why in EQUIVALENT.values())


def test_a_mutant_of_which_the_model_loses_track_is_no_witness(observed: Observed) -> None:
    """A session that drops its connection when the answer begins, with nothing to say that a turn
    is still there: the model then has no turn for what comes next."""
    found = {mutant.name: mutant for mutant in candidates(DEFAULT, observed.seen)}
    assert witness(Property.ONE_AT_A_TIME, [found["created: next closed"]], BOUNDS[3:4]) is None


def test_every_kept_property_has_a_reason() -> None:
    """Which properties need a reason is checked by the full run, ``make verify-nightly``."""
    assert all(len(why) > 20 for why in KEPT.values())
    assert set(KEPT) < set(Property)


def test_a_rule_depends_only_on_the_fields_that_as_read_keeps(observed: Observed) -> None:
    """The rules behave alike in a state and in what ``as_read`` keeps of it."""
    cut = 0
    for met in (met for of_rule in observed.by_rule.values() for met in of_rule):
        state = as_read(met.policy, met.state)
        if state == met.state:
            continue
        cut += 1
        after = step(met.policy, state, met.event, 0)
        assert after.effects == met.transition.effects
        assert as_read(met.policy, after.state) == as_read(met.policy, met.transition.state)
    assert cut > 5000


@pytest.mark.parametrize("action", [Action.RESEND, Action.SURFACE])
def test_a_transition_depends_on_the_cells_that_it_names_only(
    observed: Observed, action: Action
) -> None:
    """Otherwise a mutant of a cell could be left out although it changes something."""
    policies: dict[frozenset[tuple[Situation, Standing]], Policy] = {}
    other = Remedy(action, FailureReply.OVERLOADED)
    for met in (met for of_rule in observed.by_rule.values() for met in of_rule):
        read = frozenset(cells_read(met.transition))
        if read not in policies:
            changed = {cell: was if cell in read else other for cell, was in DEFAULT.cells.items()}
            policies[read] = attrs.evolve(met.policy, cells=changed)
        assert step(policies[read], met.state, met.event, 0) == met.transition
    assert len(policies) > 50


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("connect-deadline: next attempt sent", True),
        ("cell CONNECT_FAILED/held: refuse (upstream_unavailable)", True),
        ("connect-deadline: next open", False),
        ("submit: dropped", False),
        ("step: strictly", False),
    ],
)
def test_a_mutant_that_changes_nothing_is_recognised(
    observed: Observed, name: str, nothing: bool
) -> None:
    found = [mutant for mutant in candidates(DEFAULT, observed.seen) if mutant.name == name]
    if "cell" in name:  # the cell without its mutation
        cell = Situation.CONNECT_FAILED, Standing.HELD
        found = [Mutant(name, "", DEFAULT, cell=cell)]
    (mutant,) = found
    assert changes_nothing(mutant, observed) is nothing
