"""Real ASGI servers, each on a thread of its own: uvicorn, and hypercorn on asyncio and on trio.

What belongs here: starting and stopping them around an application. Clients and the upstream are
those of ``tests/e2e``.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import hypercorn.trio
import pytest
import trio
import uvicorn
import websockets.sync.client

from bridgecore import NS_PER_SECOND, Config, UpstreamUrl
from tests.e2e.conftest import TIME_LIMIT, Upstream, emulating, eventually

SETTINGS = {"drain_timeout": 5 * NS_PER_SECOND}

App = Any  # an ASGI application; each server has types of its own for the same thing


class Serving(ABC):
    """One server on a thread. ``port``: where it listens; ``error``: what it has raised."""

    port: int

    def __init__(self, app: App, **options: Any) -> None:
        self.app, self.options = app, options
        self.error: BaseException | None = None
        self.up = threading.Event()
        # The listener is made here, so that no other process can take the port in between.
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run, name=type(self).__name__)

    def _run(self) -> None:
        try:
            self.serve()
        except BaseException as exc:
            self.error = exc
        finally:
            self.up.set()

    @abstractmethod
    def serve(self) -> None:
        """Serve until ``stop`` is called."""

    @abstractmethod
    def stop(self) -> None:
        """Begin to stop, as at a signal."""


class Uvicorn(Serving):
    """uvicorn; ``options`` are those of its ``Config``."""

    def serve(self) -> None:
        config = uvicorn.Config(self.app, log_config=None, access_log=False, **self.options)
        self.server = uvicorn.Server(config)
        asyncio.run(self.server.serve(sockets=[self.listener]))

    def stop(self) -> None:
        self.server.should_exit = True


class Hypercorn(Serving):
    """hypercorn on asyncio; ``options`` are attributes of its ``Config``."""

    module: Any = hypercorn.asyncio

    def config(self) -> hypercorn.config.Config:
        config = hypercorn.config.Config()
        config.bind = [f"fd://{self.listener.detach()}"]  # hypercorn closes it
        config.errorlog = None  # into pytest's capture, not to standard error
        for name, value in self.options.items():
            setattr(config, name, value)
        return config

    def serve(self) -> None:
        async def main() -> None:
            self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
            await hypercorn.asyncio.serve(self.app, self.config(), shutdown_trigger=self.over.wait)

        asyncio.run(main())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)


class HypercornTrio(Hypercorn):
    """hypercorn on trio."""

    def serve(self) -> None:
        async def main() -> None:
            self.token, self.ended = trio.lowlevel.current_trio_token(), trio.Event()
            await hypercorn.trio.serve(self.app, self.config(), shutdown_trigger=self.ended.wait)

        trio.run(main)

    def stop(self) -> None:
        self.token.run_sync_soon(self.ended.set)


SERVERS: dict[str, Callable[..., Serving]] = {
    "uvicorn": Uvicorn,
    "hypercorn": Hypercorn,
    "hypercorn-trio": HypercornTrio,
}


@contextmanager
def serving(kind: str, app: App, **options: Any) -> Iterator[Serving]:
    """``app`` on a server that has started its lifespan; stopped at the end, with no errors."""
    server = SERVERS[kind](app, **options)
    server.thread.start()
    try:
        eventually(lambda: server.up.is_set() or answers(server.port))
        yield server
    finally:
        if server.thread.is_alive():
            server.stop()
        server.thread.join(TIME_LIMIT)
        assert not server.thread.is_alive()
        server.listener.close()
    if server.error is not None:
        raise server.error


def answers(port: int) -> bool:
    """Whether the server accepts connections: it does not before its lifespan is started."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return bool(sock.recv(1))


@pytest.fixture(params=list(SERVERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the servers."""
    name: str = request.param
    return name


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An emulator on a thread of its own."""
    with emulating() as upstream:
        yield upstream


def config(upstream: Upstream, **settings: Any) -> Config:
    """The settings of a bridge on ``upstream``."""
    return Config(upstream=UpstreamUrl.parse(upstream.url), **{**SETTINGS, **settings})


def connect(port: int, path: str = "/v1/responses") -> Any:
    """A WebSocket to the bridge."""
    return websockets.sync.client.connect(
        f"ws://127.0.0.1:{port}{path}",
        additional_headers={"authorization": "Bearer k"},
        proxy=None,
        max_size=None,
    )
