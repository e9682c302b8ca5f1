"""Conversations that the upstream keeps (``/v1/conversations``), through whole endpoints.

What belongs here: turns with ``conversation``, whose context comes from the upstream and not from
the bridge, whatever becomes of connections; and the items as a client lists them afterwards.
"""

from __future__ import annotations

from typing import Any

import pytest

from bridgecore.config import Continuity
from bridgecore.testing import EVERY, Abort, CloseWith, Emulator, Fault, FaultPlan, Point
from tests.endpoint.test_resources import OTHER, call
from tests.endpoint_clients import assert_empty, context, output_for, strike, user
from tests.endpoint_world import SECOND, Json, World, in_segments, read_answers

URLS = ["ws://up/v1/responses", "http://up/v1"]


@pytest.fixture(params=URLS, ids=["websocket", "http"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the upstream is: by WebSocket or over HTTP only."""
    return str(request.param)


@pytest.fixture(params=list(Continuity), ids=lambda one: one.value)
def continuity(request: pytest.FixtureRequest) -> Continuity:
    """What the bridge keeps of turns."""
    found: Continuity = request.param
    return found


def world(**settings: Any) -> World:
    settings.setdefault("continuity", Continuity.TRANSCRIPT)
    return World(split=in_segments, **settings)


def begin(w: World, *items: Json) -> str:
    """The id of a new conversation."""
    made = call(w, "POST", "/v1/conversations", {"items": list(items)}).json
    return str(made["id"])


def listed(w: World, name: str) -> list[str]:
    """The items of a conversation, as a client lists them: their roles or types, and texts."""
    path = f"/v1/conversations/{name}/items?order=asc&limit=100"
    found = []
    for item in call(w, "GET", path).json["data"]:
        texts = [part["text"] for part in item.get("content", [])]
        what = item.get("role", item["type"])
        found.append(": ".join([what, *texts, *filter(None, [item.get("output")])]))
    return found


def names(w: World, name: str) -> list[object]:
    """The ``conversation`` of each create frame that the upstream received."""
    assert all("previous_response_id" not in frame for frame in w.frames)
    return [frame["conversation"] for frame in w.frames]


@pytest.mark.parametrize("store", [True, False])
def test_the_context_comes_from_the_upstream_after_each_loss(
    url: str, continuity: Continuity, store: bool
) -> None:
    w = world(url=url, continuity=continuity)
    w.emulator.faults = FaultPlan().add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    name = begin(w, user("before"))
    said: Json = {"conversation": name, "store": store}
    assert w.ask("one", **said).text == "turn 2: one"
    (called,) = w.ask("call tool f", **said).response["output"]
    answer = w.ask([output_for(called, "sun")], **{**said, "conversation": {"id": name}})
    assert answer.text == "turn 3: f returned sun"
    assert answer.response["conversation"] == {"id": name}
    assert w.ask("four", **said).text == "turn 4: four"
    # Nothing was added to a request, or taken from it, and nothing was sent twice.
    assert names(w, name) == [name, name, {"id": name}, name]
    assert [len(request.input) for request in w.emulator.requests] == [1] * 4
    assert listed(w, name) == [
        "user: before",
        "user: one",
        "assistant: turn 2: one",
        "user: call tool f",
        "function_call",
        "function_call_output: sun",
        "assistant: turn 3: f returned sun",
        "user: four",
        "assistant: turn 4: four",
    ]
    assert_empty(w)


@pytest.mark.parametrize("loss", [CloseWith(1001), Abort()], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "point",
    [Point.BEFORE_CREATED, Point.AFTER_CREATED, Point.MID_OUTPUT, Point.BEFORE_TERMINAL],
    ids=lambda point: point.name.lower(),
)
def test_a_turn_that_was_cut_off_is_in_the_conversation_once(
    url: str, point: Point, loss: CloseWith | Abort
) -> None:
    """The upstream adds what it has completed. The bridge sends nothing again by itself: only the
    upstream knows what is in the conversation, so the client's retry is the first one."""
    w = world(url=url)
    name = begin(w)
    assert w.ask("one", conversation=name, store=False).text == "turn 1: one"
    strike(w, point, loss)
    lost = w.ask("two", conversation=name, store=False)
    if point is Point.BEFORE_CREATED:
        assert lost.status == 502
    else:
        assert lost.response["status"] == "failed"
    assert len(w.frames) == 2
    w.emulator.faults.clear()
    w.advance(1)
    assert w.ask("two", conversation=name, store=False).text == "turn 2: two"
    assert listed(w, name) == [
        "user: one",
        "assistant: turn 1: one",
        "user: two",
        "assistant: turn 2: two",
    ]
    assert_empty(w)


def test_a_connection_past_its_lifetime_is_replaced_within_the_turn() -> None:
    """The upstream refuses the turn there, so that it is in the conversation once."""
    w = world()
    name = begin(w)
    w.ask("one", conversation=name, store=False)
    w.emulator.lifetime = SECOND
    w.advance(2)
    assert w.ask("two", conversation=name, store=False).text == "turn 2: two"
    assert names(w, name) == [name] * 3
    assert len(listed(w, name)) == 4


def test_a_client_that_leaves_does_not_keep_the_conversation_locked(url: str) -> None:
    """Its retry is answered at once, and what it left is not in the conversation."""
    w = world(url=url, emulator=Emulator(delta_interval=SECOND))
    name = begin(w)
    left = w.start("one two three", conversation=name, store=False)
    w.advance(1.5)
    assert b"response.output_text.delta" in left.received
    left.abort()
    again = w.start("one", conversation=name, store=False)
    w.advance(10)
    assert w.read(again).text == "turn 1: one"
    assert listed(w, name) == ["user: one", "assistant: turn 1: one"]


def test_the_turns_of_a_conversation_use_one_connection(continuity: Continuity) -> None:
    w = world(continuity=continuity)
    one, two = begin(w), begin(w)
    for n in range(5):
        assert w.ask(f"{n}", conversation=one, store=False).status == 200
        assert w.ask(f"{n}", conversation={"id": two}, store=False).status == 200
        assert w.ask(f"{n}", conversation={"id": one}, store=False).status == 200
    used: dict[str, set[int]] = {}
    for frame in w.emulator.requests:
        named = frame.body["conversation"]
        used.setdefault(named["id"] if isinstance(named, dict) else named, set()).add(frame.conn)
    assert [len(used[name]) for name in (one, two)] == [1, 1]
    assert not used[one] & used[two]
    assert_empty(w)


def test_a_conversation_does_not_take_the_connection_of_a_response_that_is_needed_there() -> None:
    """Nothing is held, so only its connection can continue a response that is not stored."""
    w = world(continuity=Continuity.PASSTHROUGH)
    name = begin(w)
    first = w.ask("a", store=False, prompt_cache_key="k").response["id"]
    assert w.ask("b", conversation=name, store=False, prompt_cache_key="k").status == 200
    again = w.ask("c", previous_response_id=first, store=False, prompt_cache_key="k")
    assert again.text == "turn 2: c"


def test_a_history_in_a_conversation_is_sent_as_it_is() -> None:
    """It comes after the items of the conversation, so an anchor cannot stand in its place."""
    w = world()
    name = begin(w, user("before"))
    told = w.ask("a", store=False).response
    history = [user("a"), *told["output"], user("b")]
    answer = w.ask(history, conversation=name, store=False)
    assert answer.text == "turn 3: b"
    assert w.frames[-1]["input"] == history
    assert context(w.emulator.requests[-1])[0] == ("user", "before")


def test_a_response_of_a_conversation_is_continued_by_its_id(url: str) -> None:
    w = world(url=url)
    name = begin(w, user("before"))
    first = w.ask("one", conversation=name, store=True).response["id"]
    w.advance(2000)  # its connection is gone
    again = w.ask("two", previous_response_id=first, store=True)
    assert again.text == "turn 3: two"
    assert "conversation" not in again.response
    assert len(listed(w, name)) == 3


# ------------------------------------------------------------------ refusals


def test_an_unknown_conversation_is_refused_in_the_upstreams_words(url: str) -> None:
    w = world(url=url)
    mine = begin(w)
    for name, key in [("conv_none", "sk-secret-one"), (mine, OTHER)]:
        refused = w.ask("hi", conversation=name, store=False, key=key)
        assert refused.status == 404
        assert refused.error["message"] == f"Conversation with id '{name}' not found."
        assert refused.error["type"] == "invalid_request_error"
    assert len(w.frames) == 2
    assert_empty(w)


@pytest.mark.parametrize("known", [True, False])
def test_a_conversation_excludes_a_previous_response(url: str, known: bool) -> None:
    w = world(url=url)
    name = begin(w)
    first = w.ask("one", store=True).response["id"] if known else "resp_none"
    refused = w.ask("two", conversation=name, previous_response_id=first, store=True)
    assert (refused.status, refused.error["code"]) == (400, "mutually_exclusive_parameters")
    assert len(w.frames) == 1 + known


def test_a_conversation_in_which_a_turn_runs_is_locked(url: str) -> None:
    w = world(url=url, emulator=Emulator(delta_interval=SECOND))
    name = begin(w)
    running = w.start("one", conversation=name, store=False)
    refused = w.ask("two", conversation=name, store=False)
    assert (refused.status, refused.error["code"]) == (400, "conversation_locked")
    w.advance(10)
    (answer,) = read_answers(bytes(running.received))
    assert answer.text == "turn 1: one"
    second = w.start("two", conversation=name, store=False)
    w.advance(10)
    (answer,) = read_answers(bytes(second.received))
    assert answer.text == "turn 2: two"
