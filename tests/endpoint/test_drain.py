"""Draining of whole endpoints: contract, "Operation".

What belongs here: what becomes of connections and turns from the request to drain to the end.
"""

from __future__ import annotations

import pytest

from bridgecore import transport as tp
from bridgecore.recovery.timers import Timer
from bridgecore.testing import Emulator, Fault, Freeze, Point, Silence, Text
from tests.endpoint_world import SECOND, World, read_answers, request

TURN = {"model": "m", "input": "hi"}


def stopped(world: World) -> bool:
    """Whether ``Stop`` was returned: at most once, and with nothing left."""
    assert world.net.stopped in ([], [world.endpoint])
    if world.net.stopped:
        assert (world.endpoint.clients, world.endpoint.upstreams) == (0, 0)
        assert world.net.open_connections(world.endpoint) == 0
        assert world.endpoint.bridge.turns == 0
        assert world.endpoint.next_timeout() is None
    return bool(world.net.stopped)


def test_idle() -> None:
    world = World()
    world.drain()
    assert stopped(world)
    with pytest.raises(ConnectionRefusedError):
        world.client()


def test_idle_connections_are_closed() -> None:
    world = World()
    kept = world.client()
    kept.send(request(TURN))
    kept.take()
    fresh = world.client()
    partial = world.client()
    partial.send(b"POST /v1/")
    body = world.client()
    body.send(request(TURN)[:-1])
    world.drain()
    for client in (kept, fresh, partial, body):
        assert client.eof
    assert not kept.received
    for client in (partial, body):  # requests that have begun are refused, not ignored
        assert (world.read(client).status, world.read(client).headers["connection"]) == (
            503,
            "close",
        )
    world.advance(2)
    assert stopped(world)


def test_running_turns_finish() -> None:
    world = World()
    idle = world.client()
    streamed, whole = world.client(), world.client()
    world.emulator.delta_interval = SECOND
    streamed.send(request({**TURN, "stream": True}))
    whole.send(request(TURN))
    world.drain()
    world.drain()
    assert not stopped(world)

    ready = world.client()
    ready.send(request(None, method="GET", path="/readyz"))
    assert world.read(ready).status == 503
    assert int(world.read(ready).headers["retry-after"]) >= 1
    live = world.client()
    live.send(request(None, method="GET", path="/livez"))
    assert world.read(live).status == 200
    idle.send(request(TURN))
    answer = world.read(idle)
    assert (answer.status, answer.error["code"]) == (503, "server_shutting_down")
    assert answer.headers["connection"] == "close"

    world.advance(10)
    assert world.read(streamed).text == world.read(whole).text == "turn 1: hi"
    assert streamed.closed
    assert whole.closed
    assert len(world.frames) == 2
    world.advance(2)
    assert stopped(world)


def test_a_turn_whose_body_comes_during_the_drain() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    running = world.start()
    late = world.client()
    late.send(request(TURN)[:-1])
    world.drain()
    late.send(request(TURN)[-1:])
    answer = world.read(late)
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    world.advance(10)
    assert world.read(running).complete
    world.advance(5)
    assert stopped(world)


def test_a_pipelined_turn_is_refused() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    client = world.client()
    client.send(request(TURN) + request(TURN))
    world.drain()
    world.advance(20)
    assert [answer.status for answer in read_answers(client.take())] == [200, 503]
    assert stopped(world)


def test_at_the_deadline_hung_turns_fail() -> None:
    world = World(keepalive=20 * SECOND)
    first = world.ask(store=False).response["id"]
    world.emulator.faults.add(2, Fault(Point.MID_OUTPUT, Silence()))
    world.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, Silence()))
    fields = {"previous_response_id": first, "store": False}
    streamed = world.start("b", **fields)
    silent = world.start("c", stream=False)
    waiting = world.start("d", stream=False, **fields)
    connects = world.net.connects
    world.drain()
    world.advance(29)
    assert not stopped(world)
    deadline = world.endpoint.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.DRAIN
    world.advance(1)
    answer = world.read(streamed)
    assert answer.complete
    assert answer.names[-1] == "response.failed"
    assert answer.response["error"]["code"] == "server_shutting_down"
    for client in (silent, waiting):
        assert world.read(client).status == 503
    assert all(client.eof for client in (streamed, silent, waiting))
    assert world.net.connects == connects
    assert len(world.frames) == 3  # a waiting turn was not started only to be cut off
    world.advance(2)
    assert stopped(world)


