"""Tests of tables.py: what is printed is complete, and narrow enough to read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, POLICIES, Policy, Situation, replaying
from bridgecore.recovery.rules import RULES
from bridgecore.tables import list_table, render_rst, render_rules


@pytest.mark.parametrize("policy", [*POLICIES.values(), replaying(DEFAULT)])
def test_the_text_is_at_most_100_columns_wide(policy: Policy) -> None:
    assert max(map(len, render_rules(policy).splitlines())) <= 100


def rows(text: str) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Situation, reply, and (standings, action) of each row that ``render_rules`` printed."""
    lines = text.split("\n\n")[2].splitlines()
    for number, line in enumerate(lines):
        if line.startswith(" "):
            continue
        situation, _, reply = line.removesuffix(")").partition(" (")
        cells: list[tuple[str, str]] = []
        for cell in lines[number + 1 :]:
            if not cell.startswith(" "):
                break
            standings, _, action = cell.strip().partition("  ")
            cells.append((standings, action.strip()))
        yield situation, reply, cells


@pytest.mark.parametrize("policy", [*POLICIES.values(), replaying(DEFAULT)])
def test_every_cell_can_be_read_from_the_text(policy: Policy) -> None:
    seen = []
    for situation, reply, ((first, usual), *exceptions) in rows(render_rules(policy)):
        seen.append(Situation(situation))
        assert first == ("usually" if exceptions else "always")
        actions = dict.fromkeys((standing.value for standing in Standing), usual)
        for standings, action in exceptions:
            assert action != usual
            actions |= dict.fromkeys(standings.split(", "), action)
        for standing in Standing:
            action = actions[standing.value]
            whole = action if "(" in action or action == "surface" else f"{action} ({reply})"
            assert whole == str(policy.remedy(Situation(situation), standing))
    assert seen == list(Situation)


def test_every_rule_is_in_both_forms() -> None:
    text, page = render_rules(DEFAULT), render_rst({}, {})
    for rule in RULES.values():
        assert f"\n{rule.id}: " in text
        assert f"   * - {rule.id}\n" in page


def test_a_table_keeps_the_lines_of_a_cell() -> None:
    assert list_table([("a", "b"), ("`c`\nd", "")], widths=(1, 2)) == [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 1 2",
        "",
        "   * - a",
        "     - b",
        "   * - | ``c``",
        "       | d",
        "     -",
        "",
    ]
