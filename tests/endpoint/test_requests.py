"""Requests that a server around the bridge has read: answered like those in bytes, without them.

What belongs here: what comes by ``RequestBegun``, from its head to the end of its answer.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from bridgecore import transport as tp
from bridgecore.config import Continuity
from bridgecore.errors import LocalProtocolError
from bridgecore.testing import Abort, Fault, Point, Silence
from bridgecore.testing.network import RequestClient
from tests.endpoint_world import KEY, SECOND, World, request

HEADERS = [(b"authorization", b"Bearer " + KEY.encode()), (b"x-request-id", b"abc")]


def ask(world: World, body: object, **headers: str) -> RequestClient:
    more = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    client = world.net.request(world.endpoint, b"POST", b"/v1/responses", [*HEADERS, *more])
    client.send(body if isinstance(body, bytes) else json.dumps(body).encode())
    client.end()
    return client


def fields(client: RequestClient) -> dict[bytes, bytes]:
    return dict(client.headers)


def error(client: RequestClient) -> Any:
    return json.loads(client.body)["error"]


TURN = {"model": "m", "input": "hi"}


@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_is_that_of_a_connection(stream: bool) -> None:
    world = World()
    client = ask(world, {**TURN, "stream": stream})
    assert (client.status, client.ended, client.cut) == (200, True, False)
    other = World()
    socket = other.client()
    socket.send(request({**TURN, "stream": stream}, headers="x-request-id: abc\r\n"))
    answer = other.read(socket)
    assert bytes(client.body) == answer.body
    assert fields(client).keys() | {b"transfer-encoding"} >= {n.encode() for n in answer.headers}
    assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0)


def test_a_conversation_goes_on_although_its_upstream_connection_is_lost() -> None:
    world = World()
    first = json.loads(ask(world, {**TURN, "store": True}).body)
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Abort()))
    again = {**TURN, "previous_response_id": first["id"], "store": True}
    assert ask(world, again).status == 502
    assert ask(world, again).status == 200


@pytest.mark.parametrize("url", ["ws://up/v1/responses", "http://up/v1"])
def test_white_space_around_a_value_is_no_part_of_it(url: str) -> None:
    """uvicorn with httptools leaves what follows a value."""
    world = World(url=url)
    for value in (b"Bearer k", b"Bearer k \t", b"\tBearer k"):
        headers = [(b"authorization", value), (b"user-agent", b" ")]
        client = world.net.request(world.endpoint, b"POST", b"/v1/responses", headers)
        client.send(json.dumps(TURN).encode())
        client.end()
        assert (client.status, client.ended) == (200, True)
        sent = world.emulator.requests[-1].headers
        assert dict(sent)[b"authorization"] == b"Bearer k"


@pytest.mark.parametrize("url", ["ws://up/v1/responses", "http://up/v1"])
@pytest.mark.parametrize("flaw", [b"k\n", b"k\r\nx: 1", b"\0", b"a\x01b", b"\x7f", b"\x0b"])
def test_a_header_that_cannot_be_sent_is_refused(url: str, flaw: bytes) -> None:
    """Such as a key that was read from a file, with the end of its line. The bridge goes on."""
    world = World(url=url)
    headers = [(b"Authorization", b"Bearer secret" + flaw)]
    for target in (b"/v1/responses", b"/v1/models"):
        client = world.net.request(world.endpoint, b"POST", target, headers)
        client.send(b"{}")
        client.end()
        assert (client.status, client.ended) == (400, True)
        assert error(client)["code"] == "malformed_request"
        assert "authorization" in error(client)["message"]
        assert b"secret" not in client.body
    assert ask(world, TURN).status == 200


@pytest.mark.parametrize(
    "framing",
    [
        [(b"content-length", b"2"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"2"), (b"content-length", b"3")],
        [(b"content-length", b"2, 2")],
        [(b"transfer-encoding", b"gzip, chunked")],
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
def test_a_body_whose_end_could_be_read_in_two_ways(
    method: bytes, framing: list[tuple[bytes, bytes]]
) -> None:
    """Servers take some of these; a proxy before them may have found another end."""
    world = World()
    client = world.net.request(world.endpoint, method, b"/v1/responses", [*HEADERS, *framing])
    assert (client.status, client.ended) == (400, True)
    assert fields(client)[b"connection"] == b"close"
    assert error(client)["code"] == "malformed_request"
    client.send(b"{}")
    client.end()
    assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"/livez", 200),
        (b"HEAD", b"/readyz", 200),
        (b"GET", b"/nowhere?x=1", 404),
        (b"GET", b"/v1/responses", 405),
        (b"POST", b"/v1/responses?x=1", 400),
    ],
)
def test_other_paths(method: bytes, target: bytes, status: int) -> None:
    world = World()
    client = world.net.request(world.endpoint, method, target, HEADERS)
    client.end()
    assert (client.status, client.ended) == (status, True)
    assert bool(client.body) is (method != b"HEAD")
    assert fields(client)[b"x-request-id"] == b"abc"
    assert world.endpoint.clients == 0


def test_a_compressed_body() -> None:
    world = World()
    body = gzip.compress(json.dumps(TURN).encode())
    assert ask(world, body, content_encoding="gzip").status == 200
    client = ask(world, body[:-9], content_encoding="gzip")
    assert (client.status, error(client)["code"]) == (400, "undecodable_body")
    client = ask(world, body, content_encoding="br")
    assert (client.status, fields(client)[b"accept-encoding"]) == (415, b"gzip, deflate, zstd")


@pytest.mark.parametrize("coding", ["gzip", ""])
def test_a_body_that_is_too_large_is_refused_before_it_is_complete(coding: str) -> None:
    world = World(max_body=1000)
    body = b" " * 1001
    headers = [(b"content-encoding", b"gzip")] if coding else []
    client = world.net.request(world.endpoint, b"POST", b"/v1/responses", [*HEADERS, *headers])
    client.send(gzip.compress(body) if coding else body)
    if coding:
        client.end()  # the decoder keeps the last bytes until then
    assert (client.status, error(client)["code"]) == (413, "body_too_large")
    assert client.ended


def test_a_body_that_does_not_come_in_time() -> None:
    world = World()
    client = world.net.request(world.endpoint, b"POST", b"/v1/responses", HEADERS)
    client.send(b"{")
    world.advance(60)
    assert (client.status, error(client)["code"], client.ended) == (408, "request_timeout", True)


def test_the_scope_that_the_program_names_is_the_tenant() -> None:
    world = World()
    body = json.dumps({**TURN, "store": False}).encode()
    found: list[str] = []
    for scope in ("a", "b", "a"):
        client = world.net.request(world.endpoint, b"POST", b"/v1/responses", HEADERS, scope=scope)
        if found:
            anchor = {"previous_response_id": found[0], "store": False}
            body = json.dumps({**TURN, **anchor}).encode()
        client.send(body)
        client.end()
        if client.status == 200:
            found.append(json.loads(client.body)["id"])
        else:
            assert scope == "b"
    assert len(found) == 2


def test_a_client_that_leaves_ends_its_turn() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    client = ask(world, {**TURN, "stream": True})
    assert world.endpoint.bridge.turns == 1
    client.leave()
    assert (world.endpoint.clients, world.endpoint.bridge.turns) == (0, 0)


def test_a_client_that_reads_slowly_stops_the_upstream() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    client = ask(world, {**TURN, "stream": True})
    client.block(True)
    before = len(client.body)
    world.advance(30)
    assert len(client.body) == before  # no event was read, and no keepalive is due
    client.block(False)
    world.advance(30)
    assert client.ended
    assert len(client.body) > before


def test_a_drain_refuses_new_requests_and_ends_running_ones_at_its_deadline() -> None:
    world = World(keepalive=20 * SECOND)
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    running = ask(world, {**TURN, "stream": True})
    world.drain()
    late = ask(world, TURN)
    assert (late.status, error(late)["code"], late.ended) == (503, "server_shutting_down", True)
    ready = world.net.request(world.endpoint, b"GET", b"/readyz", HEADERS)
    assert ready.status == 503
    world.advance(32)
    assert b"response.failed" in running.body
    assert running.ended
    assert world.net.stopped == [world.endpoint]


def test_events_of_no_request_are_refused() -> None:
    world = World()
    with pytest.raises(LocalProtocolError, match="RequestBegun"):
        world.endpoint.handle(tp.RequestBegun(7, b"GET", b"/livez", []), world.net.now)
    with pytest.raises(LocalProtocolError, match="RequestEnded"):
        world.endpoint.handle(tp.RequestEnded(7), world.net.now)


def test_a_request_for_another_path_is_passed_through() -> None:
    world = World()
    response = json.loads(ask(world, {**TURN, "store": True}).body)["id"]
    target = b"/v1/responses/" + response.encode()
    client = world.net.request(world.endpoint, b"GET", target, HEADERS)
    client.end()
    assert (client.status, client.ended) == (200, True)
    assert json.loads(client.body)["id"] == response
    assert world.endpoint.clients == 0


def test_the_body_of_a_request_that_is_passed_through_is_not_collected() -> None:
    world = World(max_body=1000)
    client = world.net.request(world.endpoint, b"POST", b"/v1/responses/input_tokens/x", HEADERS)
    for _ in range(10):
        client.send(b" " * 1000)
    assert world.endpoint.clients == 1
    client.end()
    assert (client.status, client.ended) == (404, True)


def test_the_tenant_of_a_request_that_is_passed_through_is_the_named_one() -> None:
    """A response that it has deleted is known to it no more, and a context that it names is its."""
    world = World(continuity=Continuity.TRANSCRIPT)

    def request(method: bytes, target: bytes, body: object = None) -> RequestClient:
        client = world.net.request(world.endpoint, method, target, HEADERS, scope="tenant")
        if body is not None:
            client.send(json.dumps(body).encode())
        client.end()
        return client

    kept = json.loads(request(b"POST", b"/v1/responses", {**TURN, "store": False}).body)
    counted = {"model": "m", "previous_response_id": kept["id"], "input": "more"}
    assert request(b"POST", b"/v1/responses/input_tokens", counted).status == 200
    stored = json.loads(request(b"POST", b"/v1/responses", {**TURN, "store": True}).body)
    assert request(b"DELETE", b"/v1/responses/" + stored["id"].encode()).status == 200
    again = {**TURN, "previous_response_id": stored["id"], "store": False}
    assert request(b"POST", b"/v1/responses", again).status != 200