def test_a_turn_that_the_drain_cuts_off_is_not_logged_as_one_whose_client_left() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Silence()))
    streamed, silent = world.start("a"), world.start("b", stream=False)
    left = world.start("c", stream=False)
    world.emulator.faults.add(4, Fault(Point.BEFORE_CREATED, Silence()))
    gone = world.start("d")
    gone.abort()
    world.net.handle(world.endpoint, tp.DrainRequested(by="SIGTERM"))
    world.advance(32)
    assert world.read(left).status == 200
    assert stopped(world)
    logs = world.net.logs
    codes = [log.fields["code"] for log in logs if log.event == "turn.cut_off"]
    reported = [world.read(streamed).response["error"]["code"], world.read(silent).error["code"]]
    assert codes == reported[::-1] == ["server_shutting_down"] * 2
    assert [log.fields["turn"] for log in logs if log.event == "turn.abandoned"] == [4]
    (began,) = [log for log in logs if log.event == "drain.started"]
    assert began.fields == {"by": "SIGTERM", "turns": 2, "seconds": "30"}


def test_a_drain_that_is_asked_for_twice_begins_once() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    world.start()
    world.drain()
    world.drain()
    assert [log.fields["by"] for log in world.net.logs if log.event == "drain.started"] == ["-"]


def test_a_slow_reader_has_the_rest_of_the_time() -> None:
    world = World(emulator=Emulator(answer=lambda _: [Text("x" * 1_000_000)]))
    client = world.client()
    client.pause()
    client.send(request(TURN))
    world.drain()
    world.advance(29)
    assert not stopped(world)
    client.resume()
    assert len(world.read(client).text) == 1_000_000
    client.half_close()
    assert stopped(world)


def test_the_end_waits_for_clients_that_may_not_have_read_their_answers() -> None:
    """The end of a process can take its network with it, and what the OS has yet to deliver."""
    world = World()
    early, late = world.client(), world.client()
    early.send(request(TURN))
    world.advance(3)
    late.send(request(TURN))
    world.drain()
    assert early.closed  # it has had the time to read
    assert (late.eof, late.closed) == (True, False)
    assert not stopped(world)
    late.half_close()
    assert (late.eof, late.closed) == (True, True)
    assert stopped(world)


def test_a_client_that_stays_after_its_answer_does_not_hold_up_the_end() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN))
    world.drain()
    assert not stopped(world)
    world.advance(2)
    assert stopped(world)


def test_a_reader_that_never_reads_does_not_hold_up_the_end() -> None:
    world = World(emulator=Emulator(answer=lambda _: [Text("x" * 1_000_000)]))
    client = world.client()
    client.pause()
    client.send(request({**TURN, "stream": True}))
    world.drain()
    world.advance(32)
    assert world.net.stopped == [world.endpoint]
    assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0)


def test_an_upstream_that_does_not_close_back() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, Freeze()))
    world.ask()
    world.drain()
    assert not stopped(world)
    world.advance(2)
    assert stopped(world)


def test_a_connection_that_comes_too_late() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, Freeze()))
    world.ask()
    world.drain()
    conn = world.endpoint.new_connection()
    assert world.endpoint.handle(tp.Accepted(conn), world.net.now) == [tp.Abort(conn)]
    world.advance(2)
    assert stopped(world)
    conn = world.endpoint.new_connection()
    assert world.endpoint.handle(tp.Accepted(conn), world.net.now) == [tp.Abort(conn)]


def test_while_connecting() -> None:
    world = World(connect_timeout=100 * SECOND)
    world.net.swallow_connects("up", 80)
    client = world.start()
    world.drain()
    world.advance(30)
    assert world.read(client).response["error"]["code"] == "server_shutting_down"
    client.half_close()
    assert stopped(world)
