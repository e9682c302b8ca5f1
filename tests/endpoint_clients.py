"""Clients of a whole endpoint that check each answer against the conversation so far.

What belongs here: what the tests of tests/endpoint share that need conversations. The clients know
nothing of the bridge: they record the conversation, and after each answer the context at the
upstream has to equal it. ``Talker`` continues responses by their ids, ``Historian`` repeats the
whole history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from bridgecore.config import Continuity
from bridgecore.simulate.witness import said
from bridgecore.testing import (
    CreateFrame,
    Fault,
    Point,
)
from bridgecore.testing.faults import COMMON_SHAPES, Action
from bridgecore.testing.network import ByteClient
from tests.endpoint_world import KEY, NOT_FOUND, Answer, Json, World, in_segments, request

SHAPES = list(COMMON_SHAPES)
AGE = 21_600  # seconds that a transcript is kept by default


def held(**settings: Any) -> World:
    """A world whose bridge keeps transcripts."""
    return World(continuity=Continuity.TRANSCRIPT, split=in_segments, **settings)


def assert_empty(world: World) -> None:
    """After all deadlines nothing is left, transcripts included."""
    world.advance(AGE)
    assert world.endpoint.bridge.memory.size == 0
    world.assert_empty()


# ------------------------------------------------------------------ the history of a conversation


def context(request: CreateFrame) -> list[tuple[object, ...]]:
    """The context of a request at the upstream."""
    return [said(item) for item in request.context]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def output_for(call: Json, text: str) -> Json:
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


@attrs.define
class Talker:
    """A client that sends ``previous_response_id`` and new items.

    ``past``: for each response that it received, the history up to and with it.
    """

    world: World
    store: bool = False
    key: str = KEY
    stream: bool = True
    fields: Json = attrs.Factory(dict)
    past: dict[str | None, list[Json]] = attrs.Factory(lambda: {None: []})
    last: str | None = None
    outcomes: list[str] = attrs.Factory(list)  # a status or "failed", for each attempt

    def body(self, items: Sequence[Json], anchor: str | None) -> Json:
        fields = {"store": self.store, "stream": self.stream, **self.fields}
        if anchor is not None:
            fields["previous_response_id"] = anchor
        return {"model": "m", "input": list(items), **fields}

    def begin(self, items: Sequence[Json], anchor: str | None) -> ByteClient:
        """Start a turn."""
        client = self.world.client()
        client.send(request(self.body(items, anchor), key=self.key))
        return client

    def end(self, client: ByteClient, items: Sequence[Json], anchor: str | None) -> Answer:
        """The answer of the turn; the client's history is compared with the context at the
        upstream."""
        answer = self.world.read(client)
        assert answer.complete
        client.half_close()
        self.note(answer, items, anchor)
        return answer

    def attempt(self, *items: Json, after: str | None = "", wait: float = 0) -> Answer:
        """One request; ``after``: the response to continue, by default the latest."""
        anchor = self.last if after == "" else after
        client = self.begin(items, anchor)
        if wait:
            self.world.advance(wait)
        return self.end(client, items, anchor)

    def note(self, answer: Answer, items: Sequence[Json], anchor: str | None) -> None:
        if answer.status != 200:
            self.outcomes.append(str(answer.status))
            assert answer.error["code"] != NOT_FOUND
            return
        response = answer.response
        if response["status"] != "completed":
            self.outcomes.append("failed")
            assert response["error"]["code"] != NOT_FOUND
            return
        self.outcomes.append("200")
        believed = [*self.past[anchor], *items]
        assert context(self.shown(response["id"])) == [said(item) for item in believed]
        assert response["id"] not in self.past
        self.past[response["id"]] = [*believed, *response["output"]]
        self.last = response["id"]

    def shown(self, response: str) -> CreateFrame:
        """The frame that the upstream answered with ``response``."""
        (turn,) = [turn for turn in self.world.emulator.turns if turn.response_id == response]
        return turn.request

    def turn(self, *items: Json, tries: int = 3) -> Answer:
        """Repeat the request, as the errors say, until there is an answer."""
        for _ in range(tries):
            answer = self.attempt(*items, wait=1)
            if self.outcomes[-1] == "200":
                return answer
        raise AssertionError(f"no answer: {self.outcomes}")


def strike(world: World, point: Point, action: Action) -> None:
    """Let the next turn, and no other, have the fault ``action``."""
    world.emulator.faults.clear()
    world.emulator.faults.add(world.emulator._creates + 1, Fault(point, action))


def heal(world: World) -> None:
    world.emulator.faults.clear()


def frame(world: World) -> Json:
    return world.frames[-1]


# ------------------------------------------------------------------ clients that repeat everything


@attrs.define
class Historian:
    """A client without ids: it sends its whole history in each request."""

    world: World
    store: bool = False
    key: str = KEY
    headers: str = ""
    fields: Json = attrs.Factory(dict)
    history: list[Json] = attrs.Factory(list)
    bare: bool = False  # whether it sends answers back without ids and status
    outcomes: list[str] = attrs.Factory(list)
    sizes: list[int] = attrs.Factory(list)  # bytes of its bodies

    def begin(self, *items: Json) -> ByteClient:
        body = {
            "model": "m",
            "input": [*self.history, *items],
            "stream": True,
            "store": self.store,
            **self.fields,
        }
        client = self.world.client()
        data = request(body, key=self.key, headers=self.headers)
        self.sizes.append(len(data))
        client.send(data)
        return client

    def end(self, client: ByteClient, *items: Json) -> Answer:
        answer = self.world.read(client)
        assert answer.complete
        client.half_close()
        if answer.status != 200 or answer.response["status"] != "completed":
            error = answer.error if answer.status != 200 else answer.response["error"]
            assert error["code"] != NOT_FOUND
            assert "previous_response_id" not in str(error)
            self.outcomes.append(str(answer.status) if answer.status != 200 else "failed")
            return answer
        self.outcomes.append("200")
        response = answer.response
        self.history += items
        (turn,) = [t for t in self.world.emulator.turns if t.response_id == response["id"]]
        assert context(turn.request) == [said(item) for item in self.history]
        self.history += (
            [bare(item) for item in response["output"]] if self.bare else (response["output"])
        )
        return answer

    def attempt(self, *items: Json, wait: float = 0) -> Answer:
        client = self.begin(*items)
        if wait:
            self.world.advance(wait)
        return self.end(client, *items)

    def turn(self, *items: Json) -> Answer:
        for _ in range(3):
            answer = self.attempt(*items, wait=1)
            if self.outcomes[-1] == "200":
                return answer
        raise AssertionError(f"no answer: {self.outcomes}")


def bare(item: Json) -> Json:
    """An output item as clients send it back that keep only its content."""
    if item["type"] == "message":
        return {"role": "assistant", "content": "".join(part["text"] for part in item["content"])}
    return {name: item[name] for name in item if name not in ("id", "status")}


def anchors(world: World) -> list[str]:
    """The anchors sent upstream, in order."""
    return [request.anchor for request in world.emulator.requests if request.anchor is not None]
