"""Tests of the drivers, over real sockets: how each effect is carried out and each event reported.

What belongs here: behaviour of ``serve`` that both adapters share; a difference is a bug, except
where a test says otherwise. The machines are small ones, each made of one function from event to
effects; the other end is a plain blocking socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pytest
import trio
import trustme
from trio.testing import MockClock

import bridgecore_trio
from bridgecore.config import Config, UpstreamUrl
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.transport import (
    Abort,
    Accepted,
    Close,
    Connect,
    Connected,
    ConnectError,
    ConnectFailed,
    ConnectionEffect,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EndSending,
    EofReceived,
    Log,
    LogLevel,
    PauseReading,
    RequestBegun,
    ResumeReading,
    Send,
    Stop,
    StopListening,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
    WriteBlocked,
    WriteUnblocked,
)

if TYPE_CHECKING:
    from tests.conftest import Backend, Event, Peer, Served

Answer = Callable[[TransportEvent], "list[TransportEffect] | None"]
E = TypeVar("E", bound=TransportEvent)

BIG = bytes(range(256)) * 4096 * 24  # 24 MiB: more than any socket buffer holds
MS = 1_000_000


class Machine:
    """Answers events with a test's function, records them, and lets a body wait for one."""

    def __init__(self, backend: Backend, answer: Answer = lambda _: None) -> None:
        self.seen: list[TransportEvent] = []
        self.times: list[int] = []
        self.due: int | None = None
        self.answer = answer
        self._backend = backend
        self._waiting: list[Event] = []
        self._numbers = 0

    def new_connection(self) -> int:
        self._numbers += 1
        return self._numbers

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        self.seen.append(event)
        self.times.append(now)
        effects = self.answer(event)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.set()
        return effects or []

    def next_timeout(self) -> Deadline | None:
        return None if self.due is None else Deadline(self.due, Timer.IDLE)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.seen if isinstance(event, kind)]

    async def saw(self, kind: type[E], count: int = 1) -> E:
        """Wait for ``count`` events of a kind; the last of them."""
        while len(self.of(kind)) < count:
            waiter = self._backend.event()
            self._waiting.append(waiter)
            await waiter.wait()
        return self.of(kind)[count - 1]

    def data(self) -> bytes:
        return b"".join(event.data for event in self.of(DataReceived))


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

    def answer(event: TransportEvent) -> list[TransportEffect] | None:
        if isinstance(event, DrainRequested):
            return [Connect(77, host, port, tls)]
        return then(event)

    return answer


