"""Tests of bridgecore.testing: the emulator, driven in memory by a WebSocketClient."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing import (
    CATALOGUE,
    EVERY,
    Abort,
    CloseWith,
    CreateRequest,
    Emulator,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Outcome,
    Point,
    Reject,
    SendEvents,
    Silence,
    Text,
    ToolCall,
    When,
)
from bridgecore.testing.answers import Output, Reasoning, count_tokens, echo
from bridgecore.testing.emulator import MAX_IN_FLIGHT, MAX_LANES
from bridgecore.testing.faults import Action
from bridgecore.wire import transport
from bridgecore.wire.transport import (
    Accepted,
    Close,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EofReceived,
    PauseReading,
    ResumeReading,
    Send,
    Stop,
    StopListening,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
    WriteBlocked,
    WriteUnblocked,
)
from bridgecore.wire.websocket import (
    CloseReceived,
    Failed,
    MessageReceived,
    PongReceived,
    Upgraded,
    UpgradeRejected,
    WebSocketClient,
    WebSocketEvent,
)

Json = dict[str, Any]
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


@attrs.define(eq=False)
class Link:
    """One client's connection to the emulator, and all that came back on it."""

    world: World
    conn: int
    ws: WebSocketClient
    events: list[WebSocketEvent] = attrs.Factory(list)  # all but messages
    frames: list[Json] = attrs.Factory(list)
    raw: list[bytes] = attrs.Factory(list)
    sends: int = 0
    ended: str = ""  # "close", "abort"
    paused: bool = False

    def send(self, data: bytes) -> None:
        self.world.tell(DataReceived(self.conn, data))

    def text(self, data: bytes) -> list[Json]:
        """Send one frame; the frames that came back at once."""
        before = len(self.frames)
        self.send(self.ws.send_text(data))
        return self.frames[before:]

    def create(self, text: str | list[Json] = "hi", **fields: object) -> list[Json]:
        body = {"type": "response.create", "model": "m", "input": text, **fields}
        return self.text(json.dumps(body).encode())

    def ask(self, text: str | list[Json] = "hi", **fields: object) -> Json:
        """Create a response that must complete; the response object."""
        frames = self.create(text, **fields)
        assert [f["type"] for f in frames[-1:]] == ["response.completed"], frames
        response: Json = frames[-1]["response"]
        return response

    def refused(self, text: str | list[Json] = "hi", **fields: object) -> Json:
        """Create a response that must be answered by one error frame; the frame."""
        (frame,) = self.create(text, **fields)
        assert frame["type"] == "error"
        return frame

    def take(self, data: bytes) -> None:
        self.sends += 1
        for event in self.ws.receive(data):
            if isinstance(event, MessageReceived):
                self.raw.append(event.data)
                try:
                    self.frames.append(json.loads(event.data))
                except (ValueError, RecursionError):
                    self.frames.append({"type": "not json"})
            else:
                self.events.append(event)


@attrs.define(eq=False)
class World:
    """An emulator, its links, and a clock that only the tests move."""

    emulator: Emulator = attrs.Factory(Emulator)
    now: int = 0
    links: dict[int, Link] = attrs.Factory(dict)
    effects: list[TransportEffect] = attrs.Factory(list)  # all but Send

    def tell(self, event: TransportEvent) -> None:
        told: list[TransportEvent] = [event]
        while told:
            effects = self.emulator.handle(told.pop(0), self.now)
            deadline = self.emulator.next_timeout()
            assert deadline is None or deadline.at > self.now
            sends = [e.conn for e in effects if isinstance(e, Send)]
            assert len(sends) == len(set(sends)), "one Send per connection"
            for effect in effects:
                match effect:
                    case Send(conn, data, notify):
                        assert data
                        self.links[conn].take(data)
                        if notify:
                            told.append(DataSent(conn))
                        continue
                    case Close(conn):
                        self.links[conn].ended = "close"
                        told.append(Disconnected(conn))
                    case transport.Abort(conn):
                        self.links[conn].ended = "abort"
                    case PauseReading(conn):
                        self.links[conn].paused = True
                    case ResumeReading(conn):
                        self.links[conn].paused = False
                    case _:
                        pass
                self.effects.append(effect)

    def accept(self, *, target: str = "/v1/responses", token: str | None = "sk-1") -> Link:
        """TCP only; the caller sends ``ws.connect()``."""
        headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        ws = WebSocketClient(
            authority="127.0.0.1:1", target=target, headers=headers, max_message=1 << 26
        )
        conn = self.emulator.new_connection()
        link = self.links[conn] = Link(self, conn, ws)
        self.tell(Accepted(conn))
        return link

    def connect(self, *, target: str = "/v1/responses", token: str | None = "sk-1") -> Link:
        link = self.accept(target=target, token=token)
        link.send(link.ws.connect())
        return link

    def wait(self) -> int:
        """Let the next deadline come; how far the clock moved."""
        deadline = self.emulator.next_timeout()
        assert deadline is not None
        moved, self.now = deadline.at - self.now, deadline.at
        self.tell(TimeoutReached())
        return moved


