"""Events and effects of bytes and sockets, between an adapter and a machine.

An adapter reports events (past tense) and carries out effects (imperative). A *machine* handles
events and returns effects, without doing I/O: ``Endpoint`` (the bridge) and ``testing.Emulator``
(an upstream) are machines, and one adapter can drive either. An adapter makes no decisions.

An adapter must:

* call ``handle(event, now)`` for each thing that happens, ``now`` being integer nanoseconds of a
  monotonic clock, and carry out the effects in order;
* with a store: report ``Started`` before anything else, pass each ``AskStore`` to the store, and
  report its answer by ``StoreAnswered``;
* call ``handle(TimeoutReached(), now)`` when the time of ``next_timeout()`` has come;
* number accepted connections with ``machine.new_connection()`` and report ``Accepted`` for each;
  the machine numbers those that it opens with ``Connect``. A number is never used twice;
* answer each ``Connect`` with one ``Connected`` or ``ConnectFailed``, before any other event of
  that connection;
* report ``DataSent`` for each ``Send(notify=True)`` and for no other ``Send``: after the
  ``WriteUnblocked`` that is due at the same time, and before the ``Disconnected`` of a ``Close``
  that flushed the data. None is reported for data that was dropped, because the connection failed;
* report ``AcceptFailed`` when a connection cannot be accepted because descriptors or memory have
  run out, and not accept again until a connection has ended or a second has passed: the machine may
  close idle connections in response. (``bridgecore.transport.driver.Driver`` does the waiting.);
* or, if it has an HTTP server of its own, report ``RequestBegun`` for each request in place of an
  ``Accepted``, see there. (``bridgecore.transport.request.InProcessRequest`` does most of it.);
* report ``ResponseDeleted`` if it passes such requests to the upstream's HTTP API by itself, and
  the upstream has deleted a response, or does not have it;
* forget ``conn`` after reporting ``Disconnected(conn)`` or carrying out ``Abort(conn)``, and ignore
  effects for a connection that is gone.

``Endpoint`` distinguishes misuse from races. An event that a correct adapter cannot report (of a
connection that was neither accepted nor asked for, data before ``Connected``, a second
``Accepted``) raises ``LocalProtocolError`` and changes nothing. An event of a connection that *is
gone* is ignored: the adapter may have queued it before it carried out the ``Abort``.

These classes are built for every read and write, so they are plain slotted ones, not frozen.

Public are the names here and the modules ``driver`` and ``request``; ``addresses`` and ``sockets``
are internal.
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeAlias

import attrs

from bridgecore.messages import ResponseDeleted as ResponseDeleted
from bridgecore.ownership.store import AskStore as AskStore
from bridgecore.ownership.store import StoreAnswered as StoreAnswered
from bridgecore.recovery.timers import Deadline
from bridgecore.telemetry import Log as Log
from bridgecore.telemetry import LogLevel as LogLevel

# ------------------------------------------------------------------ events


@attrs.define
class Started:
    """The adapter listens, and has a store for the machine. Reported once, first of all.

    ``peer_port``: where it listens for other replicas; None if it does not.
    """

    peer_port: int | None = None


@attrs.define
class Accepted:
    """A connection was accepted. ``conn``: its number, from ``machine.new_connection()``;
    ``peer``: by the listener for other replicas."""

    conn: int
    peer: bool = False


@attrs.define
class RequestBegun:
    """An HTTP server that the adapter is a part of, such as an ASGI server, has read the head of a
    request. The request counts as a connection of its own, without the framing of HTTP:

    * ``DataReceived`` has a part of its body, ``RequestEnded`` is its end; after an upgrade to
      WebSocket there is neither, but ``WebSocketMessageReceived``;
    * ``Respond`` is the head of the answer, each ``Send`` a part of its body, and ``Close`` or
      ``EndSending`` its end, after which ``Disconnected`` is reported; ``Abort`` cuts it off;
    * ``Disconnected`` is reported when the client is gone;
    * all else is as for a connection with a socket: ``WriteBlocked``, ``DataSent`` and so on.

    Args:
        conn: a number of ``machine.new_connection()``.
        method: as it was sent.
        target: path and query as they were sent, not percent-decoded.
        headers: names in lower case.
        scope: the tenant, if the program around the adapter knows it; see
            ``bridgecore.messages.RequestReceived``.
        messages: the request is a WebSocket handshake, and the server can carry messages after it.
            False: it is answered over HTTP in any case.
    """

    conn: int
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    scope: str | None = None
    messages: bool = False


@attrs.define
class RequestEnded:
    """The body of the request of ``RequestBegun`` is complete."""

    conn: int


@attrs.define
class AcceptFailed:
    """A waiting connection could not be accepted: no descriptor or memory is left.

    The adapter tries again later. ``detail``: the message of the OS, for the log.
    """

    detail: str


@attrs.define
class Connected:
    """The connection of a ``Connect`` is open: TCP, and TLS if it was asked for."""

    conn: int


class ConnectError(enum.Enum):
    """Why a connection could not be opened."""

    REFUSED = "refused"  # the port is closed, or the network is unreachable
    RESOLVE = "resolve"  # the name has no address
    TLS = "tls"  # the handshake failed or the certificate is not trusted
    LOCAL = "local"  # this process or host has no descriptor, port or memory left
    OTHER = "other"


@attrs.define
class ConnectFailed:
    """A ``Connect`` has failed. ``detail``: the message of the OS or of TLS, for the log."""

    conn: int
    error: ConnectError
    detail: str


@attrs.define
class DataReceived:
    """Bytes were received; ``data`` is never empty."""

    conn: int
    data: bytes


@attrs.define
class WebSocketMessageReceived:
    """A message was received on a ``RequestBegun`` whose upgrade to WebSocket was accepted, by
    ``Respond`` with status 101. Unlike that of ``DataReceived``, ``data`` may be empty.

    Args:
        conn: the connection.
        data: the whole message; of a text message, its UTF-8.
        binary: it is a binary message (RFC 6455, section 5.6), and no text.
    """

    conn: int
    data: bytes
    binary: bool = False


@attrs.define
class EofReceived:
    """The peer has ended its sending side. The connection can still be written to."""

    conn: int


@attrs.define
class Disconnected:
    """The connection is gone: reset, an error, or ``Close`` is complete."""

    conn: int


@attrs.define
class DataSent:
    """The OS has taken the data of a ``Send(notify=True)`` and all data before it."""

    conn: int


@attrs.define
class WriteBlocked:
    """More bytes are waiting to be written than the adapter's high-water mark."""

    conn: int


