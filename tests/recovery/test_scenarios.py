"""The scenarios of tests/scenarios replay to themselves, and would fail if a rule or cell changed.

What belongs here: the coverage of cells and rules by scenarios. How a scenario is read and printed
is tests/verify/test_scenario.py.

``pytest tests/recovery --rewrite-scenarios`` writes the current output under each command: read the
difference before you commit it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from bridgecore.recovery import events as ev
from bridgecore.recovery.builder import TransitionBuilder
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.policy import DEFAULT, POLICIES, Action, Remedy, Situation
from bridgecore.recovery.rules import RULES, EventKey, Handling, Rule
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import Timer
from bridgecore.verify.scenario import replay, rules_of

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
SCENARIOS = sorted(FOLDER.glob("*.txt"))


def read(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_prints_what_happens(path: Path, request: pytest.FixtureRequest) -> None:
    said = path.read_text(encoding="utf-8")
    happened = replay(said, f"tests/scenarios/{path.name}")
    if said != happened and request.config.getoption("--rewrite-scenarios", default=False):
        path.write_text(happened, encoding="utf-8")
    elif said != happened:
        before, after = said.splitlines(), happened.splitlines()
        diff = difflib.unified_diff(before, after, "the scenario", "what happens", lineterm="")
        pytest.fail("\n".join([str(path), *diff]), pytrace=False)


# ------------------------------------------------------------------ each row bites

Cell = tuple[Situation, Standing]
Pair = tuple[Phase, EventKey]

U, B, T = Standing.UNANCHORED, Standing.BOUND, Standing.STORED
SUBMIT: Pair = (Phase.CLOSED, ev.TurnSubmitted)
CONNECT: Pair = (Phase.RECONNECTING, ev.ConnectionOpened)
IDLE_LOSS: Pair = (Phase.OPEN, ev.ConnectionLost)
NO_CONNECT: Pair = (Phase.RECONNECTING, ev.ConnectionLost)


def lost(phase: Phase) -> Pair:
    return (phase, ev.ConnectionLost)


# For each scenario of a row: the cells of the policy and the rules of the machine that it covers.
ROWS: dict[str, tuple[list[Cell], list[Pair]]] = {
    "row-1-closed-between-turns-unanchored": ([], [IDLE_LOSS, SUBMIT, CONNECT]),
    "row-1-closed-between-turns-anchored": (
        [(Situation.SEND_SKIPPED, T)],
        [IDLE_LOSS, SUBMIT, CONNECT],
    ),
    "row-2-reconnect-fails-unanchored": (
        [(Situation.CONNECT_FAILED, U)],
        [IDLE_LOSS, SUBMIT, NO_CONNECT],
    ),
    "row-2-reconnect-fails-anchored": (
        [(Situation.CONNECT_FAILED, T)],
        [IDLE_LOSS, SUBMIT, NO_CONNECT],
    ),
    "row-3-lost-while-sending-unanchored": (
        [(Situation.LOST_SENDING, U)],
        [lost(Phase.SENDING), CONNECT],
    ),
    "row-3-resend-cannot-connect-unanchored": (
        [(Situation.LOST_SENDING, U)],
        [lost(Phase.SENDING), NO_CONNECT],
    ),
    "row-3-lost-while-sending-anchored": ([(Situation.LOST_SENDING, T)], [lost(Phase.SENDING)]),
    "row-4-closed-before-created-unanchored": (
        [(Situation.LOST_SENT, U)],
        [lost(Phase.SENT), CONNECT],
    ),
    "row-4-closed-before-created-anchored": ([(Situation.LOST_SENT, B)], [lost(Phase.SENT)]),
    "row-4-silent-before-created-unanchored": (
        [(Situation.SILENT, U)],
        [(Phase.SENT, Timer.CREATED), CONNECT],
    ),
    "row-4-silent-before-created-anchored": (
        [(Situation.SILENT, B)],
        [(Phase.SENT, Timer.CREATED)],
    ),
    "row-5-closed-after-created-unanchored": ([(Situation.LOST_CREATED, U)], [lost(Phase.CREATED)]),
    "row-5-closed-after-created-anchored": ([(Situation.LOST_CREATED, B)], [lost(Phase.CREATED)]),
    "row-5-closed-after-output-unanchored": ([(Situation.LOST_OUTPUT, U)], [lost(Phase.OUTPUT)]),
    "row-5-closed-after-output-anchored": ([(Situation.LOST_OUTPUT, B)], [lost(Phase.OUTPUT)]),
    "row-6-cannot-recover-unanchored": ([(Situation.LOST_SENT, U)], [lost(Phase.SENT), CONNECT]),
    "row-6-cannot-recover-anchored": ([(Situation.SEND_SKIPPED, B)], [IDLE_LOSS, CONNECT]),
    "row-7-owner-unreachable-unanchored": ([(Situation.OWNER_LOST, U)], [NO_CONNECT, CONNECT]),
    "row-7-owner-unreachable-anchored": (
        [(Situation.OWNER_LOST, T), (Situation.SEND_SKIPPED, T)],
        [NO_CONNECT, CONNECT],
    ),
    "row-7-owner-lost-dispatched-unanchored": (
        [(Situation.OWNER_LOST_DISPATCHED, U)],
        [lost(Phase.SENT), CONNECT],
    ),
    "row-7-owner-lost-dispatched-anchored": (
        [(Situation.OWNER_LOST_DISPATCHED, T), (Situation.SEND_SKIPPED, T)],
        [lost(Phase.SENT), CONNECT],
    ),
    "row-8-owner-fails-after-output-unanchored": (
        [(Situation.OWNER_LOST_OUTPUT, U)],
        [lost(Phase.OUTPUT)],
    ),
    "row-8-owner-fails-after-output-anchored": (
        [(Situation.OWNER_LOST_OUTPUT, T)],
        [lost(Phase.OUTPUT)],
    ),
    "v1_12-row-2-reconnect-fails-anchored": ([(Situation.CONNECT_FAILED, T)], [NO_CONNECT]),
    "v1_12-row-3-lost-while-sending-anchored": (
        [(Situation.LOST_SENDING, T)],
        [lost(Phase.SENDING)],
    ),
    "v1_12-row-4-closed-before-created-anchored": ([(Situation.LOST_SENT, B)], [lost(Phase.SENT)]),
    "v1_12-row-4-silent-before-created-anchored": (
        [(Situation.SILENT, B)],
        [(Phase.SENT, Timer.CREATED)],
    ),
    "v1_12-row-5-closed-after-created-anchored": (
        [(Situation.LOST_CREATED, B)],
        [lost(Phase.CREATED)],
    ),
    "v1_12-row-5-closed-after-output-anchored": (
        [(Situation.LOST_OUTPUT, B)],
        [lost(Phase.OUTPUT)],
    ),
    "v1_12-row-6-cannot-recover-anchored": ([(Situation.SEND_SKIPPED, B)], [IDLE_LOSS, CONNECT]),
    "v1_12-row-6-cannot-recover-held": (
        [(Situation.SEND_SKIPPED, Standing.HELD)],
        [IDLE_LOSS, CONNECT],
    ),
}


def test_every_row_of_pr397_has_its_scenarios() -> None:
    assert set(ROWS) == {path.stem for path in SCENARIOS if "row-" in path.stem}
    for number in range(1, 9):
        for column in ("unanchored", "anchored"):
            assert any(re.fullmatch(rf"row-{number}-.*-{column}", name) for name in ROWS)
    # Only v1_12, which is broken on purpose, answers a loss with not-found.
    for name in ROWS:
        assert (FailureReply.NOT_FOUND.value in read(name)) is name.startswith("v1_12")


# Where no other replica owns the session, to rebind is to resend.
_SAME = {Action.RESEND: {Action.RESEND, Action.REBIND}}


def others(remedy: Remedy) -> Iterator[Remedy]:
    """Other remedies for the cell; each has to be noticed."""
    candidates = [
        Remedy(Action.REFUSE, FailureReply.OVERLOADED),
        Remedy(Action.RESEND, FailureReply.OVERLOADED),
        Remedy(Action.SURFACE, FailureReply.UPSTREAM_ERROR),
        Remedy(Action.REBIND, FailureReply.OVERLOADED),
    ]
    for candidate in candidates:
        if candidate.action not in _SAME.get(remedy.action, {remedy.action}):
            yield candidate
    if remedy.action in (Action.REFUSE, Action.REFUSE_BOUNDED, Action.FAIL):
        yield attrs.evolve(remedy, answer=FailureReply.OVERLOADED)


def cell_swaps() -> Iterator[tuple[str, Cell, Remedy]]:
    for name, (cells, _) in ROWS.items():
        policy = POLICIES["v1_12" if name.startswith("v1_12") else "pr397"]
        for cell in cells:
            for remedy in others(policy.remedy(*cell)):
                yield name, cell, remedy


@pytest.mark.parametrize(("name", "cell", "remedy"), list(cell_swaps()))
def test_a_row_fails_when_its_cell_is_swapped(name: str, cell: Cell, remedy: Remedy) -> None:
    said = read(name)
    swapped = {key: policy.with_cell(*cell, remedy) for key, policy in POLICIES.items()}
    assert replay(said, name, swapped) != said


def test_a_row_fails_when_the_answer_after_the_replay_is_swapped() -> None:
    for name, (cells, _) in ROWS.items():
        for cell in cells:
            remedy = POLICIES["pr397"].remedy(*cell)
            if remedy.action is Action.RESEND and name.startswith("row-"):
                swapped = Remedy(Action.RESEND, FailureReply.OVERLOADED)
                policies = {"pr397": POLICIES["pr397"].with_cell(*cell, swapped)}
                assert replay(read(name), name, policies) != read(name), name


@pytest.mark.parametrize(
    ("name", "pair"), [(name, pair) for name, (_, pairs) in ROWS.items() for pair in pairs]
)
def test_a_row_fails_when_its_rule_is_dropped(
    name: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = read(name)
    dropped = Rule("dropped", (pair[0],), pair[1], Handling.HANDLED, "dropped", _do_nothing)
    monkeypatch.setitem(RULES, pair, dropped)
    assert replay(said, name) != said


def _do_nothing(builder: TransitionBuilder, event: Event) -> None:
    """A rule that does nothing."""


# ------------------------------------------------------------------ the default table

# A turn without an anchor depends on nothing that a connection could fail to know.
UNREACHABLE = (Situation.SEND_SKIPPED, Standing.UNANCHORED)
CELLS = sorted(set(DEFAULT.cells) - {UNREACHABLE}, key=str)


def scenario_of(cell: Cell) -> str:
    """The name of the one scenario that covers ``cell`` of the default table."""
    situation, standing = cell
    return f"default-{situation.name}-{standing.value}".lower().replace("_", "-")


def test_every_cell_of_the_default_table_has_its_scenario() -> None:
    named = {path.stem for path in SCENARIOS if path.stem.startswith("default-")}
    assert named == set(map(scenario_of, CELLS))


@pytest.mark.parametrize("cell", CELLS, ids=scenario_of)
def test_the_scenario_of_a_cell_fails_when_the_cell_is_swapped(cell: Cell) -> None:
    said = read(scenario_of(cell))
    for remedy in others(DEFAULT.remedy(*cell)):
        swapped = {DEFAULT.name: DEFAULT.with_cell(*cell, remedy)}
        assert replay(said, policies=swapped) != said, remedy


def test_no_scenario_reaches_the_unreachable_cell() -> None:
    for remedy in others(DEFAULT.remedy(*UNREACHABLE)):
        swapped = {**POLICIES, DEFAULT.name: DEFAULT.with_cell(*UNREACHABLE, remedy)}
        for path in SCENARIOS:
            said = path.read_text(encoding="utf-8")
            assert replay(said, path.name, swapped) == said, path.stem


# ------------------------------------------------------------------ the rules


def test_every_rule_that_can_be_met_has_a_scenario() -> None:
    met = {rule for path in SCENARIOS for rule in rules_of(path.read_text(encoding="utf-8"))}
    rules = {rule.id for rule in RULES.values() if rule.handling is not Handling.ILLEGAL}
    assert rules - met == set()
