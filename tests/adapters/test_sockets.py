"""Tests of the drivers at the limits of sockets: slow readers, no descriptor left, cancelled
connects.

What belongs here: what the conformance checks do not, because it depends on steps of the event loop
or on the trust store, or is about a whole bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import bridgecore_asyncio
from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.testing.conformance.peers import no_descriptor_left
from bridgecore.transport import (
    Accepted,
    AcceptFailed,
    Connect,
    Connected,
    ConnectError,
    ConnectFailed,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EofReceived,
    Send,
    Stop,
    StopListening,
    TransportEffect,
    TransportEvent,
)
from bridgecore.transport.sockets import FIRST_READ_SIZE
from bridgecore.wire.websocket import MessageReceived, PongReceived, WebSocketServer
from tests.adapters.test_driver import BIG, Machine, dial, echo
from tests.conftest import AsyncioBackend

if TYPE_CHECKING:
    from tests.conftest import Backend, Peer

# ------------------------------------------------------------------ slow readers


LATE = b"too late" * 10_000  # more than an adapter writes without yielding to others


class Watched(Endpoint):
    """A bridge that another thread can wait for."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.heard = threading.Semaphore(0)  # counts reads from the upstream
        self._upstream = -1

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        effects = super().handle(event, now)
        if isinstance(event, Connected):
            self._upstream = event.conn
        elif isinstance(event, DataReceived) and event.conn == self._upstream:
            self.heard.release()
        return effects


def test_a_slow_upstream_gets_pongs_while_it_reads_a_large_request(backend: Backend) -> None:
    """Each of its pings is answered long before it has read what was on the way when it pinged."""
    size = 4 << 20
    pings = 8

    def upstream(listener: socket.socket, bridge: Watched) -> int:
        """The largest number of bytes before a pong; all pongs come before the message does."""
        sock, _ = listener.accept()
        sock.settimeout(20)
        server = WebSocketServer(max_message=2 * size)
        late = 0
        with sock:
            while not server.receive(sock.recv(4096)):
                pass
            sock.sendall(server.accept())
            bridge.heard.acquire(timeout=20)
            server.receive(sock.recv(4096))  # the message has begun
            for _ in range(pings):
                sock.sendall(server.ping())
                bridge.heard.acquire(timeout=20)  # it does not read on before
                read = 0
                events: list[Any] = []
                while not any(isinstance(event, PongReceived) for event in events):
                    data = sock.recv(4096)
                    read += len(data)
                    events += server.receive(data)
                    assert not any(isinstance(event, MessageReceived) for event in events)
                late = max(late, read)
        return late

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/responses"
            bridge = Watched(Config(upstream=UpstreamUrl.parse(url)))

            async def answer() -> None:
                found.append(await backend.in_thread(upstream, listener, bridge))

            async def ask() -> None:
                body = json.dumps({"model": "m", "input": "x" * size, "stream": True}).encode()
                head = b"POST /v1/responses HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
                async with await backend.connect(server.host, server.port) as client:
                    await client.send(head % len(body) + body)
                    await client.receive()

            async with backend.serve(bridge) as server:
                await backend.gather(answer, ask)

    found: list[int] = []
    backend.run(body)
    # A fragment, what the system may buffer unsent, and what it buffers for a reader of this size.
    assert found[0] < size // pings


