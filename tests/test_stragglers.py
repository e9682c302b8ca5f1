"""Tests of stragglers.py: late events, and events that look late but are not. See also
test_bridge_order.py."""

from __future__ import annotations

import json

import pytest

from bridgecore.stragglers import Stragglers
from bridgecore.wire.responses import UpstreamEvent, read_event


def event(kind: str, **fields: object) -> UpstreamEvent:
    found = read_event(json.dumps({"type": f"response.{kind}", **fields}).encode())
    assert found is not None
    return found


def added(name: str, **fields: object) -> UpstreamEvent:
    return event("output_item.added", item={"type": "message", "id": name}, **fields)


def done(name: str, **fields: object) -> UpstreamEvent:
    return event("output_item.done", item={"type": "message", "id": name}, **fields)


def delta(name: str | None, **fields: object) -> UpstreamEvent:
    return event("output_text.delta", item_id=name, delta="x", **fields)


def completed(name: str, **fields: object) -> UpstreamEvent:
    return event("completed", response={"id": name, **fields})


def behind(*events: UpstreamEvent, end: UpstreamEvent | None = None) -> Stragglers:
    """A connection on which a response with ``events`` has ended."""
    stragglers = Stragglers()
    follow(stragglers, *events, end=end or completed("r1"))
    return stragglers


def follow(stragglers: Stragglers, *events: UpstreamEvent, end: UpstreamEvent) -> None:
    """One more response, complete."""
    stragglers.begin()
    for one in events:
        assert not stragglers.is_late(one, answering=True)
        stragglers.note(one)
    assert not stragglers.is_late(end, answering=True)
    assert stragglers.claim(end, []) == []
    stragglers.ended(end, [end.response] if end.response else [])


@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize(
    "late",
    [delta("m1"), done("m1"), delta("m1", new=1), added("m1"), completed("r1")],
    ids=lambda late: late.data.decode(),
)
def test_late_events_are_recognised(late: UpstreamEvent, answering: bool) -> None:
    stragglers = behind(added("m1"), delta("m1"), done("m1"))
    stragglers.begin()
    assert stragglers.is_late(late, answering=answering)


@pytest.mark.parametrize(
    "own",
    [delta("m2"), delta(None), added("m2"), done("m2"), completed("r2"), completed("r1", x=1)],
    ids=lambda own: own.data.decode(),
)
def test_events_of_the_next_answer_are_not_late(own: UpstreamEvent) -> None:
    stragglers = behind(added("m1"), delta("m1"), done("m1"))
    stragglers.begin()
    assert not stragglers.is_late(own, answering=True)


@pytest.mark.parametrize(
    "one", [delta("m2"), delta(None), event("content_part.added", item_id="m2")]
)
def test_output_without_a_known_item_is_no_concern(one: UpstreamEvent) -> None:
    """What ``concerns`` lets pass is neither late nor recorded."""
    stragglers = behind(added("m1"), done("m1"))
    assert not stragglers.concerns(one)
    assert not stragglers.is_late(one, answering=True)
    before = dict(stragglers._items)
    stragglers.note(one)
    assert stragglers._items == before


@pytest.mark.parametrize("one", [delta("m1"), added("m2"), done("m2")])
def test_an_item_or_output_of_an_ended_one_is_a_concern(one: UpstreamEvent) -> None:
    assert behind(added("m1"), done("m1")).concerns(one)


def test_nothing_is_late_before_the_first_response() -> None:
    stragglers = Stragglers()
    stragglers.begin()
    for one in (added("m1"), delta("m1"), done("m1"), completed("r1"), event("done")):
        assert not stragglers.is_late(one, answering=False)


def test_an_item_that_was_not_announced_is_known_by_its_end() -> None:
    stragglers = behind(delta("m1"), done("m1"))
    stragglers.begin()
    assert stragglers.is_late(done("m1"), answering=True)


