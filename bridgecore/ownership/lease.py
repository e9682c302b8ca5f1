"""This replica's lease: when it is asked for, renewed, and given up. A table of rules.

What belongs here: ``step``, a pure function from the state of the lease and an event to the next
state and what to do. A replica has one lease for all conversations that it owns, and owns none
without it.

A lease is held until ``until``, by this replica's own clock: ``ttl`` after the *question* was
asked, not after its answer came, less ``margin``. So it ends here before it ends in the store, even
if the answer was slow or the clocks run at slightly different rates; how much the margin covers is
explored in ``bridgecore.verify.explore_ownership``. An answer that is late, lost or ``Failed``
extends nothing.

After a lease has ended it is never renewed: another replica may have claimed conversations in the
meantime. A new one is begun, under a new incarnation.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from bridgecore.ownership import store as st
from bridgecore.ownership.ruletable import RuleTable
from bridgecore.recovery.timers import NS_PER_SECOND


@attrs.frozen
class LeaseTimes:
    """Durations in ns. ``ttl``: of a lease without renewal. ``margin``: how much earlier its owner
    stops. ``timeout``: until the answer to a question counts as lost. ``retry``: until a failed
    question is asked again."""

    ttl: int = 15 * NS_PER_SECOND
    margin: int = 3 * NS_PER_SECOND
    timeout: int = 2 * NS_PER_SECOND
    retry: int = NS_PER_SECOND

    @property
    def usable(self) -> int:
        """How long a lease can be used after it was asked for, in ns."""
        return self.ttl - self.margin

    @property
    def renewal(self) -> int:
        """The age at which a lease is renewed, in ns: early enough for a second attempt."""
        return self.usable // 3


# fmt: off
class LeaseStage(enum.Enum):
    """The stage in the life of a lease."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    OUT = "out"  # there is none; the next is asked for at ``wake``, if that is set
    JOINING = "joining"  # asked for
    HELD = "held"
    RENEWING = "renewing"  # held, and its renewal is asked for
    LEAVING = "leaving"  # the store is asked to end it
    LEFT = "left"  # it has ended, and no other follows

@attrs.frozen
class Lease:
    """The state. Times are ns of this replica's clock.

    ``incarnation``: how many leases were begun. ``until``: when it ends here; it counts only while
    the lease is held. ``asked``: when the question without an answer was asked. ``wake``: when
    ``Due`` is due; None: never. ``taken``: the store has said ``NameTaken`` since the last lease.
    """
    stage: LeaseStage = LeaseStage.OUT
    incarnation: int = 0
    until: int = 0
    asked: int = 0
    wake: int | None = None
    taken: bool = False

    def valid(self, now: int) -> bool:
        """Whether conversations may be owned now."""
        return self.stage in _HOLDING and now < self.until

# ---------------------------------------------------------------- events

@attrs.frozen
class Started:
    """The process is ready."""

@attrs.frozen
class Answered:
    """The answer to the last question of the lease has come."""
    answer: st.Answer

@attrs.frozen
class Due:
    """The time ``Lease.wake`` has come."""

@attrs.frozen
class Refuted:
    """The store has answered another question with ``LeaseEnded``."""

@attrs.frozen
class LeaveRequested:
    """The process is about to end, and owns nothing that is in use."""

LeaseEvent: TypeAlias = Started | Answered | Due | Refuted | LeaveRequested

# ---------------------------------------------------------------- effects

class LeaseEffect(enum.Enum):
    """What to do."""
    JOIN = "join"  # ask ``st.Join``, under the present incarnation
    RENEW = "renew"  # ask ``st.Renew``
    LEAVE = "leave"  # ask ``st.Leave``
    GAINED = "gained"  # conversations can be claimed from now on
    LOST = "lost"  # what was claimed is owned no more: send nothing of it
    NAME_TAKEN = "name_taken"  # another process uses the same name: report it
    LEFT = "left"  # the process can end
