"""The fixtures, with names that begin with ``bridgecore_`` so that they meet none of the tests'.

What belongs here: which servers a test gets, and with which settings. Running them is servers.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore.testing import Emulator
from bridgecore.testing.virtual import VirtualBridge
from bridgecore_pytest.servers import BridgeServer, UpstreamServer, bridge_server, upstream_server


class BridgeFactory(Protocol):
    """The type of the fixture ``bridgecore_make_bridge``."""

    def __call__(self, **settings: Any) -> BridgeServer:
        """Start a bridge in front of ``bridgecore_upstream``. ``settings``: fields of ``Config``;
        they override those of ``bridgecore_settings``. It is stopped at the end of the test."""


@pytest.fixture
def bridgecore_settings() -> dict[str, Any]:
    """Fields of ``Config`` for all bridges of a test; none. Override this fixture to change it."""
    return {}


@pytest.fixture
def bridgecore_upstream() -> Iterator[UpstreamServer]:
    """An emulator of the upstream on a real port. Its faults are planned by the test."""
    with upstream_server(Emulator()) as server:
        yield server


@pytest.fixture
def bridgecore_make_bridge(
    bridgecore_upstream: UpstreamServer, bridgecore_settings: dict[str, Any]
) -> Iterator[BridgeFactory]:
    """A function that starts a bridge on a real port, with settings of its own."""
    with contextlib.ExitStack() as bridges:

        def make(**settings: Any) -> BridgeServer:
            upstream = UpstreamUrl.parse(bridgecore_upstream.url)
            config = Config(**{"upstream": upstream, **bridgecore_settings, **settings})
            return bridges.enter_context(bridge_server(config))

        yield make


@pytest.fixture
def bridgecore_bridge(bridgecore_make_bridge: BridgeFactory) -> BridgeServer:
    """A bridge on a real port, in front of ``bridgecore_upstream``."""
    return bridgecore_make_bridge()


@pytest.fixture
def bridgecore_virtual_bridge(bridgecore_settings: dict[str, Any]) -> VirtualBridge:
    """A bridge in front of an emulator in virtual time, without sockets."""
    return VirtualBridge(**bridgecore_settings)
