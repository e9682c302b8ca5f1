"""Clients that speak WebSocket mode to the bridge.

What belongs here: upgrades, turns, limits and ends of such connections, over bytes and by way of a
server around the bridge.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from bridgecore.config import Continuity
from bridgecore.errors import LocalProtocolError
from bridgecore.fronts.websocket import MAX_WAITING
from bridgecore.testing import Abort, Fault, Point, SendEvents, Silence
from bridgecore.testing.network import ByteClient, RequestClient
from bridgecore.wire.websocket import (
    CloseReceived,
    MessageReceived,
    Upgraded,
    UpgradeRejected,
    WebSocketClient,
    WebSocketEvent,
)
from tests.endpoint_world import KEY, SECOND, World, request

HEADERS = [(b"authorization", b"Bearer " + KEY.encode())]
CREATE = {"type": "response.create", "model": "m", "input": "hi"}


@attrs.define
class Socket:
    """A client's WebSocket; ``events``: what it has received."""

    client: ByteClient
    ws: WebSocketClient
    events: list[WebSocketEvent] = attrs.Factory(list)

    def send(self, **fields: Any) -> None:
        self.client.send(self.ws.send_text(json.dumps({**CREATE, **fields}).encode()))
        self.read()

    def send_together(self, count: int, **fields: Any) -> None:
        """Send ``count`` messages that are received in one read."""
        message = json.dumps({**CREATE, **fields}).encode()
        self.client.send(b"".join(self.ws.send_text(message) for _ in range(count)))
        self.read()

    def read(self) -> None:
        data = self.client.take()
        if data:
            self.events += self.ws.receive(data)
            if reply := self.ws.data_to_send():
                self.client.send(reply)
                self.read()

    def take(self) -> list[Any]:
        """The messages received since the last call."""
        self.read()
        found = [json.loads(e.data) for e in self.events if isinstance(e, MessageReceived)]
        self.events = [e for e in self.events if not isinstance(e, MessageReceived)]
        return found

    def turn(self, **fields: Any) -> Any:
        """The response of a turn."""
        self.send(**fields)
        *_, last = self.take()
        assert last["type"] == "response.completed"
        return last["response"]

    def closed(self) -> int | None:
        """The code with which the bridge has closed it; None if it has not."""
        self.read()
        return next((e.code for e in self.events if isinstance(e, CloseReceived)), None)


def connect(world: World, *headers: tuple[bytes, bytes], key: str = KEY) -> Socket:
    client = world.client()
    ws = WebSocketClient(
        authority="bridge",
        target="/v1/responses",
        headers=[(b"authorization", b"Bearer " + key.encode()), *headers],
        max_message=1 << 24,
    )
    client.send(ws.connect())
    socket = Socket(client, ws)
    socket.read()
    return socket


def opened(world: World, *headers: tuple[bytes, bytes], key: str = KEY) -> Socket:
    socket = connect(world, *headers, key=key)
    assert isinstance(socket.events[0], Upgraded)
    return socket


def new_world(**settings: Any) -> World:
    return World(websocket=True, **settings)


def types(messages: list[Any]) -> list[str]:
    return [message["type"] for message in messages]


# ------------------------------------------------------------------ upgrades


def test_without_the_setting_an_upgrade_is_answered_with_426() -> None:
    (refused,) = connect(World()).events
    assert isinstance(refused, UpgradeRejected)
    assert refused.status == 426


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ((b"sec-websocket-version", b"8"), 426, "upgrade_required"),
        ((b"sec-websocket-key", b"c2hvcnQ="), 400, "malformed_request"),
        ((b"connection", b"keep-alive"), 400, "malformed_request"),
        ((b"origin", b"https://evil.example"), 403, "origin_not_allowed"),
        ((b"content-length", b"3"), 400, "malformed_request"),
    ],
)
def test_an_upgrade_is_refused(header: tuple[bytes, bytes], status: int, code: str) -> None:
    world = new_world(websocket_origins=("https://chat.example",))
    valid = {
        b"host": b"bridge",
        b"connection": b"Upgrade",
        b"upgrade": b"websocket",
        b"sec-websocket-version": b"13",
        b"sec-websocket-key": b"AAAAAAAAAAAAAAAAAAAAAA==",
    }
    fields = {**valid, header[0]: header[1]}
    lines = b"".join(b"%b: %b\r\n" % field for field in fields.items())
    client = world.client()
    body = b"abc" if header[0] == b"content-length" else b""
    client.send(b"GET /v1/responses HTTP/1.1\r\n" + lines + b"\r\n" + body)
    answer = world.read(client)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_a_page_of_a_listed_origin_may_connect() -> None:
    world = new_world(websocket_origins=("https://Chat.example",))
    opened(world, (b"origin", b"https://chat.example"))


