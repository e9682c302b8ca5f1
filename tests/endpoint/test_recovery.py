"""Recovery of a whole endpoint as its clients see it: contract, "Recovery", and the
rules of ``pr397``.

What belongs here: losses and refusals where the bridge holds no transcripts. With transcripts:
test_losses.py and test_refusals.py.
"""

from __future__ import annotations

import itertools
import json

import pytest

from bridgecore.config import Continuity
from bridgecore.recovery.timers import Timer
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    Emulator,
    Error,
    ErrorShape,
    Fault,
    Freeze,
    Garbage,
    Outcome,
    Point,
    Reject,
    SendEvents,
    Silence,
)
from bridgecore.testing.faults import COMMON_SHAPES, Action
from bridgecore.transport import LogLevel
from tests.endpoint_world import (
    CODES,
    KEY,
    LOSSES,
    NOT_FOUND,
    SECOND,
    Json,
    World,
    in_segments,
    request,
)

POLICIES = ["default", "pr397", "v1_12"]


def first_turn(world: World, *, store: bool) -> str:
    answer = world.ask("a", store=store)
    assert answer.text == "turn 1: a"
    return str(answer.response["id"])


# ------------------------------------------------------------------ between turns


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("action", [*map(CloseWith, [*CODES, 3000, 4999]), Abort()], ids=repr)
def test_closed_between_turns_stored(policy: str, action: Action) -> None:
    world = World(policy=policy)
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, action))
    first = first_turn(world, store=True)
    world.assert_idle()
    answer = world.ask("b", previous_response_id=first, store=True)
    assert answer.text == "turn 2: b"
    assert world.net.connects == 2
    assert len(world.frames) == 2
    world.assert_empty()


@pytest.mark.parametrize("policy", POLICIES)
def test_closed_between_turns_unstored(policy: str) -> None:
    world = World(policy=policy)
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    first = first_turn(world, store=False)
    answers = [world.ask("b", previous_response_id=first, store=False) for _ in range(7)]
    statuses = [answer.status for answer in answers]
    if policy == "v1_12":  # the broken answer: not-found because of a lost connection
        assert statuses == [400] * 7
    else:
        assert statuses == [502] * 3 + [400] * 4
        for answer in answers[:3]:
            assert answer.error["code"] == "upstream_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
        logs = [log.fields for log in world.net.logs if log.event == "turn.refused"]
        assert [fields["refusals"] for fields in logs] == [1, 2, 3, 3, 3, 3, 3]
    last = answers[-1].error
    assert (last["code"], last["param"]) == (NOT_FOUND, "previous_response_id")
    assert first in last["message"]
    assert len(world.frames) == 1  # an anchor is never sent on a connection that did not make it
    world.assert_empty()


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_ten_turns_on_one_socket(policy: str, store: bool) -> None:
    world = World(policy=policy)
    previous = first_turn(world, store=store)
    for n in range(2, 11):
        answer = world.ask(f"text {n}", previous_response_id=previous, store=store)
        assert answer.text == f"turn {n}: text {n}"
        previous = answer.response["id"]
    assert world.net.connects == 1
    assert (world.endpoint.bridge.conversations, world.endpoint.bridge.links) == (1, 1)
    world.assert_empty()


# ------------------------------------------------------------------ during a turn

POINTS = [Point.WHILE_RECEIVING, Point.BEFORE_CREATED]
NOISE = [b"no JSON", b'["type"]', b'{"type":7}', b'{"type":"a\\nb"}', b"", b"[DONE]"]


