"""Tests of verify/trace.py: a recorded log is accepted, and rejected at an altered line."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.recovery.effects import OpenConnection
from bridgecore.verify.properties import Property
from bridgecore.verify.replay import MalformedLog
from bridgecore.verify.trace import CELLS, RULE_IDS, TraceReport, check_decisions
from bridgecore.wire.decisions import Decision, read_line
from tests.verify.test_replay import eventful, lines_of

Json = dict[str, Any]


@pytest.fixture(scope="module")
def log() -> list[bytes]:
    """The log of conversations that had every fault."""
    return lines_of(eventful())


def check(lines: list[bytes], *without: Property) -> TraceReport:
    return check_decisions(lines, frozenset(without))


def test_a_recorded_log_is_accepted_and_its_coverage_counted(log: list[bytes]) -> None:
    report = check(log)
    assert report.wrong is None
    assert (report.lines, report.steps) == (len(log), len(log) - 1)
    assert report.sessions == len({json.loads(line)["session"] for line in log[1:]})
    assert report.rules == Counter(json.loads(line)["rule"] for line in log[1:])
    assert 10 < len(report.rules) <= len(RULE_IDS) + 3  # three checks come before the table
    assert report.cells["send_skipped/bound"] > 0
    assert 3 < len(report.cells) < CELLS
    assert all("=" not in name for name in report.cells)


def test_an_empty_log_and_one_that_is_none_are_no_findings() -> None:
    with pytest.raises(MalformedLog, match="line 1: the log is empty"):
        check([])
    with pytest.raises(MalformedLog, match="line 1: it is not JSON"):
        check([b"GET / 200"])


# ------------------------------------------------------------------ one decision altered


def altered(decision: Json, other: Json, draw: st.DataObject) -> None:
    """Alter ``decision`` in one way, at random: another rule, other cells, or effects that were
    dropped, doubled, taken from another line, or have another turn or generation."""
    effects: list[Json] = decision["effects"]
    ways = ["rule", "cells", "add", *(["drop", "double", "number"] if effects else [])]
    way = draw.draw(st.sampled_from(ways), label="way")
    if way == "rule":
        decision["rule"] += "-not"
    elif way == "cells":
        decision["cells"] = [*decision["cells"], "lost_sent/held=resend"]
    elif way == "add":
        decision["effects"] = [*effects, *other["effects"], {"Ignored": {"reason": "altered"}}]
    elif way == "drop":
        effects.pop(draw.draw(st.integers(0, len(effects) - 1)))
    elif way == "double":
        effects.append(effects[draw.draw(st.integers(0, len(effects) - 1))])
    else:
        (fields,) = effects[draw.draw(st.integers(0, len(effects) - 1))].values()
        names = [name for name in fields if name in ("turn", "generation")]
        for name in names or fields:
            if isinstance(fields[name], int) and not isinstance(fields[name], bool):
                fields[name] += 1


@settings(max_examples=25)
@given(data=st.data())
def test_one_altered_decision_is_rejected_at_its_line(
    log: list[bytes], data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, len(log) - 1), label="line")
    decision = json.loads(log[number])
    other = json.loads(log[data.draw(st.integers(1, len(log) - 1), label="other")])
    before = json.dumps(decision)
    altered(decision, other, data)
    if json.dumps(decision) == before:
        return  # an effect without a number
    report = check([*log[:number], json.dumps(decision).encode(), *log[number + 1 :]])
    assert report.wrong is not None
    assert report.wrong.line == number + 1
    assert report.wrong.prop is None
    assert report.wrong.session == str(decision["session"])
    last = report.wrong.seen[-1]
    recorded = read_line(json.dumps(decision).encode())
    assert isinstance(recorded, Decision)
    assert (last.event, last.transition.effects) == (recorded.event, recorded.effects)


def test_every_line_of_a_log_is_compared(log: list[bytes]) -> None:
    """Otherwise the property above could hold for the lines that it happens to draw."""
    for number in range(1, len(log), 20):
        decision = json.loads(log[number])
        decision["effects"] = [{"RetireSession": {}}, *decision["effects"]]
        report = check([*log[:number], json.dumps(decision).encode()])
        assert report.wrong is not None
        assert report.wrong.line == number + 1


# ------------------------------------------------------------------ a policy that breaks a property


def test_a_policy_is_rejected_at_the_first_line_that_breaks_a_property() -> None:
    log = lines_of(eventful("v1_12"))
    report = check(log)
    assert report.wrong is not None
    assert report.wrong.prop is not None
    decision = json.loads(log[report.wrong.line - 1])
    assert list(report.wrong.blamed) == decision["cells"]
    assert check(log[: report.wrong.line - 1]).wrong is None
    allowed = check(log, *Property)
    assert allowed.wrong is None
    assert allowed.policies == ("v1_12",)


def test_the_history_is_that_of_the_session_alone(log: list[bytes]) -> None:
    number = max(
        nth for nth, line in enumerate(log) if nth and len(json.loads(line)["effects"]) > 0
    )
    decision = json.loads(log[number])
    decision["effects"] = []
    report = check([*log[:number], json.dumps(decision).encode()])
    assert report.wrong is not None
    own = [
        json.loads(line)
        for line in log[1:number]
        if f'"session":{decision["session"]},'.encode() in line
    ]
    assert [seen.at for seen in report.wrong.seen[:-1]] == [one["at"] for one in own][-59:]
    assert OpenConnection not in {type(one) for one in report.wrong.seen[-1].transition.effects}
