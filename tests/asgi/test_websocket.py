"""Clients that speak WebSocket mode, at every door: ``serve`` and ``BridgeApp`` on each server.

What belongs here: what a client of one door may expect of all others. The clients are those of
websockets, on real sockets. The decisions are tested in virtual time, in
``tests/endpoint/test_websocket.py``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs
import pytest
import websockets.exceptions

from bridgecore import NS_PER_SECOND, Config
from bridgecore.fronts.websocket import MAX_WAITING
from bridgecore.testing import Fault, Point, SendEvents, Silence, Text
from bridgecore.transport.sockets import HIGH_WATER, READ_SIZE
from bridgecore_asgi import BridgeApp
from tests.asgi.conftest import SERVERS, config, connect, serving
from tests.conftest import BACKENDS, Backend
from tests.e2e.conftest import TIME_LIMIT, Json, Upstream, ask, eventually, request

CREATE: Json = {"type": "response.create", "model": "m", "input": "hi"}
HUNG = Fault(Point.MID_OUTPUT, Silence())  # a turn that begins and does not end
ENDS = ("response.completed", "response.failed", "error")


@attrs.frozen
class Door:
    """A bridge that takes WebSockets at ``port``; ``drain`` is what a signal does."""

    port: int
    drain: Callable[[], None]


@contextmanager
def listening(backend: Backend, settings: Config) -> Iterator[Door]:
    """The bridge's own listener, on a thread."""
    up: Future[tuple[Door, Callable[[], None]]] = Future()

    async def serve() -> None:
        over, call = backend.event(), backend.caller()
        async with backend.serve(settings) as server:
            door = Door(server.port, lambda: call(server.request_drain))
            up.set_result((door, lambda: call(over.set)))
            await over.wait()

    def run() -> None:
        try:
            backend.run(serve)
        except BaseException as exc:
            if up.done():
                raise
            up.set_exception(exc)

    thread = threading.Thread(target=run, name="bridge")
    thread.start()
    try:
        door, end = up.result(TIME_LIMIT)
        try:
            yield door
        finally:
            end()
    finally:
        thread.join(TIME_LIMIT)


@contextmanager
def opened(kind: str, settings: Config) -> Iterator[Door]:
    if kind in BACKENDS:
        with listening(BACKENDS[kind](), settings) as door:
            yield door
    else:
        bridge = BridgeApp(settings)
        with serving(kind, bridge) as server:
            yield Door(server.port, bridge.request_drain)


@attrs.frozen
class Opens:
    """Opens a door of one kind, with the given settings, for a ``with``."""

    kind: str
    upstream: Upstream

    def __call__(self, **settings: Any) -> AbstractContextManager[Door]:
        return opened(self.kind, config(self.upstream, websocket=True, **settings))


@pytest.fixture(params=[*BACKENDS, *SERVERS])
def door(request: pytest.FixtureRequest, upstream: Upstream) -> Opens:
    """Each kind of door."""
    return Opens(request.param, upstream)


def create(ws: Any, **more: Any) -> None:
    ws.send(json.dumps({**CREATE, **more}))


def received(ws: Any) -> Json:
    message: Json = json.loads(ws.recv(TIME_LIMIT))
    return message


def ended(ws: Any) -> list[Json]:
    """The messages up to the end of a turn."""
    found = [received(ws)]
    while found[-1]["type"] not in ENDS:
        found.append(received(ws))
    return found


def closed(ws: Any) -> int | None:
    """The code with which the server closes the connection, after any messages; None without a
    close frame."""
    try:
        while True:
            ws.recv(TIME_LIMIT)
    except websockets.exceptions.ConnectionClosed as exc:
        return None if exc.rcvd is None else exc.rcvd.code


def works(ws: Any) -> bool:
    create(ws)
    return bool(ended(ws)[-1]["type"] == "response.completed")


# ------------------------------------------------------------------ messages


def test_a_binary_message_ends_the_connection(door: Opens) -> None:
    """It is no text, whatever it contains."""
    with door() as at, connect(at.port) as ws:
        ws.send(json.dumps(CREATE).encode())
        assert closed(ws) == 1003
    with door() as at, connect(at.port) as ws:
        ws.send(b"")
        assert closed(ws) == 1003


@pytest.mark.parametrize(
    "message",
    [
        *("", "{", "[]", '{"type":7}', '{"type":"response.create"}'),
        json.dumps({**CREATE, "stream_id": "lane"}),
    ],
)
def test_a_message_that_begins_no_turn_is_answered(door: Opens, message: str) -> None:
    with door() as at, connect(at.port) as ws:
        ws.send(message)
        error = received(ws)
        assert (error["type"], error["status"]) == ("error", 400)
        assert works(ws)


def test_text_that_is_not_utf_8_ends_the_connection(door: Opens) -> None:
    with door() as at, connect(at.port) as ws:
        ws.send(b"\xff", text=True)
        # Hypercorn has no close frame for it.
        assert closed(ws) == (None if door.kind.startswith("hypercorn") else 1007)


def test_a_message_that_is_too_large_ends_the_connection(door: Opens) -> None:
    """By bytes, not by characters."""
    with door(max_body=1000) as at, connect(at.port) as ws:
        ws.send(json.dumps({**CREATE, "input": "\u00e9" * 600}, ensure_ascii=False))
        assert closed(ws) == 1009


