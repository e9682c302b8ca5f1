"""Tests of a client behind bridgecore: ``pip install 'bridgecore[testing]' openai``, ``pytest``."""

import openai

from bridgecore import DEFAULT
from bridgecore.testing import CloseWith, Fault, Point, assert_policy_holds
from bridgecore_pytest import BridgeServer, UpstreamServer

pytest_plugins = ["bridgecore.testing.pytest_plugin"]


def test_a_lost_connection_costs_no_context(
    bridgecore_upstream: UpstreamServer, bridgecore_bridge: BridgeServer
) -> None:
    bridgecore_upstream.faults.add(1, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    with openai.OpenAI(base_url=bridgecore_bridge.base_url, api_key="any") as client:
        first = client.responses.create(model="m", input="hello", store=False)
        again = client.responses.create(model="m", input="more", previous_response_id=first.id)
    assert again.output_text == "turn 2: more"
    assert [len(turn.request.context) for turn in bridgecore_upstream.turns] == [1, 3]


def test_my_policy_holds() -> None:
    assert_policy_holds(DEFAULT)
