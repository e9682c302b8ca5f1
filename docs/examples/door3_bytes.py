"""Door 3, bytes: an ``Endpoint`` on plain sockets and a selector.

What drives the bridge drives the emulator of an upstream too: both are machines, which speak the
words of ``bridgecore.transport``. A driver this small leaves out TLS and half-closed connections,
and reads nothing while it writes; ``bridgecore_asyncio`` and ``bridgecore_trio`` do not.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time

from bridgecore import Config, Endpoint, UpstreamUrl
from bridgecore import transport as tp
from bridgecore.testing import Emulator

REQUEST = b'{"model": "m", "input": "Hello!", "stream": true}'


class Loop:
    """Drives one machine behind one listener, on one selector that others may share."""

    def __init__(self, machine: tp.Machine, selector: selectors.BaseSelector) -> None:
        self.machine, self.selector = machine, selector
        self.sockets: dict[int, socket.socket] = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.port: int = self.listener.getsockname()[1]

    def accept(self) -> None:
        """The listener has a connection."""
        conn = self.machine.new_connection()
        self.add(conn, self.listener.accept()[0])
        self.report(tp.Accepted(conn))

    def add(self, conn: int, sock: socket.socket) -> None:
        """Read from a connection from now on."""
        self.sockets[conn] = sock
        self.selector.register(sock, selectors.EVENT_READ, lambda: self.read(conn))

    def read(self, conn: int) -> None:
        """A connection has bytes, or is gone."""
        try:
            data = self.sockets[conn].recv(65536)
        except OSError:
            data = b""
        if data:
            self.report(tp.DataReceived(conn, data))
        else:
            self.drop(conn)
            self.report(tp.Disconnected(conn))

    def drop(self, conn: int) -> None:
        """Close a connection, if it is still there."""
        if (sock := self.sockets.pop(conn, None)) is not None:
            self.selector.unregister(sock)
            sock.close()

    def report(self, event: tp.TransportEvent) -> None:
        """Report an event, carry out the effects in order, then report what they led to."""
        follow: list[tp.TransportEvent] = []
        for effect in self.machine.handle(event, time.monotonic_ns()):
            match effect:
                case tp.Connect():
                    try:
                        self.add(effect.conn, socket.create_connection((effect.host, effect.port)))
                        follow.append(tp.Connected(effect.conn))
                    except OSError as exc:
                        failed = tp.ConnectFailed(effect.conn, tp.ConnectError.REFUSED, str(exc))
                        follow.append(failed)
                case tp.Send() if effect.conn in self.sockets:
                    self.sockets[effect.conn].sendall(effect.data)
                    if effect.notify:
                        follow.append(tp.DataSent(effect.conn))
                case tp.Close() | tp.Abort() | tp.EndSending():
                    known = effect.conn in self.sockets
                    self.drop(effect.conn)
                    if known and not isinstance(effect, tp.Abort):
                        follow.append(tp.Disconnected(effect.conn))
                case _:
                    pass  # flow control, a drain and log records are left out here
        for event in follow:
            self.report(event)

    def due(self) -> bool:
        """Whether the time has come that the machine waits for."""
        deadline = self.machine.next_timeout()
        return deadline is not None and deadline.at <= time.monotonic_ns()


def ask(port: int, answer: list[bytes]) -> None:
    """A client, in a thread of its own."""
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(head % len(REQUEST) + REQUEST)
        while data := sock.recv(65536):
            answer.append(data)


def main() -> bytes:
    """Have one request answered by the bridge, with the emulator as its upstream."""
    answer: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        upstream = Loop(Emulator(), selector)
        url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
        bridge = Loop(Endpoint(Config(upstream=url), secrets.token_bytes(16)), selector)
        client = threading.Thread(target=ask, args=[bridge.port, answer])
        client.start()
        while client.is_alive():
            for key, _ in selector.select(timeout=0.01):
                if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]  # a socket, always
                    key.data()
            for loop in (upstream, bridge):
                if loop.due():
                    loop.report(tp.TimeoutReached())
        client.join()
        for loop in (upstream, bridge):
            for conn in list(loop.sockets):
                loop.drop(conn)
            loop.listener.close()
    return b"".join(answer)


if __name__ == "__main__":
    print(main().decode())