def world(**settings: Any) -> World:
    return World(Emulator(**settings))


def types(frames: Sequence[Json]) -> list[str]:
    return [frame["type"] for frame in frames]


def said(response: Json) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def output(call_id: str, text: str) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


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


@pytest.mark.parametrize("method", [b"GET", b"POST"])
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
    # As it may come back, with what is bookkeeping left out, it costs the same.
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


@settings(max_examples=30, deadline=None)
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
    def answer(request: CreateRequest) -> Sequence[Output]:
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
    """Parallel calls among them; a chain and its rebuilt context get the same answer."""
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
    link.ask()  # the connection lives


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


@settings(max_examples=200, deadline=None)
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
    """The type of the last frame that answers ``raw``, which may be too deep for json.loads."""
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


def test_pacing_says_one_delta_per_interval() -> None:
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


# ------------------------------------------------------------------ faults


def faulty(point: Point, action: Action, nth: int = 1, deltas: int = 1, **settings: Any) -> World:
    return world(faults=FaultPlan().add(nth, Fault(point, action, deltas)), **settings)


CREATED = ["response.created"]
TO_FIRST_DELTA = [
    *CREATED,
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
]
TO_LAST = [
    *TO_FIRST_DELTA,
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
WHOLE = [*TO_LAST, "response.completed"]
POINTS = [
    (Point.BEFORE_CREATED, []),
    (Point.AFTER_CREATED, CREATED),
    (Point.MID_OUTPUT, TO_FIRST_DELTA),
    (Point.BEFORE_TERMINAL, TO_LAST),
    (Point.AFTER_TERMINAL, WHOLE),
]


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_close_at_every_point(point: Point, expected: list[str]) -> None:
    w = faulty(point, CloseWith(1011, "oops"))
    link = w.connect()
    assert types(link.create()) == expected
    assert link.events[-1] == CloseReceived(1011, "oops")
    assert link.ended == ""
    link.send(link.ws.data_to_send())
    assert link.ended == "close"
    done = point is Point.AFTER_TERMINAL
    assert w.emulator.turns[0].outcome is (Outcome.COMPLETED if done else Outcome.LOST)


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_abort_at_every_point_comes_after_what_was_said(point: Point, expected: list[str]) -> None:
    w = faulty(point, Abort())
    link = w.connect()
    assert types(link.create()) == expected
    assert link.ended == "abort"
    assert w.emulator.connections == 0


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_silence_at_every_point_leaves_pongs(point: Point, expected: list[str]) -> None:
    w = faulty(point, Silence())
    link = w.connect()
    assert types(link.create()) == expected
    assert link.create() == []
    assert types(link.create(stream_id="other")) == WHOLE
    link.send(link.ws.ping())
    assert link.events[-1] == PongReceived()
    assert w.emulator.next_timeout() is None


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_freeze_at_every_point_is_dead_air(point: Point, expected: list[str]) -> None:
    w = faulty(point, Freeze())
    link = w.connect()
    assert types(link.create()) == expected
    sends = link.sends
    link.send(link.ws.ping())
    link.create()
    assert link.sends == sends
    assert w.emulator.connections == 1
    w.tell(EofReceived(link.conn))
    assert link.ended == "close"


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_error_at_every_point(point: Point, expected: list[str]) -> None:
    error = Error(429, "rate_limit_exceeded", "requests", "Slow down.", None, ErrorShape.NO_STATUS)
    w = faulty(point, error)
    link = w.connect()
    frames = link.create()
    assert types(frames) == [*expected, "error"]
    assert frames[-1]["error"]["code"] == "rate_limit_exceeded"
    assert "status" not in frames[-1]
    link.ask()


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_garbage_as_text_does_not_end_the_turn(point: Point, expected: list[str]) -> None:
    link = faulty(point, Garbage(b"\x00 not json")).connect()
    assert types(link.create()) == [*expected, "not json", *WHOLE[len(expected) :]]


def test_raw_garbage_breaks_the_connection() -> None:
    link = faulty(Point.AFTER_CREATED, Garbage(b"\xff\xff\xff", raw=True)).connect()
    assert types(link.create()) == CREATED
    assert isinstance(link.events[-1], Failed)
    assert link.create() == []


def test_scripted_events_go_out_as_they_are() -> None:
    unknown = b'{"type":"response.custom.thing", "sequence_number":%SEQUENCE%,"x": 1}'
    link = faulty(Point.MID_OUTPUT, SendEvents((unknown,)), deltas=2).connect()
    frames = link.create()
    assert types(frames) == [*TO_FIRST_DELTA, WHOLE[4], "response.custom.thing", *WHOLE[6:]]
    assert [f["sequence_number"] for f in frames] == list(range(len(frames)))
    assert unknown.replace(b"%SEQUENCE%", b"6") in link.raw


@pytest.mark.parametrize("kind", ["response.failed", "response.incomplete", "error"])
def test_scripted_terminal_ends_the_turn(kind: str) -> None:
    event = b'{"type":"%s","response":{"id":"%%RESPONSE_ID%%"}}' % kind.encode()
    w = faulty(Point.BEFORE_TERMINAL, SendEvents((event,)), nth=2)
    link = w.connect()
    first = link.ask(store=False)
    frames = link.create(store=False, previous_response_id=first["id"])
    assert types(frames) == [*TO_LAST, kind]
    assert frames[-1]["response"]["id"] == w.emulator.response_id(2)
    assert w.emulator.turns[1].outcome is Outcome.FAILED
    if kind == "response.incomplete":
        link.ask(store=False, previous_response_id=first["id"])
    else:
        link.refused(store=False, previous_response_id=first["id"])


@pytest.mark.parametrize(("deltas", "seen"), [(0, 0), (1, 1), (3, 3), (4, 4), (99, 4)])
def test_mid_output_counts_deltas(deltas: int, seen: int) -> None:
    link = faulty(Point.MID_OUTPUT, Silence(), deltas=deltas).connect()
    assert types(link.create()).count("response.output_text.delta") == seen


def test_mid_output_of_a_warmup_and_of_a_call() -> None:
    link = faulty(Point.MID_OUTPUT, Silence()).connect()
    assert types(link.create(generate=False)) == CREATED
    link = faulty(Point.MID_OUTPUT, Silence()).connect()
    frames = link.create('call tool f {"some": "arguments"}')
    assert types(frames)[-1] == "response.function_call_arguments.delta"


def test_faults_of_one_point_strike_in_order() -> None:
    plan = FaultPlan().add(
        1,
        Fault(Point.MID_OUTPUT, SendEvents((b'{"type":"x.1"}',))),
        Fault(Point.MID_OUTPUT, SendEvents((b'{"type":"x.2"}',))),
        Fault(Point.BEFORE_CREATED, SendEvents((b'{"type":"x.0"}',))),
    )
    link = world(faults=plan).connect()
    assert types(link.create()) == ["x.0", *TO_FIRST_DELTA, "x.1", "x.2", *WHOLE[5:]]


def test_close_codes_without_a_code_and_without_a_frame() -> None:
    link = faulty(Point.AFTER_CREATED, CloseWith(1005)).connect()
    link.create()
    assert link.events[-1] == CloseReceived(1005, "")
    link = faulty(Point.AFTER_CREATED, CloseWith(1006)).connect()
    assert types(link.create()) == CREATED
    assert not any(isinstance(e, CloseReceived) for e in link.events)
    assert link.ended == "close"


def test_close_does_not_wait_for_its_answer_for_ever() -> None:
    w = faulty(Point.AFTER_CREATED, CloseWith())
    link = w.connect()
    link.create()
    deadline = w.emulator.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.CLOSE_HANDSHAKE
    assert w.wait() == 2 * NS_PER_SECOND
    assert link.ended == "close"


def begin_large_frame(link: Link) -> None:
    body = {"type": "response.create", "model": "m", "input": "x" * 100_000}
    link.send(link.ws.send_text(json.dumps(body).encode())[:60_000])


CHECKS: list[tuple[Action, Callable[[Link], bool]]] = [
    (CloseWith(1012), lambda link: link.events[-1] == CloseReceived(1012, "")),
    (Abort(), lambda link: link.ended == "abort"),
    (Silence(), lambda link: link.sends == 1),
    (Freeze(), lambda link: link.sends == 1),
    (Error(503), lambda link: link.frames[-1]["status"] == 503),
    (Garbage(b"?"), lambda link: link.raw == [b"?"]),
    (SendEvents((b'{"type":"x"}',)), lambda link: link.raw == [b'{"type":"x"}']),
]


@pytest.mark.parametrize(("action", "check"), CHECKS)
def test_fault_while_receiving_stops_reading(action: Action, check: Callable[[Link], bool]) -> None:
    w = faulty(Point.WHILE_RECEIVING, action)
    link = w.connect()
    begin_large_frame(link)
    assert check(link)
    if link.ended != "abort":
        assert link.paused
        sends = link.sends
        link.send(b"more of the frame")
        assert link.sends == sends
    assert w.emulator.requests == []
    assert said(w.connect().ask("next")) == "turn 1: next"  # number 2 meets nothing
    assert w.emulator.requests[0].number == 2


def test_small_frames_are_never_met_while_receiving() -> None:
    link = faulty(Point.WHILE_RECEIVING, Abort()).connect()
    link.ask()


CONNECT_CHECKS: list[tuple[Action, Callable[[Link], bool]]] = [
    (CloseWith(), lambda link: link.ended == "close" and link.sends == 0),
    (Abort(), lambda link: link.ended == "abort"),
    (Silence(), lambda link: not link.ended and link.sends == 0),
    (Freeze(), lambda link: not link.ended and link.sends == 0),
    (Garbage(b"SSH-2.0\r\n"), lambda link: isinstance(link.events[-1], Failed)),
]


@pytest.mark.parametrize("point", [Point.ON_CONNECT, Point.ON_UPGRADE])
@pytest.mark.parametrize(("action", "check"), CONNECT_CHECKS)
def test_faults_before_the_upgrade(
    point: Point, action: Action, check: Callable[[Link], bool]
) -> None:
    w = faulty(point, action, nth=2)
    assert isinstance(w.connect().events[0], Upgraded)
    link = w.accept()
    request = link.ws.connect()
    if point is Point.ON_UPGRADE:
        assert link.sends == 0
        assert not link.ended
    link.send(request)
    assert check(link)
    assert isinstance(w.connect().events[0], Upgraded)


def test_upgrade_is_rejected_as_planned() -> None:
    action = Reject(429, ((b"retry-after", b"7"),), b"later")
    w = faulty(Point.ON_UPGRADE, action, nth=EVERY)
    for _ in range(2):
        link = w.connect()
        (event,) = link.events
        assert isinstance(event, UpgradeRejected)
        assert (event.status, event.body) == (429, b"later")
        assert (b"retry-after", b"7") in event.headers
        assert link.ended == "close"
    w.emulator.faults.clear()
    assert isinstance(w.connect().events[0], Upgraded)
    assert w.emulator.rejections == 2


def test_faults_can_be_added_while_running() -> None:
    w = world()
    link = w.connect()
    link.ask()
    w.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, CloseWith(1013)))
    assert link.create() == []
    assert link.events[-1] == CloseReceived(1013, "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault(Point.ON_CONNECT, Reject(500)),
        lambda: Fault(Point.AFTER_CREATED, Reject(500)),
        lambda: Fault(Point.ON_UPGRADE, Error()),
        lambda: Fault(Point.ON_CONNECT, SendEvents(())),
        lambda: Fault(Point.MID_OUTPUT, Abort(), deltas=-1),
        lambda: FaultPlan().add(-1),
        lambda: CloseWith(1004),
        lambda: CloseWith(1015),
        lambda: CloseWith(2000),
        lambda: CloseWith(5000),
        lambda: Garbage(b"\xff"),
        lambda: SendEvents((b"\xff",)),
    ],
)
def test_plans_without_meaning_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        make()


# ------------------------------------------------------------------ what the real service does

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
    },
}


def test_tools_are_called_by_themselves() -> None:
    link = world().connect()
    frames = link.create("the weather in Oslo?", tools=[WEATHER], store=False)
    for frame in frames:
        EVENT.validate_python(frame)
    response = frames[-1]["response"]
    assert response["tools"] == [{**WEATHER, "description": None, "strict": True}]
    (call,) = response["output"]
    assert (call["name"], json.loads(call["arguments"])) == (
        "get_weather",
        {"place": "the weather in Oslo?"},
    )
    result = link.ask([output(call["call_id"], "rain")], previous_response_id=response["id"])
    assert said(result) == "turn 1: get_weather returned rain"


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_item_references(store: bool, other: bool) -> None:
    """They are found on their socket, and elsewhere if they are stored."""
    w = world()
    link = w.connect()
    first = link.ask("a", store=store)
    (item,) = first["output"]
    reference = {"type": "item_reference", "id": item["id"]}
    asker = w.connect() if other else link
    if store or not other:
        answer = asker.ask([user("a"), reference, user("b")])
        assert said(answer) == "turn 2: b"
        assert w.emulator.requests[-1].context == (user("a"), item, user("b"))
    else:
        frame = asker.refused([user("a"), reference, user("b")])
        assert (frame["status"], frame["error"]["param"]) == (404, "input")
        assert item["id"] in frame["error"]["message"]


