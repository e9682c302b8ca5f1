"""Tests of testing/emulator/service.py, driven in memory by a WebSocket client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from bridgecore import transport
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing import (
    Abort,
    CreateFrame,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Outcome,
    Point,
    Text,
    ToolCall,
)
from bridgecore.testing.answers import Output, count_tokens, echo
from bridgecore.testing.emulator import MAX_IN_FLIGHT, MAX_LANES
from bridgecore.transport import (
    Close,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EofReceived,
    Send,
    Stop,
    StopListening,
    TimeoutReached,
    WriteBlocked,
    WriteUnblocked,
)
from bridgecore.wire.websocket import (
    CloseReceived,
    PongReceived,
    Upgraded,
    UpgradeRejected,
)
from tests.testing.emulator_world import (
    EVENT,
    WHOLE,
    Json,
    Link,
    faulty,
    output,
    said,
    types,
    user,
    world,
)

# ------------------------------------------------------------------ the upgrade


def test_upgrade_is_accepted_and_its_headers_are_kept() -> None:
    w = world()
    link = w.connect()
    assert isinstance(link.events[0], Upgraded)
    link.create()
    assert (b"authorization", b"Bearer sk-1") in w.emulator.requests[0].headers
    assert (w.emulator.accepted, w.emulator.upgrades, w.emulator.connections) == (1, 1, 1)


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [
        ("/v1/other", "good", 404),
        ("/v1/responses/", "good", 404),
        ("/v1/responses", "bad", 401),
        ("/v1/responses", None, 401),
    ],
)
def test_upgrade_is_rejected(target: str, token: str | None, status: int) -> None:
    w = world(tokens=frozenset({"good"}))
    link = w.connect(target=target, token=token)
    (event,) = link.events
    assert isinstance(event, UpgradeRejected)
    assert event.status == status
    assert json.loads(event.body)["error"]["message"]
    assert link.ended == "close"
    assert (w.emulator.rejections, w.emulator.upgrades, w.emulator.connections) == (1, 0, 0)
    assert isinstance(w.connect(target="/v1/responses?x=1", token="good").events[0], Upgraded)


@pytest.mark.parametrize("method", [b"GET", b"PUT"])
def test_plain_http_is_426(method: bytes) -> None:
    w = world()
    link = w.accept()
    link.ws.connect()
    link.send(method + b" /v1/responses HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n")
    (event,) = link.events
    assert isinstance(event, UpgradeRejected)
    assert event.status == 426
    assert link.ended == "close"
    assert w.emulator.rejections == 1


# ------------------------------------------------------------------ a turn


def test_events_of_a_text_answer() -> None:
    w = world(seed=7)
    w.now = 5 * NS_PER_SECOND
    link = w.connect()
    frames = link.create("hello there", metadata={"k": "v"}, instructions="be brief")
    assert types(frames) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [f["sequence_number"] for f in frames] == list(range(len(frames)))
    assert link.sends == 2  # the upgrade's answer, and this whole answer
    for frame in frames:
        EVENT.validate_python(frame)
    response = Response.model_validate(frames[-1]["response"])
    assert response.output_text == "turn 1: hello there"
    assert "".join(f["delta"] for f in frames if "delta" in f) == response.output_text
    assert response.id == w.emulator.response_id(1)
    assert response.metadata == {"k": "v"}
    assert response.instructions == "be brief"
    assert frames[-1]["response"]["store"] is True
    assert response.completed_at == response.created_at
    assert frames[0]["response"]["status"] == "in_progress"
    assert frames[0]["response"]["output"] == []
    assert w.emulator.turns[0].outcome is Outcome.COMPLETED
    assert w.emulator.requests[0].context == (user("hello there"),)
    assert json.loads(w.emulator.requests[0].raw) == w.emulator.requests[0].body


def test_usage_counts_the_effective_context() -> None:
    link = world().connect()
    tools = [{"type": "function", "name": "f", "parameters": {}, "strict": False}]
    first = link.ask("hello", instructions="abc", tools=tools)
    size = len("hello")
    fixed = len("abc") + len(json.dumps(tools, separators=(",", ":")))
    assert first["usage"]["input_tokens"] == -(-(size + fixed) // 4)
    assert first["usage"]["input_tokens_details"]["cached_tokens"] == 0
    total = first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
    assert first["usage"]["total_tokens"] == total
    second = link.ask("hello", previous_response_id=first["id"])
    produced = len("turn 1: hello")
    assert first["usage"]["output_tokens"] == -(-produced // 4)
    assert second["usage"]["input_tokens"] == -(-(2 * size + produced) // 4)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == -(-(size + produced) // 4)


def test_tokens_are_of_what_a_model_reads() -> None:
    call = {
        "id": "fc_1",
        "type": "function_call",
        "status": "completed",
        "name": "look",
        "arguments": '{"n":1}',
        "call_id": "call_1",
    }
    said = {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [
            {
                "type": "output_text",
                "annotations": [{"type": "url_citation", "start_index": 12, "url": "a:b"}],
                "logprobs": [{"token": "e", "logprob": -0.5, "bytes": [101]}],
                "text": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 8,
            }
        ],
    }
    assert count_tokens([]) == 0
    assert count_tokens([user("12345")]) == 2
    assert count_tokens([{"role": "user", "content": "12345"}]) == 2
    assert count_tokens([output("call_1", "1234")]) == 1
    assert count_tokens([call]) == -(-len('look{"n":1}') // 4)
    assert count_tokens([said]) == -(-len("12a:b" + "ee" * 8) // 4)
    assert count_tokens([{"weight": 0.25, "exact": True, "none": None}]) == 2
    # As clients may send it back, without ids and status, it costs the same.
    bare = [{name: item[name] for name in item if name not in ("id", "status")} for item in (call,)]
    assert count_tokens([said, *bare, user("x")]) == count_tokens([said, call, user("x")])


def test_number_of_deltas() -> None:
    w = world(deltas=2)
    frames = w.connect().create("some longer text")
    assert types(frames).count("response.output_text.delta") == 2
    frames = w.connect().create("repeat 37 please")
    assert types(frames).count("response.output_text.delta") == 37
    assert said(frames[-1]["response"]) == "".join(f"{n} " for n in range(1, 38))
    frames = w.connect().create("repeat 0")
    assert types(frames).count("response.output_text.delta") == 0
    assert said(frames[-1]["response"]) == ""


@given(st.integers(0, 2**32), st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5))
def test_the_same_input_gives_the_same_bytes(seed: int, texts: list[str]) -> None:
    def play() -> list[bytes]:
        link = world(seed=seed).connect()
        for text in texts:
            link.create(text)
        return link.raw

    assert play() == play()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3000), max_size=8))
def test_any_split_of_the_input_gives_the_same_answer(cuts: list[int]) -> None:
    whole, split = world().connect(), world().connect()
    bodies = [b'{"type":"response.create","model":"m","input":"%d"}' % n for n in range(3)]
    for body in bodies:
        whole.text(body)
    data = b"".join(split.ws.send_text(body) for body in bodies)
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            split.send(data[start:end])
    assert split.raw == whole.raw


def test_script_of_the_embedder() -> None:
    def answer(request: CreateFrame) -> Sequence[Output]:
        reasoning = {"type": "reasoning", "summary": []}
        return [reasoning, Text("ab", ("a", "b")), ToolCall("f", '{"x":1}'), ToolCall("g")]

    w = world(answer=answer)
    frames = w.connect().create()
    for frame in frames:
        EVENT.validate_python(frame)
    response = Response.model_validate(frames[-1]["response"])
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    ids = [item.id for item in response.output]
    assert len(set(ids)) == 4
    calls = [item["call_id"] for item in frames[-1]["response"]["output"][2:]]
    assert len(set(calls)) == 2


# ------------------------------------------------------------------ tools


def test_tool_round_trip() -> None:
    link = world().connect()
    first = link.ask('please call tool get_weather {"city": "Oslo"}')
    (call,) = first["output"]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "Oslo"}
    EVENT.validate_python(link.frames[3])
    second = link.ask([output(call["call_id"], "rain")], previous_response_id=first["id"])
    assert said(second) == "turn 1: get_weather returned rain"
    third = link.ask("thanks", previous_response_id=second["id"])
    assert said(third) == "turn 2: thanks"


def test_a_full_history_is_answered_for_its_new_outputs_only() -> None:
    """Parallel calls included; a conversation continued by id and a rebuilt one get the same
    answer."""
    w = world(answer=lambda request: [ToolCall("f"), ToolCall("g")])
    link = w.connect()
    first = link.ask("both")
    calls = first["output"]
    w.emulator.answer = echo
    outputs = [output(call["call_id"], f"<{n}>") for n, call in enumerate(calls)]
    chained = link.ask(outputs, previous_response_id=first["id"])
    assert said(chained) == "turn 1: f returned <0>, g returned <1>"
    again = link.ask("call tool h", previous_response_id=chained["id"])
    (call,) = again["output"]
    last = output(call["call_id"], "<2>")
    history = [
        *(user("both"), *calls, *outputs),
        *(*chained["output"], user("call tool h"), call, last),
    ]
    assert said(link.ask([last], previous_response_id=again["id"])) == "turn 2: h returned <2>"
    assert said(link.ask(history)) == "turn 2: h returned <2>"


def test_pending_call_must_be_answered_and_output_must_have_a_call() -> None:
    link = world().connect()
    call = link.ask("call tool f")
    (item,) = call["output"]
    frame = link.refused("never mind", previous_response_id=call["id"])
    assert frame["status"] == 400
    assert frame["error"]["message"].startswith("No tool output found for function call")
    frame = link.refused([output(item["call_id"], "x")])
    assert frame["error"]["message"].startswith("No tool call found")
    frame = link.refused([output(item["call_id"], "x"), item])
    assert frame["error"]["message"].startswith("No tool call found")


def test_rebuilt_context_gets_the_answer_of_the_chain() -> None:
    link = world().connect()
    first = link.ask("call tool f {}")
    (call,) = first["output"]
    answer = output(call["call_id"], "done")
    chained = link.ask([answer], previous_response_id=first["id"])
    rebuilt = world().connect().ask([user("call tool f {}"), call, answer])
    assert said(rebuilt) == said(chained) == "turn 1: f returned done"
    assert rebuilt["usage"]["input_tokens"] == chained["usage"]["input_tokens"]


# ------------------------------------------------------------------ continuity


def test_only_the_latest_response_of_a_lane_is_cached() -> None:
    link = world().connect()
    first = link.ask("one", store=False)
    second = link.ask("two", store=False, previous_response_id=first["id"])
    assert said(second) == "turn 2: two"
    frame = link.refused("x", store=False, previous_response_id=first["id"])
    assert frame == {
        "type": "error",
        "status": 400,
        "error": {
            "type": "invalid_request_error",
            "code": "previous_response_not_found",
            "message": f"Previous response with id '{first['id']}' not found.",
            "param": "previous_response_id",
        },
    }
    third = link.ask("three", store=False, previous_response_id=second["id"])
    assert said(third) == "turn 3: three"


def test_store_decides_what_another_connection_knows() -> None:
    w = world()
    link = w.connect()
    kept = [link.ask("a"), link.ask("b", store=True), link.ask("c", store=None)]
    lost = link.ask("d", store=False)
    other = w.connect()
    for response in kept:
        assert said(other.ask("next", previous_response_id=response["id"])) == "turn 2: next"
    other.refused(previous_response_id=lost["id"])


def test_storage_is_scoped_by_credential() -> None:
    w = world()
    response = w.connect().ask("secret")
    foreign = w.connect(token="sk-2").refused(previous_response_id=response["id"])
    missing = w.connect(token="sk-2").refused(previous_response_id="resp_none")
    foreign["error"]["message"] = missing["error"]["message"] = ""
    assert foreign == missing


def test_failed_continuation_evicts_its_parent() -> None:
    w = world(faults=FaultPlan().add(2, Fault(Point.BEFORE_CREATED, Error())))
    link = w.connect()
    first = link.ask(store=False)
    assert link.refused(store=False, previous_response_id=first["id"])["status"] == 500
    frame = link.refused(store=False, previous_response_id=first["id"])
    assert frame["error"]["code"] == "previous_response_not_found"


def test_stored_parent_survives_its_eviction() -> None:
    w = world(faults=FaultPlan().add(2, Fault(Point.BEFORE_CREATED, Error())))
    link = w.connect()
    first = link.ask()
    link.refused(previous_response_id=first["id"])
    assert said(link.ask("b", previous_response_id=first["id"])) == "turn 2: b"


def test_failed_fork_keeps_the_parent() -> None:
    w = world(faults=FaultPlan().add(2, Fault(Point.AFTER_CREATED, Error())))
    link = w.connect()
    first = link.ask(store=False)
    frames = link.create(store=False, previous_response_id=first["id"], stream_id="fork")
    assert types(frames) == ["response.created", "error"]
    assert frames[1]["stream_id"] == "fork"
    assert said(link.ask("b", store=False, previous_response_id=first["id"])) == "turn 2: b"


def test_unrelated_failure_keeps_the_lane() -> None:
    w = world(faults=FaultPlan().add(2, Fault(Point.BEFORE_CREATED, Error())))
    link = w.connect()
    first = link.ask(store=False)
    link.refused()
    link.ask("b", store=False, previous_response_id=first["id"])


def test_silence_on_an_unknown_anchor() -> None:
    w = world(silent_on_unknown_anchor=True)
    link = w.connect()
    assert link.create(previous_response_id="resp_x") == []
    assert link.create() == []  # the lane is first in, first out
    link.send(link.ws.ping())
    assert link.events[-1] == PongReceived()
    assert w.emulator.turns[0].outcome is Outcome.SILENT
    assert w.emulator.next_timeout() is None


def test_warmup_can_be_continued_and_counts() -> None:
    link = world().connect()
    frames = link.create("context", generate=False, store=False)
    assert types(frames) == ["response.created", "response.completed"]
    for frame in frames:
        EVENT.validate_python(frame)
    warm = frames[-1]["response"]
    assert warm["output"] == []
    assert warm["usage"]["output_tokens"] == 0
    response = link.ask("go", store=False, previous_response_id=warm["id"])
    assert said(response) == "turn 2: go"
    assert response["usage"]["input_tokens"] > warm["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            ErrorShape.TERSE,
            {
                "type": "error",
                "status": 400,
                "error": {
                    "type": "invalid_request_error",
                    "message": "Invalid `previous_response_id`.",
                },
            },
        ),
        (
            ErrorShape.CODE_IN_TYPE,
            {
                "type": "error",
                "status": 400,
                "error": {
                    "type": "previous_response_not_found",
                    "message": "Previous response with id 'resp_x' not found.",
                    "param": "previous_response_id",
                },
            },
        ),
        (
            ErrorShape.NO_STATUS,
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "code": "previous_response_not_found",
                    "message": "Previous response with id 'resp_x' not found.",
                    "param": "previous_response_id",
                },
            },
        ),
    ],
)
def test_error_shapes(shape: ErrorShape, expected: Json) -> None:
    link = world(error_shape=shape).connect()
    assert link.refused(previous_response_id="resp_x") == expected


# ------------------------------------------------------------------ limits and malformed frames


def test_context_window() -> None:
    link = world(context_window=200).connect()
    first = link.ask("short")
    frame = link.refused("x" * 1000, previous_response_id=first["id"])
    assert (frame["status"], frame["error"]["code"]) == (400, "context_length_exceeded")


def test_lifetime_refuses_further_turns_and_then_closes() -> None:
    w = world(lifetime=60 * NS_PER_SECOND, lifetime_grace=5 * NS_PER_SECOND)
    link = w.connect()
    w.now = 60 * NS_PER_SECOND - 1
    first = link.ask()
    w.now += 1
    frame = link.refused(previous_response_id=first["id"])
    assert (frame["status"], frame["error"]["code"]) == (400, "websocket_connection_limit_reached")
    assert link.refused()["error"]["code"] == "websocket_connection_limit_reached"
    assert w.wait() == 5 * NS_PER_SECOND
    assert isinstance(link.events[-1], CloseReceived)
    assert link.events[-1].code == 1001
    assert link.ended == ""
    link.send(link.ws.data_to_send())
    assert link.ended == "close"


def test_without_a_grace_the_client_closes() -> None:
    w = world(lifetime=0)
    link = w.connect()
    link.refused()
    assert w.emulator.next_timeout() is None
    link.send(link.ws.close(1000))
    assert link.ended == "close"
    assert link.events[-1] == CloseReceived(1000, "")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"{}", "invalid_value"),
        (b'{"type":"response.cancel"}', "invalid_value"),
        (b'{"type":"response.create"}', "missing_required_parameter"),
        (b'{"type":"response.create","model":5}', "missing_required_parameter"),
        (b'{"type":"response.create","model":"m","background":true}', "unsupported_parameter"),
        (b'{"type":"response.create","model":"m","input":5}', "invalid_type"),
        (b'{"type":"response.create","model":"m","input":["x"]}', "invalid_type"),
        (b'{"type":"response.create","model":"m","input":[{"call_id":[]}]}', "invalid_type"),
        (b'{"type":"response.create","model":"m","store":"no"}', "invalid_type"),
        (b'{"type":"response.create","model":"m","previous_response_id":1}', "invalid_type"),
        (
            b'{"type":"response.create","model":"m","conversation":"c","previous_response_id":"r"}',
            "mutually_exclusive_parameters",
        ),
        (b'{"type":"response.create","model":"m","stream_id":""}', "invalid_stream_id"),
        (b'{"type":"response.create","model":"m","stream_id":"a b"}', "invalid_stream_id"),
        (b'{"type":"response.create","model":"m","stream_id":7}', "invalid_stream_id"),
    ],
)
def test_malformed_frames_get_error_frames(raw: bytes, code: str) -> None:
    link = world().connect()
    (frame,) = link.text(raw)
    assert (frame["type"], frame["status"], frame["error"]["code"]) == ("error", 400, code)
    link.ask()  # the connection is still open


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["response.create", "function_call", "function_call_output", "user", "c1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "call_id", "output", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(
            ["input", "instructions", "tools", "metadata", "store", "previous_response_id", "text"]
        ),
        VALUES,
        max_size=5,
    )
)
def test_any_body_gets_a_completed_response_or_an_error(fields: Json) -> None:
    link = world().connect()
    body = {"type": "response.create", "model": "m", **fields}
    frames = link.text(json.dumps(body).encode())
    assert frames[-1]["type"] in ("response.completed", "error")
    assert types(link.create()) == WHOLE


@pytest.mark.parametrize("depth", [100, 850, 900, 950, 1000, 5000, 100_000])
def test_nesting_is_echoed_or_refused(depth: int) -> None:
    link = world().connect()
    nested = b"[" * depth + b"]" * depth
    raw = b'{"type":"response.create","model":"m","input":"x","metadata":{"k":%b}}' % nested
    kind = last_type(link, raw)
    assert kind in (b"response.completed", b"error")
    if depth in (100, 100_000):
        assert (kind == b"error") == (depth == 100_000)


def last_type(link: Link, raw: bytes) -> bytes:
    """The type of the last frame that answers ``raw``, which may be nested too deeply for
    json.loads."""
    link.send(link.ws.send_text(raw))
    return link.raw[-1].split(b'"', 4)[3]


def test_fields_that_clients_send_anyway_are_tolerated() -> None:
    link = world().connect()
    link.ask(stream=True, client_metadata={"a": 1}, background=False, unknown=[1])
    assert said(link.ask([])) == "turn 0: "


def test_broken_websocket_is_closed_with_its_code() -> None:
    link = world().connect()
    link.send(b"\x81\x01x")  # not masked
    assert isinstance(link.events[-1], CloseReceived)
    assert link.events[-1].code == 1002
    assert link.ended == "close"


# ------------------------------------------------------------------ lanes and pacing


def test_lanes_run_beside_each_other_and_each_in_order() -> None:
    w = world(delta_interval=10)
    link = w.connect()
    link.create("a")
    link.create("b", stream_id="B")
    link.create("c")  # waits for a
    assert types(link.frames).count("response.created") == 2
    while w.emulator.next_timeout() is not None:
        w.wait()
    by_lane: dict[str | None, list[Json]] = {}
    for frame in link.frames:
        by_lane.setdefault(frame.get("stream_id"), []).append(frame)
    assert set(by_lane) == {None, "B"}
    ends = [said(f["response"]) for f in by_lane[None] if f["type"] == "response.completed"]
    assert ends == ["turn 1: a", "turn 1: c"]
    assert [f["sequence_number"] for f in by_lane["B"]] == list(range(len(by_lane["B"])))
    lanes = [f.get("stream_id") for f in link.frames if f["type"].endswith("delta")]
    assert lanes[:4] == [None, "B", None, "B"]


def test_pacing_sends_one_delta_per_interval() -> None:
    w = world(delta_interval=NS_PER_SECOND)
    link = w.connect()
    link.create("hello")
    assert types(link.frames)[-1] == "response.content_part.added"
    for n in range(1, 5):
        deadline = w.emulator.next_timeout()
        assert deadline is not None
        assert deadline.reason is Timer.KEEPALIVE
        assert w.wait() == NS_PER_SECOND
        assert types(link.frames).count("response.output_text.delta") == n
    assert types(link.frames)[-1] == "response.completed"
    assert w.emulator.next_timeout() is None


def test_late_timer_catches_up() -> None:
    w = world(delta_interval=10)
    link = w.connect()
    link.create("hello")
    w.now = 1000
    w.tell(TimeoutReached())
    assert types(link.frames)[-1] == "response.completed"


def test_spurious_timer_changes_nothing() -> None:
    w = world(delta_interval=10)
    link = w.connect()
    link.create("hello")
    before = len(link.frames)
    w.tell(TimeoutReached())
    assert len(link.frames) == before


def test_peer_that_does_not_read_is_not_written_to() -> None:
    w = world(delta_interval=10)
    link = w.connect()
    link.create("hello")
    before = len(link.frames)
    w.tell(WriteBlocked(link.conn))
    assert w.emulator.next_timeout() is None
    w.now = 1000
    w.tell(TimeoutReached())
    assert len(link.frames) == before
    w.tell(WriteUnblocked(link.conn))
    assert types(link.frames)[-1] == "response.completed"


def test_in_flight_limit_queues() -> None:
    w = world(delta_interval=10)
    link = w.connect()
    for n in range(MAX_IN_FLIGHT + 2):
        link.create(stream_id=f"lane-{n}")
    assert types(link.frames).count("response.created") == MAX_IN_FLIGHT
    while w.emulator.next_timeout() is not None:
        w.wait()
    assert types(link.frames).count("response.completed") == MAX_IN_FLIGHT + 2


def test_lane_limit_does_not_count_the_default_lane() -> None:
    link = world().connect()
    link.ask()
    for n in range(MAX_LANES):
        link.ask(stream_id=f"lane-{n}")
    frame = link.refused(stream_id="one-more")
    assert frame["error"]["code"] == "websocket_stream_limit_reached"
    link.ask(stream_id="lane-0")
    link.ask()


def test_fork_onto_another_lane_leaves_the_source_alone() -> None:
    link = world().connect()
    first = link.ask("a", store=False)
    fork = link.ask("b", store=False, previous_response_id=first["id"], stream_id="fork")
    again = link.ask("c", store=False, previous_response_id=first["id"])
    assert said(fork) == "turn 2: b"
    assert said(again) == "turn 2: c"
    deeper = link.ask("d", store=False, previous_response_id=fork["id"], stream_id="fork")
    assert said(deeper) == "turn 3: d"


# ------------------------------------------------------------------ ends


def test_drain_closes_everything_with_1001_and_stops() -> None:
    w = world(delta_interval=10)
    links = [w.connect(), w.connect()]
    raw = w.accept()
    links[0].create()
    w.tell(DrainRequested())
    for link in links:
        assert isinstance(link.events[-1], CloseReceived)
        assert link.events[-1].code == 1001
        assert link.ended == "close"
    assert raw.ended == "close"
    assert w.effects[0] == StopListening()
    assert Stop() in w.effects
    assert w.emulator.connections == 0
    assert w.emulator.turns[0].outcome is Outcome.LOST
    assert w.emulator.next_timeout() is None
    assert w.accept().ended == "close"


def test_drain_waits_for_its_last_bytes_within_a_deadline() -> None:
    w = world()
    emulator, link = w.emulator, w.connect()
    effects = emulator.handle(DrainRequested(), w.now)
    assert [type(e) for e in effects] == [StopListening, Send, Close]
    deadline = emulator.next_timeout()
    assert deadline is not None
    assert (deadline.at, deadline.reason) == (2 * NS_PER_SECOND, Timer.DRAIN)
    assert emulator.handle(DataReceived(link.conn, b"late"), 1) == []
    assert emulator.handle(Disconnected(link.conn), 2) == [Stop()]
    assert emulator.next_timeout() is None

    w = world()
    w.connect()
    w.emulator.handle(DrainRequested(), 0)
    assert w.emulator.handle(TimeoutReached(), 2 * NS_PER_SECOND) == [Stop()]
    assert w.emulator.handle(TimeoutReached(), 2 * NS_PER_SECOND + 1) == []


def test_abort_waits_for_its_last_bytes_within_a_deadline() -> None:
    for event in (None, TimeoutReached()):
        w = faulty(Point.AFTER_CREATED, Abort())
        link = w.connect()
        body = b'{"type":"response.create","model":"m"}'
        effects = w.emulator.handle(DataReceived(link.conn, link.ws.send_text(body)), 0)
        assert [type(e) for e in effects] == [Send]
        assert w.emulator.handle(DataReceived(link.conn, b"late"), 1) == []
        effects = w.emulator.handle(event or DataSent(link.conn), 2 * NS_PER_SECOND)
        assert effects == [transport.Abort(link.conn)]
        assert w.emulator.next_timeout() is None


def test_connections_that_go_are_forgotten() -> None:
    w = world(delta_interval=10)
    gone, half = w.connect(), w.connect()
    gone.create()
    w.tell(Disconnected(gone.conn))
    w.tell(EofReceived(half.conn))
    assert half.ended == "close"
    assert w.emulator.connections == 0
    assert w.emulator.turns[0].outcome is Outcome.LOST
    assert w.emulator.next_timeout() is None
    w.tell(DataReceived(gone.conn, b"late"))
    w.tell(Disconnected(gone.conn))
    w.tell(DataSent(gone.conn))
