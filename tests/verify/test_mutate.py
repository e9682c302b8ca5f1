"""Mutants of the rules: the properties alone, without scenarios, notice that a rule is broken."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.recovery import events as ev
from bridgecore.recovery.policy import DEFAULT
from bridgecore.recovery.rules import RULES, Handling
from bridgecore.verify.explore import explore
from bridgecore.verify.mutate import (
    BOUNDS,
    EQUIVALENT,
    Mutant,
    Seen,
    argument,
    judge,
    mutants,
    observe,
)
from bridgecore.verify.properties import Property


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    return observe(DEFAULT, [attrs.evolve(BOUNDS[0], max_states=3000)])


@pytest.fixture(scope="module")
def every(seen: dict[str, Seen]) -> list[Mutant]:
    return list(mutants(DEFAULT, seen))


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
    "what", ["any generation", "too early", "strictly", "never cleared", "waits on"]
)
def test_what_holds_in_every_phase_is_noticed(every: list[Mutant], what: str) -> None:
    (mutant,) = (mutant for mutant in every if mutant.name == f"step: {what}")
    bounds = BOUNDS[1:2] if what == "waits on" else BOUNDS[:1]
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
    assert any(argument(name) for name in names)
    assert all(len(why) > 20 for why in EQUIVALENT.values())
