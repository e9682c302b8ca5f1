"""Tests of gateway.py: requests in and answers out as messages, without bytes.

What a bridge does with turns and links is in test_bridge.py, and what the client of one turn gets
in answers/test_exchange.py; here both are together.
"""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.api_error import api_error
from bridgecore.config import Config, UpstreamUrl
from bridgecore.errors import ConfigError, LocalProtocolError
from bridgecore.gateway import Gateway
from bridgecore.messages import (
    AnswerBody,
    AnswerEvents,
    AnswerKeepalive,
    BeginAnswer,
    BridgeTimeout,
    CloseLink,
    ContextPrepared,
    ContextRequested,
    EndAnswer,
    FailAnswer,
    GatewayEffect,
    GatewayEvent,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    RequestReceived,
    ResponseDeleted,
    SendFrame,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
)
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.timers import Timer
from bridgecore.transport import Log
from bridgecore.wire.requests import parse_create

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/"))
CREATED = b'{"type":"response.created","response":{"id":"resp_1"}}'
DELTA = b'{"type":"response.output_text.delta","delta":"x"}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}'


@attrs.define
class Driver:
    """A driver without a network: it reports what a test says and records the effects."""

    gateway: Gateway = attrs.Factory(lambda: Gateway(CONFIG))
    now: int = 0

    def tell(self, event: GatewayEvent) -> list[GatewayEffect]:
        effects = self.gateway.handle(event, self.now)
        return [effect for effect in effects if not isinstance(effect, Log)]

    def ask(self, turn: int = 1, **fields: object) -> list[GatewayEffect]:
        body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
        return self.tell(RequestReceived(turn, body, [(b"Authorization", b"Bearer k")]))

    def send(self, turn: int = 1, **fields: object) -> int:
        """Request a new turn and report its frame as sent; its link."""
        (opened,) = self.ask(turn, **fields)
        assert isinstance(opened, OpenLink)
        assert opened.headers == [(b"authorization", b"Bearer k")]
        (sent,) = self.tell(LinkOpened(opened.link))
        assert isinstance(sent, SendFrame)
        assert self.tell(LinkFrameSent(opened.link)) == []
        return opened.link

    def wait(self) -> list[GatewayEffect]:
        """Let the next deadline pass."""
        deadline = self.gateway.next_timeout()
        assert deadline is not None
        self.now = deadline.at
        return self.tell(BridgeTimeout())


def kinds(effects: list[GatewayEffect]) -> list[type[GatewayEffect]]:
    return [type(effect) for effect in effects]


def test_a_gateway_needs_a_config() -> None:
    with pytest.raises(ConfigError):
        Gateway("ws://up/")  # type: ignore[arg-type]  # the misuse that is tested


def test_a_stream() -> None:
    driver = Driver()
    link = driver.send(stream=True)
    assert kinds(driver.tell(MessagesReceived(link, [CREATED, DELTA]))) == [
        BeginAnswer, AnswerEvents,
    ]  # fmt: skip
    assert kinds(driver.tell(MessagesReceived(link, [DELTA]))) == [AnswerEvents]
    assert kinds(driver.tell(MessagesReceived(link, [DONE]))) == [AnswerEvents, EndAnswer]


def test_a_json_answer() -> None:
    driver = Driver()
    link = driver.send()
    assert driver.tell(MessagesReceived(link, [CREATED, DELTA])) == []
    (body,) = driver.tell(MessagesReceived(link, [DONE]))
    assert body == AnswerBody(1, b'{"id":"resp_1","output":[]}')


def test_turns_at_the_same_time() -> None:
    driver = Driver()
    one, two = driver.send(1, stream=True), driver.send(2, stream=True)
    for turn, link in ((1, one), (2, two)):
        effects = driver.tell(MessagesReceived(link, [CREATED, DONE]))
        assert {getattr(effect, "turn", None) for effect in effects} == {turn}


