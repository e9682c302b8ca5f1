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
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import cast

from bridgecore import transport as wire
from bridgecore.config import Config
from bridgecore.endpoint import Endpoint, check_store
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.transport.addresses import (
    NEXT_ADDRESS,
    Address,
    AddressBook,
    Name,
    by_turns,
    in_one,
)
from bridgecore.transport.driver import DrivenConnection, Driver, StoreClient
from bridgecore.transport.sockets import (
    ACCEPTED_AT_ONCE,
    EXHAUSTED,
    FIRST_READ_SIZE,
    FORBIDDEN,
    HIGH_WATER,
    READ_SIZE,
    RESET_ON_CLOSE,
    for_peers,
    open_listeners,
)

# Why a connect has failed that TLS reports no error of.
CUT_OFF = ssl.SSLError("connection lost during the handshake")


@contextlib.asynccontextmanager
async def serve(
    machine: Config | wire.Machine,
    *,
    host: str = "127.0.0.1",
    port: int | None = 0,
    sockets: Sequence[socket.socket] = (),
    upstream_ssl: ssl.SSLContext | None = None,
    listener_ssl: ssl.SSLContext | None = None,
    peer_port: int | None = None,
    peer_ssl: ssl.SSLContext | None = None,
    store: StoreClient | None = None,
    log: Callable[[wire.Log], None] | None = None,
) -> AsyncIterator["Server"]:
    """Listen on ``host``:``port`` and run ``machine`` until the context is left.

    Leaving the context aborts all connections at once, because the caller may be leaving with an
    exception. For a clean end call ``request_drain()`` and await ``wait_stopped()`` before.

    Args:
        machine: what to run. A ``Config`` runs a bridge with these settings.
        host: address or name; a name that has several addresses is listened to on all of them.
        port: 0 picks a free one; ``Server.port`` has the number. None: listen nowhere; requests
            come by ``Server.report`` (see ``RequestBegun``), from a server around the bridge.
        sockets: to accept on, instead of listening on ``host``:``port``; they are closed when no
            more connections are accepted. Several processes may accept on one socket: each takes
            one connection at a time.
        upstream_ssl: for connections that the machine opens with TLS, to the upstream and to other
            replicas. None: certificates are verified against the system's trust store.
        listener_ssl: for accepted connections. None: no TLS.
        peer_port: on which other replicas are listened to, on ``host``, too; 0 picks a free one.
            None: that of ``Config.advertise``, or, without that, none.
        peer_ssl: for connections accepted there. None: no TLS.
        store: where a machine with ``Store.DRIVER`` keeps responses. The caller closes it.
        log: called with every log record. None: they are dropped.

    Raises:
        OSError: the address cannot be listened on; for ``peer_port``, a ``PeerPortError``.
        ConfigError: a ``Config`` and ``store`` contradict each other.
        Exception: whatever ``machine.handle`` raised, which is a bug; the body is cancelled.
    """
    if isinstance(machine, Config):
        if peer_port is None and machine.advertise is not None:
            peer_port = machine.advertise.port
        check_store(machine, store)
        machine = Endpoint(machine, secrets.token_bytes(16))
    server = Server(machine, log, store)
    server._at_once = 1 if sockets else ACCEPTED_AT_ONCE
    server._upstream_ssl = upstream_ssl
    server._listener_ssl, server._peer_ssl = listener_ssl, peer_ssl
    try:
        async with asyncio.TaskGroup() as server._tasks:
            try:
                await server._listen(host, port, sockets, peer_port)
            except BaseException:
                server._stop_listening()
                server._alarm.cancel()
                raise
            if store is not None:
                server.report(wire.Started(server.peer_port))
            server._resume_listening()
            try:
                yield server
            finally:
                await server._shut_down()
    except BaseExceptionGroup as group:
        raise (group if len(group.exceptions) > 1 else group.exceptions[0]) from None


