"""Tests of testing/emulator/context.py and events.py: what the service reads, and what it writes.

What belongs here: item references, reasoning, compaction, limits of output. Turns, continuation and
lanes are in test_service.py.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.testing import (
    CreateFrame,
    Outcome,
    Text,
    ToolCall,
)
from bridgecore.testing.answers import Output, Reasoning
from bridgecore.wire.websocket import (
    CloseReceived,
)
from tests.testing.emulator_world import EVENT, Json, output, said, types, user, world

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
    """Items are found on their connection, and on others if they are stored."""
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


@settings(max_examples=60)
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


def a_call_and_then_a_thought(request: CreateFrame) -> list[Output]:
    """A call, or, once its output is in the context, an answer."""
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
    # A stateless client may send items from before it; they are not in the context.
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