def test_the_head_waits_and_a_quiet_stream_is_kept_alive() -> None:
    driver = Driver()
    link = driver.send(stream=True)
    deadline = driver.gateway.next_timeout()
    assert deadline is not None
    assert (deadline.at, deadline.reason) == (CONFIG.head_timeout, Timer.HEAD)
    assert driver.wait() == [BeginAnswer(1), AnswerKeepalive(1)]
    assert driver.wait() == [AnswerKeepalive(1)]
    failed, end = driver.tell(LinkLost(link, Closed(1006)))
    assert isinstance(failed, AnswerEvents)
    assert [event.type for event in failed.events] == [b"response.created", b"response.failed"]
    assert end == EndAnswer(1)


def test_a_failure_before_the_head_is_a_status() -> None:
    driver = Driver()
    link = driver.send(stream=True)
    (effect,) = driver.tell(LinkLost(link, Closed(1006)))
    assert isinstance(effect, FailAnswer)
    assert (effect.error.status, effect.error.code) == (502, "stream_incomplete")


def test_a_body_that_is_no_request() -> None:
    driver = Driver()
    (effect,) = driver.tell(RequestReceived(1, b"[]", []))
    assert isinstance(effect, FailAnswer)
    assert (effect.error.status, effect.error.code) == (400, "invalid_request_body")
    driver.send(1)  # that turn has ended, so its number is free


def test_a_client_that_left() -> None:
    driver = Driver()
    link = driver.send(stream=True)
    assert driver.tell(TurnLeft(1)) == [CloseLink(link)]
    assert driver.tell(TurnLeft(1)) == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_turn_that_its_driver_gives_up(begun: bool) -> None:
    """The client gets an error in the form that fits what it has received."""
    driver = Driver()
    link = driver.send(stream=True)
    if begun:
        driver.tell(MessagesReceived(link, [CREATED]))
    error = api_error(503, "server_shutting_down", "The server is shutting down.")
    effects = driver.tell(TurnLeft(1, error))
    shown = [AnswerEvents, EndAnswer] if begun else [FailAnswer]
    assert kinds(effects) == [*shown, CloseLink]


def test_a_client_that_reads_too_slowly_needs_no_keepalive() -> None:
    driver = Driver()
    link = driver.send(stream=True)
    driver.tell(MessagesReceived(link, [CREATED]))
    driver.tell(TurnBlocked(1, True))
    assert driver.wait() == []
    driver.tell(TurnBlocked(1, False))
    assert kinds(driver.wait()) == [AnswerKeepalive]


@pytest.mark.parametrize("scope", [None, "tenant"])
def test_a_context_is_prepared_until_its_response_is_deleted(scope: str | None) -> None:
    driver = Driver()
    headers = [(b"AUTHORIZATION", b"Bearer k")]
    create = b'{"model":"m","input":"hi","store":false}'
    (opened,) = driver.tell(RequestReceived(1, create, headers, scope=scope))
    assert isinstance(opened, OpenLink)
    driver.tell(LinkOpened(opened.link))
    driver.tell(MessagesReceived(opened.link, [CREATED, DONE]))
    body = b'{"previous_response_id":"resp_1","x":1}'
    (prepared,) = driver.tell(ContextRequested(7, body, headers, scope=scope))
    assert isinstance(prepared, ContextPrepared)
    assert prepared.query == 7
    message = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "hi"}],
    }
    assert json.loads(prepared.body) == {"x": 1, "input": [message]}

    for other in (ResponseDeleted("resp_1", [], scope="other"), ResponseDeleted("resp_1", [])):
        assert driver.tell(other) == []
        assert driver.tell(ContextRequested(8, body, headers, scope=scope)) != [
            ContextPrepared(8, body)
        ]
    assert driver.tell(ResponseDeleted("resp_1", headers, scope=scope)) == []
    assert driver.tell(ContextRequested(9, body, headers, scope=scope)) == [
        ContextPrepared(9, body)
    ]


@pytest.mark.parametrize(
    "event",
    [
        ResponseDeleted("resp_1", [("a", "b")]),  # type: ignore[list-item]  # what is tested
        ContextRequested(1, b"{}", [("a", "b")]),  # type: ignore[list-item]  # as above
    ],
)
def test_headers_of_other_requests_are_bytes(event: GatewayEvent) -> None:
    with pytest.raises(LocalProtocolError, match="bytes"):
        Driver().tell(event)