def test_a_request_id_and_no_extension_are_in_the_answer() -> None:
    world = new_world()
    client = world.client()
    fields = [*UPGRADE, (b"host", b"bridge"), (b"sec-websocket-extensions", b"permessage-deflate")]
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    client.send(b"GET /v1/responses HTTP/1.1\r\n" + lines + b"\r\n")
    status, *names = client.take().lower().split(b"\r\n")
    assert status.startswith(b"http/1.1 101 ")
    assert sorted(name.partition(b":")[0] for name in names if name) == [
        b"connection",
        b"sec-websocket-accept",
        b"upgrade",
        b"x-request-id",
    ]


def test_an_upgrade_after_other_requests_on_a_connection_has_ids_of_its_own() -> None:
    """As fetch and WebSocket of Node do it, which share connections."""
    world = new_world()
    client = world.client()
    for _ in range(2):
        client.send(request({"model": "m", "input": "hi"}))
        client.take()
    ws = WebSocketClient(
        authority="bridge", target="/v1/responses", headers=HEADERS, max_message=1 << 24
    )
    client.send(ws.connect())
    socket = Socket(client, ws)
    socket.read()
    socket.turn()
    socket.turn()
    ids = [log.fields["request_id"] for log in world.net.logs if log.event == "turn.completed"]
    assert len(ids) == len(set(ids)) == 4


# ------------------------------------------------------------------ turns


def test_a_conversation_has_each_event_byte_for_byte() -> None:
    world = new_world()
    socket = opened(world)
    socket.send()
    received = [e.data for e in socket.events if isinstance(e, MessageReceived)]
    assert types(socket.take())[0] == "response.created"
    other = World()
    streamed = other.read(other.start(stream=True)).body
    sent = [line[6:] for line in streamed.split(b"\n") if line.startswith(b"data: ")]
    assert received == sent


def test_the_loss_of_an_upstream_connection_is_no_loss_of_the_clients() -> None:
    world = new_world(continuity=Continuity.TRANSCRIPT)
    socket = opened(world)
    first = socket.turn(store=False)
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, Abort()))
    second = socket.turn(store=False, previous_response_id=first["id"])
    for end in world.net.ends(world.emulator):
        world.net.reset(end)
    third = socket.turn(store=False, previous_response_id=second["id"])
    assert third["status"] == "completed"
    assert len(world.emulator.turns[-1].request.context) == 5


def test_a_failed_turn_is_an_error_with_its_status_and_the_next_one_works() -> None:
    world = new_world()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, Abort()))
    socket = opened(world)
    socket.send()
    (error,) = socket.take()
    assert (error["type"], error["status"], error["headers"]) == (
        "error",
        502,
        {"retry-after": "1"},
    )
    assert error["error"]["code"] == "stream_incomplete"
    assert socket.turn()["status"] == "completed"


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (b"{", "invalid_request_body", None),
        (b"[]", "invalid_request_body", None),
        (b'{"model":"m"}', "unknown_message", "type"),
        (b'{"type":7}', "unknown_message", "type"),
        (b'{"type":"response.cancel"}', "unknown_message", "type"),
        (b'{"type":"response.create"}', "invalid_request_body", "model"),
        (
            b'{"type":"response.create","model":"m","stream_id":"a"}',
            "invalid_request_body",
            "stream_id",
        ),
        (
            b'{"model":"m", "stream_\\u0069d":7, "type":"response.create"}',
            "invalid_request_body",
            "stream_id",
        ),
    ],
)
def test_a_message_that_begins_no_turn(message: bytes, code: str, param: str | None) -> None:
    socket = opened(new_world())
    socket.client.send(socket.ws.send_text(message))
    (error,) = socket.take()
    found = error["status"], error["error"]["code"], error["error"]["param"]
    assert found == (400, code, param)
    assert socket.turn()["status"] == "completed"


