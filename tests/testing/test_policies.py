"""Tests of testing/policies.py, with few states; ``test_pytest_plugin.py`` explores all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection

import attrs
import pytest

from bridgecore import DEFAULT, V1_12, Policy
from bridgecore.testing import PolicyError, assert_policy_holds
from bridgecore.testing.policies import check
from bridgecore.verify.environment import BOUNDS
from bridgecore.verify.properties import Property

FEW = [attrs.evolve(part, max_states=300) for part in BOUNDS["quick"]]


def broken_by(policy: Policy, without: Collection[Property] = ()) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        check(policy, "few", FEW, without)
    return caught.value


def test_a_broken_policy_is_told_and_drawn() -> None:
    error = broken_by(V1_12)
    assert isinstance(error, AssertionError)
    assert {Property.NOT_FOUND_IS_EARNED, Property.NO_AMBIGUOUS_RESEND} < set(error.broken)
    first, *rest = str(error).splitlines()
    assert first.startswith(f"policy 'v1_12' breaks {len(error.broken)} of {len(Property)} ")
    assert "'few'" in first
    for prop in error.broken:
        assert prop.name in first
        assert f"{prop.name}: {prop.value}" in rest
    heads = [line for line in rest if line.split() == ["client", "bridge", "upstream"]]
    assert len(heads) == len(error.broken)
    assert "         closed -> reconnecting by submit" in rest
    assert "  0.000  |------------------------->|                          |  submit 1" in rest


def test_paths_without_replicas_are_told_first() -> None:
    assert broken_by(V1_12).broken[-1] is Property.OWNER_LOSS_REBINDS


def test_a_property_can_be_left_out() -> None:
    all_broken = broken_by(V1_12).broken
    error = broken_by(V1_12, all_broken[1:])
    assert all_broken[0] in error.broken
    assert not set(all_broken[1:]) & set(error.broken)
    assert f" of {len(Property) - len(all_broken) + 1} properties" in str(error)


def test_a_policy_that_was_not_explored_to_the_end_does_not_hold() -> None:
    error = broken_by(DEFAULT)
    assert error.broken == ()
    assert "not proven" in str(error)


def test_unknown_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="'tiny'; there are quick, small, ci, nightly"):
        assert_policy_holds(DEFAULT, "tiny")


def test_the_explorer_is_loaded_when_it_is_used() -> None:
    code = "import sys, bridgecore.testing; assert 'bridgecore.verify.explore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