@pytest.mark.parametrize("action", LOSSES, ids=repr)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("anchored", [True, False])
def test_lost_before_created(policy: str, anchored: bool, point: Point, action: Action) -> None:
    """The answer after an ambiguous send, and that a retry works."""
    world = World(policy=policy, split=in_segments)
    first = first_turn(world, store=True)
    fields: Json = {"previous_response_id": first} if anchored else {}
    world.emulator.faults.add(2, Fault(point, action))
    text = "b" * 200_000
    answer = world.ask(text, **fields)
    replayed = not anchored and policy != "default"
    if replayed:
        assert answer.text == f"turn 1: {text}"
    elif policy == "v1_12" and anchored:
        assert (answer.status, answer.error["code"]) == (400, NOT_FOUND)
    else:
        assert answer.status == 502
        assert answer.error["code"] in ("stream_incomplete", "bridge_owner_unreachable")
    sends = world.emulator._creates
    assert sends == (3 if replayed else 2)
    again = world.ask("c", **fields)
    assert again.text == ("turn 2: c" if anchored else "turn 1: c")
    world.assert_empty()


@pytest.mark.parametrize("action", [Silence(), Freeze()], ids=repr)
@pytest.mark.parametrize("policy", POLICIES)
def test_silence_before_created(policy: str, action: Action) -> None:
    world = World(policy=policy, created_timeout=10 * SECOND)
    first = first_turn(world, store=True)
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, action))
    client = world.start("b", previous_response_id=first)
    world.advance(10)
    answer = world.read(client)
    if policy == "v1_12":
        assert (answer.status, answer.error["code"]) == (400, NOT_FOUND)
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_request_timeout")
    assert world.ask("b", previous_response_id=first).text == "turn 2: b"
    client.half_close()
    world.assert_empty()


@pytest.mark.parametrize("data", [b"\x00 garbage", *NOISE])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("anchored", [True, False])
def test_a_meaningless_text_frame_changes_nothing(
    anchored: bool, stream: bool, data: bytes
) -> None:
    """Wherever it comes, answer and connection are as without it."""
    world, quiet = World(), World()
    for point in (
        Point.BEFORE_CREATED,
        Point.AFTER_CREATED,
        Point.MID_OUTPUT,
        Point.AFTER_TERMINAL,
    ):
        world.emulator.faults.add(EVERY, Fault(point, Garbage(data)))
    last: Json = {}
    for _ in range(3):
        answer = world.ask("a", stream=stream, **last)
        assert answer.body == quiet.ask("a", stream=stream, **last).body
        if anchored:
            last = {"previous_response_id": answer.response["id"]}
    assert world.net.connects == (1 if anchored else 3)
    assert len(world.frames) == 3
    world.assert_empty()


def test_a_message_that_is_too_large() -> None:
    world = World(max_message=10_000)
    answer = world.ask("x" * 20_000)
    assert answer.response["error"]["code"] == "stream_incomplete"
    assert world.ask("x" * 20_000, stream=False).status == 502
    assert world.ask("x").text == "turn 1: x"
    world.assert_empty()


# ------------------------------------------------------------------ error frames

SHAPES = list(COMMON_SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "context_length_exceeded", 400),
        (401, "invalid_api_key", 401),
        (403, "forbidden", 403),
        (429, "rate_limit_exceeded", 429),
        (400, "rate_limit_exceeded", 429),
        (500, "server_error", 502),
        (503, "overloaded", 502),
    ],
)
def test_errors_are_relayed(status: int, code: str, expected: int, shape: ErrorShape) -> None:
    world = World()
    error = Error(status, code, "some_error", "Words of the upstream.", None, shape)
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, error))
    answer = world.ask()
    # Without a status, the code implies it.
    if shape is ErrorShape.TERSE:
        expected, code = (
            (429 if status == 429 else 400 if expected == 429 else expected),
            "some_error",
        )
    assert answer.status == expected
    assert answer.error["code"] == code
    assert answer.error["message"] == "Words of the upstream."
    assert ("retry-after" in answer.headers) == (expected in (429, 502))
    assert world.ask().status == 200
    world.assert_empty()


FLAT = b'{"type":"error","code":"server_error","message":"Flat.","param":null,"sequence_number":0}'
BARE = b'{"type":"error"}'
NULLS = b'{"type":"error","status":null,"error":{"type":null,"code":null,"message":null}}'
TEXT = b'{"type":"error","status":400,"error":"just text"}'
HUGE = b'{"type":"error","status":429,"headers":{"Retry-After":"%b"},"error":{}}' % (b"9" * 9000)
YEAR = 366 * 86_400  # seconds; no upstream asks for a longer wait
ODD = b'{"type":"error","status":1e400,"error":{"code":7,"resets_in_seconds":1e300}}'


