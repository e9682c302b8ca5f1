"""Tests of simulate/cluster.py: crowds over several replicas, each kind of outage by itself, and
planted bugs that only several replicas can have.

What belongs here: runs with few clients and fixed seeds, as in test_world.py, also those of the
modules that a cluster consists of. Large runs are made with the command.
"""

from __future__ import annotations

import attrs
import pytest

from bridgecore.messages import AnswerEvents
from bridgecore.ownership import lease
from bridgecore.ownership.holdings import Holdings
from bridgecore.ownership.store import Commit, Committed, Done, Join, Owner, StoredResponse
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, Action, Policy, Remedy, Situation
from bridgecore.replica import Replica, ReplicaEffect
from bridgecore.simulate import Outage, Report, Scenario, run, run_many, shrink
from bridgecore.simulate.outages import planned
from bridgecore.simulate.shared_store import ResponseFate, SharedStore
from bridgecore.testing.store import StoreModel

SMALL = Scenario(seed=3, clients=12, turns=8, fault_every=3, replicas=3)
CALM = attrs.evolve(SMALL, fault_every=None, outages=())


def properties(report: Report) -> set[str]:
    return {violation.prop for violation in report.violations}


def together(scenario: Scenario, conversations: int) -> Report:
    total = Report()
    for _, report in run_many(scenario, conversations):
        total.add(report)
    return total


# ------------------------------------------------------------------ sound replicas


def test_replicas_with_faults_of_all_kinds_violate_nothing() -> None:
    total = together(SMALL, 36)
    assert [str(violation) for violation in total.violations] == []
    assert total.turns + total.given_up + total.probes == 36 * 8
    # There was something to see.
    assert total.cluster["forwards"] > 50
    assert total.cluster["claims"] > 20
    assert total.outages > 20


@pytest.mark.parametrize("what", Outage, ids=lambda what: what.name)
def test_each_outage_by_itself_violates_nothing(what: Outage) -> None:
    report = run(attrs.evolve(CALM, outages=(what,), turns=6))
    assert [str(violation) for violation in report.violations] == []
    assert report.troubles[what.name] > 2


def test_without_outages_every_turn_is_served_at_once() -> None:
    profiles = tuple(
        attrs.evolve(profile, impatient=False, probing=False) for profile in CALM.profiles
    )
    report = run(attrs.evolve(CALM, profiles=profiles))
    assert report.violations == []
    assert report.turns == report.attempts == report.upstream_turns == 96
    assert report.cluster["forwards"] > 20


def test_preloaded_connections_of_replicas_have_the_context() -> None:
    report = run(attrs.evolve(SMALL, warm=True))
    assert [str(violation) for violation in report.violations] == []


def test_a_run_of_replicas_can_be_repeated() -> None:
    first, again = run(SMALL), run(SMALL)
    assert attrs.asdict(first) == attrs.asdict(again)
    lines: list[str] = []
    assert run(SMALL, lines.append).digest == first.digest
    assert any("crashes" in line for line in lines)


def test_an_outage_does_not_depend_on_others() -> None:
    """So that one can be left out of a run to see whether it matters."""
    assert planned(1, 7, tuple(Outage)) == planned(1, 7, tuple(Outage))
    drawn = [planned(1, nth, tuple(Outage)) for nth in range(200)]
    assert {plan.what for plan in drawn} == set(Outage)


# ------------------------------------------------------------------ planted bugs


def test_a_replica_that_ignores_the_end_of_its_lease_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = lease.step

    def deaf(
        state: lease.Lease, event: lease.LeaseEvent, times: lease.LeaseTimes, now: int
    ) -> lease.LeaseTransition:
        transition = step(state, event, times, now)
        effects = tuple(e for e in transition.effects if e is not lease.LeaseEffect.LOST)
        return attrs.evolve(transition, effects=effects)

    def still(holdings: Holdings, conversation: bytes, now: int) -> bool:
        return holdings.epoch(conversation) > 0

    monkeypatch.setattr(Holdings, "lease_step", staticmethod(deaf))
    monkeypatch.setattr(Holdings, "may_send", still)
    cut_off = attrs.evolve(CALM, outages=(Outage.STORE_LOST, Outage.PAUSE))
    assert "ownership" in properties(together(cut_off, 48))


def resends_forwards() -> Policy:
    """What became of a forward is not known, and it is sent again all the same."""
    cell = Remedy(Action.REBIND, FailureReply.OWNER_UNREACHABLE)
    policy = DEFAULT
    for standing in Standing:
        policy = policy.with_cell(Situation.OWNER_LOST_DISPATCHED, standing, cell)
    return attrs.evolve(policy, name="resends forwards")


def test_a_forward_that_is_sent_again_is_caught_and_shrunk() -> None:
    """A paused owner has sent the turn already when its forward is given up."""
    failing = attrs.evolve(
        SMALL,
        seed=52,
        clients=8,
        turns=6,
        fault_every=2,
        outages=(Outage.PAUSE,),
        policy=resends_forwards(),
    )
    violation = next(found for found in run(failing).violations if found.prop == "execution")
    shrunk = shrink(failing, violation, 120)
    text = str(shrunk)
    assert f"{shrunk.scenario.replicas} replicas" in text
    assert "is paused" in text
    assert "owner=http://" in text
    assert shrunk.timeline[-1].endswith("sent upstream 2 times in 1 attempts")
    assert len(shrunk.timeline) < 40


def test_an_end_that_is_shown_before_it_is_stored_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hasty(
        replica: Replica, answer: AnswerEvents, *_: object, **__: object
    ) -> list[ReplicaEffect]:
        return [answer]

    monkeypatch.setattr(Replica, "commit", hasty)
    report = together(attrs.evolve(CALM, outages=(Outage.CRASH,)), 24)
    assert properties(report) == {"not-found"}


# ------------------------------------------------------------------ what the store has forgotten


OWNER = Owner("a", "1")


def stored(model: StoreModel, name: str, parent: str | None = None) -> None:
    response = StoredResponse(
        name.encode(), "s", (name,), None if parent is None else parent.encode(), None, b""
    )
    epoch = 1 if parent else 0
    missing = parent is not None and model.key("s", parent) is None
    done = model.handle(Commit(OWNER, b"c", epoch, (response,)), 0)
    assert done == Committed(1, missing=missing)


def test_the_store_knows_what_it_has_forgotten() -> None:
    store = SharedStore()
    assert store.model.handle(Join(OWNER, None, 10), 0) != Done()
    stored(store.model, "one")
    backup = store.model.copy()
    stored(store.model, "two", "one")
    assert store.fate("s", "two") is ResponseFate.STORED
    assert store.fail_over(backup) == 1
    assert store.fate("s", "two") is ResponseFate.FORGOTTEN
    stored(store.model, "three", "two")
    assert store.fate("s", "three") is ResponseFate.SEVERED
    assert store.fate("s", "one") is ResponseFate.STORED
    assert store.fate("t", "one") is ResponseFate.UNKNOWN
    stored(store.model, "five", "four")
    assert store.fate("s", "five") is ResponseFate.INCOMPLETE
