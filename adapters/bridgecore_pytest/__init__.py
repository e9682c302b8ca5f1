"""Fixtures for pytest: an upstream with faults and a bridge, on real ports or in virtual time.

What belongs here: what pytest loads for ``bridgecore.testing.pytest_plugin``, and the types of the
fixtures, for annotations. All are listed, with an example, in docs, "Testing". Needs the extra
``testing``.

PYTEST_DONT_REWRITE: it has no assertions, and a test imports it before pytest does.
"""

from bridgecore_pytest.fixtures import (
    BridgeFactory,
    bridgecore_bridge,
    bridgecore_make_bridge,
    bridgecore_settings,
    bridgecore_upstream,
    bridgecore_virtual_bridge,
)
from bridgecore_pytest.servers import BridgeServer, UpstreamServer

__all__ = ["BridgeFactory", "BridgeServer", "UpstreamServer"]

# pytest finds the fixtures as attributes of this module. They are not to be imported.
_FIXTURES = (
    bridgecore_bridge,
    bridgecore_make_bridge,
    bridgecore_settings,
    bridgecore_upstream,
    bridgecore_virtual_bridge,
)
