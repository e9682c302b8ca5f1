"""Tests of the drivers, over real sockets: what is theirs alone, beside what every driver must do.

What belongs here: the arguments and the ends of ``serve``, which both adapters share; a difference
is a bug, except where a test says otherwise. What *every* driver must do is in
``bridgecore.testing.conformance``, which ``test_conformance.py`` runs.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import pytest
import trio
from trio.testing import MockClock

import bridgecore_trio
from bridgecore.config import Config, UpstreamUrl
from bridgecore.testing.conformance.recording import Answer, E, RecordingMachine
from bridgecore.transport import (
    Abort,
    Accepted,
    Close,
    Connect,
    ConnectionEffect,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EofReceived,
    Log,
    LogLevel,
    RequestBegun,
    Send,
    Stop,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
    WriteBlocked,
    WriteUnblocked,
)

if TYPE_CHECKING:
    from tests.conftest import Backend, Event, Peer, Served

BIG = bytes(range(256)) * 4096 * 24  # 24 MiB: more than any socket buffer holds


class Machine(RecordingMachine):
    """The machine of the conformance checks, whose events a coroutine can wait for."""

    def __init__(self, backend: Backend, answer: Answer = lambda _: None) -> None:
        super().__init__(answer)
        self._backend = backend
        self._waiting: list[Event] = []

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        effects = super().handle(event, now)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.set()
        return effects

    async def saw(  # type: ignore[override]  # it waits in the event loop, not in a thread
        self, kind: type[E], count: int = 1
    ) -> E:
        """Wait for ``count`` events of a kind; the last of them."""
        while len(self.of(kind)) < count:
            waiter = self._backend.event()
            self._waiting.append(waiter)
            await waiter.wait()
        return self.of(kind)[count - 1]


@contextlib.asynccontextmanager
async def connected(backend: Backend, machine: Machine | Config) -> AsyncIterator[Peer]:
    """Serve ``machine``; a peer that is connected to it."""
    async with (
        backend.serve(machine) as server,
        await backend.connect(server.host, server.port) as peer,
    ):
        yield peer


def echo(event: TransportEvent) -> list[TransportEffect]:
    match event:
        case DataReceived():
            return [Send(event.conn, event.data)]
        case EofReceived():
            return [Close(event.conn)]
        case _:
            return []


def dial(port: int, *, host: str = "127.0.0.1", tls: bool = False, then: Answer = echo) -> Answer:
    """Connect as number 77 when a drain is requested, which a test can do at any time."""

    def answer(event: TransportEvent) -> Sequence[TransportEffect] | None:
        if isinstance(event, DrainRequested):
            return [Connect(77, host, port, tls)]
        return then(event)

    return answer


# ------------------------------------------------------------------ accepting


def test_a_server_says_where_it_listens_and_how_many_connections_are_open(
    backend: Backend,
) -> None:
    """One that was aborted counts until its socket is closed."""

    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [Abort(2), Stop()] if isinstance(event, DrainRequested) else echo(event)

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine) as server:
            assert server.host == "127.0.0.1"
            assert server.machine is machine
            assert server.open_connections == 0
            peers = [await backend.connect(server.host, server.port) for _ in range(3)]
            await machine.saw(Accepted, 3)
            assert server.open_connections == 3
            peers[0].end_sending()
            await machine.saw(Disconnected)
            assert server.open_connections == 2
            server.request_drain()
            await server.wait_stopped()
            with pytest.raises(ConnectionResetError):
                await peers[1].receive_all()
            assert server.open_connections == 1
        assert server.open_connections == 0
        for peer in peers:
            peer.sock.close()

    backend.run(body)


def test_a_port_in_use_is_the_callers_error(backend: Backend) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
                async with backend.serve(Machine(backend), port=listener.port):
                    pytest.fail("served on a port in use")
            assert caught.value.errno == errno.EADDRINUSE

    backend.run(body)


# ------------------------------------------------------------------ marks


def test_unblocked_is_reported_before_what_is_sent_next(backend: Backend) -> None:
    """Also if the next data is sent, and taken by the OS, just when the last has been written."""

    def answer(event: TransportEvent) -> list[TransportEffect]:
        match event:
            case DataReceived():
                return [Send(1, BIG)]
            case DrainRequested():
                return [Send(1, b".", notify=True)]
            case _:
                return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine) as server,
            await backend.connect(server.host, server.port) as peer,
        ):
            await peer.send(b"go")
            await machine.saw(WriteBlocked)

            async def send_small() -> None:
                while not machine.of(DataSent):
                    server.request_drain()
                    await backend.tick()

            async def read_large() -> None:
                assert await peer.receive_exactly(len(BIG)) == BIG

            await backend.gather(send_small, read_large)
        first = next(
            event for event in machine.seen if isinstance(event, WriteUnblocked | DataSent)
        )
        assert first == WriteUnblocked(1)

    backend.run(body)


# ------------------------------------------------------------------ time


def test_time_is_the_systems_monotonic_clock_on_asyncio(backend: Backend) -> None:
    """On trio it is trio's clock instead, which can be a mock clock: see below."""
    if backend.name != "asyncio":
        pytest.skip("trio has a clock of its own")

    async def body() -> None:
        machine = Machine(backend, lambda _: [Stop()])
        async with backend.serve(machine) as server:
            before = time.monotonic_ns()
            server.request_drain()
            await server.wait_stopped()
            assert before <= machine.times[0] <= time.monotonic_ns()

    backend.run(body)