class Server(Driver[DrivenConnection]):
    """A running machine; created by ``serve``. ``host``, ``port``: the address listened on, if it
    listens; ``peer_port``: the port for other replicas, if there is one."""

    host, port = "", 0
    peer_port: int | None = None
    _at_once: int
    _upstream_ssl: ssl.SSLContext | None
    _listener_ssl: ssl.SSLContext | None  # for clients
    _peer_ssl: ssl.SSLContext | None  # for other replicas
    _tasks: asyncio.TaskGroup
    _listeners: dict[socket.socket, bool]  # True: for other replicas
    _alarm: asyncio.Handle

    def __init__(
        self,
        machine: wire.Machine,
        log: Callable[[wire.Log], None] | None,
        store: StoreClient | None,
    ) -> None:
        self._stopped = asyncio.Event()
        super().__init__(machine, log, self._stopped.set, store)
        self._alive: set[Connection] = set()  # those with a socket, or being connected
        self._all_gone = asyncio.Event()  # none is alive, and there will be no new one
        self._addresses = AddressBook[asyncio.Future[list[Address]]]()  # of what is connected to
        self._loop = asyncio.get_running_loop()
        self._listeners = {}
        self._alarm = self._loop.call_soon(self._arm)

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
        self._from_thread(lambda: self.report(wire.DrainRequested(by)))

    async def wait_stopped(self) -> None:
        """Wait until the machine has drained or the context is left. Cancelling it changes
        nothing."""
        await self._stopped.wait()

    async def _listen(
        self, host: str, port: int | None, sockets: Sequence[socket.socket], peer_port: int | None
    ) -> None:
        """Listen, without accepting: the machine must hear that it is started before anything."""
        listeners = sockets
        if not sockets and port is not None:
            listeners = await self._open(host, port)
        self._listeners.update(dict.fromkeys(listeners, False))
        if listeners:
            self.host, self.port = listeners[0].getsockname()[:2]
        if peer_port is not None:
            peers = await self._open(host, peer_port, peers=True)
            self._listeners.update(dict.fromkeys(peers, True))
            self.peer_port = peers[0].getsockname()[1]
        for listener in self._listeners:
            listener.setblocking(False)

    async def _open(self, host: str, port: int, *, peers: bool = False) -> list[socket.socket]:
        """Sockets that listen on ``host``:``port``, for other replicas if ``peers``."""
        found = await self._loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with for_peers(port) if peers else contextlib.nullcontext():
            return open_listeners(found, socket.create_server)

    def _accept(self, listener: socket.socket) -> None:
        """Accept up to ``_at_once`` connections; the loop calls again if more are waiting.

        ``asyncio.Server`` is not used: when descriptors run out it logs a traceback for each of
        ``backlog`` attempts, and has no hook through which the machine could close an idle
        connection.
        """
        for _ in range(0 if self._closed else self._at_once):
            try:
                accepted, _ = listener.accept()
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    self.accept_failed(exc)
                return  # otherwise none is waiting, or the peer has reset it: see accept(2)
            accepted.setblocking(False)
            connection = Connection(self, sock=accepted, peer=self._listeners[listener])
            connection.task = self._tasks.create_task(connection.accept(accepted))
            connection.task.add_done_callback(connection.attempted)

    async def _shut_down(self) -> None:
        self._closed = True
        self._stopped.set()
        self._stop_listening()
        self._alarm.cancel()
        for lookup in list(self._addresses.running.values()):
            lookup.cancel()
        for connection in list(self._alive):
            connection.abort()
        if self._alive:
            await self._all_gone.wait()

    def _clock(self) -> int:
        return time.monotonic_ns()

    def _from_thread(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call)

    def _soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call)

    def _set_alarm(self, at: int | None) -> None:
        self._alarm.cancel()
        if at is not None:
            self._alarm = self._loop.call_at(at / NS_PER_SECOND, self._ring)

    def _connect(self, effect: wire.Connect) -> "Connection":
        connection = Connection(self, effect.conn, name=(effect.host, effect.port))
        connection.task = self._tasks.create_task(connection.connect(effect))
        connection.task.add_done_callback(connection.attempted)
        return connection

    async def _resolve(self, name: Name) -> Sequence[Address]:
        """The addresses of a name. Connects that begin at the same time wait for one look-up.

        Raises:
            OSError, UnicodeError: it has none.
        """
        found = self._addresses.get(name, self._clock()) or numeric(name)
        if not found:
            lookup = self._addresses.look_up(name, self._look_up)
            found = await asyncio.shield(lookup)  # others may wait for it, if this one is cancelled
        return found

    def _look_up(self, name: Name) -> asyncio.Future[list[Address]]:
        require_a_descriptor()
        lookup = self._loop.run_in_executor(None, look_up, name)
        lookup.add_done_callback(partial(self._looked_up, name))
        return lookup

    def _looked_up(self, name: Name, lookup: asyncio.Future[list[Address]]) -> None:
        failed = lookup.cancelled() or lookup.exception() is not None
        self._addresses.ended(name, [] if failed else lookup.result(), self._clock())

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

    __slots__ = (
        "asked",
        "blocked",
        "closing",
        "conn",
        "eof",
        "marks",
        "name",
        "peer",
        "server",
        "sock",
        "task",
        "tls",
        "transport",
        "up",
        "why",
    )

    def __init__(
        self,
        server: Server,
        conn: int = -1,
        sock: socket.socket | None = None,
        name: Name | None = None,
        *,
        peer: bool = False,
    ) -> None:
        self.server, self.conn, self.sock = server, conn, sock
        self.peer = peer  # accepted by the listener for other replicas
        self.name = name  # what is connected to; None: it was accepted
        self.task: asyncio.Task[None] | None = None  # runs ``connect`` or ``accept``
        self.transport: asyncio.Transport | None = None
        self.tls: Tls | None = None
        self.up = False  # reported as Accepted or Connected
        self.eof = self.closing = self.blocked = False
        # It was opened, something was sent, and nothing has been read since: see FIRST_READ_SIZE.
        self.asked = False
        self.marks = 0  # DataSent to report once all is written: one for each Send with notify
        self.why: Exception = CUT_OFF
        server._alive.add(self)

    def report(self, event: wire.TransportEvent) -> None:
        self.server.report(event, self)

    async def connect(self, effect: wire.Connect) -> None:
        server = self.server
        try:
            if effect.tls:
                if server._upstream_ssl is None:
                    require_a_descriptor()
                    server._upstream_ssl = ssl.create_default_context()
                self.tls = Tls(server._upstream_ssl, host=effect.host)
            addresses = await server._resolve((effect.host, effect.port))
            self.sock = await open_tcp(server._tasks, addresses)
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
        self.task = None
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
        read_at_most(self.transport, READ_SIZE)
        if self.task is not None and self.task.cancelling():
            self.abort()
            self.connection_lost(None)  # uvloop does not call it here
            return
        accepted = self.name is None
        context = None
        if accepted:
            context = self.server._peer_ssl if self.peer else self.server._listener_ssl
        if context is not None:
            self.tls = Tls(context, server_side=True)
        self.up = accepted or self.tls is None
        if accepted:
            self.report(wire.Accepted(self.conn, self.peer))
        elif self.up:
            self.report(wire.Connected(self.conn))
        self.pump()

    def data_received(self, data: bytes) -> None:
        if self.asked and self.transport is not None:
            self.asked = False
            read_at_most(self.transport, READ_SIZE)
        if self.tls is None:
            self.server.report(wire.DataReceived(self.conn, data), self)
        else:
            self.tls.incoming.write(data)
            self.pump()

    def pump(self) -> None:
        """Encrypt, decrypt and write as much as TLS allows now; report what was decrypted."""
        tls, transport = self.tls, self.transport
        if tls is None or transport is None:
            return
        data, ended = bytearray(), True
        try:
            tls.session.do_handshake()
            if not self.up:
                self.up = True
                self.report(wire.Connected(self.conn))
            while tls.plain:
                del tls.plain[: tls.session.write(tls.plain)]
            while chunk := tls.session.read(READ_SIZE):
                data += chunk
        except ssl.SSLWantReadError:
            ended = False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as exc:
            self.why = exc
            transport.write(tls.outgoing.read())  # the alert
            transport.abort()
            return
        self.write(tls.outgoing.read())
        self.flushed()
        if tls.last is not None and not tls.plain:
            self.carry_out(tls.last)
        if self.closing:
            return
        if data:
            self.report(wire.DataReceived(self.conn, bytes(data)))
        if ended:
            transport.pause_reading()
            self.eof_received()

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)
        if data and self.transport.is_closing():
            self.read_rest()

    def read_rest(self) -> None:
        """The peer has reset the connection. Read what it sent before, such as an error with the
        reason: asyncio would discard it."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                while rest := self.sock.recv(READ_SIZE):
                    self.data_received(rest)

    def waiting(self) -> int:
        assert self.transport is not None
        encrypted = self.transport.get_write_buffer_size()
        return encrypted if self.tls is None else encrypted + len(self.tls.plain)

    def eof_received(self) -> bool:
        if self.up and not self.eof:
            self.eof = True
            self.report(wire.EofReceived(self.conn))
        return self.up  # True keeps the connection half open; during the handshake it has failed

    def resume_writing(self) -> None:
        # asyncio calls this in the middle of a write. A report may lead to another write, and if
        # that one fails here, asyncio closes the transport twice, and raises. So report it later.
        self.server._loop.call_soon(self.flushed)

    def flushed(self) -> None:
        """Report what is due once all waiting bytes are written, if they are."""
        assert self.transport is not None
        failed = self.transport.is_closing() and not self.closing  # what waited was dropped
        if failed or self.waiting():
            return
        if self.blocked:
            self.blocked = False
            self.report(wire.WriteUnblocked(self.conn))
        marks, self.marks = self.marks, 0  # a report may cause a Send with a mark of its own
        for _ in range(marks):
            self.report(wire.DataSent(self.conn))

    def connection_lost(self, exc: Exception | None) -> None:
        server = self.server
        if self not in server._alive:
            return  # see connection_made
        server._alive.discard(self)
        if server._closed and not server._alive:
            server._all_gone.set()
        if self.closing and exc is None:
            self.flushed()  # ``Close`` is complete; asyncio has called resume_writing just before
        if self.up:
            self.report(wire.Disconnected(self.conn))
            return
        if self.name is not None:
            server._addresses.forget(self.name)
        self.report(failed(self.conn, self.why))

    def carry_out(self, effect: wire.ConnectionEffect) -> None:
        if isinstance(effect, wire.Send):
            self.send(effect.data, effect.notify)
            return
        if isinstance(effect, wire.Abort):
            self.abort()
            return
        transport, tls = self.transport, self.tls
        if transport is None or transport.is_closing():
            return  # Disconnected will be reported
        match effect:
            case wire.EndSending() | wire.Close():
                if tls is not None:
                    if tls.plain:
                        tls.last = effect
                        return  # the handshake is not complete: see ``pump``
                    # unwrap() writes close_notify, then raises because the peer's has not come.
                    with contextlib.suppress(ssl.SSLError):
                        tls.session.unwrap()
                    transport.write(tls.outgoing.read())
                if isinstance(effect, wire.Close):
                    self.closing = True
                    transport.close()
                elif tls is None:
                    with contextlib.suppress(OSError):  # the peer has just reset it
                        transport.write_eof()
            case wire.Respond() | wire.SendClose():
                raise AssertionError("a socket has no request that is answered without its bytes")
            case wire.PauseReading():
                transport.pause_reading()
            case wire.ResumeReading():
                if not self.eof:  # reading on would report the end again
                    transport.resume_reading()

    def send(self, data: bytes, notify: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return  # Disconnected will be reported
        if self.name is not None and not self.asked:
            self.asked = True
            read_at_most(transport, FIRST_READ_SIZE)
        if self.tls is None:
            transport.write(data)
            if transport.is_closing():
                self.read_rest()
            waiting = transport.get_write_buffer_size()
            if not waiting and not notify:
                return  # the usual case: the OS has taken all, and no report is due
        else:
            if self.tls.last is not None:
                return  # no data follows it
            self.tls.plain += data
            self.pump()
            waiting = self.waiting()
        if waiting > HIGH_WATER and not self.blocked:
            self.blocked = True
            self.report(wire.WriteBlocked(self.conn))
        if notify and (waiting or self.blocked):  # blocked: WriteUnblocked is to be reported first
            self.marks += 1
        elif notify and not transport.is_closing():  # closing: it failed
            if len(data) <= HIGH_WATER:
                self.report(wire.DataSent(self.conn))
            else:
                # The report may cause the next large write. Deferred, so that a client that takes
                # all at once does not keep the loop from other connections.
                self.marks += 1
                self.server._loop.call_soon(self.flushed)

    def abort(self) -> None:
        if self.transport is None:
            if self.task is not None:
                self.task.cancel()
            return
        if not self.closing:  # a reset would drop what Close has left to the OS to send
            reset_on_close(self.transport.get_extra_info("socket"))
        self.transport.abort()


class Tls:
    """TLS of one connection. asyncio's is not used, because its transport does not say how much it
    has yet to write."""

    __slots__ = ("incoming", "last", "outgoing", "plain", "session")

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = False, host: str | None = None
    ) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_side, host)
        self.plain = bytearray()  # to be encrypted when the handshake is complete
        self.last: wire.EndSending | wire.Close | None = None  # to be carried out after ``plain``


def numeric(name: Name) -> list[Address]:
    """The address that ``name`` is already; empty if it has to be looked up."""
    try:
        return look_up(name, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []


def look_up(name: Name, flags: int = 0) -> list[Address]:
    """The addresses of ``name``, from the system's resolver, which may take seconds."""
    return by_turns(socket.getaddrinfo(*name, type=socket.SOCK_STREAM, flags=flags))


