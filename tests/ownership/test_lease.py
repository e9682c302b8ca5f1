"""Tests of ownership/lease.py: each rule is met once."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.ownership.lease import LeaseEffect as E
from bridgecore.ownership.lease import LeaseStage as S

TIMES = ls.LeaseTimes(ttl=15, margin=3, timeout=2, retry=1)
OUT, LEFT = ls.Lease(), ls.Lease(S.LEFT)
JOINING = ls.Lease(S.JOINING, 1, asked=100, wake=102)
HELD = ls.Lease(S.HELD, 1, until=112, asked=100, wake=104)
RENEWING = ls.Lease(S.RENEWING, 1, until=112, asked=104, wake=106)
LEAVING = ls.Lease(S.LEAVING, 1, asked=104, wake=106)
NO_ANSWER = ls.Answered(st.Failed("no connection"))

CASES: list[tuple[ls.Lease, ls.LeaseEvent, int, str, S, tuple[E, ...]]] = [
    (OUT, ls.Started(), 0, "start", S.JOINING, (E.JOIN,)),
    (OUT, ls.Due(), 0, "join-again", S.JOINING, (E.JOIN,)),
    (JOINING, ls.Answered(st.Joined()), 101, "joining-answered", S.HELD, (E.GAINED,)),
    (JOINING, NO_ANSWER, 101, "joining-answered", S.OUT, ()),
    (JOINING, ls.Due(), 102, "joining-unanswered", S.OUT, ()),
    (HELD, ls.Due(), 104, "renew", S.RENEWING, (E.RENEW,)),
    (HELD, ls.Due(), 112, "renew", S.JOINING, (E.LOST, E.JOIN)),
    (RENEWING, ls.Answered(st.Renewed()), 105, "renewing-answered", S.HELD, ()),
    (RENEWING, ls.Answered(st.Renewed()), 112, "renewing-answered", S.JOINING, (E.LOST, E.JOIN)),
    (RENEWING, ls.Answered(st.LeaseEnded()), 105, "renewing-answered", S.JOINING, (E.LOST, E.JOIN)),
    (RENEWING, NO_ANSWER, 105, "renewing-answered", S.HELD, ()),
    (RENEWING, ls.Due(), 106, "renewing-unanswered", S.HELD, ()),
    (RENEWING, ls.Due(), 112, "renewing-unanswered", S.JOINING, (E.LOST, E.JOIN)),
    (HELD, ls.Refuted(), 105, "refuted", S.JOINING, (E.LOST, E.JOIN)),
    (HELD, ls.LeaveRequested(), 105, "leave", S.LEAVING, (E.LEAVE,)),
    (JOINING, ls.LeaveRequested(), 101, "leave", S.LEAVING, (E.LEAVE,)),
    (OUT, ls.LeaveRequested(), 0, "leave", S.LEFT, (E.LEFT,)),
    (LEAVING, ls.Answered(st.Done()), 105, "left", S.LEFT, (E.LEFT,)),
    (LEAVING, ls.Due(), 106, "left-unanswered", S.LEFT, (E.LEFT,)),
    (HELD, ls.Started(), 105, "started-twice", S.HELD, ()),
    (HELD, ls.Answered(st.Joined()), 105, "answered-late", S.HELD, ()),
    (OUT, ls.Refuted(), 105, "refuted-late", S.OUT, ()),
    (LEAVING, ls.LeaveRequested(), 105, "leave-twice", S.LEAVING, ()),
    (LEFT, ls.Due(), 105, "due-left", S.LEFT, ()),
]


@pytest.mark.parametrize(("lease", "event", "now", "rule", "stage", "effects"), CASES)
def test_a_rule(
    lease: ls.Lease,
    event: ls.LeaseEvent,
    now: int,
    rule: str,
    stage: S,
    effects: tuple[E, ...],
) -> None:
    done = ls.step(lease, event, TIMES, now)
    assert (done.rule, done.state.stage, done.effects) == (rule, stage, effects)


def test_every_rule_has_an_example() -> None:
    assert {case[3] for case in CASES} == {rule.id for rule in ls.LEASE_RULES.values()}


def test_every_pair_has_a_rule() -> None:
    assert set(ls.LEASE_RULES) == {(stage, on) for stage in S for on in ls.LeaseEvent.__args__}
    assert all(rule.doc for rule in ls.LEASE_RULES.values())


def test_a_lease_counts_from_the_question() -> None:
    held = ls.step(JOINING, ls.Answered(st.Joined()), TIMES, 101).state
    assert held.until == 100 + 15 - 3
    assert held.valid(111)
    assert not held.valid(112)
    renewed = ls.step(RENEWING, ls.Answered(st.Renewed()), TIMES, 105).state
    assert renewed.until == 104 + 15 - 3


def test_an_answer_that_took_the_whole_lease_begins_none() -> None:
    late = attrs.evolve(JOINING, wake=200)
    assert ls.step(late, ls.Answered(st.Joined()), TIMES, 112).state.stage is S.OUT


def test_a_failed_renewal_extends_nothing_and_is_tried_again_in_time() -> None:
    held = ls.step(RENEWING, NO_ANSWER, TIMES, 105).state
    assert (held.until, held.wake) == (112, 106)
    last = ls.step(attrs.evolve(RENEWING, asked=111, wake=112), NO_ANSWER, TIMES, 111).state
    assert (last.until, last.wake) == (112, 112)


def test_a_name_that_is_taken_twice_is_reported() -> None:
    taken = ls.Answered(st.NameTaken(7))
    first = ls.step(JOINING, taken, TIMES, 101)
    assert (first.state.stage, first.state.wake, first.effects) == (S.OUT, 108, ())
    again = ls.step(first.state, ls.Due(), TIMES, 108).state
    second = ls.step(again, taken, TIMES, 109)
    assert second.effects == (E.NAME_TAKEN,)


@pytest.mark.parametrize("end", [ls.Due(), NO_ANSWER, ls.Answered(st.NameTaken(7))])
def test_a_lease_that_was_not_gained_is_asked_for_under_the_same_incarnation(
    end: ls.LeaseEvent,
) -> None:
    """The store may carry out the first question although it has not answered it in time."""
    out = ls.step(JOINING, end, TIMES, 102).state
    assert out.stage is S.OUT
    assert ls.step(out, ls.Due(), TIMES, 109).state.incarnation == JOINING.incarnation


@pytest.mark.parametrize(
    ("held", "end"), [(HELD, ls.Refuted()), (HELD, ls.Due()), (RENEWING, ls.Due())]
)
def test_a_lease_that_was_lost_is_followed_by_another_incarnation(
    held: ls.Lease, end: ls.LeaseEvent
) -> None:
    after = ls.step(held, end, TIMES, 112).state
    assert (after.stage, after.incarnation) == (S.JOINING, held.incarnation + 1)
