"""Tests of the comparison with TLC: what it reads, what it says, and what it needs.

What belongs here: what shows that ``run.py`` notices a difference. The comparison itself takes
minutes and Java: ``make verify-tlc``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bridgecore.recovery.policy import POLICIES
from tests.tlc.run import (
    MissingError,
    NoVerdictError,
    Verdict,
    differences,
    exportable,
    read,
    subjects,
    tlc,
)

# As TLC 2.15 prints it, shortened.
CLEAN = """\
Computing initial states...
Finished computing initial states: 2 distinct states generated at 2026-11-29 21:02:15.
Progress(8) at 2026-11-29 21:02:20: 27,517 states generated, 1,388 distinct states found.
Model checking completed. No error has been found.
299992 states generated, 8832 distinct states found, 0 states left on queue.
"""
BROKEN = """\
Error: Invariant REBIND_CODE_IS_PROVEN is violated.
Error: The behavior up to this point is:
State 1: <Initial predicate>
/\\ model = 2
Error: Invariant TURNS_END is violated.
Error: The behavior up to this point is:
State 1: <Initial predicate>
115534 states generated, 3391 distinct states found, 0 states left on queue.
"""


def verdict(states: int, *broken: str) -> Verdict:
    return Verdict(states, frozenset(broken), 1.0)


def test_what_tlc_counts_is_read() -> None:
    assert read(CLEAN) == Verdict(8832, frozenset(), 0.0)


def test_a_state_that_stands_for_a_broken_property_does_not_count() -> None:
    assert read(BROKEN).states == 3390
    assert read(BROKEN).broken == {"REBIND_CODE_IS_PROVEN", "TURNS_END"}


@pytest.mark.parametrize(
    "output",
    [
        "",
        CLEAN.replace(" 0 states left", " 7 states left"),
        "Error: Deadlock reached.\n" + CLEAN,
        "Error: Attempted to compute the value of an expression of form CHOOSE\n" + CLEAN,
    ],
)
def test_tlc_has_to_come_to_an_end(output: str) -> None:
    with pytest.raises(NoVerdictError, match="TLC failed"):
        read(output)


def test_each_difference_is_said() -> None:
    same = verdict(100, "ONE_END")
    assert differences(same, same) == []
    assert differences(same, verdict(99, "ONE_END")) == ["100 states, TLC 99"]
    assert differences(same, verdict(100)) == ["broken, not so for TLC: ONE_END"]
    assert differences(same, verdict(100, "ONE_END", "TURNS_END")) == [
        "broken for TLC only: TURNS_END"
    ]


def test_each_policy_is_judged_in_each_part_of_the_bounds() -> None:
    names = [subject.name for subject in subjects("quick")]
    assert len(set(names)) == len(names) == len(POLICIES) * len(exportable("quick")) + 2
    for policy in POLICIES:
        for part in exportable("quick"):
            assert f"{policy}, {part.name}" in names


def test_without_java_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MissingError, match="Java is missing: install"):
        tlc()
