"""Tests of verify/store_model.py: what the model of a store answers to each question."""

from __future__ import annotations

from bridgecore.ownership import store as st
from bridgecore.verify.store_model import StoreModel

A, B = st.Owner("a", "1"), st.Owner("b", "1")
A_AGAIN = st.Owner("a", "2")
URL = "http://a:1"


def response(
    key: str, *ids: str, parent: str | None = None, context: bytes | None = None
) -> st.StoredResponse:
    before = None if parent is None else parent.encode()
    return st.StoredResponse(
        key.encode(), "tenant", ids, before, context, b"payload of %b" % key.encode()
    )


def resume(owner: st.Owner, name: str | None, *contexts: bytes, floor: int = 0) -> st.Resume:
    return st.Resume(owner, "tenant", name, contexts, floor)


def joined() -> StoreModel:
    """Both have a lease until 10, and A owns a conversation of two responses."""
    store = StoreModel()
    for owner in (A, B):
        assert store.handle(st.Join(owner, URL, 10), 0) == st.Joined()
    responses = (response("k1", "r1"), response("k2", "r2", parent="k1", context=b"x"))
    assert store.handle(st.Commit(A, b"c", 0, responses), 0) == st.Committed(1)
    return store


def test_a_name_is_taken_as_long_as_its_lease() -> None:
    store = joined()
    assert store.handle(st.Join(A_AGAIN, URL, 10), 4) == st.NameTaken(6)
    assert store.handle(st.Join(A_AGAIN, URL, 10), 10) == st.Joined()
    assert store.owner(b"c", 10) is None  # it was claimed under the earlier lease


def test_a_lease_is_renewed_until_it_has_ended() -> None:
    store = joined()
    assert store.handle(st.Renew(A, 10), 9) == st.Renewed()
    assert store.handle(st.Renew(A, 10), 18) == st.Renewed()
    assert store.handle(st.Renew(A, 10), 28) == st.LeaseEnded()


def test_who_leaves_owns_nothing() -> None:
    store = joined()
    assert store.handle(st.Leave(A_AGAIN), 1) == st.Done()  # not its lease
    assert store.owner(b"c", 1) == A
    assert store.handle(st.Leave(A), 1) == st.Done()
    assert store.owner(b"c", 1) is None
    assert store.handle(resume(A, "r1"), 1) == st.LeaseEnded()


def test_a_conversation_is_claimed_when_its_owner_is_gone() -> None:
    store = joined()
    assert store.handle(resume(B, "r2"), 4) == st.OwnedElsewhere(b"c", 1, A, URL, 6)
    store.handle(st.Renew(B, 10), 9)
    path = (b"payload of k1", b"payload of k2")
    assert store.handle(resume(B, "r2"), 10) == st.Claimed(b"c", 2, path)
    assert store.handle(resume(B, "r2"), 10) == st.Claimed(b"c", 2, path)  # asked again


def test_a_response_is_found_by_id_or_context_in_its_scope() -> None:
    store = joined()
    assert store.handle(resume(A, None, b"y", b"x"), 1) == st.Claimed(
        b"c", 1, (b"payload of k1", b"payload of k2")
    )
    assert store.handle(resume(A, "r3", b"x"), 1) == st.NotStored()  # an id is looked up alone
    assert store.handle(st.Resume(A, "other", "r1"), 1) == st.NotStored()
    short = st.Resume(A, "tenant", "r2", load=False)
    assert store.handle(short, 1) == st.Claimed(b"c", 1, (b"payload of k2",))


def test_a_claim_is_above_the_floor() -> None:
    assert joined().handle(resume(A, "r1", floor=4), 1) == st.Claimed(b"c", 5, (b"payload of k1",))


def test_a_commit_needs_the_present_claim() -> None:
    store = joined()
    later = (response("k3", "r3"),)
    assert store.handle(st.Commit(B, b"c", 1, later), 1) == st.Fenced(1)
    assert store.handle(st.Commit(A, b"c", 2, later), 1) == st.Fenced(1)
    assert store.handle(st.Commit(A, b"d", 2, later), 1) == st.Fenced(0)
    assert len(store) == 2
    assert store.handle(st.Commit(A, b"c", 1, later), 1) == st.Committed(1)
    assert store.handle(st.Commit(A, b"c", 1, later), 1) == st.Committed(1)  # asked again
    assert len(store) == 3


def test_a_release_needs_the_present_claim() -> None:
    store = joined()
    for owner, epoch in ((B, 1), (A, 2)):
        assert store.handle(st.Release(owner, ((b"c", epoch),)), 1) == st.Done()
        assert store.owner(b"c", 1) == A
    store.handle(st.Release(A, ((b"c", 1),)), 1)
    assert store.owner(b"c", 1) is None
    assert store.handle(resume(B, "r1"), 1) == st.Claimed(b"c", 2, (b"payload of k1",))


def test_a_sweep_deletes_what_nothing_continues() -> None:
    store = joined()
    store.handle(resume(A, "r2"), 5)  # used again; its parent is needed for it
    assert store.handle(st.Sweep(B, 3), 6) == st.Swept(0)
    assert store.handle(st.Sweep(B, 3), 9) == st.Swept(2)
    assert store.epoch(b"c") == 1  # its owner lives
    assert store.handle(st.Sweep(B, 3), 10) == st.Swept(0)
    assert store.epoch(b"c") == 0


def test_a_copy_is_independent() -> None:
    store = joined()
    copy = store.copy()
    assert copy.snapshot() == store.snapshot()
    store.handle(st.Leave(A), 1)
    assert copy.owner(b"c", 1) == A
    assert copy.snapshot() != store.snapshot()
