"""Tests of bridge.py: messages in and effects out, without bytes."""

from __future__ import annotations

import json
import re

import attrs
import pytest

from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity, OnAmbiguousLoss, UpstreamUrl
from bridgecore.errors import LocalProtocolError
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    BridgeTimeout,
    CloseLink,
    DrainStarted,
    FailAnswer,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    PauseLink,
    SendFrame,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
)
from bridgecore.recovery.failure import Closed, ErrorFrame, UpgradeRefused
from bridgecore.recovery.timers import Timer
from bridgecore.transport import Log
from bridgecore.wire.requests import parse_create

CREATED = b'{"type":"response.created","response":{"id":"resp_1"}}'
DELTA = b'{"type":"response.output_text.delta","delta":"x"}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}'
SECRET = (b"authorization", b"Bearer sk-secret")


@attrs.define
class Driver:
    """A driver without a network: it reports what a test says and records the effects."""

    bridge: Bridge
    now: int = 0
    logs: list[Log] = attrs.Factory(list)

    def tell(self, event: BridgeEvent) -> list[BridgeEffect]:
        effects = self.bridge.handle(event, self.now)
        self.logs += [effect for effect in effects if isinstance(effect, Log)]
        return [effect for effect in effects if not isinstance(effect, Log)]

    def submit(self, turn: int, **fields: object) -> list[BridgeEffect]:
        body = json.dumps({"model": "m", "input": "the words", **fields}).encode()
        return self.tell(TurnReceived(turn, parse_create(body), [SECRET, (b"cookie", b"c")]))

    def send(self, turn: int = 1, **fields: object) -> int:
        """Submit a new turn and report its frame as sent; its link."""
        (opened,) = self.submit(turn, **fields)
        assert isinstance(opened, OpenLink)
        (sent,) = self.tell(LinkOpened(opened.link))
        assert isinstance(sent, SendFrame)
        assert self.tell(LinkFrameSent(opened.link)) == []
        return opened.link


def driving(continuity: Continuity) -> Driver:
    upstream = UpstreamUrl.parse("ws://up/")
    return Driver(Bridge(Config(upstream=upstream, max_waiting=1, continuity=continuity)))


@pytest.fixture
def driver() -> Driver:
    return driving(Continuity.TRANSCRIPT)


@pytest.fixture
def bound() -> Driver:
    """Without transcripts: only the connection that made a response can continue it."""
    return driving(Continuity.PASSTHROUGH)


def test_a_turn(driver: Driver) -> None:
    (opened,) = driver.submit(1)
    assert opened == OpenLink(opened.link, [SECRET]) if isinstance(opened, OpenLink) else False
    assert isinstance(opened, OpenLink)
    link = opened.link
    frame = b'{"type":"response.create","model":"m","input":"the words"}'
    assert driver.tell(LinkOpened(link)) == [SendFrame(link, frame)]
    assert driver.tell(LinkFrameSent(link)) == []
    # All events of one read are delivered in one effect, the terminal event last.
    (answer,) = driver.tell(MessagesReceived(link, [CREATED, DELTA, DELTA, DONE]))
    assert isinstance(answer, AnswerEvents)
    assert [event.data for event in answer.events] == [CREATED, DELTA, DELTA, DONE]
    assert (driver.bridge.turns, driver.bridge.links, driver.bridge.conversations) == (0, 1, 1)


def test_a_delta_in_mid_output_meets_no_rule(driver: Driver) -> None:
    link = driver.send()
    driver.tell(MessagesReceived(link, [CREATED, DELTA]))
    (conversation,) = driver.bridge._conversations.values()
    before = conversation.session.state
    (answer,) = driver.tell(MessagesReceived(link, [DELTA] * 100))
    assert isinstance(answer, AnswerEvents)
    assert len(answer.events) == 100
    assert conversation.session.state is before


def test_a_full_hold_back_buffer_is_delivered_and_ends_the_replay() -> None:
    """No event is dropped because the buffer is full, and the turn is not resent after it was
    shown."""
    upstream = UpstreamUrl.parse("ws://up/")
    driver = Driver(Bridge(Config(upstream=upstream, ambiguous=OnAmbiguousLoss.REPLAY)))
    link = driver.send()
    queued = [b'{"type":"response.queued","sequence_number":%d}' % n for n in range(1, 300)]
    assert driver.tell(MessagesReceived(link, [CREATED, *queued[:100]])) == []
    (answer,) = driver.tell(MessagesReceived(link, queued[100:]))
    assert isinstance(answer, AnswerEvents)
    assert [event.data for event in answer.events] == [CREATED, *queued]
    (error,) = driver.tell(LinkLost(link, Closed(1006)))
    assert isinstance(error, FailAnswer)


