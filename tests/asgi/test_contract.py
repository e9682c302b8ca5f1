"""The contract with clients, seen from outside, where an ASGI server is around the bridge.

What belongs here: which tests of ``tests/e2e/test_contract_http.py`` are run, and on what. Not run
are those of what the server decides itself: malformed requests, limits of heads, slow clients and
the end of the process.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from bridgecore_asgi import BridgeApp
from tests.asgi.conftest import Serving, config, serving
from tests.e2e import test_contract_http as contract
from tests.e2e.conftest import Shared, emulating, shared

SELECTED = (
    contract.test_probes,
    contract.test_a_plain_turn,
    contract.test_a_streamed_turn,
    contract.test_a_query_string,
    contract.test_pipelining,
    contract.test_a_chunked_body,
    contract.test_a_body_of_6_mb,
    contract.test_a_client_that_asks_for_the_end,
    contract.test_an_unknown_path,
    contract.test_a_wrong_method,
    contract.test_a_body_that_is_no_turn,
    contract.test_a_head_of_60_kb,
    contract.test_events_pass_byte_for_byte,
    contract.test_json_and_stream_say_the_same,
    contract.test_the_body_goes_upstream_unchanged,
    contract.test_an_upstream_message_of_3_mib,
    contract.test_meaningless_frames_are_skipped,
    contract.test_an_upstream_that_cannot_be_understood,
    contract.test_an_error_in_place_of_an_answer,
    contract.test_an_upgrade_that_is_refused,
    contract.test_an_unknown_id_is_answered_by_the_upstream,
)
globals().update({test.__name__: test for test in SELECTED})
__all__ = ["shared"]  # a fixture


@attrs.frozen
class Served:
    """A bridge in a server, and its upstream."""

    server: Serving
    bridges: contract.Bridges


@pytest.fixture(scope="module", params=["uvicorn", "hypercorn"])
def served(request: pytest.FixtureRequest, shared: Shared) -> Iterator[Served]:
    # As ``python -m bridgecore_asgi`` sets it.
    options = {"http": "h11"} if request.param == "uvicorn" else {}
    with (
        emulating() as upstream,
        serving(request.param, BridgeApp(config(upstream)), **options) as server,
    ):
        yield Served(server, contract.Bridges(upstream, shared))


@pytest.fixture
def plain(served: Served) -> Serving:
    """In place of the process there."""
    served.bridges.emulator.faults.clear()
    return served.server


@pytest.fixture
def emulated(served: Served) -> contract.Bridges:
    """What the tests inspect and change."""
    return served.bridges


@pytest.fixture
def port(served: Served) -> int:
    """In place of that of the process there."""
    served.bridges.emulator.faults.clear()
    return served.server.port
