"""Tests of verify/bugs.py: each bug of a real bridge is found by the property that it breaks."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.recovery.policy import DEFAULT
from bridgecore.recovery.rules import step
from bridgecore.verify.bugs import BUGS, Bug
from bridgecore.verify.explore import explore
from bridgecore.verify.properties import Property
from bridgecore.verify.scenario import replay
from bridgecore.verify.story import tell


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_is_found_by_its_property(bug: Bug) -> None:
    found = bug.find()
    assert found is not None
    assert found.prop is bug.found_by
    # The bug causes the violation: under the original rules the same events break nothing.
    story = tell(bug.policy, bug.bounds, found, stepper=bug.stepper)
    assert story.seen
    assert bug.policy is not DEFAULT or replay(story.scenario) == story.scenario


def test_bugs_have_different_names() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 10
    assert all((bug.policy is DEFAULT) is not (bug.stepper is step) for bug in BUGS)


@pytest.mark.parametrize("bounds", {bug.bounds.name: bug.bounds for bug in BUGS}.values())
def test_without_a_bug_no_property_breaks(bounds: object) -> None:
    (first, *_) = (bug for bug in BUGS if bug.bounds is bounds)
    assert explore(DEFAULT, first.bounds, most=len(Property)).counterexamples == []


def test_a_bug_that_no_property_forbids_is_not_found() -> None:
    """Otherwise the tests above could not fail."""
    harmless = attrs.evolve(BUGS[0], policy=DEFAULT)
    assert harmless.find() is None
