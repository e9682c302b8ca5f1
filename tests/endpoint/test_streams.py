"""Answers of a whole endpoint as its clients see them: contract, "Streams".

What belongs here: events, JSON, keepalives; readers that are slow and clients that leave.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    Emulator,
    Error,
    Fault,
    Point,
    SendEvents,
    Silence,
    Text,
)
from bridgecore.testing.faults import Action
from tests.endpoint_world import KEY, SECOND, Json, World, read_answers, request

ODD = b'{"type":"thing.happened", "pi" : 3.140,\n  "text":"\\u00e9\xc3\xa9",\r\n"n":[1 , 2]}'
EARLY = b'{"type":"codex.rate_limits","left":1.50}'


def test_head() -> None:
    answer = World().ask("hi")
    assert answer.status == 200
    assert answer.headers == {
        "content-type": "text/event-stream",
        "transfer-encoding": "chunked",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }
    assert b"[DONE]" not in answer.body


def test_events_in_order() -> None:
    answer = World().ask("hi")
    assert answer.names[0] == "response.created"
    assert answer.names[-1] == "response.completed"
    assert len(answer.events) > 6
    for event in answer.events:
        assert event.json["type"] == event.name
    numbers = [event.json["sequence_number"] for event in answer.events]
    assert numbers == list(range(len(numbers)))
    assert answer.text == "turn 1: hi"


def test_events_pass_byte_for_byte() -> None:
    world = World()
    fault = Fault(Point.MID_OUTPUT, SendEvents((ODD, b'{"type":"response.new","x":1.0}')))
    world.emulator.faults.add(EVERY, fault)
    answer = world.ask()
    assert b'event: response.new\ndata: {"type":"response.new","x":1.0}\n\n' in answer.body
    odd = b"\ndata: ".join(ODD.replace(b"\r\n", b"\n").split(b"\n"))
    assert b"event: thing.happened\ndata: " + odd + b"\n\n" in answer.body
    (event,) = [event for event in answer.events if event.name == "thing.happened"]
    assert event.json == json.loads(ODD)


def test_events_before_created_are_delivered_after_it() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents((EARLY, ODD))))
    answer = world.ask()
    assert answer.names[:3] == ["response.created", "codex.rate_limits", "thing.happened"]
    assert answer.events[1].data == EARLY


def early(count: int, large: int) -> tuple[bytes, ...]:
    many = tuple(b'{"type":"response.many","n":%d}' % n for n in range(count))
    return (*[b'{"type":"large","x":"%b"}' % (b"x" * 60_000)] * large, *many)


def test_events_before_created_are_held_up_to_the_bound() -> None:
    world = World(max_message=100_000)
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents(early(255, 1))))
    answer = world.ask()
    assert answer.names[:3] == ["response.created", "large", "response.many"]
    assert answer.names.count("response.many") == 255
    assert answer.text == "turn 1: hi"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("count", "large"), [(257, 0), (0, 2)])
def test_too_much_before_created_fails_the_turn(count: int, large: int, stream: bool) -> None:
    """If the buffer is full the turn fails with an error: no event is dropped silently."""
    world = World(max_message=100_000)
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents(early(count, large))))
    answer = world.ask(stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "stream_incomplete")
    assert len(world.frames) == 1
    assert world.ask().text == "turn 1: hi"
    world.assert_empty()


def test_events_before_a_failure_do_not_reach_the_next_turn() -> None:
    world = World()
    refusal = b'{"type":"error","status":500,"error":{"code":"server_error","message":"no"}}'
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, SendEvents((EARLY, refusal))))
    first = world.ask(store=False).response["id"]
    assert world.ask(previous_response_id=first, store=False).status == 502
    assert world.ask().names[1] == "response.in_progress"


def test_nothing_follows_the_terminal_event() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, SendEvents((ODD, ODD))))
    client = world.start()
    assert bytes(client.received).endswith(b"\n\n\r\n0\r\n\r\n")
    assert world.read(client).names[-1] == "response.completed"
    client.take()
    client.send(request({"model": "m", "input": "again", "stream": True}))
    assert "thing.happened" not in world.read(client).names


def test_events_after_a_terminal_event_do_not_reach_the_waiting_turn() -> None:
    world = World()
    stray = b'{"type":"response.output_text.delta","delta":"stray"}'
    world.emulator.faults.add(2, Fault(Point.AFTER_TERMINAL, SendEvents((stray,))))
    world.emulator.delta_interval = SECOND
    first = world.client()
    first.send(request({"model": "m", "input": "a", "store": False}))
    world.advance(10)
    body: Json = {"store": False, "previous_response_id": world.read(first).json["id"]}
    turns = [world.start("b", **body), world.start("c", **body)]
    world.advance(10)
    # The second one waited; its anchor is no longer the latest of the connection.
    assert [world.read(turn).status for turn in turns] == [200, 502]
    assert all(b"stray" not in bytes(turn.received) for turn in turns)


def test_events_without_a_turn_are_counted() -> None:
    world = World()
    stray = b'{"type":"response.output_text.delta","delta":"stray"}'
    world.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, SendEvents((stray, stray))))
    world.start()
    world.advance(1000)  # the idle conversation is closed
    (retired,) = [log for log in world.net.logs if log.event == "session.retired"]
    assert retired.fields["unmatched"] == 2


@pytest.mark.parametrize("stream", [False, None, "absent"])
def test_no_stream_means_json(stream: object) -> None:
    world = World()
    fields = {} if stream == "absent" else {"stream": stream}
    client = world.client()
    client.send(request({"model": "m", "input": "hi", **fields}))
    answer = world.read(client)
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == "turn 1: hi"
    assert "stream" not in world.frames[0]


def test_json_is_the_terminal_events_response_byte_for_byte() -> None:
    streamed, whole = World().ask("hi"), World().ask("hi", stream=False)
    assert whole.body in streamed.events[-1].data
    assert whole.json == streamed.response


def test_json_output_is_filled_in_from_the_events() -> None:
    item = b'{"type":"response.output_item.done","item":{"type":"x","id":"msg_1","x":1.0}}'
    end = b'{"type":"response.completed","response":{"id":"%RESPONSE_ID%","output":[]}}'
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, SendEvents((item, item, end))))
    answer = world.ask(stream=False)
    raw = b'{"type":"x","id":"msg_1","x":1.0}'
    assert answer.body.endswith(b'"output":[%b,%b]}' % (raw, raw))


@pytest.mark.parametrize(
    "end",
    [
        b'{"type":"response.completed"}',
        b'{"type":"response.completed","response":"nonsense"}',
        b'{"type":"response.incomplete","response":null}',
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_end_without_a_response_is_the_upstreams_failure(end: bytes, stream: bool) -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, SendEvents((end,))))
    answer = world.ask(stream=stream)
    if stream:
        assert answer.names == ["response.created", "response.failed"]
        assert answer.response["error"]["code"] == "upstream_error"
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert world.endpoint.bridge.turns == 0


@pytest.mark.parametrize("item", [b"7", b'{"id":nonsense}', b'{"id":"msg_1"}', b"null"])
def test_a_broken_item_is_in_no_answer(item: bytes) -> None:
    """What is not JSON is ignored, and what is not an item is not in the final response either."""
    event = b'{"type":"response.output_item.done","item":' + item + b"}"
    end = b'{"type":"response.completed","response":{"id":"r","output":[],"status":"completed"}}'
    for stream in (True, False):
        world = World()
        world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, SendEvents((event, end))))
        answer = world.ask(stream=stream)
        assert (answer.status, answer.response["output"]) == (200, [])


@pytest.mark.parametrize("stream", [True, False])
def test_incomplete_is_an_answer(stream: bool) -> None:
    end = (
        b'{"type":"response.incomplete","response":{"id":"r","status":"incomplete",'
        b'"incomplete_details":{"reason":"max_output_tokens"},"output":[{"id":"m"}]}}'
    )
    world = World()
    world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, SendEvents((end,))))
    answer = world.ask(stream=stream)
    assert answer.status == 200
    assert answer.response["status"] == "incomplete"


@pytest.mark.parametrize(
    ("code", "status"),
    [("server_error", 502), ("rate_limit_exceeded", 429), ("content_filter", 502)],
)
def test_response_failed(code: str, status: int) -> None:
    end = (
        b'{"type":"response.failed","response":{"id":"r","status":"failed",'
        b'"error":{"code":"%b","message":"Sorry."},"output":[]}}' % code.encode()
    )
    for stream in (True, False):
        world = World()
        world.emulator.faults.add(1, Fault(Point.AFTER_CREATED, SendEvents((end,))))
        answer = world.ask(stream=stream)
        if stream:
            assert answer.status == 200
            assert answer.events[-1].data == end
        else:
            assert answer.status == status
            assert (answer.error["code"], answer.error["message"]) == (code, "Sorry.")
            assert int(answer.headers["retry-after"]) >= 1
        world.assert_idle()


NO_CODE = {
    "absent": b"",
    "null": b',"error":null',
    "text": b',"error":"Sorry."',
    "empty": b',"error":{"code":"","message":"Sorry."}',
    "number": b',"error":{"code":5,"message":"Sorry."}',
    "status": b',"error":{"code":403,"message":"Sorry."}',
    "type": b',"error":{"type":"rate_limit_error","message":"Sorry."}',
    "details": b',"status_details":{"error":{"code":"server_error","message":"Sorry."}}',
}


@pytest.mark.parametrize("kind", ["failed", "done"])
@pytest.mark.parametrize("name", NO_CODE)
def test_response_failed_without_a_code_gets_that_of_the_json_answer(name: str, kind: str) -> None:
    end = b'{"type":"response.%b","response":{"id":"r","status":"failed","x":1.0%b,"output":[]}}'
    codes = []
    for stream in (True, False):
        world = World()
        fault = Fault(Point.AFTER_CREATED, SendEvents((end % (kind.encode(), NO_CODE[name]),)))
        world.emulator.faults.add(1, fault)
        answer = world.ask(stream=stream)
        if stream:
            assert answer.names[-1] == "response.failed"
            assert b'"x":1.0' in answer.events[-1].data
            shown = answer.events[-1].json["response"]["error"]
            assert isinstance(shown["message"], str)
            codes.append(shown["code"])
        else:
            assert answer.status == {"status": 403, "type": 429}.get(name, 502)
            codes.append(answer.error["code"])
        world.assert_idle()
    assert isinstance(codes[0], str)
    assert codes[0]
    assert codes[0] == codes[1]


def test_response_failed_before_created_is_a_status() -> None:
    end = b'{"type":"response.failed","response":{"id":"r","error":{"code":"server_error"}}}'
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, SendEvents((end,))))
    answer = world.ask()
    assert (answer.status, answer.error["code"]) == (502, "server_error")


# ------------------------------------------------------------------ held head, keepalives


def test_the_head_is_held_until_created() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, Silence()))
    client = world.start()
    world.advance(14.9)
    assert not client.received
    world.advance(0.1)
    assert world.read(client).everything == world.read(client).everything[:1]
    assert world.read(client).body == b": keepalive\n\n"


def test_comments_before_created_and_a_failure_after_the_head() -> None:
    world = World()
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, Silence()))
    client = world.start()
    world.advance(59)
    answer = world.read(client)
    assert answer.body == b": keepalive\n\n" * 3  # at 15, 30 and 45 s
    world.advance(1)  # the deadline for response.created
    answer = world.read(client)
    assert answer.complete
    # SDKs require response.created to be the first event: the bridge makes it.
    assert answer.names == ["response.created", "response.failed"]
    created, failed = (event.json for event in answer.events)
    assert created["response"]["status"] == "in_progress"
    assert created["response"]["id"] == failed["response"]["id"]
    assert created["response"]["model"] == failed["response"]["model"] == "m"
    assert created["sequence_number"] < failed["sequence_number"]
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "upstream_request_timeout"
    assert failed["response"]["id"]
    assert isinstance(failed["sequence_number"], int)


def test_a_failure_before_the_head_is_a_status() -> None:
    world = World(created_timeout=10 * SECOND)
    world.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, Silence()))
    client = world.start()
    world.advance(10)
    answer = world.read(client)
    assert (answer.status, answer.error["code"]) == (502, "upstream_request_timeout")
    assert int(answer.headers["retry-after"]) >= 1


def test_typed_keepalives_after_created() -> None:
    world = World(idle_timeout=100 * SECOND)
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, SendEvents((ODD,))))
    world.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    client = world.start()
    before = len(world.read(client).events)
    world.advance(50)
    answer = world.read(client)
    assert not answer.complete
    assert [event.name for event in answer.everything[before:]] == ["keepalive"] * 3
    numbers = [e.json["sequence_number"] for e in answer.events if "sequence_number" in e.json]
    assert all(a <= b for a, b in pairwise(numbers))
    for event in answer.events[before:]:
        assert event.json["type"] == "keepalive"
        assert type(event.json["sequence_number"]) is int
    world.advance(50)  # keepalives extend no deadline
    answer = world.read(client)
    assert answer.complete
    assert answer.names[-1] == "response.failed"
    assert answer.response["id"] == world.emulator.response_id(1)
    assert answer.response["error"]["code"] == "stream_incomplete"
    numbers = [e.json["sequence_number"] for e in answer.events if "sequence_number" in e.json]
    assert numbers[-1] > numbers[-2]


def test_no_keepalive_while_events_come() -> None:
    world = World(keepalive=2 * SECOND)
    world.emulator.delta_interval = SECOND
    client = world.start("repeat 10")
    world.advance(20)
    assert "keepalive" not in world.read(client).names
    assert world.read(client).text.startswith("1 2 3")


# ------------------------------------------------------------------ failures after the head


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("point", [Point.AFTER_CREATED, Point.MID_OUTPUT, Point.BEFORE_TERMINAL])
@pytest.mark.parametrize("action", [CloseWith(1011), CloseWith(1006), Abort(), Error()], ids=repr)
def test_lost_after_created(stream: bool, point: Point, action: Action) -> None:
    world = World()
    world.emulator.faults.add(1, Fault(point, action))
    for _ in range(2):  # two failing turns in a row leave nothing pending
        world.emulator.faults.add(len(world.emulator.requests) + 1, Fault(point, action))
        answer = world.ask("hi", stream=stream)
        code = "server_error" if isinstance(action, Error) else "stream_incomplete"
        if stream:
            assert answer.status == 200
            assert answer.names[0] == "response.created"
            assert answer.names.count("response.failed") == 1
            assert answer.names[-1] == "response.failed"
            assert answer.response["error"]["code"] == code
            assert answer.response["id"] == answer.events[0].json["response"]["id"]
        else:
            assert (answer.status, answer.error["code"]) == (502, code)
            assert int(answer.headers["retry-after"]) >= 1
        assert world.endpoint.bridge.turns == 0
    world.assert_empty()


# ------------------------------------------------------------------ slow readers


def endless() -> World:
    """A world whose answers are larger than any window, one delta a second."""
    deltas = tuple("x" * 20_000 for _ in range(40))
    emulator = Emulator(answer=lambda _: [Text("".join(deltas), deltas)], delta_interval=SECOND)
    return World(emulator=emulator, idle_timeout=30 * SECOND, keepalive=5 * SECOND)


def test_a_slow_reader_pauses_upstream_and_does_not_time_out() -> None:
    world = endless()
    client = world.start()
    client.pause()
    world.advance(600)
    assert world.emulator.turns[0].unsent > 10  # the upstream was not read
    assert len(client.received) < 10_000
    client.resume()
    world.advance(60)
    answer = world.read(client)
    assert answer.text == "x" * 800_000
    numbers = [event.json["sequence_number"] for event in answer.events]
    assert numbers == sorted(numbers)
    world.assert_empty()


def test_a_slow_reader_does_not_stall_another_turn() -> None:
    world = endless()
    slow = world.start()
    slow.pause()
    world.advance(20)
    other = world.start()
    world.advance(60)
    assert world.read(other).complete
    assert len(slow.received) < 10_000
    slow.abort()
    world.assert_empty()


def test_a_waiting_turn_that_leaves_does_not_let_a_slow_readers_upstream_run() -> None:
    world = endless()
    client = world.client()
    client.send(request({"model": "m", "input": "a", "store": False}))
    world.advance(60)
    first = world.read(client).json["id"]
    fields = {"previous_response_id": first, "store": False}
    slow = world.start("b", **fields)
    slow.pause()
    world.advance(20)
    held = world.emulator.turns[1].unsent
    world.start("c", **fields).abort()
    world.advance(20)
    assert world.emulator.turns[1].unsent == held
    slow.resume()
    world.advance(60)
    assert world.read(slow).complete


def test_a_client_blocked_by_its_last_answer_does_not_pause_the_next_turn_early() -> None:
    world = World(created_timeout=5 * SECOND)
    large = tuple("x" * 20_000 for _ in range(10))
    world.emulator.answer = lambda _: [Text("".join(large), large)]
    client = world.client()
    client.pause()
    body = {"model": "m", "input": "hi", "stream": True}
    client.send(request(body) + request(body))
    world.advance(60)
    client.resume()
    first, second = read_answers(client.take())
    assert first.text == second.text == "x" * 200_000
    client.half_close()
    world.assert_empty()


def test_a_client_blocked_by_its_last_answer_pauses_the_next_one_too() -> None:
    world = World()
    slow = tuple("x" * 20_000 for _ in range(40))
    world.emulator.answer = lambda request: [
        Text("x" * 200_000, ("x" * 200_000,))
        if request.body["input"] == "big"
        else Text("".join(slow), slow)
    ]
    world.emulator.delta_interval = SECOND
    client = world.client()
    client.pause()
    for text in ("big", "slow"):
        client.send(request({"model": "m", "input": text, "stream": True}))
    world.advance(600)
    assert len(world.emulator.turns) == 2
    assert world.emulator.turns[1].unsent > 10  # the upstream was not read
    client.resume()
    world.advance(60)
    assert [len(answer.text) for answer in read_answers(client.take())] == [200_000, 800_000]


def test_a_slow_reader_gets_its_answer_though_the_connection_closes() -> None:
    world = World()
    world.emulator.answer = lambda _: [Text("x" * 1_000_000)]
    client = world.client()
    client.pause()
    client.send(request({"model": "m", "input": "hi"}, headers="connection: close\r\n"))
    world.advance(60)
    client.resume()
    assert len(world.read(client).text) == 1_000_000
    assert client.closed
    world.assert_empty()


def test_a_client_that_never_takes_its_last_answer_is_dropped() -> None:
    world = World()
    world.emulator.answer = lambda _: [Text("x" * 1_000_000)]
    client = world.client()
    client.pause()
    client.send(request({"model": "m", "input": "hi"}, headers="connection: close\r\n"))
    world.assert_empty()


# ------------------------------------------------------------------ clients that leave


@pytest.mark.parametrize("how", ["half_close", "abort"])
@pytest.mark.parametrize("point", [*Point, None])
def test_a_client_that_leaves(how: str, point: Point | None) -> None:
    """At every point of a turn: the connection is closed or not opened, nothing is left."""
    world = World()
    other = world.start("other")
    if point is not None and point is not Point.AFTER_TERMINAL:
        world.emulator.faults.add(2, Fault(point, Silence()))
    client = world.start("x" * 70_000)
    getattr(client, how)()
    assert client.closed or how == "abort"
    assert world.endpoint.bridge.turns == 0
    assert world.read(other).complete
    world.assert_empty()


def test_a_client_that_leaves_while_connecting() -> None:
    world = World()
    world.net.swallow_connects("up", 80)
    client = world.start()
    assert world.endpoint.upstreams == 1
    client.abort()
    assert world.endpoint.upstreams == 0
    world.assert_empty()


def test_a_waiting_turn_that_leaves_does_not_affect_the_running_one() -> None:
    world = World()
    first = world.ask(store=False).response["id"]
    world.emulator.delta_interval = SECOND
    running = world.start("b", previous_response_id=first, store=False)
    waiting = world.start("c", previous_response_id=first, store=False)
    assert world.endpoint.bridge.turns == 2
    waiting.half_close()
    assert world.endpoint.bridge.turns == 1
    world.advance(10)
    assert world.read(running).text == "turn 2: b"
    assert len(world.frames) == 2
    assert KEY not in repr(world.net.logs)
