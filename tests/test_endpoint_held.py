"""Tests of conversations that the bridge holds: contract, "Recovery"; invariants 2 to 9, 39, 40.

What belongs here: whole endpoints with transcripts. The clients here know nothing of a bridge: they
write down what was said, and after every answer what the upstream was shown has to be exactly that.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.config import Ambiguous, Continuity, Rotation
from bridgecore.recovery.timers import Timer
from bridgecore.simulate.witness import said
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    CreateRequest,
    Error,
    ErrorShape,
    Fault,
    Freeze,
    Garbage,
    Point,
    Reject,
    SendEvents,
    Silence,
)
from bridgecore.testing.faults import COMMON_SHAPES, Action
from bridgecore.testing.network import ByteClient
from bridgecore.wire.responses import InvalidBodyError, parse_create
from tests.endpoint_world import KEY, SECOND, Answer, Json, World, request

CODES = [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
NOT_FOUND = "previous_response_not_found"
SHAPES = list(COMMON_SHAPES)
AGE = 21_600  # seconds that a transcript is kept unless told otherwise


def in_segments(data: bytes) -> list[bytes]:
    """So that a peer can meet a frame of which only a part has come."""
    return [data[at : at + 50_000] for at in range(0, len(data), 50_000)]


def held(**settings: object) -> World:
    """A world whose bridge keeps transcripts."""
    return World(continuity=Continuity.TRANSCRIPT, split=in_segments, **settings)  # type: ignore[arg-type]  # any setting


def assert_empty(world: World) -> None:
    """After all deadlines: nothing at all is left, transcripts included."""
    world.advance(AGE)
    assert world.endpoint.bridge.memory.size == 0
    world.assert_empty()


# ------------------------------------------------------------------ what was said


def context(request: CreateRequest) -> list[tuple[object, ...]]:
    """What the upstream showed its model."""
    return [said(item) for item in request.context]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def output_for(call: Json, text: str) -> Json:
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


@attrs.define
class Talker:
    """A client that says what it means by ``previous_response_id`` and new items.

    ``past``: for each response it was given, everything that was said up to and with it.
    """

    world: World
    store: bool = False
    key: str = KEY
    stream: bool = True
    fields: Json = attrs.Factory(dict)
    past: dict[str | None, list[Json]] = attrs.Factory(lambda: {None: []})
    last: str | None = None
    told: list[str] = attrs.Factory(list)  # a status or "failed", for each attempt

    def body(self, items: Sequence[Json], anchor: str | None) -> Json:
        fields = {"store": self.store, "stream": self.stream, **self.fields}
        if anchor is not None:
            fields["previous_response_id"] = anchor
        return {"model": "m", "input": list(items), **fields}

    def begin(self, items: Sequence[Json], anchor: str | None) -> ByteClient:
        """The turn, under way."""
        client = self.world.client()
        client.send(request(self.body(items, anchor), key=self.key))
        return client

    def end(self, client: ByteClient, items: Sequence[Json], anchor: str | None) -> Answer:
        """The answer that has come; what was believed is compared with what was shown."""
        answer = self.world.read(client)
        assert answer.complete
        client.half_close()
        self.note(answer, items, anchor)
        return answer

    def attempt(self, *items: Json, after: str | None = "", wait: float = 0) -> Answer:
        """One request; ``after``: the response it continues, the latest if none is named."""
        anchor = self.last if after == "" else after
        client = self.begin(items, anchor)
        if wait:
            self.world.advance(wait)
        return self.end(client, items, anchor)

    def note(self, answer: Answer, items: Sequence[Json], anchor: str | None) -> None:
        if answer.status != 200:
            self.told.append(str(answer.status))
            assert answer.error["code"] != NOT_FOUND
            return
        response = answer.response
        if response["status"] != "completed":
            self.told.append("failed")
            assert response["error"]["code"] != NOT_FOUND
            return
        self.told.append("200")
        believed = [*self.past[anchor], *items]
        assert context(self.shown(response["id"])) == [said(item) for item in believed]
        assert response["id"] not in self.past
        self.past[response["id"]] = [*believed, *response["output"]]
        self.last = response["id"]

    def shown(self, response: str) -> CreateRequest:
        """The frame that the upstream answered with ``response``."""
        (turn,) = [turn for turn in self.world.emulator.turns if turn.response_id == response]
        return turn.request

    def turn(self, *items: Json, tries: int = 3) -> Answer:
        """Ask, as told, until there is an answer."""
        for _ in range(tries):
            answer = self.attempt(*items, wait=1)
            if self.told[-1] == "200":
                return answer
        raise AssertionError(f"no answer: {self.told}")


def strike(world: World, point: Point, action: Action) -> None:
    """Let the next turn meet ``action``, and no other."""
    world.emulator.faults.clear()
    world.emulator.faults.add(world.emulator._creates + 1, Fault(point, action))


def heal(world: World) -> None:
    world.emulator.faults.clear()


def frame(world: World) -> Json:
    return world.frames[-1]


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
    # What the upstream stores is asked for by its id, which costs least.
    assert frame(world).get("previous_response_id") == (first if store else None)
    talker.attempt(user("c"))  # on the socket that is there now, in few words
    assert frame(world)["previous_response_id"] == talker.shown(talker.last or "").anchor
    assert len(frame(world)["input"]) == 1
    talker.attempt(user("branch"), after=first)
    assert talker.told == ["200"] * 4
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
    assert talker.told == ["200"] * 3
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
    assert talker.told == ["200"] * 12
    assert len(world.frames) == 12  # none met the limit
    assert world.net.connects == 3
    assert_empty(world)


# ------------------------------------------------------------------ sockets that are warmed

LIFETIME = 100  # seconds; a socket goes up to a tenth earlier


def warming(**settings: object) -> World:
    """A world whose bridge warms the sockets that replace old ones."""
    return held(rotation=Rotation.WARM, upstream_lifetime=LIFETIME * SECOND, **settings)


def warm_ups(world: World) -> list[CreateRequest]:
    return [request for request in world.emulator.requests if request.body.get("generate") is False]


@pytest.mark.parametrize("store", [True, False])
def test_a_warmed_socket_goes_on_with_new_items_only(store: bool) -> None:
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
    assert talker.told == ["200"] * 4
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
    assert talker.told == ["200"]
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


def test_what_nobody_uses_is_warmed_once() -> None:
    world = warming(session_idle=1000 * SECOND)
    talker = Talker(world)
    talker.turn(user("a"))
    world.advance(10 * LIFETIME)
    assert len(warm_ups(world)) == 1
    talker.turn(user("b"))
    world.advance(2 * LIFETIME)
    assert len(warm_ups(world)) == 2
    assert_empty(world)


def test_histories_go_on_where_a_warmed_socket_stands() -> None:
    world = warming()
    historian = Historian(world)
    historian.turn(user("a"))
    world.advance(LIFETIME)
    historian.turn(user("b"))
    assert frame(world)["input"] == [user("b")]
    assert world.net.connects == 2


def test_a_branch_does_not_take_what_stands_for_another() -> None:
    world = warming()
    talker = Talker(world)
    talker.turn(user("a"))
    first = talker.last
    talker.turn(user("b"))
    world.advance(LIFETIME)
    talker.attempt(user("c"), after=first)
    assert "previous_response_id" not in frame(world)
    assert talker.told == ["200"] * 3


def test_a_call_that_waits_for_its_output_is_not_warmed() -> None:
    """It cannot be said without its output (invariant 8)."""
    world = warming()
    talker = Talker(world)
    (call,) = talker.turn(user("call tool look {}")).response["output"]
    world.advance(LIFETIME)
    assert warm_ups(world) == []
    talker.turn(output_for(call, "seen"))
    assert talker.told == ["200"] * 2


@pytest.mark.parametrize(
    ("action", "sends"),
    [
        (Abort(), 1),
        (Error(429, "rate_limit_exceeded"), 1),
        (Silence(), 1),
        (Error(400, NOT_FOUND), 1),  # what was said in full and refused is not said so again
    ],
)
def test_a_warm_up_that_fails_is_nothing_to_anybody(action: Action, sends: int) -> None:
    world = warming(created_timeout=SECOND)
    talker = Talker(world)
    talker.turn(user("a"))
    strike(world, Point.BEFORE_CREATED, action)
    world.advance(LIFETIME + 10)
    assert len(warm_ups(world)) == sends
    heal(world)
    talker.turn(user("b"))
    assert talker.told == ["200"] * 2
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
    assert talker.told == ["200"] * 2


def test_a_warm_up_makes_room() -> None:
    world = warming(max_sessions=1)
    one, two = Talker(world), Talker(world)
    one.turn(user("one"))
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
    world.advance(LIFETIME)
    assert (len(warm_ups(world)), world.endpoint.bridge.turns) == (1, 0)
    heal(world)
    two.turn(user("two"))
    assert two.told == ["200"]
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


def test_nothing_is_warmed_unless_it_is_wanted() -> None:
    world = held(upstream_lifetime=LIFETIME * SECOND)
    Talker(world).turn(user("a"))
    world.advance(LIFETIME)
    assert warm_ups(world) == []
    assert world.endpoint.bridge.links == 0


def test_conversations_that_make_room_go_on() -> None:
    world = held(max_sessions=1)
    one, two = Talker(world), Talker(world)
    for n in range(3):
        one.attempt(user(f"one {n}"))
        two.attempt(user(f"two {n}"))
    assert one.told == two.told == ["200"] * 3
    assert world.endpoint.bridge.conversations == 1
    assert_empty(world)


# ------------------------------------------------------------------ during a turn

LOSSES = [
    CloseWith(1001),
    CloseWith(1005),
    CloseWith(1006),
    CloseWith(1011),
    Abort(),
    Garbage(b"\xff\xff\xff\xff", raw=True),
]


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
    assert talker.told == ["502", "200", "502", "200", "200"]
    assert world.emulator._creates == 5  # nothing that is ambiguous is sent twice
    # The first resend needed no anchor; the second one's lives only where it is stored; the third
    # turn's is on its socket.
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
        b"\x88\x00",  # 1005
        b"\xff\xff\xff\xff",  # no frame at all
        in_wire_format(LIMIT_FRAME),
        in_wire_format(b"ping") + in_wire_format(LIMIT_FRAME) + b"\x88\x02\x03\xe8",
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_read_behind_a_refusal(stream: bool, behind: bytes) -> None:
    """The refusal leads to a send in full. If the end of the socket was read together with it, that
    frame has not left: nothing is ambiguous, and the turn is answered in the first try."""
    world = held()
    talker = Talker(world, stream=stream)
    talker.attempt(user("a"))
    data = in_wire_format(NOT_FOUND_FRAME) + behind
    strike(world, Point.BEFORE_CREATED, Garbage(data, raw=True))
    talker.attempt(user("b"))
    assert talker.told == ["200", "200"]
    assert (len(world.frames), world.net.connects) == (3, 2)
    assert_empty(world)


@pytest.mark.parametrize("code", [1000, 1009, 1011])
def test_what_is_read_after_the_send_that_a_refusal_leads_to(code: int) -> None:
    """In a read of its own the close may be the answer to the frame that has gone."""
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
    assert talker.told == ["200", "413" if code == 1009 else "502"]
    talker.attempt(user("c"))
    assert talker.told[-1] == "200"
    assert_empty(world)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_frame_that_is_too_large(store: bool, stream: bool) -> None:
    """Each form of it is uploaded once, however often it is asked for; a smaller one works."""
    world = held()
    talker = Talker(world, store, stream=stream)
    talker.attempt(user("a"))
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, CloseWith(1009)))
    for _ in range(4):
        answer = talker.attempt(user("b" * 10_000))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert "retry-after" not in answer.headers
    heal(world)
    # With the id; where that lives on the lost socket only, once more in full.
    assert len(world.frames) == (2 if store else 3)
    talker.attempt(user("c"))
    assert talker.told == ["200", *["413"] * 4, "200"]
    assert_empty(world)


def test_a_rebuilt_conversation_that_is_too_large_ends_honestly() -> None:
    """Each turn fits, and the whole of them does not: no other form of the turn is smaller."""
    world = held()
    talker = Talker(world)
    for n in range(3):
        talker.attempt(user(f"{n}" * 4_000))
    world.advance(1000)  # the socket that knew the chain is given up
    strike(world, Point.BEFORE_CREATED, CloseWith(1009))
    for _ in range(4):
        answer = talker.attempt(user("d"))
        assert answer.status == 413
        heal(world)
    assert len(world.frames) == 4
    talker.attempt(user("d"), after=list(talker.past)[1])
    assert talker.told[-1] == "200"
    assert_empty(world)


def test_what_is_too_large_for_one_credential() -> None:
    """Another one may have another upstream behind it, with other limits."""
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, CloseWith(1009)))
    assert world.ask("b" * 10_000).status == 413
    assert world.ask("b" * 10_000).status == 413
    assert world.ask("b" * 10_000, key="sk-another").status == 200
    assert len(world.frames) == 2
    world.assert_empty()


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
    assert frame(world).get("previous_response_id") is None  # not the same wedge again
    talker.attempt(user("c"))
    assert talker.told == ["200", "502", "200", "200"]
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_an_upstream_that_is_silent_about_strange_anchors(store: bool) -> None:
    world = held()
    world.emulator.silent_on_unknown_anchor = True
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    talker = Talker(world, store)
    for n in range(4):
        talker.attempt(user(f"text {n}"))
    assert talker.told == ["200"] * 4
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
    assert talker.told == ["200", "failed" if stream else "502", "200", "200"]
    assert len(talker.past) == 4  # what was cut off was never said
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
    assert talker.told == ["200"] * 2
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
    assert talker.told == ["200", *["502"] * 5, "200"]
    assert_empty(world)


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
    assert talker.told == ["200", "200"]
    assert len(world.frames) == 3  # at most one extra send
    heal(world)
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, limit))
    for _ in range(6):  # however often: never "gone", never many frames
        before = len(world.frames)
        assert talker.attempt(user("c")).error["code"] == "upstream_unavailable"
        assert len(world.frames) - before <= 3
    heal(world)
    talker.attempt(user("c"))
    assert talker.told[-1] == "200"
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
    assert talker.told == ["200", "200"]
    assert [request.anchor is None for request in world.emulator.requests] == [True, False, True]
    heal(world)
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, missing))
    for _ in range(6):  # an upstream that says so of what has no anchor at all
        before = len(world.frames)
        assert talker.attempt(user("c")).status == 502
        assert len(world.frames) - before <= 2
    heal(world)
    talker.attempt(user("c"))
    assert talker.told[-1] == "200"
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
    assert talker.told == ["200", "200"]
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
    assert talker.told == ["200", "failed" if stream else "502", "200"]
    assert historian.told == ["200", "failed", "200"]
    # About an id that the bridge does not hold, it is the upstream's word.
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
    assert talker.told == ["200", str(seen), "200", "200"]
    assert_empty(world)


def test_an_upstream_that_loses_what_it_stores() -> None:
    world = held()
    talker = Talker(world, store=True)
    talker.attempt(user("a"))
    world.advance(1000)
    world.emulator._storage.clear()
    talker.attempt(user("b"))
    assert talker.told == ["200", "200"]
    assert_empty(world)


# ------------------------------------------------------------------ branches


@pytest.mark.parametrize("store", [True, False])
def test_branches_from_older_responses(store: bool) -> None:
    world = held()
    talker = Talker(world, store)
    for text in "abc":
        talker.attempt(user(text))
    _, first, second, third = talker.past
    for parent in (first, second, None, first):
        talker.attempt(user("branch"), after=parent)
        talker.attempt(user("on it"))
    talker.attempt(user("d"), after=third)
    assert frame(world)["previous_response_id"] == third  # no branch has cost it its socket
    talker.attempt(user("branch"), after=third)
    assert set(talker.told) == {"200"}
    assert_empty(world)


@pytest.mark.parametrize("store", [True, False])
def test_branches_while_the_conversation_is_busy(store: bool) -> None:
    world = held()
    talker = Talker(world, store)
    talker.attempt(user("a"))
    first = talker.last
    talker.attempt(user("b"))
    second = talker.last
    world.emulator.delta_interval = SECOND
    begun = [
        (talker.begin([user(text)], anchor), [user(text)], anchor)
        for text, anchor in [("c", second), ("d", first), ("e", second), ("f", second)]
    ]
    world.advance(10)
    for client, items, anchor in begun:
        talker.end(client, items, anchor)
    assert talker.told == ["200"] * 6
    running = [turn.request.conn for turn in world.emulator.turns[2:]]
    assert len(set(running)) == 4  # turns never overlap on a connection
    world.emulator.delta_interval = 0
    for anchor in list(talker.past):
        talker.attempt(user("g"), after=anchor)
    assert set(talker.told) == {"200"}
    assert_empty(world)


# ------------------------------------------------------------------ whose it is


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_foreign_id_looks_exactly_like_a_miss(store: bool, stream: bool, lost: bool) -> None:
    world = held()
    owner = Talker(world, store)
    owner.attempt(user("a"))
    if lost:
        world.advance(1000)
    first = owner.last
    assert first is not None
    missing = first[:-1] + "x"
    seen: dict[str, list[object]] = {first: [], missing: []}
    frames: dict[str, list[Json]] = {first: [], missing: []}
    for _ in range(6):
        for name in (first, missing):
            before = len(world.frames)
            fields = {"store": store, "stream": stream, "previous_response_id": name}
            answer = world.ask("b", key="sk-other", **fields)
            body = answer.body.replace(name.encode(), b"ID")
            seen[name].append((answer.status, answer.headers, body))
            frames[name] += [{**f, "previous_response_id": ""} for f in world.frames[before:]]
    assert seen[first] == seen[missing]
    assert frames[first] == frames[missing]
    assert "turn 1: a" not in str(frames)
    owner.attempt(user("b"))
    assert owner.told == ["200", "200"]
    assert_empty(world)


def test_a_foreign_history_is_no_history() -> None:
    world = held()
    owner, other = Historian(world), Historian(world, key="sk-other")
    owner.attempt(user("a"))
    other.history = list(owner.history)
    other.attempt(user("b"))
    assert not frame(world).get("previous_response_id")
    assert_empty(world)


# ------------------------------------------------------------------ tools


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(
    ("point", "action"),
    [
        (Point.AFTER_TERMINAL, CloseWith(1001)),
        (Point.BEFORE_CREATED, Abort()),
        (Point.BEFORE_CREATED, Error(500)),
        (Point.MID_OUTPUT, Abort()),
    ],
    ids=repr,
)
def test_function_calls_survive_losses(store: bool, point: Point, action: Action) -> None:
    world = held()
    talker = Talker(world, store)
    for n in range(1, 4):
        strike(world, point, action)
        (call,) = talker.turn(user(f'call tool look {{"n":{n}}}')).response["output"]
        strike(world, point, action)
        answer = talker.turn(output_for(call, f"seen {n}"))
        assert answer.text.endswith(f"look returned seen {n}")
    assert_empty(world)


def test_parallel_calls_answered_together() -> None:
    world = held()
    world.emulator.answer = two_calls_then_text
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, Abort()))
    talker = Talker(world)
    one, two = talker.attempt(user("a")).response["output"]
    talker.attempt(output_for(two, "second"), output_for(one, "first"), user("b"))
    talker.attempt(user("c"))
    assert talker.told == ["200"] * 3
    assert_empty(world)


def two_calls_then_text(request: CreateRequest) -> list[Json]:
    if len(request.context) == 1:
        call = {"type": "function_call", "status": "completed", "arguments": "{}"}
        return [{**call, "name": n, "call_id": f"call_{n}"} for n in ("one", "two")]
    return [{"type": "message", "role": "assistant", "content": [], "status": "completed"}]


def test_an_output_for_a_call_that_was_answered_before() -> None:
    world = held()
    talker = Talker(world)
    call = {"type": "function_call", "call_id": "call_x", "name": "x", "arguments": "{}"}
    talker.attempt(call, output_for(call, "one"))
    talker.attempt(user("b"))
    world.advance(1000)
    talker.attempt(output_for(call, "two"))
    assert talker.told == ["200"] * 3
    assert_empty(world)


@pytest.mark.parametrize("field", ["prompt", "conversation"])
def test_context_besides_items_cannot_be_rehydrated(field: str) -> None:
    world = held()
    talker = Talker(world)
    talker.attempt(user("a"))
    world.advance(1000)
    fields: Json = {"previous_response_id": talker.last, "store": False, field: {"id": "x"}}
    assert world.ask("b", **fields).status == 502
    assert len(world.frames) == 1
    assert_empty(world)


def test_items_are_known_from_the_stream_if_the_end_has_none() -> None:
    """As of an upstream whose ``response.completed`` has an id and nothing else."""
    world = held()
    bare_end = b'{"type":"response.completed","response":{"id":"%RESPONSE_ID%"}}'
    strike(world, Point.BEFORE_TERMINAL, SendEvents((bare_end,)))
    first = world.ask("a", store=False).response["id"]
    world.advance(1000)
    answer = world.ask("b", previous_response_id=first, store=False)
    assert answer.text == "turn 2: b"
    shown = context(world.emulator.requests[-1])
    assert shown == [("user", "a"), ("assistant", "turn 1: a"), ("user", "b")]
    assert_empty(world)


ORPHAN = {"type": "function_call_output", "call_id": "call_nobody", "output": "x"}
REFERENCE = {"type": "item_reference", "id": "msg_1"}


@pytest.mark.parametrize("item", [ORPHAN, REFERENCE], ids=["output", "reference"])
def test_what_is_not_self_contained_is_not_rehydrated(item: Json) -> None:
    world = held()
    talker = Talker(world)
    strike(world, Point.AFTER_TERMINAL, CloseWith(1001))
    talker.attempt(user("a"))
    statuses = [
        world.ask([item], previous_response_id=talker.last, store=False).status for _ in range(5)
    ]
    assert statuses == [502] * 3 + [400] * 2
    assert len(world.frames) == 1
    talker.attempt(user("b"))  # the conversation itself is as well as ever
    assert talker.told == ["200", "200"]
    assert_empty(world)


def test_a_conversation_with_a_reference_in_it_lives_on_its_socket() -> None:
    world = held()
    world.emulator.answer = lambda _: []
    world.emulator.keep({**user("kept"), "id": REFERENCE["id"]}, KEY)
    first = world.ask([REFERENCE], store=False)
    second = world.ask("b", previous_response_id=first.response["id"], store=False)
    assert second.status == 200
    world.advance(1000)
    answer = world.ask("c", previous_response_id=second.response["id"], store=False)
    assert (answer.status, len(world.frames)) == (502, 2)
    assert_empty(world)


# ------------------------------------------------------------------ warmups


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("lost", [True, False])
def test_what_a_warmup_said_is_context(store: bool, lost: bool) -> None:
    world = held()
    if lost:
        world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    talker = Talker(world, store)
    talker.fields["generate"] = False
    talker.attempt(user("be brief"))
    del talker.fields["generate"]
    assert talker.attempt(user("hi")).text == "turn 2: hi"
    assert "generate" not in frame(world)
    assert (frame(world).get("previous_response_id") is None) is (lost and not store)
    assert_empty(world)


# ------------------------------------------------------------------ bounds


def test_what_was_evicted_is_honestly_unknown() -> None:
    world = held(transcript_bytes=8_000)
    old = Talker(world)
    old.attempt(user("a" * 2_000))
    assert 4_000 < world.endpoint.bridge.memory.size <= 8_000
    Talker(world).attempt(user("b" * 2_000))
    assert 4_000 < world.endpoint.bridge.memory.size <= 8_000
    fields: Json = {"previous_response_id": old.last, "store": False}
    assert world.ask("c", **fields).status == 200  # its socket is there
    world.advance(1000)
    answers = [world.ask("c", **fields) for _ in range(5)]
    assert [answer.status for answer in answers] == [502] * 3 + [400] * 2
    assert answers[-1].error["code"] == NOT_FOUND
    assert_empty(world)


def test_a_conversation_that_is_too_large_is_not_held_in_part() -> None:
    world = held(transcript_bytes=6_000)
    talker = Talker(world)
    talker.attempt(user("a"))
    talker.attempt(user("b" * 10_000))
    talker.attempt(user("c"))
    world.advance(1000)
    answer = world.ask("d", previous_response_id=talker.last, store=False)
    assert (answer.status, len(world.frames)) == (502, 3)
    talker.attempt(user("e"), after=list(talker.past)[1])  # the beginning is held, and whole
    assert talker.told == ["200"] * 4
    assert_empty(world)


def deepest() -> int:
    """How deep lists in a request can be nested for it to be read here; it depends on the version
    of Python, and on some also on where in the stack the reader stands."""
    low, high = 1, 1_000_000
    while low < high:
        depth = (low + high + 1) // 2
        try:
            parse_create(b'{"model":"m","input":%b}' % (b"[" * depth + b"]" * depth))
        except InvalidBodyError:
            high = depth - 1
        else:
            low = depth
    return low


@pytest.mark.parametrize("where", ["item", "tools"])
def test_what_is_nested_as_deeply_as_can_be_read(where: str) -> None:
    """Somewhere there is a depth that the first reader can read and a later one cannot."""
    world = held()
    first = Talker(world)
    first.attempt(user("a"))
    seen = set()
    limit = deepest()
    for depth in range(limit - 147, limit + 3, 3):
        deep = b"[" * depth + b"]" * depth
        item = b'{"role":"user","content":%b}' % (deep if where == "item" else b'"x"')
        tools = b'[{"type":"x","y":%b}]' % deep if where == "tools" else b"[]"
        for anchor in (b"null", b'"%b"' % (first.last or "").encode()):
            body = b'{"model":"m","store":false,"previous_response_id":%b,"input":[%b],"tools":%b}'
            client = world.client()
            client.send(request(body % (anchor, item, tools)))
            answer = world.read(client)
            seen.add(answer.status)
            client.half_close()
            if answer.status == 200 and depth % 10 == 0:
                world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, Abort()))
                again = world.ask("b", previous_response_id=answer.response["id"], store=False)
                assert again.status in (200, 400, 502)
                heal(world)
    assert {200, 400} <= seen <= {200, 400, 502}
    first.attempt(user("b"))
    assert first.told == ["200", "200"]
    assert_empty(world)


def cut(world: World, end: str, anchor: str | None) -> Answer:
    """A turn that the upstream ends with ``response.END``, without output."""
    event = (
        '{"type":"response.%s","response":{"id":"%%RESPONSE_ID%%","status":"%s","output":[],'
        '"error":null,"incomplete_details":{"reason":"max_output_tokens"}}}'
    )
    strike(world, Point.BEFORE_TERMINAL, SendEvents(((event % (end, end)).encode(),)))
    answer = world.ask("b", store=False, previous_response_id=anchor)
    assert answer.response["status"] == end
    heal(world)
    return answer


def test_a_failed_response_is_not_held() -> None:
    world = held()
    talker = Talker(world)
    talker.attempt(user("a"))
    before = world.endpoint.bridge.memory.size
    answer = cut(world, "failed", talker.last)
    assert world.endpoint.bridge.memory.size == before
    asked: Json = {"previous_response_id": answer.response["id"], "store": False, "stream": False}
    assert world.ask("c", **asked).status == 400  # the upstream's word: nobody else knows it
    talker.attempt(user("b"))  # what it continued is as good as ever
    assert talker.told == ["200", "200"]
    assert_empty(world)


def test_an_incomplete_response_is_held_as_the_fragment_that_it_is() -> None:
    world = held()
    part = {"type": "output_text", "text": "half a", "annotations": []}
    item = {"type": "message", "role": "assistant", "status": "incomplete", "content": [part]}
    response: Json = {
        "id": "%RESPONSE_ID%",
        "status": "incomplete",
        "output": [{"id": "msg_1", **item}],
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
    }
    event = {"type": "response.incomplete", "response": response}
    strike(world, Point.BEFORE_TERMINAL, SendEvents((json.dumps(event).encode(),)))
    answer = world.ask("a", store=False)
    assert answer.response["status"] == "incomplete"
    heal(world)
    world.advance(1000)  # its socket is given up
    after = world.ask("go on", previous_response_id=answer.response["id"], store=False)
    assert after.status == 200
    assert "previous_response_id" not in frame(world)
    assert item in frame(world)["input"]
    assert_empty(world)


def test_an_incomplete_response_is_held() -> None:
    """The upstream lets it be continued, so its chain survives a loss like any other."""
    world = held()
    talker = Talker(world)
    talker.attempt(user("a"))
    answer = cut(world, "incomplete", talker.last)
    world.advance(1000)  # its socket is given up
    after: Json = {"previous_response_id": answer.response["id"], "store": False}
    assert world.ask("c", **after).text == "turn 3: c"
    sent = [said(item) for item in world.emulator.requests[-1].context]
    streamed = answer.events[-1].json["response"]["output"]  # completed from the stream
    assert sent == [
        said(item) for item in [*talker.past[talker.last], user("b"), *streamed, user("c")]
    ]
    assert_empty(world)


def test_what_nobody_uses_is_forgotten_in_time() -> None:
    world = held(transcript_age=1_000 * SECOND, session_idle=100 * SECOND)
    talker = Talker(world)
    talker.attempt(user("a"))
    world.advance(900)
    talker.attempt(user("b"))
    world.advance(999)
    assert world.endpoint.bridge.memory.size > 0
    deadline = world.endpoint.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.EXPIRY
    world.advance(1)
    assert world.endpoint.bridge.memory.size == 0
    assert world.endpoint.next_timeout() is None
    assert world.ask("c", previous_response_id=talker.last, store=False).status == 502


@pytest.mark.parametrize(
    ("continuity", "policy"),
    [
        (Continuity.PASSTHROUGH, "default"),
        (Continuity.TRANSCRIPT, "pr397"),
        (Continuity.TRANSCRIPT, "v1_12"),
    ],
)
def test_what_is_to_hold_nothing_holds_nothing(continuity: Continuity, policy: str) -> None:
    world = World(continuity=continuity, policy=policy)
    for n in range(3):
        world.ask(f"text {n}", store=n % 2 == 0)
    historian = Historian(world)
    for n in range(3):
        historian.attempt(user(f"text {n}"))
    assert not any("previous_response_id" in frame for frame in world.frames)
    assert world.endpoint.bridge.memory.size == 0
    world.assert_empty()


def test_transcripts_do_not_show_in_logs() -> None:
    world = held()
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    talker, historian = Talker(world), Historian(world)
    for n in range(3):
        talker.attempt(user(f"the-body {n}"))
        historian.attempt(user(f"the-body {n}"))
    forms = {log.fields.get("form") for log in world.net.logs if log.event == "turn.sent"}
    assert forms == {"as_is", "rehydrated"}
    logged = "\n".join(f"{log.event} {log.fields}" for log in world.net.logs)
    for secret in ["the-body", KEY, *filter(None, talker.past)]:
        assert secret not in logged


# ------------------------------------------------------------------ clients that repeat everything


@attrs.define
class Historian:
    """A client that keeps no id: it says everything in each request."""

    world: World
    store: bool = False
    key: str = KEY
    headers: str = ""
    fields: Json = attrs.Factory(dict)
    history: list[Json] = attrs.Factory(list)
    bare: bool = False  # whether it sends what was answered without the service's bookkeeping
    told: list[str] = attrs.Factory(list)
    sizes: list[int] = attrs.Factory(list)  # bytes of its bodies

    def begin(self, *items: Json) -> ByteClient:
        body = {
            "model": "m",
            "input": [*self.history, *items],
            "stream": True,
            "store": self.store,
            **self.fields,
        }
        client = self.world.client()
        data = request(body, key=self.key, headers=self.headers)
        self.sizes.append(len(data))
        client.send(data)
        return client

    def end(self, client: ByteClient, *items: Json) -> Answer:
        answer = self.world.read(client)
        assert answer.complete
        client.half_close()
        if answer.status != 200 or answer.response["status"] != "completed":
            error = answer.error if answer.status != 200 else answer.response["error"]
            assert error["code"] != NOT_FOUND
            assert "previous_response_id" not in str(error)
            self.told.append(str(answer.status) if answer.status != 200 else "failed")
            return answer
        self.told.append("200")
        response = answer.response
        self.history += items
        (turn,) = [t for t in self.world.emulator.turns if t.response_id == response["id"]]
        assert context(turn.request) == [said(item) for item in self.history]
        self.history += (
            [bare(item) for item in response["output"]] if self.bare else (response["output"])
        )
        return answer

    def attempt(self, *items: Json, wait: float = 0) -> Answer:
        client = self.begin(*items)
        if wait:
            self.world.advance(wait)
        return self.end(client, *items)

    def turn(self, *items: Json) -> Answer:
        for _ in range(3):
            answer = self.attempt(*items, wait=1)
            if self.told[-1] == "200":
                return answer
        raise AssertionError(f"no answer: {self.told}")


def bare(item: Json) -> Json:
    """An output item as clients write it down that keep what was said and no more."""
    if item["type"] == "message":
        return {"role": "assistant", "content": "".join(part["text"] for part in item["content"])}
    return {name: item[name] for name in item if name not in ("id", "status")}


def anchors(world: World) -> list[str]:
    """The anchors that went upstream, in order."""
    return [request.anchor for request in world.emulator.requests if request.anchor is not None]


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("store", [True, False])
def test_histories_are_reduced_while_the_socket_lives(store: bool, bare: bool) -> None:
    world = held()
    historian = Historian(world, store, bare=bare, fields={"instructions": "i" * 500})
    for n in range(40):
        historian.attempt(user(f"text {n:03}"))
    assert historian.told == ["200"] * 40
    assert world.net.connects == 1
    assert len(anchors(world)) == 39
    sent = [len(request.raw) for request in world.emulator.requests]
    assert sum(sent[30:]) <= 1.1 * sum(sent[:10])
    assert sum(historian.sizes[30:]) > 3 * sum(historian.sizes[:10])
    assert_empty(world)


@pytest.mark.parametrize("bare", [True, False])
def test_histories_with_tools(bare: bool) -> None:
    world = held()
    historian = Historian(
        world, bare=bare, fields={"tools": [{"type": "function", "name": "look"}]}
    )
    for n in range(1, 6):
        (call,) = historian.attempt(user(f'call tool look {{"n":{n}}}')).response["output"]
        answer = historian.attempt(output_for(call, f"seen {n}"))
        assert answer.text.endswith(f"look returned seen {n}")
        if n == 3:
            world.advance(1000)  # its socket is given up
    assert len(anchors(world)) == 8
    assert_empty(world)


@pytest.mark.parametrize(
    ("point", "action", "told"),
    [
        (Point.AFTER_TERMINAL, CloseWith(1001), ["200"]),
        (Point.BEFORE_CREATED, Abort(), ["502", "200"]),
        (Point.BEFORE_CREATED, Silence(), ["502", "200"]),
        (Point.BEFORE_CREATED, Error(500), ["200"]),  # an anchor that its client never sent
        (Point.BEFORE_CREATED, Error(400, "websocket_connection_limit_reached"), ["200"]),
        (Point.AFTER_CREATED, Abort(), ["failed", "200"]),
        (Point.MID_OUTPUT, Abort(), ["failed", "200"]),
    ],
    ids=repr,
)
def test_after_a_loss_histories_go_in_full(point: Point, action: Action, told: list[str]) -> None:
    world = held(created_timeout=SECOND)
    historian = Historian(world)
    for turn in range(6):
        if turn % 2:
            strike(world, point, action)
        historian.told.clear()
        historian.turn(user(f"text {turn}"))
        assert historian.told == (told if turn % 2 else ["200"])
        heal(world)
    fulls = [request for request in world.emulator.requests if request.anchor is None]
    assert max(len(request.input) for request in fulls) >= 8
    assert_empty(world)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rejected_injection_is_made_good_and_never_made_again(shape: ErrorShape) -> None:
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    missing = Error(
        400, NOT_FOUND, "invalid_request_error", "Invalid `previous_response_id`.", shape=shape
    )
    strike(world, Point.BEFORE_CREATED, missing)
    historian.attempt(user("b"))
    rejected = anchors(world)
    assert (historian.told, len(rejected), len(world.frames)) == (["200", "200"], 1, 3)
    heal(world)
    # Nor when the very same history comes again, or what is built on it.
    del historian.history[2:]
    historian.attempt(user("b"))
    historian.attempt(user("c"))
    assert rejected[0] not in anchors(world)[1:]
    assert_empty(world)


def test_an_injection_whose_full_form_fails_too_is_never_made_again() -> None:
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Error(400, NOT_FOUND)))
    world.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, Error(500)))
    historian.attempt(user("b"))
    historian.attempt(user("b"))
    assert historian.told == ["200", "502", "200"]
    assert len(anchors(world)) == 1
    assert_empty(world)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instructions", "others"),
        ("tools", [{"type": "function", "name": "other"}]),
        ("model", "other"),
        ("reasoning", {"effort": "high"}),
        ("prompt_cache_key", "other"),
        ("store", True),
        ("text", {"verbosity": "low"}),
        ("truncation", "auto"),
    ],
)
def test_other_settings_are_another_conversation(field: str, value: object) -> None:
    world = held()
    historian = Historian(world, fields={"prompt_cache_key": "k", "instructions": "some"})
    historian.attempt(user("a"))
    historian.attempt(user("b"))
    historian.fields[field] = value
    historian.attempt(user("c"))
    assert len(anchors(world)) == 1
    historian.attempt(user("d"))
    assert historian.told == ["200"] * 4
    assert len(anchors(world)) == 2  # it goes on from there
    assert_empty(world)


@pytest.mark.parametrize("header", ["thread-id", "session-id"])
def test_another_thread_is_another_conversation(header: str) -> None:
    world = held()
    one = Historian(world, headers=f"{header}: one\r\n")
    one.attempt(user("a"))
    two = Historian(world, headers=f"{header}: two\r\n", history=list(one.history))
    two.attempt(user("b"))
    assert anchors(world) == []
    one.attempt(user("c"))  # its response is at hand, and nobody was anchored there
    two.attempt(user("d"))
    one.attempt(user("e"))
    assert [request.anchor is None for request in world.emulator.requests[2:]] == [False] * 3
    assert len(set(anchors(world))) == 3
    assert_empty(world)


@pytest.mark.parametrize("texts", ["aaaa", "abcd"])
def test_siblings_never_share_an_anchor(texts: str) -> None:
    """They share keys and their beginning, and perhaps every word."""
    world = held()
    siblings = [
        Historian(world, headers="thread-id: t\r\n", fields={"prompt_cache_key": "k"})
        for _ in texts
    ]
    for _ in range(4):
        for sibling, text in zip(siblings, texts, strict=True):
            sibling.attempt(user(text))
    assert len(anchors(world)) == len(set(anchors(world)))
    assert all(sibling.told == ["200"] * 4 for sibling in siblings)
    if len(set(texts)) == len(texts):
        assert len(anchors(world)) == 3 * len(texts)
    assert_empty(world)


def test_one_history_posted_many_times_at_once() -> None:
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    world.emulator.delta_interval = SECOND
    others = [Historian(world, history=list(historian.history)) for _ in range(5)]
    clients = [other.begin(user(f"b {n % 2}")) for n, other in enumerate(others)]
    world.advance(10)
    for n, (other, client) in enumerate(zip(others, clients, strict=True)):
        other.end(client, user(f"b {n % 2}"))
        assert other.told == ["200"]
    assert len(anchors(world)) == 1
    assert len({turn.request.conn for turn in world.emulator.turns[1:]}) == 5
    world.emulator.delta_interval = 0
    for other in others:
        other.attempt(user("c"))
    assert len(anchors(world)) == len(set(anchors(world)))
    assert_empty(world)


def test_a_cut_stream_whose_call_was_delivered() -> None:
    """The tool ran: the client's next body has grown by the call and its output."""
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    strike(world, Point.BEFORE_TERMINAL, Abort())
    answer = historian.attempt(user("call tool look {}"))
    (done,) = [e.json["item"] for e in answer.events if e.name == "response.output_item.done"]
    historian.history += [user("call tool look {}"), done]
    heal(world)
    assert historian.attempt(output_for(done, "x")).text == "turn 2: look returned x"
    historian.attempt(user("b"))
    assert historian.told == ["200", "failed", "200", "200"]
    assert_empty(world)


