"""What an adapter reports and what it is told to do: the vocabulary of bytes and sockets.

Events are past tense and go in, effects are imperative and come out. ``Endpoint`` (the bridge) and
``testing.Emulator`` (an upstream) are both *machines* that speak these words, so one adapter drives
either. A machine does no I/O; an adapter decides nothing.

The duty of an adapter, in full:

* call ``handle(event, now)`` for each thing that happens, ``now`` being integer nanoseconds of a
  monotonic clock, and carry out the effects in order;
* call ``handle(TimeoutReached(), now)`` when ``next_timeout()`` has come;
* number accepted connections with ``machine.new_connection()`` and report ``Accepted`` for each;
  the machine numbers those that it asks for with ``Connect``. A number is never used twice.
* answer each ``Connect`` with ``Connected`` or ``ConnectFailed``, once, before anything else of
  that connection; report ``DataSent`` for a ``Send(notify=True)`` and for no other.
* report ``AcceptFailed`` when a connection cannot be accepted for want of descriptors or memory,
  and accept nothing until a connection has ended or a second has passed: the machine may have idle
  connections closed for it. (A ``bridgecore.transport.driver.Driver`` sees to the waiting.)
* after ``Disconnected(conn)`` was reported, or ``Abort(conn)`` was carried out, forget ``conn``;
  effects for a connection that is gone are no-ops.

``Endpoint`` tells misuse from races. A report that no lawful adapter makes (of a connection that
was never accepted nor asked for, of data before ``Connected``, of a second ``Accepted``) raises
``LocalProtocolError`` and changes nothing. A report of a connection that *is gone* is ignored: it
may have waited in the adapter's queue while the ``Abort`` was on its way.

These classes are built for every read and write, so they are plain slotted ones, not frozen.

Public are the names here and the module ``driver``; ``timer_queue`` is internal.
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeAlias

import attrs

from bridgecore.recovery.timers import Deadline

# ------------------------------------------------------------------ events


@attrs.define
class Accepted:
    """A listener accepted a connection; its number came from ``machine.new_connection()``."""

    conn: int


@attrs.define
class AcceptFailed:
    """A connection waits to be accepted, but this process or host has no descriptor or memory left.

    The adapter tries again by itself. ``detail`` is for people, from the OS.
    """

    detail: str


@attrs.define
class Connected:
    """What ``Connect`` asked for is there: TCP, and TLS if it was asked for, are up."""

    conn: int


class ConnectError(enum.Enum):
    """Why a connect failed, as far as a transport can tell."""

    REFUSED = "refused"  # nobody listens, or the network says so
    RESOLVE = "resolve"  # the name has no address
    TLS = "tls"  # the handshake failed or the certificate is not trusted
    LOCAL = "local"  # this process or host has no descriptor, port or memory left for a socket
    OTHER = "other"


@attrs.define
class ConnectFailed:
    """What ``Connect`` asked for cannot be had. ``detail`` is for people, from the OS or TLS."""

    conn: int
    error: ConnectError
    detail: str


@attrs.define
class DataReceived:
    """Bytes came; never empty."""

    conn: int
    data: bytes


@attrs.define
class EofReceived:
    """The peer will send no more. The connection can still be written to."""

    conn: int


@attrs.define
class Disconnected:
    """The connection is gone, by reset, error, or because ``Close`` was carried out."""

    conn: int


@attrs.define
class DataSent:
    """A ``Send(notify=True)`` and all before it were handed to the operating system."""

    conn: int


@attrs.define
class WriteBlocked:
    """More is waiting to be written than the adapter wants to keep (its high-water mark)."""

    conn: int


@attrs.define
class WriteUnblocked:
    """The wait of ``WriteBlocked`` is over."""

    conn: int


@attrs.define
class TimeoutReached:
    """The time that ``next_timeout()`` named has come."""


@attrs.define
class DrainRequested:
    """The process was asked to end: finish what runs, take nothing new. ``by``: who asked, such as
    ``SIGTERM``, for the log."""

    by: str = ""


TransportEvent: TypeAlias = (
    Accepted
    | AcceptFailed
    | Connected
    | ConnectFailed
    | DataReceived
    | EofReceived
    | Disconnected
    | DataSent
    | WriteBlocked
    | WriteUnblocked
    | TimeoutReached
    | DrainRequested
)
"""What ``Endpoint.handle``, or that of another machine, takes."""

# ------------------------------------------------------------------ effects


@attrs.define
class Connect:
    """Open a connection to ``host``:``port``; with TLS, verified, if ``tls``.

    Answered by one ``Connected`` or ``ConnectFailed``, unless ``Abort`` cancels it first.
    """

    conn: int
    host: str
    port: int
    tls: bool


@attrs.define
class Send:
    """Write ``data``. With ``notify``, report ``DataSent`` once all is with the OS."""

    conn: int
    data: bytes
    notify: bool = False


@attrs.define
class EndSending:
    """Flush, then half-close (TLS: close_notify where the library can): no more Sends."""

    conn: int


@attrs.define
class Close:
    """Flush, then close. ``Disconnected`` follows."""

    conn: int


@attrs.define
class Abort:
    """Drop the connection at once, unsent data included (RST where possible). Nothing follows."""

    conn: int


@attrs.define
class PauseReading:
    """Stop reading from the connection until ``ResumeReading``."""

    conn: int


@attrs.define
class ResumeReading:
    """Read from the connection again."""

    conn: int


@attrs.define
class StopListening:
    """Accept no more connections."""


@attrs.define
class Stop:
    """The machine has drained: nothing is left to do, the adapter's run can end."""


class LogLevel(enum.IntEnum):
    """Severity of a log record; the numbers of the standard library's logging."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@attrs.define
class Log:
    """Something worth a line: ``event`` names it, ``fields`` are scalars. No bodies, no
    credentials; ids are hashed before they get here."""

    level: LogLevel
    event: str
    fields: dict[str, str | int]


ConnectionEffect: TypeAlias = Send | EndSending | Close | Abort | PauseReading | ResumeReading
"""What is to be done with one connection."""

TransportEffect: TypeAlias = (
    Connect
    | Send
    | EndSending
    | Close
    | Abort
    | PauseReading
    | ResumeReading
    | StopListening
    | Stop
    | Log
)
"""What ``Endpoint.handle``, or that of another machine, returns."""


class Machine(Protocol):
    """What an adapter drives."""

    def new_connection(self) -> int:
        """A number for a connection that was just accepted."""

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        """Take in what happened at ``now`` (ns, monotonic); what to do about it, in order."""

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
