"""Tests of HTTP as an endpoint's clients meet it: contract, "HTTP"."""

from __future__ import annotations

import json

import pytest

from bridgecore.testing import Fault, Point, Silence
from bridgecore.testing.network import ByteClient
from tests.endpoint_world import SECOND, Answer, World, read_answers, request

TURN = {"model": "m", "input": "hi"}


def exchange(data: bytes, world: World | None = None) -> tuple[Answer, ByteClient]:
    """One request; its answer, and the client, which the server may have said goodbye to."""
    client = (world or World()).client()
    client.send(data)
    head = data.startswith(b"HEAD ")
    (answer,) = read_answers(bytes(client.received), heads=[head])
    return answer, client


@pytest.mark.parametrize("path", ["/", "/v1/responses/", "/v1/response", "/livez/", "/v1/models"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path(path: str, method: str) -> None:
    answer, client = exchange(request(None, method=method, path=path))
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/json"
    assert not client.eof


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/responses", "post"),
        ("PUT", "/v1/responses", "post"),
        ("OPTIONS", "/v1/responses", "post"),
        ("POST", "/livez", "get, head"),
        ("DELETE", "/readyz", "get, head"),
    ],
)
def test_method_not_allowed(method: str, path: str, allow: str) -> None:
    answer, client = exchange(request(None, method=method, path=path))
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allow
    assert not client.eof


def test_head_of_responses_has_no_body() -> None:
    answer, client = exchange(request(None, method="HEAD"))
    assert (answer.status, answer.body) == (405, b"")
    assert not client.eof


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez?x=1"])
def test_health(path: str) -> None:
    answer, client = exchange(request(None, method="GET", path=path))
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    client.take()
    client.send(request(None, method="HEAD", path=path))
    (again,) = read_answers(client.take(), heads=[True])
    assert (again.status, again.headers["content-length"]) == (200, str(len(answer.body)))
    assert not client.eof


def test_upgrade_is_sent_to_http() -> None:
    headers = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    answer, _ = exchange(request(None, method="GET", headers=headers))
    assert (answer.status, answer.error["code"]) == (426, "upgrade_required")
    assert answer.headers["allow"] == "post"


@pytest.mark.parametrize("query", ["?", "?a=b", "?api-version=2025-04-01-preview&x=%20"])
def test_query_strings(query: str) -> None:
    answer, _ = exchange(request(TURN, path="/v1/responses" + query))
    assert answer.text == "turn 1: hi"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b"{}",
        b'{"model":null}',
        b'{"model":7}',
        b'{"model":["m"]}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"m","stream":1}',
        b'{"model":"m","store":"no"}',
        b'{"model":"m","previous_response_id":7}',
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","temperature":-Infinity}',
        b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
        b'{"model":"m","input":"\xff"}',
        b'{"model":"m"} trailing',
        b"{'model':'m'}",
    ],
    ids=lambda body: str(body[:40]),
)
def test_bad_bodies(body: bytes) -> None:
    world = World()
    answer, client = exchange(request(body), world)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request_body")
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]
    client.take()
    client.send(request(TURN))  # the connection goes on
    assert read_answers(client.take())[0].text == "turn 1: hi"
    assert len(world.frames) == 1


MALFORMED = {
    "CL with TE": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"transfer-encoding: chunked\r\n\r\n{}",
    "two CL": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"content-length: 2\r\n\r\n{}",
    "TE on 1.0": b"POST /v1/responses HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    "TE gzip": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
    "bare LF": b"GET /livez HTTP/1.1\nhost: x\n\n",
    "obs-fold": b"GET /livez HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "bad Host": b"GET /livez HTTP/1.1\r\nhost: a b\r\n\r\n",
    "bad target": b"GET livez HTTP/1.1\r\nhost: x\r\n\r\n",
    "garbage": b"\x00\x01\x02",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http(data: bytes) -> None:
    world = World()
    other = world.client()
    answer, client = exchange(data, world)
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert answer.headers["connection"] == "close"
    assert client.eof
    other.send(request(TURN))
    assert world.read(other).status == 200
    client.half_close()
    other.half_close()
    world.assert_empty()


def test_large_bodies_and_heads() -> None:
    world = World(max_body=1000)
    answer, client = exchange(request({**TURN, "input": "x" * 2000}), world)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    client.half_close()
    answer, client = exchange(request(TURN, headers=f"x-long: {'x' * 200_000}\r\n"), world)
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert client.eof
    client.half_close()
    world.assert_empty()


def test_a_default_bridge_takes_large_bodies_and_messages() -> None:
    world = World()
    answer = world.ask("x" * 6_000_000, stream=False)
    assert len(answer.text) == len("turn 1: ") + 6_000_000


def test_compressed_bodies_are_refused() -> None:
    answer, _ = exchange(request(b"\x1f\x8b", headers="content-encoding: gzip\r\n"))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")


# ------------------------------------------------------------------ slow clients


def test_slow_head() -> None:
    world = World()
    client = world.client()
    client.send(b"POST /v1/resp")
    for _ in range(9):
        world.advance(1)
        client.send(b"o")
    assert not client.received
    world.advance(1)
    answer = world.read(client)
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert client.eof
    world.advance(5)
    assert world.endpoint.clients == 0
    world.assert_empty()


def test_slow_head_of_a_later_request() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN) + b"POST /v1/resp")
    world.advance(10)
    assert [answer.status for answer in read_answers(client.take())] == [200, 408]
    assert client.eof
    assert not client.closed  # it may still be sending: a reset could destroy the answer
    world.assert_empty()