def test_an_edited_history_is_not_extended() -> None:
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    historian.attempt(user("b"))
    historian.history[1] = {"role": "assistant", "content": "other words"}
    historian.attempt(user("c"))
    assert len(anchors(world)) == 1
    assert len(frame(world)["input"]) == 5
    assert_empty(world)


def test_a_client_that_changes_its_ways() -> None:
    """From ids to histories and back: what was said is one conversation."""
    world = held()
    talker = Talker(world)
    talker.attempt(user("a"))
    talker.attempt(user("b"))
    historian = Historian(world, history=list(talker.past[talker.last]))
    answer = historian.attempt(user("c"))
    assert len(anchors(world)) == 2
    talker.past[answer.response["id"]] = historian.history
    world.advance(1000)
    talker.attempt(user("d"), after=answer.response["id"])
    assert talker.told == ["200"] * 3
    assert len(frame(world)["input"]) == 7
    assert_empty(world)


# ------------------------------------------------------------------ clients as they are


CODEX = "internal_chat_message_metadata_passthrough"


@attrs.define
class Codex(Historian):
    """Codex with its built-in provider: each item that it sends carries what it knows of it."""

    turns: int = 0

    def body_of(self, *items: Json) -> list[Json]:
        self.turns += 1
        note = {"turn_id": f"01a059de-d2ff-78f1-{self.turns:04}", "create_time": 1788214171.12}
        return [{**item, CODEX: note} for item in items]


