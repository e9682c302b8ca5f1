"""Runs a machine, such as the bridge, on asyncio: sockets, TLS and timers.

What belongs here: carrying out the effects of ``bridgecore.transport`` and reporting its events.
Nothing here depends on what the bytes mean; if it had to, the core would lack an effect. To be read
beside ``bridgecore_trio/driver.py``: the same names in the same order, as far as the two libraries
allow.
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

# Bytes waiting to be written from which a connection counts as blocked. It bounds the memory that a
# slow reader costs, and is about as much as a socket takes at once.
HIGH_WATER = 64 * 1024
READ_SIZE = 64 * 1024  # bytes read from a socket at once
# Connections that the OS queues until they are accepted. Beyond it, it drops or refuses them.
BACKLOG = 512
# Seconds until the next address of a name is tried in parallel (RFC 8305, section 5).
NEXT_ADDRESS = 0.25
# Connections accepted in one go. Open connections are served in between, however many arrive.
ACCEPTED_AT_ONCE = 64
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST
# Errors that mean: this process or host has no descriptor, memory or local port left. Closing
# another connection may help, so they are reported apart from failures of the peer.
EXHAUSTED = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
)
# Errors of a firewall or a sandbox on this host: the peer refused nothing.
FORBIDDEN = (errno.EACCES, errno.EPERM)


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
    """Listen on ``host``:``port`` and run ``machine`` until the context is left.

    Leaving the context aborts all connections at once, because the caller may be leaving with an
    exception. For a clean end call ``request_drain()`` and await ``wait_stopped()`` before.

    Args:
        machine: what to run. A ``Config`` runs a bridge with these settings.
        host: address or name; a name that has several addresses is listened to on all of them.
        port: 0 picks a free one; ``Server.port`` has the number.
        upstream_ssl: for connections that the machine opens with TLS. None: certificates are
            verified against the system's trust store.
        listener_ssl: for accepted connections. None: no TLS.
        log: called with every log record. None: they are dropped.

    Raises:
        OSError: the address cannot be listened on.
        Exception: whatever ``machine.handle`` raised, which is a bug; the body is cancelled.
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
    """A running machine; created by ``serve``. ``host``, ``port``: the address listened on."""

    host, port = "", 0
    _upstream_ssl: ssl.SSLContext | None
    _listener_ssl: ssl.SSLContext | None
    _tasks: asyncio.TaskGroup
    _listeners: list[socket.socket]
    _alarm: asyncio.Handle

    def __init__(self, machine: wire.Machine, log: Callable[[wire.Log], None] | None) -> None:
        self._stopped = asyncio.Event()
        super().__init__(machine, log, self._stopped.set)
        self._alive: set[Connection] = set()  # those with a socket, or being connected
        self._loop = asyncio.get_running_loop()

    @property
    def open_connections(self) -> int:
        """How many connections, accepted or opened, have a descriptor or are being connected.

        More than the machine knows: an aborted one counts until its socket is closed.
        """
        return len(self._alive)

    def request_drain(self, by: str = "") -> None:
        """Ask the machine to finish its turns and stop; ``wait_stopped`` returns when it has.

        Returns at once, and may be called from any thread and from a signal handler, because that
        is where a request to stop comes from. ``by``: the origin for the log, such as ``SIGTERM``.
        """
        self._loop.call_soon_threadsafe(self.report, wire.DrainRequested(by))

    async def wait_stopped(self) -> None:
        """Wait until the machine has drained or the context is left. Cancelling it changes
        nothing."""
        await self._stopped.wait()

    async def _listen(self, host: str, port: int) -> None:
        self._listeners = []
        self._alarm = self._loop.call_soon(self._arm)
        try:
            found = await self._loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            unsupported: OSError | None = None  # an address family this host lacks, such as IPv6
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
        """Accept up to ``ACCEPTED_AT_ONCE`` connections; the loop calls again if more are waiting.

        ``asyncio.Server`` is not used: when descriptors run out it logs a traceback for each of
        ``backlog`` attempts, and has no hook through which the machine could close an idle
        connection.
        """
        for _ in range(0 if self._closed else ACCEPTED_AT_ONCE):
            try:
                accepted, _ = listener.accept()
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    self.accept_failed(exc)
                return  # otherwise none is waiting, or the peer has reset it: see accept(2)
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
            self._alarm = self._loop.call_at(at / NS_PER_SECOND, self._ring)

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
    """One socket, from accepting or connecting it until it is closed."""

    task: asyncio.Task[None]  # runs ``connect`` or ``accept``
    transport: asyncio.Transport | None = None
    # TLS is done here and not by asyncio, whose transport does not say how much it has yet to
    # write.
    tls: ssl.SSLObject | None = None
    up = eof = closing = blocked = False  # up: reported as Accepted or Connected
    marks = 0  # DataSent to report once all is written: one for each Send with notify
    why: Exception = ssl.SSLError("connection lost during the handshake")

    def __init__(self, server: Server, conn: int = -1, sock: socket.socket | None = None) -> None:
        self.server, self.conn, self.sock, self.accepted = server, conn, sock, conn == -1
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.plain = bytearray()  # to be encrypted when the handshake is complete
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
        """``connect`` or ``accept`` has ended, or was cancelled, possibly before it began."""
        if self.transport is None:
            if self.sock is not None:
                reset_on_close(self.sock)
                self.sock.close()
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # With 0, asyncio calls resume_writing when its buffer is empty, which is when DataSent is
        # due. HIGH_WATER is compared here instead, because asyncio does not count what TLS holds.
        self.transport.set_write_buffer_limits(high=0)
        if hasattr(self.transport, "max_size"):  # uvloop's has none
            # Bytes that asyncio reads at once. It allocates as many for every read, and 256 KiB,
            # its default, is more than malloc keeps: each read then maps memory and unmaps it,
            # which takes twice as long as the read.
            self.transport.max_size = READ_SIZE
        if self.task.cancelling():
            self.abort()
            self.connection_lost(None)  # uvloop does not call it here
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
        """Encrypt, decrypt and write as much as TLS allows now; report what was decrypted."""
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
            # The peer has reset the connection. Read what it sent before, such as an error with the
            # reason: asyncio would discard it.
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
        return self.up  # True keeps the connection half open; during the handshake it has failed

    def flushed(self) -> None:
        if not self.waiting():
            self.resume_writing()

    def resume_writing(self) -> None:
        if self.blocked:
            self.blocked = False
            self.report(wire.WriteUnblocked(self.conn))
        marks, self.marks = self.marks, 0  # a report may cause a Send with a mark of its own
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
            return  # Disconnected will be reported
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
                elif effect.notify and not self.transport.is_closing():  # closing: it failed
                    if len(effect.data) <= HIGH_WATER:
                        self.report(wire.DataSent(self.conn))
                    else:
                        # The report may cause the next large write. Deferred, so that a client
                        # that takes all at once does not keep the loop from other connections.
                        self.marks += 1
                        self.server._loop.call_soon(self.flushed)
            case wire.EndSending() | wire.Close():
                if self.tls is not None:
                    # unwrap() writes close_notify, then raises because the peer's has not come.
                    with contextlib.suppress(ssl.SSLError):
                        self.tls.unwrap()
                    self.transport.write(self.outgoing.read())
                if isinstance(effect, wire.Close):
                    self.closing = True
                    self.transport.close()
                elif self.tls is None:
                    with contextlib.suppress(OSError):  # the peer has just reset it
                        self.transport.write_eof()
            case wire.PauseReading():
                self.transport.pause_reading()
            case wire.ResumeReading():
                if not self.eof:  # reading on would report the end again
                    self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is None:
            self.task.cancel()
            return
        if not self.closing:  # a reset would drop what Close has left to the OS to send
            reset_on_close(self.transport.get_extra_info("socket"))
        self.transport.abort()


