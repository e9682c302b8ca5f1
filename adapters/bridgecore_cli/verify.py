"""``bridgecore verify``: checks every property of a policy in every reachable state, within bounds.

What belongs here: printing results and counterexamples, and the exit code. The exploration itself
is ``bridgecore.verify``; this module reads the clock and writes the files.

Exit codes: 0: every property holds, and of the mutants, if they were asked for, at most 1 %
survive; 1: otherwise; 2: wrong flags.
"""

from __future__ import annotations

import argparse
import enum
import json
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import attrs

from bridgecore.bridge import Bridge
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.timers import Timer
from bridgecore.verify import diagram
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import (
    PAIRS,
    Counterexample,
    Report,
    explore,
    never_fired,
    never_met,
)
from bridgecore.verify.explore_bridge import (
    BRIDGE_BOUNDS,
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
from bridgecore.verify.mutate import BOUNDS as MUTANT_BOUNDS
from bridgecore.verify.mutate import (
    KEPT,
    Mutant,
    candidates,
    changes_nothing,
    judge,
    observe,
    witness,
)
from bridgecore.verify.ownership_world import OwnershipProperty
from bridgecore.verify.pair_world import PairProperty
from bridgecore.verify.properties import Property
from bridgecore.verify.story import Story, explain, tell
from bridgecore_cli import trace
from bridgecore_cli.progress import bar, show

P = TypeVar("P", bound=enum.Enum)


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if args.trace is not None:
        return trace.run(args)
    policy: Policy = args.policy
    reports: list[Report] = []
    stories: dict[Property, Story] = {}
    print(f"policy             {policy.name}", flush=True)
    for part in BOUNDS[args.bounds]:

        def tell_at_once(found: Counterexample, part: Bounds = part) -> None:
            if found.prop not in stories:
                stories[found.prop] = tell(policy, part, found)
                show("")
                print(f"\n{explain(stories[found.prop])}", flush=True)

        began = time.perf_counter()
        report = explore(policy, part, most=len(Property), progress=_show, found=tell_at_once)
        show("")
        reports.append(report)
        print(_figures(report, time.perf_counter() - began), flush=True)
    print(_summary(reports))
    if stories:
        shortest = min(stories.values(), key=lambda story: len(story.seen))
        print(f"\n{diagram.text(shortest)}")
        if args.svg is not None and not _written(args.svg, diagram.svg(shortest)):
            return 1
    sound = not stories and all(report.complete for report in reports)
    if sound:
        sound = _bridges(policy, args.bounds)
        sound = _ownership(args.bounds) and sound
        sound = _pairs_of_bridges(policy, args.bounds) and sound
    if args.mutants and sound:
        sound = _mutants(policy, args.jobs, args.report)
    return 0 if sound else 1


def _written(path: Path, text: str) -> bool:
    """Write the file at ``path``; False, after printing the reason, if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        print(f"bridgecore: error: cannot write {path}: {exc.strerror}", file=sys.stderr)
        return False
    return True


def _show(report: Report) -> None:
    """Show the progress: the part of the states found so far that has been explored."""
    done = (report.states - report.ahead) / report.states
    show(f"{bar(done)} {report.states:,} states, {report.edges:,} edges")


def _figures(report: Report, seconds: float) -> str:
    rows = [
        ("bounds", f"{report.bounds.name}: {_bounds(report.bounds)}"),
        ("states", f"{report.states:,}{'' if report.complete else ', not all that there are'}"),
        ("edges", f"{report.edges:,}"),
        ("seconds", f"{seconds:.1f}"),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def _summary(reports: Sequence[Report]) -> str:
    fired = set().union(*[report.rules_fired for report in reports])
    rows = [
        ("total states", f"{sum(report.states for report in reports):,}"),
        ("rules fired", str(len(fired))),
        ("rules never fired", ", ".join(never_fired(reports)) or "none"),
        ("pairs ruled", f"{PAIRS} of {PAIRS}; never met: {_pairs(reports)}"),
    ]
    lines = [f"{name:<18} {value}" for name, value in rows]
    broken = {prop for report in reports for prop in report.broken}
    lines.append("")
    lines += [f"{'BROKEN' if prop in broken else 'holds ':<7} {prop.name}" for prop in Property]
    return "\n".join(lines)


def _pairs(reports: Sequence[Report]) -> str:
    """The pairs of phase and event that no exploration has met, by name."""
    pairs = [
        f"{phase.value}/{key.value if isinstance(key, Timer) else key.__name__}"
        for phase, key in never_met(reports)
    ]
    return ", ".join(pairs) or "none"


def _bounds(bounds: Bounds) -> str:
    times = bounds.timeouts
    return (
        f"{bounds.waiting} waiting, {bounds.refusals} bounded refusals, ticks: connect "
        f"{times.connect}, created {times.created}, idle {times.idle}, turn {times.turn}, "
        f"lifetime {times.lifetime}, expiry {times.expiry}"
    )


def _bridges(policy: Policy, bounds: str) -> bool:
    """Explore bridges of several sessions, print the results; whether every property holds."""
    checked: Counter[BridgeProperty] = Counter()
    broken: set[enum.Enum] = set()
    print("\nbridges of a few turns of two clients")
    for bound in BRIDGE_BOUNDS[bounds]:
        began = time.perf_counter()
        report = explore_bridge(
            bound,
            make=lambda config, **more: Bridge(attrs.evolve(config, policy=policy), **more),
            progress=_show_worlds,
        )
        show("")
        seconds = time.perf_counter() - began
        print(
            f"{bound.name:<28} {bound.turns} turns, {bound.depth} moves, {bound.continuity.value}: "
            f"{report.worlds:,} states, {report.edges:,} edges, {seconds:.1f} s"
        )
        checked += report.checked
        broken |= _print_counterexamples(report)
    _print_verdicts(BridgeProperty, checked, broken)
    return not broken


def _ownership(bounds: str) -> bool:
    """Explore two replicas over one store, print the results; whether every property holds."""
    checked: Counter[OwnershipProperty] = Counter()
    broken: set[enum.Enum] = set()
    complete = True
    print("\nownership by two replicas over one store")
    for bound in OWNERSHIP_BOUNDS[bounds]:
        began = time.perf_counter()
        report = explore_ownership(bound, progress=_show_worlds)
        show("")
        seconds = time.perf_counter() - began
        complete = complete and report.complete
        print(
            f"{bound.name:<28} {bound.turns} turns, {bound.faults} faults: "
            f"{report.worlds:,} states{'' if report.complete else ', not all that there are'}, "
            f"{report.edges:,} edges, {seconds:.1f} s"
        )
        checked += report.checked
        broken |= _print_counterexamples(report)
    _print_verdicts(OwnershipProperty, checked, broken)
    return complete and not broken


def _pairs_of_bridges(policy: Policy, bounds: str) -> bool:
    """Explore two bridges over one store, print the results; whether every property holds."""
    checked: Counter[PairProperty] = Counter()
    broken: set[enum.Enum] = set()
    complete = True
    print("\ntwo bridges over one store")
    for bound in PAIR_BOUNDS[bounds]:
        began = time.perf_counter()
        report = explore_pair(
            bound,
            make=lambda config, **more: Bridge(attrs.evolve(config, policy=policy), **more),
            progress=_show_worlds,
        )
        show("")
        seconds = time.perf_counter() - began
        complete = complete and report.complete
        print(
            f"{bound.name:<28} {bound.clients} clients, {bound.turns} turns, {bound.attempts} "
            f"attempts, {bound.faults} faults: {report.worlds:,} states"
            f"{'' if report.complete else ', not all that there are'}, {report.edges:,} edges, "
            f"{seconds:.1f} s"
        )
        checked += report.checked
        broken |= _print_counterexamples(report)
    _print_verdicts(PairProperty, checked, broken)
    return complete and not broken


_Worlds: TypeAlias = BridgeReport | OwnershipReport | PairReport


def _show_worlds(report: _Worlds) -> None:
    show(f"{report.bounds.name}: {report.worlds:,} states, {report.edges:,} edges")


def _print_counterexamples(report: _Worlds) -> set[enum.Enum]:
    """Print each counterexample; return the properties that it breaks."""
    for found in report.counterexamples:
        way = "\n".join(f"  {move}" for move in found.path)
        print(f"\n{found.prop.name}: {found.prop.value}\n\n{way}\n\nbroken: {found.text}\n")
    return {found.prop for found in report.counterexamples}


def _print_verdicts(properties: Iterable[P], checked: Counter[P], broken: Set[enum.Enum]) -> None:
    for prop in properties:
        word = "BROKEN" if prop in broken else "holds "
        print(f"{word:<7} {prop.name} ({checked[prop]:,} checks)")


def _mutants(policy: Policy, jobs: int, report: Path | None) -> bool:
    """Judge every mutant, then find for each property a mutant that no other property notices.

    Prints the results; whether enough mutants are noticed and each property is needed.
    """
    seen = observe(policy)
    everything = list(candidates(policy, seen.seen))
    every = [mutant for mutant in everything if not changes_nothing(mutant, seen)]
    verdicts = list(_spread(every, jobs, lambda mutant: judge(mutant), "mutants"))
    kills: dict[str, Counter[str]] = {}
    first: dict[Property, list[Mutant]] = {prop: [] for prop in Property}
    survivors, equivalent = [], {}
    for mutant, verdict in zip(every, verdicts, strict=True):
        if verdict.killer is not None:
            kills.setdefault(mutant.rule, Counter())[verdict.killer.name] += 1
            first[verdict.killer].append(mutant)
        elif verdict.argument is not None:
            equivalent[mutant.name] = verdict.argument
        else:
            survivors.append(mutant.name)
    killed = len(every) - len(survivors) - len(equivalent)
    print(f"\nmutants            {len(every):,} that change something, of {len(everything):,}")
    print(f"killed             {killed:,}, {killed / len(every):.1%}")
    print(f"argued equivalent  {len(equivalent)}")
    for name in survivors:
        print(f"SURVIVES {name}")
    tasks = [(prop, first[prop][:_TRIES]) for prop in Property]
    found = _spread(tasks, jobs, _witness, "properties")
    witnesses = {prop.name: one for prop, one in zip(Property, found, strict=True)}
    for name, one in witnesses.items():
        count = len(first[Property[name]])
        print(f"{count:>6} first noticed by {name}{'' if one is None else f', only it: {one}'}")
    needless = [
        name for name, one in witnesses.items() if one is None and Property[name] not in KEPT
    ]
    for name in needless:
        print(f"NEEDLESS {name}: no mutant that only it notices, and no reason to keep it")
    if report is not None:
        data = {
            "policy": policy.name,
            "bounds": [bound.name for bound in MUTANT_BOUNDS],
            "candidates": len(everything),
            "total": len(every),
            "killed": killed,
            "equivalent": equivalent,
            "survivors": survivors,
            "kills": {rule: dict(sorted(by.items())) for rule, by in sorted(kills.items())},
            "witness": witnesses,
        }
        if not _written(report, json.dumps(data, indent=1, sort_keys=True) + "\n"):
            return False
    return len(survivors) * 100 <= len(every) and not needless


def _witness(task: tuple[Property, list[Mutant]]) -> str | None:
    found = witness(*task)
    return None if found is None else found.name


_TRIES = 12  # mutants tried as the witness of one property; each costs a whole exploration
Task = TypeVar("Task")
Result = TypeVar("Result")


def _spread(
    tasks: Sequence[Task], jobs: int, work: Callable[[Task], Result], what: str
) -> Iterator[Result]:
    """Yield ``work(task)`` for each of ``tasks``, in order, computed by ``jobs`` processes.

    Mutants are functions that were made at run time and cannot be pickled. So the processes are
    forked and inherit them, and refer to a task by its index.
    """
    if jobs == 1 or "fork" not in multiprocessing.get_all_start_methods():
        for done, task in enumerate(tasks):
            show(f"{done} of {len(tasks)} {what}")
            yield work(task)
        show("")
        return
    _inherited[:] = [tasks, work]
    # An interrupt reaches every process of the terminal. The others ignore it, so that they print
    # no tracebacks: this one ends them.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("fork").Pool(jobs, signal.signal, ignore) as pool:
        for done, result in enumerate(pool.imap(_carry_out, range(len(tasks)))):
            show(f"{done} of {len(tasks)} {what}")
            yield result
    show("")


_inherited: list[Any] = []


def _carry_out(place: int) -> Any:
    tasks, work = _inherited
    return work(tasks[place])
