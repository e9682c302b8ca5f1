"""Tests of testing/network.py: connections behave as sockets do; driven by small machines."""

from __future__ import annotations

import attrs
import pytest

from bridgecore import transport as tp
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.testing.network import WINDOW, Direct, End, Fate, Network, Path
from tests.endpoint_world import SECOND, World, request


@attrs.define(eq=False)
class Recorder:
    """A machine that records its events and returns prepared effects."""

    events: list[tp.TransportEvent] = attrs.Factory(list)
    on_accept: list[tp.TransportEffect] = attrs.Factory(list)
    at: int | None = None
    stuck: bool = False
    numbers: int = 0

    def new_connection(self) -> int:
        self.numbers += 1
        return self.numbers

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        self.events.append(event)
        if isinstance(event, tp.TimeoutReached) and not self.stuck:
            self.at = None
        return self.on_accept if isinstance(event, tp.Accepted) else []

    def next_timeout(self) -> Deadline | None:
        return None if self.at is None else Deadline(self.at, Timer.PING)


@attrs.define
class Driver:
    """Carries out effects of a machine when a test says so, apart from any event."""

    network: Network
    machine: Recorder

    def do(self, *effects: tp.TransportEffect) -> None:
        self.network.carry_out(self.machine, effects)


def pair() -> tuple[Network, Recorder, Driver]:
    network, machine = Network(), Recorder()
    network.add(machine, "host", 80)
    return network, machine, Driver(network, machine)


def test_bytes_both_ways() -> None:
    network, machine, driver = pair()
    client = network.connect("host", 80)
    client.send(b"there")
    driver.do(tp.Send(1, b"and "), tp.Send(1, b"back", notify=True))
    client.half_close()
    assert client.take() == b"and back"
    assert client.take() == b""
    assert machine.events == [
        tp.Accepted(1), tp.DataReceived(1, b"there"), tp.DataSent(1), tp.EofReceived(1),
    ]  # fmt: skip
    assert network.open_connections(machine) == 1


def test_a_connect_without_a_listener_is_refused() -> None:
    network, machine, driver = pair()
    with pytest.raises(ConnectionRefusedError):
        network.connect("host", 81)
    driver.do(tp.Connect(7, "host", 81, tls=False))
    network.remove_listener("host", 80)
    driver.do(tp.Connect(8, "host", 80, tls=False))
    refused = [e for e in machine.events if isinstance(e, tp.ConnectFailed)]
    assert [(e.conn, e.error) for e in refused] == [
        (7, tp.ConnectError.REFUSED),
        (8, tp.ConnectError.REFUSED),
    ]
    assert network.open_connections(machine) == 0


def test_machines_connect_and_lose_each_other() -> None:
    network, server, _ = pair()
    client = Recorder()
    network.add(client)
    driver = Driver(network, client)
    driver.do(tp.Connect(5, "host", 80, tls=False))
    driver.do(tp.Send(5, b"hello"))
    Driver(network, server).do(tp.Close(1))
    # An orderly close is an end of stream; only a write shows that the peer has closed.
    assert client.events == [tp.Connected(5), tp.EofReceived(5)]
    assert server.events[-1] == tp.Disconnected(1)
    driver.do(tp.Send(5, b"more"))
    assert client.events[-1] == tp.Disconnected(5)
    assert network.open_connections(client) == network.open_connections(server) == 0


def test_a_connect_that_is_swallowed_and_aborted() -> None:
    network, machine, driver = pair()
    network.swallow_connects("host", 80)
    driver.do(tp.Connect(5, "host", 80, tls=False))
    assert network.open_connections(machine) == 1
    driver.do(tp.Abort(5))
    assert network.open_connections(machine) == 0
    assert machine.events == []


def test_nothing_follows_an_abort() -> None:
    network, machine, driver = pair()
    client = network.connect("host", 80)
    driver.do(tp.Send(1, b"x", notify=True), tp.Abort(1), tp.Send(1, b"y"))
    assert machine.events == [tp.Accepted(1)]
    assert client.closed


def test_a_reset_is_reported_at_once() -> None:
    network, machine, _ = pair()
    client = network.connect("host", 80)
    client.abort()
    assert machine.events[-1] == tp.Disconnected(1)
    client.send(b"nobody")
    assert len(machine.events) == 2


def test_a_paused_machine_reads_later_and_in_order() -> None:
    network, machine, driver = pair()
    client = network.connect("host", 80)
    driver.do(tp.PauseReading(1))
    client.send(b"a")
    client.send(b"b")
    client.half_close()
    assert machine.events == [tp.Accepted(1)]
    driver.do(tp.ResumeReading(1))
    assert machine.events[1:] == [
        tp.DataReceived(1, b"a"), tp.DataReceived(1, b"b"), tp.EofReceived(1),
    ]  # fmt: skip


