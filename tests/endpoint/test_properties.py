"""Properties of a whole endpoint that hold for any input: splits, faults, garbage.

What belongs here: Hypothesis tests that draw the input or the misbehaviour. Rule-based machines are
in tests/verify/test_machines.py.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore import transport as tp
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.errors import LocalProtocolError
from bridgecore.links import Stage
from bridgecore.testing import (
    Abort,
    CloseWith,
    Error,
    Fault,
    FaultPlan,
    Garbage,
    Point,
    SendEvents,
)
from bridgecore.testing.faults import Action
from bridgecore.testing.network import ByteClient
from bridgecore.testing.strategies import cutters, fault_plans
from tests.endpoint_world import SECOND, World, read_answers, request

ODD = b'{"type":"thing","x":[1,\n2]}'


def conversation(split: Callable[[bytes], Iterable[bytes]] | None) -> list[object]:
    """What a client receives in three turns, one of which fails, and for a malformed request."""
    world = World(split=split, policy="pr397")
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, SendEvents((ODD,))))
    world.emulator.faults.add(2, Fault(Point.AFTER_CREATED, CloseWith(1011)))
    world.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, Error(429, "rate_limit_exceeded")))
    client = world.client()
    seen: list[object] = []
    bodies = [
        {"model": "m", "input": "a", "stream": True},
        {"model": "m", "input": "b", "stream": True},
        {"model": "m", "input": "c", "stream": True},
        {"model": "m", "input": "d"},
        {"input": "e"},
    ]
    data = b"".join(request(body) for body in bodies) + b"GET / HTTP/1.1\nbad"
    pieces = [data] if split is None else split(data)
    for piece in pieces:
        client.send(piece)
    for answer in read_answers(client.take()):
        seen.append((answer.status, answer.headers, answer.body, answer.complete))
    assert client.eof
    client.half_close()
    world.assert_empty()
    return seen


EXPECTED = conversation(None)


def test_the_conversation_shows_something() -> None:
    assert [answer[0] for answer in EXPECTED if isinstance(answer, tuple)] == [
        200, 200, 429, 200, 400, 400,
    ]  # fmt: skip


@settings(max_examples=15)
@given(cutters())
def test_splits_change_nothing(cut: Callable[[bytes], list[bytes]]) -> None:
    assert conversation(cut) == EXPECTED


# ------------------------------------------------------------------ faults

moves = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 15)),
        st.tuples(st.just("wait"), st.sampled_from([0, 1, 5, 14, 16, 61, 301, 1000, 4000])),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("abort"), st.integers(0, 9)),
        st.tuples(st.just("pause"), st.integers(0, 9)),
        st.tuples(st.just("resume"), st.integers(0, 9)),
        st.tuples(st.just("garbage"), st.integers(0, 9)),
    ),
    max_size=15,
)


class Crowd:
    """Clients that retry as their errors say, and keep their histories."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clients: list[tuple[ByteClient, bool]] = []  # and whether it stayed to the end
        self.ids: list[str] = []

    def ask(self, kind: int) -> None:
        body: dict[str, Any] = {"model": "m", "input": "x" * (100_000 if kind == 15 else 3)}
        body["stream"] = bool(kind & 1)
        body["store"] = bool(kind & 2)
        if kind & 12 == 12 and self.ids:
            # The history, repeated, and one more message.
            said = {"role": "user", "content": "xxx"}
            text = {"type": "output_text", "text": "turn 1: xxx", "annotations": []}
            answer = {"type": "message", "role": "assistant", "content": [text]}
            body["input"] = [said, answer, {"role": "user", "content": "more"}]
        elif kind & 4:
            body["previous_response_id"] = self.ids[kind % len(self.ids)] if self.ids else "resp_0"
        client = self.world.client()
        self.clients.append((client, True))
        client.send(request(body))
        self.ids = [self.world.emulator.response_id(n) for n in range(1, 8)]

    def pick(self, number: int, *, stays: bool = True) -> ByteClient | None:
        if not self.clients:
            return None
        number %= len(self.clients)
        client, stayed = self.clients[number]
        self.clients[number] = client, stayed and stays
        return client

    def move(self, what: str, number: int) -> None:
        if what == "ask":
            self.ask(number)
        elif what == "wait":
            self.world.advance(number)
        elif what in ("leave", "abort", "garbage"):
            client = self.pick(number, stays=False)
            if client is None or client.closed:
                return
            if what == "leave":
                client.half_close()
            elif what == "abort":
                client.abort()
            else:
                client.send(b"\xff\n\n")
        elif (client := self.pick(number)) is not None:
            client.pause() if what == "pause" else client.resume()

    def finish(self) -> None:
        """Clients that stayed have whole answers; no client has a part of one without an end."""
        for client, _ in self.clients:
            client.resume()
        self.world.settle()
        for client, stayed in self.clients:
            if not stayed:
                continue
            (answer,) = read_answers(bytes(client.received))
            assert answer.complete
            if answer.headers["content-type"] == "text/event-stream":
                ends = {"response.completed", "response.failed", "response.incomplete"}
                assert [name for name in answer.names if name in ends] == answer.names[-1:]
            else:
                assert answer.json
            if answer.status in (429, 502, 503, 504):
                assert int(answer.headers["retry-after"]) >= 1
        self.world.assert_empty()


