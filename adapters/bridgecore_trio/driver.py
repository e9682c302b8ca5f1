"""Runs a machine, such as the bridge, on trio: sockets, TLS and timers.

What belongs here: carrying out the effects of ``bridgecore.transport`` and reporting its events.
Nothing here depends on what the bytes mean; if it had to, the core would lack an effect. To be read
beside ``bridgecore_asyncio/driver.py``: the same names in the same order, as far as the two
libraries allow.
"""

import contextlib
import math
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import trio

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
        async with trio.open_nursery() as server._tasks:
            await server._listen(host, port, sockets, peer_port)
            if store is not None:
                server.report(wire.Started(server.peer_port))
            server._start_accepting()
            try:
                yield server
            finally:
                server._shut_down()
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
    _tasks: trio.Nursery

    def __init__(
        self,
        machine: wire.Machine,
        log: Callable[[wire.Log], None] | None,
        store: StoreClient | None,
    ) -> None:
        self._stopped = trio.Event()
        super().__init__(machine, log, self._stopped.set, store)
        self._alive: set[Connection] = set()  # those with a socket, or being connected
        self._addresses = AddressBook[LookUp]()  # of what is connected to
        self._token = trio.lowlevel.current_trio_token()
        self._listening, self._alarm = trio.CancelScope(), trio.CancelScope()
        self._listeners: dict[socket.socket, bool] = {}  # True: for other replicas
        self._may_accept = trio.Event()
        self._may_accept.set()

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
            try:
                peers = await self._open(host, peer_port, peers=True)
            except BaseException:
                for listener in listeners:
                    listener.close()
                raise
            self._listeners.update(dict.fromkeys(peers, True))
            self.peer_port = peers[0].getsockname()[1]
        for listener in self._listeners:
            listener.setblocking(False)

    async def _open(self, host: str, port: int, *, peers: bool = False) -> list[socket.socket]:
        """Sockets that listen on ``host``:``port``, for other replicas if ``peers``."""
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # Plain sockets: accepting one by ``trio`` takes a pass of its loop, however many wait.
        with for_peers(port) if peers else contextlib.nullcontext():
            return open_listeners(found, socket.create_server)

    def _start_accepting(self) -> None:
        self._tasks.start_soon(self._accept_until_stopped)
        self._tasks.start_soon(self._watch_clock)

    async def _accept_until_stopped(self) -> None:
        """One ``_accept`` for each listener, in a scope that ``_stop_listening`` cancels."""
        with self._listening:
            async with trio.open_nursery() as nursery:
                for listener, peer in self._listeners.items():
                    nursery.start_soon(self._accept, listener, peer)

    async def _accept(self, listener: socket.socket, peer: bool) -> None:
        """Accept up to ``_at_once`` connections, and again if more are waiting.

        ``trio.serve_listeners`` is not used: when descriptors run out it logs a traceback for each
        attempt, and has no hook through which the machine could close an idle connection.
        """
        with listener:
            while True:
                await self._may_accept.wait()
                # Without a descriptor, accept fails even if no connection is waiting.
                await trio.lowlevel.wait_readable(listener)
                for _ in range(self._at_once):
                    try:
                        accepted, _ = listener.accept()
                    except OSError as exc:
                        if exc.errno in EXHAUSTED:
                            self.accept_failed(exc)
                        break  # otherwise none is waiting, or the peer has reset it: see accept(2)
                    tcp = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
                    self._tasks.start_soon(Connection(self, peer=peer).accept, tcp)

    async def _watch_clock(self) -> None:
        """Report the machine's deadlines. ``_set_alarm`` moves the end of the sleep."""
        self._arm()
        while True:
            with self._alarm:
                await trio.sleep_forever()
            self._alarm = trio.CancelScope()
            self._ring()

    def _shut_down(self) -> None:
        self._closed = True
        self._stopped.set()
        self._tasks.cancel_scope.cancel()

    def _clock(self) -> int:
        return round(trio.current_time() * NS_PER_SECOND)

    def _from_thread(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def _soon(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(call)

    def _set_alarm(self, at: int | None) -> None:
        self._alarm.deadline = math.inf if at is None else at / NS_PER_SECOND

    def _connect(self, effect: wire.Connect) -> "Connection":
        connection = Connection(self, effect.conn, name=(effect.host, effect.port))
        self._tasks.start_soon(connection.connect, effect)
        return connection

    async def _resolve(self, name: Name) -> Sequence[Address]:
        """The addresses of a name. Connects that begin at the same time wait for one look-up.

        Raises:
            OSError, UnicodeError: it has none.
        """
        found = self._addresses.get(name, self._clock()) or numeric(name)
        if not found:
            lookup = self._addresses.look_up(name, self._look_up)
            await lookup.ended.wait()
            if lookup.error is not None:
                raise lookup.error
            found = lookup.found
        return found

    def _look_up(self, name: Name) -> "LookUp":
        require_a_descriptor()
        lookup = LookUp()
        self._tasks.start_soon(self._look_up_in_thread, name, lookup)
        return lookup

    async def _look_up_in_thread(self, name: Name, lookup: "LookUp") -> None:
        try:
            lookup.found = await trio.to_thread.run_sync(look_up, name, abandon_on_cancel=True)
        except (OSError, UnicodeError) as exc:
            lookup.error = exc  # raised by those who wait
        self._addresses.ended(name, lookup.found, self._clock())
        lookup.ended.set()

    def _pause_listening(self) -> None:
        self._may_accept = trio.Event()

    def _resume_listening(self) -> None:
        self._may_accept.set()

    def _stop_listening(self) -> None:
        self._listening.cancel()

    def _crashed(self, why: Exception) -> None:
        self._tasks.start_soon(fail, why)


class Connection:
    """One socket, from accepting or connecting it until it is closed."""

    __slots__ = (
        "asked",
        "blocked",
        "closing",
        "conn",
        "ending",
        "marks",
        "name",
        "nursery",
        "outbox",
        "peer",
        "resumed",
        "scope",
        "sending",
        "server",
        "stream",
        "tcp",
        "up",
        "writing",
    )

    def __init__(
        self, server: Server, conn: int = -1, name: Name | None = None, *, peer: bool = False
    ) -> None:
        self.server, self.conn, self.scope = server, conn, trio.CancelScope()
        self.peer = peer  # accepted by the listener for other replicas
        self.name = name  # what is connected to; None: it was accepted
        self.tcp: trio.SocketStream | None = None
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] | None = None
        self.up = False  # reported as Accepted or Connected
        self.nursery: trio.Nursery | None = None  # runs ``write``
        self.resumed: trio.Event | None = None  # reading is paused until it is set
        self.ending = self.closing = self.blocked = False
        # It was opened, something was sent, and nothing has been read since: see FIRST_READ_SIZE.
        self.asked = False
        self.writing = False  # ``write`` runs
        self.marks = 0  # DataSent to report once all is written: one for each Send with notify
        self.outbox, self.sending = bytearray(), bytearray()
        server._alive.add(self)

    def report(self, event: wire.TransportEvent) -> None:
        self.server.report(event, self)

    async def connect(self, effect: wire.Connect) -> None:
        with self.until_gone():
            if effect.tls and self.server._upstream_ssl is None:
                require_a_descriptor()
                self.server._upstream_ssl = ssl.create_default_context()
            addresses = await self.server._resolve((effect.host, effect.port))
            self.tcp = self.stream = tcp = await open_tcp(addresses)
            keep_little_unsent(tcp)
            if effect.tls and self.server._upstream_ssl is not None:
                self.stream = trio.SSLStream(
                    tcp,
                    self.server._upstream_ssl,
                    server_hostname=effect.host,
                    https_compatible=True,
                )
                await self.stream.do_handshake()
            await self.run(wire.Connected(self.conn))

    async def accept(self, tcp: trio.SocketStream) -> None:
        with self.until_gone():
            self.tcp = self.stream = tcp
            context = self.server._peer_ssl if self.peer else self.server._listener_ssl
            if context is not None:
                self.stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
            await self.run(wire.Accepted(self.conn, self.peer))

    @contextlib.contextmanager
    def until_gone(self) -> Iterator[None]:
        """Close the socket and report the end, however the body ends: by the peer or by Abort."""
        why: BaseException | None = None
        try:
            with self.scope:
                yield
        except* (OSError, ValueError, trio.BrokenResourceError) as group:
            why = group
        finally:
            if self.tcp is not None:
                # After an Abort. A reset would drop what Close has left to the OS to send.
                if why is None and not self.closing:
                    reset_on_close(self.tcp)
                self.tcp.socket.close()
            self.server._alive.discard(self)
            if not self.up and self.name is not None:
                self.server._addresses.forget(self.name)
            self.report(wire.Disconnected(self.conn) if self.up else failed(self.conn, why))

    async def run(self, event: wire.Accepted | wire.Connected) -> None:
        """Report ``event``, then read, until the connection is closed or aborted. There is no task
        for reading beside this one, and one for writing only while the OS does not take all."""
        self.up = True
        async with trio.open_nursery() as self.nursery:
            try:
                self.report(event)
                await self.read()
                await trio.sleep_forever()  # the peer has ended its side only
            finally:
                self.nursery = None  # it takes no task any more, and Disconnected will be reported

    async def read(self) -> None:
        data = b"."
        while data:
            data = await self.receive()
            while self.resumed is not None:
                await self.resumed.wait()
            if not self.closing:
                event = wire.DataReceived(self.conn, data) if data else wire.EofReceived(self.conn)
                self.report(event)

    async def receive(self) -> bytes:
        """What the peer has sent; empty at its end."""
        assert self.stream is not None
        if not isinstance(self.stream, trio.SocketStream):
            return bytes(await self.stream.receive_some(READ_SIZE))
        # ``receive_some`` reads before it waits, mostly in vain, because all there was has just
        # been read; and it does more for each read than the read takes.
        descriptor = self.stream.socket.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            size = READ_SIZE
            if self.asked:
                size, self.asked = FIRST_READ_SIZE, False
            try:
                return os.read(descriptor, size)
            except BlockingIOError:
                continue

    def wake_writer(self) -> None:
        """Have ``write`` do what there is to do."""
        if not self.writing and self.nursery is not None:
            self.writing = True
            self.nursery.start_soon(self.write)

    async def write(self) -> None:
        """Write what waits, half-close or close; ends when there is nothing left to do."""
        assert self.stream is not None
        stream = self.stream
        while True:
            while self.outbox:
                self.sending, self.outbox = self.outbox, bytearray()
                await stream.send_all(self.sending)
                self.sending = bytearray()
            if self.blocked:
                self.blocked = False
                self.report(wire.WriteUnblocked(self.conn))
            marks, self.marks = self.marks, 0  # a report may cause a Send with a mark of its own
            for _ in range(marks):
                self.report(wire.DataSent(self.conn))
            if self.outbox or self.marks:
                await trio.lowlevel.checkpoint()
                continue
            if self.ending and isinstance(stream, trio.SocketStream):
                self.ending = False
                await stream.send_eof()
                continue
            if self.closing:
                self.scope.cancel()
            self.writing = False
            return

    def carry_out(self, effect: wire.ConnectionEffect) -> None:
        if isinstance(effect, wire.Send):
            self.send(effect.data, effect.notify)
            return
        if isinstance(effect, wire.Abort):
            self.scope.cancel()
            return
        if self.closing:
            return  # Disconnected will be reported
        match effect:
            case wire.EndSending():
                self.ending = True
                self.wake_writer()
            case wire.Close():
                self.closing = True
                self.wake_writer()
            case wire.Respond() | wire.SendClose():
                raise AssertionError("a socket has no request that is answered without its bytes")
            case wire.PauseReading():
                self.resumed = self.resumed or trio.Event()
            case wire.ResumeReading():
                if self.resumed is not None:
                    self.resumed.set()
                    self.resumed = None

    def send(self, data: bytes, notify: bool) -> None:
        if self.closing:
            return  # Disconnected will be reported
        self.asked = self.name is not None
        large = len(data) > HIGH_WATER
        if self.stream is self.tcp is not None and not self.outbox and not self.sending:
            try:
                sent = os.write(self.tcp.socket.fileno(), data)
            except OSError:  # would block or is broken: ``write`` handles both
                sent = 0
            data = data[sent:]
            if not data and not notify:
                return  # the usual case: the OS has taken all, and no report is due
        if data:
            self.outbox += data
            self.wake_writer()
        waiting = len(self.outbox) + len(self.sending)
        if waiting > HIGH_WATER and not self.blocked:
            self.blocked = True
            self.report(wire.WriteBlocked(self.conn))
        if notify and (waiting or large):
            # The report may cause the next large write. Deferred, so that a client that takes all
            # at once does not keep the loop from other connections.
            self.marks += 1
            self.wake_writer()
        elif notify:
            self.report(wire.DataSent(self.conn))


class LookUp:
    """A look-up that is running: its end, and then the addresses or the error."""

    __slots__ = ("ended", "error", "found")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.found: list[Address] = []
        self.error: OSError | UnicodeError | None = None


def numeric(name: Name) -> list[Address]:
    """The address that ``name`` is already; empty if it has to be looked up."""
    try:
        return look_up(name, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []


def look_up(name: Name, flags: int = 0) -> list[Address]:
    """The addresses of ``name``, from the system's resolver, which may take seconds."""
    return by_turns(socket.getaddrinfo(*name, type=socket.SOCK_STREAM, flags=flags))


async def open_tcp(addresses: Sequence[Address]) -> trio.SocketStream:
    """A TCP connection to the first of ``addresses`` that answers (RFC 8305).

    The next address is tried when the one before has failed or has not answered for
    ``NEXT_ADDRESS`` seconds. ``trio.open_tcp_stream`` is not used: it would look the name up.

    Raises:
        OSError: no address can be connected to; one of ``EXHAUSTED``, if any attempt failed so.
    """
    if len(addresses) == 1:  # no task for each attempt, which matters if a thousand begin at once
        return await connect_to(addresses[0])
    connected: trio.SocketStream | None = None
    failures: list[OSError] = []

    async def attempt(address: Address, ended: trio.Event) -> None:
        nonlocal connected
        try:
            stream = await connect_to(address)
        except OSError as exc:
            failures.append(exc)
            ended.set()
            return
        if connected is None:
            connected = stream
            attempts.cancel_scope.cancel()
        else:
            stream.socket.close()

    try:
        async with trio.open_nursery() as attempts:
            for address in addresses:
                ended = trio.Event()
                attempts.start_soon(attempt, address, ended)
                with trio.move_on_after(NEXT_ADDRESS):
                    await ended.wait()
    except BaseException:
        if connected is not None:
            connected.socket.close()
        raise
    if connected is None:
        raise in_one(failures)
    return connected


async def connect_to(address: Address) -> trio.SocketStream:
    """A connection to ``address``."""
    family, proto, where = address
    sock = trio.socket.socket(family, socket.SOCK_STREAM, proto)
    try:
        await sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def reset_on_close(tcp: trio.SocketStream) -> None:
    """Have closing ``tcp`` send RST and drop unsent data: the peer must not take it for an end."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def keep_little_unsent(tcp: trio.SocketStream) -> None:
    """Limit what the OS buffers of written bytes that it has not sent. A pong that is written next
    waits behind all of them, and without this option they may be megabytes."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, HIGH_WATER)


def require_a_descriptor() -> None:
    """Raise OSError if no descriptor can be opened. To be checked before what misreports it: the
    resolver says that the name does not exist, and ``ssl`` keeps an empty trust store."""
    os.close(os.open(os.devnull, os.O_RDONLY))


async def fail(why: Exception) -> None:
    """Raise ``why`` in a task of its own, so that it ends ``serve`` from a callback."""
    raise why


def failed(conn: int, why: BaseException | None) -> wire.ConnectFailed:
    """The report of a connection that could not be made. Anything unknown is ``OTHER``."""
    while isinstance(why, BaseExceptionGroup) or (why is not None and why.__cause__ is not None):
        why = why.exceptions[0] if isinstance(why, BaseExceptionGroup) else why.__cause__
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
