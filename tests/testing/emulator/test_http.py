"""The emulator over HTTP: what a client of bytes gets for ``POST`` requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridgecore.testing import CloseWith, Emulator, Fault, Point
from bridgecore.testing.client import HttpAnswer, read_answers
from bridgecore.testing.faults import Error
from bridgecore.testing.network import ByteClient, Network


class World:
    """An emulator and one connection to it."""

    def __init__(self, **settings: Any) -> None:
        self.emulator = Emulator(**settings)
        self.net = Network()
        self.net.add(self.emulator, "up", 80)
        self.client: ByteClient = self.net.connect("up", 80)

    def post(self, body: object, *, path: str = "/v1/responses", token: str = "k") -> HttpAnswer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: up\r\nauthorization: Bearer {token}\r\n"
        self.client.send(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return self.answer()

    def answer(self) -> HttpAnswer:
        (answer,) = read_answers(self.client.take())
        return answer

    def ask(self, text: str, **fields: object) -> HttpAnswer:
        return self.post({"model": "m", "input": text, **fields})


def test_a_stream_names_its_events_and_the_connection_goes_on() -> None:
    world = World()
    for _ in range(2):
        answer = world.ask("hi", stream=True)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert [event.name for event in answer.events] == [
            one.json["type"] for one in answer.events
        ]
        assert (answer.events[0].name, answer.complete) == ("response.created", True)
        assert answer.events[-1].name == "response.completed"
    assert (world.emulator.posts, world.emulator.upgrades, world.emulator.accepted) == (2, 0, 1)


@pytest.mark.parametrize("ignores_stream", [False, True])
def test_a_whole_answer_is_a_response(ignores_stream: bool) -> None:
    world = World(ignores_stream=ignores_stream)
    answer = world.ask("hi", stream=ignores_stream)
    assert answer.json["object"] == "response"
    assert answer.json["status"] == "completed"


def test_only_what_is_stored_can_be_continued() -> None:
    world = World()
    stored, lost = (world.ask("one", store=store).json["id"] for store in (True, False))
    assert world.ask("two", previous_response_id=stored).status == 200
    refused = world.ask("two", previous_response_id=lost)
    assert (refused.status, refused.json["error"]["code"]) == (400, "previous_response_not_found")


def test_requests_that_are_refused() -> None:
    world = World(tokens=frozenset({"k"}), max_post=200)
    assert world.post({}, path="/v1/other").status == 404
    assert world.post({"model": "m", "input": "hi"}, token="bad").status == 401
    assert world.post(b"no").json["error"]["code"] == "invalid_json"
    assert world.ask("hi", temperature="warm").status == 400
    assert world.ask("hi").status == 200
    assert world.ask("x" * 300).json["error"]["code"] == "body_too_large"
    assert world.client.closed


def test_an_error_in_a_stream_is_flat() -> None:
    world = World()
    error = Error(429, "rate_limit_exceeded", "requests", "Slow down.")
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, error))
    last = world.ask("hi", stream=True).events[-1]
    assert last.name == "error"
    assert last.json["code"] == "rate_limit_exceeded"
    assert "error" not in last.json


def test_a_close_cuts_the_answer_off() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, CloseWith(1001)))
    answer = world.ask("hi", stream=True)
    assert (len(answer.events), answer.complete, world.client.closed) == (1, False, True)


def test_what_a_connection_speaks_is_known_from_its_first_bytes() -> None:
    world = World()
    body = b'{"model":"m","input":"hi"}'
    data = b"POST /v1/responses HTTP/1.1\r\nhost: up\r\ncontent-length: %d\r\n\r\n%b"
    for byte in data % (len(body), body):
        world.client.send(bytes([byte]))
    assert world.answer().status == 200
