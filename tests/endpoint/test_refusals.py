"""A whole endpoint with transcripts is refused by its upstream: what is sent instead.

What belongs here: the connection limit, not-found in every shape, frames that are too large.
"""

from __future__ import annotations

import attrs
import pytest

from bridgecore.testing import (
    EVERY,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    Point,
    SendEvents,
)
from tests.endpoint_clients import (
    SHAPES,
    Historian,
    Talker,
    assert_empty,
    frame,
    heal,
    held,
    strike,
    user,
)
from tests.endpoint_world import NOT_FOUND, World

# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_frame_that_is_too_large(store: bool, stream: bool) -> None:
    """Each form of it is sent once, however often it is requested; a smaller one works."""
    world = held()
    talker = Talker(world, store, stream=stream)
    talker.attempt(user("a"))
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, CloseWith(1009)))
    for _ in range(4):
        answer = talker.attempt(user("b" * 10_000))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert "retry-after" not in answer.headers
    heal(world)
    # With the id; if only the lost connection knew that, once more in full.
    assert len(world.frames) == (2 if store else 3)
    talker.attempt(user("c"))
    assert talker.outcomes == ["200", *["413"] * 4, "200"]
    assert_empty(world)


def test_a_rebuilt_conversation_that_is_too_large_is_refused() -> None:
    """Each turn is small enough, and the whole of them is not: no other form of the turn is
    smaller."""
    world = held()
    talker = Talker(world)
    for n in range(3):
        talker.attempt(user(f"{n}" * 4_000))
    world.advance(1000)  # the connection that had the context cached is closed
    strike(world, Point.BEFORE_CREATED, CloseWith(1009))
    for _ in range(4):
        answer = talker.attempt(user("d"))
        assert answer.status == 413
        heal(world)
    assert len(world.frames) == 4
    talker.attempt(user("d"), after=list(talker.past)[1])
    assert talker.outcomes[-1] == "200"
    assert_empty(world)


def test_a_refused_size_is_remembered_per_credential() -> None:
    """Another credential may lead to another upstream with other limits."""
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, CloseWith(1009)))
    assert world.ask("b" * 10_000).status == 413
    assert world.ask("b" * 10_000).status == 413
    assert world.ask("b" * 10_000, key="sk-another").status == 200
    assert len(world.frames) == 2
    world.assert_empty()


# ------------------------------------------------------------------ refused in band


@pytest.mark.parametrize("shape", [ErrorShape.FULL, ErrorShape.NO_STATUS, ErrorShape.CODE_IN_TYPE])
@pytest.mark.parametrize("store", [True, False])
def test_the_connection_limit(store: bool, shape: ErrorShape) -> None:
    world = held()
    talker = Talker(world, store)
    talker.attempt(user("a"))
    limit = Error(400, "websocket_connection_limit_reached", "invalid_request_error", shape=shape)
    strike(world, Point.BEFORE_CREATED, limit)
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "200"]
    assert len(world.frames) == 3  # at most one extra send
    heal(world)
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, limit))
    for _ in range(6):  # however often: never not-found, never many frames
        before = len(world.frames)
        assert talker.attempt(user("c")).error["code"] == "upstream_unavailable"
        assert len(world.frames) - before <= 3
    heal(world)
    talker.attempt(user("c"))
    assert talker.outcomes[-1] == "200"
    assert_empty(world)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("store", [True, False])
def test_not_found_in_every_shape(store: bool, shape: ErrorShape) -> None:
    world = held()
    talker = Talker(world, store)
    talker.attempt(user("a"))
    message = f"Previous response with id '{talker.last}' not found."
    missing = Error(400, NOT_FOUND, "invalid_request_error", message, "previous_response_id", shape)
    if shape is ErrorShape.TERSE:
        missing = attrs.evolve(missing, message="Invalid `previous_response_id`.")
    strike(world, Point.BEFORE_CREATED, missing)
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "200"]
    assert [request.anchor is None for request in world.emulator.requests] == [True, False, True]
    heal(world)
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, missing))
    for _ in range(6):  # the upstream answers not-found to a turn without an anchor
        before = len(world.frames)
        assert talker.attempt(user("c")).status == 502
        assert len(world.frames) - before <= 2
    heal(world)
    talker.attempt(user("c"))
    assert talker.outcomes[-1] == "200"
    assert_empty(world)


FAILED = (
    b'{"type":"response.failed","response":{"id":"%RESPONSE_ID%","status":"failed",'
    b'"error":{"code":"previous_response_not_found","message":"Not found."},"output":[]}}'
)


def test_not_found_as_a_failed_response() -> None:
    world = held()
    talker = Talker(world)
    talker.attempt(user("a"))
    strike(world, Point.BEFORE_CREATED, SendEvents((FAILED,)))
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "200"]
    assert_empty(world)


@pytest.mark.parametrize("stream", [True, False])
def test_not_found_after_the_answer_began(stream: bool) -> None:
    world = held()
    created = b'{"type":"response.created","response":{"id":"%RESPONSE_ID%"}}'
    talker, historian = Talker(world, stream=stream), Historian(world)
    for client in (talker, historian):
        client.attempt(user("a"))
        strike(world, Point.BEFORE_CREATED, SendEvents((created, FAILED)))
        client.attempt(user("b"))
        heal(world)
        client.attempt(user("b"))
    assert talker.outcomes == ["200", "failed" if stream else "502", "200"]
    assert historian.outcomes == ["200", "failed", "200"]
    # For an id that the bridge does not hold, the upstream's error is relayed.
    strike(world, Point.BEFORE_CREATED, SendEvents((created, FAILED)))
    answer = world.ask("c", previous_response_id="resp_strange", stream=False)
    assert (answer.status, answer.error["code"]) == (400, NOT_FOUND)
    assert_empty(world)


@pytest.mark.parametrize(
    ("status", "code", "seen"),
    [
        (400, "context_length_exceeded", 400),
        (401, "invalid_api_key", 401),
        (429, "rate_limit_exceeded", 429),
        (500, "server_error", 502),
        (503, "overloaded", 502),
    ],
)
@pytest.mark.parametrize("store", [True, False])
def test_an_evicted_anchor_is_never_sent_again(
    store: bool, status: int, code: str, seen: int
) -> None:
    world = held()
    talker = Talker(world, store)
    talker.attempt(user("a"))
    strike(world, Point.BEFORE_CREATED, Error(status, code, "some_error", "Their words."))
    answer = talker.attempt(user("b"))
    assert (answer.status, answer.error["code"]) == (seen, code)
    assert answer.error["message"] == "Their words."
    talker.attempt(user("b"))
    assert frame(world).get("previous_response_id") is None
    talker.attempt(user("c"))
    assert talker.outcomes == ["200", str(seen), "200", "200"]
    assert_empty(world)


def test_an_upstream_that_loses_what_it_stores() -> None:
    world = held()
    talker = Talker(world, store=True)
    talker.attempt(user("a"))
    world.advance(1000)
    world.emulator._storage.clear_responses()
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "200"]
    assert_empty(world)