@pytest.mark.parametrize(
    ("frame", "status"),
    [(FLAT, 502), (BARE, 502), (NULLS, 502), (TEXT, 400), (HUGE, 429), (ODD, 502)],
)
def test_odd_error_frames(frame: bytes, status: int) -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents((frame,))))
    answer = world.ask()
    assert answer.status == status
    assert answer.error["code"]
    assert answer.error["message"]
    assert answer.error["type"]
    if status in (429, 502):
        assert 1 <= int(answer.headers["retry-after"]) <= YEAR
    world.assert_empty()


@pytest.mark.parametrize(
    ("where", "wait"),
    [
        (b'"headers":{"Retry-After":"7"},"error":{}', 7),
        (b'"error":{"headers":{"retry-after-ms":"6001"}}', 7),
        (b'"error":{"resets_in_seconds":6.2}', 7),
        (b'"error":{"resets_in_seconds":596369}', 596_369),  # a weekly window
        (b'"error":{"message":"Rate limit reached. Please try again in 6m0s."}', 360),
    ],
)
def test_a_retry_after_in_an_error_frame_is_a_floor(where: bytes, wait: int) -> None:
    world = World()
    frame = b'{"type":"error","status":429,' + where + b"}"
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents((frame,))))
    assert world.ask().headers["retry-after"] == str(wait)


USED_UP = {"type": "usage_limit_reached", "message": "The usage limit has been reached."}
WINDOW: Json = {"plan_type": "plus", "resets_at": 1788879437, "resets_in_seconds": 9568}


@pytest.mark.parametrize("point", [Point.BEFORE_CREATED, Point.AFTER_CREATED, Point.MID_OUTPUT])
@pytest.mark.parametrize("beside", [True, False], ids=["beside the error", "in the error"])
def test_further_members_of_an_error_reach_the_client(point: Point, beside: bool) -> None:
    """Clients show when a used-up limit is reset."""
    world = World()
    frame: Json = {"type": "error", "status": 429, "error": {**USED_UP}}
    (frame if beside else frame["error"]).update(WINDOW)
    sent = SendEvents((json.dumps(frame).encode(),))
    world.emulator.faults.add(1, Fault(point, sent))
    answer = world.ask("a")
    if point is Point.BEFORE_CREATED:
        assert (answer.status, answer.headers["retry-after"]) == (429, "9568")
        assert answer.error == {**USED_UP, "code": "usage_limit_reached", "param": None, **WINDOW}
    else:
        error = answer.response["error"]
        message = USED_UP["message"]
        assert error == {"code": "usage_limit_reached", "message": message, **WINDOW}
    world.assert_empty()


def test_further_members_of_a_failed_response_reach_a_client_without_stream() -> None:
    world = World()
    failed = {
        "type": "response.failed",
        "response": {"id": "%RESPONSE_ID%", "error": {"code": "rate_limit_exceeded", **WINDOW}},
    }
    sent = SendEvents((json.dumps(failed).encode(),))
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, sent))
    answer = world.ask("a", stream=False)
    assert (answer.status, answer.headers["retry-after"]) == (429, "9568")
    assert answer.error.items() >= WINDOW.items()
    world.assert_empty()


NOT_FOUND_WORDS = [
    {"status": 404, "error": {"code": 404, "param": "response_id", "message": "{0} not found."}},
    {"error": {"type": "api_error", "message": "gRPC error: {0} not found"}},
    {"error": {"code": "invalid_value", "param": "previous_response_id", "message": "Odd."}},
    {"status": 400, "body": {"error": {"code": "response_not_found"}}},
]