def test_events_are_those_of_the_upstream_byte_for_byte(door: Opens, upstream: Upstream) -> None:
    events = (
        b'{ "type":"response.created","response":{"id":"r"} , "x":[1.0,1e2,"\\ud800 \\u00e9"]}',
        '{"type":"response.new","sequence_number":1,"text":"\u00e9\u2028\U0001f600"}'.encode(),
        b'{"type":"response.completed","response":{"id":"r","output":[]} }',
    )
    upstream.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents(events)))
    with door() as at, connect(at.port) as ws:
        create(ws)
        assert [ws.recv(TIME_LIMIT).encode() for _ in events] == list(events)


# ------------------------------------------------------------------ limits


def test_turns_wait_for_each_other_up_to_a_limit(door: Opens, upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, HUNG)
    with door() as at, connect(at.port) as ws:
        create(ws)
        assert received(ws)["type"] == "response.created"
        for _ in range(MAX_WAITING + 1):
            create(ws)
        assert closed(ws) == 1008
    assert len(upstream.emulator.turns) == 1


def test_too_many_messages_end_the_connection(door: Opens) -> None:
    answers: list[Json] = []

    def flood(ws: Any) -> None:
        while True:
            ws.send("{")
            answers.append(received(ws))

    with door() as at, connect(at.port) as ws:
        with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
            flood(ws)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
    assert len(answers) >= 200
    assert {answer["status"] for answer in answers} == {400}


@pytest.mark.parametrize("limit", ["websocket_idle", "websocket_lifetime"])
def test_an_idle_or_old_connection_is_closed(door: Opens, limit: str) -> None:
    with door(**{limit: NS_PER_SECOND}) as at, connect(at.port) as ws:
        assert works(ws)
        assert closed(ws) == 1001


def test_a_client_that_leaves_ends_its_turn(door: Opens, upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, HUNG)
    with door() as at:
        with connect(at.port) as ws:
            create(ws)
            assert received(ws)["type"] == "response.created"
        eventually(lambda: upstream.emulator.connections == 0)


@pytest.mark.parametrize("kind", list(SERVERS))
def test_a_client_that_reads_slowly_costs_little_memory(kind: str, upstream: Upstream) -> None:
    size = 12 << 20
    upstream.emulator.answer = lambda frame: [Text("x" * size)]
    upstream.emulator.deltas = 2000
    bridge = BridgeApp(config(upstream, websocket=True))
    with serving(kind, bridge) as server, connect(server.port) as ws:
        create(ws)
        (exchange,) = bridge._exchanges
        eventually(lambda: exchange._blocked)
        (turn,) = upstream.emulator.turns
        peak = text = 0
        last = ""
        while last not in ENDS:
            event = received(ws)
            last = event["type"]
            peak = max(peak, exchange._waiting)
            if last == "response.output_text.delta":
                text += len(event["delta"])
            if turn.unsent:  # the terminal event is one large message
                assert exchange._waiting < HIGH_WATER + 8 * READ_SIZE
        assert (last, text) == ("response.completed", size)
        assert peak > HIGH_WATER


# ------------------------------------------------------------------ upgrades


def upgrade(**headers: str) -> bytes:
    fields: Any = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_version": "13",
        "sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    return request("GET", "/v1/responses", **{**fields, **headers})


def test_a_page_of_an_origin_that_is_not_listed_is_refused(door: Opens) -> None:
    with door(websocket_origins=("https://ours.example",)) as at:
        answer = ask(at.port, upgrade(origin="https://theirs.example"))
        assert (answer.status, answer.code) == (403, "origin_not_allowed")


# ------------------------------------------------------------------ drains


def test_a_drain_closes_idle_connections_at_once(door: Opens, upstream: Upstream) -> None:
    """While a turn of another connection runs, until the deadline."""
    upstream.emulator.faults.add(1, HUNG)
    with (
        door(drain_timeout=10 * NS_PER_SECOND) as at,
        connect(at.port) as busy,
        connect(at.port) as idle,
    ):
        create(busy)
        assert received(busy)["type"] == "response.created"
        at.drain()
        assert closed(idle) == 1012
        busy.ping().wait(TIME_LIMIT)  # it is still open
        answer = ask(at.port, upgrade())
        assert (answer.status, answer.code) == (503, "server_shutting_down")


def test_a_drain_lets_a_turn_end_and_refuses_those_that_wait(
    door: Opens, upstream: Upstream
) -> None:
    upstream.emulator.delta_interval = NS_PER_SECOND // 10
    with door() as at, connect(at.port) as ws:
        for _ in range(3):
            create(ws)
        assert received(ws)["type"] == "response.created"
        at.drain()
        assert ended(ws)[-1]["type"] == "response.completed"
        for _ in range(2):
            error = received(ws)
            assert (error["status"], error["error"]["code"]) == (503, "server_shutting_down")
        assert closed(ws) == 1012


def test_a_hung_turn_fails_at_the_deadline_of_a_drain(door: Opens, upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, HUNG)
    with door(drain_timeout=NS_PER_SECOND) as at, connect(at.port) as ws:
        create(ws)
        assert received(ws)["type"] == "response.created"
        at.drain()
        assert ended(ws)[-1]["type"] == "response.failed"
        assert closed(ws) == 1012
