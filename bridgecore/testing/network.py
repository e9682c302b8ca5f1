"""Machines, clients and time in one process, without a socket.

What belongs here: a ``Network`` connects machines (``Endpoint``, ``Emulator``) and plain byte
clients by loss-free in-memory connections in virtual time. It does what an adapter does, so a test
can look at every byte and stop the clock between any two of them. What it models of real sockets:

* a receiver that does not read: up to ``WINDOW`` bytes are with the operating system, then the
  sender's writing is blocked, its marks (``DataSent``) and the end of a ``Close`` wait;
* an orderly close is an end of stream for the peer, who learns that the connection is gone only
  when it writes; a reset is known at once, and destroys what was not read;
* a process that may open no more sockets (``limit``): its connects fail, and who connects to it
  waits to be accepted until one of its connections has ended;
* with ``split``, what was written in one piece arrives in several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias, assert_never

import attrs

from bridgecore import transport as tp

WINDOW: Final = 65_536  # bytes in flight to a receiver that does not read

_OnConnection: TypeAlias = (
    tp.Send | tp.EndSending | tp.Close | tp.Abort | tp.PauseReading | tp.ResumeReading
)


@attrs.define(eq=False)
class _End:
    """One end of a connection: a machine's, or a ``ByteClient``'s (then ``conn`` is 0)."""

    owner: tp.Machine | ByteClient
    conn: int
    peer: _End | None = None
    open: bool = True
    paused: bool = False
    held: deque[tp.TransportEvent] = attrs.Factory(deque)  # what came while reading was paused
    unread: int = 0  # bytes of ``held``
    waiting: list[tp.TransportEvent] = attrs.Factory(list)  # the owner's, once its data is out
    blocked: bool = False  # the owner was told that its writing is


class ByteClient:
    """A client made of bytes: what it received is in ``received``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.received = bytearray()
        self.eof = False  # the other side will send no more
        self.closed = False  # the connection is gone
        self._end: _End | None = None

    def send(self, data: bytes) -> None:
        """Send ``data`` and let everything happen that follows from it now."""
        self._network.transmit(self._require(), tp.DataReceived(0, data))

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._network.transmit(self._require(), tp.EofReceived(0))

    def abort(self) -> None:
        """Go without a word: a reset."""
        self._network.drop(self._require())

    def pause(self) -> None:
        """Stop reading."""
        self._require().paused = True

    def resume(self) -> None:
        """Read what has come, and go on reading."""
        self._network.resume(self._require())

    def take(self) -> bytes:
        """What came since the last call."""
        data = bytes(self.received)
        self.received.clear()
        return data

    def attach(self, end: _End) -> None:
        """For the network: the end of the connection that is this client's."""
        self._end = end

    def _require(self) -> _End:
        if self._end is None:
            raise ConnectionError("the client is not connected")
        return self._end


