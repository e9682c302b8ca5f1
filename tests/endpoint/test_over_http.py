"""Upstreams that are reached over HTTP, from the first turn or in place of a WebSocket.

What belongs here: whole endpoints against the emulator. The clients check after each answer that
the context at the upstream is the whole conversation: over HTTP nothing is remembered there.
"""

from __future__ import annotations

from typing import Any

import pytest

from bridgecore.config import Fallback, Rotation
from bridgecore.testing import CATALOGUE, Abort, CloseWith, Emulator, Fault, Point, Reject, Text
from bridgecore.testing.faults import EVERY, Error, Freeze, Garbage, ReadSlowly, SendEvents, Silence
from bridgecore.testing.network import WINDOW
from tests.endpoint_clients import Historian, Talker, assert_empty, frame, heal, held, strike, user
from tests.endpoint_world import NOT_FOUND, SECOND, World

URL = "http://up/v1"
UPGRADING = (Point.ON_CONNECT, Point.ON_UPGRADE)
NO_WEBSOCKET = [404, 405, 426, 501]


def over_http(**settings: Any) -> World:
    return held(url=URL, **settings)


def falling_back(status: int = 426, **settings: Any) -> World:
    """A world whose upstream answers each upgrade with ``status``."""
    world = held(fallback=Fallback.HTTP, **settings)
    world.emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, Reject(status)))
    return world


# ------------------------------------------------------------------ conversations


@pytest.mark.parametrize("url", [URL, "http://up/v1/responses", "http://up/v1/"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ignores_stream", [True, False])
def test_a_conversation_continues(url: str, stream: bool, ignores_stream: bool) -> None:
    world = held(url=url, emulator=Emulator(ignores_stream=ignores_stream))
    talker = Talker(world, stream=stream)
    for number in range(3):
        assert talker.attempt(user(f"q{number}")).status == 200
    assert (world.emulator.posts, world.emulator.upgrades) == (3, 0)
    assert [one.get("previous_response_id") for one in world.frames] == [None] * 3
    assert world.emulator.accepted == 1  # the connection is used again
    assert_empty(world)


def test_a_stored_conversation_is_continued_by_its_id() -> None:
    world = over_http()
    talker = Talker(world, store=True)
    first = talker.attempt(user("one")).response["id"]
    talker.attempt(user("two"))
    assert frame(world)["previous_response_id"] == first
    assert len(frame(world)["input"]) == 1
    assert_empty(world)


def test_a_whole_history_is_sent_as_it_is() -> None:
    """Without a connection that knows the history there is nothing to put in its place."""
    world = over_http()
    historian = Historian(world)
    for number in range(3):
        assert historian.attempt(user(f"q{number}")).status == 200
    assert len(frame(world)["input"]) == 5
    assert_empty(world)


@pytest.mark.parametrize("end", ["close", "reset", "idle"])
def test_a_connection_lost_between_turns_is_no_loss(end: str) -> None:
    world = over_http()
    talker = Talker(world)
    for number in range(4):
        assert talker.attempt(user(f"q{number}")).status == 200
        one = world.net.ends(world.endpoint)[-1]
        if end == "close":
            world.net.finish(one)
        elif end == "reset":
            world.net.reset(one)
        else:
            world.advance(4)  # it is not kept longer
        world.advance(1)
        assert world.endpoint.upstreams == 0
    assert talker.outcomes == ["200"] * 4
    assert world.emulator.accepted == 4
    assert_empty(world)


def test_an_unknown_id_is_not_found_in_the_end() -> None:
    world = over_http()
    answer = world.ask("next", store=False, previous_response_id="resp_foreign")
    assert (answer.status, answer.error["code"]) == (400, NOT_FOUND)
    assert world.endpoint.upstreams == 1  # the refusal was an answer: the connection is kept
    assert_empty(world)


def test_turns_that_wait_are_sent_one_after_the_other_on_one_connection() -> None:
    world = over_http()
    world.emulator.delta_interval = 1_000_000_000
    first = Talker(world)
    first.attempt(user("one"), wait=10)
    clients = [first.begin([user(f"branch {n}")], first.last) for n in range(2)]
    world.advance(30)
    for client in clients:
        assert world.read(client).text
    assert world.emulator.posts == 3
    assert_empty(world)


# ------------------------------------------------------------------ losses and errors


@pytest.mark.parametrize("action", [CloseWith(1006), Abort(), Garbage(b"\0\0\r\n\r\n", raw=True)])
@pytest.mark.parametrize(
    "point", [Point.BEFORE_CREATED, Point.AFTER_CREATED, Point.MID_OUTPUT, Point.BEFORE_TERMINAL]
)
def test_a_loss_in_a_turn_is_shown_and_the_retry_works(point: Point, action: Any) -> None:
    world = over_http()
    talker = Talker(world)
    talker.attempt(user("one"))
    strike(world, point, action)
    lost = talker.attempt(user("two"))
    early = point is Point.BEFORE_CREATED
    assert (lost.status, talker.outcomes[-1]) == ((502, "502") if early else (200, "failed"))
    if early:
        assert lost.error["code"] == "stream_incomplete"  # it may have run: it is not sent again
    assert len(world.frames) == 2
    heal(world)
    talker.turn(user("two"))
    assert_empty(world)


@pytest.mark.parametrize("action", [Silence(), Freeze()])
def test_a_silent_upstream_is_given_up_at_its_deadline(action: Any) -> None:
    world = over_http()
    talker = Talker(world)
    talker.attempt(user("one"))
    strike(world, Point.BEFORE_CREATED, action)
    lost = talker.attempt(user("two"), wait=61)
    assert lost.response["error"]["code"] == "upstream_request_timeout"  # its head was sent before
    heal(world)
    talker.turn(user("two"))
    assert_empty(world)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 529])