def test_slow_body() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN)[:-1])
    for _ in range(59):
        world.advance(1)
        assert not client.received
    world.advance(1)
    assert world.read(client).status == 408
    assert client.eof
    assert world.endpoint.bridge.turns == 0
    world.assert_empty()


def test_silent_clients_are_let_go() -> None:
    world = World(client_idle=100 * SECOND)
    fresh, used = world.client(), world.client()
    used.send(request(TURN))
    world.advance(10)
    assert fresh.closed
    assert not fresh.received
    world.advance(89)
    assert not used.eof
    world.advance(1)
    assert used.closed
    world.assert_empty()


def test_a_client_that_goes_on_sending_after_the_refusal() -> None:
    world = World(max_body=1000)
    client = world.client()
    client.send(request({**TURN, "input": "x" * 2000})[:300])
    assert world.read(client).status == 413
    for _ in range(30):
        world.advance(1)
        client.send(b"x" * 100)
        assert not client.closed  # a reset could destroy the answer on its way
    world.advance(2)
    assert client.closed
    world.assert_empty()


def test_a_client_that_sends_for_ever_after_the_refusal() -> None:
    world = World(max_body=1000)
    client = world.client()
    client.send(request({**TURN, "input": "x" * 2000})[:300])
    for _ in range(61):
        world.advance(1)
        client.send(b"x")
    assert client.closed
    world.assert_empty()


# ------------------------------------------------------------------ exchanges in a row


def test_keep_alive() -> None:
    world = World()
    client = world.client()
    previous = None
    for n in range(1, 5):
        client.send(request({**TURN, "previous_response_id": previous, "stream": n % 2 == 0}))
        (answer,) = read_answers(client.take())
        assert answer.text == f"turn {n}: hi"
        previous = answer.response["id"]
    client.half_close()
    world.assert_empty()


def test_pipelining() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    client = world.client()
    parts = [
        request({**TURN, "stream": True}),
        request(None, method="GET", path="/livez"),
        request(b"nonsense"),
        request(TURN),
    ]
    client.send(b"".join(parts))
    assert len(world.frames) == 1
    world.advance(5)
    world.advance(5)
    answers = read_answers(client.take())
    assert [answer.status for answer in answers] == [200, 200, 400, 200]
    assert answers[0].text == answers[3].text == "turn 1: hi"
    client.half_close()
    world.assert_empty()


def test_connection_close() -> None:
    answer, client = exchange(request(TURN, headers="connection: close\r\n"))
    assert answer.status == 200
    assert client.closed


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0(stream: bool) -> None:
    data = request({**TURN, "stream": stream}).replace(b"HTTP/1.1", b"HTTP/1.0")
    answer, client = exchange(data)
    assert "transfer-encoding" not in answer.headers
    assert answer.text == "turn 1: hi"
    assert client.closed


def test_expect_continue() -> None:
    world = World()
    client = world.client()
    data = request(TURN, headers="expect: 100-continue\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert read_answers(client.take())[0].status == 200


def test_expect_is_not_continued_for_a_refusal() -> None:
    data = request(TURN, path="/nowhere", headers="expect: 100-continue\r\n")
    answer, client = exchange(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert answer.status == 404
    assert client.eof


def test_chunked_bodies() -> None:
    payload = json.dumps(TURN).encode()
    head = b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in payload)
    answer, client = exchange(head + chunks + b"0\r\n\r\n")
    assert answer.text == "turn 1: hi"
    assert not client.eof


def test_bytes_after_the_end_are_nobodys() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN, headers="connection: close\r\n") + request(TURN))
    assert world.read(client).status == 200
    assert len(world.frames) == 1


def test_half_closing_before_a_request_is_complete() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN)[:-1])
    client.half_close()
    assert client.closed
    assert not client.received
    world.assert_empty()


def test_a_request_without_a_credential() -> None:
    """It is the upstream's to refuse."""
    world = World()
    world.emulator.tokens = frozenset({"right"})
    client = world.client()
    data = request(TURN).replace(b"authorization: Bearer sk-secret-one\r\n", b"")
    client.send(data)
    assert (world.read(client).status, world.read(client).error["code"]) == (401, "invalid_api_key")


# ------------------------------------------------------------------ several turns at once


def test_many_clients_at_once() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    world.emulator.faults.add(3, Fault(Point.MID_OUTPUT, Silence()))
    clients = [world.start(f"text {n}") for n in range(8)]
    assert world.endpoint.bridge.turns == 8
    world.advance(20)
    for n, client in enumerate(clients):
        answer = world.read(client)
        if n == 2:
            assert not answer.complete
        else:
            assert answer.text == f"turn 1: text {n}"
        client.abort()
    world.assert_empty()
