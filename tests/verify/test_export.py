"""Tests of verify/export.py: what is written says the same as the explorer.

TLC, which reads the TLA+ module, is no part of these tests: ``make verify-tlc``. Here a small
reader of the tables in it finds the worlds and counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import attrs
import pytest

from bridgecore.recovery.effects import RetireSession
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.policy import DEFAULT, POLICIES, PR397, V1_12, Policy
from bridgecore.recovery.rules import RULES, Transition, step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import Report, Step, Tables, explore, tabulate
from bridgecore.verify.export import as_json, config, dot, mermaid, tla
from bridgecore.verify.properties import Property

ALL = len(Property)
FEW = attrs.evolve(BOUNDS["quick"][0], standings=(Standing.UNANCHORED,), remote=False, causes=False)
HELD = attrs.evolve(FEW, standings=(Standing.HELD,))
REMOTE = attrs.evolve(HELD, remote=True)


@cache
def tables_of(policy: Policy, bounds: Bounds, stepper: Step = step) -> Tables:
    tables = tabulate(policy, bounds, stepper=stepper)
    assert tables is not None
    return tables


def raises(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Has no rule for a connection that is lost while it is opened."""
    if state.phase is Phase.RECONNECTING and type(event).__name__ == "ConnectionLost":
        raise KeyError(event)
    return step(policy, state, event, now)


# The tables as a reader of an export sees them. Of a move: name, outcome, how the turn ended,
# fault, state after. Of a check: outcome, model after, property broken, loss.
Rows = Sequence[Sequence[Sequence[Any]]]


@attrs.frozen
class Read:
    starts: Sequence[Sequence[int]]
    moves: Rows
    checks: Rows


