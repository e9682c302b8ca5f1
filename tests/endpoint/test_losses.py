"""A whole endpoint with transcripts loses upstream connections, unnoticed by its clients.

What belongs here: losses between turns and during a turn, by any close, silence or departure; the
contract's "Recovery". Errors in band are in test_refusals.py.
"""

from __future__ import annotations

import pytest

from bridgecore.config import Continuity
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    Fault,
    Freeze,
    Garbage,
    Point,
    Reject,
    Silence,
)
from bridgecore.testing.faults import Action
from tests.endpoint_clients import Talker, assert_empty, frame, heal, held, strike, user
from tests.endpoint_world import CODES, LOSSES, SECOND, World

# ------------------------------------------------------------------ between turns


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("action", [*map(CloseWith, [*CODES, 3000, 4999]), Abort()], ids=repr)
def test_closed_between_turns(store: bool, action: Action) -> None:
    world = held()
    talker = Talker(world, store)
    strike(world, Point.AFTER_TERMINAL, action)
    talker.attempt(user("a"))
    first = talker.last
    talker.attempt(user("b"))
    # A stored response is continued by its id, which costs least.
    assert frame(world).get("previous_response_id") == (first if store else None)
    talker.attempt(user("c"))  # on the current connection, with an id
    assert frame(world)["previous_response_id"] == talker.shown(talker.last or "").anchor
    assert len(frame(world)["input"]) == 1
    talker.attempt(user("branch"), after=first)
    assert talker.outcomes == ["200"] * 4
    assert len(world.frames) == 4
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_every_socket_is_lost(store: bool) -> None:
    world = held()
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    talker = Talker(world, store)
    for n in range(20):
        assert talker.attempt(user(f"text {n}")).text == f"turn {n + 1}: text {n}"
    assert world.net.connects == len(world.frames) == 20
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_an_idle_conversation_gives_up_its_socket(store: bool) -> None:
    world = held(session_idle=50 * SECOND)
    talker = Talker(world, store)
    talker.attempt(user("a"))
    world.advance(50)
    assert (world.endpoint.bridge.conversations, world.endpoint.bridge.links) == (0, 0)
    talker.attempt(user("b"))
    talker.attempt(user("c"))
    assert talker.outcomes == ["200"] * 3
    assert world.net.connects == 2
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_a_socket_is_rotated_between_turns(store: bool) -> None:
    world = held(upstream_lifetime=100 * SECOND)
    world.emulator.lifetime = 100 * SECOND
    talker = Talker(world, store)
    for n in range(12):
        talker.attempt(user(f"text {n}"))
        world.advance(30)
    assert talker.outcomes == ["200"] * 12
    assert len(world.frames) == 12  # none met the limit
    assert world.net.connects == 3
    assert_empty(world)


def test_evicted_conversations_can_be_continued() -> None:
    world = held(max_sessions=1)
    one, two = Talker(world), Talker(world)
    for n in range(3):
        one.attempt(user(f"one {n}"))
        two.attempt(user(f"two {n}"))
    assert one.outcomes == two.outcomes == ["200"] * 3
    assert world.endpoint.bridge.conversations == 1
    assert_empty(world)


# ------------------------------------------------------------------ during a turn


@pytest.mark.parametrize("action", LOSSES, ids=repr)
@pytest.mark.parametrize("point", [Point.WHILE_RECEIVING, Point.BEFORE_CREATED])
@pytest.mark.parametrize("store", [True, False])
def test_lost_before_created(store: bool, point: Point, action: Action) -> None:
    world = held()
    talker = Talker(world, store)
    text = user("b" * 200_000)
    strike(world, point, action)
    talker.turn(text)
    strike(world, point, action)
    talker.turn(text)
    talker.turn(user("c"))
    assert talker.outcomes == ["502", "200", "502", "200", "200"]
    assert world.emulator._creates == 5  # no ambiguous turn was resent
    # The first resend needed no anchor; the second one's is stored; the third turn's is cached on
    # its connection.
    assert [request.anchor is not None for request in world.emulator.requests][-2:] == [store, True]
    assert_empty(world)


NOT_FOUND_FRAME = b'{"type":"error","error":{"code":"previous_response_not_found"}}'
LIMIT_FRAME = b'{"type":"error","error":{"code":"websocket_connection_limit_reached"}}'


def in_wire_format(text: bytes) -> bytes:
    """A short text message as a server sends it (RFC 6455, section 5.2)."""
    assert len(text) < 126
    return b"\x81%c%b" % (len(text), text)