def test_codex_is_recognised_by_what_a_model_reads() -> None:
    world = held()
    fields = {"prompt_cache_key": "k", "instructions": "Be brief."}
    codex = Codex(world, headers="thread-id: k\r\n", fields=fields)
    for n in range(1, 9):
        items = codex.body_of(user(f'call tool look {{"n":{n}}}'))
        (call,) = codex.attempt(*items).response["output"]
        codex.history[-1:] = codex.body_of({**call, "status": None})  # what it sends back
        codex.attempt(*codex.body_of(output_for(call, f"seen {n}")))
        codex.history[-1:] = codex.body_of(codex.history[-1])
    assert codex.told == ["200"] * 16
    assert len(anchors(world)) == 15
    assert world.net.connects == 1
    # What is forwarded is forwarded as it came.
    assert all(CODEX in item for request in world.frames for item in request["input"])
    assert_empty(world)


def calling(request: CreateRequest) -> list[Json]:
    """A call for each output so far, until there are five; then an answer."""
    outputs = sum(item.get("type") == "function_call_output" for item in request.context)
    if outputs % 6 == 5:
        part = {"type": "output_text", "text": f"after {outputs}", "annotations": []}
        return [{"type": "message", "role": "assistant", "status": "completed", "content": [part]}]
    arguments = json.dumps({"n": outputs}, separators=(",", ":"))
    call = {"type": "function_call", "name": "look", "arguments": arguments}
    return [{**call, "call_id": f"call_{outputs}", "status": "completed"}]


