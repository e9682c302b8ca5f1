"""Tests of testing/strategies.py: each strategy draws what its name says.

The machines of tests/verify/test_machines.py use them extensively.
"""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.recovery.events import Standing
from bridgecore.recovery.failure import Evidence, FailureKind, classify
from bridgecore.recovery.policy import Action, Policy, Situation
from bridgecore.testing import strategies
from bridgecore.wire.requests import InvalidBodyError, parse_create
from tests.endpoint_world import World


@settings(max_examples=60)
@given(strategies.http_requests(strategies.create_bodies({"previous_response_id": None})))
def test_lawful_requests_are_answered(sent: bytes) -> None:
    world = World()
    client = world.client()
    client.send(sent)
    assert world.read(client).status in (200, 400)  # 400: the upstream's own error
    assert len(world.emulator.requests) == 1


@settings(max_examples=60)
@given(st.data())
def test_invalid_bodies_are_refused(data: st.DataObject) -> None:
    body = data.draw(strategies.invalid_create_bodies())
    with pytest.raises(InvalidBodyError):
        parse_create(body)


@given(st.data(), st.binary(max_size=60), strategies.cutters())
def test_cut_bytes_lose_nothing(
    data: st.DataObject, whole: bytes, cutter: Callable[[bytes], list[bytes]]
) -> None:
    for pieces in (data.draw(strategies.splits(whole)), cutter(whole)):
        assert b"".join(pieces) == whole
        assert all(pieces)


@given(strategies.policies(), st.sampled_from(Standing))
def test_feasible_policies_can_be_carried_out(policy: Policy, standing: Standing) -> None:
    actions = {policy.remedy(situation, standing).action for situation in Situation}
    rehydrate = {
        Action.REHYDRATE,
        Action.SEND_OR_REHYDRATE,
        Action.REFUSE_THEN_REHYDRATE,
    }
    assert not rehydrate & actions or standing in (Standing.HELD, Standing.HELD_STORED)
    assert Action.SEND_FULL not in actions or standing is Standing.INJECTED


@given(strategies.evidence())
def test_all_evidence_is_classified(evidence: Evidence) -> None:
    assert isinstance(classify(evidence).kind, FailureKind)


def test_the_examples_of_the_page_about_testing_run() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "testing.rst"
    done = doctest.testfile(str(page), module_relative=False)
    assert done.attempted > 0
    assert done.failed == 0
