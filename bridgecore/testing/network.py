"""A network in memory: machines, byte clients and virtual time, without sockets.

What belongs here: a ``Network`` connects machines (``Endpoint``, ``Emulator``) and plain byte
clients by in-memory connections in virtual time. It does what an adapter does, so a test can
inspect every byte and stop the clock between any two of them. It models these properties of real
sockets:

* backpressure: up to ``WINDOW`` bytes are buffered for a receiver that does not read; then the
  sender's writes block, and its marks (``DataSent``) and the end of a ``Close`` wait;
* an orderly close is an end of stream for the peer, which notices only at its next write that the
  connection is gone; a reset destroys what was not read;
* a limit of open sockets (``limit``): further connects fail, and connects to the process wait to be
  accepted until one of its connections has ended;
* with ``split``, what was written in one piece arrives in several.

By default nothing takes time and nothing is lost: all consequences of an event have happened when
the call that caused it returns. ``Conditions`` give connections latency and jitter, and can refuse
connects. And a connection can be harmed at any time:

* ``cut_after``: it breaks at a byte; what came before arrives, then both ends get a reset;
* ``stall``: nothing arrives in one direction for a while;
* ``vanish``: it goes half-open: bytes are lost in both directions, and neither end is notified
  until TCP gives up.

Each connection has a *label*, a number that names the conversation it belongs to, so that what is
done to one conversation does not depend on which others there are. It is the label of the machine
that opened the connection, or, if that one has none, the label of the connection whose event made
it open this one.

Everything is deterministic: events due at the same time happen in the order in which they were
scheduled.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias, assert_never

import attrs

from bridgecore import transport as tp
from bridgecore.errors import BridgecoreError
from bridgecore.ownership.store import Answer, Question
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline

NO_CLIENT: Final = -1
"""The label of a connection that belongs to no known client or conversation."""
MILLISECOND: Final = 1_000_000
"""Nanoseconds of a millisecond."""
WINDOW: Final = 65_536
"""Bytes buffered for a receiver that does not read, before writing blocks."""
_TCP_GIVES_UP: Final = 900 * NS_PER_SECOND  # until the ends of a half-open connection are notified

_OnConnection: TypeAlias = (
    tp.Send | tp.EndSending | tp.Close | tp.Abort | tp.PauseReading | tp.ResumeReading
)


class MachineError(BridgecoreError, AssertionError):
    """A machine raised, or left a deadline due. ``label``: of the connection for which it
    worked."""

    def __init__(self, label: int, message: str) -> None:
        super().__init__(message)
        self.label = label


# ------------------------------------------------------------------ options


class Path(Protocol):
    """How bytes travel on a connection, in either direction."""

    @property
    def latency(self) -> int:
        """The smallest delay, ns."""

    def pieces(self, data: bytes) -> Iterable[tuple[int, bytes]]:
        """The pieces in which ``data`` arrives, each with its delay in ns: the first one after
        ``latency``, the others after the piece before."""


class Fate(enum.Enum):
    """The result of a connect."""

    ARRIVES = enum.auto()
    REFUSED = enum.auto()
    UNANSWERED = enum.auto()


class Conditions(Protocol):
    """How a network treats connections."""

    def path(self, label: int) -> Path:
        """The path of the next connection with that label."""

    def connecting(self, end: End) -> Fate:
        """The owner of ``end`` connects; what becomes of it."""

    def connected(self, end: End) -> None:
        """``end`` is connected to its peer. Both can be harmed."""

    def label_of(self, data: bytes) -> int | None:
        """The label of a connection without one, read from ``data``, the bytes written so far;
        None: not known yet."""


class Watcher(Protocol):
    """Is notified of all that happens on a network."""

    def added(self, machine: tp.Machine, label: int) -> None:
        """``machine`` was added to the network."""

    def handles(self, machine: tp.Machine, event: tp.TransportEvent, network: Network) -> None:
        """``machine`` is about to handle ``event``, for ``network.label``."""

    def raised(self, machine: tp.Machine, error: Exception, network: Network) -> None:
        """``machine`` raised ``error``, which the network raises again."""

    def logged(self, log: tp.Log) -> None:
        """``machine`` writes a log record."""

    def breaks(self, end: End) -> None:
        """A connection breaks at the byte that ``cut_after`` set."""


@attrs.frozen
class Direct:
    """A path that takes ``latency`` ns and loses nothing."""

    split: Callable[[bytes], Iterable[bytes]] | None = None
    latency: int = 0

    def pieces(self, data: bytes) -> Iterable[tuple[int, bytes]]:
        """All of it at once, in the pieces that ``split`` makes."""
        return [(0, data)] if self.split is None else [(0, piece) for piece in self.split(data)]


@attrs.frozen
class _Calm:
    """Conditions under which all connections are alike, and none is refused."""

    alike: Path

    def path(self, label: int) -> Path:
        return self.alike

    def connecting(self, end: End) -> Fate:
        return Fate.ARRIVES

    def connected(self, end: End) -> None:
        pass

    def label_of(self, data: bytes) -> int | None:
        return None


# ------------------------------------------------------------------ machines and connections


@attrs.define(eq=False)
class End:
    """One end of a connection; what it writes travels to ``peer``. Read-only for callers."""

    driver: _Driver
    conn: int
    label: int
    path: Path
    peer: End | None = None
    window: int = WINDOW  # bytes in ``held`` at which the peer's writes block
    open: bool = True
    vanishing: bool = False  # what it writes is lost
    harmed: bool = False  # a fault was done to the connection that explains its loss
    arrival: int = 0  # ns: arrival of the latest write; later writes arrive later
    stalled: int = 0  # ns: nothing that it writes arrives before
    sent: int = 0  # bytes
    cut_at: int | None = None  # the value of ``sent`` at which the connection breaks
    paused: bool = False
    held: deque[tp.TransportEvent] = attrs.Factory(deque)  # received while reading was paused
    unread: int = 0  # bytes of ``held``
    blocked: bool = False  # the owner was notified that its writes block
    waiting: list[tp.TransportEvent] = attrs.Factory(list)  # for the owner, once its data is out
    accepted: tp.Accepted = attrs.Factory(lambda: tp.Accepted(0))  # how it was accepted
    place: tuple[str, int] | None = None  # host and port that its owner connected to

    @property
    def owner(self) -> tp.Machine:
        """The machine that has it."""
        return self.driver.machine

    @property
    def owner_labelled(self) -> bool:
        """Whether its owner has a label of its own."""
        return self.driver.label != NO_CLIENT


@attrs.define(eq=False)
class _Driver:
    """A machine and its state in the network."""

    machine: tp.Machine
    label: int = NO_CLIENT  # of the connections it opens; NO_CLIENT: inherited
    window: int = WINDOW  # of the connections that it opens
    after: Callable[[], None] | None = None
    limit: int | None = None  # of its connections at a time
    store: _Ask | None = None
    ends: dict[int, End] = attrs.Factory(dict)
    backlog: deque[End] = attrs.Factory(deque)  # not accepted yet, for lack of room
    timer: int | None = None  # ns, its entry in the timer queue
    accepted: list[End] = attrs.Factory(list)
    requests: dict[int, RequestClient] = attrs.Factory(dict)

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.ends) >= self.limit


class ByteClient:
    """A client without a protocol: it writes and collects bytes (``received``)."""

    def __init__(self, network: Network) -> None:
        self.received = bytearray()
        self.eof = False  # the other side will send no more
        self._lost = False
        self._network = network
        self._end: End | None = None

    @property
    def closed(self) -> bool:
        """Whether the connection was reset, or closed by the other side."""
        peer = None if self._end is None else self._end.peer
        return self._lost or (self.eof and peer is not None and not peer.open)

    @property
    def peer_closed(self) -> bool:
        """Whether the other side has closed the connection. A client that does not read does not
        see that: what it sends then is answered with a reset, and what it has not read is lost."""
        peer = None if self._end is None else self._end.peer
        return self.closed or (peer is not None and not peer.open)

    def send(self, data: bytes) -> None:
        """Send ``data``; all that follows from it now happens before the call returns."""
        self._do(tp.Send(0, data))

    def half_close(self) -> None:
        """End the sending direction."""
        self._do(tp.EndSending(0))

    def abort(self) -> None:
        """Reset the connection."""
        self._do(tp.Abort(0))

    def pause(self) -> None:
        """Stop reading."""
        self._do(tp.PauseReading(0))

    def resume(self) -> None:
        """Read what has arrived, and go on reading."""
        self._do(tp.ResumeReading(0))

    def take(self) -> bytes:
        """The bytes received since the last call."""
        data = bytes(self.received)
        self.received.clear()
        return data

    def _do(self, effect: _OnConnection) -> None:
        if self._end is None:
            raise ConnectionError("the client is not connected")
        if self._end.open:
            self._network.act(self._end, effect)

    # ------------------------------------------------------------ for the network

    def attach(self, end: End) -> None:
        """Make ``end`` the client's end of its connection."""
        self._end = end

    def new_connection(self) -> int:
        """A client accepts no connections."""
        raise AssertionError("a client does not listen")

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Record what was received."""
        if isinstance(event, tp.DataReceived):
            self.received += event.data
        elif isinstance(event, tp.EofReceived):
            self.eof = True
        elif isinstance(event, tp.Disconnected):
            self.eof = self._lost = True
        return []

    def next_timeout(self) -> Deadline | None:
        """None: it never acts by itself."""
        return None


class RequestClient:
    """A request to a machine by way of an HTTP server around it: see ``RequestBegun``. It records
    the answer: ``status``, ``headers``, ``body``, or ``messages`` and ``close`` after an upgrade;
    ``ended``: it is complete; ``cut``: it will never be."""

    def __init__(self, network: Network, machine: tp.Machine, conn: int) -> None:
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.messages: list[bytes] = []
        self.close: tuple[int, str] | None = None
        self.ended = self.cut = False
        self._network, self._machine, self._conn = network, machine, conn

    def send(self, data: bytes) -> None:
        """Send a part of the body."""
        self._network.handle(self._machine, tp.DataReceived(self._conn, data))

    def send_message(self, data: bytes, *, binary: bool = False) -> None:
        """Send a message, after an upgrade."""
        event = tp.WebSocketMessageReceived(self._conn, data, binary)
        self._network.handle(self._machine, event)

    def end(self) -> None:
        """End the body."""
        self._network.handle(self._machine, tp.RequestEnded(self._conn))

    def leave(self) -> None:
        """The client goes away."""
        self._network.handle(self._machine, tp.Disconnected(self._conn))

    def block(self, blocked: bool) -> None:
        """The client reads too slowly, or has caught up."""
        event = tp.WriteBlocked(self._conn) if blocked else tp.WriteUnblocked(self._conn)
        self._network.handle(self._machine, event)

    # ------------------------------------------------------------ for the network

    def take(self, effect: tp.ConnectionEffect) -> None:
        """Record an effect."""
        assert not self.ended, f"{effect} after the end of the answer"
        assert not self.cut, f"{effect} for an answer that is cut"
        network, machine, conn = self._network, self._machine, self._conn
        if isinstance(effect, tp.Respond):
            assert self.status is None, "a second head"
            self.status, self.headers = effect.status, effect.headers
        elif isinstance(effect, tp.Send):
            assert self.status is not None, "a body before the head"
            if self.status == 101:
                self.messages.append(effect.data)
            else:
                self.body += effect.data
            if effect.notify:
                network.at(network.now, lambda: network._report(machine, tp.DataSent(conn)))
        elif isinstance(effect, tp.SendClose):
            self.close = effect.code, effect.reason
        elif isinstance(effect, tp.EndSending | tp.Close):
            self.ended = True
            network.at(network.now, lambda: network._report(machine, tp.Disconnected(conn)))
        elif isinstance(effect, tp.Abort):
            self.cut = True


_Do: TypeAlias = Callable[[], None]
_Ask: TypeAlias = Callable[[Question, Callable[[Answer], None]], None]
_TIMEOUT: Final = tp.TimeoutReached()


class Network:
    """Connections in memory, and a virtual clock (``now``, ns).

    Args:
        split: cuts what is written into the pieces in which it arrives. Without ``conditions``.
        latency: the delay of bytes in either direction, ns. Without ``conditions``.
        conditions: how each connection behaves; by default all are alike and loss-free.
        watcher: is notified of what happens; by default log records are collected in ``logs``.
    """

    def __init__(
        self,
        split: Callable[[bytes], Iterable[bytes]] | None = None,
        *,
        latency: int = 0,
        conditions: Conditions | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.now = NS_PER_SECOND
        self.label = NO_CLIENT  # of the connection whose event is being handled
        self.logs: list[tp.Log] = []
        self.stopped: list[tp.Machine] = []
        self.connects = 0  # by machines
        self.disturbed: dict[int, int] = {}  # label -> ns, until when the effects of a fault last
        self._conditions = _Calm(Direct(split, latency)) if conditions is None else conditions
        self._watcher = watcher
        self._drivers: dict[int, _Driver] = {}  # by ``id`` of the machine
        self._listeners: dict[tuple[str, int], _Driver] = {}
        self._mute: set[tuple[str, int]] = set()
        self._peers: set[tuple[str, int]] = set()  # listeners for other replicas
        # Both are heaps, ordered by time, then by the order of scheduling. Timers are separate: all
        # other consequences of an event are settled before them.
        self._queue: list[tuple[int, int, End | _Do, tp.TransportEvent]] = []
        self._timers: list[tuple[int, int, _Driver]] = []
        self._serial = 0
        self._running = False

    # ------------------------------------------------------------ setting up a world

    def add(
        self,
        machine: tp.Machine,
        host: str = "",
        port: int = 0,
        *,
        label: int = NO_CLIENT,
        window: int = WINDOW,
        after: Callable[[], None] | None = None,
        store: _Ask | None = None,
    ) -> None:
        """Drive ``machine``; with a ``port``, it listens there.

        ``label`` and ``window`` (bytes) are those of the connections that it opens; ``after`` is
        called each time it has handled an event; ``store`` is asked its questions, and calls its
        second argument with the answer. Only the first call for a machine sets them. A machine with
        a store is reported ``Started``.
        """
        driver = self._drivers.get(id(machine))
        fresh = driver is None
        if driver is None:
            driver = _Driver(machine, label, window, after, store=store)
            self._drivers[id(machine)] = driver
            if self._watcher is not None:
                self._watcher.added(machine, label)
        if port:
            self._listeners[host, port] = driver
        self._set_timer(driver)
        if fresh and store is not None:
            self.handle(machine, tp.Started())

    def listen_for_peers(self, machine: tp.Machine, host: str, port: int) -> None:
        """Let ``machine`` listen at that address for other replicas, too."""
        self._listeners[host, port] = self._drivers[id(machine)]
        self._peers.add((host, port))

    def remove(self, machine: tp.Machine) -> None:
        """Kill ``machine``, as by SIGKILL: its connections are reset, and it handles nothing more.
        Answers to its questions are dropped."""
        driver = self._drivers.pop(id(machine))
        for place in [key for key, found in self._listeners.items() if found is driver]:
            del self._listeners[place]
        for end in list(driver.ends.values()):
            self._on_connection(end, tp.Abort(end.conn))
        driver.timer = None
        self._settle()

    def remove_listener(self, host: str, port: int) -> None:
        """Refuse connects to that address from now on."""
        del self._listeners[host, port]

    def swallow_connects(self, host: str, port: int) -> None:
        """Leave connects to that address unanswered from now on."""
        self._mute.add((host, port))

    def limit(self, machine: tp.Machine, count: int) -> None:
        """Let ``machine`` have at most ``count`` connections at a time, as with RLIMIT_NOFILE."""
        self._drivers[id(machine)].limit = count

    def connect(self, host: str, port: int) -> ByteClient:
        """A client connected to the machine that listens at that address.

        Raises:
            ConnectionRefusedError: no machine listens there.
        """
        if (host, port) not in self._listeners:
            raise ConnectionRefusedError(f"no machine listens on {host}:{port}")
        client = ByteClient(self)
        self.label = NO_CLIENT
        end = self._open(_Driver(client), 0, (host, port))
        client.attach(end)
        if end.path.latency:
            self.advance(2 * end.path.latency)
        self._settle()
        return client

    def request(
        self,
        machine: tp.Machine,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        scope: str | None = None,
        messages: bool = False,
    ) -> RequestClient:
        """Begin a request to ``machine`` by way of an HTTP server around it; ``messages``: it can
        carry them after an upgrade."""
        conn = machine.new_connection()
        client = RequestClient(self, machine, conn)
        self._drivers[id(machine)].requests[conn] = client
        begun = tp.RequestBegun(conn, method, target, [*headers], scope, messages)
        self.handle(machine, begun)
        return client

    def _report(self, machine: tp.Machine, event: tp.TransportEvent) -> None:
        driver = self._drivers.get(id(machine))
        if driver is not None:
            self._handle(driver, event, NO_CLIENT)

    def handle(self, machine: tp.Machine, event: tp.TransportEvent) -> None:
        """Let ``machine`` handle an event that belongs to no connection; settle what follows."""
        self._handle(self._drivers[id(machine)], event, NO_CLIENT)
        self._settle()

    def carry_out(self, machine: tp.Machine, effects: Iterable[tp.TransportEffect]) -> None:
        """Carry out effects of ``machine`` as if it had just returned them; settle what follows."""
        driver = self._drivers[id(machine)]
        for effect in effects:
            self._carry_out(driver, effect)
        self._settle()

    def act(self, end: End, effect: _OnConnection) -> None:
        """Carry out effects of the owner of ``end``; settle what follows."""
        self._on_connection(end, effect)
        self._settle()

    def open_connections(self, machine: tp.Machine) -> int:
        """The number of connections of ``machine``."""
        return len(self._drivers[id(machine)].ends)

    def ends(self, machine: tp.Machine, label: int | None = None) -> list[End]:
        """The ends that ``machine`` has, of ``label`` if it is given, the oldest first."""
        found = self._drivers[id(machine)].ends.values()
        return [end for end in found if label is None or end.label == label]

    def accepted(self, machine: tp.Machine, ordinal: int) -> End:
        """The ``ordinal``-th connection (from 1) that ``machine`` accepted, ended ones included."""
        return self._drivers[id(machine)].accepted[ordinal - 1]

    # ------------------------------------------------------------ time

    def at(self, when: int, do: _Do) -> None:
        """Call ``do`` at ``when`` (ns)."""
        self._push(when, do)

    def advance(self, duration: int) -> None:
        """Let ``duration`` ns pass, and handle all that is due on the way.

        Raises:
            MachineError: a deadline is still due after it was handled.
        """
        until = self.now + duration
        for driver in self._drivers.values():
            self._set_timer(driver)  # tests change the state of machines directly
        self.run(until)
        self.now = until

    def run(self, until: int, stop: Callable[[], bool] | None = None) -> None:
        """Let time pass to ``until`` (ns), or until ``stop()`` or until nothing is scheduled. The
        clock then shows the time of the latest event.

        Raises:
            MachineError: a deadline is still due after it was handled.
        """
        queue, timers = self._queue, self._timers
        self._running = True
        try:
            while queue or timers:
                timed = not queue or bool(timers and timers[0][:2] < queue[0][:2])
                first = timers[0][0] if timed else queue[0][0]
                if first > until or (stop is not None and stop()):
                    break
                if timed:
                    at, _, driver = heapq.heappop(timers)
                    if driver.timer == at:
                        self.now = at
                        driver.timer = None
                        self._due(driver)
                else:
                    self._step()
        finally:
            self._running = False

    def next_deadline(self) -> int | None:
        """The time of the next deadline of any machine, ns."""
        found = [driver.machine.next_timeout() for driver in self._drivers.values()]
        return min((deadline.at for deadline in found if deadline is not None), default=None)

    def _settle(self) -> None:
        """Handle everything that is due now, deadlines excepted."""
        if self._running:
            return
        self._running = True
        try:
            while self._queue and self._queue[0][0] <= self.now:
                self._step()
        finally:
            self._running = False

    def _step(self) -> None:
        at, _, target, event = heapq.heappop(self._queue)
        if not isinstance(target, End):
            self.now = at
            target()
        elif target.open:
            self.now = at
            self._deliver(target, event)

    def _push(self, at: int, target: End | _Do, event: tp.TransportEvent = _TIMEOUT) -> None:
        """Schedule ``event`` for an end, or a call, at ``at`` (ns)."""
        self._serial += 1
        heapq.heappush(self._queue, (at, self._serial, target, event))

    def _set_timer(self, driver: _Driver) -> None:
        deadline = driver.machine.next_timeout()
        if deadline is None:
            driver.timer = None
        elif deadline.at != driver.timer:
            driver.timer = max(deadline.at, self.now)
            self._serial += 1
            heapq.heappush(self._timers, (driver.timer, self._serial, driver))

    def _due(self, driver: _Driver) -> None:
        self._handle(driver, _TIMEOUT, driver.label)
        left = driver.machine.next_timeout()
        if left is not None and left.at <= self.now:
            text = f"{left.reason.value} was handled at {self.now} and is due again"
            raise MachineError(driver.label, text)

    # ------------------------------------------------------------ faults of a connection

    def reset(self, end: End) -> None:
        """Break the connection now: both ends are notified as soon as the reset can reach them."""
        for side, other in ((end, end.peer), (end.peer, end)):
            if side is not None and side.open:
                side.harmed = side.vanishing = True
                self._disturb(side, self.now)
                # What the other side wrote before is on its way, and arrives first.
                at = self.now + side.path.latency
                if other is not None:
                    at = max(at, other.arrival)
                self._push(at, side, tp.Disconnected(side.conn))

    def finish(self, end: End) -> None:
        """The far side of ``end`` closes the connection, without sending anything before."""
        if end.peer is not None and end.peer.open:
            end.harmed = end.peer.harmed = True
            self._disturb(end, self.now)
            self._on_connection(end.peer, tp.Close(end.peer.conn))

    def vanish(self, end: End) -> None:
        """Make the connection half-open: nothing arrives any more, and no end is notified
        for long."""
        for side in (end, end.peer):
            if side is not None and side.open:
                side.harmed = side.vanishing = True
                self._disturb(side, self.now + _TCP_GIVES_UP)
                self._push(self.now + _TCP_GIVES_UP, side, tp.Disconnected(side.conn))

    def stall(self, end: End, until: int) -> None:
        """Let nothing that ``end`` writes arrive before ``until`` (ns)."""
        end.stalled = max(end.stalled, until)
        self._disturb(end, until)

    def cut_after(self, end: End, count: int) -> None:
        """Break the connection when ``end`` has written ``count`` more bytes."""
        end.cut_at = end.sent + count

    def _disturb(self, end: End, until: int) -> None:
        self.disturbed[end.label] = max(self.disturbed.get(end.label, 0), until)

    # ------------------------------------------------------------ events and effects

    def _deliver(self, end: End, event: tp.TransportEvent) -> None:
        driver = end.driver
        if isinstance(event, tp.Disconnected):
            self._forget(end)
            if end in driver.backlog:
                driver.backlog.remove(end)
                return  # its machine was never notified of it
        elif (end.paused or end.held) and isinstance(event, tp.DataReceived | tp.EofReceived):
            end.held.append(event)
            if isinstance(event, tp.DataReceived):
                end.unread += len(event.data)
                peer = end.peer
                if end.unread > end.window and peer is not None and not peer.blocked:
                    peer.blocked = True
                    self._push(self.now, peer, tp.WriteBlocked(peer.conn))
            return
        self._handle(driver, event, end.label)

    def _handle(self, driver: _Driver, event: tp.TransportEvent, label: int) -> None:
        self.label = label
        watcher = self._watcher
        if watcher is not None:
            watcher.handles(driver.machine, event, self)
        try:
            effects = driver.machine.handle(event, self.now)
        except Exception as error:
            if watcher is not None:
                watcher.raised(driver.machine, error, self)
            raise
        for effect in effects:
            self._carry_out(driver, effect)
        self._set_timer(driver)
        if driver.after is not None:
            driver.after()

    def _carry_out(self, driver: _Driver, effect: tp.TransportEffect) -> None:
        if isinstance(effect, tp.Log):
            if self._watcher is None:
                self.logs.append(effect)
            else:
                self._watcher.logged(effect)
        elif isinstance(effect, tp.Connect):
            self.connects += 1
            self._open(driver, effect.conn, (effect.host, effect.port))
        elif isinstance(effect, tp.StopListening):
            for place in [key for key, found in self._listeners.items() if found is driver]:
                del self._listeners[place]
        elif isinstance(effect, tp.Stop):
            self.stopped.append(driver.machine)
        elif isinstance(effect, tp.AskStore):
            self._ask(driver, effect)
        elif (request := driver.requests.get(effect.conn)) is not None:
            request.take(effect)
        elif not isinstance(effect, tp.Respond | tp.SendClose):
            end = driver.ends.get(effect.conn)
            if end is not None:
                self._on_connection(end, effect)

    def _ask(self, driver: _Driver, effect: tp.AskStore) -> None:
        query = effect.query

        def answered(answer: Answer) -> None:
            if self._drivers.get(id(driver.machine)) is driver:
                self._handle(driver, tp.StoreAnswered(query, answer), NO_CLIENT)

        if driver.store is not None:
            driver.store(
                effect.question, lambda answer: self.at(self.now, lambda: answered(answer))
            )

    def _on_connection(self, end: End, effect: _OnConnection) -> None:
        peer = end.peer
        if isinstance(effect, tp.Send):
            if effect.data:
                self._write(end, effect.data)
            if effect.notify:
                self._when_flushed(end, tp.DataSent(end.conn))
        elif isinstance(effect, tp.EndSending):
            self._say(end, tp.EofReceived(peer.conn if peer is not None else 0))
        elif isinstance(effect, tp.Close):
            self._say(end, tp.EofReceived(peer.conn if peer is not None else 0))
            self._when_flushed(end, tp.Disconnected(end.conn))
        elif isinstance(effect, tp.Abort):
            self._forget(end)
            if peer is not None:
                peer.held.clear()
            self._say(end, tp.Disconnected(peer.conn if peer is not None else 0))
        elif isinstance(effect, tp.PauseReading):
            end.paused = True
        elif isinstance(effect, tp.ResumeReading):
            if end.paused:
                end.paused = False
                self._push(self.now, lambda: self._catch_up(end))
        else:
            assert_never(effect)

    # ------------------------------------------------------------ how a connection begins

    def _open(self, driver: _Driver, conn: int, place: tuple[str, int]) -> End:
        """The end of a new connection that the machine of ``driver`` opens."""
        label = driver.label if driver.label != NO_CLIENT else self.label
        path = self._conditions.path(label)
        end = End(driver, conn, label, path, window=driver.window, place=place)
        if driver.full:
            error = tp.ConnectError.LOCAL
            failed = tp.ConnectFailed(conn, error, "too many open files")
            self._push(self.now, end, failed)
            return end
        driver.ends[conn] = end
        fate = self._conditions.connecting(end)
        if fate is not Fate.UNANSWERED and place not in self._mute:
            arrival = self.now + path.latency
            self._push(arrival, lambda: self._arrive(end, place, fate is Fate.REFUSED))
        return end

    def _arrive(self, end: End, place: tuple[str, int], refused: bool) -> None:
        """The connect of ``end`` has reached its destination."""
        if not end.open:
            return
        back = self.now + end.path.latency
        driver = self._listeners.get(place)
        if driver is None or refused:
            # Events for a closed end are dropped, so this end is closed only when notified.
            failed = tp.ConnectFailed(end.conn, tp.ConnectError.REFUSED, "no machine listens")
            self._push(back, end, failed)
            self._push(back, lambda: self._forget(end))
            return
        number = driver.machine.new_connection()
        end.peer = peer = End(driver, number, end.label, end.path, end)
        peer.accepted = tp.Accepted(number, place in self._peers)
        peer.arrival = back
        driver.accepted.append(peer)
        full = driver.full
        if full:
            peer.paused = True
            driver.backlog.append(peer)
        else:
            driver.ends[number] = peer
        self._push(back, end, tp.Connected(end.conn))
        self._conditions.connected(end)
        self._handle(driver, _TOO_MANY if full else peer.accepted, end.label)

    def _admit(self, driver: _Driver) -> None:
        """Accept connections that wait, as many as there is room for."""
        while driver.backlog:
            if driver.full:
                self._handle(driver, _TOO_MANY, NO_CLIENT)
                break
            end = driver.backlog.popleft()
            driver.ends[end.conn] = end
            self._handle(driver, end.accepted, end.label)
            self._on_connection(end, tp.ResumeReading(end.conn))

    # ------------------------------------------------------------ how bytes travel

    def _say(self, end: End, event: tp.TransportEvent) -> None:
        """Schedule ``event`` at the other side, behind all that was written."""
        peer = end.peer
        if peer is not None and peer.open and not end.vanishing:
            end.arrival = max(self.now + end.path.latency, end.arrival, end.stalled)
            self._push(end.arrival, peer, event)

    def _write(self, end: End, data: bytes) -> None:
        peer = end.peer
        if end.label == NO_CLIENT and (label := self._conditions.label_of(data)) is not None:
            end.label = label
            if peer is not None:
                peer.label = label
        if end.vanishing:
            return
        at = self.now + end.path.latency
        if peer is None or not peer.open:
            # It is answered with a reset.
            self._push(at, end, tp.Disconnected(end.conn))
            return
        cut = end.cut_at is not None and end.sent + len(data) >= end.cut_at
        if cut and end.cut_at is not None:
            data = data[: end.cut_at - end.sent]
        end.sent += len(data)
        for late, piece in end.path.pieces(data):
            end.arrival = at = max(at + late, end.arrival, end.stalled)
            if piece:
                self._push(at, peer, tp.DataReceived(peer.conn, piece))
        if cut:
            if self._watcher is not None:
                self._watcher.breaks(end)
            self.reset(end)

    def _when_flushed(self, end: End, event: tp.TransportEvent) -> None:
        """Schedule ``event`` at ``end`` for when everything that it wrote is out."""

        def happen() -> None:
            if end.blocked and not end.vanishing:
                end.waiting.append(event)
            elif end.open:
                self._deliver(end, event)

        if end.blocked and not end.vanishing:
            end.waiting.append(event)
        else:
            # What was just written may block, and is to be delivered first.
            self._push(self.now, happen)

    def _catch_up(self, end: End) -> None:
        """The owner of ``end`` reads what has arrived."""
        while end.held and not end.paused and end.open:
            event = end.held.popleft()
            if isinstance(event, tp.DataReceived):
                end.unread -= len(event.data)
            self._handle(end.driver, event, end.label)
        if end.held:
            return
        sender = end.peer
        if sender is not None and sender.blocked:
            sender.blocked = False
            self._push(self.now, sender, tp.WriteUnblocked(sender.conn))
            for event in sender.waiting:
                self._push(self.now, sender, event)
            sender.waiting.clear()

    def _forget(self, end: End) -> None:
        end.open = False
        driver = end.driver
        if driver.ends.pop(end.conn, None) is not None and driver.backlog:
            self._push(self.now, lambda: self._admit(driver))
        peer = end.peer
        if peer is not None and peer.open and peer.blocked:
            # What the peer still wants to write fails: the connection is closed.
            peer.blocked = False
            self._push(self.now + end.path.latency, peer, tp.Disconnected(peer.conn))


_TOO_MANY: Final = tp.AcceptFailed("too many open files")