def test_a_client_that_does_not_read_blocks_its_sender() -> None:
    network, machine, driver = pair()
    client = network.connect("host", 80)
    client.pause()
    driver.do(tp.Send(1, b"x" * WINDOW, notify=True))
    assert machine.events[1:] == [tp.DataSent(1)]
    driver.do(tp.Send(1, b"y"))
    assert machine.events[2:] == [tp.WriteBlocked(1)]
    driver.do(tp.Send(1, b"z", notify=True), tp.Close(1))
    assert machine.events[3:] == []
    client.resume()
    assert machine.events[3:] == [tp.WriteUnblocked(1), tp.DataSent(1), tp.Disconnected(1)]
    assert client.take() == b"x" * WINDOW + b"yz"
    assert client.closed


def test_an_abort_destroys_what_was_not_read() -> None:
    network, _, driver = pair()
    client = network.connect("host", 80)
    client.pause()
    driver.do(tp.Send(1, b"x" * 2 * WINDOW), tp.Close(1))
    driver.do(tp.Abort(1))
    client.resume()
    assert client.closed
    assert client.take() == b""


def test_splits() -> None:
    network = Network(lambda data: [data[:1], data[1:]])
    machine = Recorder(on_accept=[tp.Send(1, b"hello")])
    network.add(machine, "host", 80)
    client = network.connect("host", 80)
    assert client.take() == b"hello"
    client.send(b"there")
    assert machine.events[1:] == [tp.DataReceived(1, b"t"), tp.DataReceived(1, b"here")]


def test_time() -> None:
    network, machine, _ = pair()
    start = network.now
    machine.at = start + 5
    assert network.next_deadline() == start + 5
    network.advance(4)
    assert machine.events == []
    network.advance(4)
    assert machine.events == [tp.TimeoutReached()]
    assert (network.now, network.next_deadline()) == (start + 8, None)


def test_a_deadline_that_stays_is_an_error() -> None:
    network, machine, _ = pair()
    machine.at, machine.stuck = network.now + 5, True
    with pytest.raises(AssertionError, match="due again"):
        network.advance(10)


def test_stop_logs_and_listeners() -> None:
    network, machine, driver = pair()
    log = tp.Log(tp.LogLevel.INFO, "x", {})
    driver.do(log, tp.StopListening(), tp.Stop())
    assert (network.logs, network.stopped) == ([log], [machine])
    with pytest.raises(ConnectionRefusedError):
        network.connect("host", 80)
    network.handle(machine, tp.DrainRequested())
    assert machine.events == [tp.DrainRequested()]


# ------------------------------------------------------------------ latency and harm


@attrs.define(eq=False)
class Rough:
    """Conditions set by the test, and a record of all that a ``Watcher`` is notified of."""

    fates: list[Fate] = attrs.Factory(list)  # of the next connects
    ends: list[End] = attrs.Factory(list)  # that connected
    seen: list[str] = attrs.Factory(list)

    def path(self, label: int) -> Path:
        return Direct(latency=10)

    def connecting(self, end: End) -> Fate:
        return self.fates.pop(0) if self.fates else Fate.ARRIVES

    def connected(self, end: End) -> None:
        self.ends.append(end)

    def label_of(self, data: bytes) -> int | None:
        return 7 if data.startswith(b"for 7") else None

    def added(self, machine: tp.Machine, label: int) -> None:
        self.seen.append("added")

    def handles(self, machine: tp.Machine, event: tp.TransportEvent, network: Network) -> None:
        self.seen.append(type(event).__name__)

    def raised(self, machine: tp.Machine, error: Exception, network: Network) -> None:
        self.seen.append(repr(error))

    def logged(self, log: tp.Log) -> None:
        self.seen.append(log.event)

    def breaks(self, end: End) -> None:
        self.seen.append("breaks")


def rough() -> tuple[Network, Recorder, Recorder, Rough, Driver]:
    """A machine that listens, and one that connects to it."""
    conditions = Rough()
    network = Network(conditions=conditions, watcher=conditions)
    server, client = Recorder(), Recorder()
    network.add(server, "host", 80)
    network.add(client)
    driver = Driver(network, client)
    driver.do(tp.Connect(5, "host", 80, tls=False))
    return network, server, client, conditions, driver