def test_a_message_may_say_that_it_names_no_lane() -> None:
    assert opened(new_world()).turn(stream_id=None)["status"] == "completed"


def test_turns_of_a_connection_follow_each_other() -> None:
    world = new_world()
    socket = opened(world)
    data = b"".join(socket.ws.send_text(json.dumps(CREATE).encode()) for _ in range(3))
    socket.client.send(data)
    received = types(socket.take())
    assert received.count("response.completed") == 3
    begins = [at for at, kind in enumerate(received) if kind == "response.created"]
    ends = [at for at, kind in enumerate(received) if kind == "response.completed"]
    assert [at + 1 for at in ends[:-1]] == begins[1:]


def test_a_warm_up_has_an_id_that_can_be_continued() -> None:
    world = new_world(continuity=Continuity.TRANSCRIPT)
    socket = opened(world)
    warm = socket.turn(generate=False, store=False)
    assert warm["output"] == []
    socket.turn(previous_response_id=warm["id"], store=False)
    assert len(world.emulator.turns[-1].request.context) == 2


def test_a_response_of_another_credential_is_a_miss() -> None:
    world = new_world(continuity=Continuity.TRANSCRIPT)
    first = opened(world).turn(store=False)
    other = opened(world, key="sk-other")
    other.send(previous_response_id=first["id"], store=False)
    other.send(previous_response_id="resp_unknown", store=False)
    foreign, unknown = other.take()
    text = json.dumps(foreign).replace(first["id"], "resp_unknown")
    assert json.loads(text) == unknown


# ------------------------------------------------------------------ limits


def test_too_many_waiting_messages() -> None:
    world = new_world()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    socket = opened(world)
    for _ in range(MAX_WAITING + 1):
        socket.send()
    assert socket.closed() is None
    socket.send()
    assert socket.closed() == 1008


def test_waiting_messages_that_are_too_large_together() -> None:
    world = new_world(max_body=1000)
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    socket = opened(world)
    for _ in range(2):
        socket.send(input="x" * 600)
    assert socket.closed() is None
    socket.send(input="x" * 600)
    assert socket.closed() == 1008


def test_the_message_that_begins_a_turn_does_not_wait() -> None:
    """Also if all come in one read: how they are divided into reads is chance."""
    world = new_world()
    socket = opened(world)
    for _ in range(2):
        socket.send_together(MAX_WAITING + 1)
        assert types(socket.take()).count("response.completed") == MAX_WAITING + 1
    assert socket.closed() is None
    socket.send_together(MAX_WAITING + 2)
    assert socket.closed() == 1008


def test_the_message_that_begins_a_turn_does_not_count_for_the_size_of_those_that_wait() -> None:
    world = new_world(max_body=1000)
    socket = opened(world)
    socket.send_together(2, input="x" * 600)
    assert types(socket.take()).count("response.completed") == 2
    socket.send_together(3, input="x" * 600)
    assert socket.closed() == 1008


def test_a_connection_is_idle_from_the_end_of_its_turn() -> None:
    world = new_world(websocket_idle=30 * SECOND)
    world.emulator.delta_interval = 5 * SECOND
    socket = opened(world)
    socket.send()
    while "response.completed" not in types(socket.take()):
        world.advance(5)
    for _ in range(2):
        world.advance(14)
        assert socket.closed() is None
    world.advance(3)
    assert socket.closed() == 1001


