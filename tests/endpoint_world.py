"""A bridge, an upstream and clients in one process and virtual time.

What belongs here: what the tests of whole endpoints share: setting the scene, sending requests,
and reading answers with the strictness of a client that trusts nobody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from bridgecore import transport as tp
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import POLICIES
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import Emulator
from bridgecore.testing.network import ByteClient, Network

Json = dict[str, Any]
SECOND = NS_PER_SECOND
KEY = "sk-secret-one"
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


@attrs.define
class SseEvent:
    """One server-sent event, or a comment (then ``event`` is empty)."""

    event: str
    data: str

    @property
    def json(self) -> Json:
        value: Json = json.loads(self.data)
        return value


@attrs.define
class Answer:
    """One HTTP answer. ``complete``: its end has come. ``headers``: all but ``x-request-id``."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True
    request_id: str = ""

    @property
    def json(self) -> Json:
        value: Json = json.loads(self.body)
        return value

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        assert set(error) >= {"message", "type", "code", "param"}
        return error

    @property
    def everything(self) -> list[SseEvent]:
        """Events and comments, in order."""
        assert self.headers["content-type"] == "text/event-stream"
        *blocks, rest = self.body.decode().split("\n\n")
        assert rest == ""
        found = []
        for block in blocks:
            if block.startswith(":"):
                found.append(SseEvent("", block))
                continue
            first, *data = block.split("\n")
            assert first.startswith("event: ")
            assert data
            assert all(line.startswith("data: ") for line in data)
            found.append(SseEvent(first[7:], "\n".join(line[6:] for line in data)))
        return found

    @property
    def events(self) -> list[SseEvent]:
        return [event for event in self.everything if event.event]

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    @property
    def response(self) -> Json:
        """The response object of the terminal event, or of the JSON answer."""
        if self.headers["content-type"] == "application/json":
            return self.json
        response: Json = self.events[-1].json["response"]
        return response

    @property
    def text(self) -> str:
        assert self.status == 200
        assert self.response["status"] == "completed", self.body
        return "".join(
            part["text"] for item in self.response["output"] for part in item.get("content", [])
        )


def read_answers(data: bytes, *, heads: Iterable[bool] = ()) -> list[Answer]:
    """Take apart what a server sent. ``heads``: which answers are to HEAD, from the first."""
    answers = []
    is_head = iter(heads)
    while data:
        head, found, data = data.partition(b"\r\n\r\n")
        assert found, head
        first, *lines = head.split(b"\r\n")
        status = int(first.split(b" ")[1])
        assert first.startswith(b"HTTP/1.1 ")
        headers = dict(line.decode().lower().split(": ", 1) for line in lines)
        if status == 100:
            answers.append(Answer(status, headers, b""))
            continue
        answer = Answer(status, headers, b"")
        answers.append(answer)
        # What every answer has, whatever it says.
        del headers["x-request-id"]
        answer.request_id = head.split(b"\r\nx-request-id: ")[1].split(b"\r\n")[0].decode("ascii")
        if "retry-after" in headers:
            assert int(headers["retry-after-ms"]) == 1000 * int(headers["retry-after"])
        else:
            assert "retry-after-ms" not in headers
        if next(is_head, False):
            continue
        if headers.get("transfer-encoding") == "chunked":
            data = _read_chunks(answer, data)
        elif "content-length" in headers:
            size = int(headers["content-length"])
            answer.complete = len(data) >= size
            answer.body, data = data[:size], data[size:]
        else:
            answer.body, data = data, b""
    return answers


def _read_chunks(answer: Answer, data: bytes) -> bytes:
    while (match := _CHUNK.match(data)) is not None:
        size, start = int(match[1], 16), match.end()
        assert data[start + size : start + size + 2] == b"\r\n"
        answer.body += data[start : start + size]
        data = data[start + size + 2 :]
        if size == 0:
            return data
    assert data == b""
    answer.complete = False
    return b""


def request(
    body: object,
    *,
    key: str = KEY,
    method: str = "POST",
    path: str = "/v1/responses",
    headers: str = "",
) -> bytes:
    """The bytes of a request; ``body`` is JSON to be, bytes, or None."""
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
        url = UpstreamUrl.parse("ws://up/v1/responses")
        # Without transcripts, so that what a lost socket knew is lost: tests/endpoint_clients.py
        # is for what is held.
        settings.setdefault("continuity", Continuity.PASSTHROUGH)
        self.config = Config(upstream=url, policy=POLICIES[policy], **settings)
        self.endpoint = Endpoint(self.config)
        self.net.add(self.endpoint, "bridge", 80)

    def client(self) -> ByteClient:
        return self.net.connect("bridge", 80)

    def advance(self, seconds: float) -> None:
        self.net.advance(int(seconds * SECOND))

    def start(self, text: object = "hi", *, key: str = KEY, **fields: object) -> ByteClient:
        """A client of its own with a turn under way."""
        client = self.client()
        body = {"model": "m", "input": text, "stream": True, **fields}
        client.send(request(body, key=key))
        return client

    def read(self, client: ByteClient) -> Answer:
        """The one answer that ``client`` has received, complete or not."""
        (answer,) = read_answers(bytes(client.received))
        return answer

    def ask(self, text: object = "hi", *, key: str = KEY, **fields: object) -> Answer:
        """A turn by a client of its own, answered without time passing."""
        client = self.start(text, key=key, **fields)
        answer = self.read(client)
        assert answer.complete
        client.half_close()
        assert client.closed
        return answer

    @property
    def frames(self) -> list[Json]:
        """The create frames that the upstream has seen."""
        return [request.body for request in self.emulator.requests]

    def settle(self) -> None:
        """Let so much time pass that nothing that leaks could be mistaken for something idle."""
        self.advance(25_000)  # transcripts age, too

    def assert_idle(self) -> None:
        """No turn, and nothing that a turn leaves behind when it fails."""
        bridge = self.endpoint.bridge
        assert bridge.turns == 0
        assert self.endpoint.upstreams == self.net.open_connections(self.endpoint)
        assert bridge.links == self.endpoint.upstreams

    def assert_empty(self) -> None:
        """After ``settle``: nothing at all is left."""
        self.settle()
        bridge = self.endpoint.bridge
        assert (bridge.turns, bridge.links, bridge.conversations) == (0, 0, 0)
        assert (self.endpoint.clients, self.endpoint.upstreams) == (0, 0)
        assert self.net.open_connections(self.endpoint) == 0
        assert self.net.open_connections(self.emulator) == 0
        assert self.endpoint.next_timeout() is None

    def drain(self) -> None:
        self.net.handle(self.endpoint, tp.DrainRequested())