@attrs.define
class WriteUnblocked:
    """After ``WriteBlocked``: all waiting bytes are written."""

    conn: int


@attrs.define
class TimeoutReached:
    """The time of ``next_timeout()`` has come."""


@attrs.define
class DrainRequested:
    """The process was asked to stop: finish running turns, accept no new ones. ``by``: the origin,
    such as ``SIGTERM``, for the log."""

    by: str = ""


TransportEvent: TypeAlias = (
    Started
    | Accepted
    | RequestBegun
    | RequestEnded
    | AcceptFailed
    | Connected
    | ConnectFailed
    | DataReceived
    | WebSocketMessageReceived
    | EofReceived
    | Disconnected
    | DataSent
    | WriteBlocked
    | WriteUnblocked
    | TimeoutReached
    | DrainRequested
    | StoreAnswered
    | ResponseDeleted
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
    """Write ``data``. With ``notify``, report ``DataSent`` when the OS has taken all of it."""

    conn: int
    data: bytes
    notify: bool = False


@attrs.define
class Respond:
    """Write the head of an answer to ``RequestBegun``. ``headers``: without those that frame the
    body, except a ``content-length`` if the length is known."""

    conn: int
    status: int
    headers: list[tuple[bytes, bytes]]


@attrs.define
class SendClose:
    """Write a close frame. Only for a ``RequestBegun`` whose upgrade to WebSocket was accepted, by
    ``Respond`` with status 101: from then on each ``Send`` is one text message. ``EndSending`` or
    ``Close`` follows."""

    conn: int
    code: int
    reason: str


@attrs.define
class EndSending:
    """Flush, then half-close (TLS: close_notify, if the library can). No ``Send`` follows."""

    conn: int


@attrs.define
class Close:
    """Flush, then close; report ``Disconnected``."""

    conn: int


@attrs.define
class Abort:
    """Drop the connection and its unsent data at once, with RST if possible. Report nothing."""

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
    """The machine has drained: stop driving it."""


ConnectionEffect: TypeAlias = (
    Send | Respond | SendClose | EndSending | Close | Abort | PauseReading | ResumeReading
)
"""What is to be done with one connection."""

TransportEffect: TypeAlias = (
    Connect
    | Send
    | Respond
    | SendClose
    | EndSending
    | Close
    | Abort
    | PauseReading
    | ResumeReading
    | StopListening
    | Stop
    | AskStore
    | Log
)
"""What ``Endpoint.handle``, or that of another machine, returns."""


class Machine(Protocol):
    """What an adapter drives: ``Endpoint`` or ``testing.Emulator``."""

    def new_connection(self) -> int:
        """A number for a connection that was just accepted."""

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        """Handle an event that happened at ``now`` (ns, monotonic); return the effects, in
        order."""

    def next_timeout(self) -> Deadline | None:
        """When to report ``TimeoutReached`` (ns), and why; None if there is no deadline."""
