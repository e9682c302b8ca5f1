"""Tests of admission/placement.py: the whole table, takeovers of sessions, and their order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.admission.placement import (
    LOOKED_AT,
    PROTECTED,
    SINGLES,
    Arrival,
    Branch,
    Idle,
    Join,
    Kin,
    Placement,
    Seat,
    place,
    route,
    take_over,
)
from bridgecore.recovery.events import Standing

JOIN, BRANCH = Placement.JOIN, Placement.BRANCH
FACTS = list(product([True, False], repeat=2))


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
@pytest.mark.parametrize("standing", Standing)
def test_without_a_session(standing: Standing, idle: bool, displaces: bool) -> None:
    assert place(standing, known=False, idle=idle, displaces=displaces) is BRANCH


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
def test_unanchored(idle: bool, displaces: bool) -> None:
    # A recognised history continues in its conversation's session if that is free: otherwise a
    # client that repeats its history would leave an idle session behind with each request.
    found = place(Standing.UNANCHORED, known=True, idle=idle, displaces=displaces)
    assert found is (JOIN if idle and not displaces else BRANCH)


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
def test_bound_waits_for_its_socket(idle: bool, displaces: bool) -> None:
    assert place(Standing.BOUND, known=True, idle=idle, displaces=displaces) is JOIN


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
def test_unknown_does_not_wait(idle: bool, displaces: bool) -> None:
    found = place(Standing.UNKNOWN, known=True, idle=idle, displaces=displaces)
    assert found is (JOIN if idle else BRANCH)


@pytest.mark.parametrize(("idle", "displaces"), FACTS)
@pytest.mark.parametrize("standing", [Standing.STORED, Standing.HELD, Standing.INJECTED])
def test_stored_held_and_injected_turns_join_an_idle_session_or_branch(
    standing: Standing, idle: bool, displaces: bool
) -> None:
    found = place(standing, known=True, idle=idle, displaces=displaces)
    assert found is (JOIN if idle and not displaces else BRANCH)


# ------------------------------------------------------------------ taking over an idle session

FREE = Idle(continued=False, dispensable=True)
CONTINUED = Idle(continued=True, dispensable=True)
NEEDED = Idle(continued=False, dispensable=False)


def test_an_unrecognised_history_takes_over_an_idle_session_of_its_family() -> None:
    assert take_over([FREE, FREE], repeats=True) == 0
    assert take_over([NEEDED, CONTINUED, FREE], repeats=True) == 2
    assert take_over([NEEDED, CONTINUED], repeats=True) is None
    assert take_over([], repeats=True) is None


def test_continued_sessions_are_taken_over_only_beyond_the_protected_number() -> None:
    assert take_over([CONTINUED] * PROTECTED, repeats=True) is None
    assert take_over([CONTINUED] * (PROTECTED + 1), repeats=True) == PROTECTED


def test_a_new_conversation_takes_over_only_after_many_single_turns() -> None:
    assert take_over([FREE] * (SINGLES - 1), repeats=False) is None
    assert take_over([FREE] * SINGLES, repeats=False) == SINGLES - 1
    assert take_over([FREE] * SINGLES + [CONTINUED, NEEDED] * 9, repeats=False) == SINGLES - 1
    assert take_over([CONTINUED] * 99, repeats=False) is None


@given(st.lists(st.sampled_from([FREE, CONTINUED, NEEDED]), max_size=30), st.booleans())
def test_a_session_that_a_response_depends_on_is_never_taken_over(
    family: list[Idle], repeats: bool
) -> None:
    place = take_over(family, repeats=repeats)
    if place is not None:
        assert family[place].dispensable
        assert place >= PROTECTED or not family[place].continued


@given(st.integers(1, 200), st.sampled_from([FREE, CONTINUED]))
def test_histories_leave_few_sessions_behind(turns: int, after: Idle) -> None:
    """Whatever becomes of a turn's session, a family with one turn at a time stays small."""
    family: list[Idle] = []
    for _ in range(turns):
        place = take_over(family, repeats=True)
        if place is not None:
            del family[place]
        family.insert(0, after)
    assert len(family) <= PROTECTED + 1


# ------------------------------------------------------------------ the order of the decisions


def unread() -> Iterator[Any]:
    """A value that must not be read, because it does not matter."""
    return map(pytest.fail, ["it was looked at"])


BEGINS = Arrival(Standing.UNANCHORED, None, recognised=False, repeats=False)
REPEATS = Arrival(Standing.UNANCHORED, None, recognised=False, repeats=True)
RECOGNISED = Arrival(Standing.UNANCHORED, None, recognised=True, repeats=True)
HELD = Arrival(Standing.HELD, "r1", recognised=False, repeats=False)
BOUND = Arrival(Standing.BOUND, "r1", recognised=False, repeats=False)
OWN = Kin(continued=False, dispensable=True, key=9, idle=True)


def test_a_history_is_routed_to_the_session_that_caches_it() -> None:
    candidates = [
        ("r3", None),
        ("r2", Seat(1, True, "r3")),  # its connection has another response cached
        ("r2", Seat(2, False, "r2")),  # a turn runs there
        ("r1", Seat(3, True, "r1")),
        ("r0", Seat(4, True, "r0")),
    ]
    found = route(RECOGNISED, candidates=candidates, home=Seat(5, True, None), family=unread())
    assert found == Join(3, inject=3)


@pytest.mark.parametrize("live", [None, "r1"])
def test_an_anchored_turn_is_routed_to_its_session(live: str | None) -> None:
    assert route(HELD, candidates=[], home=Seat(5, True, live), family=unread()) == Join(5)
    assert route(BOUND, candidates=[], home=Seat(5, False, live), family=unread()) == Join(5)


@pytest.mark.parametrize("home", [None, Seat(5, False, "r1"), Seat(5, True, "r2")])
def test_a_continuation_without_a_session_gets_a_new_one(home: Seat | None) -> None:
    for turn in (HELD, RECOGNISED):
        assert route(turn, candidates=[], home=home, family=unread()) == Branch()


def test_a_new_conversation_may_take_over_a_session_of_its_family() -> None:
    busy = Kin(continued=False, dispensable=True, key=8, idle=False)
    assert route(REPEATS, candidates=[], home=None, family=[busy, OWN]) == Join(9)
    assert route(REPEATS, candidates=[], home=None, family=[busy]) == Branch()
    assert route(REPEATS, candidates=[], home=None, family=[busy] * LOOKED_AT + [OWN]) == Branch()
    assert route(BEGINS, candidates=[], home=None, family=[OWN]) == Branch()
    assert route(BEGINS, candidates=[], home=None, family=[OWN] * SINGLES) == Join(9)