@pytest.mark.parametrize("split", [None, lambda data: [data[n : n + 1] for n in range(len(data))]])
def test_an_error_keeps_its_status_and_members(status: int, split: Any) -> None:
    world = World(url=URL, split=split)
    error = Error(status, "some_code", "some_type", "Some words.", members=(("plan_type", "pro"),))
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, error))
    answer = world.ask()
    assert answer.status == (status if status < 500 else 502)
    told = answer.error
    assert (told["code"], told["message"]) == ("some_code", "Some words.")
    assert told["plan_type"] == "pro"
    assert world.ask("again").text  # the next turn is not concerned
    world.assert_empty()


def test_an_error_in_the_stream_ends_the_turn() -> None:
    world = over_http()
    error = Error(429, "rate_limit_exceeded", "requests", "Slow down.")
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, error))
    answer = world.ask()
    assert answer.response["status"] == "failed"
    assert answer.response["error"]["code"] == "rate_limit_exceeded"
    assert_empty(world)


def test_a_not_found_of_a_stored_id_is_rebuilt_within_the_turn() -> None:
    world = over_http()
    talker = Talker(world, store=True)
    talker.attempt(user("one"))
    world.emulator._storage.clear_responses()
    assert talker.attempt(user("two")).status == 200
    assert [one.get("previous_response_id") is None for one in world.frames] == [True, False, True]
    assert world.emulator.accepted == 1
    assert_empty(world)


def test_what_follows_the_terminal_event_reaches_no_later_turn() -> None:
    world = over_http()
    late = b'{"type":"response.output_text.delta","delta":"late"}'
    world.emulator.faults.add(1, Fault(Point.BEFORE_TERMINAL, SendEvents((late,))))
    talker = Talker(world)
    talker.attempt(user("one"))
    talker.attempt(user("two"))
    assert_empty(world)


def test_a_large_turn_is_written_in_parts_each_of_which_is_progress() -> None:
    world = over_http()
    talker = Talker(world)
    items = [user("x" * (20 * WINDOW))]
    world.emulator.faults.add(1, Fault(Point.WHILE_RECEIVING, ReadSlowly(interval=SECOND * 10)))
    client = talker.begin(items, None)
    world.advance(400)  # much longer than the deadline for response.created
    talker.end(client, items, None)
    assert_empty(world)


def test_a_slow_reader_stops_the_upstream() -> None:
    emulator = Emulator(
        deltas=10_000, delta_interval=SECOND // 1000, answer=lambda _: [Text("x" * 800_000)]
    )
    world = over_http(emulator=emulator)
    client = world.start()
    client.pause()
    world.advance(600)
    assert emulator.turns[0].unsent > 10  # the upstream was not read
    client.resume()
    world.advance(60)
    assert world.read(client).text == "x" * 800_000
    client.abort()
    assert_empty(world)


# ------------------------------------------------------------------ in place of a WebSocket


@pytest.mark.parametrize("status", NO_WEBSOCKET)
def test_an_upstream_without_websocket_is_reached_over_http(status: int) -> None:
    world = falling_back(status)
    talker = Talker(world)
    for number in range(3):
        assert talker.attempt(user(f"q{number}")).status == 200
        world.advance(5)
    assert (world.emulator.rejections, world.emulator.posts) == (1, 3)
    over = [log.fields.get("over") for log in world.net.logs if log.event == "session.connect"]
    assert over == [None, *["http"] * (len(over) - 1)]
    assert len(over) > 1
    Talker(world).attempt(user("another conversation"))
    assert world.emulator.rejections == 1  # it is of the upstream, not of a conversation
    assert_empty(world)


@pytest.mark.parametrize("status", NO_WEBSOCKET)
def test_without_the_setting_the_turn_is_refused(status: int) -> None:
    world = held()
    world.emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, Reject(status)))
    answer = world.ask()
    assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    assert world.emulator.posts == 0
    assert_empty(world)


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_other_refusals_of_an_upgrade_are_no_reason(status: int) -> None:
    world = falling_back(status)
    assert world.ask().status in (status, 502)
    assert world.emulator.posts == 0
    assert_empty(world)


def test_a_websocket_is_tried_again_after_a_while() -> None:
    world = falling_back()
    talker = Talker(world)
    talker.attempt(user("one"))
    heal(world)
    world.advance(599)
    talker.attempt(user("two"))
    assert world.emulator.upgrades == 0
    world.advance(5)
    talker.attempt(user("three"))
    talker.attempt(user("four"))
    assert (world.emulator.upgrades, world.emulator.posts) == (1, 2)
    assert "previous_response_id" in frame(world)  # the WebSocket remembers
    assert_empty(world)