def steps_of(world: World, lose: Sequence[int] = ()) -> list[Json]:
    """A tool loop as the Vercel AI SDK goes through it with ``previousResponseId``: each step says
    all that came since the response before the user's message. The frames of its steps; before
    those of ``lose``, the socket is lost."""
    world.emulator.answer = calling
    first = world.ask([user("hi")], store=False).response
    (call,) = first["output"]
    turn = [output_for(call, "zero")]
    frames = []
    for step in range(5):
        if step in lose:
            world.advance(1000)
        answer = world.ask(turn, previous_response_id=first["id"], store=False)
        assert answer.status == 200, answer.body
        (turned,) = [t for t in world.emulator.turns if t.response_id == answer.response["id"]]
        assert meant(turned.request.context) == meant([user("hi"), call, *turn])
        frames.append(frame(world))
        (made,) = answer.response["output"]
        if made["type"] == "function_call":
            # It parses arguments, and writes them again.
            again = {**made, "arguments": json.dumps(json.loads(made["arguments"]))}
            turn += [bare(again), output_for(made, f"seen {step}")]
    return frames


def meant(items: Sequence[Json]) -> list[tuple[object, ...]]:
    """What a model reads of ``items``, whatever the white space of arguments."""
    return [
        said({**item, "arguments": json.loads(item["arguments"])} if "arguments" in item else item)
        for item in items
    ]


