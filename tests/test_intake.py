"""Tests of intake.py: a turn before it is sent, with a resolver that answers late or never."""

from __future__ import annotations

import json
import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.api_error import api_error
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.errors import LocalProtocolError
from bridgecore.gateway import Gateway
from bridgecore.intake import Resolver
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    BridgeTimeout,
    DrainStarted,
    FailAnswer,
    KnownResponse,
    LinkFrameSent,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    PauseLink,
    RequestReceived,
    ResolveTurn,
    SendFrame,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
    TurnResolved,
)
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.transport import Log
from bridgecore.wire.requests import parse_create

CREATED = b'{"type":"response.created","response":{"id":"resp_1"}}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}'
CONFIG = Config(
    upstream=UpstreamUrl.parse("ws://up/"), max_sessions=2, continuity=Continuity.PASSTHROUGH
)
BUDGET = CONFIG.turn_timeout


@attrs.define
class Driver:
    """A driver whose bridge asks it about each turn; unanswered questions stay open."""

    bridge: Bridge = attrs.Factory(lambda: Bridge(CONFIG, resolver=Resolver.DRIVER))
    now: int = 0
    logs: list[Log] = attrs.Factory(list)

    def tell(self, event: BridgeEvent) -> list[BridgeEffect]:
        effects = self.bridge.handle(event, self.now)
        self.logs += [effect for effect in effects if isinstance(effect, Log)]
        return [effect for effect in effects if not isinstance(effect, Log)]

    def received(self, turn: int, **fields: object) -> TurnReceived:
        body = json.dumps({"model": "m", "input": "x", **fields}).encode()
        return TurnReceived(turn, parse_create(body), [(b"authorization", b"k")])

    def ask(self, turn: int, **fields: object) -> int:
        """Receive a turn; the number of its lookup, which is the only effect."""
        (asked,) = self.tell(self.received(turn, **fields))
        assert isinstance(asked, ResolveTurn)
        assert asked.turn == turn
        return asked.query

    def resolve(self, query: int, known: KnownResponse | None = None) -> int:
        """Answer a lookup and report the turn's frame as sent; its link."""
        (opened,) = self.tell(TurnResolved(query, known))
        assert isinstance(opened, OpenLink)
        self.tell(LinkOpened(opened.link))
        self.tell(LinkFrameSent(opened.link))
        return opened.link

    def wait(self) -> list[BridgeEffect]:
        """Let the next deadline pass."""
        deadline = self.bridge.next_timeout()
        assert deadline is not None
        self.now = max(self.now, deadline.at)
        return self.tell(BridgeTimeout())

    def counts(self) -> tuple[int, int, int]:
        return self.bridge.turns, self.bridge.conversations, self.bridge.links


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_a_turn_that_is_resolved_late_is_answered(driver: Driver) -> None:
    query = driver.ask(1)
    assert driver.counts() == (1, 0, 0)
    driver.now = BUDGET // 2
    link = driver.resolve(query)
    assert driver.counts() == (1, 1, 1)
    (answer,) = driver.tell(MessagesReceived(link, [CREATED, DONE]))
    assert isinstance(answer, AnswerEvents)
    assert driver.counts() == (0, 1, 1)


def test_an_unresolved_turn_times_out_at_its_deadline(driver: Driver) -> None:
    query = driver.ask(1, previous_response_id="resp_0")
    deadline = driver.bridge.next_timeout()
    assert deadline is not None
    assert (deadline.at, deadline.reason) == (BUDGET, Timer.TURN)
    assert driver.tell(BridgeTimeout()) == []  # too early
    (error,) = driver.wait()
    assert isinstance(error, FailAnswer)
    assert (error.turn, error.error.status) == (1, 502)
    assert error.error.code == "upstream_request_timeout"
    assert error.error.retry_after is not None
    assert driver.logs[-1].event == "turn.refused"
    assert driver.counts() == (0, 0, 0)
    assert driver.bridge.next_timeout() is None
    assert driver.tell(TurnResolved(query)) == []
    assert driver.logs[-1].event == "turn.ignored"


