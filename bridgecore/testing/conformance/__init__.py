"""Checks of drivers and stores, for people who write one of their own. Needs no other package.

What belongs here: what *every* driver and *every* store must do, each as a check that says why.
``bridgecore_asyncio``, ``bridgecore_trio`` and ``bridgecore_stores`` are tested with them. Unlike
the rest of ``bridgecore`` it does I/O: the checks are the other end of a driver's connections. It
is for tests, and no other module of ``bridgecore`` imports it.

Public are the names here; the modules are internal. How to use them: docs, "Testing".
"""

from bridgecore.testing.conformance.checks import CheckReport, ConformanceError, run_checks
from bridgecore.testing.conformance.driver import DriverConformance, RunningDriver
from bridgecore.testing.conformance.store import StoreConformance

__all__ = [
    "CheckReport",
    "ConformanceError",
    "DriverConformance",
    "RunningDriver",
    "StoreConformance",
    "run_checks",
]