def test_a_tool_loop_that_repeats_itself_after_an_anchor_is_reduced() -> None:
    world = held()
    frames = steps_of(world)
    assert world.net.connects == 1
    assert [len(sent["input"]) for sent in frames] == [1] * 5
    assert all(sent["input"][0]["type"] == "function_call_output" for sent in frames)
    names = [turn.response_id for turn in world.emulator.turns]
    assert [sent["previous_response_id"] for sent in frames] == names[:-1]
    assert_empty(world)


def test_a_tool_loop_that_loses_its_socket_is_rebuilt_once() -> None:
    world = held()
    frames = steps_of(world, lose=[2])
    assert world.net.connects == 2
    assert ["previous_response_id" in sent for sent in frames] == [True, True, False, True, True]
    assert [len(sent["input"]) for sent in frames] == [1, 1, 7, 1, 1]
    assert_empty(world)


def test_what_is_left_behind_by_an_anchor_of_ours_is_the_clients_context() -> None:
    """The upstream has forgotten what we named: what the client meant goes, in full."""
    world = held()
    world.emulator.answer = calling
    first = world.ask([user("hi")], store=False).response
    turn = [output_for(first["output"][0], "zero")]
    second = world.ask(turn, previous_response_id=first["id"], store=False).response
    turn += [second["output"][0], output_for(second["output"][0], "one")]
    strike(world, Point.BEFORE_CREATED, Error(400, NOT_FOUND))
    answer = world.ask(turn, previous_response_id=first["id"], store=False)
    assert answer.status == 200
    assert [sent.get("previous_response_id") for sent in world.frames[2:]] == [second["id"], None]
    assert context(world.emulator.requests[-1]) == [
        said(item) for item in [user("hi"), first["output"][0], *turn]
    ]
    assert_empty(world)