def test_latency() -> None:
    network = Network(latency=1000)
    machine = Recorder(on_accept=[tp.Send(1, b"hello")])
    network.add(machine, "host", 80)
    client = network.connect("host", 80)
    assert client.take() == b"hello"
    client.send(b"there")
    assert machine.events == [tp.Accepted(1)]
    network.advance(999)
    assert machine.events == [tp.Accepted(1)]
    network.advance(1)
    assert machine.events[1:] == [tp.DataReceived(1, b"there")]


def test_a_connection_is_cut_at_a_byte() -> None:
    network, server, client, conditions, driver = rough()
    network.advance(20)
    (end,) = conditions.ends
    network.cut_after(end, 3)
    driver.do(tp.Send(5, b"ab"), tp.Send(5, b"cdef"))
    network.advance(20)
    assert server.events[1:] == [
        tp.DataReceived(1, b"ab"), tp.DataReceived(1, b"c"), tp.Disconnected(1),
    ]  # fmt: skip
    assert client.events[1:] == [tp.Disconnected(5)]
    assert "breaks" in conditions.seen
    assert end.harmed
    assert network.disturbed


def test_a_connection_stalls() -> None:
    network, server, _, conditions, driver = rough()
    network.advance(20)
    network.stall(conditions.ends[0], network.now + 1000)
    driver.do(tp.Send(5, b"late"))
    network.advance(999)
    assert server.events == [tp.Accepted(1)]
    network.advance(1)
    assert server.events[1:] == [tp.DataReceived(1, b"late")]


def test_a_connection_goes_half_open() -> None:
    network, server, client, conditions, driver = rough()
    network.advance(20)
    network.vanish(conditions.ends[0])
    driver.do(tp.Send(5, b"lost", notify=True))
    network.advance(800_000_000_000)
    assert server.events == [tp.Accepted(1)]
    assert client.events == [tp.Connected(5), tp.DataSent(5)]
    network.advance(200_000_000_000)
    assert server.events[1:] == [tp.Disconnected(1)]
    assert client.events[2:] == [tp.Disconnected(5)]


def test_the_far_side_closes() -> None:
    network, server, client, conditions, _ = rough()
    network.advance(20)
    network.finish(conditions.ends[0])
    network.advance(20)
    assert server.events[1:] == [tp.Disconnected(1)]
    assert client.events[1:] == [tp.EofReceived(5)]


def test_connects_that_fail() -> None:
    network, server, client, conditions, driver = rough()
    network.advance(20)
    conditions.fates += [Fate.REFUSED, Fate.UNANSWERED]
    driver.do(tp.Connect(6, "host", 80, tls=False), tp.Connect(7, "host", 80, tls=False))
    network.advance(10_000)
    assert [type(event) for event in client.events] == [tp.Connected, tp.ConnectFailed]
    assert [end.conn for end in network.ends(client)] == [5, 7]
    assert len(server.events) == 1


def test_labels() -> None:
    network, server, _, _, driver = rough()
    patient = Recorder()
    network.add(patient, label=3)
    Driver(network, patient).do(tp.Connect(1, "host", 80, tls=False))
    network.advance(20)
    assert [end.label for end in network.ends(server)] == [-1, 3]
    driver.do(tp.Send(5, b"for 7"))
    assert [end.label for end in network.ends(server)] == [7, 3]
    assert network.accepted(server, 2).label == 3


def test_a_watcher_is_notified_of_exceptions() -> None:
    class Raising(Recorder):
        def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
            raise ValueError("planted")

    conditions = Rough()
    network = Network(conditions=conditions, watcher=conditions)
    machine = Raising()
    network.add(machine)
    with pytest.raises(ValueError, match="planted"):
        network.handle(machine, tp.DrainRequested())
    network.carry_out(machine, [tp.Log(tp.LogLevel.INFO, "x", {})])
    assert conditions.seen == ["added", "DrainRequested", "ValueError('planted')", "x"]


def test_events_come_in_order_of_time() -> None:
    network, machine, _ = pair()
    seen: list[int] = []
    network.at(network.now + 7, lambda: seen.append(network.now))
    machine.at = network.now + 5
    network.run(network.now + 6)
    network.advance(10)
    assert [type(event) for event in machine.events] == [tp.TimeoutReached]
    assert len(seen) == 1


def test_a_client_that_does_not_read_does_not_know_that_its_peer_has_closed() -> None:
    """What it sends then costs it the answer that it has not read."""
    world = World()
    client = world.client()
    sent = request({"model": "m", "input": "x"})
    client.send(sent[:40])
    client.pause()
    assert not client.peer_closed
    world.net.advance(30 * SECOND)  # the rest of the head is awaited no longer: 408
    assert (client.closed, client.peer_closed) == (False, True)
    client.send(sent[40:])
    client.resume()
    assert bytes(client.received) == b""
    assert client.closed