@pytest.mark.parametrize("said", NOT_FOUND_WORDS)
def test_not_found_in_other_error_shapes(said: Json) -> None:
    """A held conversation continues with its whole input; otherwise the client gets not-found in
    the standard form."""
    for continuity in Continuity:
        world = World(continuity=continuity)
        words = json.dumps({"type": "error", **said}).replace("{0}", "Response with id 'resp_1'")
        world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, SendEvents((words.encode(),))))
        first = first_turn(world, store=True)
        answer = world.ask("b", previous_response_id=first, store=True)
        if continuity is Continuity.TRANSCRIPT:
            assert answer.text.endswith("b")
            assert "previous_response_id" not in world.frames[2]
        else:
            assert answer.status == 502  # stored: a bounded number of times, then a 400
        world.assert_empty()


@pytest.mark.parametrize("point", [Point.AFTER_CREATED, Point.MID_OUTPUT])
def test_an_error_frame_in_mid_answer(point: Point) -> None:
    world = World()
    world.emulator.faults.add(1, Fault(point, Error(429, "rate_limit_exceeded")))
    answer = world.ask()
    assert answer.names[-1] == "response.failed"
    assert answer.response["error"]["code"] == "rate_limit_exceeded"
    assert "error" not in answer.names
    world.assert_empty()


@pytest.mark.parametrize("store", [True, False])
def test_an_evicted_anchor_is_not_sent_again(store: bool) -> None:
    world = World()
    first = first_turn(world, store=store)
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Error(500)))
    assert world.ask("b", previous_response_id=first, store=store).status == 502
    again = world.ask("b", previous_response_id=first, store=store)
    if store:
        assert again.text == "turn 2: b"
    else:
        assert (again.status, len(world.frames)) == (502, 2)
    world.assert_empty()


# ------------------------------------------------------------------ connection limit


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_connection_limit_once(policy: str, store: bool) -> None:
    world = World(policy=policy)
    world.emulator.lifetime = 100 * SECOND
    first = first_turn(world, store=store)
    world.advance(200)
    answer = world.ask("b", previous_response_id=first, store=store)
    if store:
        assert answer.text == "turn 2: b"
    elif policy == "v1_12":
        assert answer.error["code"] == NOT_FOUND
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    world.assert_empty()


@pytest.mark.parametrize("policy", ["default", "pr397"])
@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("shape", [ErrorShape.FULL, ErrorShape.NO_STATUS, ErrorShape.CODE_IN_TYPE])
def test_connection_limit_without_end(policy: str, anchored: bool, shape: ErrorShape) -> None:
    world = World(policy=policy)
    first = first_turn(world, store=True)
    error = Error(400, "websocket_connection_limit_reached", "invalid_request_error", shape=shape)
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, error))
    for _ in range(2):
        before = len(world.frames)
        answer = world.ask("b", **({"previous_response_id": first} if anchored else {}))
        assert answer.status == 502
        assert int(answer.headers["retry-after"]) >= 1
        assert 1 <= len(world.frames) - before <= 3
    world.assert_empty()


# ------------------------------------------------------------------ unknown ids, and other tenants


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_unknown_id_that_the_upstream_does_not_store(policy: str, shape: ErrorShape) -> None:
    world = World(policy=policy)
    world.emulator.error_shape = shape
    answers = [
        world.ask("b", previous_response_id="resp_gone", store=False, stream=False)
        for _ in range(6)
    ]
    statuses = [answer.status for answer in answers]
    refused = statuses.count(502)
    assert refused <= 4
    assert statuses == [502] * refused + [400] * (6 - refused)
    error = answers[-1].error
    assert (error["code"], error["param"]) == (NOT_FOUND, "previous_response_id")
    assert "resp_gone" in error["message"]
    world.assert_empty()


