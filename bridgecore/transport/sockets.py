"""Numbers and error codes of sockets, and how listeners are opened, whatever the event loop.

What belongs here: limits of a connection or a listener, and what the errors of the OS mean. The
sockets themselves are the adapters', which pass in the function that creates one.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar

from bridgecore.errors import BridgecoreError

# Bytes waiting to be written from which a connection counts as blocked. It bounds the memory that a
# slow reader costs, and is about as much as a socket takes at once.
HIGH_WATER: Final = 64 * 1024
# Bytes read from a socket at once. As many are allocated for every read, and 256 KiB, asyncio's
# default, is more than malloc keeps: each read would map memory and unmap it, which takes twice as
# long as the read.
READ_SIZE: Final = 64 * 1024
# Bytes read at once of what an opened connection brings first after something was sent on it, which
# is the beginning of an answer. A long answer that comes in one piece would otherwise be read and
# passed on as a whole before anyone sees its first event: 54 KB take 0.6 ms longer, and as much
# again in the replica that forwards them. Short answers still take one read.
FIRST_READ_SIZE: Final = 8 * 1024
# Connections that the OS queues until they are accepted. Beyond it, it drops or refuses them.
BACKLOG: Final = 512
# Connections accepted in one go. Open connections are served in between, however many arrive.
ACCEPTED_AT_ONCE: Final = 64
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST
# Errors that mean: this process or host has no descriptor, memory or local port left. Closing
# another connection may help, so they are reported apart from failures of the peer.
EXHAUSTED: Final = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
)
# Errors of a firewall or a sandbox on this host: the peer refused nothing.
FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


class Closable(Protocol):
    """What can be closed, such as a socket."""

    def close(self) -> None:
        """Close it."""


S = TypeVar("S", bound=Closable)


class PeerPortError(BridgecoreError, OSError):
    """The port for other replicas cannot be listened on. ``port``: its number."""

    port: int


@contextlib.contextmanager
def for_peers(port: int) -> Iterator[None]:
    """Raise a failure to listen on ``port``, inside the block, as a ``PeerPortError``.

    Clients and other replicas are listened to on two ports of one host, and whoever starts the
    process has to know which of the two is taken.
    """
    try:
        yield
    except OSError as exc:
        failed = PeerPortError(exc.errno, exc.strerror)
        failed.port = port
        raise failed from exc


def open_listeners(found: Iterable[Any], create_server: Callable[..., S]) -> list[S]:
    """Listen on each address that ``getaddrinfo`` has found. ``create_server``: that of ``socket``.

    An address family that this host lacks, such as IPv6, is skipped: the resolver may name its
    addresses nevertheless.

    Raises:
        OSError: an address cannot be listened on, or the host lacks all families. No listener is
            left open.
    """
    listeners: list[S] = []
    unsupported: OSError | None = None
    try:
        # Without duplicates: a hosts file may have a line twice, and the second would be in use.
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listeners.append(create_server(address, family=family, backlog=BACKLOG))
            except OSError as exc:
                if exc.errno != errno.EAFNOSUPPORT:
                    raise
                unsupported = exc
        if unsupported is not None and not listeners:
            raise unsupported
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners
