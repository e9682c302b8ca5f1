"""Tests of ownership/holdings.py: examples of what one replica asks, owns and tells its turns."""

from __future__ import annotations

from typing import Any

import pytest

from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.ownership.holdings import (
    Fence,
    Gone,
    Holdings,
    HoldingsEffect,
    LeaseChanged,
    LeaseRenewed,
    LookedUp,
    NameInUse,
    Resolved,
    Settled,
    StoreDistrusted,
)
from bridgecore.ownership.store import AskStore
from bridgecore.testing.store import StoreModel

TIMES = ls.LeaseTimes(ttl=15, margin=3, timeout=2, retry=1)
RESPONSE = (st.StoredResponse(b"k", "tenant", ("r",), None, None, b""),)


def started() -> Holdings:
    """A replica that has asked for its lease at 0 (query 1)."""
    holdings = Holdings("a", None, TIMES, b"seed")
    (asked,) = holdings.start(0)
    assert asked == AskStore(1, st.Join(holdings.owner, None, 15))
    return holdings


def joined() -> Holdings:
    """A replica with a lease until 12, to be renewed at 4."""
    holdings = started()
    assert holdings.answered(1, st.Joined(), 0) == [LeaseChanged(held=True)]
    return holdings


def resume(holdings: Holdings, turn: int, now: int) -> list[HoldingsEffect]:
    return holdings.resume(turn, "tenant", "r", now, load=True)


def claimed(epoch: int) -> st.Claimed:
    return st.Claimed(b"c", epoch, (b"",))


def question(effects: list[HoldingsEffect]) -> Any:
    (asked,) = (effect for effect in effects if isinstance(effect, AskStore))
    return asked.question


def test_a_turn_gets_the_conversation_that_was_claimed() -> None:
    holdings = joined()
    assert question(resume(holdings, 7, 1)) == st.Resume(holdings.owner, "tenant", "r")
    assert holdings.answered(2, claimed(3), 2) == [Resolved(7, claimed(3))]
    assert holdings.epoch(b"c") == 3
    assert holdings.may_send(b"c", 11)
    assert not holdings.may_send(b"c", 12)
    asked = question(holdings.commit(7, b"c", RESPONSE, 3))
    assert asked == st.Commit(holdings.owner, b"c", 3, RESPONSE)
    assert holdings.answered(3, st.Committed(3), 4) == [Settled(7, durable=True)]


def test_an_answer_after_the_timeout_is_given_back() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    assert holdings.next_timeout() == 2
    assert holdings.timeout(2) == [Resolved(7, None)]
    effects = holdings.answered(2, claimed(3), 3)
    assert question(effects) == st.Release(holdings.owner, ((b"c", 3),))
    assert not holdings.may_send(b"c", 3)


def test_a_lease_that_the_store_has_granted_too_late_is_not_in_the_way_of_the_next() -> None:
    """A server that was paused carries out what has come in the meantime."""
    store = StoreModel()
    holdings = started()
    late = st.Join(holdings.owner, None, 15)
    holdings.timeout(2)
    assert store.handle(late, 2) == st.Joined()
    again = question(holdings.timeout(3))
    assert holdings.answered(2, store.handle(again, 3), 3) == [LeaseChanged(held=True)]


def test_a_lease_that_the_store_has_extended_too_late_is_not_in_the_way_of_the_next() -> None:
    store = StoreModel()
    holdings = started()
    before = holdings.owner
    holdings.answered(1, store.handle(st.Join(before, None, 15), 0), 0)
    renewal = question(holdings.timeout(4))
    holdings.timeout(6)  # no answer
    holdings.timeout(7)
    holdings.timeout(9)
    lost = holdings.timeout(12)
    assert LeaseChanged(held=False) in lost
    assert store.handle(renewal, 13) == st.Renewed()
    again = question(lost)
    assert again == st.Join(holdings.owner, None, 15, before.incarnation)
    query = next(effect.query for effect in lost if isinstance(effect, AskStore))
    assert holdings.answered(query, store.handle(again, 13), 13) == [LeaseChanged(held=True)]


