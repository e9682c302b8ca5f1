"""Tests of conversation.py: one conversation by itself, without a bridge (see test_bridge.py)."""

from __future__ import annotations

import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore.continuity.memory import Memory
from bridgecore.continuity.refused import RefusedFrames
from bridgecore.conversation import Conversation, Shared
from bridgecore.errors import InternalError
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    CloseLink,
    FailAnswer,
    LinkLost,
    OpenLink,
    SendFrame,
)
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.policy import DEFAULT
from bridgecore.recovery.session import Session
from bridgecore.transport import Log
from bridgecore.turns import RoutedTurn
from bridgecore.wire.requests import parse_create

KEY = [(b"authorization", b"k")]
CREATED = b'{"type":"response.created","response":{"id":"resp_1"}}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}'


@pytest.fixture
def shared() -> Shared:
    config = Config(upstream=UpstreamUrl.parse("ws://up/"))
    return Shared(DEFAULT, Memory(config), RefusedFrames(), max_held=10_000)


@pytest.fixture
def conversation(shared: Shared) -> Conversation:
    return Conversation(shared.numbers.next(), "scope", Session(), [], shared)


def turn(number: int, shared: Shared, text: str = "x") -> RoutedTurn:
    request = parse_create(b'{"model":"m","input":"%b"}' % text.encode())
    return RoutedTurn(number, shared.memory.recall("scope", request, [], 0))


def said(effects: list[BridgeEffect]) -> list[BridgeEffect]:
    return [effect for effect in effects if not isinstance(effect, Log)]


def test_its_methods_return_effects(conversation: Conversation, shared: Shared) -> None:
    assert said(conversation.submit(turn(1, shared), KEY, 0)) == [OpenLink(2, KEY)]
    (sent,) = said(conversation.opened([], 0))
    assert isinstance(sent, SendFrame)
    assert said(conversation.frame_sent(True, 0)) == []
    (answer,) = said(conversation.received([CREATED, DONE], None, 0))
    assert isinstance(answer, AnswerEvents)
    assert (conversation.turns, conversation.accounts.turns, conversation.spare) == ({}, 1, True)
    assert said(conversation.evict(0)) == [CloseLink(2)]
    assert (conversation.retired, conversation.link) == (True, None)


def test_state_of_a_connection_is_dropped_with_it(
    conversation: Conversation, shared: Shared
) -> None:
    conversation.submit(turn(1, shared), KEY, 0)
    conversation.opened([b'{"type":"x"}', b"noise"], 0)
    conversation.frame_sent(True, 0)
    conversation.received([b'{"type":"x"}'], None, 0)
    assert known(conversation) == (2, 0)  # events held back; noise since the last event
    (error,) = said(conversation.lost(LinkLost(2, Closed(1006)), 0))
    assert isinstance(error, FailAnswer)
    assert known(conversation) is None
    conversation.submit(turn(2, shared, "y"), KEY, 0)
    assert known(conversation) == (0, 0)


def known(conversation: Conversation) -> tuple[int, int] | None:
    link = conversation.link
    return None if link is None else (len(link.held.events), link.noise)


def test_a_frame_is_not_sent_twice_if_it_is_too_large(
    conversation: Conversation, shared: Shared
) -> None:
    conversation.submit(turn(1, shared), KEY, 0)
    conversation.opened([], 0)
    conversation.lost(LinkLost(2, Closed(1009)), 0)
    # Another conversation of the same bridge knows it.
    other = Conversation(shared.numbers.next(), "scope", Session(), [], shared)
    other.submit(turn(2, shared), KEY, 0)
    (error,) = said(other.opened([], 0))
    assert isinstance(error, FailAnswer)
    assert error.error.status == 413


def test_a_link_that_it_does_not_have_is_a_bug_of_its_caller(conversation: Conversation) -> None:
    with pytest.raises(InternalError, match="conversation 1"):
        conversation.opened([], 0)