@pytest.mark.parametrize(
    "behind",
    [
        *[b"\x88\x02%b" % code.to_bytes(2, "big") for code in (1000, 1001, 1009, 1011)],
        b"\x88\x00",  # close code 1005
        b"\xff\xff\xff\xff",  # not a frame
        in_wire_format(LIMIT_FRAME),
        in_wire_format(b"ping") + in_wire_format(LIMIT_FRAME) + b"\x88\x02\x03\xe8",
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_close_read_together_with_a_refusal_is_not_ambiguous(stream: bool, behind: bytes) -> None:
    """The refusal causes a send in full. If the end of the connection was read together with it,
    that frame was not sent: nothing is ambiguous, and the turn is answered in the first try."""
    world = held()
    talker = Talker(world, stream=stream)
    talker.attempt(user("a"))
    data = in_wire_format(NOT_FOUND_FRAME) + behind
    strike(world, Point.BEFORE_CREATED, Garbage(data, raw=True))
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "200"]
    assert (len(world.frames), world.net.connects) == (3, 2)
    assert_empty(world)


@pytest.mark.parametrize("code", [1000, 1009, 1011])
def test_a_close_read_after_the_second_send_is_ambiguous(code: int) -> None:
    """In a read of its own the close may be the answer to the frame that was sent."""
    refusal = in_wire_format(NOT_FOUND_FRAME)

    def behind_the_refusal(data: bytes) -> list[bytes]:
        before, found, rest = data.partition(refusal)
        return [before + found, rest] if found else [data]

    world = World(continuity=Continuity.TRANSCRIPT, split=behind_the_refusal)
    talker = Talker(world)
    talker.attempt(user("a"))
    data = in_wire_format(NOT_FOUND_FRAME) + b"\x88\x02%b" % code.to_bytes(2, "big")
    strike(world, Point.BEFORE_CREATED, Garbage(data, raw=True))
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "413" if code == 1009 else "502"]
    talker.attempt(user("c"))
    assert talker.outcomes[-1] == "200"
    assert_empty(world)


@pytest.mark.parametrize("action", [Silence(), Freeze()], ids=repr)
@pytest.mark.parametrize("store", [True, False])
def test_silence_before_created(store: bool, action: Action) -> None:
    world = held(created_timeout=10 * SECOND, ping_interval=100 * SECOND)
    talker = Talker(world, store)
    talker.attempt(user("a"))
    strike(world, Point.BEFORE_CREATED, action)
    answer = talker.attempt(user("b"), wait=10)
    assert answer.error["code"] == "upstream_request_timeout"
    talker.attempt(user("b"))
    assert frame(world).get("previous_response_id") is None  # the stored id is not tried again
    talker.attempt(user("c"))
    assert talker.outcomes == ["200", "502", "200", "200"]
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_an_upstream_that_is_silent_about_strange_anchors(store: bool) -> None:
    world = held()
    world.emulator.silent_on_unknown_anchor = True
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    talker = Talker(world, store)
    for n in range(4):
        talker.attempt(user(f"text {n}"))
    assert talker.outcomes == ["200"] * 4
    assert_empty(world)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(
    "point", [Point.AFTER_CREATED, Point.MID_OUTPUT, Point.BEFORE_TERMINAL], ids=lambda p: p.name
)
def test_lost_in_mid_answer(store: bool, stream: bool, point: Point) -> None:
    world = held()
    talker = Talker(world, store, stream=stream)
    talker.attempt(user("a"))
    strike(world, point, Abort())
    talker.turn(user("b"))
    talker.turn(user("c"))
    assert talker.outcomes == ["200", "failed" if stream else "502", "200", "200"]
    assert len(talker.past) == 4  # a response that broke off is not part of the history
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_a_client_that_leaves_and_comes_back(store: bool) -> None:
    world = held()
    talker = Talker(world, store)
    talker.attempt(user("a"))
    world.emulator.delta_interval = SECOND
    client = talker.begin([user("b")], talker.last)
    world.advance(1)
    client.abort()
    world.emulator.delta_interval = 0
    talker.attempt(user("b"))
    assert talker.outcomes == ["200"] * 2
    assert_empty(world)


@pytest.mark.parametrize("action", [Reject(503), Abort(), CloseWith(1001)], ids=repr)
@pytest.mark.parametrize("store", [True, False])
def test_the_reconnect_fails(store: bool, action: Action) -> None:
    world = held()
    talker = Talker(world, store)
    strike(world, Point.AFTER_TERMINAL, CloseWith(1001))
    talker.attempt(user("a"))
    heal(world)
    for connect in range(2, 7):
        world.emulator.faults.add(connect, Fault(Point.ON_UPGRADE, action))
        answer = talker.attempt(user("b"))
        assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", *["502"] * 5, "200"]
    assert_empty(world)
