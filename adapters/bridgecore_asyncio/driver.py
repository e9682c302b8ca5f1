"""Drives a machine on asyncio: sockets, TLS and a clock, and no decision about the protocol.

What belongs here: carrying out the effects of ``bridgecore.wire.transport`` and reporting its
events. To be read beside ``bridgecore_trio/driver.py``: same names, same order.
"""

import asyncio
import contextlib
import secrets
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

from bridgecore.config import Config
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.wire import transport as wire
from bridgecore.wire.driver import BACKLOG, HIGH_WATER, LOCAL, Driver

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


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
    _listener: asyncio.Server
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
        self._listener = await self._loop.create_server(
            lambda: Connection(self), host, port, backlog=BACKLOG
        )
        self.host, self.port = self._listener.sockets[0].getsockname()[:2]
        self._alarm = self._loop.call_soon(self._arm)

    async def _shut_down(self) -> None:
        self._closed = True
        self._stopped.set()
        self._listener.close()
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
        return connection

    def _stop_listening(self) -> None:
        self._listener.close()

    def _crashed(self, why: Exception) -> None:
        self._tasks.create_task(fail(why))


class Connection(asyncio.Protocol):
    """One socket, from the attempt to get it until it is closed."""

    task: asyncio.Task[None]  # the attempt
    transport: asyncio.Transport | None = None
    tls: ssl.SSLObject | None = None  # asyncio's own does not tell how much waits to be written
    up = eof = closing = blocked = False  # up: reported as Accepted or Connected
    marks = 0  # Sends with notify that wait until nothing waits to be written
    why: Exception = ssl.SSLError("connection lost during the handshake")

    def __init__(self, server: Server, conn: int = -1) -> None:
        self.server, self.conn, self.accepted = server, conn, conn == -1
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.plain = bytearray()  # waits for the handshake
        self.end = server._loop.create_future()
        server._alive.add(self)

    def report(self, event: wire.TransportEvent) -> None:
        self.server.report(event, self)

    async def connect(self, effect: wire.Connect) -> None:
        server, into = self.server, (self.incoming, self.outgoing)
        try:
            if effect.tls:
                server._upstream_ssl = server._upstream_ssl or ssl.create_default_context()
                self.tls = server._upstream_ssl.wrap_bio(*into, server_hostname=effect.host)
            await server._loop.create_connection(
                lambda: self, effect.host, effect.port, happy_eyeballs_delay=0.25
            )
        except Exception as exc:
            self.why = exc
            self.connection_lost(exc)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Paused as soon as anything waits, resumed once nothing does: the marks are ours.
        self.transport.set_write_buffer_limits(high=0)
        if self.end.done():
            self.abort()
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
        self.transport.write(self.outgoing.read())
        if not self.waiting():
            self.resume_writing()
        if data:
            self.report(wire.DataReceived(self.conn, bytes(data)))
        if ended:
            self.transport.pause_reading()
            self.eof_received()

    def waiting(self) -> int:
        assert self.transport is not None
        return len(self.plain) + self.transport.get_write_buffer_size()

    def eof_received(self) -> bool:
        if self.up and not self.eof:
            self.eof = True
            self.report(wire.EofReceived(self.conn))
        return self.up  # if not, the handshake has failed

    def resume_writing(self) -> None:
        if self.blocked:
            self.blocked = False
            self.report(wire.WriteUnblocked(self.conn))
        while self.marks:
            self.marks -= 1
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
                    self.transport.write(effect.data)
                else:
                    self.plain += effect.data
                    self.pump()
                waiting = self.waiting()
                if waiting > HIGH_WATER and not self.blocked:
                    self.blocked = True
                    self.report(wire.WriteBlocked(self.conn))
                if effect.notify and waiting:
                    self.marks += 1
                elif effect.notify and not self.transport.is_closing():
                    self.report(wire.DataSent(self.conn))
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
            self.connection_lost(None)
            return
        if not self.closing:  # else what Close left to the OS is still to arrive
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.transport.abort()


async def fail(why: Exception) -> None:
    raise why


def failed(conn: int, why: Exception) -> wire.ConnectFailed:
    error = wire.ConnectError.OTHER
    if isinstance(why, ssl.SSLError):
        error = wire.ConnectError.TLS
    elif isinstance(why, socket.gaierror | UnicodeError):
        error = wire.ConnectError.RESOLVE
    elif isinstance(why, OSError) and why.errno not in LOCAL:
        error = wire.ConnectError.REFUSED
    return wire.ConnectFailed(conn, error, " ".join(str(why).split())[:200])