@settings(max_examples=120)
@given(
    policy=st.sampled_from(["default", "pr397", "v1_12"]),
    continuity=st.sampled_from(list(Continuity)),
    plan=fault_plans(),
    moves=moves,
    pace=st.sampled_from([0, SECOND]),
    cut=st.none() | cutters(),
)
def test_any_faults(
    policy: str,
    continuity: Continuity,
    plan: FaultPlan,
    moves: list[tuple[str, int]],
    pace: int,
    cut: Callable[[bytes], list[bytes]] | None,
) -> None:
    """Each turn ends once, deadlines move on (the network checks it), nothing is left."""
    world = World(policy=policy, split=cut, continuity=continuity)
    world.emulator.delta_interval = pace
    world.emulator.faults = plan
    crowd = Crowd(world)
    for what, number in moves:
        crowd.move(what, number)
    crowd.finish()


# ------------------------------------------------------------------ garbage


@settings(max_examples=100)
@given(data=st.lists(st.binary(min_size=1, max_size=200), max_size=5), prefix=st.booleans())
def test_garbage_from_a_client(data: list[bytes], prefix: bool) -> None:
    world = World()
    client = world.client()
    if prefix:
        client.send(request({"model": "m"})[:60])
    for piece in data:
        client.send(piece)
    world.assert_empty()
    assert client.closed


@settings(max_examples=100)
@given(data=st.lists(st.binary(min_size=1, max_size=200), max_size=5), upgraded=st.booleans())
def test_garbage_from_an_upstream(data: list[bytes], upgraded: bool) -> None:
    world = World()
    point = Point.BEFORE_CREATED if upgraded else Point.ON_CONNECT
    world.emulator.faults.add(0, Fault(point, Garbage(b"".join(data) or b"\0", raw=True)))
    client = world.start()
    world.advance(100)
    assert world.read(client).complete
    client.half_close()
    world.assert_empty()


def about(conn: int) -> list[tp.TransportEvent]:
    """Every event that can be reported of an open connection."""
    return [
        tp.Connected(conn),
        tp.ConnectFailed(conn, tp.ConnectError.TLS, "x"),
        tp.DataReceived(conn, b"x"),
        tp.WebSocketMessageReceived(conn, b"x"),
        tp.EofReceived(conn),
        tp.Disconnected(conn),
        tp.DataSent(conn),
        tp.WriteBlocked(conn),
        tp.WriteUnblocked(conn),
    ]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 100)), max_size=30))
def test_stray_events(strays: list[tuple[int, int, int]]) -> None:
    """Events of closed connections have no effect; a clock may go backwards."""
    endpoint = Endpoint(Config(upstream=UpstreamUrl.parse("ws://up/")))
    gone = [endpoint.new_connection() for _ in range(2)]
    for conn in gone:
        endpoint.handle(tp.Accepted(conn), 0)
        endpoint.handle(tp.Disconnected(conn), 0)
    for kind, place, now in strays:
        event = [*about(gone[place]), tp.TimeoutReached()][kind]
        assert endpoint.handle(event, now) == []
        assert endpoint.next_timeout() is None


def mistakes(world: World) -> list[Any]:
    """Events that no correct adapter reports, whatever the state of the endpoint is."""
    endpoint = world.endpoint
    found: list[Any] = [
        "foo",
        None,
        tp.DataReceived,
        tp.Abort(1),
        tp.Send(1, b"x"),
        *about(0),
        *about(10**9),
        tp.Accepted(10**9),
        tp.Accepted(True),
        tp.Accepted(1.0),  # type: ignore[arg-type]  # to be refused
        tp.DrainRequested(15),  # type: ignore[arg-type]  # to be refused
    ]
    no_data: list[Any] = [b"", bytearray(b"x"), "x"]
    for conn, client in endpoint._clients.items():
        found += [tp.Accepted(conn), *about(conn)[:2], tp.WebSocketMessageReceived(conn, b"x")]
        found += [tp.DataReceived(conn, data) for data in no_data]
        found += [tp.DataSent(conn)] if client.closing is None else []
    for conn, upstream in endpoint._upstreams.items():
        found.append(tp.Accepted(conn))
        if upstream.stage is Stage.CONNECTING:
            found += [event for event in about(conn)[2:] if not isinstance(event, tp.Disconnected)]
        else:
            found += about(conn)[:2]
            found += [tp.DataReceived(conn, b""), tp.WebSocketMessageReceived(conn, b"x")]
    return found


