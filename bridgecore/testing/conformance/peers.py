"""The other end of the connections of a driver: plain blocking sockets, with certificates for TLS.

What belongs here: sockets of the checks, used from the thread of the check. They share no code with
any driver. What does not happen in time, or ends otherwise, is a ``ConformanceError``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from bridgecore.testing.conformance.checks import ConformanceError

HOST: Final = "127.0.0.1"
T = TypeVar("T")


class Certificates:
    """Certificates of an authority that no system trusts, and whose key does not exist any more.

    They end in the year 9999. The keys of the two hosts are public, as they protect nothing. They
    are files because a check must not need a package that makes certificates.

    ``this_host``: for a listener on 127.0.0.1 or localhost; ``another_host``: for one with another
    name; ``trust``: for a client that trusts the authority; ``authority``: its certificate, as PEM.
    """

    def __init__(self) -> None:
        folder = Path(__file__).with_name("certificates")
        self.this_host = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.this_host.load_cert_chain(folder / "this_host.pem")
        self.another_host = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.another_host.load_cert_chain(folder / "another_host.pem")
        self.authority = (folder / "authority.pem").read_text(encoding="ascii")
        self.trust = ssl.create_default_context(cadata=self.authority)


@functools.cache
def certificates() -> Certificates:
    """The certificates of all checks."""
    return Certificates()


class Peer:
    """A connection. ``patience``: seconds that one wait may take."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self.sock = sock
        self._patience = patience
        sock.settimeout(patience)

    def _call(self, what: str, function: Callable[..., T], *args: Any) -> T:
        try:
            return function(*args)
        except TimeoutError as error:
            raise ConformanceError(f"{what}: nothing happened for {self._patience} s") from error
        except OSError as error:
            raise ConformanceError(f"{what}: {error}") from error

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._call("sending to the driver", self.sock.sendall, data)

    def receive(self, limit: int = 65536) -> bytes:
        """Some bytes; none at the end of the stream."""
        return self._call("receiving from the driver", self.sock.recv, limit)

    def receive_exactly(self, count: int) -> bytes:
        """``count`` bytes."""
        data = bytearray()
        while len(data) < count:
            chunk = self.receive(min(count - len(data), 1 << 20))
            if not chunk:
                raise ConformanceError(f"the stream ended after {len(data)} of {count} bytes")
            data += chunk
        return bytes(data)

    def receive_all(self) -> bytes:
        """All bytes up to the end of the stream."""
        data = bytearray()
        while chunk := self.receive(1 << 20):
            data += chunk
        return bytes(data)

    def expect_reset(self) -> None:
        """Receive until the driver has reset the connection."""
        try:
            while self.sock.recv(1 << 20):
                pass
        except ConnectionResetError:
            return
        except TimeoutError as error:
            raise ConformanceError("the connection is still open; it must be reset") from error
        raise ConformanceError("the connection was closed in order; it must be reset")

    def expect_end(self) -> None:
        """Receive until the driver has closed or reset the connection."""
        with contextlib.suppress(ConnectionResetError):
            try:
                while self.sock.recv(1 << 20):
                    pass
            except TimeoutError as error:
                raise ConformanceError("the connection is still open; it must be gone") from error

    def end_sending(self) -> None:
        """Half-close: the driver receives the end of the stream."""
        self._call("half-closing", self.sock.shutdown, socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the driver receives RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close the socket; if it has received bytes that were not read, the system sends RST."""
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


class Listener:
    """A listening socket, for a driver to connect to. ``context``: for TLS; None: without."""

    def __init__(self, patience: float, context: ssl.SSLContext | None = None) -> None:
        self._patience = patience
        self._context = context
        self.sock = socket.create_server((HOST, 0))
        self.sock.settimeout(patience)
        self.port: int = self.sock.getsockname()[1]

    def accept(self) -> Peer:
        """The next connection, after its TLS handshake, if it has one."""
        try:
            sock, _ = self.sock.accept()
        except TimeoutError as error:
            raise ConformanceError(
                f"the driver did not connect within {self._patience} s"
            ) from error
        if self._context is not None:
            sock = _wrapped(sock, self._patience, self._context, server_side=True)
        return Peer(sock, self._patience)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


def connect(port: int, patience: float, trust: ssl.SSLContext | None = None) -> Peer:
    """Connect to a driver; with ``trust``, by TLS."""
    try:
        sock = socket.create_connection((HOST, port), timeout=patience)
    except OSError as error:
        raise ConformanceError(f"the driver does not listen on port {port}: {error}") from error
    if trust is not None:
        sock = _wrapped(sock, patience, trust, server_hostname=HOST)
    return Peer(sock, patience)


def _wrapped(
    sock: socket.socket, patience: float, context: ssl.SSLContext, **options: Any
) -> ssl.SSLSocket:
    sock.settimeout(patience)
    try:
        return context.wrap_socket(sock, **options)
    except OSError as error:
        sock.close()
        raise ConformanceError(f"the TLS handshake with the driver failed: {error}") from error


def refuses(port: int) -> bool:
    """Whether a connection to ``port`` is refused."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[list[int]]:
    """This process can open no descriptor; closing one of the yielded ones permits one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 16, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
