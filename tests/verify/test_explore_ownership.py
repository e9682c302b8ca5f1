"""Tests of verify/explore_ownership.py: our replicas are clean, broken ones are detected."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import attrs
import pytest

from bridgecore.errors import LocalProtocolError
from bridgecore.ownership import claims as cl
from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.ownership.holdings import Holdings, Settled
from bridgecore.testing.store import StoreModel
from bridgecore.verify.explore_ownership import (
    OWNERSHIP_BOUNDS,
    OwnershipReport,
    explore_ownership,
)
from bridgecore.verify.ownership_value import key
from bridgecore.verify.ownership_world import ALL, OwnershipBounds, OwnershipProperty, World

P = OwnershipProperty
LeaseStep = Callable[[ls.Lease, ls.LeaseEvent, ls.LeaseTimes, int], ls.LeaseTransition]
ClaimStep = Callable[[cl.Claim, cl.ClaimEvent], cl.ClaimTransition]

# ------------------------------------------------------------------ mutants: rules of the lease


def with_lease(step: LeaseStep) -> type[Holdings]:
    """Holdings with other rules for the lease."""
    return type("Mutant", (Holdings,), {"lease_step": staticmethod(step)})


def from_the_answer(
    lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
) -> ls.LeaseTransition:
    """Counts the lease from the answer, not from the question."""
    done = ls.step(lease, event, times, now)
    if done.rule not in ("joining-answered", "renewing-answered"):
        return done
    return attrs.evolve(done, state=attrs.evolve(done.state, until=now + times.usable))


def renewed_after_the_end(
    lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
) -> ls.LeaseTransition:
    """Renews a lease that has ended."""
    if isinstance(event, ls.Due) and lease.stage is ls.LeaseStage.HELD:
        lease = attrs.evolve(lease, until=max(lease.until, now + 1))
    return ls.step(lease, event, times, now)


def failed_renewal_counts(
    lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
) -> ls.LeaseTransition:
    """Takes a renewal that failed for one that was granted."""
    if lease.stage is ls.LeaseStage.RENEWING and event == ls.Answered(st.Failed("no connection")):
        event = ls.Answered(st.Renewed())
    return ls.step(lease, event, times, now)


def lost_silently(
    lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
) -> ls.LeaseTransition:
    """Does not say that the lease is lost."""
    done = ls.step(lease, event, times, now)
    effects = tuple(effect for effect in done.effects if effect is not ls.LeaseEffect.LOST)
    return attrs.evolve(done, effects=effects)


def never_joined_again(
    lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
) -> ls.LeaseTransition:
    """Waits for ever after an attempt to join that failed."""
    done = ls.step(lease, event, times, now)
    if done.state.stage is ls.LeaseStage.OUT:
        return attrs.evolve(done, state=attrs.evolve(done.state, wake=None))
    return done


def silence_is_illegal(
    lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
) -> ls.LeaseTransition:
    """Does not expect that a renewal is not answered."""
    done = ls.step(lease, event, times, now)
    if done.rule == "renewing-unanswered":
        raise LocalProtocolError(done.rule)
    return done


# ------------------------------------------------------------------ mutants: rules of claims


def with_claims(step: ClaimStep) -> type[Holdings]:
    """Holdings with other rules for claims."""
    return type("Mutant", (Holdings,), {"claim_step": staticmethod(step)})


def late_grant_counts(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
    """Owns what was granted too late."""
    if isinstance(event, cl.Granted):
        event = attrs.evolve(event, wanted=True)
    return cl.step(claim, event)


def old_epoch_counts(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
    """Believes a claim whose epoch is no new one."""
    if isinstance(event, cl.Granted):
        claim = attrs.evolve(claim, seen=0)
    return cl.step(claim, event)


def old_commit_counts(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
    """Takes the answer to a commit of an earlier claim for one of the present claim."""
    if isinstance(event, cl.CommitAnswered):
        event = attrs.evolve(event, epoch=claim.epoch)
    return cl.step(claim, event)


def ignoring(name: str, matters: Callable[[cl.ClaimEvent], bool]) -> ClaimStep:
    """Rules under which the events for which ``matters`` is true change nothing."""

    def claim_step(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
        if matters(event):
            return cl.ClaimTransition(claim, (), "ignored")
        return cl.step(claim, event)

    claim_step.__name__ = name
    return claim_step


def _is_fenced(event: cl.ClaimEvent) -> bool:
    return isinstance(event, cl.CommitAnswered) and isinstance(event.answer, st.Fenced)


# They go on after the store has refused a commit, or has named another owner; keep claims when the
# lease is lost; take a new conversation for unknown to the store after a commit was asked for.
fenced_is_ignored = ignoring("fenced_is_ignored", _is_fenced)
contradiction_is_ignored = ignoring(
    "contradiction_is_ignored", lambda event: isinstance(event, cl.Contradicted)
)
kept_without_lease = ignoring("kept_without_lease", lambda event: isinstance(event, cl.LeaseLost))
never_offered = ignoring("never_offered", lambda event: isinstance(event, cl.Offered))


def no_fence(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
    """Loses claims without a word."""
    done = cl.step(claim, event)
    effects = tuple(effect for effect in done.effects if effect is not cl.ClaimEffect.FENCE)
    return attrs.evolve(done, effects=effects)


def no_release(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
    """Gives nothing back."""
    done = cl.step(claim, event)
    effects = tuple(effect for effect in done.effects if effect is not cl.ClaimEffect.RELEASE)
    return attrs.evolve(done, effects=effects)


def releases_another_epoch(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
    """Gives back with the wrong epoch."""
    done = cl.step(claim, event)
    if cl.ClaimEffect.RELEASE in done.effects:
        return attrs.evolve(done, state=attrs.evolve(done.state, epoch=done.state.epoch - 1))
    return done


# ------------------------------------------------------------------ mutants: holdings


class NoMargin(Holdings):
    """Uses a lease as long as the store keeps it."""

    def __init__(
        self, replica: str, advertise: str | None, times: ls.LeaseTimes, seed: bytes
    ) -> None:
        super().__init__(replica, advertise, attrs.evolve(times, margin=0), seed)


class Careless(Holdings):
    """Sends without looking at the lease."""

    def may_send(self, conversation: bytes, now: int) -> bool:
        return conversation in self._claims


class NoFloor(Holdings):
    """Asks the store again without the highest epoch that it has seen."""

    def _ask(
        self, question: st.Question, turn: int | None, now: int, *, distrusted: bool = False
    ) -> int:
        if isinstance(question, st.Resume):
            question = attrs.evolve(question, floor=0)
        return super()._ask(question, turn, now, distrusted=distrusted)


class Hopeful(Holdings):
    """Takes a commit without an answer for durable."""

    def _give_up(self, query: int, asked: Any) -> None:
        super()._give_up(query, asked)
        self._out = [
            attrs.evolve(effect, durable=True) if isinstance(effect, Settled) else effect
            for effect in self._out
        ]


class Twice(Holdings):
    """Resolves a turn again when the answer comes late."""

    def _give_up(self, query: int, asked: Any) -> None:
        super()._give_up(query, asked)
        self._asked[query] = attrs.evolve(asked, deadline=1_000)


class Resigned(Holdings):
    """Does not repeat a release that failed."""

    def _release_again(self, now: int) -> None:
        self._unreleased.clear()


class Overwrites(Holdings):
    """Of two releases that failed, repeats the one that was heard of last."""

    def answered(self, query: int, answer: st.Answer, now: int) -> Any:
        asked = self._asked.get(query)
        if asked is not None and isinstance(asked.question, st.Release):
            for conversation, _ in asked.question.conversations:
                self._unreleased.pop(conversation, None)
        return super().answered(query, answer, now)


class Forgetful(Holdings):
    """Does not tell turns that waited for the lease."""

    def timeout(self, now: int) -> Any:
        self._waiting = [entry for entry in self._waiting if entry[2] > now]
        return super().timeout(now)


# ------------------------------------------------------------------ mutants: the store


class AnyEpoch(StoreModel):
    """Does not compare the epoch of a commit."""

    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Commit) and self.epoch(question.conversation):
            present = self._conversations[question.conversation]
            owner = question.owner if present.owner is None else present.owner
            question = attrs.evolve(question, epoch=present.epoch, owner=owner)
            self._conversations[question.conversation] = attrs.evolve(present, owner=owner)
        return super().handle(question, now)


class AnyRelease(StoreModel):
    """Does not compare the epoch of a release."""

    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Release):
            pairs = tuple((key, self.epoch(key)) for key, _ in question.conversations)
            question = attrs.evolve(question, conversations=pairs)
        return super().handle(question, now)


class SameEpoch(StoreModel):
    """A new owner gets the epoch of the old one."""

    def handle(self, question: st.Question, now: int) -> st.Answer:
        before = dict(self._conversations)
        answer = super().handle(question, now)
        if isinstance(answer, st.Claimed) and answer.conversation in before:
            key, epoch = answer.conversation, before[answer.conversation].epoch
            self._conversations[key] = attrs.evolve(self._conversations[key], epoch=epoch)
            return attrs.evolve(answer, epoch=epoch)
        return answer


class Buffered(StoreModel):
    """Says that it has stored what it only means to store."""

    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Commit) and question.epoch:
            return st.Committed(question.epoch)
        return super().handle(question, now)


class Immortal(StoreModel):
    """Leases do not end by themselves."""

    def _live(self, owner: st.Owner, now: int) -> bool:
        lease = self._leases.get(owner.replica)
        return lease is not None and lease.owner == owner


class Usurped(StoreModel):
    """A second process of the same name takes over the lease of the first."""

    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Join):
            self._leases.pop(question.owner.replica, None)
        return super().handle(question, now)


# ------------------------------------------------------------------ each is detected

SLOW, PAUSE, BACK = frozenset({"slow"}), frozenset({"pause"}), frozenset({"roll back"})
ONCE = OwnershipBounds("anything goes wrong once", 1, 2, 1)
SKEWED = OwnershipBounds("a slow clock", 1, 2, 1, PAUSE, skew=1)
TWICE = OwnershipBounds("slow twice", 1, 2, 2, SLOW)
LATE = OwnershipBounds("late answers", 1, 3, 1, SLOW)
LOST = OwnershipBounds("rolled back", 1, 3, 1, BACK)
JOINING = OwnershipBounds("joining", 1, 2, 1, joined=False)
NAMES = OwnershipBounds("one name", 1, 2, 1, joined=False, one_name=True)
FAILING = OwnershipBounds("two questions fail", 1, 2, 2, frozenset({"fail"}))
BOTH = OwnershipBounds("slow or lost, then paused", 1, 2, 2, SLOW | PAUSE | {"fail"})
MUTANTS: list[tuple[LeaseStep | ClaimStep | type, OwnershipBounds, OwnershipProperty]] = [
    (from_the_answer, BOTH, P.NO_SEND_WITHOUT_A_LEASE),
    (renewed_after_the_end, ONCE, P.NO_SEND_WITHOUT_A_LEASE),
    (failed_renewal_counts, BOTH, P.NO_SEND_WITHOUT_A_LEASE),
    (lost_silently, ONCE, P.ONE_LIVE_OWNER),
    (never_joined_again, JOINING, P.LIVENESS),
    (silence_is_illegal, ONCE, P.NO_ERROR),
    (late_grant_counts, ONCE, P.UNKNOWN_IS_NOT_GRANTED),
    (old_epoch_counts, LATE, P.EPOCHS_ONLY_GROW),
    (old_epoch_counts, LOST, P.EPOCHS_ONLY_GROW),
    (old_commit_counts, LATE, P.EPOCHS_ONLY_GROW),
    (fenced_is_ignored, LOST, P.ONE_LIVE_OWNER),
    (contradiction_is_ignored, LATE, P.ONE_LIVE_OWNER),
    (kept_without_lease, ONCE, P.ONE_LIVE_OWNER),
    (never_offered, TWICE, P.NO_SEND_WITHOUT_A_LEASE),
    (no_fence, LOST, P.NO_SEND_WITHOUT_A_LEASE),
    (no_release, ONCE, P.UNKNOWN_IS_NOT_GRANTED),
    (releases_another_epoch, ONCE, P.UNKNOWN_IS_NOT_GRANTED),
    (NoMargin, ONCE, P.NO_SEND_WITHOUT_A_LEASE),
    (Careless, ONCE, P.NO_SEND_WITHOUT_A_LEASE),
    (NoFloor, LOST, P.LIVENESS),
    (Hopeful, ONCE, P.DURABLE_IS_STORED),
    (Twice, ONCE, P.EVERY_TURN_IS_RESOLVED),
    (Resigned, ONCE, P.RELEASES_ARE_REPEATED),
    (Overwrites, FAILING, P.RELEASES_ARE_REPEATED),
    (Forgetful, NAMES, P.EVERY_TURN_IS_RESOLVED),
    (AnyEpoch, LOST, P.STALE_EPOCH_CHANGES_NOTHING),
    (AnyRelease, ONCE, P.STALE_EPOCH_CHANGES_NOTHING),
    (SameEpoch, ONCE, P.LIVENESS),
    (Buffered, ONCE, P.DURABLE_IS_STORED),
    (Immortal, ONCE, P.LIVENESS),
    (Usurped, NAMES, P.ONE_LIVE_OWNER),
]


def explore(
    mutant: Any, bounds: OwnershipBounds, judged: Collection[OwnershipProperty] = ALL
) -> OwnershipReport:
    """Explore a mutant of whatever kind."""
    if isinstance(mutant, type) and issubclass(mutant, StoreModel):
        return explore_ownership(bounds, store=mutant, judged=judged)
    if isinstance(mutant, type):
        return explore_ownership(bounds, make=mutant, judged=judged)
    of_lease = "lease" in inspect.signature(mutant).parameters
    make = with_lease(mutant) if of_lease else with_claims(mutant)
    return explore_ownership(bounds, make=make, judged=judged)


@pytest.mark.parametrize(
    ("mutant", "bounds", "prop"), MUTANTS, ids=[f"{m.__name__}-{b.name}" for m, b, _ in MUTANTS]
)
def test_a_mutant_is_detected(mutant: Any, bounds: OwnershipBounds, prop: P) -> None:
    assert [found.prop for found in explore(mutant, bounds).counterexamples] == [prop]


def test_each_property_detects_a_mutant() -> None:
    assert {prop for _, _, prop in MUTANTS} == set(P)


@pytest.mark.parametrize(
    ("mutant", "bounds", "prop"),
    [
        (NoMargin, SKEWED, P.ONE_LIVE_OWNER),
        (Careless, SKEWED, P.ONE_LIVE_OWNER),
        (SameEpoch, ONCE, P.EPOCHS_ONLY_GROW),
    ],
)
def test_a_second_property_detects_it_too(
    mutant: type, bounds: OwnershipBounds, prop: OwnershipProperty
) -> None:
    """What follows from the defect, if the property that notices it first is not judged."""
    assert [found.prop for found in explore(mutant, bounds, {prop}).counterexamples] == [prop]


# ------------------------------------------------------------------ ours are clean


@pytest.mark.parametrize(
    "bounds", [*OWNERSHIP_BOUNDS["small"], FAILING], ids=lambda bounds: bounds.name
)
def test_our_replicas_are_clean(bounds: OwnershipBounds) -> None:
    report = explore_ownership(bounds)
    assert report.counterexamples == []
    assert report.complete
    assert report.worlds > 1_000
    # With one turn nothing is claimed, and without this fault no release fails.
    unchecked = {P.UNKNOWN_IS_NOT_GRANTED} if bounds.turns == 1 else set()
    unchecked |= set() if "fail" in bounds.kinds else {P.RELEASES_ARE_REPEATED}
    assert set(P) - set(report.checked) <= unchecked


def test_the_margin_covers_no_larger_skew() -> None:
    assert SKEWED.skew == SKEWED.times.margin
    assert explore_ownership(SKEWED).counterexamples == []
    beyond = attrs.evolve(SKEWED, skew=SKEWED.times.margin + 1)
    (found,) = explore_ownership(beyond).counterexamples
    assert found.prop is P.ONE_LIVE_OWNER
    assert found.path.count("tick without 0") == 2
    assert "pause 0" in found.path


def test_the_same_moves_lead_to_the_same_world() -> None:
    world, twin = World(ONCE), World(ONCE)
    for _ in range(12):
        move = list(world.moves())[-1]
        before = key(world)
        copy = world.copy()
        copy.happens(move)
        assert key(world) == before  # a copy is independent
        assert key(copy) != before
        twin.happens(move)
        assert key(copy) == key(twin)
        world = copy


# ------------------------------------------------------------------ coverage

NEVER = {
    "started-twice": "a process is started once",
    "answered-late": "`Holdings` passes on only the answer to the lease's open question",
    "leave-twice": "a process ends once",
    "due-left": "a lease that is given up has no `wake`",
    "begun-twice": "the key of a conversation is drawn once",
    "lease-lost-before": "`Holdings` keeps no claim that is not owned",
    "unused-before": "`Holdings` keeps no claim that is not owned",
}


def test_every_other_rule_fires() -> None:
    fired = set()

    class Watched(Holdings):
        @staticmethod
        def lease_step(*args: Any) -> ls.LeaseTransition:
            fired.add((done := ls.step(*args)).rule)
            return done

        @staticmethod
        def claim_step(*args: Any) -> cl.ClaimTransition:
            fired.add((done := cl.step(*args)).rule)
            return done

    for bounds in (
        *OWNERSHIP_BOUNDS["small"],
        OwnershipBounds("late answers", 1, 3, 1, SLOW, max_worlds=6_000),
        OwnershipBounds("leaving late", 1, 0, 2, SLOW | {"drain"}),
        OwnershipBounds("joining late", 1, 0, 1, SLOW, joined=False),
    ):
        assert explore_ownership(bounds, make=Watched).counterexamples == []
    rules = {rule.id for rule in ls.LEASE_RULES.values()}
    rules |= {rule.id for rule in cl.CLAIM_RULES.values()}
    assert rules - fired == set(NEVER)
