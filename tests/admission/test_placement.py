"""Tests of admission/placement.py: the whole table."""

from __future__ import annotations

from itertools import product

import pytest

from bridgecore.admission.placement import Placement, place
from bridgecore.recovery.events import Standing

JOIN, BRANCH = Placement.JOIN, Placement.BRANCH
FACTS = list(product([True, False], repeat=2))


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
@pytest.mark.parametrize("standing", Standing)
def test_without_a_session(standing: Standing, idle: bool, displaces: bool) -> None:
    assert place(standing, known=False, idle=idle, displaces=displaces) is BRANCH


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
def test_unanchored(idle: bool, displaces: bool) -> None:
    # A history that was recognised goes on in its conversation's session, if that is free: a
    # client that repeats its history in each request would leave an idle one behind each time.
    found = place(Standing.UNANCHORED, known=True, idle=idle, displaces=displaces)
    assert found is (JOIN if idle and not displaces else BRANCH)


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
def test_bound_waits_for_its_socket(idle: bool, displaces: bool) -> None:
    assert place(Standing.BOUND, known=True, idle=idle, displaces=displaces) is JOIN


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
def test_unknown_does_not_wait(idle: bool, displaces: bool) -> None:
    found = place(Standing.UNKNOWN, known=True, idle=idle, displaces=displaces)
    assert found is (JOIN if idle else BRANCH)


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
@pytest.mark.parametrize("standing", [Standing.STORED, Standing.HELD, Standing.INJECTED])
def test_what_goes_anywhere(standing: Standing, idle: bool, displaces: bool) -> None:
    found = place(standing, known=True, idle=idle, displaces=displaces)
    assert found is (JOIN if idle and not displaces else BRANCH)
