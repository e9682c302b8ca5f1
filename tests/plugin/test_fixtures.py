"""Tests of fixtures.py: the fixtures, used as a test of somebody else uses them."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import httpx
import pytest

from bridgecore import NS_PER_SECOND, V1_12
from bridgecore.testing import CloseWith, Error, Fault, Point, Silence
from bridgecore.testing.virtual import VirtualBridge
from bridgecore_pytest import BridgeFactory, BridgeServer, UpstreamServer
from tests.e2e.conftest import ask, post

pytest_plugins = ["bridgecore.testing.pytest_plugin"]

TURN = {"model": "m", "input": "hi", "store": False}
LOST = Fault(Point.AFTER_TERMINAL, CloseWith(1001))


def statuses(bridge: BridgeServer) -> list[int]:
    """Of a turn, and of another one that continues it."""
    first = ask(bridge.port, post(TURN))
    again = ask(bridge.port, post({**TURN, "previous_response_id": first.response["id"]}))
    return [first.status, again.status]


def test_a_blocking_test(
    bridgecore_bridge: BridgeServer, bridgecore_upstream: UpstreamServer
) -> None:
    bridgecore_upstream.faults.add(1, LOST)
    assert statuses(bridgecore_bridge) == [200, 200]
    assert [len(turn.request.context) for turn in bridgecore_upstream.turns] == [1, 3]


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_a_test_on_an_event_loop(
    backend_name: str, bridgecore_bridge: BridgeServer, bridgecore_upstream: UpstreamServer
) -> None:
    bridgecore_upstream.faults.add(1, Fault(Point.BEFORE_CREATED, Error(status=429, code="slow")))

    async def main() -> list[int]:
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            urls = [bridgecore_bridge.base_url, bridgecore_upstream.http_url]
            answers = [await client.post(f"{url}/responses", json=TURN) for url in urls]
        return [answer.status_code for answer in answers]

    assert anyio.run(main, backend=backend_name) == [429, 200]


def test_bridges_with_other_settings(
    bridgecore_make_bridge: BridgeFactory,
    bridgecore_upstream: UpstreamServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "bridgecore")
    for turn in (1, 3):
        bridgecore_upstream.faults.add(turn, LOST)
    other = bridgecore_make_bridge(policy=V1_12)
    assert statuses(bridgecore_make_bridge()) == [200, 200]
    assert statuses(other) == [200, 400]
    assert other.config.policy is V1_12
    # Logged before the connection was opened, and so before there was an answer.
    assert "session.connect" in [record.event for record in other.logs]
    assert "session.connect session=1 generation=1 rule=submit" in caplog.text


class TestSettings:
    """The settings of all bridges of a class."""

    @pytest.fixture
    def bridgecore_settings(self) -> dict[str, Any]:
        return {"max_sessions": 7, "created_timeout": 5 * NS_PER_SECOND}

    def test_they_are_those_of_the_bridge(self, bridgecore_bridge: BridgeServer) -> None:
        assert bridgecore_bridge.config.max_sessions == 7

    def test_a_call_overrides_them(self, bridgecore_make_bridge: BridgeFactory) -> None:
        config = bridgecore_make_bridge(created_timeout=7 * NS_PER_SECOND).config
        assert (config.max_sessions, config.created_timeout) == (7, 7 * NS_PER_SECOND)

    def test_they_are_those_of_virtual_time(self, bridgecore_virtual_bridge: VirtualBridge) -> None:
        bridgecore_virtual_bridge.upstream.faults.add(1, Fault(Point.BEFORE_CREATED, Silence()))
        request = bridgecore_virtual_bridge.post(TURN)
        bridgecore_virtual_bridge.network.advance(5 * NS_PER_SECOND - 1)
        assert not request.answered
        bridgecore_virtual_bridge.network.advance(1)
        assert request.answer.error["code"] == "upstream_request_timeout"
