"""Turns on one link, by messages: what the upstream sends, and what each turn's client receives.

What belongs here: what the tests of ``Bridge`` share that drive it directly, so that every order of
messages and every grouping into reads can be tested.
"""

from __future__ import annotations

import json
from typing import Any

import attrs

from bridgecore.api_error import ApiError
from bridgecore.bridge import Bridge
from bridgecore.config import Config, UpstreamUrl
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    CloseLink,
    FailAnswer,
    LinkFrameSent,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    SendFrame,
    TurnReceived,
)
from bridgecore.transport import Log
from bridgecore.wire.requests import parse_create

Json = dict[str, Any]
ENDED = ("response.completed", "response.failed", "response.incomplete")


# ------------------------------------------------------------------ events of an upstream


@attrs.frozen
class Style:
    """The ids that an upstream gives the response of turn ``n``, in its first and in its last
    events."""

    name: str
    first: str
    last: str

    def ids(self, n: int) -> tuple[str, str]:
        return self.first.format(n=n), self.last.format(n=n)


NORMAL = Style("one id each", "resp_{n}", "resp_{n}")
TWO_IDS = Style("two ids each", "resp_{n}_created", "resp_{n}")
CHAIN_ID = Style("one id for the chain", "resp", "resp")


def response(name: str, status: str, output: list[Json]) -> Json:
    return {"id": name, "object": "response", "status": status, "output": output}


def item(n: int, index: int, kind: str) -> Json:
    if kind == "message":
        content = [{"type": "output_text", "text": f"text {n}.{index}"}]
        return {"type": kind, "id": f"msg_{n}_{index}", "content": content}
    call: Json = {"type": kind, "id": f"fc_{n}_{index}", "call_id": f"call_{n}_{index}"}
    return {**call, "name": "f", "arguments": "{}"}


def answer(
    n: int,
    style: Style = NORMAL,
    kinds: tuple[str, ...] = ("message",),
    *,
    end: str = "completed",
    created: bool = True,
    added: bool = True,
) -> list[Json]:
    """The events of the answer to turn ``n``."""
    first, last = style.ids(n)
    items = [item(n, index, kind) for index, kind in enumerate(kinds)]
    events: list[Json] = []
    if created:
        for name in ("response.created", "response.in_progress"):
            events.append({"type": name, "response": response(first, "in_progress", [])})
    for index, one in enumerate(items):
        place = {"output_index": index}
        if added:
            bare = {**one, "status": "in_progress", "content": [], "arguments": ""}
            events.append({"type": "response.output_item.added", **place, "item": bare})
        events += [
            {
                "type": "response.output_text.delta",
                "item_id": one["id"],
                **place,
                "delta": delta,
            }
            for delta in (f"text {n}", f".{index}")
        ]
        events.append({"type": "response.output_item.done", **place, "item": one})
    events.append({"type": f"response.{end}", "response": response(last, end, items)})
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return events


def stragglers(events: list[Json], name: str) -> list[Json]:
    """Late events of an answer that has ended: copies of its events, and more."""
    late = [{**event, "late": True} for event in events if "delta" in event]
    done = {"type": "response.done", "response": {"id": name, "usage": {"input_tokens": 5}}}
    bare = {"type": "response.done"}
    metadata = {"type": "response.metadata", "response_id": name}
    return [*events, *late, done, bare, metadata]


def raw(event: Json) -> bytes:
    return json.dumps(event).encode()


# ------------------------------------------------------------------ the link


@attrs.define
class Driver:
    """A driver of messages, and what each turn's client received. ``link``: the one last used or
    asked for."""

    bridge: Bridge = attrs.Factory(lambda: Bridge(Config(upstream=UpstreamUrl.parse("ws://up/"))))
    link: int = 0
    opening: bool = False  # the link is not open yet
    events: dict[int, list[Json]] = attrs.Factory(dict)
    errors: dict[int, ApiError] = attrs.Factory(dict)
    frames: list[Json] = attrs.Factory(list)

    def tell(self, event: BridgeEvent) -> None:
        for effect in self.bridge.handle(event, 0):
            self._take(effect)

    def _take(self, effect: BridgeEffect) -> None:
        if isinstance(effect, AnswerEvents):
            told = self.events.setdefault(effect.turn, [])
            told += [json.loads(event.data) for event in effect.events]
        elif isinstance(effect, FailAnswer):
            self.errors[effect.turn] = effect.error
        elif isinstance(effect, SendFrame):
            self.frames.append(json.loads(effect.data))
            self.link, self.opening = effect.link, False
        elif isinstance(effect, OpenLink):
            self.link, self.opening = effect.link, True
        else:
            assert isinstance(effect, Log | CloseLink)

    def submit(self, turn: int, **fields: object) -> None:
        body = json.dumps({"model": "m", "input": f"q{turn}", "store": False, **fields})
        self.tell(TurnReceived(turn, parse_create(body.encode()), []))

    def proceed(self) -> None:
        """Open the link, if it is asked for, and report the turn's frame as sent."""
        if self.opening:
            self.opening = False
            self.tell(LinkOpened(self.link))
        if self.bridge.turns and not self.opening:
            self.tell(LinkFrameSent(self.link))

    def read(self, *messages: Json | bytes) -> None:
        data = [each if isinstance(each, bytes) else raw(each) for each in messages]
        self.tell(MessagesReceived(self.link, data))


def second_turn(first: list[Json], *, sent: bool = True, driver: Driver | None = None) -> Driver:
    """A link on which turn 1 was answered with ``first`` and turn 2 was sent."""
    driver = driver or Driver()
    driver.submit(1)
    driver.proceed()
    driver.read(*first)
    assert driver.events[1] == first
    driver.submit(2, previous_response_id=first[-1]["response"]["id"])
    assert len(driver.frames) == 2
    if sent:
        driver.tell(LinkFrameSent(driver.link))
    return driver


def assert_answered(driver: Driver, events: list[Json], turn: int = 2) -> None:
    """The client of the turn received its own answer and nothing else; its link is still open."""
    assert turn not in driver.errors
    assert [one["type"] for one in driver.events.get(turn, ())] == [one["type"] for one in events]
    assert driver.events[turn] == events
    assert (driver.bridge.turns, driver.bridge.links) == (0, 1)
    # The next turn continues it on the same link.
    driver.submit(turn + 1, previous_response_id=events[-1]["response"]["id"])
    assert driver.frames[-1].get("previous_response_id") == events[-1]["response"]["id"]
    assert driver.bridge.links == 1
