"""Tests of continuity/transcript.py: the tree of responses, eviction, rebuilding, recognition."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.continuity.items import Prompt
from bridgecore.continuity.nodes import NODE_OVERHEAD, Match, Node, expand, reduce, resolve
from bridgecore.continuity.prefixes import PREFIX_OVERHEAD, SHORTEST
from bridgecore.continuity.templates import SPARE, TEMPLATE_OVERHEAD
from bridgecore.continuity.transcript import Transcripts
from bridgecore.continuity.tree import TREE_OVERHEAD
from bridgecore.wire.requests import parse_create
from tests.memory import taken

Item = dict[str, Any]
PLENTY = 1 << 30
AGE = 1000  # ns
SCOPE = TREE_OVERHEAD + SPARE // 4 + 2 * (TEMPLATE_OVERHEAD + 100)  # with two templates


def transcripts(
    max_bytes: int = PLENTY,
    max_age: int = AGE,
    max_scope: int = PLENTY,
    shortest_prefix: int = SHORTEST,
) -> Transcripts:
    return Transcripts(max_bytes, max_age, max_scope, shortest_prefix=shortest_prefix)


def dump(value: object) -> bytes:
    """JSON as most clients encode it."""
    return json.dumps(value, separators=(",", ":")).encode()


def prompt(given: object, anchor: str | None = None, *narrow: bytes, **members: object) -> Prompt:
    """A request with the items (or whatever it is) ``given``."""
    body = {"model": "m", "store": False, "input": given, **members}
    if anchor is not None:
        body["previous_response_id"] = anchor
    return Prompt(parse_create(dump(body)), narrow)


def repeated(held: Transcripts, given: Prompt, scope: str = "s") -> Prompt:
    """The same request, with the beginning of its input recognised as a whole if it is known."""
    return Prompt(given.request, (), held.known_start(scope, given.request))


def spaced(given: Prompt) -> Prompt:
    """The same request with white space, as ``json.dumps`` encodes it."""
    return Prompt(parse_create(json.dumps(json.loads(given.request.frame)).encode()))


def raw(*items: Item) -> list[bytes]:
    return [dump(item) for item in items]


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def said(text: str) -> Item:
    """A message as an upstream sends it."""
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {
        "id": f"msg_{text}",
        "type": "message",
        "status": "completed",
        "content": [part],
        "role": "assistant",
    }


def echo(text: str) -> Item:
    """The same message as a client sends it back."""
    return {"role": "assistant", "content": text, "type": "message"}


def sent(frame: bytes) -> list[Item]:
    """The input of a ``response.create``."""
    found = json.loads(frame)["input"]
    assert isinstance(found, list)
    return found


def held_turn(
    held: Transcripts,
    name: str,
    given: object,
    *output: Item,
    anchor: str | None = None,
    scope: str = "s",
    now: int = 0,
    **members: object,
) -> Node:
    node = held.put(scope, name, prompt(given, anchor, **members), raw(*output), now)
    assert node is not None
    return node


def linear(held: Transcripts, scope: str = "s", now: int = 0) -> Node:
    """Two turns: a, then b."""
    held_turn(held, "r1", [user("a")], said("A"), scope=scope, now=now)
    return held_turn(held, "r2", [user("b")], said("B"), anchor="r1", scope=scope, now=now)


# ------------------------------------------------------------------ the tree


def test_a_history_that_begins_like_none_is_not_compared_further() -> None:
    held = transcripts()
    linear(held)
    other = prompt([user("x"), *[user(f"more {n}") for n in range(20)]])
    assert held.recognise("s", other, 0) == []
    assert len(other.chain) == 2
    same = prompt([*HISTORY, user("c")])
    assert held.recognise("s", same, 0)


def test_the_path_is_the_whole_input_in_input_form() -> None:
    held = transcripts()
    node = linear(held)
    assert json.loads(b"[%b]" % node.text()) == [
        user("a"),
        {"type": "message", "content": [{"type": "output_text", "annotations": [], "text": "A"}],
         "role": "assistant"},
        user("b"),
        {"type": "message", "content": [{"type": "output_text", "annotations": [], "text": "B"}],
         "role": "assistant"},
    ]  # fmt: skip
    assert held.get("s", "r2", 0) is node
    assert [each.response_id for each in node.path()] == ["r1", "r2"]


def test_any_held_response_can_be_branched_from() -> None:
    held = transcripts()
    first = linear(held).parent
    branch = held_turn(held, "r3", "c", said("C"), anchor="r1")
    assert branch.parent is first
    assert b'"B"' not in branch.text()
    assert len(held) == 3


def test_a_child_of_an_unknown_response_is_not_held() -> None:
    held = transcripts()
    assert held.put("s", "r2", prompt("b", "r1"), raw(said("B")), 0) is None
    assert held.get("s", "r2", 0) is None
    assert held.size == 0


def test_a_warmup_is_context() -> None:
    held = transcripts()
    held_turn(held, "w", [user("rules")], generate=False)
    node = held_turn(held, "r1", [user("a")], said("A"), anchor="w")
    assert sent(expand(node, prompt("b", "r1")).frame)[0] == user("rules")


def test_a_foreign_scope_is_a_miss() -> None:
    held = transcripts()
    linear(held, "mine")
    assert held.get("yours", "r2", 0) is None
    assert held.put("yours", "r3", prompt("c", "r2"), [], 0) is None
    history = prompt([user("a"), echo("A"), user("b"), echo("B"), user("c")])
    assert held.recognise("yours", history, 0) == []
    assert held.recognise("mine", history, 0)
    assert held.scope_size("yours") == 0


@pytest.mark.parametrize("name", ["conversation", "prompt"])
def test_a_request_with_hidden_context_is_not_held(name: str) -> None:
    held = transcripts()
    asked = prompt([user("a")], None, **{name: {"id": "x"}})
    assert held.put("s", "r1", asked, raw(said("A")), 0) is None
    linear(held)
    more = [user("a"), echo("A"), user("b"), echo("B"), user("c")]
    assert held.recognise("s", prompt(more, None, **{name: {"id": "x"}}), 0) == []


def test_a_history_that_is_sent_in_full_is_held_once() -> None:
    held = transcripts()
    node = linear(held)
    before = held.size
    history = [user("a"), echo("A"), user("b"), echo("B"), user("c")]
    more = held_turn(held, "r3", history, said("C"), model="another")
    assert more.parent is node
    assert [read(item) for item in json.loads(b"[%b]" % more.own_text())] == [
        ("user", "c"),
        ("said", "C"),
    ]
    assert held.size == before + more.size


def test_a_response_id_used_twice_names_the_later_response() -> None:
    held = transcripts()
    old = linear(held).path()
    again = held_turn(held, "r1", [user("x")], said("X"))
    assert held.get("s", "r1", 0) is again
    assert held.get("s", "r2", 0) is None
    assert not any(node.held for node in old)
    assert held.size == again.size + again.table.size + TREE_OVERHEAD


# ------------------------------------------------------------------ eviction


def test_the_least_recently_used_conversation_is_evicted_first_from_its_end() -> None:
    def fill(held: Transcripts) -> Transcripts:
        for now, name in enumerate(("p", "q")):
            held_turn(held, f"{name}1", [user(name)], said("A"), now=now)
            held_turn(held, f"{name}2", [user("b")], said("B"), anchor=f"{name}1", now=now)
        return held

    held = fill(transcripts(max_bytes=fill(transcripts(max_bytes=12_000)).size))
    assert len(held) == 4
    assert held.get("s", "p2", 10) is not None  # p is used, so q is evicted, its end first
    first = held_turn(held, "x1", [user("x")], said("A"), now=11)
    assert held.get("s", "q2", 12) is None
    assert len(held) == 4
    second = held_turn(held, "x2", [user("b")], said("B"), anchor="x1", now=13)
    assert second.parent is first
    assert held.get("s", "q1", 14) is None
    assert all(held.get("s", name, 14) is not None for name in ("p1", "p2", "x1", "x2"))


def test_an_idle_branch_expires_and_its_used_ancestors_stay() -> None:
    held = transcripts()
    linear(held)
    held.get("s", "r1", 600)
    assert held.expire(1000) == 1
    assert held.get("s", "r2", 1000) is None
    assert held.next_expiry() == 1600


def test_age_counts_from_the_last_use() -> None:
    held = transcripts()
    assert held.next_expiry() is None
    linear(held)
    assert held.next_expiry() == 1000
    held.get("s", "r2", 500)
    assert held.next_expiry() == 1500
    assert held.expire(1499) == 0
    assert held.expire(1500) == 2
    assert held.next_expiry() is None
    assert held.size == len(held) == 0


def test_recognition_counts_as_use() -> None:
    held = transcripts()
    linear(held)
    history = prompt([user("a"), echo("A"), user("b"), echo("B"), user("c")])
    assert held.recognise("s", history, 900)
    assert held.next_expiry() == 1900


def test_an_expired_node_is_a_miss_before_the_sweep() -> None:
    held = transcripts()
    linear(held)
    assert held.get("s", "r2", 1000) is None


def test_time_does_not_go_backwards() -> None:
    held = transcripts()
    linear(held, now=700)
    assert held.get("s", "r2", 100) is not None
    assert held.next_expiry() == 1700


def test_one_credential_cannot_evict_another() -> None:
    one = SCOPE + 4 * (NODE_OVERHEAD + 300)
    held = transcripts(max_bytes=4 * one, max_scope=one)
    held_turn(held, "kept", [user("a")], said("A"), scope="quiet", now=0)
    for number in range(50):
        held_turn(held, f"r{number}", [user(str(number))], said("A"), scope="loud", now=number + 1)
        assert held.scope_size("loud") <= one
    assert held.get("quiet", "kept", 60) is not None
    assert held.get("loud", "r49", 60) is not None
    assert held.get("loud", "r0", 60) is None


def test_the_least_recently_used_credential_makes_room() -> None:
    held = transcripts(max_bytes=2 * (SCOPE + NODE_OVERHEAD + 300))
    for now, scope in enumerate("abc"):
        held_turn(held, "r1", [user("a")], said("A"), scope=scope, now=now)
    assert [held.get(scope, "r1", 3) is not None for scope in "abc"] == [False, True, True]
    assert held.scope_size("a") == 0


def test_a_conversation_larger_than_the_budget_is_not_held_and_evicts_none() -> None:
    held = transcripts(max_bytes=20_000)
    linear(held)
    before = held.size
    assert held.put("s", "big", prompt([user("x" * 30_000)]), [], 1) is None
    assert held.put("s", "r3", prompt([user("x" * 17_000)], "r2"), [], 1) is None
    assert held.put("t", "r4", prompt([user("x" * 20_000)]), [], 1) is None
    assert held.size == before
    assert held.get("s", "r2", 2) is not None


def test_a_budget_of_zero_bytes_holds_nothing() -> None:
    held = transcripts(max_bytes=0)
    assert held.put("s", "r1", prompt("a"), [], 0) is None
    assert held.size == 0


def test_accounted_size_is_the_memory_taken() -> None:
    def fill() -> Transcripts:
        held = transcripts()
        for scope in range(20):
            anchor = None
            for turn in range(20):
                name = f"resp_{turn:048}"
                node = held_turn(
                    held, name, [user("u" * 300)], said("s" * 300), anchor=anchor, scope=f"s{scope}"
                )
                anchor = node.response_id
        return held

    held, size = taken(fill)
    assert len(held) == 400
    assert 0.7 * held.size <= size <= held.size


# ------------------------------------------------------------------ expand


def test_a_turn_is_expanded_to_a_request_of_its_own() -> None:
    held = transcripts()
    node = linear(held)
    turn = prompt([user("c")], "r2", temperature=1.5, metadata={"k": [1]})
    expansion = expand(node, turn)
    frame = json.loads(expansion.frame)
    assert "previous_response_id" not in frame
    assert [item.get("role") for item in frame["input"]] == [
        "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    del frame["input"]
    assert frame == {
        "type": "response.create",
        "model": "m",
        "store": False,
        "temperature": 1.5,
        "metadata": {"k": [1]},
    }
    assert expansion.proof.self_contained


def call(number: int) -> Item:
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "call_id": f"c{number}",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    }


def result(number: int) -> Item:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": "ok"}


def test_outputs_find_their_calls_on_the_chain() -> None:
    held = transcripts()
    node = held_turn(held, "r1", "go", call(1), call(2))
    both = expand(node, prompt([result(1), result(2)], "r1")).proof
    assert (both.orphans, both.pending, both.self_contained) == ((), (), True)
    one = expand(node, prompt([result(2)], "r1")).proof
    assert (one.orphans, one.pending, one.self_contained) == ((), ("c1",), True)
    foreign = expand(node, prompt([result(3)], "r1")).proof
    assert (foreign.orphans, foreign.self_contained) == (("c3",), False)


def test_a_context_with_an_output_without_its_call_is_not_rebuilt() -> None:
    """Some upstreams accept such an output; the bridge must not send it to another connection."""
    held = transcripts()
    assert not held_turn(held, "r1", [result(1)], said("a")).readable
    called = held_turn(held, "r2", "go", call(1))
    for name, output, known in (("r3", result(1), True), ("r4", result(2), False)):
        node = held_turn(held, name, [output], said("b"), anchor="r2")
        after = held_turn(held, f"{name}b", [user("c")], said("d"), anchor=name)
        assert node.parent is called
        assert [node.readable, after.readable] == [known, known]


def test_a_turn_without_items_is_expanded_to_the_chain() -> None:
    held = transcripts()
    node = linear(held)
    assert len(sent(expand(node, prompt(None, "r2")).frame)) == 4


# ------------------------------------------------------------------ recognise and reduce

HISTORY = [user("a"), echo("A"), user("b"), echo("B")]


def recognised(held: Transcripts, asked: Prompt) -> Match:
    (match,) = held.recognise("s", asked, 0)
    return match


def test_a_history_is_reduced_to_its_end() -> None:
    held = transcripts()
    linear(held)
    asked = prompt([*HISTORY, user("c"), user("d")], temperature=2)
    match = recognised(held, asked)
    assert (match.node.response_id, match.repeated) == ("r2", 4)
    assert json.loads(reduce(asked, match)) == {
        "type": "response.create",
        "model": "m",
        "store": False,
        "input": [user("c"), user("d")],
        "temperature": 2,
        "previous_response_id": "r2",
    }


@pytest.mark.parametrize(
    "items",
    [
        HISTORY,  # nothing new
        HISTORY[:2],
        [*HISTORY[:3], echo("b"), user("c")],
        [user("z"), *HISTORY, user("c")],
        [*HISTORY[2:], user("c")],
        [HISTORY[1], HISTORY[0], *HISTORY[2:], user("c")],
        [],
    ],
)
def test_a_history_that_does_not_extend_a_chain_is_not_recognised(items: list[Item]) -> None:
    held = transcripts()
    linear(held)
    assert held.recognise("s", prompt(items), 0) == []


@pytest.mark.parametrize(
    "members",
    [{"model": "n"}, {"store": True}, {"instructions": "x"}, {"tools": []}, {"include": ["x"]}],
)
def test_other_settings_are_not_recognised(members: Item) -> None:
    held = transcripts()
    linear(held)
    assert held.recognise("s", prompt([*HISTORY, user("c")], None, **members), 0) == []


def test_an_anchored_turn_is_never_reduced() -> None:
    held = transcripts()
    linear(held)
    assert held.recognise("s", prompt([*HISTORY, user("c")], "r2"), 0) == []


def test_a_response_that_was_continued_is_no_anchor() -> None:
    held = transcripts()
    linear(held)
    history = [*HISTORY[:2], user("another way")]
    assert held.recognise("s", prompt(history), 0) == []


def test_responses_of_equal_context_are_anchors_once_each() -> None:
    held = transcripts()
    for name in ("r1", "r2"):
        # Two conversations have the same beginning, and nothing distinguishes them.
        held_turn(held, name, [user("a")], said("A"), prompt_cache_key="k")
    asked = [prompt([*HISTORY[:2], user(t)], None, prompt_cache_key="k") for t in "bc"]
    for name, each, left in (("x", asked[0], ["r2", "r1"]), ("y", asked[1], ["r1"])):
        matches = held.recognise("s", each, 0)
        assert [match.node.response_id for match in matches] == left
        assert held.put("s", name, each, raw(said("B")), 0, match=matches[0]) is not None
    assert held.recognise("s", asked[0], 0) == []


def test_asking_the_same_again_does_not_end_reduction() -> None:
    """A full send does not count as an attempt of the anchor, even if it repeats the anchor's
    context."""
    held = transcripts()
    first = held_turn(held, "r1", [user("a")], said("A"))
    again = held_turn(held, "r2", [*HISTORY[:2], user("b")], said("B"))
    assert again.parent is first
    other = prompt([*HISTORY[:2], user("b2")])
    assert recognised(held, other).node is first
    assert held.put("s", "r3", other, raw(said("C")), 0, match=recognised(held, other))
    for name, text in (("r2", "b"), ("r3", "b2")):
        answer = {"r2": "B", "r3": "C"}[name]
        more = prompt([*HISTORY[:2], user(text), echo(answer), user("on")])
        assert recognised(held, more).node.response_id == name
    assert held.recognise("s", prompt([*HISTORY[:2], user("b")]), 0) == []


def test_a_refused_anchor_is_not_offered_again() -> None:
    held = transcripts()
    node = linear(held)
    node.injectable = False
    assert held.recognise("s", prompt([*HISTORY, user("c")]), 0) == []
    assert held.get("s", "r2", 0) is node


def test_narrowing_keys_tell_siblings_apart() -> None:
    held = transcripts()
    for name in ("one", "two"):
        asked = prompt([user("a")], None, name.encode())
        assert held.put("s", name, asked, raw(said("A")), 0) is not None
    for name in ("one", "two"):
        more = prompt([*HISTORY[:2], user("b")], None, name.encode())
        assert recognised(held, more).node.response_id == name
    assert held.recognise("s", prompt([*HISTORY[:2], user("b")], None, b"three"), 0) == []


THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": []}


def test_reasoning_that_no_client_can_send_back_is_not_compared() -> None:
    held = transcripts()
    node = held_turn(held, "r1", [user("a")], THOUGHT, said("A"))
    assert b"reasoning" not in node.text()
    last = held_turn(held, "r2", [user("b")], said("B"), anchor="r1")
    assert recognised(held, prompt([*HISTORY, user("c")])).node is last
    # The same if a client sends it back; then it is part of the repeated history.
    sent_back = [user("a"), THOUGHT, echo("A"), user("b"), THOUGHT, echo("B"), user("c")]
    for _ in range(2):
        match = recognised(held, prompt(sent_back))
        assert (match.node, match.repeated) == (last, 6)
        assert sent(reduce(prompt(sent_back), match)) == [user("c")]
    # It is in no rebuilt input, whoever sent it.
    more = held_turn(held, "r3", [*sent_back, THOUGHT], said("C"))
    assert b"reasoning" not in more.text()
    assert recognised(held, prompt([*HISTORY, user("c"), echo("C"), user("d")])).node is more


def test_an_item_left_out_does_not_shift_the_learnt_forms() -> None:
    """An item must not be matched by an encoding that stands elsewhere."""
    held = transcripts()
    held_turn(held, "r1", [user("a"), user("x")], said("A"))
    recognised(held, prompt([user("a"), THOUGHT, user("x"), THOUGHT, echo("A"), user("b")]))
    for wrong in ([THOUGHT, user("x"), echo("A")], [user("x"), THOUGHT, echo("A")]):
        assert held.recognise("s", prompt([*wrong, user("b")]), 0) == []


def test_stored_reasoning_is_compared() -> None:
    held = transcripts()
    held_turn(held, "r1", [user("a")], THOUGHT, said("A"), store=True)
    assert held.recognise("s", prompt([*HISTORY[:2], user("b")], None, store=True), 0) == []
    whole = prompt([user("a"), THOUGHT, echo("A"), user("b")], None, store=True)
    assert recognised(held, whole).repeated == 3


def test_the_store_flag_of_the_response_overrides_the_request() -> None:
    held = transcripts()
    asked = prompt([user("a")], None, store=True)
    node = held.put("s", "r1", asked, raw(THOUGHT, said("A")), 0, stored=False)
    assert node is not None
    assert [item.get("id") for item in json.loads(b"[%b]" % node.text())] == [None, None]
    again = prompt([*HISTORY[:2], user("b")], None, store=True)
    assert recognised(held, again).node is node


# ------------------------------------------------------------------ anchored turns that repeat


def tool_loop(held: Transcripts) -> None:
    """A user message after r1, and two calls for it, in r2 and r3."""
    held_turn(held, "r1", [user("a")], said("A"))
    held_turn(held, "r2", [user("go")], call(1), anchor="r1")
    held_turn(held, "r3", [result(1)], call(2), anchor="r2")


def made(number: int) -> Item:
    """A call as the Vercel AI SDK sends it back: its arguments parsed and encoded again."""
    return {
        "type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{ }",
    }  # fmt: skip


def test_an_anchored_turn_that_repeats_the_steps_since_is_reduced() -> None:
    """The Vercel AI SDK runs a tool loop in this way: always after the first response."""
    held = transcripts()
    tool_loop(held)
    steps = [user("go"), made(1), result(1), made(2), result(2)]
    asked = prompt(steps, "r1")
    match = recognised(held, asked)
    assert recognised(held, asked) == match
    assert (match.node.response_id, match.repeated) == ("r3", 4)
    frame = json.loads(reduce(asked, match))
    assert (frame["previous_response_id"], frame["input"]) == ("r3", [result(2)])
    node = held.put("s", "r4", asked, raw(said("B")), 0, match=match)
    assert node is not None
    assert node.parent is held.get("s", "r3", 0)
    more = prompt([*steps, echo("B"), user("on")], "r1")
    assert recognised(held, more).node is node


def test_an_anchored_turn_that_went_in_full_is_held_once() -> None:
    held = transcripts()
    tool_loop(held)
    asked = prompt([user("go"), made(1), result(1), made(2), result(2)], "r1")
    node = held.put("s", "r4", asked, raw(said("B")), 0)
    assert node is not None
    assert node.parent is held.get("s", "r3", 0)
    assert json.loads(b"[%b]" % node.own_text())[0] == result(2)


@pytest.mark.parametrize(
    "steps",
    [
        [user("go")],
        [user("go"), made(1)],  # nothing new
        [user("gone"), made(1), result(1)],
        [user("go"), {**made(1), "arguments": '{"a":1}'}, result(1)],
        [made(1), result(1)],
        [user("a"), echo("A"), user("go"), made(1), result(1)],  # the history twice
    ],
)
def test_an_anchored_turn_that_says_other_things_is_not_reduced(steps: list[Item]) -> None:
    held = transcripts()
    held_turn(held, "r1", [user("a")], said("A"))
    held_turn(held, "r2", [user("go")], call(1), anchor="r1")
    assert held.recognise("s", prompt(steps, "r1"), 0) == []


# ------------------------------------------------------------------ references to items


def reference(name: str) -> Item:
    return {"type": "item_reference", "id": name}


def test_references_are_compared_by_their_items() -> None:
    """The Vercel AI SDK repeats stored output of a model in this way."""
    held = transcripts()
    held_turn(held, "r1", [user("a")], THOUGHT, said("A"), store=True)
    held_turn(held, "r2", [user("b")], said("B"), anchor="r1", store=True)
    history = [user("a"), reference("rs_1"), reference("msg_A"), user("b"), reference("msg_B")]
    for _ in range(2):
        asked = prompt([*history, user("c")], None, store=True)
        match = recognised(held, asked)
        assert (match.node.response_id, match.repeated) == ("r2", 5)
        assert sent(reduce(asked, match)) == [user("c")]
    for wrong in (reference("msg_B"), reference("msg_X"), {"id": "rs_1"}):
        other = prompt([*history[:2], wrong, *history[3:], user("c")], None, store=True)
        assert held.recognise("s", other, 0) == []


def test_references_are_resolved_where_a_context_is_rebuilt() -> None:
    held = transcripts()
    node = held_turn(held, "r1", [user("a")], said("A"), store=True)
    asked = prompt([reference("msg_A"), user("b"), reference("msg_X")], "r1", store=True)
    resolve(node, asked)
    expansion = expand(node, asked)
    assert sent(expansion.frame)[2:] == [said("A"), user("b"), reference("msg_X")]
    assert expansion.proof.opaque == 1
    asked = prompt([reference("msg_A"), user("b")], "r1", store=True)
    resolve(node, asked)
    more = held.put("s", "r2", asked, raw(said("B")), 0)
    assert more is not None
    assert more.readable
    assert b"item_reference" not in more.text()


def test_an_item_id_used_twice_is_unknown() -> None:
    """Some upstreams number the items of each response from the start."""
    held = transcripts()
    again = {**said("B"), "id": "msg_A"}
    held_turn(held, "r1", [user("a")], said("A"), store=True)
    node = held_turn(held, "r2", [user("b")], again, anchor="r1", store=True)
    asked = prompt([reference("msg_A"), user("c")], "r2", store=True)
    resolve(node, asked)
    assert expand(node, asked).proof.opaque == 1


# ------------------------------------------------------------------ compaction

COMPACTED = {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAA"}


def kinds(text: bytes) -> list[str]:
    return [item.get("type", "message") for item in json.loads(b"[%b]" % text)]


def compacted(held: Transcripts) -> Node:
    """Two turns, the second of which compacts, and a third."""
    held_turn(held, "r1", [user("a")], said("A"))
    held_turn(held, "r2", [user("b")], COMPACTED, said("B"), anchor="r1")
    return held_turn(held, "r3", [user("c")], said("C"), anchor="r2")


def test_a_rebuild_begins_at_the_latest_compaction() -> None:
    held = transcripts()
    node = compacted(held)
    assert kinds(node.text()) == ["compaction", "message", "message", "message"]
    assert kinds(node.text(whole=True)) == ["message"] * 3 + ["compaction"] + ["message"] * 3
    again = {**COMPACTED, "id": "cmp_2"}
    for place, output in enumerate(([again, said("D")], [said("D"), again])):
        latest = held_turn(held, f"x{place}", [user("d")], *output, anchor="r3")
        assert kinds(latest.text()) == ["compaction", "message"][: 2 - place]
        assert latest.parent is node


def test_a_compaction_in_the_input_keeps_the_items_before_it() -> None:
    """The items before it are meant to be read: the window of /responses/compact is of
    this kind."""
    held = transcripts()
    window = [user("kept"), {**COMPACTED, "id": None}, user("b")]
    node = held_turn(held, "r1", window, said("B"))
    assert kinds(node.text()) == ["message", "compaction", "message", "message"]


def test_a_call_before_the_compaction_is_kept_for_its_output() -> None:
    held = transcripts()
    node = held_turn(held, "r1", [user("a")], call(1), COMPACTED)
    with_output = expand(node, prompt([result(1)], "r1"))
    assert with_output.proof.self_contained
    assert [item.get("type") for item in sent(with_output.frame)][1:] == [
        "function_call", "compaction", "function_call_output",
    ]  # fmt: skip
    assert [item.get("type") for item in sent(expand(node, prompt([user("b")], "r1")).frame)] == [
        "compaction", None,
    ]  # fmt: skip


@pytest.mark.parametrize("pruned", [True, False])
def test_histories_are_recognised_with_and_without_compacted_items(pruned: bool) -> None:
    held = transcripts()
    node = compacted(held)
    before = [user("a"), echo("A"), user("b")]
    after = [COMPACTED, echo("B"), user("c"), echo("C")]
    history = after if pruned else [*before, *after]
    for number in range(3):
        asked = prompt([*history, user(f"q{number}")])
        match = recognised(held, asked)
        assert (match.node, match.repeated) == (node, len(history))
        name = f"next{number}"
        more = held.put("s", name, asked, raw(said(name)), 0, match=match)
        assert more is not None
        node, history = more, [*history, user(f"q{number}"), echo(name)]
        assert kinds(node.text())[0] == "compaction"


def test_items_kept_beside_a_compaction_are_compared() -> None:
    held = transcripts()
    compacted(held)
    after = [COMPACTED, echo("B"), user("c"), echo("C"), user("d")]
    assert held.recognise("s", prompt([user("kept"), *after]), 0) == []
    assert (
        held.recognise("s", prompt([{**COMPACTED, "encrypted_content": "x"}, *after[1:]]), 0) == []
    )


# ------------------------------------------------------------------ one id for many responses


def test_an_id_for_a_whole_chain_names_its_end() -> None:
    held = transcripts()
    held_turn(held, "same", [user("a")], said("A"))
    held_turn(held, "same", [user("b")], said("B"), anchor="same")
    node = held_turn(held, "same", [user("c")], said("C"), anchor="same")
    assert held.get("s", "same", 0) is node
    assert [read(item)[1] for item in json.loads(b"[%b]" % node.text())] == [*"aAbBcC"]
    assert len(held) == 3
    # A history is not anchored to a response without an id.
    assert held.recognise("s", prompt([*HISTORY, user("x")]), 0) == []
    assert recognised(held, prompt([*HISTORY, user("c"), echo("C"), user("d")])).node is node
    assert held.expire(AGE) == 3
    assert held.size == len(held) == 0


def test_an_id_for_a_whole_chain_of_histories() -> None:
    held = transcripts()
    history: list[Item] = []
    for number, text in enumerate("abc", 1):
        asked = prompt([*history, user(text)])
        matches = held.recognise("s", asked, 0)
        match = matches[0] if matches else None
        assert (match is None) is (text == "a")
        node = held.put("s", "same", asked, raw(said(text.upper())), 0, match=match)
        assert node is not None
        assert len(node.path()) == number
        history += [user(text), echo(text.upper())]


def test_a_context_that_ends_within_another_input_is_found() -> None:
    held = transcripts()
    held_turn(held, "long", [*HISTORY[:2], user("b")], said("B"))
    short = held_turn(held, "short", HISTORY[:1], said("A"))
    match = recognised(held, prompt([*HISTORY[:2], user("b"), user("c")]))
    assert (match.node, match.repeated) == (short, 2)


def test_the_form_in_which_a_client_repeats_items_is_learnt() -> None:
    held = transcripts()
    node = linear(held)
    asked = prompt([*HISTORY, user("c")])
    assert recognised(held, asked).node is node
    assert all(each.wording is None for each in node.path())  # the template has it
    again = prompt([*HISTORY, user("d")])
    assert recognised(held, again).node is node
    other = prompt([user("a"), said("A"), user("b"), said("B"), user("d")])
    assert recognised(held, other).node is node
    assert all(each.wording is None for each in node.path())
    for _ in range(2):
        assert recognised(held, spaced(again)).node is node
        assert all(each.wording is not None for each in node.path())


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("written", [lambda given: given, spaced])
def test_a_learnt_form_does_not_hide_a_change(at: int, written: Callable[[Prompt], Prompt]) -> None:
    held = transcripts()
    linear(held)
    recognised(held, written(prompt([*HISTORY, user("c")])))
    changed = [dict(item) for item in HISTORY]
    changed[at]["content"] = changed[at]["content"].swapcase()  # of the same length
    assert held.recognise("s", written(prompt([*changed, user("c")])), 0) == []


# ------------------------------------------------------------------ against a naive model
#
# The content of an item. There are several encodings of it, and one function that reads all.

Meaning: TypeAlias = tuple[str, ...]


def ways(meaning: Meaning) -> list[Item]:
    """An item with that content, as an upstream sends it and as clients do."""
    kind, *words = meaning
    if kind == "user":
        part = {"type": "input_text", "text": words[0]}
        return [
            user(words[0]),
            {"type": "message", "content": [part], "role": "user"},
            {"content": [{**part, "prompt_cache_breakpoint": None}], "role": "user", "id": None},
        ]
    if kind == "said":
        return [
            said(words[0]),
            echo(words[0]),
            {"role": "assistant", "content": [{"text": words[0], "type": "output_text"}]},
        ]
    if kind == "thought":
        thought = {"type": "reasoning", "summary": [], "encrypted_content": words[0]}
        return [{"id": "rs_1", **thought}, {**thought, "content": None}]
    if kind == "call":
        made = {"type": "function_call", "call_id": words[0], "name": "f", "arguments": words[1]}
        return [{"id": "fc_1", "status": "completed", **made}, made]
    answer = {"type": "function_call_output", "call_id": words[0], "output": words[1]}
    return [answer, {**answer, "id": None, "status": "completed"}]


def read(item: Item) -> Meaning:
    """The content of an item in any encoding."""
    kind = item.get("type", "message")
    if kind == "message":
        content = item["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        return ("said" if item["role"] == "assistant" else "user", text)
    if kind == "reasoning":
        return ("thought", item["encrypted_content"])
    if kind == "function_call":
        return ("call", item["call_id"], item["arguments"])
    return ("answer", item["call_id"], item["output"])


def meanings_of(items: Sequence[Item]) -> tuple[Meaning, ...]:
    """The contents of ``items``; reasoning without content has none."""
    return tuple(read(item) for item in items if {**item, "id": "rs_1"} != THOUGHT)


words = st.sampled_from(["", "a", "b"])
numbers = st.sampled_from(["c1", "c2"])
asked_items = st.one_of(
    st.tuples(st.just("user"), words), st.tuples(st.just("answer"), numbers, words)
)
output_items = st.one_of(
    st.tuples(st.just("said"), words),
    st.tuples(st.just("thought"), words.filter(bool)),
    st.tuples(st.just("call"), numbers, words),
)


@attrs.frozen
class Known:
    """What the model knows of a response: its whole context, for ever."""

    scope: str
    name: str
    context: tuple[Meaning, ...]
    settings: str
    node: Node


class Model:
    """The tree of responses as a list of whole contexts."""

    def __init__(self, held: Transcripts) -> None:
        self.held = held
        self.known: dict[tuple[str, str], Known] = {}
        self.anchors: set[tuple[str, str]] = set()  # at which a turn was anchored

    def live(self, scope: str) -> Iterator[Known]:
        return (each for each in self.known.values() if each.scope == scope and each.node.held)

    def expected(
        self, scope: str, before: int, context: Sequence[Meaning], model: str
    ) -> list[str]:
        """The responses that were not tried as an anchor, with the longest context that ``context``
        extends beyond its first ``before`` items; the latest first."""
        fitting = [
            each
            for each in self.live(scope)
            if (scope, each.name) not in self.anchors
            and each.settings == model
            and before < len(each.context) < len(context)
            and each.context == tuple(context[: len(each.context)])
        ]
        longest = max((len(each.context) for each in fitting), default=0)
        return [each.name for each in fitting if len(each.context) == longest][::-1]

    def check(self, max_bytes: int, max_scope: int) -> None:
        """The stored transcripts are complete, and their accounted size is right."""
        total = 0
        for scope in {each.scope for each in self.known.values()}:
            live = list(self.live(scope))
            for each in live:
                assert all(node.held for node in each.node.path())
                text = json.loads(b"[%b]" % each.node.text())
                assert tuple(map(read, text)) == each.context
            size = sum(each.node.size for each in live)
            if live:
                size += TREE_OVERHEAD + live[0].node.table.size
            assert self.held.scope_size(scope) == size <= max_scope
            total += size
        assert self.held.size == total <= max_bytes
        assert len(self.held) == sum(each.node.held for each in self.known.values())


@given(st.data())
@settings(max_examples=120)
def test_the_tree_agrees_with_a_list_of_contexts(data: st.DataObject) -> None:
    draw: Callable[..., Any] = data.draw
    small = NODE_OVERHEAD + 250
    max_scope = draw(st.sampled_from([PLENTY, SCOPE + 6 * small]))
    max_bytes = draw(st.sampled_from([PLENTY, 2 * SCOPE + 8 * small]))
    held = transcripts(max_bytes, AGE, max_scope, draw(st.sampled_from([64, SHORTEST])))
    steady = draw(st.booleans())  # the client encodes the same item in the same way each time
    model = Model(held)
    now = 0

    def word(meanings: Sequence[Meaning]) -> list[Item]:
        if steady:
            return [ways(meaning)[0] for meaning in meanings]
        return strewn([draw(st.sampled_from(ways(meaning))) for meaning in meanings])

    def strewn(items: list[Item]) -> list[Item]:
        """``items``, with reasoning without content somewhere among them."""
        if draw(st.integers(0, 4)) == 0:
            items.insert(draw(st.integers(0, len(items))), dict(THOUGHT))
        return items

    for number in range(draw(st.integers(1, 14))):
        now += draw(st.sampled_from([0, 1, 300]))
        scope = draw(st.sampled_from(["s", "t"]))
        name = f"r{number}"
        settled = draw(st.sampled_from(["m", "m", "n"]))
        new = tuple(draw(st.lists(asked_items, max_size=2)))
        output = tuple(draw(st.lists(output_items, max_size=2)))
        base = draw(st.sampled_from([None, *model.known.values()]))
        if draw(st.booleans()):  # the whole history, of a response that may be evicted or foreign
            context = base.context if base is not None else ()
            if draw(st.integers(0, 4)) == 0:
                context = context[: draw(st.integers(0, len(context)))]
            full = context + new
            before = 0
            asked = repeated(held, prompt(word(full), None, model=settled), scope)
        else:  # the new items, after a response that may be evicted or foreign
            anchor = base.name if base is not None else "r?"
            mine = model.known.get((scope, anchor))
            again: tuple[Meaning, ...] = ()
            if mine is not None and draw(st.booleans()):  # and some items that followed it already
                below = [e.context for e in model.live(scope) if mine.node in e.node.path()]
                again = draw(st.sampled_from(below or [mine.context]))[len(mine.context) :]
            new = again + new
            asked = prompt(word(new), anchor, model=settled)
            parent = held.get(scope, anchor, now)
            assert parent is (mine.node if mine is not None and mine.node.held else None)
            if parent is None:
                assert held.recognise(scope, asked, now) == []
                assert held.put(scope, name, asked, [], now) is None
                continue
            assert mine is not None
            before = len(mine.context)
            full = mine.context + new
            assert meanings_of(sent(expand(parent, asked).frame)) == full
        held.expire(now)
        expected = model.expected(scope, before, full, settled)
        matches = held.recognise(scope, asked, now)
        assert [match.node.response_id for match in matches] == expected
        match = draw(st.sampled_from([None, *matches]))
        if match is not None:
            frame = reduce(asked, match)
            reduced = Prompt(parse_create(frame))
            assert reduced.items
            assert reduced.request.previous_response_id == match.node.response_id
            shown = sent(expand(match.node, reduced).frame)
            assert meanings_of(shown) == full
            model.anchors.add((scope, match.node.response_id))
        elif asked.anchor is not None:
            model.anchors.add((scope, asked.anchor))
        said = raw(*strewn([ways(each)[0] for each in output]))
        node = held.put(scope, name, asked, said, now, match=match)
        if node is not None:
            known = Known(scope, name, full + output, settled, node)
            model.known[scope, name] = known
            assert held.get(scope, name, now) is node
        model.check(max_bytes, max_scope)
        if draw(st.integers(0, 5)) == 0:
            now += 500
            held.expire(now)
            due = held.next_expiry()
            assert due is None or due > now
            model.check(max_bytes, max_scope)
    held.expire(now + 2 * AGE)
    assert held.size == len(held) == 0


@given(st.data(), st.lists(st.tuples(asked_items, output_items), min_size=1, max_size=6))
@settings(max_examples=100)
def test_every_form_is_recognised_and_no_other_content(
    data: st.DataObject, turns: list[tuple[Meaning, Meaning]]
) -> None:
    held = transcripts()
    anchor = None
    for number, (asked, answered) in enumerate(turns):
        node = held_turn(held, f"r{number}", ways(asked)[:1], ways(answered)[0], anchor=anchor)
        anchor = node.response_id
    history = [meaning for turn in turns for meaning in turn]

    def request(meanings: Sequence[Meaning]) -> Prompt:
        items = [data.draw(st.sampled_from(ways(meaning))) for meaning in meanings]
        asked = prompt([*items, user("more")])
        return spaced(asked) if data.draw(st.integers(0, 2)) == 0 else asked

    for _ in range(4):  # encodings of the last round are known, new ones are not
        (match,) = held.recognise("s", request(history), 0)
        assert match.repeated == len(history)
    at = data.draw(st.integers(0, len(history) - 1))
    changed = [*history]
    changed[at] = (*changed[at][:-1], changed[at][-1] + "!")
    assert held.recognise("s", request(changed), 0) == []


# ------------------------------------------------------------------ repeated bytes


def steps(count: int) -> list[Item]:
    """A history of ``count`` turns."""
    return [each for n in range(count) for each in (user(f"question {n}"), echo(f"answer {n}"))]


def repeating(held: Transcripts, turns: int, key: str | None = None) -> list[Prompt]:
    """A client that sends its whole history each time; its requests, as they were read."""
    asked = []
    for n in range(turns):
        new = repeated(held, prompt([*steps(n), user(f"question {n}")], prompt_cache_key=key))
        asked.append(new)
        (match,) = held.recognise("s", new, n) if n else (None,)
        assert held.put("s", f"r{n}", new, raw(said(f"answer {n}")), n, match=match) is not None
    return asked


def test_items_in_the_same_bytes_are_not_read_again() -> None:
    held = transcripts(shortest_prefix=64)
    asked = repeating(held, 6)
    # The last but one answer is known as the client spells it: from the request after it.
    assert [each.known for each in asked] == [0, 0, 2, 4, 6, 8]
    for each in asked[2:]:
        with_all = Prompt(each.request)
        places = range(each.known, len(each.items))
        assert [each.items[n] for n in places] == [with_all.items[n] for n in places]
        assert each.text_from(each.known) == with_all.text_from(each.known)
        assert each.text_from(0) == with_all.text_from(0)
        held.recognise("s", with_all, 9)
        with_all.complete_chain()
        assert each.chain[each.known :] == with_all.chain[each.known :]
        assert each.repeats_answers() is with_all.repeats_answers() is True
        assert each.heads() == with_all.heads()
    plain = transcripts()
    repeating(plain, 6)
    for n in range(6):
        node, other = held.get("s", f"r{n}", 9), plain.get("s", f"r{n}", 9)
        assert node is not None
        assert other is not None
        assert (node.encoded, node.chain, node.end) == (other.encoded, other.chain, other.end)
    assert held.size - plain.size == PREFIX_OVERHEAD  # one for the whole path


@pytest.mark.parametrize("key", [None, "k"])
def test_whether_answers_are_repeated_is_known_of_a_prefix(key: str | None) -> None:
    held = transcripts(shortest_prefix=64)
    *_, last = repeating(held, 4, key)
    assert last.known == 4
    assert last.repeats_answers() is True
    assert last.known == (0 if key is None else 4)  # read again only if it was not noted


def test_other_bytes_are_read() -> None:
    held = transcripts(shortest_prefix=64)
    repeating(held, 4)
    items = [*steps(3), user("question 3")]
    known = prompt(items)
    assert repeated(held, known).known == 6
    assert repeated(held, prompt(items, store=True)).known == 0
    assert repeated(held, prompt(items, "r1")).known == 0
    assert repeated(held, spaced(known)).known == 0
    assert repeated(held, known, "other").known == 0
    assert repeated(held, prompt(steps(2))).known == 0  # nothing after it
    assert repeated(held, prompt(steps(1) + items)).known == 0
    for change in (user("question X"), user("question 0 "), echo("question 0")):
        assert repeated(held, prompt([change, *items[1:]])).known == 0
    body = known.request.frame.replace(b',{"role":"user","content":"question 3"}', b', {"a":1}')
    odd = repeated(held, Prompt(parse_create(body)))
    assert (odd.known, len(odd.items)) == (0, 7)
    # White space outside the input does not matter.
    body = known.request.frame.replace(b'"input":', b'"input": ')
    assert repeated(held, Prompt(parse_create(body))).known == 6


def test_a_known_beginning_that_may_not_be_used_is_read() -> None:
    held = transcripts(shortest_prefix=64)
    repeating(held, 5)
    items = [*steps(4), user("another question")]
    asked = repeated(held, prompt(items))
    assert asked.known == 8
    assert held.recognise("s", asked, 9) == held.recognise("s", prompt(items), 9) == []
    assert asked.known == 0  # r3 was continued, and so were all before it
    node = held.get("s", "r1", 9)
    assert node is not None
    node.continued = False
    again = repeated(held, prompt(items))
    (match,) = held.recognise("s", again, 9)
    assert (match.node, match.repeated) == (node, 4)


def test_a_known_beginning_can_be_evicted_before_its_turn_ends() -> None:
    held = transcripts(shortest_prefix=64)
    repeating(held, 4)
    asked = repeated(held, prompt([*steps(3), user("question 3")]))
    assert asked.known == 6
    held.expire(10 * AGE)
    assert len(held) == 0
    node = held.put("s", "r9", asked, raw(said("answer 9")), 10 * AGE)
    assert node is not None
    assert node.items == 8
    assert repeated(held, prompt([*steps(3), user("question 3")])).known == 0
    assert held.size == held.scope_size("s")


def test_the_prefixes_of_many_branches_are_bounded() -> None:
    held = transcripts(shortest_prefix=64)
    first = "x" * 200
    for n in range(20):
        start = [user(first), user(f"branch {n}")]
        node = held.put("s", f"a{n}", prompt(start), raw(said("A")), 0)
        more = [*start, echo("A"), user("b")]
        held.put("s", f"b{n}", prompt(more), raw(said("B")), 0)
        assert node is not None
        assert node.prefix is not None
    last = [user(first), user("branch 19"), echo("A"), user("b")]
    assert repeated(held, prompt(last)).known == 3
    held.expire(10 * AGE)
    assert held.size == 0
