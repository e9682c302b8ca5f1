"""Drives a machine on asyncio: sockets, TLS and a clock, and no decision about the protocol.

What belongs here: carrying out the effects of ``bridgecore.transport`` and reporting its
events. To be read beside ``bridgecore_trio/driver.py``: same names, same order.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import zip_longest
from typing import Any, TypeAlias, cast

from bridgecore import transport as wire
from bridgecore.config import Config
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.transport.driver import Driver

HIGH_WATER = 64 * 1024  # bytes waiting to be written that make a connection blocked
BACKLOG = 512  # connections that the OS holds until they are accepted
NEXT_ADDRESS = 0.25  # seconds until the next address is tried, too (RFC 8305, section 5)
ACCEPTED_AT_ONCE = 64  # connections, before others have a turn
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST
# This process or host has no descriptor, memory or local port left.
EXHAUSTED = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
)
FORBIDDEN = (errno.EACCES, errno.EPERM)  # by a firewall or a sandbox of this host


@contextlib.asynccontextmanager
async def serve(
    machine: Config | wire.Machine,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    upstream_ssl: ssl.SSLContext | None = None,
    listener_ssl: ssl.SSLContext | None = None,
    log: Callable[[wire.Log], None] | None = None,
) -> AsyncIterator["Server"]:
    """Listen on ``host``:``port`` (0: a free one) and drive ``machine``, or a bridge so configured.

    ``upstream_ssl`` is for connections that the machine asks for (None: the system's trust store,
    verified), ``listener_ssl`` makes the listener speak TLS. Leaving the context ends all at once;
    for a clean end, ``request_drain()`` and ``wait_stopped()`` first. Raises OSError if it cannot
    listen, and what ``machine.handle`` raises: that is a bug, and the body is cancelled for it.
    """
    if isinstance(machine, Config):
        machine = Endpoint(machine, secrets.token_bytes(16))
    server = Server(machine, log)
    server._upstream_ssl, server._listener_ssl = upstream_ssl, listener_ssl
    try:
        async with asyncio.TaskGroup() as server._tasks:
            await server._listen(host, port)
            try:
                yield server
            finally:
                await server._shut_down()
    except BaseExceptionGroup as group:
        raise (group if len(group.exceptions) > 1 else group.exceptions[0]) from None


class Server(Driver["Connection"]):
    """A machine that is being driven. Made by ``serve``."""

    host, port = "", 0
    _upstream_ssl: ssl.SSLContext | None
    _listener_ssl: ssl.SSLContext | None
    _tasks: asyncio.TaskGroup
    _listeners: list[socket.socket]
    _alarm: asyncio.Handle

    def __init__(self, machine: wire.Machine, log: Callable[[wire.Log], None] | None) -> None:
        self._stopped = asyncio.Event()
        super().__init__(machine, log, self._stopped.set)
        self._alive: set[Connection] = set()  # that have a socket, or try to get one
        self._loop = asyncio.get_running_loop()

    @property
    def open_connections(self) -> int:
        """How many connections, accepted or asked for, are not over yet."""
        return len(self._alive)

    def request_drain(self, by: str = "") -> None:
        """Tell the machine to finish. Threads and signal handlers may call it, too. ``by``: who
        asks, such as ``SIGTERM``, for the log."""
        self._loop.call_soon_threadsafe(self.report, wire.DrainRequested(by))

    async def wait_stopped(self) -> None:
        """Wait until the machine says that it has drained, or the context is left."""
        await self._stopped.wait()

    async def _listen(self, host: str, port: int) -> None:
        self._listeners = []
        self._alarm = self._loop.call_soon(self._arm)
        try:
            found = await self._loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            unsupported: OSError | None = None  # a family that this host does not have, IPv6, say
            for family, _, _, _, address in dict.fromkeys(found):
                try:
                    listener = socket.create_server(address, family=family, backlog=BACKLOG)
                except OSError as exc:
                    if exc.errno != errno.EAFNOSUPPORT:
                        raise
                    unsupported = exc
                    continue
                listener.setblocking(False)
                self._listeners.append(listener)
            if unsupported is not None and not self._listeners:
                raise unsupported
        except BaseException:
            self._stop_listening()
            self._alarm.cancel()
            raise
        self.host, self.port = self._listeners[0].getsockname()[:2]
        self._resume_listening()

    def _accept(self, listener: socket.socket) -> None:
        """Accept what waits, some of it: others have a turn before the rest.

        Not with ``asyncio.Server``, which writes a traceback for each of ``backlog`` attempts when
        descriptors run out, and nobody can be told to give one back.
        """
        for _ in range(0 if self._closed else ACCEPTED_AT_ONCE):
            try:
                accepted, _ = listener.accept()
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    self.accept_failed(exc)
                return  # else nothing waits, or what waited is gone: see accept(2)
            accepted.setblocking(False)
            connection = Connection(self, sock=accepted)
            connection.task = self._tasks.create_task(connection.accept(accepted))
            connection.task.add_done_callback(connection.attempted)

    async def _shut_down(self) -> None:
        self._closed = True
        self._stopped.set()
        self._stop_listening()
        self._alarm.cancel()
        for connection in (alive := list(self._alive)):
            connection.abort()
        await asyncio.gather(*(connection.end for connection in alive))

    def _clock(self) -> int:
        return time.monotonic_ns()

    def _set_alarm(self, at: int | None) -> None:
        self._alarm.cancel()
        if at is not None:
            event = wire.TimeoutReached()
            self._alarm = self._loop.call_at(at / NS_PER_SECOND, self.report, event)

    def _connect(self, effect: wire.Connect) -> "Connection":
        connection = Connection(self, effect.conn)
        connection.task = self._tasks.create_task(connection.connect(effect))
        connection.task.add_done_callback(connection.attempted)
        return connection

    def _pause_listening(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _resume_listening(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _stop_listening(self) -> None:
        self._pause_listening()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _crashed(self, why: Exception) -> None:
        self._tasks.create_task(fail(why))


class Connection(asyncio.Protocol):
    """One socket, from the attempt to get it until it is closed."""

    task: asyncio.Task[None]  # the attempt to have a transport
    transport: asyncio.Transport | None = None
    tls: ssl.SSLObject | None = None  # asyncio's own does not tell how much waits to be written
    up = eof = closing = blocked = False  # up: reported as Accepted or Connected
    marks = 0  # Sends with notify that wait until nothing waits to be written
    why: Exception = ssl.SSLError("connection lost during the handshake")

    def __init__(self, server: Server, conn: int = -1, sock: socket.socket | None = None) -> None:
        self.server, self.conn, self.sock, self.accepted = server, conn, sock, conn == -1
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.plain = bytearray()  # waits for the handshake
        self.end = server._loop.create_future()
        server._alive.add(self)

    def report(self, event: wire.TransportEvent) -> None:
        self.server.report(event, self)

    async def connect(self, effect: wire.Connect) -> None:
        server, into = self.server, (self.incoming, self.outgoing)
        try:
            require_a_descriptor()
            if effect.tls:
                server._upstream_ssl = server._upstream_ssl or ssl.create_default_context()
                self.tls = server._upstream_ssl.wrap_bio(*into, server_hostname=effect.host)
            self.sock = await open_tcp(server._tasks, effect.host, effect.port)
            keep_little_unsent(self.sock)
            await server._loop.create_connection(lambda: self, sock=self.sock)
        except Exception as exc:
            self.why = exc

    async def accept(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.server._loop.connect_accepted_socket(lambda: self, sock)
        except Exception as exc:
            self.why = exc

    def attempted(self, task: asyncio.Task[None]) -> None:
        """``connect`` or ``accept`` is over, or was cancelled, perhaps before it began."""
        if self.transport is None:
            if self.sock is not None:
                reset_on_close(self.sock)
                self.sock.close()
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Paused as soon as anything waits, resumed once nothing does: the marks are ours.
        self.transport.set_write_buffer_limits(high=0)
        if self.task.cancelling():
            self.abort()
            self.connection_lost(None)  # uvloop does not say so of a transport made too late
            return
        if self.accepted and self.server._listener_ssl is not None:
            self.tls = self.server._listener_ssl.wrap_bio(self.incoming, self.outgoing, True)
        self.up = self.accepted or self.tls is None
        if self.up:
            self.report(wire.Accepted(self.conn) if self.accepted else wire.Connected(self.conn))
        self.pump()

    def data_received(self, data: bytes) -> None:
        if self.tls is None:
            self.report(wire.DataReceived(self.conn, data))
        else:
            self.incoming.write(data)
            self.pump()

    def pump(self) -> None:
        """Move what TLS will move, both ways."""
        if self.tls is None or self.transport is None:
            return
        data, ended = bytearray(), True
        try:
            self.tls.do_handshake()
            if not self.up:
                self.up = True
                self.report(wire.Connected(self.conn))
            while self.plain:
                del self.plain[: self.tls.write(self.plain)]
            while chunk := self.tls.read(HIGH_WATER):
                data += chunk
        except ssl.SSLWantReadError:
            ended = False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as exc:
            self.why = exc
            self.transport.write(self.outgoing.read())  # the alert
            self.transport.abort()
            return
        self.write(self.outgoing.read())
        if not self.waiting():
            self.resume_writing()
        if data:
            self.report(wire.DataReceived(self.conn, bytes(data)))
        if ended:
            self.transport.pause_reading()
            self.eof_received()

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)
        if data and self.transport.is_closing() and self.sock is not None:
            # It was reset. What came before that, a reason, say, asyncio would not read any more.
            with contextlib.suppress(OSError):
                while rest := self.sock.recv(HIGH_WATER):
                    self.data_received(rest)

    def waiting(self) -> int:
        assert self.transport is not None
        return len(self.plain) + self.transport.get_write_buffer_size()

    def eof_received(self) -> bool:
        if self.up and not self.eof:
            self.eof = True
            self.report(wire.EofReceived(self.conn))
        return self.up  # if not, the handshake has failed

    def flushed(self) -> None:
        if not self.waiting():
            self.resume_writing()

    def resume_writing(self) -> None:
        if self.blocked:
            self.blocked = False
            self.report(wire.WriteUnblocked(self.conn))
        marks, self.marks = self.marks, 0  # those that these cause have their own time
        for _ in range(marks):
            self.report(wire.DataSent(self.conn))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.end.done():
            self.end.set_result(None)
            self.server._alive.discard(self)
            self.report(wire.Disconnected(self.conn) if self.up else failed(self.conn, self.why))

    def carry_out(self, effect: wire.ConnectionEffect) -> None:
        if isinstance(effect, wire.Abort):
            self.abort()
            return
        if self.transport is None or self.transport.is_closing():
            return  # Disconnected is on its way
        match effect:
            case wire.Send():
                if self.tls is None:
                    self.write(effect.data)
                else:
                    self.plain += effect.data
                    self.pump()
                waiting = self.waiting()
                if waiting > HIGH_WATER and not self.blocked:
                    self.blocked = True
                    self.report(wire.WriteBlocked(self.conn))
                if effect.notify and waiting:
                    self.marks += 1
                elif effect.notify and not self.transport.is_closing():  # else writing failed
                    if len(effect.data) <= HIGH_WATER:
                        self.report(wire.DataSent(self.conn))
                    else:
                        # It may cause the next such write: others have a turn before that.
                        self.marks += 1
                        self.server._loop.call_soon(self.flushed)
            case wire.EndSending() | wire.Close():
                if self.tls is not None:
                    with contextlib.suppress(ssl.SSLError):  # wants an answer that need not come
                        self.tls.unwrap()
                    self.transport.write(self.outgoing.read())
                if isinstance(effect, wire.Close):
                    self.closing = True
                    self.transport.close()
                elif self.tls is None:
                    with contextlib.suppress(OSError):  # reset a moment ago
                        self.transport.write_eof()
            case wire.PauseReading():
                self.transport.pause_reading()
            case wire.ResumeReading():
                if not self.eof:  # else the end would be read again
                    self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is None:
            self.task.cancel()
            return
        if not self.closing:  # else what Close left to the OS is still to arrive
            reset_on_close(self.transport.get_extra_info("socket"))
        self.transport.abort()


async def open_tcp(tasks: asyncio.TaskGroup, host: str, port: int) -> socket.socket:
    """A socket that is connected to ``host``: to the first of its addresses that answers.

    An address has its turn when the one before has failed, or has not answered for ``NEXT_ADDRESS``
    (RFC 8305). ``create_connection`` would do the same, but not under uvloop, and asyncio's leaves
    tasks and sockets behind when it is cancelled. Raises OSError if no address can be had.
    """
    loop = asyncio.get_running_loop()
    addresses = deque(by_turns(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    attempts: list[asyncio.Task[socket.socket | OSError]] = []
    running: set[asyncio.Task[socket.socket | OSError]] = set()
    connected: socket.socket | None = None
    failed: list[OSError] = []
    try:
        while connected is None and (addresses or running):
            if addresses:
                attempts.append(tasks.create_task(connect_to(*addresses.popleft())))
                running.add(attempts[-1])
            done, running = await asyncio.wait(
                running,
                timeout=NEXT_ADDRESS if addresses else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for result in (task.result() for task in done):
                if isinstance(result, OSError):
                    failed.append(result)
                else:
                    connected = connected or result
    finally:
        for task in attempts:
            task.cancel()
            task.add_done_callback(partial(close_unless, connected))
    if connected is not None:
        return connected
    for exc in failed:
        if exc.errno in EXHAUSTED:
            raise exc
    raise failed[0] if len(failed) == 1 else OSError("; ".join(str(exc) for exc in failed))


Address: TypeAlias = tuple[socket.AddressFamily, int, Any]  # family, protocol, what it takes


def by_turns(found: list[Any]) -> list[Address]:
    """What ``getaddrinfo`` found, IPv4 and IPv6 in turns (RFC 8305, section 4): the next address
    is to help when the network of the first one does not work."""
    first: list[Address] = []
    other: list[Address] = []
    for family, _, proto, _, address in found:
        (first if family == found[0][0] else other).append((family, proto, address))
    return [one for pair in zip_longest(first, other) for one in pair if one is not None]


async def connect_to(family: int, proto: int, address: Any) -> socket.socket | OSError:
    """A connected socket, or why not: returned, because an exception would end the task group."""
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, proto)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException as exc:
        if sock is not None:
            sock.close()
        if isinstance(exc, OSError):
            return exc
        raise
    return sock


def close_unless(used: socket.socket | None, task: asyncio.Task[socket.socket | OSError]) -> None:
    if not task.cancelled() and not isinstance(sock := task.result(), OSError) and sock is not used:
        sock.close()


def reset_on_close(sock: socket.socket) -> None:
    """Have the peer told by RST, and what was not sent dropped, when ``sock`` is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def keep_little_unsent(sock: socket.socket) -> None:
    """Have the OS take no more than it can send soon: what is written next, a pong, say, waits
    behind all that it has taken, which without this option may be megabytes."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, HIGH_WATER)


def require_a_descriptor() -> None:
    """Raise OSError if this process or host has none left. What comes next would hide it: the
    resolver says that there is no such name, and ``ssl`` reads an empty trust store, for good."""
    os.close(os.open(os.devnull, os.O_RDONLY))


async def fail(why: Exception) -> None:
    raise why


def failed(conn: int, why: Exception) -> wire.ConnectFailed:
    error = wire.ConnectError.OTHER
    if isinstance(why, ssl.SSLError):
        error = wire.ConnectError.TLS
    elif isinstance(why, socket.gaierror | UnicodeError):
        error = wire.ConnectError.RESOLVE
    elif isinstance(why, OSError) and why.errno in EXHAUSTED:
        error = wire.ConnectError.LOCAL
    elif isinstance(why, OSError) and why.errno not in FORBIDDEN:
        error = wire.ConnectError.REFUSED
    return wire.ConnectFailed(conn, error, " ".join(str(why).split())[:200])