class Network:
    """Virtual wires and a virtual clock (``now``, ns). Deterministic: first come, first served.

    ``split`` cuts what is written into the pieces in which it arrives.
    """

    def __init__(self, split: Callable[[bytes], Iterable[bytes]] | None = None) -> None:
        self.now = 1_000_000_000
        self.logs: list[tp.Log] = []
        self.stopped: list[tp.Machine] = []
        self.connects = 0  # that machines asked for
        self._split = split
        self._machines: list[tp.Machine] = []
        self._listeners: dict[tuple[str, int], tp.Machine] = {}
        self._mute: set[tuple[str, int]] = set()
        self._ends: dict[tuple[int, int], _End] = {}
        self._limits: dict[int, int] = {}  # of machines, by their id
        self._unaccepted: list[_End] = []  # machines' ends, held back until there is room
        self._queue: deque[tuple[_End, tp.TransportEvent, bool]] = deque()
        self._running = False

    def add(self, machine: tp.Machine, host: str = "", port: int = 0) -> None:
        """Drive ``machine``; with a ``port``, it listens there."""
        if machine not in self._machines:
            self._machines.append(machine)
        if port:
            self._listeners[host, port] = machine

    def remove_listener(self, host: str, port: int) -> None:
        """Nobody listens there any more: connects are refused."""
        del self._listeners[host, port]

    def swallow_connects(self, host: str, port: int) -> None:
        """Connects there are neither refused nor answered."""
        self._mute.add((host, port))

    def limit(self, machine: tp.Machine, count: int) -> None:
        """Let ``machine`` have at most ``count`` connections at a time, as if by RLIMIT_NOFILE."""
        self._limits[id(machine)] = count

    def connect(self, host: str, port: int) -> ByteClient:
        """A client connected to the machine that listens there.

        Raises:
            ConnectionRefusedError: nobody listens there.
        """
        client = ByteClient(self)
        end = _End(client, 0)
        client.attach(end)
        if not self._accept(end, host, port):
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        self._run()
        return client

    def handle(self, machine: tp.Machine, event: tp.TransportEvent) -> None:
        """Let ``machine`` handle an event that is not of a connection, and what follows."""
        self._carry_out(machine, machine.handle(event, self.now))
        self._run()

    def open_connections(self, machine: tp.Machine) -> int:
        """How many connections ``machine`` has."""
        return sum(1 for end in self._ends.values() if end.owner is machine)

    def advance(self, duration: int) -> None:
        """Let ``duration`` ns pass, and every deadline on the way.

        Raises:
            AssertionError: after a deadline was handled it is still due (invariant 29).
        """
        until = self.now + duration
        while (first := self._next_timeout()) is not None and first[0] <= until:
            machine = first[1]
            self.now = max(self.now, first[0])
            self._carry_out(machine, machine.handle(tp.TimeoutReached(), self.now))
            left = machine.next_timeout()
            if left is not None and left.at <= self.now:
                raise AssertionError(f"{left.reason} was handled at {self.now} and is due again")
            self._run()
        self.now = until

    def next_deadline(self) -> int | None:
        """When the next deadline of any machine is, ns."""
        first = self._next_timeout()
        return None if first is None else first[0]

    # ------------------------------------------------------------ wires

    def transmit(self, end: _End, event: tp.TransportEvent) -> None:
        """Let ``event`` happen at the other side of ``end``."""
        if end.open and end.peer is not None:
            if isinstance(event, tp.DataReceived):
                self._write(end, event.data)
            else:
                self._post(end.peer, event)
            self._run()

    def drop(self, end: _End) -> None:
        """End the connection: the other side sees it lost."""
        self._forget(end)
        self._reset(end.peer)
        self._run()

    def resume(self, end: _End) -> None:
        """Let the owner of ``end`` read again, what was held back first."""
        end.paused = False
        self._queue.extendleft((end, event, False) for event in reversed(end.held))
        end.held.clear()
        end.unread = 0
        if end.peer is not None:
            self._flushed(end.peer)
        self._run()

    def _post(self, end: _End, event: tp.TransportEvent, *, when_flushed: bool = False) -> None:
        """Let ``event`` happen at ``end``; ``when_flushed``: once all that it wrote is out."""
        self._queue.append((end, event, when_flushed))

    def _reset(self, peer: _End | None) -> None:
        if peer is not None and peer in self._unaccepted:
            peer.open = False  # its machine has never heard of it
        elif peer is not None and peer.open:
            peer.paused = False
            peer.held.clear()
            self._post(peer, tp.Disconnected(peer.conn))

    def _write(self, end: _End, data: bytes) -> None:
        peer = end.peer
        if peer is None or not peer.open:
            self._post(end, tp.Disconnected(end.conn))
            return
        for piece in [data] if self._split is None else self._split(data):
            self._post(peer, tp.DataReceived(peer.conn, piece))

    def _hold(self, end: _End, event: tp.TransportEvent) -> None:
        """``end`` does not read: keep what came, and block its peer when it is too much."""
        end.held.append(event)
        if isinstance(event, tp.DataReceived):
            end.unread += len(event.data)
        peer = end.peer
        if peer is not None and end.unread > WINDOW and not peer.blocked:
            peer.blocked = True
            self._post(peer, tp.WriteBlocked(peer.conn))

    def _flushed(self, end: _End) -> None:
        """Everything that ``end`` wrote is out."""
        if end.blocked:
            end.blocked = False
            self._post(end, tp.WriteUnblocked(end.conn))
        for event in end.waiting:
            self._post(end, event)
        end.waiting.clear()

    def _forget(self, end: _End) -> None:
        end.open = False
        if self._ends.pop((id(end.owner), end.conn), None) is not None:
            for one in [one for one in self._unaccepted if one.owner is end.owner]:
                if not self._let_in(one):
                    break
                self._unaccepted.remove(one)

    def _is_full(self, machine: tp.Machine | ByteClient) -> bool:
        limit = self._limits.get(id(machine))
        return limit is not None and sum(key[0] == id(machine) for key in self._ends) >= limit

    def _next_timeout(self) -> tuple[int, tp.Machine] | None:
        due = [
            (deadline.at, index)
            for index, machine in enumerate(self._machines)
            if (deadline := machine.next_timeout()) is not None
        ]
        if not due:
            return None
        at, index = min(due)
        return at, self._machines[index]

    def _accept(self, client: _End, host: str, port: int) -> bool:
        machine = self._listeners.get((host, port))
        if machine is None:
            return False
        end = _End(machine, machine.new_connection(), client, paused=True)
        client.peer = end
        if not self._let_in(end):
            self._unaccepted.append(end)
        return True

    def _let_in(self, end: _End) -> bool:
        """Have the connection accepted, or have its machine told that it cannot be."""
        if not end.open:
            return True  # whoever connected has gone
        if self._is_full(end.owner):
            self._post(_End(end.owner, 0), tp.AcceptFailed("too many open files"))
            return False
        end.paused = False
        self._ends[id(end.owner), end.conn] = end
        self._post(end, tp.Accepted(end.conn))
        for event in end.held:
            self._post(end, event)
        end.held.clear()
        end.unread = 0
        if end.peer is not None:
            self._flushed(end.peer)
        return True

    # ------------------------------------------------------------ events and effects

    def _run(self) -> None:
        if self._running:
            return
        self._running = True
        try:
            while self._queue:
                end, event, when_flushed = self._queue.popleft()
                of_peer = isinstance(event, tp.DataReceived | tp.EofReceived)
                if end.paused and (of_peer or isinstance(end.owner, ByteClient)):
                    self._hold(end, event)
                elif end.blocked and when_flushed:
                    end.waiting.append(event)
                elif end.open:
                    self._deliver(end, event)
        finally:
            self._running = False

    def _deliver(self, end: _End, event: tp.TransportEvent) -> None:
        if isinstance(event, tp.Disconnected):
            self._forget(end)
        owner = end.owner
        if isinstance(owner, ByteClient):
            if isinstance(event, tp.DataReceived):
                owner.received += event.data
            elif isinstance(event, tp.EofReceived):
                owner.eof = True
            elif isinstance(event, tp.Disconnected):
                owner.eof = owner.closed = True
            return
        if isinstance(event, tp.EofReceived):
            event = tp.EofReceived(end.conn)
        self._carry_out(owner, owner.handle(event, self.now))

    def _carry_out(self, machine: tp.Machine, effects: list[tp.TransportEffect]) -> None:
        for effect in effects:
            if isinstance(effect, tp.Log):
                self.logs.append(effect)
            elif isinstance(effect, tp.Connect):
                self._connect(machine, effect)
            elif isinstance(effect, tp.StopListening):
                for key in [k for k, m in self._listeners.items() if m is machine]:
                    del self._listeners[key]
            elif isinstance(effect, tp.Stop):
                self.stopped.append(machine)
            else:
                found = self._ends.get((id(machine), effect.conn))
                if found is not None:
                    self._on_connection(found, effect)

    def _connect(self, machine: tp.Machine, effect: tp.Connect) -> None:
        self.connects += 1
        end = _End(machine, effect.conn)
        if self._is_full(machine):
            error = tp.ConnectError.LOCAL
            self._post(end, tp.ConnectFailed(effect.conn, error, "too many open files"))
            return
        self._ends[id(machine), effect.conn] = end
        if (effect.host, effect.port) in self._mute:
            return
        if self._accept(end, effect.host, effect.port):
            self._post(end, tp.Connected(effect.conn))
        else:
            del self._ends[id(machine), effect.conn]
            error = tp.ConnectError.REFUSED
            self._post(end, tp.ConnectFailed(effect.conn, error, "nobody listens"))

    def _on_connection(self, end: _End, effect: _OnConnection) -> None:
        peer = end.peer
        if isinstance(effect, tp.Send):
            if effect.data:
                self._write(end, effect.data)
            if effect.notify:
                self._post(end, tp.DataSent(end.conn), when_flushed=True)
        elif isinstance(effect, tp.EndSending):
            if peer is not None:
                self._post(peer, tp.EofReceived(peer.conn))
        elif isinstance(effect, tp.Close):
            if peer is not None:
                self._post(peer, tp.EofReceived(peer.conn))
                if isinstance(peer.owner, ByteClient):
                    self._post(peer, tp.Disconnected(peer.conn))
            self._post(end, tp.Disconnected(end.conn), when_flushed=True)
        elif isinstance(effect, tp.Abort):
            self._forget(end)
            self._reset(peer)
        elif isinstance(effect, tp.PauseReading):
            end.paused = True
        elif isinstance(effect, tp.ResumeReading):
            if end.paused:
                self.resume(end)
        else:
            assert_never(effect)