def test_a_mock_clock_drives_an_hour_on_trio(backend: Backend) -> None:
    if backend.name != "trio":
        pytest.skip("asyncio has no mock clock")
    hour = 3600 * 1_000_000_000

    def answer(event: TransportEvent) -> list[TransportEffect]:
        machine.due = None
        return [Stop()]

    async def body() -> None:
        async with bridgecore_trio.serve(machine) as server:
            await server.wait_stopped()

    machine = Machine(backend, answer)
    machine.due = hour
    trio.run(body, clock=MockClock(autojump_threshold=0))
    assert machine.seen == [TimeoutReached()]
    assert machine.times == [hour]


def test_without_a_listener_requests_come_by_report(backend: Backend) -> None:
    class Request:
        conn = -1
        effects: ClassVar[list[ConnectionEffect]] = []

        def carry_out(self, effect: ConnectionEffect) -> None:
            self.effects.append(effect)

    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [Send(event.conn, b"hi")] if isinstance(event, RequestBegun) else []

    async def body() -> None:
        machine, request = Machine(backend, answer), Request()
        async with backend.serve(machine, port=None) as server:
            assert (server.host, server.port, server.open_connections) == ("", 0, 0)
            begun = RequestBegun(-1, b"GET", b"/livez", [])
            server.report(begun, request)
            server.request_drain()
            await machine.saw(DrainRequested)
        assert machine.seen == [begun, DrainRequested()]
        assert (begun.conn, request.conn, request.effects) == (1, 1, [Send(1, b"hi")])

    backend.run(body)


# ------------------------------------------------------------------ failures


def test_the_exception_of_a_body_is_raised_unchanged(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(backend, echo)

        async def raise_in_the_body() -> None:
            async with backend.serve(machine) as server:
                servers.append(server)
                peers.append(await backend.connect(server.host, server.port))
                await machine.saw(Accepted)
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await raise_in_the_body()
        peers[0].sock.close()
        assert servers[0].open_connections == 0

    servers: list[Served] = []
    peers: list[Peer] = []
    backend.run(body)


def test_cancellation_leaves_no_task_or_socket(backend: Backend) -> None:
    class EnoughError(Exception):
        pass

    async def body() -> None:
        async def serve() -> None:
            async with backend.serve(machine) as server:
                servers.append(server)
                ready.set()
                await backend.event().wait()

        async def disturb() -> None:
            await ready.wait()
            peers.append(await backend.connect(servers[0].host, servers[0].port))
            await machine.saw(Accepted)
            raise EnoughError

        machine = Machine(backend, echo)
        ready = backend.event()
        with pytest.raises(ExceptionGroup) as caught:
            await backend.gather(serve, disturb)
        assert caught.group_contains(EnoughError)
        assert servers[0].open_connections == 0
        peers[0].sock.close()

    servers: list[Served] = []
    peers: list[Peer] = []
    backend.run(body)


def test_log_records_go_to_the_callable_or_nowhere(backend: Backend) -> None:
    record = Log(LogLevel.INFO, "hello", {"n": 1})

    async def body() -> None:
        for log in (records.append, None):
            machine = Machine(backend, lambda _: [record, Stop()])
            async with backend.serve(machine, log=log) as server:
                server.request_drain()
                await server.wait_stopped()

    records: list[Log] = []
    backend.run(body)
    assert records == [record]


def test_each_server_has_its_own_seed_for_request_ids(backend: Backend) -> None:
    """The core has no randomness: the seed of request ids is drawn by the driver."""
    config = Config(upstream=UpstreamUrl.parse("ws://127.0.0.1:9/"))
    ids = []

    async def body() -> None:
        for _ in range(2):
            async with connected(backend, config) as peer:
                await peer.send(b"GET /livez HTTP/1.0\r\n\r\n")
                head = (await peer.receive_all()).split(b"\r\n\r\n")[0]
                ids.append(head.split(b"x-request-id: ")[1].split(b"\r\n")[0])

    backend.run(body)
    assert ids[0] != ids[1]


def test_linger_is_packed_as_the_system_wants_it() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)
