"""Tests of testing/virtual.py."""

from __future__ import annotations

import pytest

from bridgecore import NS_PER_SECOND, V1_12
from bridgecore.testing import CloseWith, Fault, Point, Silence
from bridgecore.testing.client import ReadError
from bridgecore.testing.virtual import VirtualBridge

TURN = {"model": "m", "input": "hello", "store": False}


def test_a_turn_is_answered_at_once() -> None:
    request = VirtualBridge().post(TURN)
    assert request.answered
    assert request.answer.response["output"][0]["content"][0]["text"] == "turn 1: hello"


def test_bytes_are_sent_as_they_are() -> None:
    assert VirtualBridge().post(b"{").answer.status == 400


def test_clients_have_credentials() -> None:
    bridge = VirtualBridge()
    first = bridge.post(TURN, authorization="Bearer one").answer.response["id"]
    turn = {**TURN, "previous_response_id": first}
    assert bridge.post(turn, authorization="Bearer two").answer.status == 400
    assert bridge.post(turn, authorization="Bearer one").answer.status == 200


@pytest.mark.parametrize(("settings", "status"), [({}, 200), ({"policy": V1_12}, 400)])
def test_settings_are_those_of_the_bridge(settings: dict[str, object], status: int) -> None:
    bridge = VirtualBridge(**settings)
    bridge.upstream.faults.add(1, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    first = bridge.post(TURN).answer.response["id"]
    assert bridge.post({**TURN, "previous_response_id": first}).answer.status == status


def test_an_answer_arrives_when_its_time_has_come() -> None:
    bridge = VirtualBridge(head_timeout=2 * NS_PER_SECOND)
    bridge.upstream.faults.add(1, Fault(Point.BEFORE_CREATED, Silence()))
    request = bridge.post({**TURN, "stream": True})
    with pytest.raises(ReadError, match=r"network\.advance"):
        _ = request.answer
    assert not request.answered
    bridge.network.advance(2 * NS_PER_SECOND)
    assert request.answer.status == 200
    assert not request.answered