@pytest.mark.parametrize("policy", POLICIES)
def test_unknown_id_that_the_upstream_stores(policy: str) -> None:
    emulator = Emulator()
    first = first_turn(World(emulator=emulator), store=True)
    other = World(policy=policy, emulator=emulator)
    assert other.ask("b", previous_response_id=first).text == "turn 2: b"
    assert other.ask("c", previous_response_id=first).text == "turn 2: c"
    other.assert_empty()


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_foreign_id_looks_exactly_like_a_miss(store: bool, stream: bool) -> None:
    world = World()
    first = first_turn(world, store=store)
    missing = first[:-1] + "x"
    foreign, miss = [], []
    for n in range(6):
        fields = {"store": store, "stream": stream}
        world.emulator.answer = lambda _: []
        one = world.ask("b", key="sk-other", previous_response_id=first, **fields)
        two = world.ask("b", key="sk-other", previous_response_id=missing, **fields)
        foreign.append((n, one.status, one.headers, one.body.replace(first.encode(), b"ID")))
        miss.append((n, two.status, two.headers, two.body.replace(missing.encode(), b"ID")))
    assert foreign == miss
    # The other client's turn has cost the owner nothing.
    assert world.ask("b", previous_response_id=first, store=store).status == 200
    world.assert_empty()


@pytest.mark.parametrize("header", ["openai-organization", "openai-project", "chatgpt-account-id"])
def test_another_account_shares_nothing(header: str) -> None:
    world = World()
    first = first_turn(world, store=False)
    client = world.client()
    body = {"model": "m", "input": "b", "previous_response_id": first, "store": False}
    client.send(request(body, headers=f"{header}: another\r\n"))
    assert world.read(client).status == 400
    assert world.ask("b", previous_response_id=first, store=False).status == 200


def test_only_allowed_headers_go_upstream() -> None:
    world = World()
    client = world.client()
    extra = "cookie: c=1\r\nx-forwarded-for: 1.2.3.4\r\nopenai-beta: b\r\nuser-agent: u\r\n"
    client.send(request({"model": "m", "input": "b"}, headers=extra + "x-odd: \xff\r\n"))
    assert world.read(client).status == 200
    names = {name for name, _ in world.emulator.requests[0].headers}
    assert {b"authorization", b"openai-beta", b"user-agent"} <= names
    assert not names & {b"cookie", b"x-forwarded-for", b"x-odd", b"content-length"}
    assert dict(world.emulator.requests[0].headers)[b"authorization"] == b"Bearer " + KEY.encode()


# ------------------------------------------------------------------ branches and contention


def test_branch_from_an_older_stored_response() -> None:
    world = World()
    first = first_turn(world, store=True)
    second = world.ask("b", previous_response_id=first).response["id"]
    assert world.ask("c", previous_response_id=first).text == "turn 2: c"
    assert world.ask("d", previous_response_id=second).text == "turn 3: d"
    assert world.net.connects == 2  # the branch did not take over the conversation's connection
    world.emulator.delta_interval = SECOND
    busy = world.start("e", previous_response_id=second)
    branch = world.start("f", previous_response_id=first)
    world.advance(10)
    assert world.read(busy).text == "turn 3: e"
    assert world.read(branch).text == "turn 2: f"
    for client in (busy, branch):
        client.half_close()
    world.assert_empty()


def test_turns_never_overlap_on_a_connection() -> None:
    world = World()
    first = first_turn(world, store=False)
    world.emulator.delta_interval = SECOND
    turns = [world.start("b", previous_response_id=first, store=False) for _ in range(5)]
    assert len(world.frames) == 2
    for _ in range(100):
        world.advance(0.5)
        running = [turn for turn in world.emulator.turns if turn.outcome is Outcome.RUNNING]
        conns = [turn.request.conn for turn in running]
        assert len(conns) == len(set(conns))
    # Only the first found its anchor cached; the others waited, and have to retry.
    assert [world.read(turn).status for turn in turns] == [200, 502, 502, 502, 400]
    for turn in turns:
        turn.half_close()
    world.assert_empty()