# fmt: on


@attrs.frozen
class LeaseTransition:
    """The result of ``step``; ``rule``: the id of the rule."""

    state: Lease
    effects: tuple[LeaseEffect, ...]
    rule: str


_Apply: TypeAlias = Callable[[Lease, Any, LeaseTimes, int], tuple[Lease, tuple[LeaseEffect, ...]]]


_table: RuleTable[LeaseStage, _Apply] = RuleTable(LeaseStage, LeaseEvent)
LEASE_RULES = _table.rules


def step(lease: Lease, event: LeaseEvent, times: LeaseTimes, now: int) -> LeaseTransition:
    """Apply ``event`` at ``now`` (ns). A pure function."""
    rule = LEASE_RULES[lease.stage, type(event)]
    if rule.apply is None:
        return LeaseTransition(lease, (), rule.id)
    return LeaseTransition(*rule.apply(lease, event, times, now), rule.id)


_S = LeaseStage
_E = LeaseEffect
_HOLDING = (_S.HELD, _S.RENEWING)
_Done: TypeAlias = tuple[Lease, tuple[LeaseEffect, ...]]

# ---------------------------------------------------------------- the rules


@_table.rule("start", Started, _S.OUT)
def _start(lease: Lease, event: Started, times: LeaseTimes, now: int) -> _Done:
    """Ask for a lease under a new incarnation."""
    return _join(_begun_anew(lease), times, now), (_E.JOIN,)


def _begun_anew(lease: Lease) -> Lease:
    return attrs.evolve(lease, incarnation=lease.incarnation + 1)


def _join(lease: Lease, times: LeaseTimes, now: int) -> Lease:
    return attrs.evolve(lease, stage=_S.JOINING, asked=now, wake=now + times.timeout)


@_table.rule("join-again", Due, _S.OUT)
def _join_again(lease: Lease, event: Due, times: LeaseTimes, now: int) -> _Done:
    """Ask for a lease again, after an attempt that failed or a name that was taken.

    Under the same incarnation, because nothing was owned under it: a store that has carried the
    attempt out after all, only too late, would say of another one that its name is taken.
    """
    return _join(lease, times, now), (_E.JOIN,)


@_table.rule("joining-answered", Answered, _S.JOINING)
def _joining_answered(lease: Lease, event: Answered, times: LeaseTimes, now: int) -> _Done:
    """The lease has begun, or the name is taken, or the store did not answer.

    A name can be taken by an earlier process of this replica that was killed: its lease ends when
    it is not renewed. So the first time this is waited for. A second time means that somebody
    renews it: two replicas have one name.
    """
    answer = event.answer
    if isinstance(answer, st.Joined) and now < lease.asked + times.usable:
        held = attrs.evolve(
            lease,
            stage=_S.HELD,
            until=lease.asked + times.usable,
            wake=lease.asked + times.renewal,
            taken=False,
        )
        return held, (_E.GAINED,)
    if isinstance(answer, st.NameTaken):
        said = (_E.NAME_TAKEN,) if lease.taken else ()
        wake = now + max(answer.remaining, times.retry)
        return attrs.evolve(lease, stage=_S.OUT, wake=wake, taken=True), said
    return attrs.evolve(lease, stage=_S.OUT, wake=now + times.retry), ()


@_table.rule("joining-unanswered", Due, _S.JOINING)
def _joining_unanswered(lease: Lease, event: Due, times: LeaseTimes, now: int) -> _Done:
    """The store did not answer in time: unknown, so there is no lease. Ask again soon."""
    return attrs.evolve(lease, stage=_S.OUT, wake=now + times.retry), ()


@_table.rule("renew", Due, _S.HELD)
def _renew(lease: Lease, event: Due, times: LeaseTimes, now: int) -> _Done:
    """Ask for a renewal; or, if the lease is over already, give it up and begin another.

    It can be over without a warning: the process was paused, or the host was asleep.
    """
    if now >= lease.until:
        return _lost(lease, times, now)
    wake = min(now + times.timeout, lease.until)
    return attrs.evolve(lease, stage=_S.RENEWING, asked=now, wake=wake), (_E.RENEW,)


