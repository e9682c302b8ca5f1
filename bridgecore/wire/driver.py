"""The part of driving a machine that needs no socket: order, numbers and who is still there.

What belongs here: what every adapter would otherwise write again. An adapter's server is a
``Driver`` that fills in the clock, the sockets and the alarm.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from bridgecore.wire import transport as tp


class DrivenConnection(Protocol):
    """A connection as the driver knows it. ``conn``: its number, -1 until it has one."""

    conn: int

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Do to this connection what the machine wants."""


HIGH_WATER = 64 * 1024  # bytes waiting to be written that make a connection blocked
BACKLOG = 2048  # connections that the OS may hold for us to accept
# What an OSError of ours, rather than of the peer or the network, is about.
LOCAL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES, errno.EPERM)

C = TypeVar("C", bound=DrivenConnection)


class Driver(ABC, Generic[C]):
    """Reports events to ``machine`` one at a time, and has its effects carried out in order.

    What an effect causes at once (a ``DataSent``, say) is reported after the effects before it
    are carried out, never from within ``handle``. After an ``Abort`` nothing more of the
    connection is reported. What ``machine.handle`` raises is a bug: ``crashed`` is told, and
    nothing is driven any more.
    """

    def __init__(
        self,
        machine: tp.Machine,
        log: Callable[[tp.Log], None] | None,
        stop: Callable[[], None],
    ) -> None:
        self.machine = machine
        self._log = log  # told of every Log
        self._stop = stop  # told when the machine has drained
        self._connections: dict[int, C] = {}  # that the machine knows
        self._events: deque[tuple[tp.TransportEvent, C | None]] = deque()
        self._busy = False
        self._closed = False

    def report(self, event: tp.TransportEvent, about: C | None = None) -> None:
        """Let the machine handle ``event`` (``about`` a connection), and what follows from it."""
        self._events.append((event, about))
        if self._busy or self._closed:
            return
        self._busy = True
        try:
            while self._events:
                event, about = self._events.popleft()
                if isinstance(event, tp.Accepted) and about is not None:
                    event.conn = about.conn = self.machine.new_connection()
                    self._connections[about.conn] = about
                elif about is not None and about.conn not in self._connections:
                    continue  # nothing follows an Abort
                elif isinstance(event, tp.Disconnected | tp.ConnectFailed):
                    del self._connections[event.conn]
                for effect in self.machine.handle(event, self._clock()):
                    self._carry_out(effect)
            self._arm()
        except Exception as exc:
            self._closed = True
            self._crashed(exc)
        self._busy = False

    def _arm(self) -> None:
        """Have the machine woken when it wants to be."""
        deadline = self.machine.next_timeout()
        self._set_alarm(None if deadline is None else deadline.at)

    def _carry_out(self, effect: tp.TransportEffect) -> None:
        match effect:
            case tp.Log():
                if self._log is not None:
                    self._log(effect)
            case tp.Connect():
                self._connections[effect.conn] = self._connect(effect)
            case tp.StopListening():
                self._stop_listening()
            case tp.Stop():
                self._stop()
            case _:
                known = self._connections.get(effect.conn)
                if isinstance(effect, tp.Abort):
                    self._connections.pop(effect.conn, None)
                if known is not None:
                    known.carry_out(effect)

    # ------------------------------------------------------------ what an adapter fills in

    @abstractmethod
    def _clock(self) -> int:
        """Now, in ns of a monotonic clock."""

    @abstractmethod
    def _set_alarm(self, at: int | None) -> None:
        """Report ``TimeoutReached`` at ``at`` ns, and at no other time set before."""

    @abstractmethod
    def _connect(self, effect: tp.Connect) -> C:
        """Begin to connect."""

    @abstractmethod
    def _stop_listening(self) -> None:
        """Accept nothing more."""

    @abstractmethod
    def _crashed(self, why: Exception) -> None:
        """The machine, or the carrying out of an effect, raised ``why``."""
