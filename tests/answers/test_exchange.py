"""Tests of answers/exchange.py: what the client of one turn receives, and when."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.answers.exchange import Exchange
from bridgecore.api_error import api_error
from bridgecore.config import Config, UpstreamUrl
from bridgecore.messages import (
    AnswerBody,
    AnswerEffect,
    AnswerEvents,
    AnswerKeepalive,
    BeginAnswer,
    EndAnswer,
    FailAnswer,
)
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.wire.requests import parse_create
from bridgecore.wire.responses import UpstreamEvent, read_event

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/"))
ERROR = api_error(502, "stream_incomplete", "Lost.")


def event(data: bytes) -> UpstreamEvent:
    found = read_event(data)
    assert found is not None
    return found


CREATED = event(b'{"type":"response.created","sequence_number":4,"response":{"id":"r"}}')
DELTA = event(b'{"type":"response.output_text.delta","sequence_number":5}')
OTHER = event(b'{"type":"other"}')
DONE = event(b'{"type":"response.completed","sequence_number":6,"response":{"id":"r"}}')
FAILED = event(
    b'{"type":"response.failed","response":{"id":"r","error":{"code":"server_error","message":"m"}}}'
)


@attrs.define
class Shown:
    """An exchange, and what its client received."""

    exchange: Exchange
    effects: list[AnswerEffect] = attrs.Factory(list)

    @classmethod
    def of(cls, **fields: object) -> Shown:
        request = parse_create(json.dumps({"model": "m", "input": "hi", **fields}).encode())
        return cls(Exchange.of(1, request, CONFIG, 0))

    def deliver(self, *events: UpstreamEvent, now: int = 1) -> None:
        self.effects += self.exchange.deliver(AnswerEvents(1, [*events]), now)

    def fail(self) -> None:
        self.effects += self.exchange.fail(ERROR)

    def timeout(self) -> int:
        """Let its deadline pass; when that was."""
        now = self.exchange.deadline
        assert now is not None
        self.effects += self.exchange.timeout(now)
        assert self.exchange.deadline is not None
        assert self.exchange.deadline > now
        return now

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of its stream, without comments."""
        events: list[UpstreamEvent] = []
        for effect in self.effects:
            if isinstance(effect, AnswerEvents):
                events += effect.events
            elif isinstance(effect, AnswerKeepalive) and effect.event is not None:
                events.append(effect.event)
        return [json.loads(each.data) for each in events]

    @property
    def kinds(self) -> list[type[AnswerEffect]]:
        return [type(effect) for effect in self.effects]


def test_a_stream() -> None:
    shown = Shown.of(stream=True)
    assert (shown.exchange.deadline, shown.exchange.timer) == (CONFIG.head_timeout, Timer.HEAD)
    shown.deliver(CREATED, DELTA)
    assert shown.kinds == [BeginAnswer, AnswerEvents]
    assert shown.exchange.timer is Timer.KEEPALIVE
    assert shown.exchange.deadline == 1 + CONFIG.keepalive
    shown.deliver(DONE)
    assert shown.kinds == [BeginAnswer, AnswerEvents, AnswerEvents, EndAnswer]
    assert shown.exchange.ended
    assert shown.exchange.deadline is None


def test_a_json_answer() -> None:
    shown = Shown.of()
    assert shown.exchange.deadline is None
    shown.deliver(CREATED, DELTA)
    assert shown.effects == []
    shown.deliver(DONE)
    assert shown.effects == [AnswerBody(1, b'{"id":"r"}')]
    assert shown.exchange.ended


def test_a_json_answer_that_failed() -> None:
    shown = Shown.of()
    shown.deliver(CREATED, FAILED)
    (effect,) = shown.effects
    assert isinstance(effect, FailAnswer)
    assert (effect.error.status, effect.error.code) == (502, "server_error")
    assert shown.exchange.ended


NO_CODE = event(
    b'{"type":"response.failed","response":{"error":{"message":"Previous response not found"}}}'
)