def test_references_are_scoped_by_credential() -> None:
    w = world()
    (item,) = w.connect().ask("a")["output"]
    for reference in ({"id": item["id"]}, {"type": "item_reference", "id": item["id"]}):
        assert w.connect(token="sk-2").refused([reference])["status"] == 404
        assert w.connect().ask([reference, user("b")])["status"] == "completed"


@pytest.mark.parametrize("limit", [16, 17, 25])
def test_max_output_tokens_cuts_the_answer(limit: int) -> None:
    w = world()
    link = w.connect()
    frames = link.create("x" * 500, max_output_tokens=limit, store=False)
    for frame in frames:
        EVENT.validate_python(frame)
    assert frames[-1]["type"] == "response.incomplete"
    response = frames[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (response["status"], response["completed_at"]) == ("incomplete", None)
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == limit
    assert "".join(f["delta"] for f in frames if "delta" in f) == said(response)
    assert w.emulator.turns[0].outcome is Outcome.INCOMPLETE
    assert said(link.ask("b", store=False, previous_response_id=response["id"])) == "turn 2: b"
    assert w.emulator.requests[1].context[1] == response["output"][0]


def test_calls_that_do_not_fit_are_left_out() -> None:
    call = ToolCall("f", json.dumps({"x": "y" * 500}))
    w = world(answer=lambda _: [Text("ok"), call])
    response = w.connect().create(max_output_tokens=16)[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["message"]
    assert response["status"] == "incomplete"
    w.emulator.answer = lambda _: [ToolCall("f")]
    assert w.connect().create(max_output_tokens=16)[-1]["type"] == "response.completed"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.integers(16, 60))
def test_no_answer_costs_more_than_it_may(text: str, limit: int) -> None:
    link = world().connect()
    response = link.create(text, max_output_tokens=limit)[-1]["response"]
    assert response["usage"]["output_tokens"] <= limit
    whole = f"turn 1: {text}"
    assert whole.startswith(said(response))
    assert (response["status"] == "completed") is (said(response) == whole)


def test_reasoning_comes_before_the_answer() -> None:
    link = world().connect()
    frames = link.create("a", reasoning={"effort": "low", "summary": "auto"}, store=False)
    for frame in frames:
        EVENT.validate_python(frame)
    reasoning, message = frames[-1]["response"]["output"]
    assert reasoning["type"] == "reasoning"
    assert reasoning["summary"] == [{"type": "summary_text", "text": "thoughts of turn 1"}]
    assert reasoning["encrypted_content"]
    assert message["type"] == "message"
    usage = frames[-1]["response"]["usage"]
    spent = usage["output_tokens_details"]["reasoning_tokens"]
    assert 0 < spent < usage["output_tokens"]
    assert "response.reasoning_summary_text.delta" in types(frames)
    stored = link.ask("a", reasoning={"effort": "low"})
    assert stored["output"][0].keys() == {"id", "type", "summary"}


@pytest.mark.parametrize(
    ("before", "model", "reason"),
    [
        ([user("a")], "m", None),
        ([{"role": "user", "content": "a"}], "m", None),
        ([user("other")], "m", "prefix_mismatch"),
        ([], "m", "prefix_mismatch"),
        ([user("a")], "n", "model_mismatch"),
    ],
)
def test_reasoning_is_bound_to_its_prefix(
    before: list[Json], model: str, reason: str | None
) -> None:
    w = world()
    made = w.connect().ask("a", include=["reasoning.encrypted_content"], store=False)
    reasoning, message = made["output"]
    shown = [*before, reasoning, message, user("b")]
    response = w.connect().ask(shown, model=model, store=False)
    dropped = [entry["reason"] for entry in response["input_transformations"]]
    assert dropped == ([] if reason is None else [reason])
    assert (reasoning in w.emulator.requests[-1].context) is (reason is None)
    assert "input_transformations" not in w.connect().ask("no reasoning")


@pytest.mark.parametrize(
    ("change", "dropped"),
    [
        ({"internal_chat_message_metadata_passthrough": {"turn_id": "t"}}, []),  # Codex
        ({"namespace": None}, []),
        ({"id": "fc_other"}, []),
        ({"namespace": "n"}, ["prefix_mismatch"]),
        ({"arguments": '{"other":1}'}, ["prefix_mismatch"]),
    ],
)
def test_bookkeeping_of_an_item_is_no_part_of_the_prefix(change: Json, dropped: list[str]) -> None:
    w = world(answer=a_call_and_then_a_thought)
    link = w.connect()
    include = {"include": ["reasoning.encrypted_content"], "store": False}
    called = link.ask("a", **include)
    (call,) = called["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "1"}
    answered = link.ask([output], previous_response_id=called["id"], **include)
    shown = [user("a"), {**call, **change}, output, *answered["output"], user("b")]
    response = w.connect().ask(shown, **include)
    assert [entry["reason"] for entry in response["input_transformations"]] == dropped


def a_call_and_then_a_thought(request: CreateRequest) -> list[Output]:
    """A call, or, once the context has its output, an answer."""
    if any(item.get("type") == "function_call_output" for item in request.context):
        return [Reasoning("hm"), Text("done")]
    return [ToolCall("f")]


def test_reasoning_without_its_content_is_a_reference() -> None:
    w = world()
    link = w.connect()
    stored = link.ask("a", reasoning={"effort": "low"})["output"]
    assert w.connect().ask([user("a"), *stored, user("b")])["status"] == "completed"
    unknown = {"type": "reasoning", "id": "rs_none", "summary": []}
    assert w.connect().refused([user("a"), unknown, user("b")])["status"] == 404
    bare = {"type": "reasoning", "summary": []}
    assert w.connect().ask([user("a"), bare, user("b")])["status"] == "completed"


def test_compaction_on_request() -> None:
    w = world()
    link = w.connect()
    first = link.ask("a", store=False)
    trigger = {"type": "compaction_trigger"}
    compacted = link.ask([user("b"), trigger], store=False, previous_response_id=first["id"])
    (item,) = compacted["output"]
    assert (item["type"], item["id"][:4]) == ("compaction", "cmp_")
    chained = link.ask("c", store=False, previous_response_id=compacted["id"])
    assert said(chained) == "turn 3: c"
    assert w.emulator.requests[-1].context == (item, user("c"))
    # Whatever a stateless client sends from before it is not shown.
    rebuilt = w.connect().ask([user("a"), user("b"), item, user("c")])
    assert said(rebuilt) == "turn 3: c"
    assert rebuilt["usage"]["input_tokens"] == chained["usage"]["input_tokens"]


def test_compaction_above_a_threshold() -> None:
    w = world()
    link = w.connect()
    manage = [{"type": "compaction", "compact_threshold": 100}]
    small = link.ask("a", context_management=manage)
    assert [item["type"] for item in small["output"]] == ["message"]
    text = "repeat 2 " + "x" * 500  # a long text with a short answer
    large = link.ask(text, context_management=manage, previous_response_id=small["id"])
    assert [item["type"] for item in large["output"]] == ["compaction", "message"]
    after = link.ask("c", context_management=manage, previous_response_id=large["id"])
    assert said(after) == "turn 3: c"
    assert w.emulator.requests[-1].context == (*large["output"], user("c"))


def test_larger_messages_are_closed_with_1009() -> None:
    w = world(max_message=1000)
    link = w.connect()
    link.ask("x" * 100)
    assert link.create("x" * 1000) == []
    closed = link.events[-1]
    assert isinstance(closed, CloseReceived)
    assert closed.code == 1009


def test_a_lone_surrogate_is_echoed() -> None:
    link = world().connect()
    raw = b'{"type":"response.create","model":"m","input":"a\\ud83d"}'
    frames = link.text(raw)
    assert said(frames[-1]["response"]) == "turn 1: a\ud83d"
    assert b"\\ud83d" in link.raw[-1]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
        {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,AAAA"},
    ],
)
def test_images_and_files_are_taken(part: Json) -> None:
    content = [{"type": "input_text", "text": "what is it?"}, part]
    response = world().connect().ask([{"type": "message", "role": "user", "content": content}])
    assert said(response) == "turn 1: what is it?"


# ------------------------------------------------------------------ faults of real services


def named(name: str, nth: int = 1) -> World:
    return world(faults=FaultPlan().add_named(nth, name))


def struck(name: str, **fields: object) -> tuple[World, Link, list[Json]]:
    """A first turn, and what is answered to a second one that continues it and is struck."""
    w = named(name, 2)
    link = w.connect()
    first = link.ask("a", store=False)
    frames = link.create("b", store=False, previous_response_id=first["id"], **fields)
    return w, link, frames


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_named_fault_strikes(name: str) -> None:
    """What is said differs from what is said without it, and the emulator goes on."""
    fault = CATALOGUE[name]
    assert fault.doc.endswith(".")

    def play(plan: FaultPlan) -> tuple[list[bytes], list[WebSocketEvent], World]:
        w = world(faults=plan)
        link = w.connect()
        first = link.ask("a")
        anchor = {} if fault.fault.when is When.REBUILT else {"previous_response_id": first["id"]}
        history = [user("a"), *first["output"], user("x" * 100_000)]
        body = {"type": "response.create", "model": "m", "input": history, **anchor}
        data = link.ws.send_text(json.dumps(body).encode())
        for start in range(0, len(data), 50_000):
            if not link.paused:
                link.send(data[start : start + 50_000])
        return link.raw, link.events, w

    usual = play(FaultPlan())
    raw, events, w = play(FaultPlan().add_named(2, name))
    assert (raw, events) != usual[:2] or name == "slow-reader"
    w.emulator.faults.clear()
    assert said(w.connect().ask("next")) == "turn 1: next"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("stale-terminal", 0),
        ("stale-delta", 0),
        ("stale-done", 0),
        ("stale-terminal-mid-output", 5),
        ("stale-delta-mid-output", 5),
    ],
)
def test_stale_events_are_of_the_response_before(name: str, place: int) -> None:
    w, link, frames = struck(name)
    stale = frames.pop(place)
    assert types(frames) == WHOLE
    if "done" in name:
        assert stale["response"]["id"] == w.emulator.response_id(1)
    else:
        wanted = "response.completed" if "terminal" in name else "response.output_text.delta"
        before = [frame for frame in link.frames[: len(WHOLE)] if frame["type"] == wanted]
        assert stale == before[-1]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("doubled-terminal", "response.completed"),
        ("late-delta", "response.output_text.delta"),
        ("done-after-terminal", "response.done"),
    ],
)
def test_events_after_the_end_of_a_turn(name: str, last: str) -> None:
    w = named(name)
    link = w.connect()
    sends = link.sends
    assert types(link.create()) == [*WHOLE, last]
    assert link.sends == sends + 1
    assert w.emulator.turns[0].outcome is Outcome.COMPLETED


