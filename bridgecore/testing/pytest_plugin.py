"""The pytest plugin: fixtures for an upstream with faults, and for a bridge in front of it.

A test file or ``conftest.py`` loads it: ``pytest_plugins = ["bridgecore.testing.pytest_plugin"]``.

What belongs here: the name under which it is loaded. Its fixtures listen on ports and run threads,
so they are in an adapter, ``bridgecore_pytest``. pytest finds that by name, as this package knows
no adapter. It is not registered as an entry point: pytest would load it in every test run of
everyone who has bridgecore installed, most of which have no use for it.

PYTEST_DONT_REWRITE: it has no assertions, and a test may import it before pytest does.
"""

from __future__ import annotations

pytest_plugins = ("bridgecore_pytest",)
"""What pytest loads with it."""
