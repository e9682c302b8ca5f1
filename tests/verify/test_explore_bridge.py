"""Tests of verify/explore_bridge.py: our bridge is clean, and bridges with a bug are detected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from bridgecore import intake
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity
from bridgecore.continuity import memory
from bridgecore.continuity.memory import Memory
from bridgecore.continuity.nodes import Match, expand
from bridgecore.continuity.transcript import Transcripts
from bridgecore.intake import Resolver
from bridgecore.messages import AnswerEvents, TurnLeft
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.session import Session
from bridgecore.verify.explore_bridge import (
    BRIDGE_BOUNDS,
    BridgeBounds,
    BridgeProperty,
    BridgeViolationError,
    Move,
    World,
    explore_bridge,
)

HELD, PASSED = Continuity.TRANSCRIPT, Continuity.PASSTHROUGH
# As deep as the exploration of our bridge; each broken bridge is detected within these.
SHALLOW = BridgeBounds("shallow", 2, 1, HELD, 5)
WIDE = BridgeBounds("wide", 3, 2, PASSED, 7, credentials=1)
LATE = BridgeBounds("late", 2, 1, PASSED, 5, Resolver.DRIVER)


@pytest.mark.parametrize("bounds", BRIDGE_BOUNDS["small"], ids=lambda bounds: bounds.name)
def test_our_bridge_is_clean(bounds: BridgeBounds) -> None:
    report = explore_bridge(bounds)
    assert report.counterexamples == []
    assert report.complete
    assert report.worlds > 100
    always = set(BridgeProperty) - {
        BridgeProperty.NO_ERROR,  # checked by the absence of exceptions
        BridgeProperty.IDLE_MAKES_ROOM,
        BridgeProperty.REJECTED_ONLY_WHEN_FULL,
        BridgeProperty.REJECTED_INJECTION_ENDS,
    }
    # Without transcripts nothing is rebuilt; with resolver moves the depth is too small for it.
    if bounds.continuity is PASSED or bounds.resolver is Resolver.DRIVER:
        always -= {BridgeProperty.REJECTED_REBUILD_ENDS}
    assert always <= set(report.checked)


def test_the_same_path_leads_to_the_same_world() -> None:
    bounds = BRIDGE_BOUNDS["small"][0]
    path: list[Any] = []
    for _ in range(5):
        here = World(bounds, Bridge, path)
        assert here.key() == World(bounds, Bridge, path).key()
        path.append(list(here.moves())[-1])
    assert World(bounds, Bridge, path).key() != World(bounds, Bridge).key()


# ------------------------------------------------------------------ bridges that are broken


class MostRecentFirst(Bridge):
    """Evicts the most recently used conversation."""

    def _residents(self) -> Any:
        return reversed(list(super()._residents()))


class NoRoom(Bridge):
    """Never evicts."""

    def _residents(self) -> Any:
        return iter(())


class AlwaysRoom(Bridge):
    """Has no limit of conversations."""

    def _make_room(self, now: int) -> bool:
        return True


class Deaf(Bridge):
    """Ignores that a client left."""

    def handle(self, event: Any, now: int) -> Any:
        return [] if isinstance(event, TurnLeft) else super().handle(event, now)


class Unforgetting(Bridge):
    """Ignores that a client left while its turn was being resolved."""

    def _left_on_its_way(self, event: Any) -> None:
        pass


class Reviving(Bridge):
    """Accepts a turn whose client has left, when its lookup is answered."""

    def _left_on_its_way(self, event: Any) -> None:
        self.left = self._intake.leave(event.turn)

    def _turn_resolved(self, event: Any, now: int) -> None:
        left = vars(self).get("left")
        if left is not None and left.query == event.query:
            self._bring_in(left, now)
        else:
            super()._turn_resolved(event, now)


class Mixed(Bridge):
    """Delivers all events to the latest turn."""

    def handle(self, event: Any, now: int) -> Any:
        last = next(reversed(self._turns), None)
        effects = super().handle(event, now)
        for effect in effects:
            if isinstance(effect, AnswerEvents) and last is not None:
                effect.turn = last
        return effects


class Stubborn(Session):
    """Does not remember that an anchor was rejected."""

    def handle(self, event: ev.Event, now: int) -> tuple[Effect, ...]:
        before = self.state.cached_response
        effects = super().handle(event, now)
        if isinstance(event, ev.UpstreamRefused | ev.ResponseEnded) and before is not None:
            self.state = attrs.evolve(self.state, cached_response=before)
        return effects


class OfStubborn(Bridge):
    def _new_conversation(self, *args: Any) -> Any:
        conversation = super()._new_conversation(*args)
        conversation.session = Stubborn(self._policy)
        return conversation


def one_more(config: Config) -> Bridge:
    return Bridge(attrs.evolve(config, max_sessions=config.max_sessions + 1))


P = BridgeProperty


@pytest.mark.parametrize(
    ("make", "bounds", "prop"),
    [
        (NoRoom, SHALLOW, P.REJECTED_ONLY_WHEN_FULL),
        (AlwaysRoom, SHALLOW, P.SESSIONS_ARE_LIMITED),
        (one_more, SHALLOW, P.SESSIONS_ARE_LIMITED),
        (Deaf, SHALLOW, P.ONE_END),
        (Unforgetting, LATE, P.ONE_END),
        (Reviving, LATE, P.ONE_END),
        (NoRoom, LATE, P.REJECTED_ONLY_WHEN_FULL),
        (Mixed, WIDE, P.ANSWER_IS_ITS_OWN),
        (OfStubborn, attrs.evolve(SHALLOW, depth=6), P.HELD_IS_ANSWERED),
    ],
)
def test_a_broken_bridge_is_found(
    make: Callable[[Config], Bridge], bounds: BridgeBounds, prop: BridgeProperty
) -> None:
    (found,) = explore_bridge(bounds, make=make).counterexamples
    assert found.prop is prop
    assert found.path


def test_a_property_that_is_not_judged_ends_nothing() -> None:
    few = attrs.evolve(SHALLOW, sessions=1, depth=4)
    (found,) = explore_bridge(few, make=AlwaysRoom).counterexamples
    assert found.prop is BridgeProperty.SESSIONS_ARE_LIMITED
    others = frozenset(BridgeProperty) - {found.prop}
    report = explore_bridge(few, make=AlwaysRoom, judged=others)
    assert report.complete
    assert found.prop not in {one.prop for one in report.counterexamples}


def test_the_least_recently_used_conversation_is_evicted() -> None:
    way = ["fresh", "opened", "answers"] * 2 + ["fresh"]
    for make in (Bridge, MostRecentFirst):
        path: list[Any] = []
        for what in way[:-1]:
            moves = World(WIDE, make, path).moves()
            path.append(next(move for move in moves if move.what == what))
        world = World(WIDE, make, path)
        last = next(move for move in world.moves() if move.what == way[-1])
        if make is Bridge:
            world.happens(last)
        else:
            with pytest.raises(BridgeViolationError, match=P.IDLE_MAKES_ROOM.name):
                world.happens(last)


def test_one_scope_for_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "credential_scope", lambda *_: "everybody")
    (found,) = explore_bridge(attrs.evolve(SHALLOW, depth=6)).counterexamples
    assert found.prop in (P.CREDENTIALS_ARE_KEPT_APART, P.FOREIGN_IS_UNKNOWN)


def test_a_reduction_that_takes_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    recognise = Transcripts.recognise

    def greedy(self: Transcripts, scope: str, prompt: Any, now: int) -> list[Match]:
        matches = recognise(self, scope, prompt, now)
        return [Match(match.node, match.repeated - 1) for match in matches]

    monkeypatch.setattr(Transcripts, "recognise", greedy)
    (found,) = explore_bridge(attrs.evolve(SHALLOW, depth=6)).counterexamples
    assert found.prop is P.CONTEXT_IS_MEANT


def test_a_context_that_is_rebuilt_in_part_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def partly(node: Any, prompt: Any) -> Any:
        expansion = expand(node, prompt)
        frame = prompt.frame(prompt.meant_text(), None)
        return attrs.evolve(expansion, frame=frame)

    monkeypatch.setattr(memory, "expand", partly)
    (found,) = explore_bridge(attrs.evolve(SHALLOW, depth=7)).counterexamples
    assert found.prop in (P.CONTEXT_IS_MEANT, P.OUTPUTS_HAVE_CALLS)


def test_a_memory_that_forgets_everything_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "remember", lambda *args, **more: None)
    (found,) = explore_bridge(attrs.evolve(SHALLOW, depth=6)).counterexamples
    assert found.prop is P.HELD_IS_ANSWERED


def test_a_turn_on_its_way_may_rebuild_what_was_rejected_for_another() -> None:
    """Both continue one response, the second on a new link, where the rebuilt input is rejected.
    Then the first one's link has forgotten the response."""
    moves: list[tuple[str, tuple[Any, ...]]] = [
        ("fresh", (0,)), ("opened", (2,)), ("answers", (2,)), ("continue", (0, "resp_1")),
        ("continue", (0, "resp_1")), ("opened", (4,)), ("invalid", (4,)), ("forgets", (2,)),
    ]  # fmt: skip
    world = World(BRIDGE_BOUNDS["nightly"][1], Bridge)
    for what, about in moves:
        world.happens(Move(what, about))
    assert [turn.id for turn in world.turns.values()] == [2]  # and it may yet be answered


def test_concurrent_responses_have_different_ids() -> None:
    """One response is created; another one begins and ends before it. They need different ids:
    otherwise continuing one could continue the other."""
    moves: list[tuple[str, tuple[Any, ...]]] = [
        ("fresh", (0,)), ("fresh", (0,)), ("opened", (2,)), ("begins", (2,)), ("opened", (4,)),
        ("answers", (4,)), ("answers", (2,)), ("continue", (0, "resp_1")),
    ]  # fmt: skip
    world = World(BRIDGE_BOUNDS["nightly"][1], Bridge)
    for what, about in moves:
        world.happens(Move(what, about))
    assert [made.id for made in world.responses.values()] == ["resp_2", "resp_1"]