def test_continuing(driver: Driver) -> None:
    link = driver.send(store=False)
    driver.tell(MessagesReceived(link, [CREATED, DONE]))
    (sent,) = driver.submit(2, previous_response_id="resp_1", store=False)
    assert isinstance(sent, SendFrame)
    assert sent.link == link


@pytest.mark.parametrize("name", ["resp_1", "resp_created"])
def test_either_id_of_a_response_continues_it_where_it_was_made(driver: Driver, name: str) -> None:
    link = driver.send(store=False)
    created = CREATED.replace(b"resp_1", b"resp_created")
    driver.tell(MessagesReceived(link, [created, DONE]))
    (sent,) = driver.submit(2, previous_response_id=name, store=False)
    assert isinstance(sent, SendFrame)
    assert sent.link == link
    assert json.loads(sent.data)["previous_response_id"] == name


@pytest.mark.parametrize("where", ["created", "completed", "both", "neither"])
@pytest.mark.parametrize(
    ("continuity", "standings"),
    [
        (Continuity.PASSTHROUGH, ("bound", "stored")),
        (Continuity.TRANSCRIPT, ("held", "held_stored")),
    ],
)
def test_a_response_that_says_it_is_not_stored_is_bound_to_its_socket(
    where: str, continuity: Continuity, standings: tuple[str, str]
) -> None:
    """The request omitted ``store``; it is enough if one of ``created`` and ``completed``
    has it."""
    driver = driving(continuity)
    link = driver.send()
    says = b'"id":"resp_1","store":false'
    created, done = (
        event.replace(b'"id":"resp_1"', says) if where in (name, "both") else event
        for name, event in (("created", CREATED), ("completed", DONE))
    )
    driver.tell(MessagesReceived(link, [created, done]))
    driver.submit(2, previous_response_id="resp_1")
    received = [log.fields for log in driver.logs if log.event == "turn.received"]
    assert received[-1]["standing"] == standings[where == "neither"]


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_a_failed_response_makes_no_anchor(driver: Driver, end: str) -> None:
    link = driver.send(store=False)
    terminal = b'{"type":"response.%b","response":{"id":"resp_1"}}' % end.encode()
    driver.tell(MessagesReceived(link, [CREATED, terminal]))
    (effect,) = driver.submit(2, previous_response_id="resp_1", store=False)
    assert isinstance(effect, OpenLink if end == "failed" else SendFrame)


def test_a_refused_upgrade(driver: Driver) -> None:
    (opened,) = driver.submit(1)
    assert isinstance(opened, OpenLink)
    words = ErrorFrame(code="invalid_api_key", message="Wrong.")
    (answer,) = driver.tell(LinkLost(opened.link, UpgradeRefused(401), words))
    assert isinstance(answer, FailAnswer)
    assert (answer.turn, answer.error.status, answer.error.code) == (1, 401, "invalid_api_key")
    assert (driver.bridge.turns, driver.bridge.links) == (0, 0)


def test_a_lost_link(driver: Driver) -> None:
    link = driver.send()
    (answer,) = driver.tell(LinkLost(link, Closed(1006)))
    assert isinstance(answer, FailAnswer)
    assert answer.error.code == "stream_incomplete"
    assert driver.tell(MessagesReceived(link, [CREATED])) == []
    assert driver.tell(LinkLost(link, Closed(1006))) == []
    assert driver.tell(LinkOpened(link)) == []
    assert driver.tell(LinkFrameSent(link)) == []


def test_noise_is_skipped_and_counted(driver: Driver) -> None:
    link = driver.send()
    (answer,) = driver.tell(MessagesReceived(link, [b"", CREATED, b"garbage", DELTA, b"[]", DONE]))
    assert isinstance(answer, AnswerEvents)
    assert [event.data for event in answer.events] == [CREATED, DELTA, DONE]
    assert driver.tell(MessagesReceived(link, [b"garbage", b"null"])) == []
    (conversation,) = driver.bridge._conversations.values()
    assert (conversation.unmatched, driver.bridge.links) == (5, 1)


def test_unmatched_events_are_counted(driver: Driver) -> None:
    link = driver.send()
    driver.tell(MessagesReceived(link, [CREATED, DONE]))
    assert driver.tell(MessagesReceived(link, [DELTA, CREATED, b'{"type":"x"}', DONE])) == []
    (conversation,) = driver.bridge._conversations.values()
    assert conversation.unmatched == 4


