"""Fixtures for all tests: an event loop backend, and a plain socket as the other end of
connections.

What belongs here: the ``--backend`` option, and an interface over asyncio and trio. A test that
takes ``backend`` runs once for each; its body is an async function that it passes to
``backend.run``, and everything that the body awaits comes from ``backend`` or from a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias, TypeVar

import hypothesis
import pytest
import trio

import bridgecore_asyncio
import bridgecore_trio

# The time of one example depends more on the load of the machine than on the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

T = TypeVar("T")
TIME_LIMIT = 20.0  # seconds that a body, or one wait of a peer, may take


class Event(Protocol):
    """The common interface of ``asyncio.Event`` and ``trio.Event``."""

    def set(self) -> object: ...
    def is_set(self) -> bool: ...
    async def wait(self) -> object: ...


class Peer:
    """The other end of a connection: a blocking socket, used from a thread. It shares no code with
    the adapters, and is the same for asyncio and trio."""

    def __init__(self, backend: Backend, sock: socket.socket) -> None:
        self.sock = sock
        self._backend = backend
        sock.settimeout(TIME_LIMIT)

    async def send(self, data: bytes) -> None:
        await self._backend.in_thread(self.sock.sendall, data)

    async def receive(self, limit: int = 65536) -> bytes:
        """Some bytes; none at the end of the stream."""
        return await self._backend.in_thread(self.sock.recv, limit)

    async def receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = await self.receive(count - len(data))
            if not chunk:
                raise EOFError(f"{len(data)} of {count} bytes came")
            data += chunk
        return bytes(data)

    async def receive_all(self) -> bytes:
        data = bytearray()
        while chunk := await self.receive(1 << 20):
            data += chunk
        return bytes(data)

    def end_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the other side receives RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.sock.close()


class Listener:
    """A plain listening socket, for the code under test to connect to."""

    def __init__(self, backend: Backend, context: ssl.SSLContext | None) -> None:
        self._backend = backend
        self._context = context
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.settimeout(TIME_LIMIT)
        self.port: int = self.sock.getsockname()[1]

    async def accept(self) -> Peer:
        """The next connection, after its TLS handshake, if it has one."""

        def accept() -> socket.socket:
            sock, _ = self.sock.accept()
            if self._context is None:
                return sock
            sock.settimeout(TIME_LIMIT)
            try:
                return self._context.wrap_socket(sock, server_side=True)
            except BaseException:
                sock.close()
                raise

        return Peer(self._backend, await self._backend.in_thread(accept))

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.sock.close()


Served: TypeAlias = bridgecore_asyncio.Server | bridgecore_trio.Server


class Backend(ABC):
    """What a test body needs of its event loop, with the same interface for each."""

    name: str
    serve: Callable[..., AbstractAsyncContextManager[Served]]

    @abstractmethod
    def run(self, body: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run ``body``; fail if it takes too long or leaves anything behind."""

    @abstractmethod
    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        """The result of ``function``, called in a thread."""

    @abstractmethod
    async def tick(self) -> None:
        """Let all other ready tasks run one step.

        To stop at each step of a procedure in turn; not to wait for a condition.
        """

    @abstractmethod
    def event(self) -> Event:
        """An event of this loop, not set yet."""

    @abstractmethod
    async def gather(self, *functions: Callable[[], Awaitable[object]]) -> None:
        """Run async functions side by side until all are done."""

    @abstractmethod
    def caller(self) -> Callable[[Callable[[], object]], None]:
        """A function for other threads, which has this event loop call a function soon. If the loop
        has ended, nothing is called."""

    async def connect(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Peer:
        def connect() -> socket.socket:
            sock = socket.create_connection((host, port), timeout=TIME_LIMIT)
            if context is None:
                return sock
            try:
                return context.wrap_socket(sock, server_hostname=server_hostname or host)
            except BaseException:
                sock.close()
                raise

        return Peer(self, await self.in_thread(connect))

    def listen(self, context: ssl.SSLContext | None = None) -> Listener:
        return Listener(self, context)


class AsyncioBackend(Backend):
    name = "asyncio"
    serve = staticmethod(bridgecore_asyncio.serve)

    def run(self, body: Callable[..., Awaitable[T]], *args: object) -> T:
        complaints: list[dict[str, Any]] = []

        async def main() -> T:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(TIME_LIMIT):
                result = await body(*args)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks left behind"
            return result

        result = asyncio.run(main())
        gc.collect()  # so that unclosed resources are reported now
        assert complaints == []
        return result

    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.to_thread(function, *args)

    async def tick(self) -> None:
        await asyncio.sleep(0)

    def event(self) -> Event:
        return asyncio.Event()

    async def gather(self, *functions: Callable[[], Awaitable[object]]) -> None:
        async def call(function: Callable[[], Awaitable[object]]) -> None:
            await function()

        async with asyncio.TaskGroup() as group:
            for function in functions:
                group.create_task(call(function))

    def caller(self) -> Callable[[Callable[[], object]], None]:
        loop = asyncio.get_running_loop()

        def call(function: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function)

        return call


class TrioBackend(Backend):
    name = "trio"
    serve = staticmethod(bridgecore_trio.serve)

    def run(self, body: Callable[..., Awaitable[T]], *args: object) -> T:
        async def main() -> T:
            with trio.fail_after(TIME_LIMIT):
                return await body(*args)

        result = trio.run(main)
        gc.collect()
        return result

    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args)

    async def tick(self) -> None:
        await trio.lowlevel.checkpoint()

    def event(self) -> Event:
        return trio.Event()

    async def gather(self, *functions: Callable[[], Awaitable[object]]) -> None:
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)

    def caller(self) -> Callable[[Callable[[], object]], None]:
        token = trio.lowlevel.current_trio_token()

        def call(function: Callable[[], object]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(function)

        return call


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a job in the background so, and programs that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS: dict[str, Callable[[], Backend]] = {"asyncio": AsyncioBackend, "trio": TrioBackend}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long and binary values after their argument: a body in a test's id fills the screen, and
    one with a time in it (gzip's header has one) differs from process to process, for which
    pytest-xdist refuses to run anything."""
    named = isinstance(val, bytes | str) and (len(val) > 200 or not val.isascii())
    return argname if named else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=(*BACKENDS, "both"),
        default="both",
        help="which event loop to run the tests that take one on",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, those with a time limit of their own: at the end, one process
    would be left with such a test while the others have nothing to do."""

    def limit(item: pytest.Item) -> float:
        own = item.get_closest_marker("timeout")
        return 0.0 if own is None else float(own.args[0])

    items.sort(key=limit, reverse=True)


def pytest_collection_finish() -> None:
    """Keep what exists before the first test out of garbage collections.

    ``Backend.run`` collects after each use of an event loop. With the 9,000 tests and all modules
    to look through, each takes a tenth of a second or more: tests/adapters took 28 s, and takes 6.
    """
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend")
        names = list(BACKENDS) if chosen == "both" else [chosen]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """One of the event loops that the adapters are written for."""
    return BACKENDS[request.param]()