def test_a_look_up_needs_no_lease_and_claims_nothing() -> None:
    holdings = started()
    effects = holdings.look_up(-1, "tenant", "r", 1, load=False)
    assert effects == [AskStore(2, st.LookUp(holdings.owner, "tenant", "r", load=False))]
    found = st.Found(b"c", (b"",))
    assert holdings.answered(2, found, 2) == [LookedUp(-1, found)]
    assert holdings.claims == 0
    assert not holdings.may_send(b"c", 2)
    holdings.look_up(-2, "tenant", "r", 2, load=True)
    assert holdings.answered(3, st.NotStored(), 2) == [LookedUp(-2, st.NotStored())]


def test_a_look_up_that_failed_or_is_late_has_found_nothing_out() -> None:
    holdings = joined()
    holdings.look_up(-1, "tenant", "r", 0, load=True)
    assert holdings.answered(2, st.Failed("no connection"), 1) == [LookedUp(-1, None)]
    holdings.look_up(-2, "tenant", "r", 1, load=True)
    assert holdings.next_timeout() == 3
    assert holdings.timeout(2) == []
    assert holdings.timeout(3) == [LookedUp(-2, None)]
    assert holdings.answered(3, st.Found(b"c", (b"",)), 3) == []


def test_a_turn_whose_client_left_takes_no_claim() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    holdings.forget(7)
    effects = holdings.answered(2, claimed(3), 1)
    assert question(effects) == st.Release(holdings.owner, ((b"c", 3),))
    assert len(effects) == 1  # the turn is told nothing


def test_a_lease_that_ran_out_during_a_pause_is_lost() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    holdings.answered(2, claimed(3), 1)
    before = holdings.owner
    assert not holdings.may_send(b"c", 20)  # even before the timeout is handled
    effects = holdings.timeout(20)
    assert effects[:2] == [LeaseChanged(held=False), Fence(b"c")]
    assert isinstance(question(effects), st.Join)
    assert holdings.owner != before


def test_an_answer_under_an_earlier_lease_is_not_believed() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    holdings.timeout(20)
    assert holdings.answered(2, claimed(3), 20) == []
    assert holdings.epoch(b"c") == 0


def test_a_store_that_lost_memory_is_asked_above_all_epochs_seen() -> None:
    holdings = joined()
    elsewhere = st.OwnedElsewhere(b"c", 5, st.Owner("b", "x"), None, 9)
    resume(holdings, 7, 0)
    assert holdings.answered(2, elsewhere, 0) == [Resolved(7, elsewhere)]
    resume(holdings, 8, 1)
    effects = holdings.answered(3, claimed(4), 1)
    assert effects[0] == StoreDistrusted(4, 5)
    assert question(effects) == st.Resume(holdings.owner, "tenant", "r", floor=5)
    assert holdings.answered(4, claimed(6), 1) == [Resolved(8, claimed(6))]


def test_a_store_that_ignores_the_floor_is_not_believed() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    holdings.answered(2, claimed(5), 0)
    holdings.unused(b"c", 0)
    holdings.answered(3, st.Done(), 0)
    resume(holdings, 8, 1)
    assert StoreDistrusted(5, 5) in holdings.answered(4, claimed(5), 1)
    assert holdings.answered(5, claimed(5), 1) == [StoreDistrusted(5, 5), Resolved(8, None)]


@pytest.mark.parametrize("answer", [None, st.Failed("no connection")])
def test_a_store_that_was_not_asked_yet_to_release_has_lost_no_memory(
    answer: st.Answer | None,
) -> None:
    """It grants the epoch of the claim that was given back. That is asked for again, because the
    release may still come; but nothing is wrong with the store."""
    holdings = joined()
    resume(holdings, 7, 0)
    holdings.answered(2, claimed(5), 0)
    holdings.unused(b"c", 0)
    if answer is not None:
        assert holdings.answered(3, answer, 0) == []
    resume(holdings, 8, 1)
    asked = holdings.answered(4, claimed(5), 1)
    assert asked == [AskStore(5, st.Resume(holdings.owner, "tenant", "r", floor=5))]
    # Granted once more, it would be a store that does not know what it granted.
    assert holdings.answered(5, claimed(5), 1) == [StoreDistrusted(5, 5), Resolved(8, None)]


