"""Answers by messages: noise between events, missing events, and losses in mid-answer.

What belongs here: noise, unknown events, missing events, and several events in one read, for a
``Bridge`` that is driven directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.api_error import api_error
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity, OnAmbiguousLoss, UpstreamUrl
from bridgecore.messages import (
    LinkFrameSent,
    LinkLost,
    MessagesReceived,
)
from bridgecore.recovery.failure import Closed
from tests.link_world import (
    CHAIN_ID,
    NORMAL,
    TWO_IDS,
    Driver,
    Json,
    answer,
    assert_answered,
    raw,
    second_turn,
)

NOISE = [b"", b" ", b"\n", b"ping", b"[DONE]", b"null", b"[]", b"5", b'"ping"', b"{}", b"{"]
NOISE += [b'{"type":7}', b'{"type":null}', b'{"type":""}', b'{"type":"a\\nb"}', b'{"event":"ping"}']
PASSTHROUGH = Continuity.PASSTHROUGH
ERROR_502 = api_error(502, "", "")
MAX_NOISE, MAX_NOISE_SIZE, MAX_EARLY = 1024, 1024 * 1024, 256
LIMIT: Json = {
    "type": "error",
    "status": 400,
    "error": {"code": "websocket_connection_limit_reached", "message": "Too old."},
}
NOT_FOUND: Json = {"type": "error", "error": {"code": "previous_response_not_found"}}

noise = st.sampled_from(NOISE) | st.text("pi ng[]{", max_size=4).map(str.encode)


def driver_with(**settings: Any) -> Driver:
    return Driver(Bridge(Config(upstream=UpstreamUrl.parse("ws://up/"), **settings)))


def replaying() -> Driver:
    return driver_with(ambiguous=OnAmbiguousLoss.REPLAY)


def started(driver: Driver | None = None) -> Driver:
    """Turn 1 was sent."""
    driver = driver or Driver()
    driver.submit(1)
    driver.proceed()
    return driver


def in_reads(data: st.DataObject, messages: list[bytes]) -> list[list[bytes]]:
    """``messages`` in their order, in reads of any size."""
    reads: list[list[bytes]] = [[]]
    for message in messages:
        if data.draw(st.booleans()) and reads[-1]:
            reads.append([])
        reads[-1].append(message)
    return reads


# ------------------------------------------------------------------ noise


@given(st.data())
def test_noise_changes_nothing(data: st.DataObject) -> None:
    """Wherever it is: before the answer, in it, after it."""
    first, own = answer(1), answer(2, TWO_IDS, ("message", "function_call"))
    driver = second_turn(first)
    messages = list(map(raw, own))
    for _ in range(data.draw(st.integers(1, 8))):
        messages.insert(data.draw(st.integers(0, len(messages))), data.draw(noise))
    for read in in_reads(data, messages):
        driver.read(*read)
    assert_answered(driver, own)


@pytest.mark.parametrize("come", range(7), ids=lambda come: f"behind {come} events")
@pytest.mark.parametrize("large", [False, True])
def test_a_stream_of_noise_fails_the_turn(come: int, large: bool) -> None:
    """Noise between two events is limited in number and in size."""
    own = answer(2)
    assert len(own) == 7
    driver = second_turn(answer(1))
    fits = [b"x" * MAX_NOISE_SIZE] if large else [b"ping"] * MAX_NOISE
    for event in own[:come]:
        driver.read(*fits)
        driver.read(event)
    driver.read(*fits)
    assert (driver.errors, driver.bridge.links) == ({}, 1)
    driver.read(b"ping", own[come])
    assert driver.bridge.links == 0
    assert driver.errors[2].code == "stream_incomplete"
    assert driver.events.get(2, []) == own[:come]
    assert driver.bridge.turns == 0


def test_noise_between_turns_drops_the_link() -> None:
    first = answer(1)
    driver = started()
    driver.read(*first)
    driver.read(*[b"ping"] * (MAX_NOISE + 1))
    assert (driver.bridge.links, driver.errors) == (0, {})
    driver.submit(2, previous_response_id="resp_1")
    driver.proceed()
    driver.read(*answer(2))
    assert_answered(driver, answer(2))


def test_noise_does_not_extend_a_deadline() -> None:
    """The deadline for the beginning of the answer stays."""
    driver = started()
    deadline = driver.bridge.next_timeout()
    driver.read(*NOISE)
    assert driver.bridge.next_timeout() == deadline


# ------------------------------------------------------------------ unknown events

UNKNOWN: list[Json] = [
    {"type": "response.metadata", "headers": {"openai-model": "m-2"}},
    {"type": "response.new.thing", "response_id": "resp_1"},
    {"type": "codex.rate_limits", "rate_limits": {"limit_reached": True}},
    {"type": "response.interrupt.failed", "response": {"id": "resp_1"}},
]
unknown = st.lists(st.sampled_from(UNKNOWN), min_size=1, max_size=5)


@given(unknown, st.sampled_from([Driver, replaying]), st.integers(0, 2), st.booleans())
def test_unknown_events_change_nothing_about_a_loss(
    events: list[Json], make: Any, come: int, apart: bool
) -> None:
    """Before response.created and before output: a loss is recovered as without them."""
    with_them, without = started(make()), started(make())
    own = answer(1)[:come]
    for driver, more in ((with_them, events), (without, [])):
        for event in [*more, *own, *more]:
            driver.read(event)
        driver.tell(LinkLost(driver.link, Closed(1006)))
    assert with_them.errors == without.errors
    assert len(with_them.frames) == len(without.frames)
    assert (with_them.bridge.links, with_them.bridge.turns) == (
        without.bridge.links,
        without.bridge.turns,
    )
    if with_them.bridge.turns:  # it is replayed: its client gets one answer
        with_them.proceed()
        with_them.read(*answer(1, TWO_IDS))
        assert_answered(with_them, answer(1, TWO_IDS), 1)


@given(unknown, st.sampled_from([Driver, replaying]), st.booleans())
def test_events_before_created_are_delivered_after_it(
    events: list[Json], make: Any, one_read: bool
) -> None:
    own = answer(1)
    driver = started(make())
    if one_read:
        driver.read(*events, *own)
    else:
        for event in [*events, *own]:
            driver.read(event)
    assert_answered(driver, [own[0], *events, *own[1:]], 1)


def test_too_much_before_created_fails_the_turn() -> None:
    driver = started()
    driver.read(*[UNKNOWN[0]] * MAX_EARLY)
    assert (driver.errors, driver.bridge.links) == ({}, 1)
    driver.read(UNKNOWN[0], *answer(1))
    assert driver.errors[1].code == "stream_incomplete"
    assert (driver.bridge.links, driver.events) == (0, {})


def test_too_much_before_created_is_a_loss_like_any_other() -> None:
    driver = started(replaying())
    driver.read(*[UNKNOWN[0]] * (MAX_EARLY + 1))
    assert (driver.errors, driver.bridge.links) == ({}, 1)
    driver.proceed()
    assert driver.frames[0] == driver.frames[1]
    driver.read(*answer(1))
    assert_answered(driver, answer(1), 1)


# ------------------------------------------------------------------ response.created comes first


@given(st.data())
def test_response_created_is_first_whatever_was_left_out(data: st.DataObject) -> None:
    """Exactly one response.created, made by the bridge if the upstream sends none; the rest
    unchanged."""
    whole = answer(1, data.draw(st.sampled_from([NORMAL, TWO_IDS])), ("message", "function_call"))
    keep = data.draw(st.lists(st.booleans(), min_size=len(whole) - 1, max_size=len(whole) - 1))
    own: list[Json] = [event for event, kept in zip(whole, [*keep, True], strict=True) if kept]
    early = data.draw(st.lists(st.sampled_from(UNKNOWN[:1]), max_size=2))
    driver = started()
    for read in in_reads(data, list(map(raw, [*early, *own]))):
        driver.read(*read)
    told = driver.events[1]
    assert [event["type"] for event in told].count("response.created") == 1
    assert told[0]["type"] == "response.created"
    rest = told[1:]
    if own[0] == whole[0]:
        assert told == [own[0], *early, *own[1:]]
        return
    made = told[0]
    assert [event for event in rest if event not in early] == own
    assert [event for event in rest if event in early] == early
    assert made["response"]["status"] == "in_progress"
    assert made["response"]["output"] == []
    assert made["sequence_number"] <= own[0]["sequence_number"]
    # It can be continued by the id in it, as by the one at the end.
    for name in (made["response"]["id"], own[-1]["response"]["id"]):
        driver.submit(2, previous_response_id=name)
        driver.proceed()
        assert driver.errors == {}
        driver.read(*answer(2, kinds=()))
        assert driver.events.pop(2)[-1]["type"] == "response.completed"


def test_the_bridges_own_created_names_the_model() -> None:
    driver = started()
    driver.read(answer(1)[3])
    (made, _) = driver.events[1]
    assert made["response"]["model"] == "m"
    assert made["response"]["id"]


# ------------------------------------------------------------------ several events in one read


@attrs.define
class Next:
    """A link whose running turn ends with ``own``, whereupon the frame of ``turn`` is to
    be sent."""

    driver: Driver
    own: list[Json]
    turn: int
    saved: bool  # another link can carry the turn, too

    @property
    def left(self) -> bool:
        """Its frame was sent."""
        return len(self.driver.frames) > 2

    def finish(self) -> None:
        """Answer all turns that still run, on any link."""
        if not self.driver.bridge.turns:
            return
        self.driver.proceed()
        if self.driver.bridge.turns:
            self.driver.read(*answer(9))
        assert self.driver.bridge.turns == 0


def waits() -> Next:
    """Turn 3 waits for turn 2: only this link knows the response that it continues."""
    driver = second_turn(answer(1, CHAIN_ID), driver=driver_with(continuity=PASSTHROUGH))
    driver.submit(3, previous_response_id="resp")
    assert len(driver.frames) == 2
    return Next(driver, answer(2, CHAIN_ID), 3, saved=False)


def is_refused() -> Next:
    """Turn 2 is refused for its anchor, and can be resent in full."""
    return Next(second_turn(answer(1)), [NOT_FOUND], 2, saved=True)


@given(st.data())
def test_a_frame_that_did_not_leave_is_not_ambiguous(data: st.DataObject) -> None:
    """The link is lost after the event that causes a send, in any split of the reads: the turn gets
    stream_incomplete only if its frame was sent."""
    world = data.draw(st.sampled_from([waits, is_refused]))()
    driver, link = world.driver, world.driver.link
    behind = [b"ping"] * data.draw(st.integers(0, 2))
    reads = in_reads(data, [*map(raw, world.own), *behind])
    together = data.draw(st.booleans())
    lost = LinkLost(link, Closed(data.draw(st.sampled_from([1000, 1001, 1006, 1009, 1011]))))
    for read in reads[:-1]:
        driver.read(*read)
    driver.tell(MessagesReceived(link, reads[-1], lost if together else None))
    left = world.left
    assert left == (not together or raw(world.own[-1]) not in reads[-1])
    if not together:
        driver.tell(lost)
    world.finish()
    if left:
        assert driver.errors[world.turn].code in ("stream_incomplete", "request_too_large")
        assert len(driver.frames) == 3
    elif world.saved:
        assert driver.errors == {}
        assert driver.events[world.turn] == answer(9)
    else:
        assert driver.errors[world.turn].code == "upstream_unavailable"
        assert len(driver.frames) == 2  # no other link knows its anchor
    # A frame that was not sent was not refused for its size.
    assert driver.errors.get(world.turn, ERROR_502).status == (
        413 if left and lost.cause == Closed(1009) else 502
    )


def test_a_frame_that_did_not_leave_was_not_too_large() -> None:
    world = is_refused()
    lost = LinkLost(world.driver.link, Closed(1009))
    world.driver.tell(MessagesReceived(world.driver.link, [raw(NOT_FOUND)], lost))
    world.finish()
    assert (world.driver.errors, world.driver.events[2]) == ({}, answer(9))


@given(st.data())
def test_a_link_that_is_lost_in_mid_answer(data: st.DataObject) -> None:
    """Before the end of an answer a loss is a loss, whatever was read together with it."""
    world = waits()
    driver, link = world.driver, world.driver.link
    come = data.draw(st.integers(0, len(world.own) - 1))
    reads = in_reads(data, list(map(raw, world.own[:come])))
    lost = LinkLost(link, Closed(1006))
    for read in reads[:-1]:
        driver.read(*read)
    driver.tell(MessagesReceived(link, reads[-1], lost))
    assert driver.errors[2].code == "stream_incomplete"
    # A response.created with the id of an earlier response is held until more of it comes.
    assert driver.events.get(2, []) in (world.own[:come], [])
    assert not world.left


@pytest.mark.parametrize("split", [(3,), (1, 2), (2, 1), (1, 1, 1)])
@pytest.mark.parametrize("close", [None, "together", "apart"])
@pytest.mark.parametrize("make", [waits, is_refused])
def test_the_connection_limit_after_the_end_costs_only_the_link(
    make: Callable[[], Next], split: tuple[int, ...], close: str | None
) -> None:
    """In any split of the reads: it costs the next turn its link, and nothing else."""
    world = make()
    driver, link = world.driver, world.driver.link
    driver.read(*world.own[:-1])
    messages = [raw(world.own[-1]), raw(LIMIT), b"ping"]
    lost = LinkLost(link, Closed(1000))
    for size in split:
        read, messages = messages[:size], messages[size:]
        last = not messages and close == "together"
        driver.tell(MessagesReceived(link, read, lost if last else None))
    if close == "apart":
        driver.tell(lost)
    left = world.left
    assert left == (split[0] == 1)
    world.finish()
    if world.saved:
        assert driver.errors == {}
        assert driver.events[world.turn] == answer(9)
        assert len(driver.frames) == 3 + left
    else:
        assert driver.errors[world.turn].code == "upstream_unavailable"


def test_the_connection_limit_between_turns() -> None:
    driver = started()
    driver.read(*answer(1), LIMIT)
    assert (driver.bridge.links, driver.errors) == (0, {})


@pytest.mark.parametrize("make", [waits, is_refused])
def test_too_much_noise_after_the_end_spares_the_answer(make: Callable[[], Next]) -> None:
    world = make()
    driver = world.driver
    driver.read(*world.own, *[b"ping"] * (MAX_NOISE + 1))
    assert not world.left
    world.finish()
    if world.saved:
        assert (driver.errors, driver.events[world.turn]) == ({}, answer(9))
    else:
        assert driver.errors[world.turn].code == "upstream_unavailable"


@pytest.mark.parametrize("make", [waits, is_refused])
def test_events_after_the_end_are_dropped(make: Callable[[], Next]) -> None:
    world = make()
    driver = world.driver
    driver.read(*world.own, *answer(8), raw(NOT_FOUND))
    assert world.turn not in driver.events
    assert len(driver.frames) == 3
    driver.tell(LinkFrameSent(driver.link))
    driver.read(*answer(9))
    assert driver.events[world.turn] == answer(9)
    assert driver.errors == {}


# ------------------------------------------------------------------ sizes


@given(st.data())
def test_a_frame_refused_for_its_size_is_never_sent_again(data: st.DataObject) -> None:
    """An upstream that closes with 1009 above a limit, lost connections, conversations and
    branches: a frame refused for its size is never sent again; smaller ones are answered."""
    limit = 1500  # bytes
    driver = driver_with()
    uploads: list[str] = []
    known: list[str] = []
    for turn in range(1, data.draw(st.integers(2, 8)) + 1):
        size = data.draw(st.sampled_from([10, 700, 1400, 2000]))
        fields: Json = {"input": "x" * size, "stream": False}
        if data.draw(st.booleans()) and known:
            fields["previous_response_id"] = data.draw(st.sampled_from(sorted(known)))
        before = len(driver.frames)
        driver.submit(turn, **fields)
        driver.proceed()
        if len(driver.frames) > before:
            upload = raw(driver.frames[-1]).decode()
            uploads.append(upload)
            if len(upload) > limit:
                driver.tell(LinkLost(driver.link, Closed(1009)))
            else:
                driver.read(*answer(turn))
        assert driver.bridge.turns == 0
        if turn in driver.errors:
            assert driver.errors[turn].status == 413
            assert driver.errors[turn].retry_after is None
        else:
            known.append(f"resp_{turn}")
            assert driver.events[turn] == answer(turn)
        if data.draw(st.booleans()):
            driver.tell(LinkLost(driver.link, Closed(1001)))  # ignored if the link is lost already
    refused = [upload for upload in uploads if len(upload) > limit]
    assert len(refused) == len(set(refused))


def test_a_frame_that_was_answered_was_not_too_large() -> None:
    """With replays the beginning of the answer is held back; 1009 then is not about the frame."""
    driver = started(replaying())
    driver.read(*answer(1)[:2])
    driver.tell(LinkLost(driver.link, Closed(1009)))
    driver.proceed()
    assert driver.frames[0] == driver.frames[1]
    driver.read(*answer(1))
    assert_answered(driver, answer(1), 1)


def test_a_413_error_frame_is_remembered_for_its_frame() -> None:
    driver = started()
    error = {"type": "error", "status": 413, "error": {"code": "request_too_large", "message": "m"}}
    driver.read(error)
    assert driver.errors[1].status == 413
    driver.submit(2, input="q1")  # a new link
    driver.proceed()
    assert driver.errors[2].status == 413
    assert len(driver.frames) == 1