@settings(max_examples=40)
@given(
    moves=moves,
    plan=fault_plans(),
    continuity=st.sampled_from(list(Continuity)),
    time=st.sampled_from([-1, 1.5, True, None, "0"]),
)
def test_misuse_changes_nothing(
    moves: list[tuple[str, int]], plan: FaultPlan, continuity: Continuity, time: Any
) -> None:
    """Of two worlds with the same history, one also gets invalid events after each move: each
    raises an error, and in the end both have sent the same, byte for byte."""
    worlds = [World(continuity=continuity, decisions=True) for _ in range(2)]
    for world in worlds:
        world.emulator.faults = copy.deepcopy(plan)
    lawful, abused = crowds = [Crowd(world) for world in worlds]
    for what, number in moves:
        for crowd in crowds:
            crowd.move(what, number)
        endpoint, now = abused.world.endpoint, abused.world.net.now
        for mistake in mistakes(abused.world):
            with pytest.raises(LocalProtocolError):
                endpoint.handle(mistake, now)
            with pytest.raises(LocalProtocolError):
                endpoint.handle(tp.TimeoutReached(), time)
        assert endpoint.bridge.snapshot() == lawful.world.endpoint.bridge.snapshot()
        assert endpoint.next_timeout() == lawful.world.endpoint.next_timeout()
    for crowd in crowds:
        crowd.world.settle()
    assert [bytes(client.received) for client, _ in lawful.clients] == [
        bytes(client.received) for client, _ in abused.clients
    ]
    assert lawful.world.net.logs == abused.world.net.logs


def test_a_number_is_accepted_once_and_only_if_it_was_given_out() -> None:
    endpoint = Endpoint(Config(upstream=UpstreamUrl.parse("ws://up/")))
    conn = endpoint.new_connection()
    for event in about(conn):
        with pytest.raises(LocalProtocolError, match="neither accepted nor asked for"):
            endpoint.handle(event, 0)
    endpoint.handle(tp.Accepted(conn), 0)
    endpoint.handle(tp.Disconnected(conn), 0)
    with pytest.raises(LocalProtocolError, match=rf"Accepted\({conn}\)"):
        endpoint.handle(tp.Accepted(conn), 0)
    assert endpoint.clients == 0


def test_nothing_can_be_reported_of_a_connection_before_it_is_up() -> None:
    world = World()
    world.net.swallow_connects("up", 80)
    world.start()
    endpoint, now = world.endpoint, world.net.now
    (conn,) = endpoint._upstreams
    before = endpoint.bridge.snapshot(), endpoint.next_timeout()
    for event in mistakes(world):
        with pytest.raises(LocalProtocolError):
            endpoint.handle(event, now)
    assert (endpoint.bridge.snapshot(), endpoint.next_timeout()) == before
    assert isinstance(endpoint.handle(tp.Connected(conn), now)[0], tp.Send)
    # Before the end of the upgrade nothing that is sent asks for a DataSent, which is for frames.
    with pytest.raises(LocalProtocolError, match="no Send had notify"):
        endpoint.handle(tp.DataSent(conn), now)


def test_the_same_events_have_the_same_effects() -> None:
    logs = []
    for _ in range(2):
        world = World(policy="pr397")
        world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, CloseWith(1001)))
        logs.append((world.ask().body, [repr(log) for log in world.net.logs]))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_retrying_client_gets_through(seed: int) -> None:
    """Liveness: if the upstream recovers, a client that retries as its errors say succeeds."""
    rng = random.Random(seed)
    world = World()
    first = world.ask("a").response["id"]
    actions: list[Action] = [CloseWith(1001), Abort(), Error(500), CloseWith(1012)]
    for nth in range(2, 6):
        world.emulator.faults.add(nth, Fault(Point.BEFORE_CREATED, rng.choice(actions)))
    for _ in range(4):
        answer = world.ask("b", previous_response_id=first)
        assert answer.status == 502
        world.advance(int(answer.headers["retry-after"]))
    assert world.ask("b", previous_response_id=first).text == "turn 2: b"
    world.assert_empty()