def test_nothing_is_stale_at_first() -> None:
    for name in ("stale-terminal", "stale-delta", "stale-done"):
        assert types(named(name).connect().create()) == WHOLE


def test_stale_events_of_a_response_without_deltas() -> None:
    w = named("stale-delta", 2)
    link = w.connect()
    link.ask("a", generate=False)
    assert types(link.create("b")) == WHOLE


def test_two_ids_are_both_valid() -> None:
    for store in (True, False):
        w = named("two-ids")
        link = w.connect()
        frames = link.create("a", store=store)
        begun, ended = frames[0]["response"]["id"], frames[-1]["response"]["id"]
        assert begun != ended == w.emulator.turns[0].response_id
        assert begun == w.emulator.turns[0].created_id
        other = w.connect() if store else link
        assert said(other.ask("b", store=store, previous_response_id=begun)) == "turn 2: b"
    link = named("two-ids").connect()
    frames = link.create("a", store=False)
    ended = frames[-1]["response"]["id"]
    assert said(link.ask("b", store=False, previous_response_id=ended)) == "turn 2: b"


def test_a_refusal_evicts_either_id() -> None:
    w = world(
        faults=FaultPlan().add_named(1, "two-ids").add(2, Fault(Point.BEFORE_CREATED, Error()))
    )
    link = w.connect()
    begun = link.create("a", store=False)[0]["response"]["id"]
    link.refused(store=False, previous_response_id=begun)
    link.refused(store=False, previous_response_id=begun.removesuffix("c"))


