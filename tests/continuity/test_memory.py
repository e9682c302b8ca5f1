"""Tests of continuity/memory.py: what is looked up for a turn, and what is recorded."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.continuity.memory import Memory, TurnContext
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.events import Standing
from bridgecore.wire.requests import parse_create

Item = dict[str, Any]
SCOPE = "scope"


@attrs.define
class Book:
    """A memory, used as a bridge uses it."""

    memory: Memory

    def ask(self, items: list[Item], anchor: str | None = None, **members: object) -> TurnContext:
        body: Item = {"model": "m", "store": False, "input": items, **members}
        if anchor is not None:
            body["previous_response_id"] = anchor
        headers = body.pop("headers", [])
        return self.memory.recall(SCOPE, parse_create(json.dumps(body).encode()), headers, 0)

    def hold(
        self, recall: TurnContext, *ids: str, output: list[Item], stored: bool | None = None
    ) -> None:
        items: Any = [json.dumps(item).encode() for item in output]
        self.memory.remember(recall, ids, items, 1, 10, 0, stored=stored)


def book(continuity: Continuity = Continuity.TRANSCRIPT) -> Book:
    config = Config(upstream=UpstreamUrl.parse("ws://up/"), continuity=continuity)
    return Book(Memory(config))


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def said(text: str) -> Item:
    return {"role": "assistant", "type": "message", "content": text}


def sent(recall: TurnContext, form: RequestForm) -> Item:
    frame: Item = json.loads(recall.frame(form))
    return frame


# ------------------------------------------------------------------ ids


@pytest.mark.parametrize("continuity", Continuity)
@pytest.mark.parametrize("name", ["completed", "created"])
def test_both_ids_name_the_response(name: str, continuity: Continuity) -> None:
    held = book(continuity)
    held.hold(held.ask([user("a")]), "completed", "created", output=[said("A")])
    recall = held.ask([user("b")], name)
    assert recall.anchor == "completed"  # the response cached on the connection
    # the id that the client sent
    assert sent(recall, RequestForm.AS_IS)["previous_response_id"] == name
    held_here = continuity is Continuity.TRANSCRIPT
    assert recall.standing is (Standing.HELD if held_here else Standing.BOUND)
    if held_here:
        full = sent(recall, RequestForm.REHYDRATED)
        assert "previous_response_id" not in full
        assert full["input"] == [user("a"), said("A"), user("b")]
        held.hold(recall, "r2", output=[said("B")])
        assert held.ask([user("c")], "r2").standing is Standing.HELD


def test_an_alias_set_under_one_id_is_found_under_both() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "completed", "created", output=[said("A")])
    held.memory.belongs(held.ask([user("b")], "created"), 7)
    for name in ("created", "completed"):
        recall = held.ask([user("b")], name)
        assert recall.alias is not None
        assert recall.alias.conversation == 7


def test_ids_of_any_length_take_little() -> None:
    held = book(Continuity.PASSTHROUGH)
    for number in range(3):
        name = f"{number}" * 4096  # the longest that is accepted
        held.memory.belongs(held.ask([user("a")], name), number)
        recall = held.ask([user("a")], name)
        assert recall.alias is not None
        assert recall.alias.conversation == number
    aliases, _ = held.memory.snapshot()
    assert len(repr(aliases)) < 1000


# ------------------------------------------------------------------ what the response says


@pytest.mark.parametrize(
    ("asked", "told", "standing"),
    [
        (True, None, Standing.STORED),
        (True, False, Standing.BOUND),
        (False, None, Standing.BOUND),
        (False, True, Standing.STORED),
    ],
)
def test_the_store_flag_of_the_response_overrides_the_request(
    asked: bool, told: bool | None, standing: Standing
) -> None:
    for continuity in Continuity:
        held = book(continuity)
        held.hold(held.ask([user("a")], store=asked), "r1", output=[said("A")], stored=told)
        recall = held.ask([user("b")], "r1", store=asked)
        assert recall.stored is (standing is Standing.STORED)
        if continuity is Continuity.TRANSCRIPT:
            held_too = standing is Standing.STORED
            assert recall.standing is (Standing.HELD_STORED if held_too else Standing.HELD)
        else:
            assert recall.standing is standing


# ------------------------------------------------------------------ what the upstream refused

HISTORY = [user("a"), said("A"), user("b")]


def test_an_anchor_that_was_refused_is_injected_nowhere() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "completed", "created", output=[said("A")])
    recall = held.ask(HISTORY)
    (candidate,) = recall.candidates
    recall.inject(candidate)
    assert (recall.standing, recall.anchor) == (Standing.INJECTED, "completed")
    held.memory.injection_refused(recall)
    assert sent(recall, RequestForm.CLIENT_FULL)["input"] == HISTORY
    for again in (held.ask(HISTORY), held.ask([*HISTORY[:2], user("c")])):
        assert again.candidates == []
        assert again.standing is Standing.UNANCHORED
    for name in ("completed", "created"):  # the client may still name it
        assert held.ask([user("b")], name).standing is Standing.HELD


@pytest.mark.parametrize("store", [True, False])
def test_a_rebuild_that_was_refused_is_not_planned_again(store: bool) -> None:
    held = book()
    first = held.ask([user("a")], store=store)
    held.hold(first, "completed", "created", output=[said("A")])
    recall = held.ask([user("b")], "created", store=store)
    assert recall.standing is (Standing.HELD_STORED if store else Standing.HELD)
    held.memory.rebuild_refused(recall)
    for name in ("completed", "created"):
        again = held.ask([user("b")], name, store=store)
        assert again.standing is (Standing.STORED if store else Standing.BOUND)
    assert not held.memory.keeps(SCOPE, "completed", 0) or store


def test_refusals_without_injection_or_rebuild_change_nothing() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "r1", output=[said("A")])
    recall = held.ask(HISTORY)
    held.memory.injection_refused(recall)
    held.memory.rebuild_refused(recall)
    assert held.ask(HISTORY).candidates
    assert held.ask([user("b")], "r1").standing is Standing.HELD


# ------------------------------------------------------------------ anchored turns that repeat


def test_an_anchored_turn_is_rebuilt_from_its_own_anchor() -> None:
    """Its own anchor is not cached either: its items follow the context of that anchor."""
    held = book()
    held.hold(held.ask([user("a")]), "r1", output=[said("A")])
    held.hold(held.ask([user("b")], "r1"), "r2", output=[said("B")])
    steps = [user("b"), said("B"), user("c")]
    recall = held.ask(steps, "r1")
    assert (recall.standing, recall.anchor) == (Standing.HELD, "r1")
    (candidate,) = recall.candidates
    recall.inject(candidate)
    assert (recall.standing, recall.anchor) == (Standing.INJECTED, "r2")
    short = sent(recall, RequestForm.AS_IS)
    assert (short["previous_response_id"], short["input"]) == ("r2", [user("c")])
    full = sent(recall, RequestForm.CLIENT_FULL)
    assert "previous_response_id" not in full
    assert full["input"] == [user("a"), said("A"), *steps]


def test_an_anchored_turn_that_cannot_be_rebuilt_is_not_reduced() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "r1", output=[said("A")])
    held.hold(held.ask([user("b")], "r1"), "r2", output=[said("B")])
    steps = [user("b"), said("B"), {"type": "item_reference", "id": "msg_x"}]
    assert held.ask(steps, "r1").candidates == ()


def test_an_anchored_turn_that_refers_to_the_steps_since_is_reduced() -> None:
    """The Vercel AI SDK repeats stored steps in this way."""
    held = book()
    call = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    first = {"id": "msg_1", **said("A")}
    held.hold(held.ask([user("a")], store=True), "r1", output=[first])
    held.hold(held.ask([user("b")], "r1", store=True), "r2", output=[call])
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    steps = [user("b"), {"type": "item_reference", "id": "fc_1"}, result]
    recall = held.ask(steps, "r1", store=True)
    (candidate,) = recall.candidates
    recall.inject(candidate)
    assert sent(recall, RequestForm.AS_IS)["input"] == [result]
    assert sent(recall, RequestForm.CLIENT_FULL)["input"] == [
        user("a"),
        first,
        user("b"),
        call,
        result,
    ]


def test_a_reference_to_a_held_item_can_be_rebuilt() -> None:
    held = book()
    first = {"id": "msg_1", **said("A")}
    held.hold(held.ask([user("a")], store=True), "r1", output=[first])
    for name, standing in (("msg_1", Standing.HELD_STORED), ("msg_2", Standing.STORED)):
        reference = {"type": "item_reference", "id": name}
        recall = held.ask([reference, user("b")], "r1", store=True)
        assert recall.standing is standing
    for untyped in ({}, {"type": "item_reference"}):
        reference = {**untyped, "id": "msg_1"}
        recall = held.ask([reference, user("b")], "r1", store=True)
        assert sent(recall, RequestForm.REHYDRATED)["input"] == [user("a"), first, first, user("b")]
        assert sent(recall, RequestForm.AS_IS)["input"] == [reference, user("b")]


# ------------------------------------------------------------------ families


def test_families_are_of_one_key_and_one_thread() -> None:
    held = book()

    def key(**members: Any) -> object:
        family = held.ask([user("a")], **members).family
        return None if family is None else family.key

    assert key() is None
    assert key(prompt_cache_key=None) is None
    assert key(prompt_cache_key="k") == key(prompt_cache_key="k", model="n")
    assert key(prompt_cache_key="k") != key(prompt_cache_key="l")
    thread = [(b"thread-id", b"t")]
    assert key(prompt_cache_key="k", headers=thread) != key(prompt_cache_key="k")


def test_the_turns_of_an_upstreams_conversation_are_a_family() -> None:
    held = book()

    def key(**members: Any) -> object:
        family = held.ask([user("a")], **members).family
        return None if family is None else family.key

    assert key(conversation=7) is None
    assert key(conversation="c") == key(conversation={"id": "c"}, model="n")
    assert key(conversation="c", prompt_cache_key="k") == key(conversation="c")
    assert len({key(conversation="c"), key(conversation="d"), key(prompt_cache_key="c")}) == 3
    thread = [(b"thread-id", b"t")]
    assert key(conversation="c", headers=thread) != key(conversation="c")


@pytest.mark.parametrize("continuity", Continuity)
def test_only_a_full_history_counts_as_repeating(
    continuity: Continuity,
) -> None:
    held = book(continuity)
    for items, anchor, repeats in [
        ([user("a")], None, False),
        (HISTORY, None, True),
        (HISTORY, "r1", False),
    ]:
        family = held.ask(items, anchor, prompt_cache_key="k").family
        assert family is not None
        assert family.repeats is repeats
        # A turn in a conversation goes on with that, whatever its items are.
        family = held.ask(items, anchor, conversation="c").family
        assert family is not None
        assert family.repeats is (anchor is None)


# ------------------------------------------------------------------ deleted responses


@pytest.mark.parametrize("continuity", Continuity)
@pytest.mark.parametrize("name", ["completed", "created"])
def test_a_deleted_response_is_unknown_under_both_ids(name: str, continuity: Continuity) -> None:
    held = book(continuity)
    held.hold(held.ask([user("a")]), "completed", "created", output=[said("A")])
    held.memory.forget("another scope", name, 0)
    assert held.ask([user("b")], name).named is not None
    held.memory.forget(SCOPE, name, 0)
    for each in ("completed", "created"):
        recall = held.ask([user("b")], each)
        assert (recall.standing, recall.anchor, recall.node) == (Standing.UNKNOWN, each, None)
        held.memory.belongs(recall, 7)
        assert held.ask([user("b")], each).alias is None
    assert held.memory.size == 0


def test_what_continues_a_deleted_response_keeps_its_context() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "one", output=[said("A")])
    held.hold(held.ask([user("b")], "one"), "two", output=[said("B")])
    held.memory.forget(SCOPE, "one", 0)
    assert held.ask([user("c")], "one").node is None
    full = sent(held.ask([user("c")], "two"), RequestForm.REHYDRATED)
    assert [item["content"] for item in full["input"]] == ["a", "A", "b", "B", "c"]
    # A history that goes on after the deleted response is not anchored there.
    assert held.ask([user("a"), said("A"), user("d")]).candidates == []


def test_a_deleted_response_does_not_come_back_from_a_store() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "one", output=[said("A")])
    held.hold(held.ask([user("b")], "one"), "two", output=[said("B")])
    unstored = held.memory.unstored(SCOPE, ["two"], 0)
    assert unstored is not None
    path = [response.payload for response in unstored.responses]
    other = book()
    other.memory.forget(SCOPE, "one", 0)
    other.memory.restore(SCOPE, path[:1], 1, 0)
    other.memory.learn(SCOPE, "one", "one", stored=True)
    assert other.ask([user("c")], "one").alias is None
    other.memory.restore(SCOPE, path, 1, 0)
    assert other.ask([user("c")], "one").node is None
    assert other.ask([user("a"), said("A"), user("d")]).candidates == []
    assert other.ask([user("c")], "two").node is not None


def test_a_new_response_under_a_deleted_id_can_be_continued() -> None:
    held = book()
    held.hold(held.ask([user("a")]), "one", output=[said("A")])
    held.memory.forget(SCOPE, "one", 0)
    held.memory.forget(SCOPE, "one", 0)
    held.hold(held.ask([user("b")]), "one", output=[said("B")])
    full = sent(held.ask([user("c")], "one"), RequestForm.REHYDRATED)
    assert [item["content"] for item in full["input"]] == ["b", "B", "c"]
