"""Machines on real ports: each runs on a thread of its own, so that any test can be its client.

What belongs here: the start and the end of such a thread, and what a test may know of the machine
in it. A test that blocks, one on asyncio and one on trio use the same servers: no event loop of
theirs has to run for a server to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import attrs

import bridgecore_asyncio
from bridgecore.config import Config
from bridgecore.testing import Emulator, FaultPlan, Turn
from bridgecore.transport import Log, Machine

_TIME_LIMIT = 30.0  # seconds to start or to end; both take milliseconds
_LOGGER = logging.getLogger("bridgecore")


@attrs.frozen
class UpstreamServer:
    """An ``emulator`` that listens on ``port`` of 127.0.0.1. A test may change it, and its faults,
    while it runs."""

    emulator: Emulator
    port: int

    @property
    def url(self) -> str:
        """The URL of its WebSocket mode, for ``Config.upstream``."""
        return f"ws://127.0.0.1:{self.port}/v1/responses"

    @property
    def http_url(self) -> str:
        """The base URL of the same API over HTTP, as clients of it take one."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def faults(self) -> FaultPlan:
        """The faults that it will have: ``add(2, Fault(...))`` plans one for the second turn."""
        return self.emulator.faults

    @property
    def turns(self) -> list[Turn]:
        """The turns that it has received, on all connections together."""
        return self.emulator.turns


@attrs.frozen
class BridgeServer:
    """A bridge with the settings ``config`` that listens on ``port`` of 127.0.0.1. ``logs``: what
    it has logged so far, which pytest shows, too, from warnings on."""

    config: Config
    port: int
    logs: list[Log]

    @property
    def base_url(self) -> str:
        """The base URL of the API, as clients of it take one."""
        return f"http://127.0.0.1:{self.port}/v1"


@contextlib.contextmanager
def upstream_server(emulator: Emulator) -> Iterator[UpstreamServer]:
    """``emulator`` on a port, until the context is left."""
    with _running(emulator, "bridgecore upstream") as port:
        yield UpstreamServer(emulator, port)


@contextlib.contextmanager
def bridge_server(config: Config) -> Iterator[BridgeServer]:
    """A bridge on a port, until the context is left."""
    logs: list[Log] = []

    def log(record: Log) -> None:
        logs.append(record)
        fields = " ".join(f"{name}={value}" for name, value in record.fields.items())
        _LOGGER.log(record.level, "%s %s", record.event, fields)

    with _running(config, "bridgecore bridge", log) as port:
        yield BridgeServer(config, port, logs)


@contextlib.contextmanager
def _running(
    machine: Config | Machine, name: str, log: Callable[[Log], None] | None = None
) -> Iterator[int]:
    """Run ``machine`` on a thread of its own; the port that it listens on. Leaving the context
    aborts its connections, and waits until they are closed and the thread has ended.

    Raises:
        OSError: it cannot listen.
        Exception: whatever the machine has raised, which is a bug.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
    ended: Future[None] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with bridgecore_asyncio.serve(machine, log=log) as server:
            started.set_result((asyncio.get_running_loop(), stop, server.port))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            (ended if started.done() else started).set_exception(exc)
        else:
            ended.set_result(None)

    # A daemon: if it hangs, the test fails, but the test run ends.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    loop, stop, port = started.result(_TIME_LIMIT)
    try:
        yield port
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the machine has failed
            loop.call_soon_threadsafe(stop.set)
        ended.result(_TIME_LIMIT)
        thread.join()
