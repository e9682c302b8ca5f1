"""``bridgecore verify``: checks every property of a policy in every reachable state, within bounds.

What belongs here: printing results and counterexamples, and the exit code. The exploration itself
is ``bridgecore.verify``; this module reads the clock and writes the files.

Exit codes: 0: every property holds, and of the mutants, if they were asked for, at most 1 %
survive; 1: otherwise; 2: wrong flags.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

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
from bridgecore.verify.properties import Property
from bridgecore.verify.story import Story, explain, tell
from bridgecore_cli.output import write_file
from bridgecore_cli.progress import bar, show
from bridgecore_cli.verify_mutants import judge_mutants
from bridgecore_cli.verify_sections import SECTIONS, explore_section


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
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
        if args.svg is not None and not write_file(args.svg, diagram.svg(shortest)):
            return 1
    sound = not stories and all(report.complete for report in reports)
    if sound:
        held = [explore_section(section, policy, args.bounds) for section in SECTIONS]
        sound = all(held)
    if args.mutants and sound:
        sound = judge_mutants(policy, args.jobs, args.report)
    return 0 if sound else 1


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
