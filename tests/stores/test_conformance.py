"""The stores under ``bridgecore.testing.conformance``: each back end with a real server, and the
model.

What belongs here: how to open them. What is peculiar to one back end, what happens when a server is
lost, and what can be read in its files have tests of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bridgecore.testing.conformance import StoreConformance
from bridgecore.transport.driver import StoreClient
from tests.stores.asking import Place


class TestConformance(StoreConformance):
    place: Place

    @pytest.fixture(autouse=True)
    def _at(self, place: Place) -> None:
        self.place = place

    @contextlib.contextmanager
    def store(self) -> Iterator[StoreClient]:
        self.place.clear()
        client = self.place.open().client
        try:
            yield client
        finally:
            self.place.close()
