"""Tests of tables.py: what is printed is complete, and narrow enough to read."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, POLICIES, Action, Policy, Situation, replaying
from bridgecore.recovery.policy_table import policy_from, written
from bridgecore.recovery.rules import RULES
from bridgecore.tables import list_table, render_diff, render_rst, render_rules, render_table
from bridgecore.testing.strategies import policies


@pytest.mark.parametrize("policy", [*POLICIES.values(), replaying(DEFAULT)])
def test_no_line_is_wider_than_80_columns(policy: Policy) -> None:
    texts = [render_rules(policy), render_table(policy)]
    texts += [render_diff(policy, other) for other in POLICIES.values()]
    for text in texts:
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("policy", [*POLICIES.values(), replaying(DEFAULT)])
def test_the_table_fits_on_a_screen(policy: Policy) -> None:
    assert len(render_table(policy).splitlines()) <= 40


@given(policies())
@settings(max_examples=50)
def test_every_cell_can_be_read_from_the_table(policy: Policy) -> None:
    text = " ".join(render_table(policy).split("\n\n")[1].split())
    names = "|".join(row.name.lower() for row in Situation)
    found = re.findall(rf"(?:^| )({names}) (.*?)(?=(?: (?:{names}) )|$)", text)
    assert [name for name, _ in found] == [row.name.lower() for row in Situation]
    for name, remedies in found:
        usual, *rest = re.split(r" (?=[a-z_]+(?:, [a-z_]+)*: )", remedies, maxsplit=1)
        reply = usual.partition(" ")[2]
        read = dict.fromkeys((column.value for column in Standing), usual)
        for other in rest[0].split("; ") if rest else ():
            columns, _, remedy = other.partition(": ")
            complete = "(" in remedy or remedy == "surface"
            whole = remedy if complete else f"{remedy} {reply}"
            read |= dict.fromkeys(columns.split(", "), whole)
        for column in Standing:
            remedy = policy.remedy(Situation[name.upper()], column)
            surface = remedy.action is Action.SURFACE
            assert read[column.value] == ("surface" if surface else written(remedy))


def test_the_difference_has_each_cell_and_budget_with_both_values() -> None:
    table = {
        "name": "mine",
        "cells": {
            "silent": {"bound": "refuse", "stored": "refuse", "held": "resend"},
            "lost_output": {"usually": "refuse (bridge_overloaded)"},
            "refused": {"held": "surface (stream_incomplete)"},
        },
        "budgets": {"waiting": 1000, "warm": True},
        "timeouts": {"idle": 3},
    }
    assert render_diff(policy_from(table), DEFAULT) == (
        "- default\n"
        "+ mine\n"
        "\n"
        "silent\n"
        "  held\n"
        "    - refuse (upstream_request_timeout)\n"
        "    + resend (upstream_request_timeout)\n"
        "  stored, bound\n"
        "    - refuse_bounded (upstream_request_timeout)\n"
        "    + refuse (upstream_request_timeout)\n"
        "\n"
        "lost_output\n"
        "  every column\n"
        "    - fail (stream_incomplete)\n"
        "    + refuse (bridge_overloaded)\n"
        "\n"
        "budgets\n"
        "  waiting\n"
        "    - 64\n"
        "    + 1,000\n"
        "  warm\n"
        "    - false\n"
        "    + true\n"
        "\n"
        "timeouts\n"
        "  idle\n"
        "    - 300 s\n"
        "    + 3 s\n"
    )
    only = policy_from({"name": "mine", "cells": {"refused": {"held": "surface"}}})
    assert render_diff(only, DEFAULT) == "mine decides as default does: nothing differs.\n"


def test_the_words_of_each_name_are_in_the_long_form() -> None:
    text = " ".join(render_rules(DEFAULT).split())
    for row in Situation:
        assert f" {row.name.lower()} {row.value} " in text
    for named in (*Standing, *Action):
        words = "" if named.name.lower().replace("_", " ") == named.value else f"{named.value}: "
        if words == f"{named.name.lower()}: ":
            words = ""
        assert f" {named.name.lower()} {words}{named.meaning} " in text
        assert len(named.meaning.split()) > 3  # it explains, and does not repeat the name


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