# ------------------------------------------------------------------ sockets of one cache key


@attrs.define
class Stranger(Historian):
    """A client whose history is never recognised: it numbers its requests in what it sends back."""

    def stranger_turn(self, text: str) -> None:
        self.history = [{**item, "request": len(self.sizes)} for item in self.history]
        client = self.begin(user(text))
        answer = self.world.read(client)
        client.half_close()
        assert answer.status == 200
        self.history += [user(text), *answer.response["output"]]


@pytest.mark.parametrize("continuity", Continuity)
@pytest.mark.parametrize("store", [True, False])
def test_a_client_that_is_never_recognised_keeps_to_its_socket(
    store: bool, continuity: Continuity
) -> None:
    world = World(continuity=continuity, split=in_segments)
    stranger = Stranger(world, store, fields={"prompt_cache_key": "k"})
    for n in range(30):
        stranger.stranger_turn(f"text {n}")
    assert anchors(world) == []
    assert world.net.connects <= 2
    assert world.endpoint.bridge.links <= 2
    assert_empty(world)


def test_sockets_are_not_used_across_keys_threads_and_credentials() -> None:
    world = held()
    strangers = [
        Stranger(world, key=key, headers=headers, fields=fields)
        for key in ("sk-one", "sk-two")
        for headers in ("", "thread-id: t\r\n")
        for fields in ({}, {"prompt_cache_key": "k"}, {"prompt_cache_key": "l"})
    ]
    for n in range(4):
        for stranger in strangers:
            stranger.stranger_turn(f"text {n}")
    users: dict[int, set[object]] = {}
    for seen in world.emulator.requests:
        heads = dict(seen.headers)
        thread = heads.get(b"thread-id")
        who = (heads.get(b"authorization"), thread, seen.body.get("prompt_cache_key"))
        users.setdefault(seen.conn, set()).add(who)
    assert all(len(whose) == 1 for whose in users.values())
    assert len(users) == 8 + 4 * 4  # those without a key have a socket for each turn
    assert_empty(world)


