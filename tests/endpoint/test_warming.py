"""Connections that replace old ones are preloaded with the conversation's context.

What belongs here: whole endpoints with ``Rotation.WARM``.
"""

from __future__ import annotations

import pytest

from bridgecore.config import Rotation
from bridgecore.simulate.witness import said
from bridgecore.testing import (
    EVERY,
    Abort,
    CreateFrame,
    Error,
    Fault,
    Point,
    Silence,
)
from bridgecore.testing.faults import Action
from tests.endpoint_clients import (
    Historian,
    Talker,
    assert_empty,
    context,
    frame,
    heal,
    held,
    output_for,
    strike,
    user,
)
from tests.endpoint_world import NOT_FOUND, SECOND, World

LIFETIME = 100  # seconds; a connection is replaced up to a tenth earlier


def warming(**settings: object) -> World:
    """A world whose bridge preloads the connections that replace old ones."""
    return held(rotation=Rotation.WARM, upstream_lifetime=LIFETIME * SECOND, **settings)


def warm_ups(world: World) -> list[CreateFrame]:
    return [request for request in world.emulator.requests if request.body.get("generate") is False]


@pytest.mark.parametrize("store", [True, False])
def test_a_preloaded_connection_gets_new_items_only(store: bool) -> None:
    world = warming()
    talker = Talker(world, store, fields={"instructions": "Be brief.", "temperature": 0})
    talker.turn(user("a"))
    talker.turn(user("b"))
    before = len(world.frames)
    world.advance(LIFETIME)
    (request,) = warm_ups(world)
    assert len(world.frames) == before + 1
    assert request.anchor is None
    assert context(request) == [said(item) for item in talker.past[talker.last]]
    assert request.body["instructions"] == "Be brief."
    assert request.body["temperature"] == 0
    talker.turn(user("c"))
    assert frame(world)["input"] == [user("c")]
    assert frame(world)["previous_response_id"] not in talker.past
    assert frame(world)["store"] is store
    talker.turn(user("d"))
    assert frame(world)["previous_response_id"] == list(talker.past)[-2]
    assert talker.outcomes == ["200"] * 4
    assert world.net.connects == 2
    accounts = world.endpoint.bridge.accounts
    assert (accounts.turns, accounts.warmed, accounts.rehydrated) == (4, 1, 0)
    assert accounts.tokens_spent > 0
    assert_empty(world)


def test_a_socket_that_is_too_old_is_replaced_after_its_turn_and_warmed() -> None:
    world = warming()
    world.emulator.delta_interval = 30 * SECOND
    talker = Talker(world)
    talker.attempt(user("repeat 5 x"), wait=LIFETIME + 100)
    assert talker.outcomes == ["200"]
    assert len(warm_ups(world)) == 1
    world.emulator.delta_interval = 0
    talker.turn(user("b"))
    assert frame(world)["input"] == [user("b")]


def test_a_socket_is_warmed_as_the_latest_turn_would_have_it() -> None:
    world = warming()
    talker = Talker(world, fields={"instructions": "Be brief."})
    for text in ("Be brief.", "Be kind.", "Be kind."):
        talker.fields["instructions"] = text
        talker.turn(user("a"))
    world.advance(LIFETIME)
    (request,) = warm_ups(world)
    assert request.body["instructions"] == "Be kind."


def test_an_unused_conversation_is_warmed_once() -> None:
    world = warming(session_idle=1000 * SECOND)
    talker = Talker(world)
    talker.turn(user("a"))
    world.advance(10 * LIFETIME)
    assert len(warm_ups(world)) == 1
    talker.turn(user("b"))
    world.advance(2 * LIFETIME)
    assert len(warm_ups(world)) == 2
    assert_empty(world)


def test_a_full_history_continues_on_a_warmed_socket() -> None:
    world = warming()
    historian = Historian(world)
    historian.turn(user("a"))
    world.advance(LIFETIME)
    historian.turn(user("b"))
    assert frame(world)["input"] == [user("b")]
    assert world.net.connects == 2


def test_a_branch_does_not_continue_the_warm_up_of_another() -> None:
    world = warming()
    talker = Talker(world)
    talker.turn(user("a"))
    first = talker.last
    talker.turn(user("b"))
    world.advance(LIFETIME)
    talker.attempt(user("c"), after=first)
    assert "previous_response_id" not in frame(world)
    assert talker.outcomes == ["200"] * 3


def test_a_call_that_waits_for_its_output_is_not_warmed() -> None:
    """A call may not be sent without its output (OUTPUTS_HAVE_CALLS)."""
    world = warming()
    talker = Talker(world)
    (call,) = talker.turn(user("call tool look {}")).response["output"]
    world.advance(LIFETIME)
    assert warm_ups(world) == []
    talker.turn(output_for(call, "seen"))
    assert talker.outcomes == ["200"] * 2


@pytest.mark.parametrize(
    ("action", "sends"),
    [
        (Abort(), 1),
        (Error(429, "rate_limit_exceeded"), 1),
        (Silence(), 1),
        (Error(400, NOT_FOUND), 1),  # a full input that was refused is not sent again
    ],
)
def test_a_failed_warm_up_is_invisible_to_clients(action: Action, sends: int) -> None:
    world = warming(created_timeout=SECOND)
    talker = Talker(world)
    talker.turn(user("a"))
    strike(world, Point.BEFORE_CREATED, action)
    world.advance(LIFETIME + 10)
    assert len(warm_ups(world)) == sends
    heal(world)
    talker.turn(user("b"))
    assert talker.outcomes == ["200"] * 2
    assert_empty(world)


def test_a_turn_that_comes_while_its_socket_is_warmed_is_answered() -> None:
    world = warming()
    talker = Talker(world)
    talker.turn(user("a"))
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
    world.advance(LIFETIME)
    assert len(warm_ups(world)) == 1
    heal(world)
    talker.turn(user("b"))
    assert talker.outcomes == ["200"] * 2


def test_a_warm_up_makes_room() -> None:
    world = warming(max_sessions=1)
    one, two = Talker(world), Talker(world)
    one.turn(user("one"))
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
    world.advance(LIFETIME)
    assert (len(warm_ups(world)), world.endpoint.bridge.turns) == (1, 0)
    heal(world)
    two.turn(user("two"))
    assert two.outcomes == ["200"]
    assert world.endpoint.bridge.conversations == 1
    assert_empty(world)


def test_a_drain_does_not_wait_for_a_warm_up() -> None:
    world = warming()
    Talker(world).turn(user("a"))
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
    world.advance(LIFETIME)
    world.drain()
    world.advance(3)
    assert (world.endpoint.bridge.links, world.endpoint.bridge.conversations) == (0, 0)


def test_sockets_are_not_warmed_by_default() -> None:
    world = held(upstream_lifetime=LIFETIME * SECOND)
    Talker(world).turn(user("a"))
    world.advance(LIFETIME)
    assert warm_ups(world) == []
    assert world.endpoint.bridge.links == 0
