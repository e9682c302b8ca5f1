"""Clients that repeat their whole history: a whole endpoint recognises it and sends what is new.

What belongs here: what is recognised, what is not, and what happens when the upstream refuses an
injected anchor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import pytest

from bridgecore.simulate.witness import said
from bridgecore.testing import (
    Abort,
    CloseWith,
    CreateFrame,
    Error,
    ErrorShape,
    Fault,
    Point,
    Silence,
)
from bridgecore.testing.faults import Action
from tests.endpoint_clients import (
    SHAPES,
    Historian,
    Talker,
    anchors,
    assert_empty,
    bare,
    context,
    frame,
    heal,
    held,
    output_for,
    strike,
    user,
)
from tests.endpoint_world import NOT_FOUND, SECOND, Json, World

# ------------------------------------------------------------------ clients that repeat everything


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("store", [True, False])
def test_histories_are_reduced_while_the_connection_is_open(store: bool, bare: bool) -> None:
    world = held()
    historian = Historian(world, store, bare=bare, fields={"instructions": "i" * 500})
    for n in range(40):
        historian.attempt(user(f"text {n:03}"))
    assert historian.outcomes == ["200"] * 40
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
            world.advance(1000)  # its connection is closed
    assert len(anchors(world)) == 8
    assert_empty(world)


@pytest.mark.parametrize(
    ("point", "action", "outcomes"),
    [
        (Point.AFTER_TERMINAL, CloseWith(1001), ["200"]),
        (Point.BEFORE_CREATED, Abort(), ["502", "200"]),
        (Point.BEFORE_CREATED, Silence(), ["502", "200"]),
        # an error about an anchor that its client never sent
        (Point.BEFORE_CREATED, Error(500), ["200"]),
        (Point.BEFORE_CREATED, Error(400, "websocket_connection_limit_reached"), ["200"]),
        (Point.AFTER_CREATED, Abort(), ["failed", "200"]),
        (Point.MID_OUTPUT, Abort(), ["failed", "200"]),
    ],
    ids=repr,
)
def test_after_a_loss_histories_go_in_full(
    point: Point, action: Action, outcomes: list[str]
) -> None:
    world = held(created_timeout=SECOND)
    historian = Historian(world)
    for turn in range(6):
        if turn % 2:
            strike(world, point, action)
        historian.outcomes.clear()
        historian.turn(user(f"text {turn}"))
        assert historian.outcomes == (outcomes if turn % 2 else ["200"])
        heal(world)
    fulls = [request for request in world.emulator.requests if request.anchor is None]
    assert max(len(request.input) for request in fulls) >= 8
    assert_empty(world)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rejected_injection_is_recovered_and_never_repeated(shape: ErrorShape) -> None:
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    missing = Error(
        400, NOT_FOUND, "invalid_request_error", "Invalid `previous_response_id`.", shape=shape
    )
    strike(world, Point.BEFORE_CREATED, missing)
    historian.attempt(user("b"))
    rejected = anchors(world)
    assert (historian.outcomes, len(rejected), len(world.frames)) == (["200", "200"], 1, 3)
    heal(world)
    # Nor when the same history comes again, or one that extends it.
    del historian.history[2:]
    historian.attempt(user("b"))
    historian.attempt(user("c"))
    assert rejected[0] not in anchors(world)[1:]
    assert_empty(world)


def test_a_rejected_injection_is_not_repeated_if_the_full_input_fails_too() -> None:
    world = held()
    historian = Historian(world)
    historian.attempt(user("a"))
    world.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Error(400, NOT_FOUND)))
    world.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, Error(500)))
    historian.attempt(user("b"))
    historian.attempt(user("b"))
    assert historian.outcomes == ["200", "502", "200"]
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
    assert historian.outcomes == ["200"] * 4
    assert len(anchors(world)) == 2  # it continues from there
    assert_empty(world)


@pytest.mark.parametrize("header", ["thread-id", "session-id"])
def test_another_thread_is_another_conversation(header: str) -> None:
    world = held()
    one = Historian(world, headers=f"{header}: one\r\n")
    one.attempt(user("a"))
    two = Historian(world, headers=f"{header}: two\r\n", history=list(one.history))
    two.attempt(user("b"))
    assert anchors(world) == []
    one.attempt(user("c"))  # its response is held, and no turn was anchored to it
    two.attempt(user("d"))
    one.attempt(user("e"))
    assert [request.anchor is None for request in world.emulator.requests[2:]] == [False] * 3
    assert len(set(anchors(world))) == 3
    assert_empty(world)


@pytest.mark.parametrize("texts", ["aaaa", "abcd"])
def test_siblings_never_share_an_anchor(texts: str) -> None:
    """They share keys, their beginning, and perhaps every message."""
    world = held()
    siblings = [
        Historian(world, headers="thread-id: t\r\n", fields={"prompt_cache_key": "k"})
        for _ in texts
    ]
    for _ in range(4):
        for sibling, text in zip(siblings, texts, strict=True):
            sibling.attempt(user(text))
    assert len(anchors(world)) == len(set(anchors(world)))
    assert all(sibling.outcomes == ["200"] * 4 for sibling in siblings)
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
        assert other.outcomes == ["200"]
    assert len(anchors(world)) == 1
    assert len({turn.request.conn for turn in world.emulator.turns[1:]}) == 5
    world.emulator.delta_interval = 0
    for other in others:
        other.attempt(user("c"))
    assert len(anchors(world)) == len(set(anchors(world)))
    assert_empty(world)


def test_a_cut_stream_whose_call_was_delivered() -> None:
    """The tool was run: the client's next body has grown by the call and its output."""
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
    assert historian.outcomes == ["200", "failed", "200", "200"]
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