def test_one_id_for_a_chain() -> None:
    w = world(faults=FaultPlan().add_named(EVERY, "chain-id"))
    link = w.connect()
    first = link.ask("a", store=False)
    second = link.ask("b", store=False, previous_response_id=first["id"])
    third = link.ask("c", store=False, previous_response_id=second["id"])
    assert first["id"] == second["id"] == third["id"]
    assert said(third) == "turn 3: c"
    assert link.ask("d", store=False)["id"] != first["id"]


def test_the_response_says_that_it_is_not_stored() -> None:
    w = named("store-false")
    link = w.connect()
    first = link.ask("a")
    assert first["store"] is False
    w.connect().refused(previous_response_id=first["id"])
    assert named("store-false").connect().ask("a", store=True)["store"] is True


@pytest.mark.parametrize(
    ("name", "output_of"),
    [
        ("output-empty", []),
        ("output-null", None),
        ("output-malformed", [None, "item", 7]),
    ],
)
def test_output_of_the_terminal_event(name: str, output_of: object) -> None:
    _, link, frames = struck(name)
    assert frames[-1]["response"]["output"] == output_of
    anchor = frames[-1]["response"]["id"]
    assert said(link.ask("c", store=False, previous_response_id=anchor)) == "turn 3: c"


def test_other_terminal_events() -> None:
    assert struck("output-short")[2][-1]["response"]["output"] == []
    assert "output" not in struck("output-missing")[2][-1]["response"]
    assert struck("usage-null")[2][-1]["response"]["usage"] is None
    assert "response" not in struck("response-missing")[2][-1]
    assert struck("response-null")[2][-1]["response"] is None
    assert isinstance(struck("response-string")[2][-1]["response"], str)
    assert types(struck("done")[2]) == [*TO_LAST, "response.done"]
    assert types(struck("no-created")[2]) == WHOLE[2:]
    assert not any("sequence_number" in frame for frame in struck("no-sequence")[2])
    assert said(struck("surrogate")[2][-1]["response"]) == "turn 2: b\ud83d"