def test_a_fallback_that_fails_too_says_so_and_the_retry_works() -> None:
    world = falling_back()
    talker = Talker(world)
    talker.attempt(user("one"))
    world.advance(700)
    world.emulator.tokens = frozenset()
    answer = talker.attempt(user("two"))
    assert answer.status == 401  # as the upstream said over HTTP
    world.emulator.tokens = None
    talker.turn(user("two"))
    assert_empty(world)


def test_http_that_cannot_be_reached_either_is_unavailable() -> None:
    world = falling_back()
    world.emulator.faults.add(2, Fault(Point.ON_CONNECT, Abort()))
    answer = world.ask()
    assert answer.status == 502
    assert answer.error["code"] in ("upstream_unavailable", "stream_incomplete")
    heal(world)
    assert world.ask().text
    assert world.emulator.posts == 1
    assert_empty(world)


def test_a_turn_too_large_for_a_websocket_is_sent_over_http() -> None:
    world = held(fallback=Fallback.HTTP, emulator=Emulator(max_message=100_000))
    small, talker = Talker(world), Talker(world)
    small.attempt(user("small"))
    talker.attempt(user("one"))
    talker.attempt(user("x" * 60_000))
    assert world.emulator.posts == 0
    talker.attempt(user("y" * 99_900))  # the frame alone is too large; what it continues is held
    assert world.emulator.posts == 1
    assert len(frame(world)["input"]) == 5  # whole: over HTTP its id would not be known
    talker.attempt(user("three"))
    assert world.emulator.posts == 2
    small.attempt(user("still over WebSocket"))
    assert world.emulator.posts == 2
    before = world.emulator.upgrades
    # No other conversation uploads as much again to be refused.
    Talker(world).attempt(user("z" * 120_000))
    assert world.emulator.posts == 3
    assert [one for one in world.emulator.requests if len(one.raw) > 100_000]
    assert world.emulator.upgrades - before <= 1
    assert_empty(world)


def test_a_turn_too_large_for_http_too_is_refused_and_not_sent_again() -> None:
    emulator = Emulator(max_message=100_000, max_post=200_000)
    world = held(fallback=Fallback.HTTP, emulator=emulator)
    large = [user("x" * 300_000)]
    for code in ("body_too_large", "request_too_large"):  # the upstream's word, then the bridge's
        answer = Talker(world).attempt(*large)
        assert (answer.status, answer.error["code"]) == (413, code)
    assert world.emulator.posts == 0
    assert world.ask().text
    assert_empty(world)


def test_an_id_that_only_the_websocket_knew_is_never_sent_over_http() -> None:
    """Without transcripts nothing is held: the turn is refused, as after any loss of a socket."""
    world = World(fallback=Fallback.HTTP, emulator=Emulator(max_message=100_000))
    first = world.ask("one", store=False).response["id"]
    answer = world.ask("x" * 120_000, store=False, previous_response_id=first)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    assert world.emulator.posts == 0
    world.assert_empty()


@pytest.mark.parametrize("url", [URL, None])
def test_nothing_is_preloaded_over_http(url: str | None) -> None:
    world = (
        over_http(rotation=Rotation.WARM)
        if url
        else held(fallback=Fallback.HTTP, rotation=Rotation.WARM)
    )
    talker = Talker(world)
    talker.attempt(user("one"))
    if url is None:
        # The connection that replaces the old one is refused its upgrade.
        world.emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, Reject(404)))
    world.advance(3400)
    assert len(world.frames) == 1
    talker.attempt(user("two"))
    assert len(world.frames) == 2
    assert_empty(world)


# ------------------------------------------------------------------ every named fault


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_conversation_survives_each_named_fault(name: str) -> None:
    world = over_http(turn_timeout=200 * SECOND)
    talker = Talker(world)
    talker.attempt(user("one"))
    fault = CATALOGUE[name].fault
    nth = world.emulator.accepted if fault.point in UPGRADING else len(world.frames)
    world.emulator.faults.add(nth + 1, fault)
    talker.attempt(user("two"), wait=300)
    heal(world)
    talker.turn(user("two"))
    talker.turn(user("three"))
    assert_empty(world)


def test_a_rebuilt_input_that_is_refused_twice_is_not_rebuilt_again() -> None:
    """Once is most often what the client has added, and what it sends next is answered."""
    world = over_http()
    talker = Talker(world)
    talker.attempt(user("one"))
    refusal = Error(400, "invalid_prompt", "invalid_request_error", "No.")
    for number in (2, 4, 5):
        world.emulator.faults.add(number, Fault(Point.BEFORE_CREATED, refusal))
    assert talker.attempt(user("bad")).status == 400
    assert talker.attempt(user("good")).status == 200
    assert [talker.attempt(user("bad")).status for _ in range(2)] == [400, 400]
    assert talker.attempt(user("good")).status == 502
    assert len(world.frames) == 5
    assert_empty(world)