def test_an_answer_at_the_end_of_the_budget_is_too_late(driver: Driver) -> None:
    query = driver.ask(1)
    driver.now = BUDGET
    (error,) = driver.tell(TurnResolved(query))
    assert isinstance(error, FailAnswer)
    assert error.error.code == "upstream_request_timeout"
    assert driver.tell(BridgeTimeout()) == []
    assert driver.counts() == (0, 0, 0)


@given(st.integers(0, BUDGET - 1))
def test_the_budget_begins_when_the_turn_is_received(took: int) -> None:
    driver = Driver()
    query = driver.ask(1)
    driver.now = took
    link = driver.resolve(query)
    driver.tell(MessagesReceived(link, [CREATED]))
    deadline = driver.bridge.next_timeout()
    while deadline is not None and deadline.reason is not Timer.TURN:
        # The upstream goes on answering, without an end.
        driver.now = deadline.at - 1
        driver.tell(MessagesReceived(link, [b'{"type":"response.in_progress"}']))
        driver.now = deadline.at
        assert driver.tell(BridgeTimeout()) == []
        deadline = driver.bridge.next_timeout()
    assert deadline is not None
    assert deadline.at == BUDGET
    effects = driver.wait()
    assert [effect.error.code for effect in effects if isinstance(effect, FailAnswer)] == [
        "upstream_request_timeout"
    ]


def test_a_waiting_turn_fails_at_its_own_deadline(driver: Driver) -> None:
    """Both continue the same response, on the only connection that can."""
    link = driver.resolve(driver.ask(1, store=False))
    driver.tell(MessagesReceived(link, [CREATED, DONE]))
    fields = {"previous_response_id": "resp_1", "store": False}
    slow = driver.ask(2, **fields)
    driver.now = 10 * NS_PER_SECOND
    (sent,) = driver.tell(TurnResolved(driver.ask(3, **fields)))
    assert isinstance(sent, SendFrame)
    driver.tell(LinkFrameSent(link))
    driver.tell(MessagesReceived(link, [CREATED.replace(b"_1", b"_2")]))
    driver.tell(TurnBlocked(3, True))  # its client reads slowly: no other deadline is near
    assert driver.tell(TurnResolved(slow)) == []  # it waits
    deadline = driver.bridge.next_timeout()
    while deadline is not None and deadline.at < BUDGET:
        driver.wait()
        deadline = driver.bridge.next_timeout()
    (error,) = driver.wait()
    assert isinstance(error, FailAnswer)
    assert (error.turn, driver.now) == (2, BUDGET)
    assert driver.bridge.turns == 1


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_client_that_left_before_the_answer(driver: Driver, cut_off: bool) -> None:
    query = driver.ask(1)
    error = api_error(503, "shutting_down", "The bridge is going down.") if cut_off else None
    assert driver.tell(TurnLeft(1, error)) == []
    assert driver.logs[-1].event == ("turn.cut_off" if cut_off else "turn.abandoned")
    assert driver.logs[-1].fields.get("code") == ("shutting_down" if cut_off else None)
    assert driver.counts() == (0, 0, 0)
    assert driver.bridge.next_timeout() is None
    assert driver.tell(TurnLeft(1)) == []
    # Its number is reused; the late answer is not attributed to the new turn.
    again = driver.ask(1)
    assert driver.tell(TurnResolved(query)) == []
    assert driver.logs[-1].event == "turn.ignored"
    assert driver.logs[-1].fields["query"] == query
    assert isinstance(driver.tell(TurnResolved(again))[0], OpenLink)


