"""Tests of the named faults in testing/faults.py (``CATALOGUE``): what a client observes of each.

What belongs here: the misbehaviour of real upstreams, one test for each kind.
"""

from __future__ import annotations

import json

import pytest

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import (
    CATALOGUE,
    EVERY,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Outcome,
    Point,
    When,
)
from bridgecore.wire.websocket import (
    CloseReceived,
    WebSocketEvent,
)
from tests.testing.emulator_world import (
    TO_LAST,
    WHOLE,
    Json,
    Link,
    World,
    faulty,
    said,
    types,
    user,
    world,
)

# ------------------------------------------------------------------ faults of real services


def named(name: str, nth: int = 1) -> World:
    return world(faults=FaultPlan().add_named(nth, name))


def struck(name: str, **fields: object) -> tuple[World, Link, list[Json]]:
    """A first turn, and the answer to a second one that continues it and has the fault."""
    w = named(name, 2)
    link = w.connect()
    first = link.ask("a", store=False)
    frames = link.create("b", store=False, previous_response_id=first["id"], **fields)
    return w, link, frames


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_named_fault_strikes(name: str) -> None:
    """The answer differs from the one without the fault, and the emulator goes on."""
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
    """Send a create frame in 20 fragments, each after the one before was read."""
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
