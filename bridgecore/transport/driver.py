"""The part of driving a machine that needs no socket: order, numbers and who is still there.

What belongs here: what every adapter would otherwise write again. An adapter's server is a
``Driver`` that fills in the clock, the sockets and the alarm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from bridgecore import transport as tp
from bridgecore.recovery.timers import NS_PER_SECOND

# How long a listener rests that could not accept, if no connection ends meanwhile, ns: descriptors
# may be used and given back by what this driver does not see, such as look-ups of names.
ACCEPT_REST = NS_PER_SECOND
"""How long a listener that could not accept rests, in ns."""


class DrivenConnection(Protocol):
    """A connection as the driver knows it. ``conn``: its number, -1 until it has one."""

    conn: int

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Do to this connection what the machine wants."""


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
        self._accept_at: int | None = None  # ns: when to accept again; None: the listener does

    def accept_failed(self, why: OSError) -> None:
        """The listener found no descriptor or memory for a connection that waits: let it rest.

        It goes on when a connection has ended, which gives a descriptor back, or after
        ``ACCEPT_REST``. To try again at once would be a busy loop, because the connection that
        waits keeps the listener readable.
        """
        if not self._closed:
            self._accept_at = self._clock() + ACCEPT_REST
            self._pause_listening()
            self.report(tp.AcceptFailed(str(why)))

    def report(self, event: tp.TransportEvent, about: C | None = None) -> None:
        """Let the machine handle ``event`` (``about`` a connection), and what follows from it."""
        if self._accept_at is not None:
            self._accept_again(event, self._accept_at)
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

    def _accept_again(self, event: tp.TransportEvent, at: int) -> None:
        ended = isinstance(event, tp.Disconnected) or (
            isinstance(event, tp.ConnectFailed) and event.error is not tp.ConnectError.LOCAL
        )
        if not self._closed and (ended or self._clock() >= at):
            self._accept_at = None
            self._resume_listening()

    def _arm(self) -> None:
        """Have the machine woken when it wants to be, and a listener that rests."""
        deadline = self.machine.next_timeout()
        at = self._accept_at
        if deadline is not None and (at is None or deadline.at < at):
            at = deadline.at
        self._set_alarm(at)

    def _carry_out(self, effect: tp.TransportEffect) -> None:
        match effect:
            case tp.Log():
                if self._log is not None:
                    self._log(effect)
            case tp.Connect():
                self._connections[effect.conn] = self._connect(effect)
            case tp.StopListening():
                self._accept_at = None
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
    def _pause_listening(self) -> None:
        """Accept nothing until ``_resume_listening``."""

    @abstractmethod
    def _resume_listening(self) -> None:
        """Accept again."""

    @abstractmethod
    def _stop_listening(self) -> None:
        """Accept nothing more."""

    @abstractmethod
    def _crashed(self, why: Exception) -> None:
        """The machine, or the carrying out of an effect, raised ``why``."""