async def open_tcp(tasks: asyncio.TaskGroup, host: str, port: int) -> socket.socket:
    """A TCP socket connected to the first address of ``host`` that answers (RFC 8305).

    The next address is tried when the one before has failed or has not answered for
    ``NEXT_ADDRESS`` seconds. ``loop.create_connection`` is not used: uvloop's tries one address
    after the other, and asyncio's leaks tasks and sockets when it is cancelled.

    Raises:
        OSError: no address can be connected to; one of ``EXHAUSTED``, if any attempt failed so.
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


Address: TypeAlias = tuple[socket.AddressFamily, int, Any]  # family, protocol, socket address


def by_turns(found: list[Any]) -> list[Address]:
    """The addresses that ``getaddrinfo`` found, alternating between IPv4 and IPv6 (RFC 8305,
    section 4), so that the second attempt works if one of the two networks does not."""
    first: list[Address] = []
    other: list[Address] = []
    for family, _, proto, _, address in found:
        (first if family == found[0][0] else other).append((family, proto, address))
    return [one for pair in zip_longest(first, other) for one in pair if one is not None]


async def connect_to(family: int, proto: int, address: Any) -> socket.socket | OSError:
    """A connected socket, or the error: returned, as raising would cancel the whole task group."""
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
    """Close the socket that an attempt has connected, unless it is the one that is used."""
    if not task.cancelled() and not isinstance(sock := task.result(), OSError) and sock is not used:
        sock.close()


def reset_on_close(sock: socket.socket) -> None:
    """Have closing ``sock`` send RST and drop unsent data: the peer must not take it for an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def keep_little_unsent(sock: socket.socket) -> None:
    """Limit what the OS buffers of written bytes that it has not sent. A pong that is written next
    waits behind all of them, and without this option they may be megabytes."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, HIGH_WATER)


def require_a_descriptor() -> None:
    """Raise OSError if no descriptor can be opened. Checked first, because later steps misreport
    it: the resolver says that the name does not exist, and ``ssl`` keeps an empty trust store."""
    os.close(os.open(os.devnull, os.O_RDONLY))


async def fail(why: Exception) -> None:
    """Raise ``why`` in a task of its own, so that it ends ``serve`` from a callback."""
    raise why


def failed(conn: int, why: Exception) -> wire.ConnectFailed:
    """The report of a connection that could not be made. Anything unknown is ``OTHER``."""
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