def test_a_full_queue_rejects_at_once() -> None:
    world = World(max_waiting=2)
    first = first_turn(world, store=False)
    world.emulator.faults.add(2, Fault(Point.MID_OUTPUT, Silence()))
    turns = [world.start("b", previous_response_id=first, store=False) for _ in range(4)]
    answer = world.read(turns[3])
    assert (answer.status, answer.error["code"]) == (503, "bridge_overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    for turn in turns[::-1]:
        turn.abort()
    world.assert_empty()


def test_conversations_are_bounded() -> None:
    world = World(max_sessions=2)
    one, two = first_turn(world, store=False), first_turn(world, store=False)
    assert world.endpoint.bridge.conversations == 2
    world.emulator.delta_interval = SECOND
    busy = [world.start("b", previous_response_id=x, store=False) for x in (one, two)]
    answer = world.ask("c")
    assert (answer.status, answer.error["code"]) == (503, "bridge_overloaded")
    world.advance(20)
    assert [world.read(client).status for client in busy] == [200, 200]
    world.emulator.delta_interval = 0
    assert world.ask("c").status == 200  # the longest idle one was evicted
    assert world.endpoint.bridge.conversations == 2
    for client in busy:
        client.half_close()
    world.assert_empty()


def test_a_turns_whole_budget() -> None:
    world = World(turn_timeout=30 * SECOND, idle_timeout=20 * SECOND, head_timeout=100 * SECOND)
    first = first_turn(world, store=False)
    world.emulator.delta_interval = 10 * SECOND
    running = world.start("repeat 50", previous_response_id=first, store=False)
    waiting = world.start("c", previous_response_id=first, store=False)
    world.advance(30)
    assert world.read(running).response["error"]["code"] == "upstream_request_timeout"
    assert world.read(waiting).error["code"] == "upstream_request_timeout"
    for client in (running, waiting):
        client.half_close()
    world.assert_empty()


# ------------------------------------------------------------------ connecting


def test_a_refused_connect() -> None:
    world = World()
    first = first_turn(world, store=True)
    world.emulator.faults.add(2, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    second = world.ask("b", previous_response_id=first).response["id"]
    world.net.remove_listener("up", 80)
    for fields in ({}, {"previous_response_id": second}):
        for _ in range(2):
            before = world.net.connects
            answer = world.ask("c", **fields)
            assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert world.net.connects - before <= 3
    world.net.add(world.emulator, "up", 80)
    assert world.ask("c", previous_response_id=second).text == "turn 3: c"
    world.assert_empty()


@pytest.mark.parametrize("where", ["tcp", Point.ON_CONNECT, Point.ON_UPGRADE])
def test_connect_timeout(where: str | Point) -> None:
    world = World()
    if isinstance(where, Point):
        world.emulator.faults.add(EVERY, Fault(where, Silence()))
    else:
        world.net.swallow_connects("up", 80)
    client = world.start()
    world.advance(10)
    answer = world.read(client)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    assert world.endpoint.upstreams == 0
    client.half_close()
    world.assert_empty()


@pytest.mark.parametrize(
    "action",
    [CloseWith(1001), Abort(), Garbage(b"SSH-2.0-x\r\n"), Garbage(b"HTTP/1.1 101 X\r\n\r\n")],
    ids=repr,
)
@pytest.mark.parametrize("point", [Point.ON_CONNECT, Point.ON_UPGRADE])
def test_connect_breaks(point: Point, action: Action) -> None:
    world = World()
    world.emulator.faults.add(EVERY, Fault(point, action))
    for _ in range(2):
        before = world.net.connects
        answer = world.ask()
        assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
        assert world.net.connects - before <= 3
    world.assert_empty()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, status) for status in (400, 401, 402, 403, 413, 422, 429, 451)),
        *((status, 502) for status in (404, 408, 426, 500, 503, 302)),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"error":{"code":"their_code","message":"Their words.","plan_type":"plus"}}',
        b'{"detail":"Their words."}',
        b"Their words.",
        b"<html>Their words.</html>",
    ],
)
def test_upgrade_refused(status: int, expected: int, body: bytes) -> None:
    world = World()
    reject = Reject(status, ((b"retry-after", b"17"),), body)
    world.emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, reject))
    for _ in range(2):
        before = world.net.connects
        answer = world.ask()
        assert answer.status == expected
        if expected in (429, 502):
            assert int(answer.headers["retry-after"]) >= 17
        else:
            assert "retry-after" not in answer.headers
        if expected != 502:
            said = b"Their words." in body and b"<html>" not in body
            assert (answer.error["message"] == "Their words.") is said
            if b"their_code" in body:
                assert answer.error["code"] == "their_code"
                assert answer.error["plan_type"] == "plus"
        assert world.net.connects - before <= 3
    world.assert_empty()


