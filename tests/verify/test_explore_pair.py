"""Tests of verify/explore_pair.py: our bridges are clean, broken ones are detected."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from bridgecore.bridge import Bridge
from bridgecore.config import Config
from bridgecore.continuity.memory import Memory
from bridgecore.forwarding import Forwarding
from bridgecore.messages import BridgeTimeout
from bridgecore.ownership import claims as cl
from bridgecore.ownership.holdings import Fence, Holdings
from bridgecore.ownership.store import Claimed
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import Action, Remedy, Situation
from bridgecore.replica import Replica
from bridgecore.verify import pair_machine
from bridgecore.verify.explore_pair import PAIR_BOUNDS, explore_pair
from bridgecore.verify.pair_key import key_of
from bridgecore.verify.pair_moves import moves, started
from bridgecore.verify.pair_properties import PairProperty
from bridgecore.verify.pair_records import FAULTS, Move, PairBounds
from bridgecore.verify.pair_world import World

P = PairProperty
Make = Callable[..., Bridge]


def going_wrong(*kinds: str, turns: int = 2, attempts: int = 3) -> PairBounds:
    """Bounds in which each of ``kinds`` can happen once."""
    return PairBounds("+".join(kinds), 1, turns, attempts, len(kinds), frozenset(kinds))


# ------------------------------------------------------------------ mutants: what is forwarded


def with_replica(kind: type[Replica]) -> Make:
    """Bridges with another replica."""

    class Mutant(Bridge):
        def __init__(self, config: Config, *, seed: bytes) -> None:
            super().__init__(config, seed=seed)
            self._replica = kind(config, self._memory, seed)

    Mutant.__name__ = kind.__name__
    return Mutant


def with_forwarding(kind: type[Forwarding]) -> Make:
    """Bridges that forward turns in another way."""

    class Passing(Replica):
        def __init__(self, config: Config, memory: Memory, seed: bytes) -> None:
            super().__init__(config, memory, seed)
            self._forwarding = kind(config.cluster_secrets)

    Passing.__name__ = kind.__name__
    return with_replica(Passing)


def with_holdings(kind: type[Holdings]) -> Make:
    """Bridges that hold leases and conversations in another way."""

    class Holding(Replica):
        def __init__(self, config: Config, memory: Memory, seed: bytes) -> None:
            super().__init__(config, memory, seed)
            old = self._holdings
            self._holdings = kind(old.replica, old.advertise, old.times, seed)

    Holding.__name__ = kind.__name__
    return with_replica(Holding)


def with_remedy(situation: Situation, remedy: Remedy) -> Callable[[str], Make]:
    """Bridges with another policy for one situation, by name."""

    def make(config: Config, *, seed: bytes) -> Bridge:
        policy = config.policy
        for standing in Standing:
            policy = policy.with_cell(situation, standing, remedy)
        return Bridge(attrs.evolve(config, policy=policy), seed=seed)

    def named(name: str) -> Make:
        make.__name__ = name
        return make

    return named


# They take a turn over although its owner may have sent it; send a turn again that was sent.
rebinds_unknown = with_remedy(
    Situation.OWNER_LOST_DISPATCHED, Remedy(Action.REBIND, FailureReply.OWNER_UNREACHABLE)
)("rebinds_unknown")
resends = with_remedy(Situation.LOST_SENT, Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE))(
    "resends"
)


class ForwardsForwards(Forwarding):
    """Forwards what was forwarded."""

    def forward(self, turn: Any, owner: Any) -> Any:
        forward, turn.forward = turn.forward, None
        try:
            return super().forward(turn, owner)
        finally:
            turn.forward = forward


class TakesAll(Replica):
    """Serves a forward whatever lease it names."""

    def takes(self, turn: Any, now: int) -> bool:
        return True


class TakesNone(Replica):
    """Serves no forward."""

    def takes(self, turn: Any, now: int) -> bool:
        return turn.forward is None


# ------------------------------------------------------------------ mutants: leases


class IgnoresLoss(Holdings):
    """Keeps what it has claimed once, lease or not."""

    @staticmethod
    def claim_step(claim: cl.Claim, event: cl.ClaimEvent) -> cl.ClaimTransition:
        if isinstance(event, cl.LeaseLost):
            return cl.ClaimTransition(claim, (), "ignored")
        return cl.step(claim, event)

    def may_send(self, conversation: bytes, now: int) -> bool:
        return conversation in self._claims


class IgnoresFences(Replica):
    """Does not stop what is under way when its lease is lost."""

    def _carry_out(self, effects: Any, now: int) -> Any:
        kept = [effect for effect in effects if not isinstance(effect, Fence)]
        return super()._carry_out(kept, now)


class LooksLate(Bridge):
    """Handles events before it looks whether its lease has ended."""

    def handle(self, event: Any, now: int) -> Any:
        assert self._replica is not None
        if not isinstance(event, BridgeTimeout):
            self._replica.timeout = lambda now: []  # type: ignore[method-assign]  # the mutation
        try:
            return super().handle(event, now)
        finally:
            vars(self._replica).pop("timeout", None)


class NeverClaims(Replica):
    """Believes that it knows all that it needs."""

    def lookup(self, turn: Any, now: int) -> None:
        return None


# ------------------------------------------------------------------ mutants: contexts and ends


class HalfContext(Replica):
    """Takes back only the end of a transcript."""

    def _resolved(self, resolved: Any, now: int) -> Any:
        if isinstance(resolved.answer, Claimed) and len(resolved.answer.path) > 1:
            half = attrs.evolve(resolved.answer, path=resolved.answer.path[:1])
            resolved = attrs.evolve(resolved, answer=half)
        return super()._resolved(resolved, now)


class ShowsAnyway(Replica):
    """Shows the end of a turn whose client has left."""

    def left(self, turn: int) -> None:
        if turn not in self._endings:
            super().left(turn)


class NeverShows(Replica):
    """Loses the end of a turn whose commit fails."""

    def _settled(self, settled: Any, now: int) -> Any:
        ending = self._endings[settled.turn]
        if not settled.durable:
            ending.answer = None
        return super()._settled(settled, now)


class Panics(Replica):
    """Does not expect to be declined."""

    def declined(self, turn: Any, owner: Any, returned: Any, now: int) -> Any:
        raise KeyError(turn.id)


MUTANTS: list[tuple[Any, PairBounds, P]] = [
    (rebinds_unknown, going_wrong("slow", "evict"), P.UNKNOWN_IS_LEFT_TO_THE_CLIENT),
    (resends, going_wrong("break"), P.SENT_ONCE),
    (with_forwarding(ForwardsForwards), going_wrong("slow", "evict"), P.DEPTH_ONE),
    (with_replica(TakesAll), going_wrong("pause", attempts=2), P.FORWARD_IS_FOR_ITS_LEASE),
    (with_replica(TakesNone), going_wrong("lose"), P.LIVENESS),
    (with_holdings(IgnoresLoss), going_wrong("cut", turns=3), P.ONE_OWNER_SENDS),
    (with_holdings(IgnoresLoss), going_wrong("cut"), P.NO_SEND_WITHOUT_A_LEASE),
    (
        with_replica(IgnoresFences),
        going_wrong("cut", "break", attempts=2),
        P.NO_SEND_WITHOUT_A_LEASE,
    ),
    (LooksLate, going_wrong("pause", "break", attempts=2), P.NO_SEND_WITHOUT_A_LEASE),
    (with_replica(NeverClaims), going_wrong("lose"), P.CONTEXT_IS_MEANT),
    (with_replica(HalfContext), going_wrong("drain", turns=3), P.CONTEXT_IS_MEANT),
    (with_replica(ShowsAnyway), going_wrong("leave"), P.ONE_END),
    (with_replica(NeverShows), going_wrong("fail"), P.ONE_END),
    (with_replica(Panics), going_wrong("crash"), P.NO_ERROR),
]


@pytest.mark.parametrize(
    ("mutant", "bounds", "prop"), MUTANTS, ids=[f"{m.__name__}-{b.name}" for m, b, _ in MUTANTS]
)
def test_a_mutant_is_detected(mutant: Make, bounds: PairBounds, prop: P) -> None:
    report = explore_pair(bounds, make=mutant, judged={prop})
    assert [found.prop for found in report.counterexamples] == [prop]


def test_each_property_detects_a_mutant() -> None:
    assert {prop for _, _, prop in MUTANTS} == set(P)


# ------------------------------------------------------------------ ours are clean


@pytest.mark.timeout(240)
@pytest.mark.parametrize("bounds", PAIR_BOUNDS["small"], ids=lambda bounds: bounds.name)
def test_our_bridges_are_clean(bounds: PairBounds, monkeypatch: pytest.MonkeyPatch) -> None:
    happens, happened = World.happens, set()

    def watched(world: World, move: Move) -> None:
        happened.add(move.what)
        happens(world, move)

    monkeypatch.setattr(World, "happens", watched)
    report = explore_pair(bounds)
    assert report.counterexamples == []
    assert report.complete
    assert report.worlds > 1_000
    assert set(report.checked) == set(P)
    assert happened == MOVES


MOVES = {
    *(FAULTS | {"delay"}),
    *("tick", "timeout", "start", "go on", "mend", "ask"),
    *("answer", "carry out", "deliver"),
    *("opened", "created", "output", "completed", "not found"),
    *("connected", "arrives", "heard", "ended", "cancelled", "give up"),
}
WALKED = going_wrong("slow", "crash")


def walk(steps: int) -> list[World]:
    """A path on which one or another thing happens that can happen, in no period."""
    worlds = [started(WALKED)]
    for step in range(steps):
        possible = list(moves(worlds[-1]))
        world = worlds[-1].copy()
        world.happens(possible[step * step % len(possible)])
        worlds.append(world)
    return worlds


def test_a_copy_of_a_world_is_independent() -> None:
    for world in walk(40):
        before = key_of(world)
        for move in list(moves(world)):
            world.copy().happens(move)
            assert key_of(world) == before


def test_bridges_are_copied_as_deepcopy_copies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [key_of(world) for world in walk(40)]
    monkeypatch.setattr(pair_machine, "_copy", copy.deepcopy)
    assert [key_of(world) for world in walk(40)] == ours
    assert len(set(ours)) > 30