class Certificates:
    """A certificate authority for the tests, with one certificate for this machine."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.listener = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self.listener)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self.other_name = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("other.example").configure_cert(self.other_name)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


# ------------------------------------------------------------------ accepting


def test_echo(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(backend, echo)
        async with backend.serve(machine) as server:
            assert server.host == "127.0.0.1"
            assert server.machine is machine
            assert server.open_connections == 0
            async with await backend.connect(server.host, server.port) as peer:
                await peer.send(b"hello")
                assert await peer.receive_exactly(5) == b"hello"
                assert server.open_connections == 1
                peer.end_sending()
                assert await peer.receive_all() == b""
            await machine.saw(Disconnected)
            assert server.open_connections == 0
        assert machine.seen == [
            Accepted(1),
            DataReceived(1, b"hello"),
            EofReceived(1),
            Disconnected(1),
        ]

    backend.run(body)


def test_connections_are_numbered_by_the_machine_and_kept_apart(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(backend, echo)
        async with backend.serve(machine) as server:
            peers = [await backend.connect(server.host, server.port) for _ in range(20)]
            await machine.saw(Accepted, 20)
            for index, peer in enumerate(peers):
                await peer.send(b"%d" % index)
            for index, peer in enumerate(peers):
                expected = b"%d" % index
                assert await peer.receive_exactly(len(expected)) == expected
            assert server.open_connections == 20
            for peer in peers:
                peer.sock.close()
            await machine.saw(Disconnected, 20)
        assert sorted(event.conn for event in machine.of(Accepted)) == list(range(1, 21))

    backend.run(body)


def test_a_port_in_use_is_the_callers_error(backend: Backend) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
                async with backend.serve(Machine(backend), port=listener.port):
                    pytest.fail("served on a port in use")
            assert caught.value.errno == errno.EADDRINUSE

    backend.run(body)


def test_stop_listening_keeps_what_was_accepted(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [StopListening(), Stop()] if isinstance(event, DrainRequested) else echo(event)

    async def body() -> None:
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine) as server,
            await backend.connect(server.host, server.port) as peer,
        ):
            await machine.saw(Accepted)
            server.request_drain()
            await server.wait_stopped()
            await refused(server.host, server.port)
            await peer.send(b"still here")
            assert await peer.receive_exactly(10) == b"still here"

    async def refused(host: str, port: int) -> None:
        # trio closes the listener in a task of its own, a moment after the effect.
        for _ in range(200):
            try:
                extra = await backend.connect(host, port)
            except ConnectionRefusedError:
                return
            extra.sock.close()
        pytest.fail("the listener still accepts")

    backend.run(body)


# ------------------------------------------------------------------ ends


def test_half_close_by_the_peer_leaves_the_answer_to_be_written(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, EofReceived):
            return [Send(event.conn, BIG), Close(event.conn)]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine) as server:
            async with await backend.connect(server.host, server.port) as peer:
                await peer.send(b"all I have")
                peer.end_sending()
                assert await peer.receive_all() == BIG
            await machine.saw(Disconnected)
            assert machine.data() == b"all I have"

    backend.run(body)


def test_end_sending_flushes_and_still_reads(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        match event:
            case Accepted():
                return [Send(event.conn, BIG), EndSending(event.conn)]
            case EofReceived():
                return [Close(event.conn)]
            case _:
                return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with connected(backend, machine) as peer:
            assert await peer.receive_all() == BIG
            await peer.send(b"last words")
            peer.end_sending()
            await machine.saw(Disconnected)
        assert machine.data() == b"last words"

    backend.run(body)


def test_close_flushes_to_a_peer_that_reads_late(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            return [Send(event.conn, BIG), Close(event.conn), Send(event.conn, b"too late")]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with connected(backend, machine) as peer:
            await peer.send(b"go")
            await machine.saw(DataReceived)
            assert machine.of(Disconnected) == []
            assert await peer.receive_all() == BIG
            await machine.saw(Disconnected)

    backend.run(body)


def test_abort_resets_and_drops_all_later_effects(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            # The DataSent that is due comes after Abort, and is therefore not reported.
            return [Send(1, b"partly", notify=True), Abort(1), Send(1, b"gone"), Close(1), Abort(1)]
        return [Stop()] if isinstance(event, DrainRequested) else []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine) as server:
            async with await backend.connect(server.host, server.port) as peer:
                await peer.send(b"go")
                with pytest.raises(ConnectionResetError):
                    await peer.receive_all()
            server.request_drain()
            await server.wait_stopped()
            assert server.open_connections == 0
        assert machine.seen == [Accepted(1), DataReceived(1, b"go"), DrainRequested()]

    backend.run(body)


def test_a_reset_by_the_peer_is_disconnected(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(backend, echo)
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            await peer.send(b"x")
            await peer.receive_exactly(1)
            peer.reset()
            await machine.saw(Disconnected)
            assert server.open_connections == 0
        assert machine.of(EofReceived) == []

    backend.run(body)


def test_a_reset_in_the_middle_of_a_large_write_is_disconnected_and_not_sent(
    backend: Backend,
) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [Send(event.conn, BIG, notify=True)] if isinstance(event, Accepted) else []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            await machine.saw(WriteBlocked)
            peer.reset()
            await machine.saw(Disconnected)
        assert machine.of(DataSent) == []

    backend.run(body)


def test_leaving_the_context_ends_every_connection(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(backend, echo)
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            await machine.saw(Accepted)
        async with peer:
            with pytest.raises(ConnectionResetError):
                await peer.receive()
        assert server.open_connections == 0
        assert machine.seen == [Accepted(1)]
        with pytest.raises(ConnectionRefusedError):
            await backend.connect(server.host, server.port)

    backend.run(body)


def test_data_handed_to_the_system_before_close_survives_leaving_the_context(
    backend: Backend,
) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            return [Send(event.conn, b"goodbye"), Close(event.conn), Stop()]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            await peer.send(b"go")
            await server.wait_stopped()
        async with peer:
            assert await peer.receive_all() == b"goodbye"

    backend.run(body)


# ------------------------------------------------------------------ marks


def test_notify_waits_for_a_peer_that_reads_late(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            return [Send(1, BIG, notify=True)]
        return [Stop()] if isinstance(event, DrainRequested) else []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine) as server,
            await backend.connect(server.host, server.port) as peer,
        ):
            await peer.send(b"go")
            await machine.saw(WriteBlocked)
            server.request_drain()
            await server.wait_stopped()
            assert machine.of(DataSent) == []
            assert machine.of(WriteUnblocked) == []
            assert await peer.receive_exactly(len(BIG)) == BIG
            await machine.saw(DataSent)
        assert machine.seen[2:] == [
            WriteBlocked(1),
            DrainRequested(),
            WriteUnblocked(1),
            DataSent(1),
        ]

    backend.run(body)


@pytest.mark.parametrize("tls", [False, True])
def test_data_that_close_flushes_is_reported_before_the_end(
    backend: Backend, certificates: Certificates, tls: bool
) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            return [Send(1, BIG, notify=True), Send(1, b"end", notify=True), Close(1)]
        return []

    async def body() -> None:
        listener, client = (certificates.listener, certificates.client) if tls else (None, None)
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine, listener_ssl=listener) as server,
            await backend.connect(server.host, server.port, client) as peer,
        ):
            await peer.send(b"go")
            await machine.saw(WriteBlocked)
            assert await peer.receive_all() == BIG + b"end"
            await machine.saw(Disconnected)
        assert machine.seen[2:] == [
            WriteBlocked(1),
            WriteUnblocked(1),
            DataSent(1),
            DataSent(1),
            Disconnected(1),
        ]

    backend.run(body)


def test_a_reset_while_close_flushes_is_not_sent(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, Accepted):
            return [Send(1, BIG, notify=True), Close(1)]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            await machine.saw(WriteBlocked)
            peer.reset()
            await machine.saw(Disconnected)
        assert machine.seen == [Accepted(1), WriteBlocked(1), Disconnected(1)]

    backend.run(body)


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


def test_each_notify_is_answered_in_order_and_never_inside_the_effects(backend: Backend) -> None:
    order: list[str] = []

    def answer(event: TransportEvent) -> list[TransportEffect]:
        order.append(type(event).__name__)
        if isinstance(event, Accepted):
            log = Log(LogLevel.INFO, "after", {})
            return [Send(1, b"a", notify=True), Send(1, b"b", notify=True), log]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine, log=lambda log: order.append(log.event)) as server,
            await backend.connect(server.host, server.port) as peer,
        ):
            assert await peer.receive_exactly(2) == b"ab"
            await machine.saw(DataSent, 2)
        assert order == ["Accepted", "after", "DataSent", "DataSent"]

    backend.run(body)


def test_writes_below_the_mark_do_not_block(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, Accepted):
            return [Send(1, b"x" * 1000) for _ in range(50)]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with connected(backend, machine) as peer:
            assert await peer.receive_exactly(50_000) == b"x" * 50_000
        assert machine.seen == [Accepted(1)]

    backend.run(body)


def test_no_data_is_reported_while_reading_is_paused(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect] | None:
        match event:
            case DataReceived(data=b"pause"):
                return [PauseReading(1)]
            case DrainRequested():
                machine.due = time_of(machine) + 30 * MS
                return None
            case TimeoutReached() if machine.times[-1] >= (machine.due or 0):
                machine.due = None
                return [ResumeReading(1)]
            case _:
                return None

    async def body() -> None:
        async with (
            backend.serve(machine) as server,
            await backend.connect(server.host, server.port) as peer,
        ):
            await peer.send(b"pause")
            await machine.saw(DataReceived)
            await peer.send(b"more")
            peer.end_sending()
            server.request_drain()
            await machine.saw(EofReceived)
        kinds = [event for event in machine.seen if not isinstance(event, TimeoutReached)]
        assert kinds == [
            Accepted(1),
            DataReceived(1, b"pause"),
            DrainRequested(),
            DataReceived(1, b"more"),
            EofReceived(1),
        ]
        resumed = machine.seen.index(TimeoutReached())
        assert machine.seen.index(DataReceived(1, b"more")) > resumed

    machine = Machine(backend, answer)
    backend.run(body)


def time_of(machine: Machine) -> int:
    """The time of the event that is being answered, in ns."""
    return machine.times[-1]


def test_resuming_after_the_end_does_not_report_it_again(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        match event:
            case EofReceived():
                return [PauseReading(1), ResumeReading(1), Send(1, b"once")]
            case DrainRequested():
                return [Send(1, b"twice"), Close(1)]
            case _:
                return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine) as server,
            await backend.connect(server.host, server.port) as peer,
        ):
            peer.end_sending()
            assert await peer.receive_exactly(4) == b"once"
            server.request_drain()
            assert await peer.receive_all() == b"twice"
            await machine.saw(Disconnected)
        assert len(machine.of(EofReceived)) == 1

    backend.run(body)


# ------------------------------------------------------------------ time


def test_a_timeout_is_reported_when_it_has_come(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect] | None:
        match event:
            case DrainRequested():
                machine.due = time_of(machine) + 20 * MS
                return None
            case TimeoutReached() if time_of(machine) >= (machine.due or 0):
                fired.append(time_of(machine) - (machine.due or 0))
                machine.due = None
                return [Stop()]
            case _:
                return None

    async def body() -> None:
        async with backend.serve(machine) as server:
            server.request_drain()
            await server.wait_stopped()
        assert 0 <= fired[0] < 5_000 * MS
        assert len(machine.of(TimeoutReached)) < 10

    fired: list[int] = []
    machine = Machine(backend, answer)
    backend.run(body)


def test_a_deadline_that_moves_is_followed(backend: Backend) -> None:
    """A deadline is set later, then earlier, then cleared: only the second is reported."""

    def answer(event: TransportEvent) -> list[TransportEffect] | None:
        match event:
            case DataReceived(data=b"late"):
                machine.due = time_of(machine) + 3600 * 1000 * MS
            case DataReceived(data=b"soon"):
                machine.due = time_of(machine) + 5 * MS
            case DataReceived(data=b"none"):
                machine.due = None
            case TimeoutReached() if machine.due is not None and time_of(machine) >= machine.due:
                machine.due = None
                return [Send(1, b"t")]
            case _:
                return None
        return [Send(1, b"k")]

    async def body() -> None:
        async with connected(backend, machine) as peer:
            for word, reply in ((b"late", b"k"), (b"soon", b"kt"), (b"late", b"k")):
                await peer.send(word)
                assert await peer.receive_exactly(len(reply)) == reply
            await peer.send(b"soon")
            assert await peer.receive_exactly(1) == b"k"
            await peer.send(b"none")
            assert set(await peer.receive_exactly(1)) <= set(b"kt")
        assert machine.due is None

    machine = Machine(backend, answer)
    backend.run(body)


def test_a_deadline_that_was_there_before_serving_counts(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        machine.due = None
        return [Stop()]

    async def body() -> None:
        async with backend.serve(machine) as server:
            await server.wait_stopped()
        assert machine.seen == [TimeoutReached()]

    machine = Machine(backend, answer)
    machine.due = 1
    backend.run(body)


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


# ------------------------------------------------------------------ connecting


def test_connect(backend: Backend) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            machine = Machine(backend, dial(listener.port))
            async with backend.serve(machine) as server:
                server.request_drain()
                async with await listener.accept() as peer:
                    await machine.saw(Connected)
                    await peer.send(b"ping")
                    assert await peer.receive_exactly(4) == b"ping"
                    assert server.open_connections == 1
                    peer.end_sending()
                    assert await peer.receive_all() == b""
                await machine.saw(Disconnected)
                assert server.open_connections == 0
        assert machine.seen == [
            DrainRequested(),
            Connected(77),
            DataReceived(77, b"ping"),
            EofReceived(77),
            Disconnected(77),
        ]

    backend.run(body)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_connect_refused(backend: Backend, host: str) -> None:
    async def body() -> None:
        machine = Machine(backend, dial(closed_port(), host=host))
        async with backend.serve(machine) as server:
            server.request_drain()
            failed = await machine.saw(ConnectFailed)
            assert (failed.conn, failed.error) == (77, ConnectError.REFUSED)
            assert failed.detail
            assert "\n" not in failed.detail
        assert server.open_connections == 0
        assert machine.seen == [DrainRequested(), failed]

    backend.run(body)


@pytest.mark.parametrize("host", ["nonexistent.invalid", "bad..name", "x" * 64 + ".invalid"])
def test_connect_to_a_name_without_address(backend: Backend, host: str) -> None:
    async def body() -> None:
        machine = Machine(backend, dial(80, host=host))
        async with backend.serve(machine) as server:
            server.request_drain()
            failed = await machine.saw(ConnectFailed)
            assert failed.error is ConnectError.RESOLVE
            assert failed.detail

    backend.run(body)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_connect_with_tls(backend: Backend, certificates: Certificates, host: str) -> None:
    async def body() -> None:
        async with backend.listen(certificates.listener) as listener:
            machine = Machine(backend, dial(listener.port, host=host, tls=True))
            async with backend.serve(machine, upstream_ssl=certificates.client) as server:
                server.request_drain()
                async with await listener.accept() as peer:
                    await machine.saw(Connected)
                    await peer.send(b"ping")
                    assert await peer.receive_exactly(4) == b"ping"
                await machine.saw(Disconnected)
        assert machine.seen[-2:] == [EofReceived(77), Disconnected(77)]

    backend.run(body)


@pytest.mark.parametrize(
    "case", ["unknown authority", "other name", "no TLS there", "closed at once"]
)
def test_connect_with_tls_that_cannot_be_trusted(
    backend: Backend, certificates: Certificates, case: str
) -> None:
    """By default the system's store decides, which does not have the tests' authority."""

    async def body() -> None:
        trust = None if case == "unknown authority" else certificates.client
        context = certificates.other_name if case == "other name" else certificates.listener
        plain = case in ("no TLS there", "closed at once")

        async def stand_at_the_other_end() -> None:
            try:
                async with await listener.accept() as peer:
                    if case == "no TLS there":
                        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    if plain:
                        peer.end_sending()
                        await peer.receive_all()
            except (ssl.SSLError, ConnectionError):
                assert case != "closed at once"

        async def go() -> None:
            server.request_drain()
            failed = await machine.saw(ConnectFailed)
            assert failed.error is ConnectError.TLS
            assert failed.detail
            assert "\n" not in failed.detail

        async with backend.listen(None if plain else context) as listener:
            machine = Machine(backend, dial(listener.port, tls=True))
            async with backend.serve(machine, upstream_ssl=trust) as server:
                await backend.gather(stand_at_the_other_end, go)
        assert [type(event) for event in machine.seen] == [DrainRequested, ConnectFailed]

    backend.run(body)


def test_notify_over_tls_waits_for_a_peer_that_reads_late(
    backend: Backend, certificates: Certificates
) -> None:
    def then(event: TransportEvent) -> list[TransportEffect]:
        match event:
            case Connected():
                return [Send(77, BIG, notify=True)]
            case DataReceived():
                return [Send(77, b"small", notify=True), Close(77)]
            case _:
                return []

    async def body() -> None:
        async with backend.listen(certificates.listener) as listener:
            machine = Machine(backend, dial(listener.port, tls=True, then=then))
            async with backend.serve(machine, upstream_ssl=certificates.client) as server:
                server.request_drain()
                async with await listener.accept() as peer:
                    await machine.saw(WriteBlocked)
                    assert machine.of(DataSent) == []
                    assert await peer.receive_exactly(len(BIG)) == BIG
                    await machine.saw(DataSent)
                    await peer.send(b"go")
                    assert await peer.receive_exactly(5) == b"small"
                    await machine.saw(Disconnected)
        assert machine.seen[1:] == [
            Connected(77),
            WriteBlocked(77),
            WriteUnblocked(77),
            DataSent(77),
            DataReceived(77, b"go"),
            DataSent(77),
            Disconnected(77),
        ]

    backend.run(body)


def test_a_listener_can_speak_tls(backend: Backend, certificates: Certificates) -> None:
    """What is sent before the handshake has ended is not lost."""

    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, Accepted):
            return [Send(event.conn, b"welcome", notify=True)]
        return echo(event)

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine, listener_ssl=certificates.listener) as server:
            async with await backend.connect("localhost", server.port, certificates.client) as peer:
                assert await peer.receive_exactly(7) == b"welcome"
                await machine.saw(DataSent)
                await peer.send(BIG[: 1 << 20])
                assert await peer.receive_exactly(1 << 20) == BIG[: 1 << 20]
            await machine.saw(Disconnected)
            assert server.open_connections == 0

    backend.run(body)


@pytest.mark.parametrize("tls", [False, True])
def test_close_flushes_what_was_sent_before_the_handshake(
    backend: Backend, certificates: Certificates, tls: bool
) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, Accepted):
            return [Send(1, b"busy", notify=True), Close(1), Send(1, b"too late", notify=True)]
        return []

    async def body() -> None:
        listener, client = (certificates.listener, certificates.client) if tls else (None, None)
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine, listener_ssl=listener) as server,
            await backend.connect(server.host, server.port, client) as peer,
        ):
            assert await peer.receive_all() == b"busy"
            await machine.saw(Disconnected)
        assert machine.seen == [Accepted(1), DataSent(1), Disconnected(1)]

    backend.run(body)


def test_end_sending_flushes_what_was_sent_before_the_handshake(
    backend: Backend, certificates: Certificates
) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        match event:
            case Accepted():
                return [Send(1, b"hello"), EndSending(1)]
            case DataReceived():
                return [Close(1)]
            case _:
                return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with (
            backend.serve(machine, listener_ssl=certificates.listener) as server,
            await backend.connect(server.host, server.port, certificates.client) as peer,
        ):
            assert await peer.receive_exactly(5) == b"hello"
            await peer.send(b"bye")
            await machine.saw(Disconnected)
        assert machine.seen == [Accepted(1), DataReceived(1, b"bye"), Disconnected(1)]

    backend.run(body)


def test_a_client_that_does_not_speak_tls_is_disconnected(
    backend: Backend, certificates: Certificates
) -> None:
    async def body() -> None:
        machine = Machine(backend)
        async with backend.serve(machine, listener_ssl=certificates.listener) as server:
            async with await backend.connect(server.host, server.port) as peer:
                await peer.send(b"GET / HTTP/1.1\r\n\r\n")
                await machine.saw(Disconnected)
            assert server.open_connections == 0
        assert machine.seen == [Accepted(1), Disconnected(1)]

    backend.run(body)


def test_abort_ends_an_attempt_to_connect(backend: Backend, certificates: Certificates) -> None:
    """In the middle of a handshake that never ends, and before the attempt has begun."""

    def answer(event: TransportEvent) -> list[TransportEffect] | None:
        match event:
            case DrainRequested() if len(machine.of(DrainRequested)) == 1:
                return [Connect(77, "127.0.0.1", listener_port[0], True)]
            case DrainRequested():
                never = Connect(78, "127.0.0.1", listener_port[0], False)
                return [Abort(77), never, Abort(78), Stop()]
            case _:
                return None

    async def body() -> None:
        async with backend.listen() as listener:
            listener_port.append(listener.port)
            async with backend.serve(machine, upstream_ssl=certificates.client) as server:
                server.request_drain()
                async with await listener.accept() as peer:
                    assert (await peer.receive())[:1] == b"\x16"  # a ClientHello
                    server.request_drain()
                    await server.wait_stopped()
                    with contextlib.suppress(ConnectionResetError):
                        assert await peer.receive_all() == b""
        assert server.open_connections == 0
        assert machine.seen == [DrainRequested(), DrainRequested()]

    listener_port: list[int] = []
    machine = Machine(backend, answer)
    backend.run(body)


def test_leaving_the_context_ends_attempts_to_connect(
    backend: Backend, certificates: Certificates
) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            machine = Machine(backend, dial(listener.port, tls=True))
            async with backend.serve(machine, upstream_ssl=certificates.client) as server:
                server.request_drain()
                async with await listener.accept() as peer:
                    await peer.receive()
            assert server.open_connections == 0
        assert not machine.of(Connected)

    backend.run(body)


# ------------------------------------------------------------------ failures


class BrokenError(Exception):
    """Raised by a machine with a bug."""


def test_a_bug_in_the_machine_ends_the_context(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            raise BrokenError("it has a bug")
        return []

    async def body() -> None:
        machine = Machine(backend, answer)

        async def until_it_fails() -> None:
            async with backend.serve(machine) as server:
                servers.append(server)
                peers.append(await backend.connect(server.host, server.port))
                await peers[0].send(b"x")
                await backend.event().wait()  # for ever, except for the failure

        with pytest.raises(BrokenError, match="it has a bug"):
            await until_it_fails()
        assert servers[0].open_connections == 0
        async with peers[0] as peer:
            with pytest.raises(ConnectionResetError):
                await peer.receive_all()

    servers: list[Served] = []
    peers: list[Peer] = []
    backend.run(body)


@pytest.mark.parametrize("where", ["next_timeout", "new_connection"])
def test_a_bug_anywhere_in_the_machine_ends_the_context(backend: Backend, where: str) -> None:
    class Bad(Machine):
        def next_timeout(self) -> Deadline | None:
            if where == "next_timeout" and self.seen:
                raise BrokenError
            return None

        def new_connection(self) -> int:
            if where == "new_connection":
                raise BrokenError
            return super().new_connection()

    async def body() -> None:
        async def serve_until_it_breaks() -> None:
            async with backend.serve(Bad(backend)) as server:
                with socket.socket() as peer:  # the server may end sooner than a thread connects
                    peer.setblocking(False)
                    peer.connect_ex((server.host, server.port))
                    await backend.event().wait()

        with pytest.raises(BrokenError):
            await serve_until_it_breaks()

    backend.run(body)


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


def test_drain_can_be_requested_from_a_thread(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(backend, lambda _: [Stop()])
        async with backend.serve(machine) as server:
            await backend.in_thread(server.request_drain)
            await server.wait_stopped()
        assert machine.seen == [DrainRequested()]

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


def test_accepted_sockets_do_not_wait_to_fill_segments(backend: Backend) -> None:
    """TCP_NODELAY: a delta is sent when it is written. Observed from outside as a quick answer."""

    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            return [Send(1, b"a"), Send(1, b"b"), Send(1, b"c")]
        return []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with connected(backend, machine) as peer:
            started = time.monotonic()
            for _ in range(20):
                await peer.send(b"?")
                assert await peer.receive_exactly(3) == b"abc"
            assert time.monotonic() - started < 20 * 0.04  # with Nagle: 40 ms each

    backend.run(body)


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
