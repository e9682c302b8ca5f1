"""Tests of the drivers: how the names that a machine connects to are looked up.

What belongs here: the way from a ``Connect`` to an address, with a resolver of the test's own. How
long addresses are remembered is in ``tests/transport/test_addresses.py``.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from bridgecore.testing.conformance.peers import closed_port
from bridgecore.transport import (
    Abort,
    Accepted,
    Connect,
    Connected,
    ConnectError,
    ConnectFailed,
    DrainRequested,
    TransportEffect,
    TransportEvent,
)
from bridgecore.transport.addresses import REMEMBERED
from tests.adapters.test_driver import Machine

if TYPE_CHECKING:
    from tests.conftest import Backend, Served

HOST = "upstream.test"
HERE, THERE = "127.0.0.1", "127.0.0.2"


class Resolver:
    """In place of ``socket.getaddrinfo``: knows ``HOST`` and counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: Sequence[str] = [HERE]
        self.asked = 0
        self.was_asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        if host not in (HOST, HOST.encode()) or flags & socket.AI_NUMERICHOST:
            return self._real(host, port, family, type, proto, flags)
        self.asked += 1
        self.was_asked.set()
        assert self.may_answer.wait(20)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self.addresses
        ]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


class Dialler(Machine):
    """Opens ``count`` connections at once each time that a drain is requested."""

    def __init__(self, backend: Backend, port: int, *, host: str = HOST, count: int = 1) -> None:
        super().__init__(backend, self._dial)
        self._last = 100
        self._to = host, port
        self._count = count

    def _dial(self, event: TransportEvent) -> list[TransportEffect]:
        if not isinstance(event, DrainRequested):
            return []
        first, self._last = self._last, self._last + self._count
        return [Connect(conn, *self._to, tls=False) for conn in range(first, self._last)]

    async def connects(self, server: Served, times: int = 1) -> None:
        """Open connections; wait until all of them, the ``times``-th set, are open."""
        server.request_drain()
        await self.saw(Connected, times * self._count)

    async def fails(self, server: Served) -> ConnectError:
        server.request_drain()
        return (await self.saw(ConnectFailed)).error


class Steps(Machine):
    """Carries out the first of ``steps`` when the first drain is requested, and so on."""

    def __init__(self, backend: Backend, *steps: list[TransportEffect]) -> None:
        super().__init__(backend, self._step)
        self._steps = iter(steps)

    def _step(self, event: TransportEvent) -> list[TransportEffect]:
        return next(self._steps) if isinstance(event, DrainRequested) else []


def test_connects_at_the_same_time_share_one_look_up(backend: Backend, resolver: Resolver) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            machine = Dialler(backend, listener.port, count=100)
            async with backend.serve(machine) as server:
                resolver.may_answer.clear()
                server.request_drain()
                assert await backend.in_thread(resolver.was_asked.wait, 20)
                assert server.open_connections == 100
                resolver.may_answer.set()
                await machine.saw(Connected, 100)
                assert resolver.asked == 1

    backend.run(body)


def test_an_aborted_connect_leaves_the_look_up_to_the_others(
    backend: Backend, resolver: Resolver
) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            first, second = (Connect(conn, HOST, listener.port, tls=False) for conn in (1, 2))
            machine = Steps(backend, [first, second], [Abort(1)])
            async with backend.serve(machine) as server:
                resolver.may_answer.clear()
                server.request_drain()
                assert await backend.in_thread(resolver.was_asked.wait, 20)
                server.request_drain()
                await machine.saw(DrainRequested, 2)
                resolver.may_answer.set()
                assert (await machine.saw(Connected)).conn == 2
        assert resolver.asked == 1

    backend.run(body)


