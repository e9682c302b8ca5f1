"""Looks for a smaller scenario that breaks the same property, easier to read and debug.

What belongs here: the search. A scenario is made smaller by its ``only``, ``turns``, ``restarts``,
``replicas`` and ``spared``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import attrs

from bridgecore.simulate.outages import OUTAGES
from bridgecore.simulate.report import VIOLATION, Violation
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.troubles import trouble
from bridgecore.simulate.world import run
from bridgecore.testing.network import NO_CLIENT

T = TypeVar("T", bound=Any)  # sortable


@attrs.frozen
class Shrunk:
    """The smallest scenario found that breaks the same property, and its violation."""

    scenario: Scenario
    violation: Violation
    timeline: tuple[str, ...]
    runs: int  # runs that the search took

    def __str__(self) -> str:
        scenario = self.scenario
        clients = "all" if scenario.only is None else ", ".join(map(str, sorted(scenario.only)))
        replicas = "" if scenario.replicas == 1 else f", {scenario.replicas} replicas"
        lines = [
            str(self.violation),
            f"policy {scenario.policy.name}, seed {scenario.seed}, client {clients} of "
            f"{scenario.clients}, {scenario.turns} turns{replicas}; seconds, and what happened:",
            *self.timeline,
        ]
        return "\n".join(lines)


def shrink(scenario: Scenario, violation: Violation, max_runs: int = 400) -> Shrunk:
    """Look for a smaller scenario that breaks the property of ``violation``: fewer clients, then
    fewer turns, then fewer faults. ``max_runs`` bounds the search.

    Raises:
        ValueError: ``scenario`` does not break the property.
    """
    search = _Search(violation.prop, max_runs)
    if not search.attempt(scenario):
        raise ValueError(f"the scenario does not break {violation.prop!r}")
    clients = frozenset(range(scenario.clients)) if scenario.only is None else scenario.only
    seen = search.violation
    if seen.client == NO_CLIENT or not search.attempt_with(only=frozenset({seen.client})):
        _minimise(clients, lambda kept: search.attempt_with(only=kept))
    if 0 < search.violation.turn < search.best.turns:
        search.attempt_with(turns=search.violation.turn)
    while search.best.turns > 1 and search.attempt_with(turns=search.best.turns - 1):
        pass
    search.attempt_with(restarts=False)
    while search.best.replicas > 2 and search.attempt_with(replicas=search.best.replicas - 1):
        pass
    best = search.best
    met = {
        (client, turn)
        for client in (clients if best.only is None else best.only)
        for turn in range(1, best.turns + 1)
        if trouble(best.seed, client, turn, best.fault_every, odd=best.odd) is not None
    }
    if best.restarts:
        met |= {(NO_CLIENT, nth) for nth in range(_RESTARTS_SPARED)}
    met |= {(OUTAGES, nth) for nth in range(search.outages)}
    every, spared = frozenset(met) - best.spared, best.spared
    _minimise(every, lambda kept: search.attempt_with(spared=spared | (every - kept)))
    timeline: list[str] = []
    run(search.best, timeline.append)
    last = f"{VIOLATION}{violation.prop}:"
    end = next(n for n, line in enumerate(timeline, 1) if last in line)
    return Shrunk(search.best, search.violation, tuple(timeline[:end]), search.runs)


_RESTARTS_SPARED: Final = 16  # tried one by one; shrunk runs rarely last longer


class _Search:
    """The smallest failing scenario so far, and its violation."""

    best: Scenario
    violation: Violation
    outages: int  # of replicas, in its run

    def __init__(self, prop: str, max_runs: int) -> None:
        self.runs = 0
        self._prop = prop
        self._max_runs = max_runs

    def attempt(self, candidate: Scenario) -> bool:
        """Whether ``candidate`` breaks the same property; if so it becomes the smallest."""
        if self.runs >= self._max_runs:
            return False
        self.runs += 1
        report = run(candidate)
        for violation in report.violations:
            if violation.prop == self._prop:
                self.best, self.violation = candidate, violation
                self.outages = report.outages
                return True
        return False

    def attempt_with(self, **changes: Any) -> bool:
        """``attempt`` the smallest scenario with ``changes``."""
        return self.attempt(attrs.evolve(self.best, **changes))


def _minimise(items: frozenset[T], still: Callable[[frozenset[T]], bool]) -> None:
    """Remove what is not needed to fail: large parts first, then one at a time (Zeller and
    Hildebrandt: "Simplifying and Isolating Failure-Inducing Input", 2002, without the subsets)."""
    kept = sorted(items)
    size = len(kept)
    while size:
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if still(frozenset(rest)):
                kept = rest
            else:
                start += size
        size //= 2
