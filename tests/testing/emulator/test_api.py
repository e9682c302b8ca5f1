"""The emulator over HTTP: which protocol a connection speaks, and what the paths answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridgecore.testing import Emulator
from bridgecore.testing.client import HttpAnswer, read_answers
from bridgecore.testing.network import ByteClient, Network
from bridgecore.wire.websocket import MessageReceived, Upgraded, WebSocketClient


def connected(emulator: Emulator | None = None) -> tuple[Network, ByteClient]:
    net = Network()
    net.add(emulator or Emulator(), "up", 80)
    return net, net.connect("up", 80)


def ask(client: ByteClient, method: str, path: str, body: Any = None) -> HttpAnswer:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: up\r\ncontent-length: {len(data)}\r\n\r\n"
    client.send(head.encode() + data)
    (answer,) = read_answers(client.take(), of_head=[method == "HEAD"])
    return answer


def test_one_connection_serves_several_requests() -> None:
    _, client = connected()
    assert ask(client, "GET", "/v1/models").json["object"] == "list"
    assert ask(client, "HEAD", "/v1/models/emulator").status == 200
    assert ask(client, "GET", "/v1/none").status == 404
    assert not client.eof


def test_a_request_may_come_byte_by_byte() -> None:
    emulator = Emulator()
    _, client = connected(emulator)
    data = b"POST /v1/responses/input_tokens HTTP/1.1\r\nhost: up\r\ncontent-length: 2\r\n\r\n{}"
    for at in range(len(data)):
        client.send(data[at : at + 1])
    (answer,) = read_answers(client.take())
    assert answer.json == {"object": "response.input_tokens", "input_tokens": 0}
    (request,) = emulator.http_requests
    assert (request.method, request.path, request.body) == (
        "POST",
        "/v1/responses/input_tokens",
        b"{}",
    )


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"get / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n\r\n"])
def test_what_is_neither_http_nor_websocket_is_refused(data: bytes) -> None:
    _, client = connected()
    client.send(data)
    assert client.received.startswith(b"HTTP/1.1 4")
    assert client.eof


def test_an_upgrade_on_another_path_is_still_judged_as_one() -> None:
    emulator = Emulator()
    _, client = connected(emulator)
    client.send(
        b"GET /v1/models HTTP/1.1\r\nhost: up\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    (answer,) = read_answers(client.take())
    assert answer.status == 404
    assert emulator.http_requests == []


def test_a_malformed_request_ends_the_connection() -> None:
    _, client = connected()
    client.send(b"GET /v1/models HTTP/1.1\r\n\r\n")
    (answer,) = read_answers(client.take())
    assert (answer.status, answer.json["error"]["code"]) == (400, "malformed_request")
    assert client.eof


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], "invalid_json"),
        ({"model": "m", "input": 7}, "invalid_type"),
        ({"model": "m", "previous_response_id": "resp_x"}, "previous_response_not_found"),
    ],
)
@pytest.mark.parametrize("path", ["compact", "input_tokens"])
def test_a_context_that_cannot_be_read_is_refused(path: str, body: Any, code: str) -> None:
    _, client = connected()
    answer = ask(client, "POST", f"/v1/responses/{path}", body)
    assert (answer.status, answer.error["code"]) == (400, code)


def test_a_compaction_needs_a_model_and_a_count_does_not() -> None:
    _, client = connected()
    refused = ask(client, "POST", "/v1/responses/compact", {"input": "hi"})
    assert (refused.status, refused.error["param"]) == (400, "model")
    assert ask(client, "POST", "/v1/responses/input_tokens", {"input": "hi"}).status == 200


@pytest.mark.parametrize("content", ["hi", [{"type": "input_text", "text": "hi"}]])
def test_a_compaction_has_whole_items(content: Any) -> None:
    _, client = connected()
    given = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
    body = {"model": "m", "input": given}
    answer = ask(client, "POST", "/v1/responses/compact", body).json
    said, rest = answer["output"]
    assert said.pop("id")[:4] == "msg_"
    assert said == {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "hi"}],
    }
    assert rest["type"] == "compaction"
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == 0


def test_an_upgrade_may_follow_requests_on_their_connection() -> None:
    emulator = Emulator()
    _, client = connected(emulator)
    for _ in range(2):
        assert ask(client, "GET", "/v1/models").status == 200
    ws = WebSocketClient(authority="up", target="/v1/responses", headers=[], max_message=1 << 20)
    upgrade = ws.connect()
    client.send(upgrade[:30])
    client.send(upgrade[30:])
    (upgraded,) = ws.receive(client.take())
    assert isinstance(upgraded, Upgraded)
    client.send(ws.send_text(b'{"type": "response.create", "model": "m", "input": "hi"}'))
    *_, last = ws.receive(client.take())
    assert isinstance(last, MessageReceived)
    assert json.loads(last.data)["type"] == "response.completed"


def test_a_request_that_follows_at_once_is_no_upgrade() -> None:
    emulator = Emulator()
    _, client = connected(emulator)
    one = b"GET /v1/models HTTP/1.1\r\nhost: up\r\n\r\n"
    client.send(one + one[:9])
    client.send(one[9:])
    assert [answer.status for answer in read_answers(client.take())] == [200, 200]