def test_an_item_that_is_announced_anew() -> None:
    """With other members than before: it has another place in the stream."""
    stragglers = behind(added("m1", n=1), done("m1"))
    stragglers.begin()
    assert stragglers.is_late(delta("m1"), answering=True)
    assert not stragglers.is_late(added("m1", n=2), answering=True)
    stragglers.note(added("m1", n=2))
    assert not stragglers.is_late(delta("m1"), answering=True)


def test_nothing_is_announced_before_the_response_is_created() -> None:
    stragglers = behind(added("m1", n=1))
    stragglers.begin()
    assert stragglers.is_late(added("m1", n=2), answering=False)


@pytest.mark.parametrize("kind", ["completed", "incomplete"])
def test_done_after_completed(kind: str) -> None:
    """If responses end with response.completed, response.done ends no turn."""
    stragglers = behind(end=event(kind, response={"id": "r1"}))
    stragglers.begin()
    ends = kind == "completed"
    assert stragglers.is_late(event("done", response={"id": "r1"}), answering=True) is ends
    assert stragglers.is_late(event("done"), answering=True) is ends
    assert not stragglers.is_late(event("done", response={"id": "r2"}), answering=True)


def test_done_is_an_end_where_there_is_no_other() -> None:
    stragglers = behind(end=event("done", response={"id": "r", "n": 1}))
    follow(stragglers, end=event("done", response={"id": "r", "n": 2}))


def test_kept_events_are_delivered_by_the_end_that_lists_their_items() -> None:
    stragglers = behind(added("m1"), done("m1"), added("m2"), done("m2"))
    stragglers.begin()
    kept = [added("m1"), delta("m1"), done("m1", new=1)]
    for one in [*kept, done("m2")]:
        assert stragglers.is_late(one, answering=True)
    end = completed("r2")
    assert stragglers.claim(end, ["m1", "m3"]) == kept
    stragglers.ended(end, ["r2"])
    # From here on it is known that the upstream reuses ids.
    stragglers.begin()
    assert not stragglers.is_late(added("m1"), answering=True)


def test_events_kept_for_one_attempt_are_dropped_with_it() -> None:
    stragglers = behind(added("m1"))
    stragglers.begin()
    assert stragglers.is_late(delta("m1"), answering=True)
    stragglers.begin()
    assert stragglers.claim(completed("r2"), ["m1"]) == []


def test_an_identical_answer_is_delivered_again() -> None:
    """A complete one; if items are missing, it is a copy of the end only."""
    whole = [added("m1"), delta("m1"), done("m1"), added("m2"), done("m2")]
    stragglers = behind(*whole)
    stragglers.begin()
    for one in whole[:-2]:
        assert stragglers.is_late(one, answering=True)
    assert stragglers.is_late(completed("r1"), answering=True)
    for one in whole[-2:]:
        assert stragglers.is_late(one, answering=True)
    assert not stragglers.is_late(completed("r1"), answering=True)
    assert stragglers.claim(completed("r1"), []) == whole


def test_a_copy_of_an_end_in_the_next_answer() -> None:
    stragglers = behind(added("m1"))
    stragglers.begin()
    stragglers.note(added("m2"))
    assert stragglers.is_late(completed("r1"), answering=True)


def test_the_memory_of_item_ids_is_bounded() -> None:
    stragglers = Stragglers()
    for n in range(2_000):
        follow(stragglers, added(f"m{n}"), end=completed(f"r{n}"))
    for n in range(400):
        stragglers.note(added(f"x{n}"))
    for _ in range(1_000):
        assert stragglers.is_late(delta("m1999", x="x" * 8_000), answering=True)
    for _ in range(1_000):
        assert stragglers.is_late(delta("m1999"), answering=True)
    known = stragglers
    assert len(known._items) == len(known._ended) == 256
    assert len(known._copies) == len(known._completes) == 16
    assert len(known._kept) <= 256
    assert sum(len(event.data) for event in known._kept) <= 1024 * 1024
    assert stragglers.is_late(completed("r1999"), answering=True)
    assert not stragglers.is_late(completed("r0"), answering=True)
