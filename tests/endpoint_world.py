"""A bridge, an upstream and clients in one process and virtual time.

What belongs here: what the tests of whole endpoints share: setting up, sending requests, and
parsing answers strictly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from bridgecore import transport as tp
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import POLICIES
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import Abort, CloseWith, Emulator, Garbage
from bridgecore.testing import client as http
from bridgecore.testing.client import HttpAnswer
from bridgecore.testing.faults import Action
from bridgecore.testing.network import ByteClient, Network

Json = dict[str, Any]
SECOND = NS_PER_SECOND
NOT_FOUND = "previous_response_not_found"
# What RFC 6455 lets a peer close with, apart from the codes of libraries and applications.
CODES = [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
# How the upstream connection can end in a turn.
LOSSES: list[Action] = [
    CloseWith(1001),
    CloseWith(1005),
    CloseWith(1006),
    CloseWith(1011),
    Abort(),
    Garbage(b"\xff\xff\xff\xff", raw=True),
]
KEY = "sk-secret-one"


@attrs.define
class Answer(HttpAnswer):
    """An answer of an endpoint. ``headers``: all but ``x-request-id``, which is ``request_id``."""

    request_id: str = ""

    @property
    def text(self) -> str:
        """The text of a completed response."""
        assert self.status == 200
        assert self.response["status"] == "completed", self.body
        return "".join(
            part["text"] for item in self.response["output"] for part in item.get("content", [])
        )


def read_answers(data: bytes, *, heads: Iterable[bool] = ()) -> list[Answer]:
    """The answers that an endpoint sent. ``heads``: which of them are to HEAD, from the first."""
    return [_read(answer) for answer in http.read_answers(data, of_head=heads)]


def _read(answer: HttpAnswer) -> Answer:
    headers = answer.headers
    request_id = ""
    if answer.status != 100:
        # The members that every answer has.
        request_id = headers.pop("x-request-id")
        if "retry-after" in headers:
            assert int(headers["retry-after-ms"]) == 1000 * int(headers["retry-after"])
        else:
            assert "retry-after-ms" not in headers
    return Answer(answer.status, headers, answer.body, answer.complete, request_id)


def in_segments(data: bytes) -> list[bytes]:
    """Segments, so that a peer can receive a part of a frame."""
    return [data[at : at + 50_000] for at in range(0, len(data), 50_000)]


def request(
    body: object,
    *,
    key: str = KEY,
    method: str = "POST",
    path: str = "/v1/responses",
    headers: str = "",
) -> bytes:
    """The bytes of a request; ``body`` is an object for JSON, bytes, or None."""
    payload = (
        b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    length = "" if body is None else f"content-length: {len(payload)}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nhost: bridge\r\nauthorization: Bearer {key}\r\n"
    return (head + length + headers + "\r\n").encode() + payload


class World:
    """An ``Endpoint`` whose upstream is an ``Emulator``, and the clock of both."""

    def __init__(
        self,
        *,
        policy: str = "default",
        split: Callable[[bytes], Iterable[bytes]] | None = None,
        emulator: Emulator | None = None,
        **settings: Any,
    ) -> None:
        self.net = Network(split)
        self.emulator = Emulator() if emulator is None else emulator
        self.net.add(self.emulator, "up", 80)
        url = UpstreamUrl.parse(settings.pop("url", "ws://up/v1/responses"))
        # Without transcripts, so that what only a lost connection knew is lost; for tests with
        # transcripts there is tests/endpoint_clients.py.
        settings.setdefault("continuity", Continuity.PASSTHROUGH)
        self.config = Config(upstream=url, policy=POLICIES[policy], **settings)
        self.endpoint = Endpoint(self.config)
        self.net.add(self.endpoint, "bridge", 80)

    def client(self) -> ByteClient:
        return self.net.connect("bridge", 80)

    def advance(self, seconds: float) -> None:
        self.net.advance(int(seconds * SECOND))

    def start(self, text: object = "hi", *, key: str = KEY, **fields: object) -> ByteClient:
        """A new client with a running turn."""
        client = self.client()
        body = {"model": "m", "input": text, "stream": True, **fields}
        client.send(request(body, key=key))
        return client

    def read(self, client: ByteClient) -> Answer:
        """The one answer that ``client`` has received, complete or not."""
        (answer,) = read_answers(bytes(client.received))
        return answer

    def ask(self, text: object = "hi", *, key: str = KEY, **fields: object) -> Answer:
        """A turn of a new client, answered without time passing."""
        client = self.start(text, key=key, **fields)
        answer = self.read(client)
        assert answer.complete
        client.half_close()
        assert client.closed
        return answer

    @property
    def frames(self) -> list[Json]:
        """The create frames that the upstream received."""
        return [request.body for request in self.emulator.requests]

    def settle(self) -> None:
        """Let so much time pass that everything idle has timed out, and only leaks are left."""
        self.advance(25_000)  # longer than the age of transcripts

    def assert_idle(self) -> None:
        """No turn is left, and nothing that a failed turn could leave behind."""
        bridge = self.endpoint.bridge
        assert bridge.turns == 0
        assert self.endpoint.upstreams == self.net.open_connections(self.endpoint)
        assert bridge.links == self.endpoint.upstreams

    def assert_empty(self) -> None:
        """After ``settle`` nothing at all is left."""
        self.settle()
        bridge = self.endpoint.bridge
        assert (bridge.turns, bridge.links, bridge.conversations) == (0, 0, 0)
        assert (self.endpoint.clients, self.endpoint.upstreams) == (0, 0)
        assert self.net.open_connections(self.endpoint) == 0
        assert self.net.open_connections(self.emulator) == 0
        assert self.endpoint.next_timeout() is None

    def drain(self) -> None:
        self.net.handle(self.endpoint, tp.DrainRequested())


def call(
    world: World, method: str, path: str, body: object = None, *, key: str = KEY, headers: str = ""
) -> Answer:
    """A request of a new client that is no turn, answered without time passing."""
    client = world.client()
    client.send(request(body, method=method, path=path, key=key, headers=headers))
    (answer,) = read_answers(bytes(client.received))
    assert answer.complete
    client.half_close()
    return answer
