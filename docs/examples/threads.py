"""The bridge without an event loop: sockets and a selector, on a thread of its own.

``with serve(config, port=8080) as server`` runs it beside what else the program does. Connections
are opened in threads of their own, because looking up a name blocks. ``bridgecore.transport`` lists
what a driver has to do; ``Driver`` does what needs no socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import selectors
import signal
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from bridgecore import NS_PER_SECOND, Config, Endpoint, UpstreamUrl
from bridgecore import transport as tp
from bridgecore.transport.driver import Driver

READ_SIZE = HIGH_WATER = 65536  # bytes: of one read; that wait when a connection counts as blocked
CONNECT_TIMEOUT = 30.0  # seconds; the machine gives up earlier, by Config.connect_timeout
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


class Server(Driver["Connection"]):
    """Runs a machine, such as the bridge. ``port``: where it listens; ``stopped``: it has drained,
    or failed with ``error``."""

    def __init__(
        self,
        machine: tp.Machine,
        address: tuple[str, int],
        upstream_ssl: ssl.SSLContext | None,
        log: Callable[[tp.Log], None] | None,
    ) -> None:
        self.stopped = threading.Event()
        super().__init__(machine, log, self.stopped.set)
        self.error: Exception | None = None
        self.upstream_ssl = upstream_ssl
        self.calls: deque[Callable[[], None]] = deque()  # what ``run`` is to call
        self.ring_at: int | None = None  # ns, when to call ``_ring``
        self.alive: set[Connection] = set()  # those with a socket, or being connected
        self.selector = selectors.DefaultSelector()
        self.bell, self.button = socket.socketpair()  # ends a ``select`` from another thread
        self.bell.setblocking(False)
        self.button.setblocking(False)
        self.selector.register(self.bell, selectors.EVENT_READ, self.answer_bell)
        self.listener = socket.create_server(address, backlog=512)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self._resume_listening()

    def request_drain(self, by: str = "") -> None:
        """Have the machine finish its turns and stop. From any thread, or a signal handler."""
        self._from_thread(lambda: self.report(tp.DrainRequested(by)))

    def run(self) -> None:
        """Serve until ``close`` is called; all else here happens in the thread of this."""
        while not self._closed:
            seconds = None
            if self.calls:
                seconds = 0.0
            elif self.ring_at is not None:
                seconds = max(0, self.ring_at - self._clock()) / NS_PER_SECOND
            for key, ready in self.selector.select(seconds):
                key.data(ready)
            for _ in range(len(self.calls)):
                self.calls.popleft()()
            if self.ring_at is not None and self.ring_at <= self._clock():
                self.ring_at = None
                self._ring()
        self.stopped.set()
        self._stop_listening()
        for connection in list(self.alive):
            connection.drop(reset=True)
        self.selector.close()
        self.bell.close()
        self.button.close()

    def close(self) -> None:
        """End ``run``: abort all connections."""
        self._closed = True

    def answer_bell(self, ready: int) -> None:
        self.bell.recv(READ_SIZE)

    def accept(self, ready: int) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                self.accept_failed(exc)
            return  # else the client has left already
        connection = Connection(self)
        connection.open(sock)
        self.report(tp.Accepted(-1), connection)
        connection.watch()

    # ------------------------------------------------------------ what ``Driver`` asks for

    def _clock(self) -> int:
        return time.monotonic_ns()

    def _from_thread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)
        with contextlib.suppress(OSError):  # it rings already, or ``run`` has ended
            self.button.send(b"!")

    def _soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def _set_alarm(self, at: int | None) -> None:
        self.ring_at = at

    def _connect(self, effect: tp.Connect) -> Connection:
        connection = Connection(self, effect.conn)
        threading.Thread(target=connection.connect, args=[effect], daemon=True).start()
        return connection

    def _pause_listening(self) -> None:
        self.selector.unregister(self.listener)

    def _resume_listening(self) -> None:
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def _stop_listening(self) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it is paused, or closed already
            self.selector.unregister(self.listener)
        self.listener.close()

    def _crashed(self, why: Exception) -> None:
        self.error = why


class Connection:
    """One connection of the machine, with its socket once that is open."""

    def __init__(self, server: Server, conn: int = -1) -> None:
        self.server, self.conn = server, conn
        server.alive.add(self)
        self.sock: socket.socket | None = None
        self.out = bytearray()  # waits to be written
        self.marks = 0  # DataSent to report when that is written
        self.last: tp.EndSending | tp.Close | None = None  # to be carried out then
        self.watched = 0  # what the selector waits for
        self.gone = self.blocked = self.paused = self.eof = False

    def report(self, event: tp.TransportEvent) -> None:
        self.server.report(event, self)

    # ------------------------------------------------------------ its beginning and end

    def connect(self, effect: tp.Connect) -> None:
        """Open the connection; in a thread of its own."""
        try:
            address = (effect.host, effect.port)
            sock = socket.create_connection(address, timeout=CONNECT_TIMEOUT)
            if effect.tls:
                context = self.server.upstream_ssl or ssl.create_default_context()
                sock = context.wrap_socket(sock, server_hostname=effect.host)
        except Exception as exc:
            self.server._from_thread(partial(self.connect_failed, exc))
        else:
            self.server._from_thread(partial(self.connected, sock))

    def connected(self, sock: socket.socket) -> None:
        if self.gone:  # the machine gave up
            sock.close()
            return
        self.open(sock)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # a pong waits behind all that is not sent
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, HIGH_WATER)
        self.report(tp.Connected(self.conn))
        self.read()

    def connect_failed(self, why: Exception) -> None:
        error = tp.ConnectError.OTHER
        if isinstance(why, ssl.SSLError):
            error = tp.ConnectError.TLS
        elif isinstance(why, socket.gaierror | UnicodeError):
            error = tp.ConnectError.RESOLVE
        elif isinstance(why, OSError):
            local = why.errno in EXHAUSTED
            error = tp.ConnectError.LOCAL if local else tp.ConnectError.REFUSED
        self.server.alive.discard(self)
        self.report(tp.ConnectFailed(self.conn, error, str(why)))

    def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock

    def drop(self, *, reset: bool = False) -> None:
        """Close the socket. ``reset``: the peer must not take that for the end of the data."""
        self.gone = True
        self.out.clear()
        if self.sock is not None:
            self.watch()
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.sock.close()
        self.server.alive.discard(self)

    def lost(self) -> None:
        self.drop()
        self.report(tp.Disconnected(self.conn))

    # ------------------------------------------------------------ reading and writing

    def watch(self) -> None:
        """Have the selector wait for what this connection waits for."""
        assert self.sock is not None
        reads = not (self.gone or self.paused or self.eof)
        wanted = reads * selectors.EVENT_READ | bool(self.out) * selectors.EVENT_WRITE
        if self.watched and wanted != self.watched:
            self.server.selector.unregister(self.sock)
        if wanted and wanted != self.watched:
            self.server.selector.register(self.sock, wanted, self.ready)
        self.watched = wanted

    def ready(self, ready: int) -> None:
        if ready & selectors.EVENT_WRITE and not self.gone:
            self.flush()
        if ready & selectors.EVENT_READ and not self.gone:
            self.read()

    def read(self) -> None:
        more = True
        while more and self.sock is not None and not (self.gone or self.paused or self.eof):
            try:
                data = self.sock.recv(READ_SIZE)
            except NOT_READY:
                break
            except OSError:
                self.lost()
                return
            if data:
                self.report(tp.DataReceived(self.conn, data))
            else:
                self.eof = True
                self.report(tp.EofReceived(self.conn))
            # The selector does not see what TLS has decrypted already.
            more = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0
        if not self.gone:
            self.watch()

    def flush(self) -> None:
        """Write what waits, as far as possible; report what is due, and do what is to be done, when
        all is written."""
        assert self.sock is not None
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except NOT_READY:
            pass
        except OSError:
            with contextlib.suppress(OSError):  # what the peer has sent before, such as the reason
                while data := self.sock.recv(READ_SIZE):
                    self.report(tp.DataReceived(self.conn, data))
            self.lost()
            return
        if not self.out:
            if self.blocked:
                self.blocked = False
                self.report(tp.WriteUnblocked(self.conn))
            if self.marks:
                # Later, because the machine may send the next large part of a message then. Other
                # connections are served before that.
                self.server._soon(self.sent)
            if self.last is not None:
                self.finish(self.last)
        if not self.gone:
            self.watch()

    def sent(self) -> None:
        if not self.out:
            marks, self.marks = self.marks, 0
            for _ in range(marks):
                self.report(tp.DataSent(self.conn))

    def finish(self, last: tp.EndSending | tp.Close) -> None:
        """All is written: end the sending side, or the connection."""
        assert self.sock is not None
        with contextlib.suppress(OSError):
            if isinstance(self.sock, ssl.SSLSocket):
                self.sock.unwrap()  # writes close_notify, then raises: the peer's has not come
            elif isinstance(last, tp.EndSending):
                self.sock.shutdown(socket.SHUT_WR)
        if isinstance(last, tp.Close):
            self.sent()
            self.lost()

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Carry out an effect of the machine."""
        if self.gone:
            return
        match effect:
            case tp.Send():
                if self.last is None:
                    self.out += effect.data
                    self.marks += effect.notify
                    self.flush()
                    if len(self.out) > HIGH_WATER and not self.blocked:
                        self.blocked = True
                        self.report(tp.WriteBlocked(self.conn))
            case tp.EndSending() | tp.Close():
                self.last = effect
                self.flush()
            case tp.Abort():
                self.drop(reset=not isinstance(self.last, tp.Close))
            case tp.PauseReading():
                self.paused = True
                self.watch()
            case tp.ResumeReading():
                self.paused = False
                self.server._soon(self.read)
            case tp.Respond() | tp.SendClose():
                raise AssertionError("a socket has no request that is answered without its bytes")


@contextlib.contextmanager
def serve(
    machine: Config | tp.Machine,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    upstream_ssl: ssl.SSLContext | None = None,
    log: Callable[[tp.Log], None] | None = None,
) -> Iterator[Server]:
    """Run a machine, or a bridge with these settings, in a thread until the context is left, which
    aborts all connections. For a clean end, call ``request_drain`` and wait for ``stopped``."""
    if isinstance(machine, Config):
        machine = Endpoint(machine, secrets.token_bytes(16))
    server = Server(machine, (host, port), upstream_ssl, log)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server._from_thread(server.close)
        thread.join()
    if server.error is not None:
        raise server.error


def main() -> None:
    """Serve until a signal, and then until all turns have ended."""
    config = Config(upstream=UpstreamUrl.parse(os.environ["UPSTREAM"]))
    with serve(config, port=8080) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: server.request_drain(str(number)))
        server.stopped.wait()


if __name__ == "__main__":
    main()
