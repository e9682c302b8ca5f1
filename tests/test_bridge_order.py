"""Two turns on one link, their events in any order: each client gets its own answer.

What belongs here: what an upstream sends of a response that has ended (copies, stragglers,
``response.done``) while the next turn waits or is answered. A ``Bridge`` is driven directly, so
that every order of messages and every grouping into reads can be tried.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bridgecore.bridge import (
    AnswerError,
    AnswerEvents,
    Bridge,
    BridgeEffect,
    BridgeEvent,
    CloseLink,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    SendFrame,
    TurnReceived,
)
from bridgecore.config import Config, UpstreamUrl
from bridgecore.recovery.failure import Closed
from bridgecore.rendering import HttpError
from bridgecore.wire.responses import parse_create
from bridgecore.wire.transport import Log

Json = dict[str, Any]
ENDED = ("response.completed", "response.failed", "response.incomplete")


# ------------------------------------------------------------------ what an upstream says


@attrs.frozen
class Style:
    """How an upstream calls the response of turn ``n``, in its first events and in its last."""

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
    """What may still come of an answer that has ended: copies of its events, and more."""
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
    """A driver without a world, and what each turn's client was given."""

    bridge: Bridge = attrs.Factory(lambda: Bridge(Config(upstream=UpstreamUrl.parse("ws://up/"))))
    link: int = 0
    events: dict[int, list[Json]] = attrs.Factory(dict)
    errors: dict[int, HttpError] = attrs.Factory(dict)
    frames: list[Json] = attrs.Factory(list)

    def tell(self, event: BridgeEvent) -> None:
        for effect in self.bridge.handle(event, 0):
            self._take(effect)

    def _take(self, effect: BridgeEffect) -> None:
        if isinstance(effect, AnswerEvents):
            told = self.events.setdefault(effect.turn, [])
            told += [json.loads(event.data) for event in effect.events]
        elif isinstance(effect, AnswerError):
            self.errors[effect.turn] = effect.error
        elif isinstance(effect, SendFrame):
            self.frames.append(json.loads(effect.data))
        elif isinstance(effect, OpenLink):
            self.link = effect.link
        else:
            assert isinstance(effect, Log | CloseLink)

    def submit(self, turn: int, **fields: object) -> None:
        body = json.dumps({"model": "m", "input": f"q{turn}", "store": False, **fields})
        self.tell(TurnReceived(turn, parse_create(body.encode()), []))

    def read(self, *messages: Json | bytes) -> None:
        data = [each if isinstance(each, bytes) else raw(each) for each in messages]
        self.tell(MessagesReceived(self.link, data))


def second_turn(first: list[Json], *, sent: bool = True, driver: Driver | None = None) -> Driver:
    """A link on which turn 1 was answered with ``first`` and turn 2 was sent."""
    driver = driver or Driver()
    driver.submit(1)
    driver.tell(LinkOpened(driver.link))
    driver.tell(LinkFrameSent(driver.link))
    driver.read(*first)
    assert driver.events[1] == first
    driver.submit(2, previous_response_id=first[-1]["response"]["id"])
    assert len(driver.frames) == 2
    if sent:
        driver.tell(LinkFrameSent(driver.link))
    return driver


def assert_answered(driver: Driver, events: list[Json], turn: int = 2) -> None:
    """The client of the turn was told its own answer and nothing else; its link still stands."""
    assert turn not in driver.errors
    assert [one["type"] for one in driver.events.get(turn, ())] == [one["type"] for one in events]
    assert driver.events[turn] == events
    assert (driver.bridge.turns, driver.bridge.links) == (0, 1)
    # The next turn goes on from it on the same link.
    driver.submit(turn + 1, previous_response_id=events[-1]["response"]["id"])
    assert driver.frames[-1].get("previous_response_id") == events[-1]["response"]["id"]
    assert driver.bridge.links == 1


# ------------------------------------------------------------------ properties

kinds = st.lists(st.sampled_from(["message", "function_call"]), max_size=2).map(tuple)
ends = st.sampled_from(["completed", "incomplete"])


@st.composite
def interleaved(
    draw: st.DrawFn, own: list[Json], late: list[Json]
) -> tuple[list[list[Json]], list[Json]]:
    """``own`` in its order with any of ``late`` at any places, in reads of any size."""
    order = list(own)
    put: list[Json] = []
    for event in draw(st.lists(st.sampled_from(late), max_size=8)):
        # Behind the end of the turn there is no turn that it could disturb: see the example below.
        order.insert(draw(st.integers(0, len(order) - 1)), event)
        put.append(event)
    reads: list[list[Json]] = [[]]
    for event in order:
        if reads[-1] and draw(st.booleans()):
            reads.append([])
        reads[-1].append(event)
    return reads, put


@given(st.data())
def test_whatever_comes_late_the_next_turn_gets_its_own_answer(data: st.DataObject) -> None:
    style = data.draw(st.sampled_from([NORMAL, TWO_IDS]))
    first = answer(1, style, data.draw(kinds))
    own = answer(2, style, data.draw(kinds), end=data.draw(ends))
    late = stragglers(first, data.draw(st.sampled_from(style.ids(1))))
    driver = second_turn(first, sent=False)
    reads, put = data.draw(interleaved(own, late))
    # A whole answer that is said again, word for word, could be what this upstream always says.
    assume(not (first[0] in put and first[-1] in put))
    answering = next(number for number, read in enumerate(reads) if own[0] in read)
    sent = data.draw(st.integers(0, answering))  # its frame may take a while to leave
    for number, read in enumerate(reads):
        if number == sent:
            driver.tell(LinkFrameSent(driver.link))
        driver.read(*read)
    assert_answered(driver, own)