def test_a_client_can_change_between_ids_and_histories() -> None:
    """From ids to histories and back, in one conversation."""
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
    assert talker.outcomes == ["200"] * 3
    assert len(frame(world)["input"]) == 7
    assert_empty(world)


# ------------------------------------------------------------------ clients as they are


CODEX = "internal_chat_message_metadata_passthrough"


@attrs.define
class Codex(Historian):
    """Codex with its built-in provider: each item that it sends has notes of its own."""

    turns: int = 0

    def body_of(self, *items: Json) -> list[Json]:
        self.turns += 1
        note = {"turn_id": f"01a059de-d2ff-78f1-{self.turns:04}", "create_time": 1788214171.12}
        return [{**item, CODEX: note} for item in items]


def test_codex_is_recognised_by_the_content_of_items() -> None:
    world = held()
    fields = {"prompt_cache_key": "k", "instructions": "Be brief."}
    codex = Codex(world, headers="thread-id: k\r\n", fields=fields)
    for n in range(1, 9):
        items = codex.body_of(user(f'call tool look {{"n":{n}}}'))
        (call,) = codex.attempt(*items).response["output"]
        codex.history[-1:] = codex.body_of({**call, "status": None})  # what it sends back
        codex.attempt(*codex.body_of(output_for(call, f"seen {n}")))
        codex.history[-1:] = codex.body_of(codex.history[-1])
    assert codex.outcomes == ["200"] * 16
    assert len(anchors(world)) == 15
    assert world.net.connects == 1
    # New items are forwarded unchanged.
    assert all(CODEX in item for request in world.frames for item in request["input"])
    assert_empty(world)


def calling(request: CreateFrame) -> list[Json]:
    """A call for each output so far, up to five; then an answer."""
    outputs = sum(item.get("type") == "function_call_output" for item in request.context)
    if outputs % 6 == 5:
        part = {"type": "output_text", "text": f"after {outputs}", "annotations": []}
        return [{"type": "message", "role": "assistant", "status": "completed", "content": [part]}]
    arguments = json.dumps({"n": outputs}, separators=(",", ":"))
    call = {"type": "function_call", "name": "look", "arguments": arguments}
    return [{**call, "call_id": f"call_{outputs}", "status": "completed"}]


def steps_of(world: World, lose: Sequence[int] = ()) -> list[Json]:
    """A tool loop as the Vercel AI SDK runs it with ``previousResponseId``: each step sends all
    items since the response before the user's message. The frames of its steps; before the steps in
    ``lose`` the connection is lost."""
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
            # It parses arguments, and encodes them again.
            again = {**made, "arguments": json.dumps(json.loads(made["arguments"]))}
            turn += [bare(again), output_for(made, f"seen {step}")]
    return frames


def meant(items: Sequence[Json]) -> list[tuple[object, ...]]:
    """The content of ``items``, without the white space of arguments."""
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


def test_after_a_refused_injection_the_clients_whole_context_is_sent() -> None:
    """The upstream has lost the injected anchor: the client's own input is sent in full."""
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
    assert set(historian.outcomes) == {"200"}
    assert len(anchors(world)) == len(set(anchors(world)))
    assert_empty(world)


def test_a_conversation_that_begins_like_many_is_reduced_at_once() -> None:
    """Abandoned conversations leave responses with equal context behind."""
    world = held()
    for n in range(5):
        historian = Historian(world)
        historian.attempt(user("hello"))
        historian.attempt(user(f"question {n}"))
        assert len(anchors(world)) == n + 1
        Historian(world).attempt(user("hello"))
        world.advance(1000)  # connections are closed
    assert len(anchors(world)) == len(set(anchors(world)))
    assert_empty(world)


def test_a_full_send_does_not_end_the_reduction_of_its_history() -> None:
    world = held()
    one = Historian(world)
    one.attempt(user("a"))
    two = Historian(world, history=list(one.history), fields={"instructions": "others"})
    two.attempt(user("b"))
    one.attempt(user("c"))
    assert len(anchors(world)) == 1
    assert_empty(world)
