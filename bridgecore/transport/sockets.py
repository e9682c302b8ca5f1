"""Numbers and error codes of sockets: what both adapters use, whatever the event loop.

What belongs here: limits of a connection or a listener, and what the errors of the OS mean. The
sockets themselves are the adapters'.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

# Bytes waiting to be written from which a connection counts as blocked. It bounds the memory that a
# slow reader costs, and is about as much as a socket takes at once.
HIGH_WATER: Final = 64 * 1024
# Bytes read from a socket at once. As many are allocated for every read, and 256 KiB, asyncio's
# default, is more than malloc keeps: each read would map memory and unmap it, which takes twice as
# long as the read.
READ_SIZE: Final = 64 * 1024
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