def test_a_repeated_answer_changes_nothing(driver: Driver) -> None:
    query = driver.ask(1)
    driver.resolve(query)
    before = driver.bridge.snapshot()
    assert driver.tell(TurnResolved(query)) == []
    assert driver.logs[-1].event == "turn.ignored"
    assert driver.bridge.snapshot() == before


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (TurnResolved(0), "query 0 was never asked by ResolveTurn"),
        (TurnResolved(2), "query 2 was never asked by ResolveTurn"),
        (TurnResolved("1"), "query must be int"),  # type: ignore[arg-type]  # text is wrong
        (TurnResolved(1, "resp_1"), "known must be"),  # type: ignore[arg-type]  # text is wrong
        (TurnResolved(1, KnownResponse("r", 1)), "stored must be bool"),  # type: ignore[arg-type]  # a number is wrong
    ],
)
def test_misuse_raises_and_changes_nothing(event: BridgeEvent, text: str) -> None:
    driver = Driver()
    query = driver.ask(1)
    before = driver.bridge.snapshot(), driver.bridge.next_timeout()
    with pytest.raises(LocalProtocolError, match=re.escape(text)):
        driver.tell(event)
    with pytest.raises(LocalProtocolError, match="turn 1 runs already"):
        driver.tell(driver.received(1))
    assert (driver.bridge.snapshot(), driver.bridge.next_timeout()) == before
    driver.resolve(query)


def test_what_happens_while_a_turn_is_resolved_does_not_concern_it(driver: Driver) -> None:
    query = driver.ask(1)
    for event in (TurnBlocked(1, True), TurnBlocked(1, False), DrainStarted()):
        assert driver.tell(event) == []
    link = driver.resolve(query)
    driver.tell(MessagesReceived(link, [CREATED]))
    assert driver.tell(TurnBlocked(1, True)) == [PauseLink(link, True)]


def test_room_is_asked_for_when_a_turn_is_resolved(driver: Driver) -> None:
    queries = [driver.ask(turn) for turn in (1, 2, 3)]
    for query in queries[:2]:
        driver.resolve(query)
    (error,) = driver.tell(TurnResolved(queries[2]))
    assert isinstance(error, FailAnswer)
    assert (error.turn, error.error.status) == (3, 503)
    assert driver.counts() == (2, 2, 2)


@pytest.mark.parametrize(
    ("known", "standing"),
    [
        (None, "unknown"),
        (KnownResponse("resp_7", True), "stored"),
        (KnownResponse("resp_7", False), "bound"),
    ],
)
def test_a_resolver_tells_what_others_know(
    driver: Driver, known: KnownResponse | None, standing: str
) -> None:
    """This bridge does not know the response. It is sent, unless it is cached on a connection of
    another replica."""
    query = driver.ask(1, previous_response_id="resp_0")
    (opened,) = driver.tell(TurnResolved(query, known))
    assert isinstance(opened, OpenLink)
    (effect,) = driver.tell(LinkOpened(opened.link))
    (line,) = [log for log in driver.logs if log.event == "turn.received"]
    assert line.fields["standing"] == standing
    assert isinstance(effect, FailAnswer if standing == "bound" else SendFrame)


def test_own_knowledge_takes_precedence_over_the_resolver(driver: Driver) -> None:
    link = driver.resolve(driver.ask(1, store=False))
    driver.tell(MessagesReceived(link, [CREATED, DONE]))
    query = driver.ask(2, previous_response_id="resp_1", store=False)
    (sent,) = driver.tell(TurnResolved(query, KnownResponse("resp_9", True)))
    assert isinstance(sent, SendFrame)
    assert sent.link == link  # where it was made


def test_two_bridges_agree_if_answers_come_at_once() -> None:
    """The result is the same, whoever resolves."""
    late, at_once = Driver(), Driver(Bridge(CONFIG))
    for turn in (1, 2):
        query = late.ask(turn)
        assert late.tell(TurnResolved(query)) == at_once.tell(at_once.received(turn))
    assert late.bridge.snapshot() == at_once.bridge.snapshot()


def test_a_gateway_passes_questions_and_answers_on() -> None:
    gateway = Gateway(CONFIG, resolver=Resolver.DRIVER)
    request = RequestReceived(1, b'{"model":"m","input":"x","stream":true}', [])
    (asked,) = [effect for effect in gateway.handle(request, 0) if not isinstance(effect, Log)]
    assert isinstance(asked, ResolveTurn)
    effects = gateway.handle(TurnResolved(asked.query), 1)
    assert [type(effect) for effect in effects if not isinstance(effect, Log)] == [OpenLink]
