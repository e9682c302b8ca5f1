"""The drivers for asyncio and trio under ``bridgecore.testing.conformance``.

What belongs here: how to run the two drivers in a thread. What they must do is in the suite; what
is theirs alone (arguments of ``serve``, cancellation, steps of the event loop) is in
``test_driver.py``, ``test_names.py`` and ``test_sockets.py``.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from bridgecore.testing.conformance import DriverConformance, RunningDriver
from bridgecore.transport import Machine

if TYPE_CHECKING:
    from tests.conftest import Backend, Served


class Running:
    """A server in the thread of its event loop, as the checks use it."""

    def __init__(self, server: Served, leave: Callable[[], None]) -> None:
        self.port = server.port
        self.request_drain = server.request_drain
        self.leave = leave
        self.stopped = threading.Event()

    def wait_stopped(self, timeout: float) -> bool:
        return self.stopped.wait(timeout)


@contextlib.contextmanager
def in_thread(backend: Backend, machine: Machine, **options: Any) -> Iterator[Running]:
    """Run a driver in a thread; what it raises is raised when the context is left."""
    results: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
    failures: list[BaseException] = []

    async def body() -> None:
        left, call, started = backend.event(), backend.caller(), backend.event()
        servers: list[tuple[Served, Running]] = []

        async def serve() -> None:
            async with backend.serve(machine, **options) as server:
                running = Running(server, lambda: call(left.set))
                servers.append((server, running))
                started.set()
                results.put(running)
                await left.wait()

        async def watch() -> None:
            await started.wait()
            ((server, running),) = servers
            await server.wait_stopped()  # also ends when the context is left
            running.stopped.set()

        await backend.gather(serve, watch)

    def run() -> None:
        try:
            backend.run(body)
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            failures.append(error)
        finally:
            results.put(None)  # it may have failed before it served

    thread = threading.Thread(target=run)
    thread.start()
    running = results.get()
    try:
        if running is not None:
            yield running
    finally:
        if running is not None:
            running.leave()
        thread.join()
        if failures:
            raise failures[0]


class TestConformance(DriverConformance):
    backend: Backend

    @pytest.fixture(autouse=True)
    def _on(self, backend: Backend) -> None:
        self.backend = backend

    def serve(
        self, machine: Machine, **options: Any
    ) -> contextlib.AbstractContextManager[RunningDriver]:
        return in_thread(self.backend, machine, **options)