async def open_tcp(tasks: asyncio.TaskGroup, addresses: Sequence[Address]) -> socket.socket:
    """A TCP socket connected to the first of ``addresses`` that answers (RFC 8305).

    The next address is tried when the one before has failed or has not answered for
    ``NEXT_ADDRESS`` seconds. ``loop.create_connection`` is not used: uvloop's tries one address
    after the other, and asyncio's leaks tasks and sockets when it is cancelled.

    Raises:
        OSError: no address can be connected to; one of ``EXHAUSTED``, if any attempt failed so.
    """
    if len(addresses) == 1:  # no task for each attempt, which matters if a thousand begin at once
        return await connect_to(addresses[0])
    untried = deque(addresses)
    attempts: list[asyncio.Task[socket.socket | OSError]] = []
    running: set[asyncio.Task[socket.socket | OSError]] = set()
    connected: socket.socket | None = None
    failures: list[OSError] = []
    try:
        while connected is None and (untried or running):
            if untried:
                attempts.append(tasks.create_task(attempt(untried.popleft())))
                running.add(attempts[-1])
            done, running = await asyncio.wait(
                running,
                timeout=NEXT_ADDRESS if untried else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for result in (task.result() for task in done):
                if isinstance(result, OSError):
                    failures.append(result)
                else:
                    connected = connected or result
    finally:
        for task in attempts:
            task.cancel()
            task.add_done_callback(partial(close_unless, connected))
    if connected is None:
        raise in_one(failures)
    return connected


async def connect_to(address: Address) -> socket.socket:
    """A socket connected to ``address``. ``loop.sock_connect`` is not used: it examines each time
    whether the address is one."""
    family, proto, where = address
    sock = socket.socket(family, socket.SOCK_STREAM, proto)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(where)
        if error in (errno.EINPROGRESS, errno.EINTR):
            await writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"{os.strerror(error)}: {where[0]} port {where[1]}")
    except BaseException:
        sock.close()
        raise
    return sock


async def writable(sock: socket.socket) -> None:
    """Wait until ``sock`` can be written to, which is when connecting it has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock, wake)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


async def attempt(address: Address) -> socket.socket | OSError:
    """``connect_to``; an error is returned, as raising would cancel the whole task group."""
    try:
        return await connect_to(address)
    except OSError as exc:
        return exc


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


def read_at_most(transport: asyncio.Transport, size: int) -> None:
    """Limit what is read at once from now on, in bytes. uvloop's transports have no such limit."""
    if hasattr(transport, "max_size"):
        transport.max_size = size


def require_a_descriptor() -> None:
    """Raise OSError if no descriptor can be opened. To be checked before what misreports it: the
    resolver says that the name does not exist, and ``ssl`` keeps an empty trust store."""
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