@pytest.mark.parametrize("value", [b"9" * 6000, b"soon", b"-1", b"1.5", b""])
def test_an_odd_retry_after(value: bytes) -> None:
    world = World()
    reject = Reject(503, ((b"retry-after", value),))
    world.emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, reject))
    assert 1 <= int(world.ask().headers["retry-after"]) <= YEAR


# ------------------------------------------------------------------ age, idleness, life


def test_a_socket_is_rotated_between_turns() -> None:
    world = World(upstream_lifetime=100 * SECOND)
    first = first_turn(world, store=True)
    world.advance(90)  # up to a tenth of its lifetime earlier
    assert world.endpoint.bridge.links == 1
    world.advance(10)
    world.assert_idle()
    assert world.endpoint.bridge.links == 0
    assert world.ask("b", previous_response_id=first).text == "turn 2: b"
    world.emulator.delta_interval = 10 * SECOND
    client = world.start("repeat 20", previous_response_id=first)
    world.advance(150)  # past its lifetime, but a turn runs
    assert not world.read(client).complete
    world.advance(100)
    assert world.read(client).complete
    client.half_close()
    world.advance(3)
    assert world.endpoint.bridge.links <= 1
    world.assert_empty()


def test_sockets_that_were_opened_together_are_not_replaced_together() -> None:
    world = World(upstream_lifetime=100 * SECOND)
    for number in range(20):
        world.ask(key=f"sk-{number}")
    left = []
    for _ in range(10):
        left.append(world.endpoint.bridge.links)
        world.advance(1)
    world.advance(80)
    assert left == [20] * 10
    for _ in range(10):
        left.append(world.endpoint.bridge.links)
        world.advance(1)
    assert world.endpoint.bridge.links == 0
    gone = [before - after for before, after in itertools.pairwise([*left[10:], 0])]
    assert max(gone) <= 3
    world.assert_empty()


def test_an_idle_conversation_gives_up_its_socket() -> None:
    world = World(session_idle=50 * SECOND)
    first = first_turn(world, store=True)
    world.advance(49)
    assert world.endpoint.bridge.conversations == 1
    world.advance(1)
    assert (world.endpoint.bridge.conversations, world.endpoint.bridge.links) == (0, 0)
    assert world.ask("b", previous_response_id=first).text == "turn 2: b"
    world.assert_empty()


def test_quiet_sockets_are_pinged_and_answer() -> None:
    world = World(session_idle=1000 * SECOND)
    first = first_turn(world, store=False)
    world.advance(900)
    assert world.ask("b", previous_response_id=first, store=False).text == "turn 2: b"
    assert world.net.connects == 1


def test_a_socket_that_does_not_answer_pings_is_dropped() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, Freeze()))
    first_turn(world, store=True)
    world.advance(39)
    assert world.endpoint.upstreams == 1
    assert world.endpoint.next_timeout() is not None
    world.advance(1)
    assert (world.endpoint.upstreams, world.endpoint.bridge.links) == (0, 0)
    world.assert_empty()


def test_a_missed_pong_in_mid_answer() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Freeze()))
    client = world.start()
    world.advance(40)
    assert world.read(client).response["error"]["code"] == "stream_incomplete"
    client.half_close()
    world.assert_empty()


