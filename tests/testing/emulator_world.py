"""An emulator in memory, and WebSocket clients of it, in virtual time.

What belongs here: what the tests of the emulator and of its faults share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from bridgecore import transport
from bridgecore.testing import (
    Emulator,
    Fault,
    FaultPlan,
    Point,
)
from bridgecore.testing.faults import Action
from bridgecore.transport import (
    Accepted,
    Close,
    DataReceived,
    DataSent,
    Disconnected,
    PauseReading,
    ResumeReading,
    Send,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
)
from bridgecore.wire.websocket import (
    MessageReceived,
    WebSocketClient,
    WebSocketEvent,
)

Json = dict[str, Any]
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


@attrs.define(eq=False)
class Link:
    """One client's connection to the emulator, and all that it received."""

    world: World
    conn: int
    ws: WebSocketClient
    events: list[WebSocketEvent] = attrs.Factory(list)  # all but messages
    frames: list[Json] = attrs.Factory(list)
    raw: list[bytes] = attrs.Factory(list)
    sends: int = 0
    ended: str = ""  # "close", "abort"
    paused: bool = False

    def send(self, data: bytes) -> None:
        self.world.tell(DataReceived(self.conn, data))

    def text(self, data: bytes) -> list[Json]:
        """Send one frame; the frames that were received at once."""
        before = len(self.frames)
        self.send(self.ws.send_text(data))
        return self.frames[before:]

    def create(self, text: str | list[Json] = "hi", **fields: object) -> list[Json]:
        body = {"type": "response.create", "model": "m", "input": text, **fields}
        return self.text(json.dumps(body).encode())

    def ask(self, text: str | list[Json] = "hi", **fields: object) -> Json:
        """Create a response that has to complete; the response object."""
        frames = self.create(text, **fields)
        assert [f["type"] for f in frames[-1:]] == ["response.completed"], frames
        response: Json = frames[-1]["response"]
        return response

    def refused(self, text: str | list[Json] = "hi", **fields: object) -> Json:
        """Create a response that has to be refused with one error frame; the frame."""
        (frame,) = self.create(text, **fields)
        assert frame["type"] == "error"
        return frame

    def take(self, data: bytes) -> None:
        self.sends += 1
        for event in self.ws.receive(data):
            if isinstance(event, MessageReceived):
                self.raw.append(event.data)
                try:
                    self.frames.append(json.loads(event.data))
                except (ValueError, RecursionError):
                    self.frames.append({"type": "not json"})
            else:
                self.events.append(event)


@attrs.define(eq=False)
class World:
    """An emulator, its links, and a clock that only the tests advance."""

    emulator: Emulator = attrs.Factory(Emulator)
    now: int = 0
    links: dict[int, Link] = attrs.Factory(dict)
    effects: list[TransportEffect] = attrs.Factory(list)  # all but Send

    def tell(self, event: TransportEvent) -> None:
        told: list[TransportEvent] = [event]
        while told:
            effects = self.emulator.handle(told.pop(0), self.now)
            deadline = self.emulator.next_timeout()
            assert deadline is None or deadline.at > self.now
            sends = [e.conn for e in effects if isinstance(e, Send)]
            assert len(sends) == len(set(sends)), "one Send per connection"
            for effect in effects:
                match effect:
                    case Send(conn, data, notify):
                        assert data
                        self.links[conn].take(data)
                        if notify:
                            told.append(DataSent(conn))
                        continue
                    case Close(conn):
                        self.links[conn].ended = "close"
                        told.append(Disconnected(conn))
                    case transport.Abort(conn):
                        self.links[conn].ended = "abort"
                    case PauseReading(conn):
                        self.links[conn].paused = True
                    case ResumeReading(conn):
                        self.links[conn].paused = False
                    case _:
                        pass
                self.effects.append(effect)

    def accept(self, *, target: str = "/v1/responses", token: str | None = "sk-1") -> Link:
        """Accept the TCP connection only; the caller sends ``ws.connect()``."""
        headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        ws = WebSocketClient(
            authority="127.0.0.1:1", target=target, headers=headers, max_message=1 << 26
        )
        conn = self.emulator.new_connection()
        link = self.links[conn] = Link(self, conn, ws)
        self.tell(Accepted(conn))
        return link

    def connect(self, *, target: str = "/v1/responses", token: str | None = "sk-1") -> Link:
        link = self.accept(target=target, token=token)
        link.send(link.ws.connect())
        return link

    def wait(self) -> int:
        """Advance the clock to the next deadline; by how much."""
        deadline = self.emulator.next_timeout()
        assert deadline is not None
        moved, self.now = deadline.at - self.now, deadline.at
        self.tell(TimeoutReached())
        return moved


def world(**settings: Any) -> World:
    return World(Emulator(**settings))


def types(frames: Sequence[Json]) -> list[str]:
    return [frame["type"] for frame in frames]


def said(response: Json) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def output(call_id: str, text: str) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def faulty(point: Point, action: Action, nth: int = 1, deltas: int = 1, **settings: Any) -> World:
    return world(faults=FaultPlan().add(nth, Fault(point, action, deltas)), **settings)


CREATED = ["response.created"]
TO_FIRST_DELTA = [
    *CREATED,
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
]
TO_LAST = [
    *TO_FIRST_DELTA,
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
WHOLE = [*TO_LAST, "response.completed"]
POINTS = [
    (Point.BEFORE_CREATED, []),
    (Point.AFTER_CREATED, CREATED),
    (Point.MID_OUTPUT, TO_FIRST_DELTA),
    (Point.BEFORE_TERMINAL, TO_LAST),
    (Point.AFTER_TERMINAL, WHOLE),
]
