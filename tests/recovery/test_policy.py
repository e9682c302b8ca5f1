"""Tests of recovery/policy.py: a policy is total, validated when it is made, and printable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from bridgecore.errors import ConfigError
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    Action,
    Budgets,
    Policy,
    Remedy,
    Situation,
    Timeouts,
    name_of,
    replaying,
)

# ------------------------------------------------------------------ policies


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_is_total(policy: Policy) -> None:
    for situation in Situation:
        for standing in Standing:
            assert isinstance(policy.remedy(situation, standing), Remedy)


@pytest.mark.parametrize("situation", Situation)
@pytest.mark.parametrize("standing", Standing)
def test_a_policy_that_lacks_a_cell_is_refused(situation: Situation, standing: Standing) -> None:
    cells = {
        cell: remedy for cell, remedy in DEFAULT.cells.items() if cell != (situation, standing)
    }
    with pytest.raises(ValueError, match=f"no remedy for {situation.name}/{standing.name}"):
        Policy("mine", "", cells)


def test_with_cell_changes_one_cell_of_a_copy() -> None:
    cell = (Situation.LOST_SENT, Standing.HELD)
    remedy = Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE)
    mine = DEFAULT.with_cell(*cell, remedy)
    assert DEFAULT.remedy(*cell) != remedy
    assert {key for key in DEFAULT.cells if mine.cells[key] != DEFAULT.cells[key]} == {cell}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_replaying_changes_the_ambiguous_cells_that_another_connection_can_carry(
    policy: Policy,
) -> None:
    mine = replaying(policy)
    for (situation, standing), remedy in policy.cells.items():
        ambiguous = situation in {
            Situation.LOST_SENDING,
            Situation.LOST_SENT,
            Situation.SILENT,
            Situation.LOST_CREATED,
        }
        counting = (Action.REFUSE_BOUNDED, Action.REFUSE_THEN_REHYDRATE)
        kept = standing is Standing.BOUND or remedy.action in counting
        again = Remedy(Action.RESEND, remedy.answer) if ambiguous and not kept else remedy
        assert mine.remedy(situation, standing) == again
    assert (mine.budgets, mine.timeouts) == (policy.budgets, policy.timeouts)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Timeouts)])
@pytest.mark.parametrize("duration", [0, -1])
def test_a_deadline_in_the_past_is_refused(name: str, duration: int) -> None:
    """Otherwise a deadline could be set for the time at which it is handled
    (DEADLINES_ARE_KEPT)."""
    with pytest.raises(ValueError, match=name):
        Timeouts(**{name: duration})


@pytest.mark.parametrize("wrong", [1.5, True, "1", None])
def test_a_deadline_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="idle="):
        Timeouts(idle=wrong)
    with pytest.raises(ConfigError, match="replays="):
        Budgets(replays=wrong)


def test_a_policy_refuses_values_of_wrong_types() -> None:
    cell = (Situation.LOST_SENT, Standing.HELD)
    wrong: Any = Action.RESEND
    mixed_up: Any = DEFAULT.remedy(*cell)
    with pytest.raises(ConfigError, match="'default': LOST_SENT/HELD must be a Remedy"):
        DEFAULT.with_cell(*cell, wrong)
    with pytest.raises(ConfigError, match="'default': budgets must be a Budgets, not Remedy"):
        attrs.evolve(DEFAULT, budgets=mixed_up)
    with pytest.raises(ConfigError, match="'default': timeouts must be a Timeouts, not <Action"):
        attrs.evolve(DEFAULT, timeouts=wrong)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_is_shown_on_one_line(policy: Policy) -> None:
    mine = attrs.evolve(
        replaying(policy),
        name="a name that is quite a bit longer than names of policies are",
        timeouts=Timeouts(**dict.fromkeys(attrs.fields_dict(Timeouts), 10**18)),
    )
    for one in (policy, mine):
        assert len(repr(one)) <= 100
        assert one.name[:20] in repr(one)
    cells = sum(DEFAULT.cells[cell] != remedy for cell, remedy in policy.cells.items())
    assert f"differs from default in {cells} cells, " in repr(policy)
    assert repr(attrs.evolve(DEFAULT, timeouts=Timeouts(idle=1))).endswith("1 timeouts>")


@pytest.mark.parametrize("name", ["replays", "refusals", "waiting"])
def test_a_negative_budget_is_refused(name: str) -> None:
    changes: dict[str, int] = {name: -1}
    build: Callable[..., Budgets] = Budgets
    with pytest.raises(ValueError, match=name):
        build(**changes)


# ------------------------------------------------------------------ what the tables say, in words


def test_a_remedy_is_printed_with_its_answer() -> None:
    refused = Remedy(Action.REFUSE, FailureReply.STREAM_INCOMPLETE)
    assert str(refused) == "refuse (stream_incomplete)"
    assert str(Remedy(Action.SURFACE, FailureReply.UPSTREAM_ERROR)) == "surface"


@pytest.mark.parametrize("standing", Standing)
def test_a_column_has_one_name_in_logs_and_in_words(standing: Standing) -> None:
    assert name_of(standing) == standing.value


def test_a_policy_that_lacks_cells_names_them_all() -> None:
    cells = dict(DEFAULT.cells)
    del cells[Situation.SILENT, Standing.HELD], cells[Situation.REFUSED, Standing.BOUND]
    with pytest.raises(ValueError, match=r"has no remedy for REFUSED/BOUND, SILENT/HELD$"):
        Policy("short", "lacks two", cells)
