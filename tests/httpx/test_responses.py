"""Requests about responses that are no turns, with a transport: what the bridge learns of them.

What belongs here: deleting a response, and requests about its context. The emulator is the upstream
of the bridge and of the inner transport.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bridgecore import NS_PER_SECOND, Config
from bridgecore.config import Store
from bridgecore.testing import Emulator
from bridgecore_httpx import BridgeTransport, SyncBridgeTransport
from bridgecore_stores import open_store
from bridgecore_stores.sealing import Keys
from tests.conftest import BACKENDS, Backend
from tests.e2e.conftest import Upstream
from tests.httpx.conftest import HEADERS, TURN, client_of, config_of, sync_client_of

Ask = Callable[..., Awaitable[Any]]
"""Sends a request with a method, what is below ``/v1/responses``, and a body; its answer."""
Body = Callable[[Ask], Awaitable[None]]


class Recorder:
    """An inner transport for clients of ``library``; ``requests``: what it has got."""

    def __init__(self, library: Any) -> None:
        self.library = library
        self.requests: list[str] = []
        self.transport = library.MockTransport(self.take)

    def take(self, request: Any) -> Any:
        self.requests.append(f"{request.method} {request.url.path}")
        return self.library.Response(200, json={"object": "list"})


class Way(ABC):
    """A client of either kind, with the same interface."""

    library: Any

    @abstractmethod
    def run(self, upstream: Upstream, config: Config, body: Body, **options: Any) -> None:
        """Run ``body`` with a client whose transport has ``config`` and ``options``."""


class Async(Way):
    def __init__(self, backend: str, library: str) -> None:
        self.backend, self.library = BACKENDS[backend](), importlib.import_module(library)

    def run(self, upstream: Upstream, config: Config, body: Body, **options: Any) -> None:
        async def main() -> None:
            transport = BridgeTransport(config, **options)
            async with client_of(self.library, transport) as client:

                async def ask(method: str, below: str = "", given: object = None) -> Any:
                    return await client.request(method, url(upstream, below), json=given)

                await body(ask)

        self.backend.run(main)


class Sync(Way):
    def __init__(self, library: str) -> None:
        self.library = importlib.import_module(library)

    def run(self, upstream: Upstream, config: Config, body: Body, **options: Any) -> None:
        transport = SyncBridgeTransport(config, **options)
        with sync_client_of(self.library, transport) as client:

            async def ask(method: str, below: str = "", given: object = None) -> Any:
                return client.request(method, url(upstream, below), json=given)

            asyncio.run(body(ask))  # type: ignore[arg-type]  # it is a coroutine


WAYS: dict[str, Callable[[], Way]] = {
    "asyncio": lambda: Async("asyncio", "httpx2"),
    "trio": lambda: Async("trio", "httpx"),
    "thread": lambda: Sync("httpx2"),
    "thread-httpx": lambda: Sync("httpx"),
}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]()


def url(upstream: Upstream, below: str) -> str:
    return f"http://127.0.0.1:{upstream.port}/v1/responses{below}"


async def made(ask: Ask, **fields: Any) -> Any:
    answer = await ask("POST", "", {**TURN, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def is_gone(ask: Ask, response: str, **fields: Any) -> bool:
    answer = await ask("POST", "", {**TURN, "previous_response_id": response, **fields})
    if answer.status_code == 200:
        return False
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "previous_response_not_found")
    return True


# ------------------------------------------------------------------ deleting


@pytest.mark.parametrize("store", [True, False])
def test_a_deleted_response_is_forgotten(way: Way, upstream: Upstream, store: bool) -> None:
    """One with ``store=false`` the upstream does not know: it says so, and that counts."""

    async def body(ask: Ask) -> None:
        first = (await made(ask, store=store))["id"]
        assert not await is_gone(ask, first, store=store)
        assert (await ask("DELETE", f"/{first}")).status_code == (200 if store else 404)
        assert await is_gone(ask, first, store=store)

    way.run(upstream, config_of(upstream), body)


def test_a_deleted_history_is_not_recognised(way: Way, upstream: Upstream) -> None:
    hello = {"role": "user", "content": "hello"}

    async def body(ask: Ask) -> None:
        said = await made(ask, input=[hello])
        await ask("DELETE", f"/{said['id']}")
        await made(ask, input=[hello, *said["output"], {"role": "user", "content": "more"}])

    way.run(upstream, config_of(upstream), body)
    assert upstream.emulator.requests[-1].body.get("previous_response_id") is None


def test_a_response_is_kept_if_its_deletion_fails(way: Way, upstream: Upstream) -> None:
    async def body(ask: Ask) -> None:
        first = (await made(ask, store=False))["id"]
        upstream.emulator.tokens = frozenset()
        assert (await ask("DELETE", f"/{first}")).status_code == 401
        upstream.emulator.tokens = None
        assert (await ask("GET", f"/{first}")).status_code == 404  # no deletion
        assert not await is_gone(ask, first, store=False)

    way.run(upstream, config_of(upstream), body)


def test_a_response_is_deleted_for_its_tenant(way: Way, upstream: Upstream) -> None:
    async def body(ask: Ask) -> None:
        first = (await made(ask, store=False))["id"]
        assert (await ask("DELETE", f"/{first}")).status_code == 404
        assert await is_gone(ask, first, store=False)

    way.run(upstream, config_of(upstream), body, scope="tenant")


def test_a_bridge_is_not_started_for_it(backend: Backend, upstream: Upstream) -> None:
    """There is nothing that it could know."""
    inner = Recorder(httpx2)

    async def body() -> None:
        transport = BridgeTransport(config_of(upstream), inner=inner.transport)
        client = httpx2.AsyncClient(transport=transport)
        assert (await client.delete(url(upstream, "/resp_1"))).status_code == 200
        assert transport._running is None
        await client.aclose()

    backend.run(body)
    transport = SyncBridgeTransport(config_of(upstream), inner=inner.transport)
    client = httpx2.Client(transport=transport)
    assert client.delete(url(upstream, "/resp_1")).status_code == 200
    assert transport._thread is None
    client.close()
    assert len(inner.requests) == 2


def test_a_response_in_a_store_is_deleted_there(
    way: Way, upstream: Upstream, tmp_path: Path
) -> None:
    """Also by a process that did not know it."""
    config = config_of(upstream, store=Store.DRIVER)
    found: list[str] = []

    def run(body: Body) -> None:
        store = open_store(
            f"sqlite:{tmp_path / 'store.db'}", Keys((b"k" * 32,)), timeout=5 * NS_PER_SECOND
        )
        try:
            way.run(upstream, config, body, store=store)
        finally:
            store.close(5 * NS_PER_SECOND)

    async def make(ask: Ask) -> None:
        found.extend([(await made(ask, store=False))["id"] for _ in range(2)])

    async def delete(ask: Ask) -> None:
        assert (await ask("DELETE", f"/{found[0]}")).status_code == 404

    async def look(ask: Ask) -> None:
        assert await is_gone(ask, found[0], store=False)
        assert not await is_gone(ask, found[1], store=False)

    for body in (make, delete, look):
        run(body)


def test_a_bridge_with_a_store_is_started_for_a_deletion(
    backend: Backend, upstream: Upstream, tmp_path: Path
) -> None:
    config = config_of(upstream, store=Store.DRIVER)
    keys = Keys((b"k" * 32,))
    store = open_store(f"sqlite:{tmp_path / 'store.db'}", keys, timeout=5 * NS_PER_SECOND)

    async def body() -> None:
        transport = BridgeTransport(config, store=store)
        client = httpx2.AsyncClient(transport=transport, headers=HEADERS)
        assert (await client.delete(url(upstream, "/resp_1"))).status_code == 404
        assert transport._running is not None
        await client.aclose()

    backend.run(body)
    transport = SyncBridgeTransport(config, store=store)
    client = httpx2.Client(transport=transport, headers=HEADERS)
    assert client.delete(url(upstream, "/resp_1")).status_code == 404
    assert transport._thread is not None
    client.close()
    store.close(5 * NS_PER_SECOND)


# ------------------------------------------------------------------ contexts


@pytest.mark.parametrize("path", ["/compact", "/input_tokens"])
def test_a_context_that_only_the_bridge_has_is_sent_whole(
    way: Way, upstream: Upstream, path: str
) -> None:
    async def body(ask: Ask) -> None:
        first = (await made(ask, store=False))["id"]
        about = {"model": "m", "input": "more", "previous_response_id": first}
        answer = await ask("POST", path, about)
        assert answer.status_code == 200, answer.text
        assert answer.json()["object"]

    way.run(upstream, config_of(upstream), body)
    sent = json.loads(upstream.emulator.http_requests[-1].body)
    assert "previous_response_id" not in sent
    assert len(sent["input"]) == 3


def test_other_requests_about_contexts_go_to_the_inner_transport(
    way: Way, upstream: Upstream
) -> None:
    """Those that name no response, and all where such paths are not to be passed."""
    inner = Recorder(way.library)
    about = {"model": "m", "previous_response_id": "resp_1"}

    async def body(ask: Ask) -> None:
        await made(ask)
        for given in ({"model": "m", "input": "x"}, 7, None):
            assert (await ask("POST", "/compact", given)).json() == {"object": "list"}

    async def unpassed(ask: Ask) -> None:
        await made(ask)
        assert (await ask("POST", "/compact", about)).json() == {"object": "list"}

    way.run(upstream, config_of(upstream), body, inner=inner.transport)
    way.run(upstream, config_of(upstream, pass_through=()), unpassed, inner=inner.transport)
    assert len(inner.requests) == 4


def test_a_body_that_is_not_in_memory_is_not_looked_at(upstream: Upstream) -> None:
    inner = Recorder(httpx2)
    transport = SyncBridgeTransport(config_of(upstream), inner=inner.transport)
    parts = iter([b'{"model":"m","previous_res', b'ponse_id":"resp_1"}'])
    with sync_client_of(httpx2, transport) as client:
        assert client.post(url(upstream, "/compact"), content=parts).status_code == 200
    assert len(inner.requests) == 1


def test_the_emulator_has_no_use_for_the_event() -> None:
    from bridgecore import transport as tp

    assert Emulator().handle(tp.ResponseDeleted("r", []), 0) == []