@given(st.data())
def test_one_id_for_a_chain_and_stragglers(data: st.DataObject) -> None:
    """Where all responses are called the same, the items and the very words tell them apart."""
    first = answer(1, CHAIN_ID, ("message", "function_call"))
    own = answer(2, CHAIN_ID, data.draw(kinds), end=data.draw(ends))
    late = [one for one in first if "delta" in one or one["type"] == "response.completed"]
    late += [one for one in stragglers(first, "resp") if one["type"] == "response.done"]
    driver = second_turn(first)
    reads, _ = data.draw(interleaved(own, late))
    for read in reads:
        driver.read(*read)
    assert_answered(driver, own)


@given(st.data())
def test_late_events_between_turns_disturb_nobody(data: st.DataObject) -> None:
    style = data.draw(st.sampled_from([NORMAL, TWO_IDS, CHAIN_ID]))
    first, own = answer(1, style, data.draw(kinds)), answer(2, style, data.draw(kinds))
    late = stragglers(first, style.last.format(n=1))
    driver = Driver()
    driver.submit(1)
    driver.tell(LinkOpened(driver.link))
    driver.tell(LinkFrameSent(driver.link))
    driver.read(*first, *data.draw(st.lists(st.sampled_from(late), max_size=4)))
    driver.read(*data.draw(st.lists(st.sampled_from(late), max_size=4)))
    assert driver.events == {1: first}
    driver.submit(2, previous_response_id=first[-1]["response"]["id"])
    driver.tell(LinkFrameSent(driver.link))
    driver.read(*own)
    assert_answered(driver, own)


# ------------------------------------------------------------------ what looks late and is not


@pytest.mark.parametrize(
    ("style", "created"),
    [(NORMAL, True), (NORMAL, False), (CHAIN_ID, True)],
    ids=["normal", "without created", "one id for the chain"],
)
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("one_read", [True, False])
def test_item_ids_that_are_used_again(
    style: Style, created: bool, added: bool, one_read: bool
) -> None:
    """Upstreams that call the first item of each response by one id: nothing is lost for it."""
    driver = Driver()
    for turn in (1, 2, 3):
        events = answer(turn, style, ("message", "message"), added=added, created=created)
        events = json.loads(json.dumps(events).replace(f"msg_{turn}_", "msg_"))
        before = {"previous_response_id": style.last.format(n=turn - 1)} if turn > 1 else {}
        driver.submit(turn, **before)
        if turn == 1:
            driver.tell(LinkOpened(driver.link))
        driver.tell(LinkFrameSent(driver.link))
        if one_read:
            driver.read(*events)
        else:
            for event in events:
                driver.read(event)
        told = driver.events[turn]
        assert told[0]["type"] == "response.created"
        assert told[-1] == events[-1]
        assert sorted(map(raw, told[not created :])) == sorted(map(raw, events))


@pytest.mark.parametrize("kinds", [(), ("message",), ("message", "function_call")])
@pytest.mark.parametrize("end", ["completed", "incomplete"])
def test_an_upstream_that_always_says_the_same(kinds: tuple[str, ...], end: str) -> None:
    """Word for word, ids included, as test servers do: each turn is answered."""
    events = answer(1, NORMAL, kinds, end=end)
    driver = second_turn(events)
    for turn in (2, 3):
        for event in events:
            driver.read(event)
        assert driver.events[turn] == events
        if turn == 2:
            driver.submit(3, previous_response_id="resp_1")
            driver.tell(LinkFrameSent(driver.link))


# ------------------------------------------------------------------ examples


def test_an_event_that_names_another_response_in_mid_output() -> None:
    """Also one that bears no output, which is passed on without a look at the rules."""
    first, own = answer(1), answer(2)
    driver = second_turn(first)
    driver.read(*own[:4])
    driver.read(first[1], {"type": "response.metadata", "response_id": "resp_1"}, *own[4:])
    assert_answered(driver, own)


def test_a_copy_of_what_announced_an_item() -> None:
    """In mid-answer it looks like an item that is announced anew."""
    first, own = answer(1), answer(2)
    driver = second_turn(first)
    driver.read(*own[:2], *first[2:5], *own[2:])
    assert_answered(driver, own)


def test_a_late_end_behind_a_late_beginning() -> None:
    """``response.created`` twice leaves it open whose answer begins; ``response.done`` ends none
    where ``response.completed`` does."""
    first, own = answer(1, kinds=()), answer(2)
    driver = second_turn(first)
    driver.read(first[0], {"type": "response.done", "response": {"id": "resp_1"}})
    driver.read({"type": "response.done"}, *own)
    assert_answered(driver, own)


def test_a_late_failure_is_not_the_next_turns_error() -> None:
    driver = second_turn(answer(1))
    error = {"code": "rate_limit_exceeded", "message": "Another turn's words."}
    driver.read({"type": "response.failed", "response": {"id": "resp_1", "error": error}})
    driver.tell(LinkLost(driver.link, Closed(1009)))  # rendered with the upstream's own words
    assert "words" not in driver.errors[2].message


def test_what_is_held_for_another_id_of_the_response() -> None:
    """An unknown event before response.created names the id that the response has at its end."""
    first, own = answer(1, TWO_IDS), answer(2, TWO_IDS)
    driver = second_turn(first)
    metadata = {"type": "response.metadata", "response_id": "resp_2", "sequence_number": 0}
    driver.read(metadata)
    driver.read(*own)
    assert_answered(driver, [own[0], metadata, *own[1:]])