def test_a_release_that_failed_is_repeated_when_the_store_answers_again() -> None:
    """The lease goes on, so otherwise no other replica could ever have the conversation."""
    holdings = joined()
    for turn, key in enumerate((b"c", b"d", b"e")):
        resume(holdings, turn, 0)
        holdings.answered(turn + 2, st.Claimed(key, 3, ()), 0)
    for key in (b"c", b"d"):
        holdings.unused(key, 0)
    assert holdings.answered(5, st.Failed("no connection"), 0) == []
    assert holdings.answered(6, st.Failed("no connection"), 0) == []
    resume(holdings, 7, 0)  # one of them is claimed anew, with a new epoch
    holdings.answered(7, st.Claimed(b"d", 4, ()), 0)
    holdings.timeout(4)
    effects = holdings.answered(8, st.Renewed(), 4)
    assert effects == [AskStore(9, st.Release(holdings.owner, ((b"c", 3),))), LeaseRenewed()]
    assert holdings.answered(9, st.Done(), 4) == []
    holdings.timeout(8)
    assert holdings.answered(10, st.Renewed(), 8) == [LeaseRenewed()]


@pytest.mark.parametrize("later_first", [False, True])
def test_of_two_releases_that_failed_the_later_one_is_repeated(later_first: bool) -> None:
    """In whatever order that becomes known: the store has the later claim."""
    holdings = joined()
    resume(holdings, 7, 1)
    holdings.answered(2, claimed(3), 1)
    assert question(holdings.unused(b"c", 1)) == st.Release(holdings.owner, ((b"c", 3),))
    resume(holdings, 8, 1)
    holdings.forget(8)
    late = holdings.answered(4, claimed(4), 1)
    assert question(late) == st.Release(holdings.owner, ((b"c", 4),))
    for query in (5, 3) if later_first else (3, 5):
        holdings.answered(query, st.Failed("lost"), 2)
    assert question(holdings.timeout(4)) == st.Renew(holdings.owner, 15)
    again = question(holdings.answered(6, st.Renewed(), 4))
    assert again == st.Release(holdings.owner, ((b"c", 4),))


@pytest.mark.parametrize("failed", [False, True], ids=["open", "failed"])
def test_an_epoch_is_not_forgotten_while_it_may_be_released(failed: bool) -> None:
    """However many others are seen. Else the same epoch would be believed again, and the release,
    carried out late, would give to others what is owned here."""
    holdings = joined()
    resume(holdings, 7, 1)
    holdings.answered(2, claimed(3), 1)
    assert question(holdings.unused(b"c", 1)) == st.Release(holdings.owner, ((b"c", 3),))
    if failed:
        holdings.answered(3, st.Failed("lost"), 1)
    other, query = st.Owner("b", "1"), 3
    for number in range(70_000):
        resume(holdings, 8, 1)
        query += 1
        elsewhere = st.OwnedElsewhere(b"%d" % number, 1, other, None, 1)
        holdings.answered(query, elsewhere, 1)
    resume(holdings, 9, 1)
    again = question(holdings.answered(query + 1, claimed(3), 1))
    assert again == st.Resume(holdings.owner, "tenant", "r", floor=3)
    assert len(holdings.snapshot()[2]) < 66_000  # the others are forgotten


def test_a_late_commit_answer_does_not_set_the_epoch_back() -> None:
    holdings = joined()
    holdings.begin(b"c")
    holdings.commit(7, b"c", RESPONSE, 0)
    holdings.answered(2, st.Committed(1), 0)
    holdings.commit(8, b"c", RESPONSE, 0)  # query 3 is slow
    assert Settled(8, durable=False, reason="it did not answer in time") in holdings.timeout(2)
    holdings.unused(b"c", 2)
    resume(holdings, 9, 2)
    holdings.answered(5, claimed(2), 2)
    assert holdings.answered(3, st.Committed(1), 3) == []
    assert holdings.epoch(b"c") == 2


