"""What the tests of the httpx transport share: an upstream, both libraries, and a loop over both.

What belongs here: set-up. A test that takes ``library`` runs once with httpx2 and once with httpx.
"""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore_httpx import BridgeTransport, SyncBridgeTransport
from tests.e2e.conftest import KEY, TIME_LIMIT, Json, Upstream
from tests.e2e.conftest import upstream as upstream

URL = "https://api.upstream.test/v1/responses"  # its host is not used, so it need not exist
TURN: Json = {"model": "m", "input": "hello"}
STREAM: Json = {**TURN, "stream": True}
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(params=["httpx2", "httpx"])
def library(request: pytest.FixtureRequest) -> Any:
    """One of the libraries that a client may come from."""
    return importlib.import_module(request.param)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the shell has started this process in the
    background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def config_of(upstream: Upstream, **settings: Any) -> Config:
    return Config(upstream=UpstreamUrl.parse(upstream.url), **settings)


@asynccontextmanager
async def client_of(library: Any, transport: BridgeTransport, **more: Any) -> AsyncIterator[Any]:
    """A client with the bridge as its transport."""
    timeout = more.pop("timeout", TIME_LIMIT)
    async with library.AsyncClient(
        transport=transport, timeout=timeout, headers=HEADERS, **more
    ) as client:
        yield client


@contextmanager
def sync_client_of(library: Any, transport: SyncBridgeTransport, **more: Any) -> Iterator[Any]:
    """The same for threads."""
    timeout = more.pop("timeout", TIME_LIMIT)
    with library.Client(transport=transport, timeout=timeout, headers=HEADERS, **more) as client:
        yield client


def types_in(body: bytes) -> list[str]:
    """The types of the events in a stream."""
    lines = body.decode().splitlines()
    return [json.loads(line[6:])["type"] for line in lines if line.startswith("data: {")]