def test_a_failed_stream_gets_the_code_that_the_json_answer_has() -> None:
    body, stream = (Shown.of(stream=one, previous_response_id="resp_7") for one in (False, True))
    for shown in (body, stream):
        shown.deliver(CREATED, NO_CODE)
    (effect,) = body.effects
    assert isinstance(effect, FailAnswer)
    assert effect.error.code == "previous_response_not_found"
    error = stream.events[-1]["response"]["error"]
    assert error == {"code": effect.error.code, "message": "Previous response not found"}
    assert stream.exchange.ended


@pytest.mark.parametrize("failed", [NO_CODE, FAILED])
def test_another_replica_gets_a_failure_as_it_is(failed: UpstreamEvent) -> None:
    """It makes the answer for its client."""
    shown = Shown.of(stream=True)
    shown.exchange.forwarded = True
    shown.deliver(CREATED, failed)
    assert shown.effects[1] == AnswerEvents(1, [CREATED, failed])


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_head(stream: bool) -> None:
    shown = Shown.of(stream=stream)
    shown.fail()
    assert shown.effects == [FailAnswer(1, ERROR)]
    assert (shown.exchange.ended, shown.exchange.deadline) == (True, None)


def test_a_failure_after_the_head() -> None:
    shown = Shown.of(stream=True)
    shown.deliver(CREATED, OTHER)
    shown.fail()
    failed = shown.events[-1]
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == 5
    assert (failed["response"]["id"], failed["response"]["status"]) == ("r", "failed")
    assert shown.kinds[-1] is EndAnswer
    assert (shown.exchange.ended, shown.exchange.deadline) == (True, None)


@given(st.data())
def test_created_is_first_whatever_fails_when(data: st.DataObject) -> None:
    """Whatever the client has received when its turn fails, head or no head, keepalives or none: it
    receives one ``response.created``, first, and one terminal event, last, of one response."""
    shown = Shown.of(stream=True)
    now = 1
    for _ in range(data.draw(st.integers(0, 2))):  # the head is sent, then comments
        now = shown.timeout()
    deltas = [DELTA, event(b'{"type":"response.output_text.delta","sequence_number":8}'), OTHER]
    whole = [CREATED, *deltas]
    rest = whole[: data.draw(st.integers(0, len(whole)))]
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown.deliver(*rest[:size], now=now)
        rest = rest[size:]
        if data.draw(st.booleans()):
            now = shown.timeout()
    begun = bool(shown.effects)
    shown.fail()
    if not begun:
        assert shown.effects == [FailAnswer(1, ERROR)]
        return
    assert shown.kinds[0] is BeginAnswer
    assert shown.kinds[-1] is EndAnswer
    names = [each["type"] for each in shown.events]
    assert names[0] == "response.created"
    assert names.count("response.created") == 1
    assert names[-1] == "response.failed"
    assert names.count("response.failed") == 1
    first, last = shown.events[0], shown.events[-1]
    assert first["response"]["id"] == last["response"]["id"]
    assert last["response"]["error"]["code"] == "stream_incomplete"
    numbers = [each["sequence_number"] for each in shown.events if each["type"] != "other"]
    assert numbers == sorted(numbers)
    assert numbers[-1] > first["sequence_number"]


def test_numbers_go_on_from_an_event_of_unknown_type() -> None:
    shown = Shown.of(stream=True)
    shown.deliver(CREATED, DELTA, event(b'{"type":"response.note","sequence_number":7}'))
    shown.fail()
    assert [each["sequence_number"] for each in shown.events] == [4, 5, 7, 8]


def test_keepalives() -> None:
    shown = Shown.of(stream=True)
    times = [shown.timeout() for _ in range(3)]
    assert shown.effects == [BeginAnswer(1), *[AnswerKeepalive(1)] * 3]
    shown.effects.clear()
    shown.deliver(CREATED, DELTA, OTHER, now=times[-1] + NS_PER_SECOND)
    shown.effects.clear()
    shown.timeout()
    assert shown.effects == []  # something was sent since the deadline was set
    shown.timeout()
    assert shown.events == [{"type": "keepalive", "sequence_number": 5}]


def test_no_keepalives_for_a_client_that_does_not_read() -> None:
    shown = Shown.of(stream=True)
    shown.deliver(CREATED)
    shown.effects.clear()
    shown.exchange.blocked = True
    for _ in range(5):
        shown.timeout()
    assert shown.effects == []