def test_conversations_that_share_a_key_keep_their_sockets() -> None:
    """One key for all: whoever is recognised, or says ids, is not displaced by the others."""
    world = held()
    fields: Json = {"prompt_cache_key": "shared"}
    talkers = [Talker(world, fields=fields) for _ in range(20)]
    historians = [Historian(world, fields=fields) for _ in range(20)]
    for n in range(4):
        for number in range(20):
            talkers[number].attempt(user(f"talker {number} says {n}"))
            historians[number].attempt(user(f"historian {number} says {n}"))
    assert all(one.told == ["200"] * 4 for one in talkers)
    assert all(one.told == ["200"] * 4 for one in historians)
    # A few lost theirs to others that began after them; nobody did after that.
    assert sum("previous_response_id" not in sent for sent in world.frames[40:80]) <= 8
    assert all("previous_response_id" in sent for sent in world.frames[80:])
    assert_empty(world)


def test_single_turns_of_one_key_leave_few_sockets() -> None:
    world = held()
    for n in range(80):
        assert world.ask(f"classify {n}", prompt_cache_key="k", store=False).status == 200
    assert world.endpoint.bridge.links <= 32
    assert_empty(world)


def test_a_socket_that_somebody_may_need_is_not_taken() -> None:
    """Nothing is held, and the one who knows the response's id may come back."""
    world = World(continuity=Continuity.PASSTHROUGH, split=in_segments)
    fields: Json = {"prompt_cache_key": "k"}
    first = world.ask("a", store=False, **fields).response
    stranger = Stranger(
        world, fields=fields, history=[user("x"), {"role": "assistant", "content": "y"}]
    )
    for n in range(3):
        stranger.stranger_turn(f"text {n}")
    assert world.net.connects == 2
    again = world.ask("b", store=False, previous_response_id=first["id"], **fields)
    assert again.status == 200
    assert world.net.connects == 2


# ------------------------------------------------------------------ the same again


@pytest.mark.parametrize("keyed", [True, False])
def test_asking_the_same_again_and_editing_go_on_reduced(keyed: bool) -> None:
    world = held()
    fields: Json = {"prompt_cache_key": "k"} if keyed else {}
    historian = Historian(world, fields=fields)
    historian.attempt(user("a"))
    historian.attempt(user("b"))
    for text in ("b", "b", "other"):  # regenerate, twice, then edit
        del historian.history[2:]
        historian.attempt(user(text))
        before = len(anchors(world))
        for n in range(3):
            historian.attempt(user(f"on {n}"))
        assert len(anchors(world)) == before + 3
    assert set(historian.told) == {"200"}
    assert len(anchors(world)) == len(set(anchors(world)))
    assert_empty(world)


def test_a_conversation_that_begins_like_many_is_reduced_at_once() -> None:
    """Conversations that were given up leave responses of equal context behind."""
    world = held()
    for n in range(5):
        historian = Historian(world)
        historian.attempt(user("hello"))
        historian.attempt(user(f"question {n}"))
        assert len(anchors(world)) == n + 1
        Historian(world).attempt(user("hello"))
        world.advance(1000)  # sockets are given up
    assert len(anchors(world)) == len(set(anchors(world)))
    assert_empty(world)


def test_a_full_send_does_not_end_the_reduction_of_what_it_repeats() -> None:
    world = held()
    one = Historian(world)
    one.attempt(user("a"))
    two = Historian(world, history=list(one.history), fields={"instructions": "others"})
    two.attempt(user("b"))
    one.attempt(user("c"))
    assert len(anchors(world)) == 1
    assert_empty(world)


# ------------------------------------------------------------------ long conversations

BEFORE_OUTPUT: list[tuple[Point, Action]] = [
    (Point.AFTER_TERMINAL, CloseWith(1001)),  # of the turn before, so to speak
    (Point.BEFORE_CREATED, Abort()),
    (Point.BEFORE_CREATED, CloseWith(1011)),
    (Point.BEFORE_CREATED, Silence()),
    (Point.BEFORE_CREATED, Error(400, NOT_FOUND)),
    (Point.BEFORE_CREATED, Error(400, "websocket_connection_limit_reached")),
    (Point.AFTER_CREATED, Abort()),
    (Point.AFTER_CREATED, CloseWith(1012)),
]


