"""The index of sessions that lead to other replicas."""

from __future__ import annotations

from bridgecore.admission.peers import Peers


def test_sessions_are_found_by_lease_and_tenant_oldest_first() -> None:
    peers = Peers()
    peers.add(3, "lease-a", "tenant-1")
    peers.add(1, "lease-a", "tenant-1")
    peers.add(5, "lease-a", "tenant-2")
    peers.add(7, "lease-b", "tenant-1")
    assert [*peers.members("lease-a", "tenant-1")] == [3, 1]
    assert [*peers.members("lease-a", "tenant-2")] == [5]
    assert [*peers.members("lease-b", "tenant-1")] == [7]
    assert [*peers.members("lease-b", "tenant-2")] == []


def test_a_session_that_has_ended_is_not_found() -> None:
    peers = Peers()
    peers.add(3, "lease-a", "tenant-1")
    peers.add(1, "lease-a", "tenant-1")
    peers.leave(3)
    assert [*peers.members("lease-a", "tenant-1")] == [1]
    peers.leave(1)
    assert [*peers.members("lease-a", "tenant-1")] == []


def test_a_session_to_the_upstream_is_no_member_and_leaves_without_a_trace() -> None:
    peers = Peers()
    peers.add(3, "lease-a", "tenant-1")
    peers.leave(4)
    assert [*peers.members("lease-a", "tenant-1")] == [3]
