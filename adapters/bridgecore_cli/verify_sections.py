"""The explorations beside that of sessions: what each explores, and printing its results.

What belongs here: one description of each section, and one function that runs any of them.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from bridgecore.bridge import Bridge
from bridgecore.recovery.policy import Policy
from bridgecore.verify.explore_bridge import (
    BRIDGE_BOUNDS,
    BridgeBounds,
    BridgeProperty,
    BridgeReport,
    explore_bridge,
)
from bridgecore.verify.explore_ownership import (
    OWNERSHIP_BOUNDS,
    OwnershipReport,
    explore_ownership,
)
from bridgecore.verify.explore_pair import PAIR_BOUNDS, PairReport, explore_pair
from bridgecore.verify.ownership_world import OwnershipBounds, OwnershipProperty
from bridgecore.verify.pair_world import PairBounds, PairProperty
from bridgecore_cli.progress import show

Worlds: TypeAlias = BridgeReport | OwnershipReport | PairReport
_Progress: TypeAlias = Callable[[Any], None]


@attrs.frozen
class Section:
    """One kind of subject that is explored, in parts, each with bounds of its own.

    ``explore`` takes the policy, the bounds of a part, and what is told of the progress.
    ``limits`` says what the bounds of a part are.
    """

    title: str
    properties: type[enum.Enum]
    bounds: Mapping[str, Sequence[Any]]
    explore: Callable[[Policy, Any, _Progress], Worlds]
    limits: Callable[[Any], str]


def _bridge(policy: Policy, part: BridgeBounds, progress: _Progress) -> BridgeReport:
    return explore_bridge(part, make=_made_with(policy), progress=progress)


def _bridge_limits(part: BridgeBounds) -> str:
    return f"{part.turns} turns, {part.depth} moves, {part.continuity.value}"


def _ownership(_: Policy, part: OwnershipBounds, progress: _Progress) -> OwnershipReport:
    return explore_ownership(part, progress=progress)


def _ownership_limits(part: OwnershipBounds) -> str:
    return f"{part.turns} turns, {part.faults} faults"


def _pair(policy: Policy, part: PairBounds, progress: _Progress) -> PairReport:
    return explore_pair(part, make=_made_with(policy), progress=progress)


def _pair_limits(part: PairBounds) -> str:
    return (
        f"{part.clients} clients, {part.turns} turns, {part.attempts} attempts, "
        f"{part.faults} faults"
    )


def _made_with(policy: Policy) -> Callable[..., Bridge]:
    return lambda config, **more: Bridge(attrs.evolve(config, policy=policy), **more)


SECTIONS: Final = (
    Section(
        "bridges of a few turns of two clients",
        BridgeProperty,
        BRIDGE_BOUNDS,
        _bridge,
        _bridge_limits,
    ),
    Section(
        "ownership by two replicas over one store",
        OwnershipProperty,
        OWNERSHIP_BOUNDS,
        _ownership,
        _ownership_limits,
    ),
    Section("two bridges over one store", PairProperty, PAIR_BOUNDS, _pair, _pair_limits),
)


def explore_section(section: Section, policy: Policy, bounds: str) -> bool:
    """Explore the parts of ``section`` and print the results; whether every property holds in all
    that there is within the bounds."""
    checked: Counter[enum.Enum] = Counter()
    broken: set[enum.Enum] = set()
    complete = True
    print(f"\n{section.title}")
    for part in section.bounds[bounds]:
        began = time.perf_counter()
        report = section.explore(policy, part, _show_worlds)
        show("")
        seconds = time.perf_counter() - began
        complete = complete and report.complete
        print(
            f"{part.name:<28} {section.limits(part)}: {report.worlds:,} states"
            f"{'' if report.complete else ', not all that there are'}, {report.edges:,} edges, "
            f"{seconds:.1f} s"
        )
        checked.update(report.checked)
        broken |= _print_counterexamples(report)
    for prop in section.properties:
        word = "BROKEN" if prop in broken else "holds "
        print(f"{word:<7} {prop.name} ({checked[prop]:,} checks)")
    return complete and not broken


def _show_worlds(report: Worlds) -> None:
    show(f"{report.bounds.name}: {report.worlds:,} states, {report.edges:,} edges")


def _print_counterexamples(report: Worlds) -> set[enum.Enum]:
    """Print each counterexample; return the properties that it breaks."""
    for found in report.counterexamples:
        way = "\n".join(f"  {move}" for move in found.path)
        print(f"\n{found.prop.name}: {found.prop.value}\n\n{way}\n\nbroken: {found.text}\n")
    return {found.prop for found in report.counterexamples}