def long_conversation(
    turns: int,
    rng: random.Random | None,
    *,
    tries: int = 2,
    ambiguous: Ambiguous = Ambiguous.REFUSE,
    stream: bool = False,
) -> tuple[list[str], list[int]]:
    """What a client was told, and the tokens of context of each turn. With ``rng``, every third
    turn is hit before its output. It does what its SDK does: it asks again, but never differently.
    """
    world = held(created_timeout=SECOND // 2, ambiguous=ambiguous)
    talker = Talker(world, stream=stream)
    tokens = []
    for n in range(turns):
        heal(world)
        if rng is not None and n % 3 == 2:
            strike(world, *rng.choice(BEFORE_OUTPUT))
        answer = talker.turn(user(f"text {n:04} " + "x" * 400), tries=tries)
        tokens.append(answer.response["usage"]["input_tokens"])
    return talker.told, tokens


@pytest.mark.parametrize("seed", range(3))
def test_losses_do_not_grow_the_context(seed: int) -> None:
    calm, undisturbed = long_conversation(40, None)
    told, tokens = long_conversation(40, random.Random(seed))
    assert calm == ["200"] * 40
    assert set(told) == {"200", "502"}  # one repetition by the SDK at most: see ``tries``
    # What differs are a few bytes for each answer: its form as an output and as an input.
    assert tokens[-1] <= 1.01 * undisturbed[-1]
    growth = [(run[-1] - run[0]) / 39 for run in (tokens, undisturbed)]
    assert growth[0] <= 1.01 * growth[1]


@pytest.mark.parametrize("stream", [True, False])
def test_with_replay_two_hundred_turns_show_no_loss(stream: bool) -> None:
    """What was lost before its output is sent again: no client has to retry anything."""
    rng = random.Random(7)
    told, tokens = long_conversation(200, rng, tries=1, ambiguous=Ambiguous.REPLAY, stream=stream)
    assert told == ["200"] * 200
    calm, undisturbed = long_conversation(200, None)
    assert calm == told
    assert tokens == pytest.approx(undisturbed, rel=0.01)


@pytest.mark.parametrize("action", [Abort(), CloseWith(1011), Silence()])
def test_with_replay_a_client_sees_one_answer_begin(action: Action) -> None:
    """Invariant 14: of the answer that was lost, nothing was shown."""
    world = held(ambiguous=Ambiguous.REPLAY, idle_timeout=SECOND)
    talker = Talker(world)
    talker.turn(user("a"))
    strike(world, Point.AFTER_CREATED, action)
    answer = talker.attempt(user("b"), wait=1)
    assert talker.told == ["200"] * 2
    assert len(world.frames) == 3
    assert answer.names[:2] == ["response.created", "response.in_progress"]
    assert answer.names.count("response.created") == 1
    assert answer.events[0].json["response"]["id"] == answer.response["id"]
    numbers = [event.json["sequence_number"] for event in answer.events]
    assert numbers == list(range(len(numbers)))


def test_with_replay_an_answer_without_output_is_whole() -> None:
    world = held(ambiguous=Ambiguous.REPLAY)
    talker = Talker(world, fields={"generate": False})
    answer = talker.turn(user("a"))
    assert answer.names[0] == "response.created"
    assert answer.names[-1] == "response.completed"


def test_with_replay_there_is_one_more_try_and_no_second() -> None:
    world = held(ambiguous=Ambiguous.REPLAY)
    talker = Talker(world)
    talker.turn(user("a"))
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_CREATED, Abort()))
    talker.attempt(user("b"))
    assert talker.told == ["200", "failed"]
    assert len(world.frames) == 3


def test_with_replay_nothing_is_sent_again_once_the_answer_has_begun() -> None:
    world = held(ambiguous=Ambiguous.REPLAY)
    talker = Talker(world, stream=False)
    talker.turn(user("a"))
    strike(world, Point.MID_OUTPUT, Abort())
    talker.attempt(user("b"))
    assert talker.told == ["200", "502"]
    assert len(world.frames) == 2


# ------------------------------------------------------------------ what it saves and costs


def total(answer: Answer) -> int:
    usage = answer.response["usage"]
    return int(usage["input_tokens"] + usage["output_tokens"])


def test_what_reduction_saves_is_what_the_upstream_counted_before() -> None:
    world = held()
    historian = Historian(world)
    answers = [historian.turn(user(f"{n} " + "x" * 2000)) for n in range(3)]
    accounts = world.endpoint.bridge.accounts
    assert (accounts.turns, accounts.reduced, accounts.rehydrated) == (3, 2, 0)
    assert accounts.tokens_saved == total(answers[0]) + total(answers[1])
    assert 2 * 3 * 2000 < accounts.bytes_saved < 2 * 3 * 2000 * 1.3
    assert (accounts.tokens_spent, accounts.bytes_spent) == (0, 0)
    logs = [log.fields for log in world.net.logs if log.event == "turn.completed"]
    assert [log["tokens_saved"] for log in logs] == [0, total(answers[0]), total(answers[1])]
    counted = [int(log["input_tokens"]) + int(log["output_tokens"]) for log in logs]
    assert counted == [total(answer) for answer in answers]


def test_what_rehydration_costs_is_what_the_upstream_counted_before() -> None:
    world = held()
    talker = Talker(world)
    answers = [talker.turn(user("a" * 4000))]
    strike(world, Point.AFTER_TERMINAL, CloseWith(1001))
    answers.append(talker.turn(user("b")))
    answers.append(talker.turn(user("c")))
    accounts = world.endpoint.bridge.accounts
    assert (accounts.turns, accounts.reduced, accounts.rehydrated) == (3, 0, 1)
    assert accounts.tokens_spent == total(answers[1])
    assert accounts.bytes_spent > 8000
    assert (accounts.tokens_saved, accounts.bytes_saved) == (0, 0)


# ------------------------------------------------------------------ whatever happens

where = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from([Point.BEFORE_CREATED, Point.AFTER_CREATED, Point.MID_OUTPUT]),
        st.sampled_from(
            [
                Abort(),
                CloseWith(1001),
                CloseWith(1011),
                Silence(),
                Error(500),
                Error(429, "rate_limit_exceeded"),
                Error(400, NOT_FOUND),
                Error(400, "websocket_connection_limit_reached"),
            ]
        ),
    ),
    st.tuples(
        st.just(Point.AFTER_TERMINAL), st.sampled_from([Abort(), CloseWith(1000), CloseWith(1012)])
    ),
)
steps = st.tuples(
    st.integers(0, 4),  # who
    st.sampled_from(["say", "say", "tool", "branch", "same"]),
    where,
    st.sampled_from([0, 0, 0, 60, 1000]),  # seconds that pass
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(steps, min_size=2, max_size=25), shape=st.sampled_from(SHAPES))
def test_what_is_shown_is_what_was_said(
    steps: list[tuple[int, str, tuple[Point, Action] | None, int]], shape: ErrorShape
) -> None:
    """Invariants 1, 6 and 8: the helpers compare contexts at every answer."""
    world = held(created_timeout=SECOND // 2, idle_timeout=SECOND // 2)
    world.emulator.error_shape = shape
    clients: list[Talker | Historian] = [
        Talker(world),
        Talker(world, store=True, stream=False),
        Historian(world),
        Historian(world, store=True, bare=True),
        Historian(world),
    ]
    for number, (who, what, fault, delay) in enumerate(steps):
        client = clients[who]
        if what == "branch" and isinstance(client, Talker):
            client.last = list(client.past)[number % len(client.past)]
            while open_calls(client.past[client.last]):
                client.last = None
        elif what == "branch" and isinstance(client, Historian):
            other = clients[number % len(clients)]
            if isinstance(other, Historian):
                client.history = list(other.history)
        world.emulator.faults.clear()
        if fault is not None:
            strike(world, *fault)
        text = "same" if what == "same" else f"text {number}"
        if what == "tool":
            (call,) = client.turn(user("call tool look {}")).response["output"]
            client.turn(output_for(call, text))
        else:
            client.turn(user(text))
        world.advance(delay)
    sent = anchors(world)
    for historian in clients[2:]:
        assert isinstance(historian, Historian)
    assert set(sent) <= {world.emulator.response_id(n + 1) for n in range(len(world.frames))}
    world.emulator.faults.clear()
    assert_empty(world)


def open_calls(items: list[Json]) -> bool:
    answered = {item["call_id"] for item in items if item.get("type") == "function_call_output"}
    return any(i.get("type") == "function_call" and i["call_id"] not in answered for i in items)
