"""Tells a service manager, such as systemd, that the command is ready, is stopping, and is alive.

What belongs here: the protocol of ``sd_notify(3)``. A message is one datagram to the unix socket
that the variable ``NOTIFY_SOCKET`` names. Without the variable, or when the socket cannot be
reached, messages are dropped: the bridge serves with and without a service manager.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

# How long the message that ends the start may wait for room in the manager's queue, in seconds. If
# it were lost, the manager would end the process when its time for a start is over.
_PATIENCE = 1.0
_US_PER_SECOND = 1_000_000


class Notifier:
    """Sends the messages to the socket in ``environ``; to be used in a ``with``.

    ``interval``: seconds between two messages of ``keep_alive``; None if none are wanted. It is
    half the silence after which the manager ends the process, as ``sd_watchdog_enabled(3)`` has it.
    """

    interval: float | None = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address[:1] not in ("/", "@"):  # unset, or of a family that is not served here
            return
        if self._address[0] == "@":  # the notation for a name that is in no file system
            self._address = "\0" + self._address[1:]
        # Opened now: when there is something to tell, files may have run out.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.interval = _interval(environ)

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def ready(self) -> None:
        """The process listens: what was ordered to start after it can start."""
        self._send(b"READY=1", _PATIENCE)

    def stopping(self) -> None:
        """The process drains: it has been asked to stop, and takes no new turns."""
        self._send(b"STOPPING=1")

    def alive(self) -> None:
        """The process still does its work."""
        self._send(b"WATCHDOG=1")

    async def keep_alive(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Say that the event loop runs, each ``interval``, until this is cancelled.

        On the loop that serves, because what has to be noticed is that the loop does not run.
        ``sleep``: that of the loop's library.
        """
        while self.interval is not None:
            self.alive()
            await sleep(self.interval)

    def _send(self, message: bytes, patience: float = 0) -> None:
        """Send ``message``, or drop it if there is no room for it after ``patience`` seconds."""
        if self._socket is not None:
            self._socket.settimeout(patience)
            with contextlib.suppress(OSError):
                self._socket.sendto(message, self._address)


def _interval(environ: Mapping[str, str]) -> float | None:
    """Half of the manager's time in ``WATCHDOG_USEC``; None if it has none for this process."""
    time = environ.get("WATCHDOG_USEC", "")
    if not (time.isascii() and time.isdigit()) or int(time) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for the process that has started this one
    return int(time) / _US_PER_SECOND / 2