def test_time_does_not_go_back() -> None:
    driver = Driver(now=10)
    driver.ask(stream=True)
    driver.now = 5
    driver.ask(2, stream=True)
    deadline = driver.gateway.next_timeout()
    assert deadline is not None
    driver.tell(TurnLeft(1))
    later = driver.gateway.next_timeout()
    assert later is not None
    assert later.at >= deadline.at


MISUSE = [
    RequestReceived(-1, b"{}", []),
    RequestReceived(1, b"{}", []),  # this one runs
    RequestReceived(2, "{}", []),  # type: ignore[arg-type]  # the misuse that is tested
    RequestReceived(2, b"{}", [("a", b"b")]),  # type: ignore[list-item]  # the misuse that is tested
    RequestReceived(2, b"{}", [], scope=b"t"),  # type: ignore[arg-type]  # the misuse that is tested
    TurnReceived(2, parse_create(b'{"model":"m","input":"x"}'), []),
    TurnLeft(-1),
    LinkOpened(99),
    "foo",
    None,
]


@pytest.mark.parametrize("event", MISUSE, ids=lambda event: repr(event)[:40])
def test_misuse_raises_and_changes_nothing(event: GatewayEvent) -> None:
    driver = Driver()
    link = driver.send(stream=True)
    before, due = driver.gateway.bridge.snapshot(), driver.gateway.next_timeout()
    with pytest.raises(LocalProtocolError):
        driver.gateway.handle(event, 0)
    assert (driver.gateway.bridge.snapshot(), driver.gateway.next_timeout()) == (before, due)
    driver.tell(MessagesReceived(link, [CREATED, DONE]))


@pytest.mark.parametrize("now", [-1, 1.5, None, True])
def test_invalid_times_raise(now: int) -> None:
    with pytest.raises(LocalProtocolError):
        Gateway(CONFIG).handle(BridgeTimeout(), now)


@given(st.data())
def test_each_answer_has_one_shape(data: st.DataObject) -> None:
    """Whatever happens to the turns of a few clients: each answer is a stream with a head and an
    end, or one body, or one failure; and nothing follows its end."""
    driver = Driver()
    told: dict[int, list[type[GatewayEffect]]] = {}
    links: list[int] = []
    turns = 0

    def note(effects: list[GatewayEffect]) -> None:
        for effect in effects:
            if isinstance(effect, OpenLink):
                links.append(effect.link)
                note(driver.tell(LinkOpened(effect.link)))
            elif isinstance(effect, SendFrame):
                note(driver.tell(LinkFrameSent(effect.link)))
            elif (turn := getattr(effect, "turn", None)) is not None:
                told[turn].append(type(effect))

    left: set[int] = set()
    for _ in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["ask", "ask", "messages", "lost", "left", "wait"]))
        if what == "ask":
            turns += 1
            told[turns] = []
            note(driver.ask(turns, stream=data.draw(st.booleans())))
        elif what == "messages" and links:
            messages = data.draw(st.lists(st.sampled_from([CREATED, DELTA, DONE]), min_size=1))
            note(driver.tell(MessagesReceived(data.draw(st.sampled_from(links)), messages)))
        elif what == "lost" and links:
            note(driver.tell(LinkLost(data.draw(st.sampled_from(links)), Closed(1006))))
        elif what == "left" and turns:
            turn = data.draw(st.integers(1, turns))
            left.add(turn)
            note(driver.tell(TurnLeft(turn)))
        elif what == "wait" and driver.gateway.next_timeout() is not None:
            note(driver.wait())
    for shown in told.values():
        if BeginAnswer in shown:
            assert shown.index(BeginAnswer) == 0
            assert shown.count(BeginAnswer) == 1
            assert set(shown[1:]) <= {AnswerEvents, AnswerKeepalive, EndAnswer}
            assert EndAnswer not in shown[:-1]
        else:
            assert shown in ([], [AnswerBody], [FailAnswer])
    while driver.gateway.bridge.turns:
        note(driver.wait())
    for turn, shown in told.items():
        assert turn in left or shown[-1] in (EndAnswer, AnswerBody, FailAnswer)
