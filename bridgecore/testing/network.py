"""Machines, clients and time in one process, without a socket.

What belongs here: a ``Network`` connects machines (``Endpoint``, ``Emulator``) and plain byte
clients by loss-free in-memory connections in virtual time. It does what an adapter does, so a test
can look at every byte and stop the clock between any two of them.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

import attrs

from bridgecore.wire import transport as tp


@attrs.define(eq=False)
class _End:
    """One end of a connection: a machine's, or a ``ByteClient``'s (then ``conn`` is 0)."""

    owner: tp.Machine | ByteClient
    conn: int
    peer: _End | None = None
    open: bool = True
    paused: bool = False
    held: deque[tp.TransportEvent] = attrs.Factory(deque)  # what came while reading was paused


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
        """Go without a word."""
        self._network.drop(self._require())

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
    """Virtual wires and a virtual clock (``now``, ns). Deterministic: first come, first served."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.logs: list[tp.Log] = []
        self.stopped: list[tp.Machine] = []
        self._machines: list[tp.Machine] = []
        self._listeners: dict[tuple[str, int], tp.Machine] = {}
        self._ends: dict[tuple[int, int], _End] = {}
        self._queue: deque[tuple[_End, tp.TransportEvent]] = deque()
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

    def connect(self, host: str, port: int) -> ByteClient:
        """A client connected to the machine that listens there."""
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
        """Let ``duration`` ns pass, and every deadline on the way."""
        until = self.now + duration
        while (first := self._next_timeout()) is not None and first[0] <= until:
            self.now = max(self.now, first[0])
            self.handle(first[1], tp.TimeoutReached())
        self.now = until

    def next_deadline(self) -> int | None:
        """When the next deadline of any machine is, ns."""
        first = self._next_timeout()
        return None if first is None else first[0]

    # ------------------------------------------------------------ wires

    def transmit(self, end: _End, event: tp.TransportEvent) -> None:
        """Let ``event`` happen at the other side of ``end``."""
        if end.open and end.peer is not None:
            self._queue.append((end.peer, event))
            self._run()

    def drop(self, end: _End) -> None:
        """End the connection: the other side sees it lost."""
        self._forget(end)
        if end.peer is not None and end.peer.open:
            self._queue.append((end.peer, tp.Disconnected(end.peer.conn)))
            self._run()

    def _forget(self, end: _End) -> None:
        end.open = False
        self._ends.pop((id(end.owner), end.conn), None)

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
        end = _End(machine, machine.new_connection(), client)
        client.peer = end
        self._ends[id(machine), end.conn] = end
        self._queue.append((end, tp.Accepted(end.conn)))
        return True

    def _run(self) -> None:
        if self._running:
            return
        self._running = True
        try:
            while self._queue:
                end, event = self._queue.popleft()
                if end.paused and isinstance(event, tp.DataReceived | tp.EofReceived):
                    end.held.append(event)
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
        if isinstance(event, tp.DataReceived):
            event = tp.DataReceived(end.conn, event.data)
        elif isinstance(event, tp.EofReceived):
            event = tp.EofReceived(end.conn)
        self._carry_out(owner, owner.handle(event, self.now))

    def _carry_out(self, machine: tp.Machine, effects: list[tp.TransportEffect]) -> None:
        for effect in effects:
            if isinstance(effect, tp.Log):
                self.logs.append(effect)
            elif isinstance(effect, tp.Connect):
                end = _End(machine, effect.conn)
                self._ends[id(machine), effect.conn] = end
                event: tp.TransportEvent = tp.Connected(effect.conn)
                if not self._accept(end, effect.host, effect.port):
                    event = tp.ConnectFailed(effect.conn, tp.ConnectError.REFUSED, "refused")
                self._queue.append((end, event))
                if isinstance(event, tp.ConnectFailed):
                    self._ends.pop((id(machine), effect.conn), None)
            elif isinstance(effect, tp.StopListening):
                for key in [k for k, m in self._listeners.items() if m is machine]:
                    del self._listeners[key]
            elif isinstance(effect, tp.Stop):
                self.stopped.append(machine)
            else:
                found = self._ends.get((id(machine), effect.conn))
                if found is not None:
                    self._on_connection(found, effect)

    def _on_connection(
        self,
        end: _End,
        effect: (
            tp.Send | tp.EndSending | tp.Close | tp.Abort | tp.PauseReading | tp.ResumeReading
        ),
    ) -> None:
        peer = end.peer
        if isinstance(effect, tp.Send):
            if peer is not None and effect.data:
                self._queue.append((peer, tp.DataReceived(peer.conn, effect.data)))
            if effect.notify:
                self._queue.append((end, tp.DataSent(end.conn)))
        elif isinstance(effect, tp.EndSending):
            if peer is not None:
                self._queue.append((peer, tp.EofReceived(peer.conn)))
        elif isinstance(effect, tp.Close):
            if peer is not None:
                self._queue.append((peer, tp.EofReceived(peer.conn)))
                self._queue.append((peer, tp.Disconnected(peer.conn)))
            self._queue.append((end, tp.Disconnected(end.conn)))
        elif isinstance(effect, tp.Abort):
            self._forget(end)
            if peer is not None:
                self._queue.append((peer, tp.Disconnected(peer.conn)))
        elif isinstance(effect, tp.PauseReading):
            end.paused = True
        elif isinstance(effect, tp.ResumeReading):
            end.paused = False
            self._queue.extendleft((end, event) for event in reversed(end.held))
            end.held.clear()
        else:
            assert_never(effect)