def test_messages_read_before_the_send_do_not_answer_it(driver: Driver) -> None:
    link = driver.send(store=False)
    done = b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}'
    driver.tell(MessagesReceived(link, [CREATED, done]))
    driver.submit(2, previous_response_id="resp_1", store=False)
    driver.tell(LinkFrameSent(link))
    refusal = b'{"type":"error","error":{"code":"previous_response_not_found"}}'
    # It is held: resent in full. Events behind the refusal cannot be an answer to the resend.
    second = [one.replace(b"resp_1", b"resp_2") for one in (CREATED, done)]
    (sent,) = driver.tell(MessagesReceived(link, [refusal, *second]))
    assert isinstance(sent, SendFrame)
    assert b"previous_response_id" not in sent.data
    third = [one.replace(b"resp_1", b"resp_3") for one in (CREATED, done)]
    (answer,) = driver.tell(MessagesReceived(link, third))
    assert isinstance(answer, AnswerEvents)
    assert [event.data for event in answer.events] == third


def test_blocking(driver: Driver) -> None:
    link = driver.send()
    assert driver.tell(TurnBlocked(1, True)) == []  # nothing is relayed yet
    driver.tell(MessagesReceived(link, [CREATED]))
    assert driver.tell(TurnBlocked(1, True)) == [PauseLink(link, True)]
    assert driver.tell(TurnBlocked(1, True)) == []
    deadline = driver.bridge.next_timeout()
    assert deadline is not None
    assert deadline.reason is not Timer.IDLE
    assert driver.tell(TurnBlocked(1, False)) == [PauseLink(link, False)]
    assert driver.tell(TurnBlocked(1, False)) == []
    deadline = driver.bridge.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.IDLE
    driver.tell(TurnBlocked(1, True))
    effects = driver.tell(MessagesReceived(link, [DONE]))
    assert PauseLink(link, False) in effects
    assert driver.tell(TurnBlocked(1, True)) == []


def test_waiting_turns(bound: Driver) -> None:
    link = bound.send(store=False)
    bound.tell(MessagesReceived(link, [CREATED, DONE]))
    fields = {"previous_response_id": "resp_1", "store": False}
    bound.submit(2, **fields)
    bound.tell(MessagesReceived(link, [CREATED.replace(b"resp_1", b"resp_2")]))
    bound.tell(TurnBlocked(2, True))
    assert bound.submit(3, **fields) == []
    (rejected,) = bound.submit(4, **fields)
    assert isinstance(rejected, FailAnswer)
    assert rejected.error.code == "bridge_overloaded"
    # Neither a rejected turn nor one that leaves resumes the link of the blocked turn.
    assert bound.tell(TurnBlocked(3, True)) == []
    assert bound.tell(TurnBlocked(3, False)) == []
    assert bound.tell(TurnLeft(3)) == []
    assert bound.bridge.turns == 1


def test_leaving(driver: Driver) -> None:
    link = driver.send()
    assert driver.tell(TurnLeft(1)) == [CloseLink(link)]
    assert driver.tell(TurnLeft(1)) == []
    assert (driver.bridge.turns, driver.bridge.links) == (0, 0)


def test_a_busy_session_is_not_evicted(driver: Driver) -> None:
    idle = driver.send(1)
    driver.tell(MessagesReceived(idle, [CREATED, DONE]))
    busy = driver.send(2)
    assert driver.tell(DrainStarted()) == [CloseLink(idle)]
    assert (driver.bridge.conversations, driver.bridge.turns) == (1, 1)
    assert driver.tell(TurnLeft(2)) == [CloseLink(busy)]


def test_deadlines(driver: Driver) -> None:
    assert driver.bridge.next_timeout() is None
    driver.send()
    driver.tell(BridgeTimeout())  # a timer that is not due does nothing
    deadline = driver.bridge.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.CREATED
    driver.now = deadline.at
    effects = driver.tell(BridgeTimeout())
    assert [type(effect) for effect in effects] == [CloseLink, FailAnswer]
    later = driver.bridge.next_timeout()
    assert later is not None
    assert later.at > driver.now
    driver.now = later.at
    driver.tell(BridgeTimeout())
    assert driver.bridge.next_timeout() is None
    assert driver.bridge.conversations == 0


def test_logs(driver: Driver) -> None:
    link = driver.send()
    driver.tell(MessagesReceived(link, [CREATED, DONE]))
    told = repr(driver.logs)
    assert "turn.sent" in told
    for secret in ("sk-secret", "the words", "resp_1"):
        assert secret not in told
    for log in driver.logs:
        assert {"session", "generation", "rule"} <= set(log.fields)


# ------------------------------------------------------------------ misuse