def test_an_upstream_that_does_not_close_back() -> None:
    world = World(session_idle=5 * SECOND)
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, Freeze()))
    first_turn(world, store=True)
    world.advance(5)
    assert (world.endpoint.bridge.links, world.endpoint.upstreams) == (0, 1)
    deadline = world.endpoint.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.CLOSE_HANDSHAKE
    world.advance(2)
    assert world.endpoint.upstreams == 0
    world.assert_empty()


# ------------------------------------------------------------------ the content of logs


@pytest.mark.parametrize(
    ("code", "logged"),
    [
        ("invalid_api_key", "invalid_api_key"),
        ("a_code_of_tomorrow", "a_code_of_tomorrow"),
        ("unauthenticated:bad-credentials", "unauthenticated"),
        ("sk-1234567890abcdef", "upstream_error"),
        ("Wrong key sk-1234", "upstream_error"),
    ],
)
def test_the_log_has_the_code_of_the_client(code: str, logged: str) -> None:
    """Text that is not a name could be anything from the request; see the next test."""
    world = World()
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Error(400, code)))
    assert world.ask().error["code"] == code
    (refused,) = [log for log in world.net.logs if log.event == "turn.refused"]
    assert (refused.fields["code"], refused.fields["status"]) == (logged, 400)


def test_the_log_names_the_cell_that_decided() -> None:
    world = World(continuity=Continuity.TRANSCRIPT)
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    world.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, Abort()))
    first = first_turn(world, store=False)
    world.ask("b", previous_response_id=first, store=False)
    world.ask("c", previous_response_id=first, store=False)
    cells = [(log.event, log.fields["cell"]) for log in world.net.logs if "cell" in log.fields]
    cell = "send_skipped/held=rehydrate"
    sent, completed = ("turn.sent", cell), ("turn.completed", cell)
    assert cells == [sent, completed, sent, ("turn.refused", "lost_sent/held=refuse")]


def test_the_log_has_not_found_where_the_client_has() -> None:
    world = World()
    world.ask("b", previous_response_id="resp_elsewhere", store=False)
    (refused,) = [log for log in world.net.logs if log.event == "turn.refused"]
    assert refused.fields["code"] == NOT_FOUND


def test_records_below_the_level_are_not_made() -> None:
    """At debug, info and warning: a turn that is completed, and one that is refused."""
    records = []
    for level in (LogLevel.DEBUG, LogLevel.INFO, LogLevel.WARNING):
        world = World(log_level=level)
        world.ask("a")
        world.ask("b", previous_response_id="resp_elsewhere", store=False)
        assert all(log.level >= level for log in world.net.logs)
        records.append([log.event for log in world.net.logs if log.event.startswith("turn.")])
    assert records == [
        [
            *("turn.received", "turn.sent", "turn.completed"),
            *("turn.received", "turn.sent", "turn.refused"),
        ],
        ["turn.completed", "turn.refused"],
        ["turn.refused"],
    ]  # fmt: skip


def test_logs_tell_no_secrets() -> None:
    world = World()
    secrets = [KEY, "sk-in-words", "the-body", "tool-output", "their-id"]
    words = "sk-in-words the-body"
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Error(500, words, words, words)))
    world.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, Garbage(words.encode())))
    world.emulator.faults.add(4, Fault(Point.MID_OUTPUT, Garbage(words.encode(), raw=True)))
    reject = Reject(401, ((b"x-words", words.encode()),), words.encode())
    answers = [world.ask("the-body tool-output", metadata={"a": words}) for _ in range(4)]
    world.ask(words, previous_response_id="their-id")
    world.emulator.faults.clear()
    world.emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, reject))
    world.ask(words)
    world.net.remove_listener("up", 80)
    world.ask(words)
    ids = [json.loads(answers[0].events[-1].data)["response"]["id"]]
    logged = "\n".join(f"{log.event} {log.fields}" for log in world.net.logs)
    assert "turn.sent" in logged
    assert "turn.refused" in logged
    for secret in [*secrets, *ids]:
        assert secret not in logged
    for log in world.net.logs:
        assert all(isinstance(value, str | int) for value in log.fields.values())
