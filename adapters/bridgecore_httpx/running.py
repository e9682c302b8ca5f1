"""A bridge in the background of an event loop, without a listener.

What belongs here: its life, from the first request of a client to the end of its drain. It cannot
be a task of the caller: the request that starts it ends long before it does.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import attrs

import bridgecore_asyncio
from bridgecore.config import Config
from bridgecore.transport import Log, ResponseDeleted
from bridgecore.transport.driver import DrivenConnection, Driver, StoreClient
from bridgecore.transport.request import InProcessRequest

if TYPE_CHECKING:
    import bridgecore_trio

    Server = bridgecore_asyncio.Server | bridgecore_trio.Server

# asyncio keeps no reference to a task that waits. Without one it is collected as garbage.
_tasks: set[asyncio.Task[None]] = set()


class Signal(Protocol):
    """Wakes the one task that waits for it. anyio's events and timeouts do the same at several
    times the cost, once for each part of an answer."""

    def wake(self) -> None:
        """Wake the task, if it waits."""

    async def wait(self, seconds: float | None) -> bool:
        """Wait for the next ``wake``; False if none came in time."""


@attrs.frozen
class EventLoop:
    """What is needed of asyncio or trio, and anyio does not have."""

    identity: object  # differs from one run of an event loop to another
    signal: Callable[[], Signal]
    serve: Callable[..., AbstractAsyncContextManager[Server]]
    spawn: Callable[[Callable[[], Awaitable[None]]], None]  # in the background
    post: Callable[[Callable[[], object]], object]  # from any thread; RuntimeError: it has ended


def identity() -> object:
    """What identifies the event loop that runs here."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def event_loop() -> EventLoop:
    """The event loop that runs here."""
    found = identity()
    return _asyncio(found) if isinstance(found, asyncio.AbstractEventLoop) else _trio(found)


# ------------------------------------------------------------------ asyncio


class _AsyncioSignal:
    __slots__ = ("_loop", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None

    def wake(self) -> None:
        if self._waiter is not None:
            _finish(self._waiter, True)

    async def wait(self, seconds: float | None) -> bool:
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        timer = None
        if seconds is not None:
            timer = self._loop.call_later(seconds, _finish, waiter, False)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _finish(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _asyncio(loop: asyncio.AbstractEventLoop) -> EventLoop:
    def spawn(function: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await function()

        # Not in the context of the request that happens to be the first one.
        task = loop.create_task(main(), name="bridgecore", context=contextvars.Context())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    post = loop.call_soon_threadsafe
    return EventLoop(loop, _AsyncioSignal, bridgecore_asyncio.serve, spawn, post)


# ------------------------------------------------------------------ trio


def _trio(token: Any) -> EventLoop:
    import trio

    import bridgecore_trio

    class TrioSignal:
        __slots__ = ("_event",)

        def __init__(self) -> None:
            self._event = trio.Event()

        def wake(self) -> None:
            self._event.set()

        async def wait(self, seconds: float | None) -> bool:
            self._event = trio.Event()
            with trio.move_on_after(math.inf if seconds is None else seconds):
                await self._event.wait()
            woken: bool = self._event.is_set()
            return woken

    # A system task: it lives as long as the run. A nursery of ``__aenter__`` would turn every
    # exception that leaves the client's context into an exception group.
    def spawn(function: Callable[[], Awaitable[None]]) -> None:
        trio.lowlevel.spawn_system_task(function, name="bridgecore")

    return EventLoop(token, TrioSignal, bridgecore_trio.serve, spawn, token.run_sync_soon)


# ------------------------------------------------------------------ the bridge


@attrs.frozen
class Settings:
    """What to run: see ``BridgeTransport``."""

    config: Config
    store: StoreClient | None
    upstream_ssl: ssl.SSLContext | None
    log: Callable[[Log], None] | None
    scope: str | None


class Running:
    """A bridge on the event loop that runs where this is created; ``run`` runs it."""

    def __init__(self, settings: Settings) -> None:
        self.loop = event_loop()
        self.driver: Driver[DrivenConnection] | None = None  # None: it is starting
        self.started = anyio.Event()  # or it has failed
        self.ended = anyio.Event()
        self.closing = anyio.Event()  # for whoever is to call ``drain``
        self.error: Exception | None = None  # why it has ended, if by an error
        self._settings = settings
        self._has_run = False
        self._server: Server | None = None
        self._stopping = anyio.Event()
        self._lock = threading.Lock()  # of the next one and ``driver``: there may be many threads
        self._exchanges: set[InProcessRequest] = set()

    @property
    def failed_to_start(self) -> Exception | None:
        """Why it has never run."""
        return None if self._has_run else self.error

    async def run(self) -> None:
        """Run the bridge until ``stop``. Raises nothing: an error is in ``error``."""
        settings = self._settings
        try:
            async with self.loop.serve(
                settings.config,
                port=None,
                upstream_ssl=settings.upstream_ssl,
                store=settings.store,
                log=settings.log,
            ) as self._server:
                self.driver, self._has_run = self._server, True
                self.started.set()
                await self._stopping.wait()
        except Exception as exc:
            self.error = exc
        finally:
            with self._lock:
                self.driver = self._server = None
                exchanges, self._exchanges = self._exchanges, set()
            for exchange in exchanges:
                exchange.lose()
            self.started.set()
            self.ended.set()

    def exchange(self, wake: Callable[[], None]) -> InProcessRequest:
        """A new exchange with the bridge; ``forget`` it at its end. From any thread.

        Raises:
            RuntimeError: the bridge does not run any more.
        """
        with self._lock:
            if self.driver is not None:
                exchange = InProcessRequest(self.driver, wake, threading.Lock())
                self._exchanges.add(exchange)
                return exchange
        raise stopped() from self.error

    def forget(self, exchange: InProcessRequest) -> None:
        """The client has the whole answer, or wants no more of it."""
        exchange.leave()
        with self._lock:
            self._exchanges.discard(exchange)

    def post(self, call: Callable[[], object]) -> bool:
        """Have the event loop call ``call``. From any thread; False: it has ended."""
        try:
            self.loop.post(call)
        except RuntimeError:
            return False
        return True

    def report(self, event: ResponseDeleted) -> None:
        """Report what the client has had done without the bridge. From any thread, in which it
        comes before what is begun after it."""

        def report() -> None:
            if self.driver is not None:
                self.driver.report(event)

        try:
            here = identity() is self.loop.identity
        except RuntimeError:
            here = False  # a thread without an event loop
        if here:
            report()
        else:
            self.post(report)

    async def drain(self) -> None:
        """Let turns end that run, for ``drain_timeout`` at most, then stop."""
        try:
            if self._server is not None:
                self._server.request_drain("close")
                await self._server.wait_stopped()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop at once, and wait until all is closed."""
        self._stopping.set()
        with anyio.CancelScope(shield=True):  # short: nothing here waits for a peer
            await self.ended.wait()

    def stop_soon(self) -> None:
        """Have it stop, without waiting. From any thread, also when the event loop has ended."""

        def stop() -> None:
            self._stopping.set()
            self.closing.set()

        self.post(stop)


def stopped() -> RuntimeError:
    """The error for a request when the bridge does not run any more."""
    return RuntimeError(
        "the bridge of this transport has stopped, and what it knew of conversations is gone; "
        "create a new transport"
    )