def test_a_cancelled_response_cannot_be_continued() -> None:
    w, link, frames = struck("cancelled")
    assert (frames[-1]["type"], frames[-1]["response"]["status"]) == (
        "response.cancelled",
        "cancelled",
    )
    assert w.emulator.turns[1].outcome is Outcome.FAILED
    link.refused("c", store=False, previous_response_id=frames[-1]["response"]["id"])


@pytest.mark.parametrize("name", ["anchor-refused", "anchor-expired"])
def test_only_anchored_frames_are_refused(name: str) -> None:
    w = world(faults=FaultPlan().add_named(EVERY, name))
    link = w.connect()
    first = link.ask("a", store=False)
    frame = link.refused("b", store=False, previous_response_id=first["id"])
    assert frame["error"]["code"] != "previous_response_not_found"
    link.ask([user("a"), *first["output"], user("b")], store=False)


def test_only_rebuilt_inputs_are_refused() -> None:
    w = world(faults=FaultPlan().add_named(EVERY, "rebuilt-input-refused"))
    link = w.connect()
    first = link.ask("a", store=False)
    link.ask("b", store=False, previous_response_id=first["id"])
    frame = link.refused([user("a"), *first["output"], user("b")], store=False)
    assert frame["error"]["code"] == "invalid_encrypted_content"