def _lost(lease: Lease, times: LeaseTimes, now: int) -> _Done:
    return _join(_begun_anew(lease), times, now), (_E.LOST, _E.JOIN)


@_table.rule("renewing-answered", Answered, _S.RENEWING)
def _renewing_answered(lease: Lease, event: Answered, times: LeaseTimes, now: int) -> _Done:
    """Renewed from the time of the question on; or ended in the store; or unknown: go on with what
    is left of the lease, and ask again soon."""
    answer = event.answer
    if isinstance(answer, st.LeaseEnded) or now >= lease.until:
        return _lost(lease, times, now)
    if isinstance(answer, st.Renewed):
        held = attrs.evolve(
            lease,
            stage=_S.HELD,
            until=lease.asked + times.usable,
            wake=lease.asked + times.renewal,
        )
        return held, ()
    return _unrenewed(lease, times, now), ()


def _unrenewed(lease: Lease, times: LeaseTimes, now: int) -> Lease:
    return attrs.evolve(lease, stage=_S.HELD, wake=min(now + times.retry, lease.until))


@_table.rule("renewing-unanswered", Due, _S.RENEWING)
def _renewing_unanswered(lease: Lease, event: Due, times: LeaseTimes, now: int) -> _Done:
    """No answer in time: go on with what is left of the lease, and ask again soon; without any
    left, it is lost."""
    if now >= lease.until:
        return _lost(lease, times, now)
    return _unrenewed(lease, times, now), ()


@_table.rule("refuted", Refuted, *_HOLDING)
def _refuted(lease: Lease, event: Refuted, times: LeaseTimes, now: int) -> _Done:
    """The store says that there is no such lease: it has lost memory, or ours ended earlier than
    our clock says. Give it up and begin another."""
    return _lost(lease, times, now)


@_table.rule("leave", LeaveRequested, _S.OUT, _S.JOINING, *_HOLDING)
def _leave(lease: Lease, event: LeaveRequested, times: LeaseTimes, now: int) -> _Done:
    """Tell the store that the lease has ended, so that others need not wait for it.

    Also while it is asked for: the store may have begun it already.
    """
    if lease.stage is _S.OUT:
        return attrs.evolve(lease, stage=_S.LEFT, wake=None), (_E.LEFT,)
    left = attrs.evolve(lease, stage=_S.LEAVING, asked=now, wake=now + times.timeout)
    return left, (_E.LEAVE,)


@_table.rule("left", Answered, _S.LEAVING)
def _left(lease: Lease, event: Answered, times: LeaseTimes, now: int) -> _Done:
    """The store knows: the process can end."""
    return attrs.evolve(lease, stage=_S.LEFT, wake=None), (_E.LEFT,)


@_table.rule("left-unanswered", Due, _S.LEAVING)
def _left_unanswered(lease: Lease, event: Due, times: LeaseTimes, now: int) -> _Done:
    """The store did not answer in time: end all the same; the lease ends by itself."""
    return attrs.evolve(lease, stage=_S.LEFT, wake=None), (_E.LEFT,)


_table.ignore(
    "started-twice", Started, "it was started before", *(s for s in _S if s is not _S.OUT)
)
_table.ignore("answered-late", Answered, "its question was given up", _S.OUT, _S.HELD, _S.LEFT)
_table.ignore("refuted-late", Refuted, "it is not held", _S.OUT, _S.JOINING, _S.LEAVING, _S.LEFT)
_table.ignore("leave-twice", LeaveRequested, "it is being given up", _S.LEAVING, _S.LEFT)
_table.ignore("due-left", Due, "nothing is waited for any more", _S.LEFT)
_table.close()
