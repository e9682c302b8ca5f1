"""Tests of verify/reported.py: each bug that was reported in public is found, and the verdict names
the cell, rule or line that is to blame."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.ownership.holdings import Holdings
from bridgecore.recovery.policy import DEFAULT
from bridgecore.verify.bugs import BUGS
from bridgecore.verify.reported import (
    LOGGED,
    OWNED,
    REPORTED,
    LoggedBug,
    OwnershipBug,
    ReportedBug,
    blamed_in,
)
from bridgecore.verify.trace import blamed_of


@pytest.mark.parametrize("one", REPORTED, ids=lambda one: one.bug.name)
def test_a_reported_bug_is_found_and_its_cause_named(one: ReportedBug) -> None:
    assert one.bug.bounds.max_states <= 1000  # well below a second
    story = one.story()
    assert story is not None
    assert story.prop is one.bug.found_by
    assert blamed_in(story) == one.blamed
    if one.bug.policy is not DEFAULT and len(story.seen) < 4:
        assert one.blamed in blamed_of(story.seen[-1].transition)


@pytest.mark.parametrize("one", OWNED, ids=lambda one: one.name)
def test_a_reported_bug_of_replicas_is_found(one: OwnershipBug) -> None:
    found = one.find()
    assert found is not None
    assert found.prop is one.found_by
    assert attrs.evolve(one, make=Holdings).find() is None  # within the same bounds


@pytest.mark.parametrize("one", LOGGED, ids=lambda one: one.name)
def test_a_logged_bug_is_found_at_its_line(one: LoggedBug) -> None:
    report = one.check()
    assert report.wrong is not None
    assert (report.wrong.line, report.wrong.prop) == (one.line, one.found_by)
    assert report.states[1] < 1000  # far below a second


def test_a_logged_bug_is_none_if_the_bridge_does_it_right() -> None:
    """Otherwise the tests above could not fail."""
    (router,) = (one for one in LOGGED if "814" in one.report)
    *before, (at, event, fields), end = router.rows
    whole = {name: value for name, value in fields.items() if name != "code"}
    sound = attrs.evolve(router, rows=(*before, (at, event, whole), end))
    assert sound.check().wrong is None


def test_there_are_ten_with_names_and_reports_of_their_own() -> None:
    others: list[OwnershipBug | LoggedBug] = [*OWNED, *LOGGED]
    names = [one.bug.name for one in REPORTED] + [one.name for one in others]
    reports = [one.report for one in REPORTED] + [one.report for one in others]
    assert len(names) == len(set(names)) == len(set(reports)) >= 10
    assert not set(names) & {bug.name for bug in BUGS}
    assert all(report.startswith("https://github.com/") for report in reports)