def test_a_close_can_come_with_a_refusal() -> None:
    w = named("closed-with-refusal", 2)
    link = w.connect()
    first = link.ask("a", store=False)
    sends = link.sends
    frame = link.refused("b", store=False, previous_response_id=first["id"])
    assert frame["error"]["code"] == "previous_response_not_found"
    assert link.events[-1] == CloseReceived(1001, "")
    assert link.sends == sends + 1
    assert w.emulator.turns[1].outcome is Outcome.FAILED


def test_further_members_of_errors() -> None:
    error = named("usage-limit").connect().refused()["error"]
    assert (error["code"], error["plan_type"], error["resets_in_seconds"]) == (
        "usage_limit_reached",
        "plus",
        600,
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            ErrorShape.FLAT,
            {"type": "error", "status": 429, "code": "c", "message": "w", "param": "p"},
        ),
        (ErrorShape.BARE, {"error": {"type": "t", "code": "c", "message": "w", "param": "p"}}),
        (
            ErrorShape.BARE_STATUS,
            {"status": 429, "error": {"type": "t", "code": "c", "message": "w", "param": "p"}},
        ),
        (ErrorShape.DETAIL, {"detail": "w"}),
        (
            ErrorShape.BODY,
            {
                "type": "error",
                "status": 429,
                "body": {"error": {"type": "t", "code": "c", "message": "w", "param": "p"}},
            },
        ),
        (
            ErrorShape.STATUS_CODE,
            {
                "type": "error",
                "status_code": 429,
                "error": {"type": "t", "code": "c", "message": "w", "param": "p"},
            },
        ),
        (
            ErrorShape.STATUS_STRING,
            {
                "type": "error",
                "status": "429",
                "error": {"type": "t", "code": "c", "message": "w", "param": "p"},
            },
        ),
        (
            ErrorShape.INTEGER_CODE,
            {"error": {"type": "t", "code": 429, "message": "w", "param": "p"}},
        ),
        (
            ErrorShape.GRPC,
            {"error": {"message": "rpc error: code = Unknown desc = w", "type": "api_error"}},
        ),
    ],
)
def test_further_error_shapes(shape: ErrorShape, expected: Json) -> None:
    error = Error(429, "c", "t", "w", "p", shape)
    link = faulty(Point.BEFORE_CREATED, error).connect()
    link.create()
    assert link.frames == [expected]


def test_a_refusal_as_a_failed_response() -> None:
    (frame,) = named("server-error-response-failed").connect().create()
    assert frame["type"] == "response.failed"
    assert frame["response"]["error"]["code"] == "server_error"


# ------------------------------------------------------------------ reading slowly


def client_frame(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """A masked frame (RFC 6455, section 5.2) whose key is zero."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 * last | opcode]) + length + bytes(4) + payload


def upload(link: Link, *, answers_pings: bool) -> None:
    """Send a create frame in 20 fragments, each when the one before was read."""
    text = json.dumps({"type": "response.create", "model": "m", "input": "x" * 100_000}).encode()
    pieces = [text[at : at + 5100] for at in range(0, len(text), 5100)]
    for number, piece in enumerate(pieces):
        while link.paused and not link.ended:
            link.world.wait()
        pongs = link.ws.data_to_send()
        if link.ended or (not link.ws.is_open and pongs == b""):
            return
        last = number == len(pieces) - 1
        data = client_frame(0 if number else 1, piece, last=last)
        link.send((pongs if answers_pings else b"") + data)


@pytest.mark.parametrize("answers_pings", [True, False])
def test_a_slow_reader_wants_its_pongs(answers_pings: bool) -> None:
    w = named("slow-reader")
    link = w.connect()
    upload(link, answers_pings=answers_pings)
    if answers_pings:
        assert types(link.frames) == WHOLE
        assert w.emulator.pongs == 4
        assert w.now >= 19 * NS_PER_SECOND
        assert w.emulator.next_timeout() is None
    else:
        assert link.frames == []
        closed = link.events[-1]
        assert isinstance(closed, CloseReceived)
        assert closed.code == 1011


def test_a_small_frame_is_never_read_slowly() -> None:
    assert types(named("slow-reader").connect().create()) == WHOLE


def test_not_found_in_the_shapes_of_other_upstreams() -> None:
    w = world(error_shape=ErrorShape.INTEGER_CODE)
    error = w.connect().create(previous_response_id="resp_x")[0]["error"]
    assert error["message"] == "Response with id 'resp_x' not found."
    assert (error["type"], error["code"]) == ("NotFoundError", 404)
    w = world(error_shape=ErrorShape.GRPC)
    error = w.connect().create(previous_response_id="resp_x")[0]["error"]
    assert error["message"].startswith("rpc error: code = NotFound desc = ")
    assert "resp_x" in error["message"]