def read_tla(text: str) -> Read:
    """The tables in a TLA+ module, whose tuples and sets become lists."""

    def table(name: str) -> list[Any]:
        found = re.search(rf"^{name} == (<<.*?^>>|{{.*?}})$", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        bare = re.sub(r"  \\\*.*", "", found[1])
        listed = re.sub(r"<<|{", "[", re.sub(r">>|}", "]", bare))
        read: list[Any] = json.loads(listed)
        return read

    kinds = table("Kinds")
    moves = [[(*kinds[kind - 1], after) for kind, after in row] for row in table("Moves")]
    return Read(table("Starts"), [[], *moves], [[], *table("Checks")])


def worlds(read: Read) -> tuple[int, set[str]]:
    """How many worlds there are, and which properties break in them, liveness excepted."""
    losses = {check[3] for row in read.checks for check in row}
    found = {(start[0], start[1]) for start in read.starts}
    ahead, broken = list(found), set()
    while ahead:
        state, model = ahead.pop()
        says = {check[0]: check[1:] for check in read.checks[model]}
        for _, outcome, _, fault, after in read.moves[state]:
            if fault:
                broken.add(fault)
                continue
            next_model, violated, loss = says[outcome]
            if violated:
                broken.add(violated)
                continue
            if loss and -loss in losses:
                broken.add(Property.RECONNECT_COSTS_NO_REPLAY.name)
            if after and (after, next_model) not in found:
                found.add((after, next_model))
                ahead.append((after, next_model))
    return len(found), broken


@pytest.mark.parametrize(
    ("policy", "bounds", "stepper"),
    [
        (DEFAULT, HELD, step),
        (PR397, FEW, step),
        (V1_12, REMOTE, step),
        (DEFAULT, FEW, raises),
    ],
    ids=["default", "pr397", "v1_12", "raises"],
)
def test_the_worlds_of_the_tables_are_those_of_the_explorer(
    policy: Policy, bounds: Bounds, stepper: Step
) -> None:
    report: Report = explore(policy, bounds, stepper=stepper, most=ALL)
    states, broken = worlds(read_tla(tla(tables_of(policy, bounds, stepper))))
    assert report.complete
    assert states == report.states > 20
    assert broken == {prop.name for prop in report.broken}
    assert broken or (policy, stepper) == (DEFAULT, step)


def test_the_module_states_every_property() -> None:
    text = tla(tables_of(PR397, FEW), "Named")
    assert text.startswith("-------------------- MODULE Named --------------------\n")
    for prop in Property:
        assert len(re.findall(rf"^{prop.name} ==", text, re.MULTILINE)) == 1
        assert f"\nINVARIANT {prop.name}\n" in config()
    body, _, after = text.partition("=" * 60)
    assert after.endswith(config())
    assert body.count("<<") == body.count(">>")
    assert body.count("{") == body.count("}")


def test_a_table_has_no_more_than_what_was_reached() -> None:
    """What is never met would count among the losses that are compared."""
    tables = tables_of(PR397, FEW)
    met: list[set[int]] = [set() for _ in tables.checks]
    ahead, found = list(tables.starts), set(tables.starts)
    while ahead:
        state, model = ahead.pop()
        for move in tables.moves[state]:
            met[model].add(move.outcome)
            check = tables.checks[model][move.outcome]
            if move.after is not None and check.after is not None:
                world = move.after, check.after
                if world not in found:
                    found.add(world)
                    ahead.append(world)
    assert met == [set(row) for row in tables.checks]
    # A state to which only a move leads that breaks a property is in the tables, without moves.
    assert {state for state, _ in found} == {n for n, row in enumerate(tables.moves) if row}


def test_bounds_that_end_the_search_have_no_tables() -> None:
    assert tabulate(DEFAULT, attrs.evolve(FEW, max_states=50)) is None
    assert tabulate(DEFAULT, attrs.evolve(FEW, depth=2)) is None


def test_the_json_has_the_same_tables() -> None:
    tables = tables_of(PR397, FEW)
    data = json.loads(as_json(tables))
    assert (data["policy"], data["bounds"]) == ("pr397", "quick")
    kinds: list[Mapping[str, Any]] = data["kinds"]
    moves = [
        [
            (
                *(kinds[kind]["move"], kinds[kind]["outcome"] + 1, kinds[kind]["ended"]),
                *(kinds[kind]["broken"] or "", 0 if after is None else after + 1),
            )
            for kind, after in row
        ]
        for row in data["moves"]
    ]
    read = read_tla(tla(tables))
    assert moves == read.moves[1:]
    assert {kind["rule"] for kind in kinds} - {""} <= {rule.id for rule in RULES.values()} | {
        "stale-generation",
        "spurious-deadline",
        "ended-response",
    }
    for written, said in zip(data["checks"], read.checks[1:], strict=True):
        assert written == [
            [check[0] - 1, check[1] - 1 if check[1] else None, check[2] or None] for check in said
        ]
    assert set(data["phases"]) <= {phase.value for phase in Phase}
    assert len(data["phases"]) == len(data["moves"])


def arrows_of_dot(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for line in text.splitlines():
        found = re.fullmatch(r'  "([^"]+)" -> "([^"]+)" \[label="([^"]+)"\];', line)
        if found is not None:
            yield found[1], found[2], tuple(found[3].removesuffix("\\l").split("\\l"))


def arrows_of_mermaid(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    names = dict(re.findall(r'^  state "([^"]+)" as (\w+)$', text, re.MULTILINE))
    phases = {name: phase for phase, name in names.items()}
    for line in text.splitlines():
        found = re.fullmatch(r"  (\w+) --> (\w+): (\S+)", line)
        if found is not None:
            yield phases[found[1]], phases[found[2]], tuple(found[3].split("<br>"))


@pytest.mark.parametrize(
    ("write", "read"), [(dot, arrows_of_dot), (mermaid, arrows_of_mermaid)], ids=["dot", "mermaid"]
)
def test_a_diagram_has_the_phases_and_the_rules_between_them(
    write: Callable[[Tables], str],
    read: Callable[[str], Iterator[tuple[str, str, tuple[str, ...]]]],
) -> None:
    met: set[tuple[str, str, str]] = set()

    def watching(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        transition = step(policy, state, event, now)
        retired = any(isinstance(one, RetireSession) for one in transition.effects)
        after = "retired" if retired else transition.state.phase.value
        if after != state.phase.value:
            met.add((state.phase.value, after, transition.rule))
        return transition

    explore(PR397, FEW, stepper=watching, most=ALL)
    text = write(tables_of(PR397, FEW))
    drawn = {(source, target, rule) for source, target, rules in read(text) for rule in rules}
    assert {one for one in drawn if one[0] != one[1]} == met
    assert ("closed", "retired", "expiry") in met
    assert {rule for _, _, rule in drawn} <= {rule.id for rule in RULES.values()}
    # Every line is an arrow, or names a phase, or is one of the few around them.
    others = [line for line in text.splitlines() if ": " not in line and "label" not in line]
    assert len(others) <= len(Phase) + 5


def test_a_name_with_quotes_spoils_no_format() -> None:
    tables = attrs.evolve(tables_of(PR397, HELD), policy='my "own"\npolicy\\')
    assert dot(tables).startswith('digraph "my \\"own\\" policy\\\\" {\n')
    assert '\\* The sessions of the policy my "own" policy\\, explored' in tla(tables)
    assert json.loads(as_json(tables))["policy"] == tables.policy


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_exported_policies_are_named(name: str) -> None:
    few = attrs.evolve(FEW, standings=(Standing.BOUND,), causes=False)
    tables = tables_of(POLICIES[name], few)
    assert f"\\* The sessions of the policy {name}, explored within the bounds quick." in tla(
        tables
    )