def test_a_name_that_is_taken_twice_is_reported() -> None:
    holdings = started()
    assert holdings.answered(1, st.NameTaken(9), 0) == []  # an earlier process, until 9
    assert holdings.next_timeout() == 9
    assert isinstance(question(holdings.timeout(9)), st.Join)
    assert holdings.answered(2, st.NameTaken(9), 9) == [NameInUse()]


def test_a_claim_waits_while_the_lease_is_asked_for() -> None:
    holdings = started()
    assert resume(holdings, 7, 0) == []
    assert holdings.next_timeout() == 2
    effects = holdings.answered(1, st.Joined(), 1)
    assert question(effects) == st.Resume(holdings.owner, "tenant", "r")
    assert holdings.answered(2, claimed(1), 1) == [Resolved(7, claimed(1))]


def test_a_claim_that_waits_too_long_is_given_up() -> None:
    holdings = started()
    resume(holdings, 7, 1)
    assert holdings.timeout(2) == []  # the lease is asked for again later
    assert Resolved(7, None) in holdings.timeout(3)
    assert resume(Holdings("a", None, TIMES, b"seed"), 8, 0) == [Resolved(8, None)]


def test_a_claim_that_found_the_lease_ended_waits_for_the_next() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    effects = holdings.answered(2, st.LeaseEnded(), 0)
    assert effects[0] == LeaseChanged(held=False)
    assert isinstance(question(effects), st.Join)
    assert question(holdings.answered(3, st.Joined(), 1)).owner == holdings.owner


def test_a_new_conversation_needs_no_lease_until_it_is_offered() -> None:
    holdings = started()
    holdings.begin(b"c")
    assert holdings.may_send(b"c", 0)
    assert holdings.commit(7, b"c", RESPONSE, 0) == []  # it waits for the lease
    effects = holdings.answered(1, st.Joined(), 0)
    assert effects[1:] == [AskStore(2, st.Commit(holdings.owner, b"c", 0, RESPONSE))]
    assert holdings.may_send(b"c", 11)
    assert not holdings.may_send(b"c", 12)  # the store may have it


def test_a_commit_waits_for_a_lease_no_longer_than_for_an_answer() -> None:
    holdings = started()
    holdings.begin(b"c")
    holdings.commit(7, b"c", RESPONSE, 0)
    at = holdings.next_timeout()
    assert at is not None
    assert Settled(7, durable=False, reason="this replica has no lease") in holdings.timeout(at)


def test_a_commit_that_another_owner_refuses_fences() -> None:
    holdings = joined()
    holdings.begin(b"c")
    holdings.commit(7, b"c", RESPONSE, 0)
    effects = holdings.answered(2, st.Fenced(2), 0)
    assert effects == [Fence(b"c"), Settled(7, durable=False, fenced=True)]
    assert not holdings.may_send(b"c", 0)


def test_who_leaves_may_not_send() -> None:
    holdings = joined()
    holdings.begin(b"c")
    holdings.commit(7, b"c", RESPONSE, 0)
    holdings.answered(2, st.Committed(1), 0)
    assert question(holdings.leave(1)) == st.Leave(holdings.owner)
    assert not holdings.may_send(b"c", 1)
    assert holdings.answered(3, st.Done(), 1) == [Gone()]
    assert holdings.next_timeout() is None


def test_each_answer_counts_once() -> None:
    holdings = joined()
    resume(holdings, 7, 0)
    assert holdings.was_asked(2)
    assert not holdings.was_asked(3)
    holdings.answered(2, claimed(3), 0)
    assert holdings.answered(2, claimed(3), 0) == []


def test_a_sweep_needs_a_lease() -> None:
    assert question(joined().sweep(60, 0)) == st.Sweep(joined().owner, 60)
    assert started().sweep(60, 0) == []


def test_a_copy_is_independent() -> None:
    holdings = joined()
    copy = holdings.copy()
    assert copy.snapshot() == holdings.snapshot()
    resume(copy, 7, 0)
    assert copy.snapshot() != holdings.snapshot()