@pytest.mark.parametrize("together", [1, 3, 201])
def test_too_many_pings(together: int) -> None:
    """However many of them come in one read."""
    socket = opened(new_world())
    for _ in range(201 // together - 1):
        socket.client.send(b"".join(socket.ws.ping() for _ in range(together)))
    assert socket.closed() is None
    socket.client.send(b"".join(socket.ws.ping() for _ in range(together)))
    assert socket.closed() == 1008


def test_after_a_silence_as_many_pings_may_come_at_once() -> None:
    world = new_world(ping_interval=60 * SECOND)
    socket = opened(world)
    for _ in range(3):
        socket.client.send(b"".join(socket.ws.ping() for _ in range(200)))
        assert socket.closed() is None
        world.advance(10)
    socket.client.send(b"".join(socket.ws.ping() for _ in range(201)))
    assert socket.closed() == 1008


def test_too_many_fragments() -> None:
    """Of one message there may be 16,384, which take as much time as many messages."""
    key = bytes(4)
    message = b"\x01\x80" + key + (b"\x00\x80" + key) * 16_000 + b"\x80\x80" + key
    socket = opened(new_world())
    for _ in range(3):
        socket.client.send(message)
    assert socket.closed() is None
    socket.client.send(message)
    assert socket.closed() == 1008


def test_a_large_message_may_have_many_fragments() -> None:
    """6 MB in fragments of 4 KiB, twice."""
    world = new_world()
    socket = opened(world)
    text = json.dumps({**CREATE, "input": "x" * 6_000_000}).encode()
    parts = [text[at : at + 4096] for at in range(0, len(text), 4096)]
    key = bytes(4)
    data = b"".join(
        bytes((first, 0xFE)) + len(part).to_bytes(2, "big") + key + part
        for first, part in zip([1, *[0] * (len(parts) - 2)], parts[:-1], strict=True)
    )
    data += bytes((0x80, 0xFE)) + len(parts[-1]).to_bytes(2, "big") + key + parts[-1]
    for _ in range(2):
        socket.client.send(data)
        assert types(socket.take())[-1] == "response.completed"


def test_a_message_that_is_too_large() -> None:
    socket = opened(new_world(max_body=1000))
    socket.send(input="x" * 1100)
    assert socket.closed() == 1009


def test_an_idle_connection_is_closed() -> None:
    world = new_world(websocket_idle=60 * SECOND)
    socket = opened(world)
    for _ in range(5):
        world.advance(11)
        socket.read()  # it answers pings
    assert socket.closed() is None
    world.advance(5)
    assert socket.closed() == 1001


def test_a_connection_past_its_lifetime_is_closed_after_its_turn() -> None:
    world = new_world(websocket_lifetime=30 * SECOND)
    world.emulator.delta_interval = 10 * SECOND
    socket = opened(world)
    world.advance(10)
    socket.send()
    for _ in range(10):
        world.advance(10)
        socket.read()
    assert types(socket.take())[-1] == "response.completed"
    assert socket.closed() == 1001


def test_a_client_that_answers_no_ping_is_given_up() -> None:
    world = new_world()
    socket = opened(world)
    world.advance(41)
    assert socket.client.eof
    assert world.endpoint.clients <= 1
    world.advance(2)
    assert world.endpoint.clients == 0


# ------------------------------------------------------------------ ends


def test_a_client_that_closes_ends_its_turn() -> None:
    world = new_world()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    socket = opened(world)
    socket.send()
    assert world.endpoint.bridge.turns == 1
    socket.client.send(socket.ws.close(1000))
    world.advance(2)
    assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0)


def test_a_drain_lets_the_turn_end_and_closes_with_1012() -> None:
    world = new_world()
    world.emulator.delta_interval = SECOND
    idle, busy = opened(world), opened(world)
    busy.send()
    world.drain()
    busy.send()
    world.advance(20)
    received = types(busy.take())
    assert received[-2:] == ["response.completed", "error"]
    for socket in (idle, busy):
        assert socket.closed() == 1012
        socket.client.half_close()
    assert world.net.stopped == [world.endpoint]


def test_a_drain_closes_an_idle_connection_at_once() -> None:
    """Other turns may take long: its client connects again meanwhile."""
    world = new_world()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    idle, busy = opened(world), opened(world)
    busy.send()
    around_it = around(world)
    world.drain()
    assert (idle.closed(), busy.closed()) == (1012, None)
    assert around_it.close == (1012, "the server is restarting")


def test_at_the_end_of_the_last_turn_of_a_drain_each_message_that_waits_is_refused() -> None:
    world = new_world()
    world.emulator.delta_interval = SECOND
    socket = opened(world)
    for _ in range(3):
        socket.send()
    world.drain()
    world.advance(20)
    received = socket.take()
    assert types(received)[-3:] == ["response.completed", "error", "error"]
    assert {message["error"]["code"] for message in received[-2:]} == {"server_shutting_down"}
    assert socket.closed() == 1012


def test_at_the_deadline_of_a_drain_a_hung_turn_fails() -> None:
    world = new_world()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    socket = opened(world)
    socket.send()
    world.drain()
    for _ in range(3):
        world.advance(10)
        socket.read()
    assert types(socket.take())[-1] == "response.failed"
    assert socket.closed() == 1012


