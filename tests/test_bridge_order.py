"""Two turns on one link, their events in any order: each client gets its own answer.

What belongs here: late events of an ended response (copies, ``response.done``) while the next turn
waits or is answered.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bridgecore.messages import (
    LinkFrameSent,
    LinkLost,
)
from bridgecore.recovery.failure import Closed
from tests.link_world import (
    CHAIN_ID,
    NORMAL,
    TWO_IDS,
    Driver,
    Json,
    Style,
    answer,
    assert_answered,
    raw,
    second_turn,
    stragglers,
)

# ------------------------------------------------------------------ properties

kinds = st.lists(st.sampled_from(["message", "function_call"]), max_size=2).map(tuple)
ends = st.sampled_from(["completed", "incomplete"])


@st.composite
def interleaved(
    draw: st.DrawFn, own: list[Json], late: list[Json]
) -> tuple[list[list[Json]], list[Json]]:
    """``own`` in its order with any of ``late`` anywhere between, in reads of any size."""
    order: list[Json] = list(own)
    put: list[Json] = []
    extra: list[Json] = draw(st.lists(st.sampled_from(late), max_size=8))
    for event in extra:
        # Events after the end of the turn have no turn to disturb: see the example below.
        order.insert(draw(st.integers(0, len(order) - 1)), event)
        put.append(event)
    reads: list[list[Json]] = [[]]
    for event in order:
        if draw(st.booleans()) and reads[-1]:
            reads.append([])
        reads[-1].append(event)
    return reads, put


@given(st.data())
def test_late_events_never_reach_the_next_turn(data: st.DataObject) -> None:
    style = data.draw(st.sampled_from([NORMAL, TWO_IDS]))
    first = answer(1, style, data.draw(kinds))
    own = answer(2, style, data.draw(kinds), end=data.draw(ends))
    late = stragglers(first, data.draw(st.sampled_from(style.ids(1))))
    driver = second_turn(first, sent=False)
    reads, put = data.draw(interleaved(own, late))
    # A second copy of a whole answer could be a new, equal answer of this upstream.
    assume(not (first[0] in put and first[-1] in put))
    answering = next(number for number, read in enumerate(reads) if own[0] in read)
    sent = data.draw(st.integers(0, answering))  # its frame may take a while to be sent
    for number, read in enumerate(reads):
        if number == sent:
            driver.tell(LinkFrameSent(driver.link))
        driver.read(*read)
    assert_answered(driver, own)


@given(st.data())
def test_one_id_for_a_chain_and_stragglers(data: st.DataObject) -> None:
    """If all responses have one id, they are distinguished by their items and texts."""
    first = answer(1, CHAIN_ID, ("message", "function_call"))
    own = answer(2, CHAIN_ID, data.draw(kinds), end=data.draw(ends))
    late = [one for one in first if "delta" in one or one["type"] == "response.completed"]
    late += [one for one in stragglers(first, "resp") if one["type"] == "response.done"]
    driver = second_turn(first)
    reads, _ = data.draw(interleaved(own, late))
    for read in reads:
        driver.read(*read)
    assert_answered(driver, own)


@given(st.data())
def test_late_events_between_turns_change_nothing(data: st.DataObject) -> None:
    style = data.draw(st.sampled_from([NORMAL, TWO_IDS, CHAIN_ID]))
    first, own = answer(1, style, data.draw(kinds)), answer(2, style, data.draw(kinds))
    late = stragglers(first, style.last.format(n=1))
    driver = Driver()
    driver.submit(1)
    driver.proceed()
    driver.read(*first, *data.draw(st.lists(st.sampled_from(late), max_size=4)))
    driver.read(*data.draw(st.lists(st.sampled_from(late), max_size=4)))
    assert driver.events == {1: first}
    driver.submit(2, previous_response_id=first[-1]["response"]["id"])
    driver.tell(LinkFrameSent(driver.link))
    driver.read(*own)
    assert_answered(driver, own)


# ------------------------------------------------------------------ only apparently late events


@pytest.mark.parametrize(
    ("style", "created"),
    [(NORMAL, True), (NORMAL, False), (CHAIN_ID, True)],
    ids=["normal", "without created", "one id for the chain"],
)
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("one_read", [True, False])
def test_item_ids_that_are_used_again(
    style: Style, created: bool, added: bool, one_read: bool
) -> None:
    """Some upstreams give the first item of each response the same id: no item is dropped
    for that."""
    driver = Driver()
    for turn in (1, 2, 3):
        events = answer(turn, style, ("message", "message"), added=added, created=created)
        events = json.loads(json.dumps(events).replace(f"msg_{turn}_", "msg_"))
        before = {"previous_response_id": style.last.format(n=turn - 1)} if turn > 1 else {}
        driver.submit(turn, **before)
        driver.proceed()
        if one_read:
            driver.read(*events)
        else:
            for event in events:
                driver.read(event)
        told = driver.events[turn]
        assert told[0]["type"] == "response.created"
        assert told[-1] == events[-1]
        assert sorted(map(raw, told[not created :])) == sorted(map(raw, events))


@pytest.mark.parametrize("kinds", [(), ("message",), ("message", "function_call")])
@pytest.mark.parametrize("end", ["completed", "incomplete"])
def test_equal_answers_in_a_row_are_all_delivered(kinds: tuple[str, ...], end: str) -> None:
    """Equal word for word, ids included, as test servers answer: each turn is answered."""
    events = answer(1, NORMAL, kinds, end=end)
    driver = second_turn(events)
    for turn in (2, 3):
        for event in events:
            driver.read(event)
        assert driver.events[turn] == events
        if turn == 2:
            driver.submit(3, previous_response_id="resp_1")
            driver.tell(LinkFrameSent(driver.link))


# ------------------------------------------------------------------ examples


def test_an_event_that_names_another_response_in_mid_output() -> None:
    """Also an event without output, which is relayed without consulting the rules."""
    first, own = answer(1), answer(2)
    driver = second_turn(first)
    driver.read(*own[:4])
    driver.read(first[1], {"type": "response.metadata", "response_id": "resp_1"}, *own[4:])
    assert_answered(driver, own)


def test_a_copied_item_announcement_is_dropped() -> None:
    """In mid-answer it looks like a new announcement of an item."""
    first, own = answer(1), answer(2)
    driver = second_turn(first)
    driver.read(*own[:2], *first[2:5], *own[2:])
    assert_answered(driver, own)


def test_a_late_end_behind_a_late_beginning() -> None:
    """After two ``response.created`` it is open whose answer begins; ``response.done`` ends no turn
    if the upstream sends ``response.completed``."""
    first, own = answer(1, kinds=()), answer(2)
    driver = second_turn(first)
    driver.read(first[0], {"type": "response.done", "response": {"id": "resp_1"}})
    driver.read({"type": "response.done"}, *own)
    assert_answered(driver, own)


def test_a_late_failure_is_not_the_next_turns_error() -> None:
    driver = second_turn(answer(1))
    error = {"code": "rate_limit_exceeded", "message": "Another turn's words."}
    driver.read({"type": "response.failed", "response": {"id": "resp_1", "error": error}})
    driver.tell(LinkLost(driver.link, Closed(1009)))  # reported with the upstream's own message
    assert "words" not in driver.errors[2].message


def test_an_early_event_may_name_the_id_that_the_response_ends_with() -> None:
    """An unknown event before response.created has the id that the response has at its end."""
    first, own = answer(1, TWO_IDS), answer(2, TWO_IDS)
    driver = second_turn(first)
    metadata = {"type": "response.metadata", "response_id": "resp_2", "sequence_number": 0}
    driver.read(metadata)
    driver.read(*own)
    assert_answered(driver, [own[0], metadata, *own[1:]])


def test_an_event_between_turns_is_dropped_although_the_next_turn_reuses_its_item_id() -> None:
    first = answer(1)
    driver = Driver()
    driver.submit(1)
    driver.proceed()
    driver.read(*first)
    driver.read(*first[3:5])
    own = json.loads(json.dumps(answer(2)).replace("msg_2_", "msg_1_"))
    driver.submit(2, previous_response_id="resp_1")
    driver.proceed()
    driver.read(*own)
    assert_answered(driver, own)
