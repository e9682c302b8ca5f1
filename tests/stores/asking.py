"""Asking a store and waiting for its answer, alike for the model and for the real ones.

What belongs here: what the tests of stores need beside a server: questions in short, and a place
where a store is kept, that can be emptied and opened again.
"""

from __future__ import annotations

import hashlib
import queue
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import valkey

from bridgecore.ownership import store as st
from bridgecore.testing.store import StoreModel
from bridgecore_stores import Keys, Store, open_store

NS = 1_000_000_000
TIMEOUT = 5 * NS  # of a store whose time is not what a test is about
PATIENCE = 20.0  # seconds that a test waits for what must come

KEYS = Keys([b"the first secret of these tests, 32+"])

A, B = st.Owner("a", "first"), st.Owner("b", "second")
SCOPE = "scope of a tenant"

AnswerT = TypeVar("AnswerT", bound=st.Answer)


def key_of(name: str) -> bytes:
    """The key of a response, or of a conversation, that a test calls ``name``."""
    return hashlib.sha256(name.encode()).digest()[:16]


def response(
    name: str,
    parent: str | None = None,
    *,
    ids: tuple[str, ...] | None = None,
    context: bytes | None = None,
    scope: str = SCOPE,
    payload: bytes | None = None,
) -> st.StoredResponse:
    """A response with the id ``name``, unless ``ids`` are given."""
    return st.StoredResponse(
        key_of(name),
        scope,
        (name,) if ids is None else ids,
        None if parent is None else key_of(parent),
        context,
        f"payload of {name}".encode() if payload is None else payload,
    )


def commit(
    owner: st.Owner, conversation: str, epoch: int, *responses: st.StoredResponse
) -> st.Commit:
    return st.Commit(owner, key_of(conversation), epoch, responses)


def resume(owner: st.Owner, name: str | None, **options: Any) -> st.Resume:
    return st.Resume(owner, options.pop("scope", SCOPE), name, **options)


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


class Asking:
    """A client of a store, whose answers are waited for."""

    def __init__(self, client: Store | ModelClient) -> None:
        self.client = client

    def __call__(self, question: st.Question) -> st.Answer:
        answers: queue.SimpleQueue[st.Answer] = queue.SimpleQueue()
        self.client.ask(question, answers.put)
        return answers.get(timeout=PATIENCE)

    def until(self, question: st.Question, kind: type[AnswerT]) -> AnswerT:
        """Ask again and again, until the answer is of this kind: a store does not report that a
        lease has ended."""
        end = time.monotonic() + PATIENCE
        while not isinstance(answer := self(question), kind):
            assert time.monotonic() < end, answer
            time.sleep(0.002)
        return answer

    def join(self, owner: st.Owner, ttl: int = 1000 * NS, advertise: str | None = None) -> None:
        assert self(st.Join(owner, advertise, ttl)) == st.Joined()

    def begin(self, owner: st.Owner, conversation: str, *responses: st.StoredResponse) -> None:
        """Store the first responses of a conversation."""
        assert self(commit(owner, conversation, 0, *responses)) == st.Committed(1)

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
                    for table in ("lease", "conversation", "response", "name", "sweeper"):
                        database.execute(f"DELETE FROM {table}")
                database.close()
            case "postgresql":
                with psycopg.connect(self.url) as connection:
                    connection.execute(
                        "TRUNCATE bridgecore_lease, bridgecore_conversation, bridgecore_response, "
                        "bridgecore_name, bridgecore_sweeper"
                    )
            case _:
                with valkey.Valkey.from_url(self.url) as client:
                    client.flushall()

    @property
    def file(self) -> Path:
        """The file of a SQLite store."""
        return Path(self.url.removeprefix("sqlite:"))