def test_a_turn_number_is_used_again_only_when_its_turn_has_ended(driver: Driver) -> None:
    link = driver.send(1)
    before = driver.bridge.snapshot()
    with pytest.raises(LocalProtocolError, match="turn 1 runs already"):
        driver.submit(1)
    with pytest.raises(LocalProtocolError, match="turn 1 runs already"):
        driver.submit(1, input="other words")
    assert driver.bridge.snapshot() == before
    driver.tell(MessagesReceived(link, [CREATED, DONE]))
    assert isinstance(driver.submit(1)[0], OpenLink)


def test_a_waiting_turn_keeps_its_number(bound: Driver) -> None:
    link = bound.send(1, store=False)
    bound.tell(MessagesReceived(link, [CREATED, DONE]))
    bound.submit(2, previous_response_id="resp_1", store=False)
    assert bound.submit(3, previous_response_id="resp_1", store=False) == []  # it waits
    with pytest.raises(LocalProtocolError, match="turn 3 runs already"):
        bound.submit(3)


LINK = 2  # the first link of a bridge: its conversation is 1


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ("foo", "'foo' is not an event: see bridgecore.messages"),
        (CloseLink(LINK), "is not an event"),
        (LinkLost(LINK, 1006), "cause must be"),  # type: ignore[arg-type]  # no evidence
        (LinkLost(LINK, ErrorFrame(status="404")), "status must be"),  # type: ignore[arg-type]  # text is wrong
        (LinkLost(LINK, Closed(1006), "gone"), "error must be"),  # type: ignore[arg-type]  # text is wrong
        (LinkOpened(LINK), "link 2 was opened before"),
        (LinkOpened(7), "link 7 was never asked for"),
        (LinkOpened(0), "link 0 was never asked for"),
        (LinkFrameSent("1"), "link must be int"),  # type: ignore[arg-type]  # text is wrong
        (MessagesReceived(LINK, b"{}"), "messages must be list"),  # type: ignore[arg-type]  # bytes are wrong
        (MessagesReceived(LINK, [DELTA, "{}"]), "list of bytes"),  # type: ignore[list-item]  # text is wrong
        (TurnReceived(2, {"model": "m"}, []), "request must be"),  # type: ignore[arg-type]  # a dict is wrong
        (TurnReceived(-2, parse_create(b'{"model":"m"}'), []), "0 or more"),
        (TurnLeft(-2), "0 or more"),
        (TurnBlocked(-2, True), "0 or more"),
        (TurnBlocked(1, 1), "blocked must be bool"),  # type: ignore[arg-type]  # a number is wrong
    ],
)
def test_misuse_raises_and_changes_nothing(event: BridgeEvent, text: str) -> None:
    driver = Driver(Bridge(Config(upstream=UpstreamUrl.parse("ws://up/"), max_waiting=1)))
    (opened,) = driver.submit(1)
    assert isinstance(opened, OpenLink)
    assert opened.link == LINK
    driver.tell(LinkOpened(LINK))
    driver.tell(LinkFrameSent(LINK))
    before = driver.bridge.snapshot(), driver.bridge.next_timeout()
    with pytest.raises(LocalProtocolError, match=re.escape(text)):
        driver.tell(event)
    assert (driver.bridge.snapshot(), driver.bridge.next_timeout()) == before
    (answer,) = driver.tell(MessagesReceived(LINK, [CREATED, DELTA, DONE]))
    assert isinstance(answer, AnswerEvents)
    assert len(answer.events) == 3


def test_messages_of_a_link_that_is_not_open_are_misuse(driver: Driver) -> None:
    (opened,) = driver.submit(1)
    assert isinstance(opened, OpenLink)
    for event in (MessagesReceived(opened.link, [CREATED]), LinkFrameSent(opened.link)):
        with pytest.raises(LocalProtocolError, match="before LinkOpened"):
            driver.tell(event)
    assert isinstance(driver.tell(LinkOpened(opened.link))[0], SendFrame)


def test_events_of_a_closed_link_are_ignored(driver: Driver) -> None:
    link = driver.send(1)
    (closed,) = driver.tell(TurnLeft(1))
    assert closed == CloseLink(link)
    for event in (
        LinkOpened(link),
        LinkFrameSent(link),
        MessagesReceived(link, [CREATED]),
        LinkLost(link, Closed(1006)),
        TurnLeft(1),
        TurnBlocked(1, True),
    ):
        assert driver.tell(event) == []


def test_an_overloaded_refusal_is_logged_with_the_code_of_the_client() -> None:
    config = Config(upstream=UpstreamUrl.parse("ws://up/"), max_sessions=1)
    driver = Driver(Bridge(config))
    driver.send(1)
    (error,) = driver.submit(2)
    assert isinstance(error, FailAnswer)
    (log,) = [log for log in driver.logs if log.event == "turn.refused"]
    assert (log.fields["turn"], log.fields["status"], log.fields["code"]) == (
        2,
        error.error.status,
        error.error.code,
    )
