"""Stores for the tests, alike for the model and for the real ones.

What belongs here: a place where a store is kept, that can be emptied and opened again. Asking it is
``bridgecore.testing.conformance.asking``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg
import valkey

from bridgecore.ownership import store as st
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing.conformance import asking
from bridgecore.testing.store import StoreModel
from bridgecore_stores import Keys, Store, open_store

NS = NS_PER_SECOND
TIMEOUT = 5 * NS  # of a store whose time is not what a test is about
PATIENCE = 20.0  # seconds that a test waits for what must come

KEYS = Keys([b"the first secret of these tests, 32+"])


class ModelClient:
    """The model, with the interface of a store. Each question takes a hundredth of a second."""

    def __init__(self, model: StoreModel) -> None:
        self._model = model
        self._now = 1

    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        self._now += NS // 100
        answered(self._model.handle(question, self._now))

    def close(self, timeout: int) -> None:
        """Nothing is to be closed."""


class Asking(asking.Asking):
    """A client of a store that can be closed."""

    client: Store | ModelClient

    def __init__(self, client: Store | ModelClient) -> None:
        super().__init__(client, PATIENCE)

    def close(self) -> None:
        self.client.close(TIMEOUT)


class Place:
    """Where a store is kept. ``url``: its URL; ``kind``: the name of the back end."""

    def __init__(self, kind: str, url: str = "", pid: int | None = None) -> None:
        self.kind = kind
        self.url = url
        self._opened: list[Asking] = []
        self._model = StoreModel()

    def open(self, keys: Keys = KEYS, timeout: int = TIMEOUT) -> Asking:
        """A client of its own, like that of another process."""
        if self.kind == "model":
            client: Store | ModelClient = ModelClient(self._model)
        else:
            client = open_store(self.url, keys, timeout=timeout)
        self._opened.append(Asking(client))
        return self._opened[-1]

    def close(self) -> None:
        """Close all clients."""
        while self._opened:
            self._opened.pop().close()

    def clear(self) -> None:
        """Delete everything that is stored."""
        match self.kind:
            case "model":
                self._model = StoreModel()
                for asking in self._opened:
                    asking.client = ModelClient(self._model)
            case "sqlite":
                with sqlite3.connect(self.file) as database:
                    for table in ("lease", "conversation", "response", "name", "sweeper", "notice"):
                        database.execute(f"DELETE FROM {table}")
                database.close()
            case "postgresql":
                with psycopg.connect(self.url) as connection:
                    connection.execute(
                        "TRUNCATE bridgecore_lease, bridgecore_conversation, bridgecore_response, "
                        "bridgecore_name, bridgecore_sweeper, bridgecore_notice"
                    )
            case _:
                with valkey.Valkey.from_url(self.url) as client:
                    client.flushall()

    @property
    def file(self) -> Path:
        """The file of a SQLite store."""
        return Path(self.url.removeprefix("sqlite:"))