def test_a_failed_response_without_a_code_gets_one() -> None:
    world = new_world()
    end = b'{"type":"response.failed","response":{"id":"r","error":null}}'
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, SendEvents((end,))))
    socket = opened(world)
    socket.send()
    last = socket.take()[-1]
    assert (last["type"], last["response"]["id"]) == ("response.failed", "r")
    assert last["response"]["error"]["code"] == "upstream_error"
    assert last["response"]["error"]["message"]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_input_can_be_split_anywhere(size: int) -> None:
    world = new_world(split=lambda data: [data[i : i + size] for i in range(0, len(data), size)])
    assert opened(world).turn()["status"] == "completed"


def test_a_connection_that_is_cut_at_any_byte_leaves_nothing() -> None:
    world = new_world()
    whole = WebSocketClient(
        authority="bridge", target="/v1/responses", headers=HEADERS, max_message=1 << 20
    )
    upgrade = whole.connect()
    client = world.client()
    client.send(upgrade)
    whole.receive(client.take())
    frame = whole.send_text(json.dumps(CREATE).encode()) + whole.close(1000)
    client.abort()
    for at in range(len(upgrade) + len(frame) + 1):
        client = world.client()
        client.send(upgrade[:at])
        if at > len(upgrade):
            client.send(frame[: at - len(upgrade)])
        client.abort()
        assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0), at


# ------------------------------------------------------------------ by a server around the bridge

UPGRADE = [
    *HEADERS,
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
]


def around(world: World, *, messages: bool = True) -> RequestClient:
    client = world.net.request(
        world.endpoint, b"GET", b"/v1/responses", UPGRADE, scope="tenant", messages=messages
    )
    client.end()
    return client


def test_messages_of_a_server_around_the_bridge() -> None:
    world = new_world()
    client = around(world)
    assert client.status == 101
    for _ in range(2):
        client.send_message(json.dumps(CREATE).encode())
    received = types([json.loads(message) for message in client.messages])
    assert received.count("response.completed") == 2
    world.drain()
    assert (client.close, client.ended) == ((1012, "the server is restarting"), True)
    assert world.net.stopped == [world.endpoint]


@pytest.mark.parametrize(
    ("data", "binary", "close"),
    [
        (json.dumps(CREATE).encode(), True, (1003, "binary messages are not understood")),
        (b"", True, (1003, "binary messages are not understood")),
        (b" " * 1065, False, (1009, "a message is larger than 1064 bytes")),
    ],
)
def test_messages_for_which_a_server_around_the_bridge_has_to_close(
    data: bytes, binary: bool, close: tuple[int, str]
) -> None:
    client = around(new_world(max_body=1000))
    client.send_message(data, binary=binary)
    assert (client.close, client.ended, client.messages) == (close, True, [])


def test_an_empty_message_by_way_of_a_server_around_the_bridge_is_answered() -> None:
    client = around(new_world())
    client.send_message(b"")
    (error,) = (json.loads(message) for message in client.messages)
    assert (error["status"], error["error"]["code"]) == (400, "invalid_request_body")


def test_after_an_upgrade_a_server_around_the_bridge_reports_messages_only() -> None:
    world = new_world()
    client = around(world)
    with pytest.raises(LocalProtocolError, match="WebSocketMessageReceived"):
        client.send(b"x")
    client.send_message(json.dumps(CREATE).encode())
    assert client.messages


def test_a_message_that_crosses_with_the_refusal_of_its_upgrade_is_ignored() -> None:
    world = World()
    client = world.net.request(
        world.endpoint, b"GET", b"/v1/responses", UPGRADE, scope="tenant", messages=True
    )
    client.send_message(b"{}")
    client.end()
    assert client.status == 426


def test_without_the_setting_a_server_around_the_bridge_gets_the_refusal() -> None:
    client = around(World())
    assert (client.status, client.ended) == (426, True)


def test_a_server_around_the_bridge_that_cannot_carry_messages_gets_the_same_refusal() -> None:
    refused = around(World())
    client = around(new_world(), messages=False)
    assert (client.status, client.ended) == (426, True)
    assert (client.headers, client.body) == (refused.headers, refused.body)


def test_a_client_of_a_server_around_the_bridge_that_leaves_ends_its_turn() -> None:
    world = new_world()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    client = around(world)
    client.send_message(json.dumps(CREATE).encode())
    assert world.endpoint.bridge.turns == 1
    client.leave()
    assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0)