def test_an_address_is_used_again_until_its_time_is_over(
    backend: Backend, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            with socket.create_server((THERE, listener.port)) as there:
                there.settimeout(20)
                machine = Dialler(backend, listener.port)
                async with backend.serve(machine) as server:
                    await machine.connects(server)
                    resolver.addresses = [THERE]
                    await machine.connects(server, 2)
                    for _ in range(2):
                        async with await listener.accept():
                            pass
                    assert resolver.asked == 1
                    clock = server._clock
                    monkeypatch.setattr(server, "_clock", lambda: clock() + REMEMBERED)
                    await machine.connects(server, 3)
                    (await backend.in_thread(there.accept))[0].close()
                    assert resolver.asked == 2

    backend.run(body)


def test_a_failed_look_up_is_not_remembered(backend: Backend, resolver: Resolver) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            machine = Dialler(backend, listener.port)
            async with backend.serve(machine) as server:
                resolver.addresses = []
                assert await machine.fails(server) is ConnectError.RESOLVE
                resolver.addresses = [HERE]
                await machine.connects(server)

    backend.run(body)


def test_a_failed_look_up_fails_all_connects_that_wait_for_it(
    backend: Backend, resolver: Resolver
) -> None:
    async def body() -> None:
        machine = Dialler(backend, 80, count=20)
        async with backend.serve(machine) as server:
            resolver.addresses = []
            server.request_drain()
            await machine.saw(ConnectFailed, 20)
        assert {event.error for event in machine.of(ConnectFailed)} == {ConnectError.RESOLVE}
        assert resolver.asked == 1

    backend.run(body)


def test_an_address_that_cannot_be_connected_to_is_forgotten(
    backend: Backend, resolver: Resolver
) -> None:
    """The service may have moved: the next connect does not wait until the address is outdated."""

    async def body() -> None:
        async with backend.listen() as listener:
            machine = Dialler(backend, listener.port)
            async with backend.serve(machine) as server:
                resolver.addresses = [THERE]
                assert await machine.fails(server) is ConnectError.REFUSED
                resolver.addresses = [HERE]
                await machine.connects(server)
        assert resolver.asked == 2

    backend.run(body)


def test_an_aborted_connect_forgets_the_address(backend: Backend, resolver: Resolver) -> None:
    """The machine aborts a connect that takes too long, because the address does not answer."""

    async def body() -> None:
        async with backend.listen() as listener:
            # The listener has no TLS, so the handshake of the first connect never ends.
            first = Connect(1, HOST, listener.port, tls=True)
            second = Connect(2, HOST, listener.port, tls=False)
            machine = Steps(backend, [first], [Abort(1)], [second])
            async with backend.serve(machine) as server:
                server.request_drain()
                async with await listener.accept() as peer:
                    assert await peer.receive(1)
                    server.request_drain()
                    with pytest.raises(ConnectionResetError):
                        await peer.receive_all()
                server.request_drain()
                await machine.saw(Connected)
        assert resolver.asked == 2

    backend.run(body)


@pytest.mark.parametrize("addresses", [[THERE, HERE], [HERE, THERE], [THERE, THERE, HERE]])
def test_the_next_address_is_tried(
    backend: Backend, resolver: Resolver, addresses: list[str]
) -> None:
    async def body() -> None:
        async with backend.listen() as listener:
            machine = Dialler(backend, listener.port)
            async with backend.serve(machine) as server:
                resolver.addresses = addresses
                await machine.connects(server)
                async with await listener.accept():
                    assert server.open_connections == 1

    backend.run(body)


def test_a_name_whose_addresses_all_fail(backend: Backend, resolver: Resolver) -> None:
    async def body() -> None:
        machine = Dialler(backend, closed_port())
        async with backend.serve(machine) as server:
            resolver.addresses = [HERE, THERE]
            server.request_drain()
            failed = await machine.saw(ConnectFailed)
            assert failed.error is ConnectError.REFUSED
            assert failed.detail.count("refused") == 2

    backend.run(body)


def test_an_ip_address_is_not_looked_up(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    real, flags = socket.getaddrinfo, []

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        flags.append(options.get("flags", 0) or (args[5] if len(args) > 5 else 0))
        return real(*args, **options)

    async def body() -> None:
        async with backend.listen() as listener:
            machine = Dialler(backend, listener.port, host=HERE)
            async with backend.serve(machine) as server:
                monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
                await machine.connects(server)
                monkeypatch.setattr(socket, "getaddrinfo", real)

    backend.run(body)
    assert flags
    assert all(flag & socket.AI_NUMERICHOST for flag in flags)


def test_each_address_of_a_name_is_listened_on_once(backend: Backend, resolver: Resolver) -> None:
    resolver.addresses = [HERE, HERE, THERE]

    async def body() -> None:
        machine = Machine(backend, lambda event: [])
        async with backend.serve(machine, host=HOST, port=closed_port()) as server:
            for address in (HERE, THERE):
                async with await backend.connect(address, server.port):
                    pass
            await machine.saw(Accepted, 2)

    backend.run(body)