def test_the_beginning_of_a_long_answer_is_read_by_itself(backend: Backend) -> None:
    """So that its first event is passed on before the rest is read."""
    answer = b"x" * 6 * FIRST_READ_SIZE

    def upstream(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            for _ in range(2):
                sock.recv(1)
                sock.sendall(answer)

    def react(event: TransportEvent) -> list[TransportEffect]:
        # Nothing is asked after the second answer: the end would be a reset, not an EOF.
        once = sum(len(event.data) for event in machine.of(DataReceived)) == len(answer)
        if isinstance(event, Connected) or (isinstance(event, DataReceived) and once):
            return [Send(77, b"?")]
        return []

    async def body() -> None:
        async with backend.serve(machine) as server:
            server.request_drain()
            await backend.in_thread(upstream, listener)
            await machine.saw(EofReceived)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        machine = Machine(backend, dial(listener.getsockname()[1], then=react))
        backend.run(body)
    sizes = [len(event.data) for event in machine.of(DataReceived)]
    before = [sum(sizes[:number]) % len(answer) for number in range(len(sizes))]
    begins = [size for size, read in zip(sizes, before, strict=True) if read == 0]
    assert len(begins) == 2
    assert max(begins) <= FIRST_READ_SIZE


def test_sends_to_a_connection_that_is_being_reset(backend: Backend) -> None:
    """At each step of its end, from the reset by the peer to the report."""

    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [Send(1, LATE)] if isinstance(event, DrainRequested) else []

    async def body() -> None:
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            await machine.saw(Accepted)
            peer.reset()
            while not machine.of(Disconnected):
                server.request_drain()
                await backend.tick()

    for _ in range(5):
        machine = Machine(backend, answer)
        backend.run(body)


def test_a_send_that_fails_as_soon_as_the_last_one_is_written(backend: Backend) -> None:
    """DataSent leads to another Send, and the peer has reset the connection in between."""
    peers: list[Peer] = []

    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            return [Send(event.conn, BIG, notify=True)]
        if isinstance(event, DataSent):
            peers[0].reset()
            return [Send(event.conn, b"more", notify=True)]
        return []

    async def body() -> None:
        async with backend.serve(machine) as server:
            peer = await backend.connect(server.host, server.port)
            peers.append(peer)
            await peer.send(b".")
            while not machine.of(DataSent):
                await peer.receive()
                for _ in range(4):  # so that it is not reading when it is reset
                    await backend.tick()
            await machine.saw(Disconnected)

    machine = Machine(backend, answer)
    backend.run(body)
    assert len(machine.of(DataSent)) == 1


def test_a_send_that_waited_for_a_handshake_and_fails_after_it_is_not_sent(
    backend: Backend,
) -> None:
    """The peer completes the handshake and resets at once: the first write of data fails."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [Send(1, b"hello", notify=True)] if isinstance(event, Accepted) else []

    async def body() -> None:
        machine = Machine(backend, answer)
        async with backend.serve(machine, listener_ssl=context) as server:
            peer = await backend.connect(server.host, server.port)
            received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = trust.wrap_bio(received, to_send, server_hostname="127.0.0.1")
            while True:
                try:
                    session.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await peer.send(to_send.read())
                    received.write(await peer.receive())
            peer.sock.sendall(to_send.read())  # in one step with the reset
            peer.reset()
            await machine.saw(Disconnected)
        assert machine.seen == [Accepted(1), Disconnected(1)]

    backend.run(body)


# ------------------------------------------------------------------ no descriptor left


async def dialled(peer: socket.socket, port: int, backend: Backend) -> None:
    """The operating system has set the connection up; it need not be accepted."""
    await backend.in_thread(peer.connect, ("127.0.0.1", port))


def test_a_listener_waiting_to_accept_again_can_be_stopped(backend: Backend) -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        return [StopListening(), Stop()] if isinstance(event, DrainRequested) else []

    async def body() -> None:
        machine = Machine(backend, answer)
        with socket.socket() as late:
            async with backend.serve(machine) as server:
                with no_descriptor_left():
                    await dialled(late, server.port, backend)
                    await machine.saw(AcceptFailed)
                    server.request_drain()
                    await server.wait_stopped()
            assert machine.of(Accepted) == []

    backend.run(body)


def test_the_trust_store_is_not_read_without_descriptors(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty store would be cached, and every later upstream would not be trusted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def body() -> None:
        async with backend.listen(context) as listener:

            def answer(event: TransportEvent) -> list[TransportEffect]:
                if isinstance(event, DrainRequested):
                    number = 77 + len(machine.of(DrainRequested))
                    return [Connect(number, "127.0.0.1", listener.port, True)]
                return []

            machine = Machine(backend, answer)
            async with backend.serve(machine) as server:
                with no_descriptor_left():
                    server.request_drain()
                    failed = await machine.saw(ConnectFailed)
                assert failed.error is ConnectError.LOCAL
                server.request_drain()
                async with await listener.accept():
                    await machine.saw(Connected)

    backend.run(body)


# ------------------------------------------------------------------ leaving in mid-connect


async def ticks(backend: Backend, count: int) -> None:
    for _ in range(count):
        await backend.tick()


@pytest.mark.parametrize("tls", [False, True])
def test_the_context_can_be_left_at_any_moment_of_an_accept(backend: Backend, tls: bool) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def body(count: int) -> None:
        peers = [socket.socket() for _ in range(3)]
        async with backend.serve(
            Machine(backend, echo), listener_ssl=context if tls else None
        ) as server:
            for peer in peers:
                peer.connect((server.host, server.port))  # the operating system accepts it
            await ticks(backend, count)
        assert server.open_connections == 0
        for peer in peers:
            peer.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""
            peer.close()

    for count in range(10):
        backend.run(body, count)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "nonexistent.invalid"])
@pytest.mark.parametrize("tls", [False, True])
def test_the_context_can_be_left_at_any_moment_of_a_connect(
    backend: Backend, host: str, tls: bool
) -> None:
    async def body(count: int) -> None:
        async with backend.listen() as listener:
            machine = Machine(backend, dial(listener.port, host=host, tls=tls))
            async with backend.serve(machine) as server:
                server.request_drain()
                await ticks(backend, count)
            assert server.open_connections == 0

    for count in range(14):
        backend.run(body, count)


# ------------------------------------------------------------------ other loops of asyncio


class OldLoop(asyncio.SelectorEventLoop):
    """Connects like uvloop and like asyncio before Python 3.8: without happy eyeballs."""

    async def create_connection(  # type: ignore[override]  # fewer arguments, on purpose
        self, factory: Any, host: Any = None, port: Any = None, *, sock: Any = None
    ) -> Any:
        return await super().create_connection(factory, host, port, sock=sock)


def new_uvloop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


@pytest.mark.parametrize("factory", [OldLoop, new_uvloop], ids=["old", "uvloop"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_upstreams_are_connected_to_on_other_loops(
    factory: Callable[[], asyncio.AbstractEventLoop], host: str
) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        backend = AsyncioBackend()

        async def body() -> None:
            async with asyncio.timeout(20), backend.listen() as listener:
                machine = Machine(backend, dial(listener.port, host=host))
                async with bridgecore_asyncio.serve(machine) as server:
                    server.request_drain()
                    async with await listener.accept() as peer:
                        await peer.send(b"ping")
                        assert await peer.receive_exactly(4) == b"ping"

        runner.run(body())
