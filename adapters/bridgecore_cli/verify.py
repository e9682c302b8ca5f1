"""``bridgecore verify``: see what holds of a policy, within published bounds.

What belongs here: flags in, tables and counterexamples out, the exit code. What is explored is
``bridgecore.verify``'s; this file reads the clock and writes the files.

Exit codes: 0: every property held, and every mutant was noticed or is argued equivalent; 1: not
so; 2: usage.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections import Counter
from pathlib import Path

from bridgecore.recovery.policy import DEFAULT, POLICIES, Policy
from bridgecore.verify import diagram
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import PAIRS, Report, explore
from bridgecore.verify.mutate import judge, mutants
from bridgecore.verify.properties import Property
from bridgecore.verify.story import Story, explain, tell


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``bridgecore``."""
    parser = commands.add_parser(
        "verify",
        help="explore every state that a policy can reach, and check every property",
        description="Explore every state that a session can reach under a policy, within bounds, "
        "and check every property in each. What does not hold is shown with a shortest way to it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--policy",
        type=load_policy,
        default=DEFAULT,
        metavar="NAME|MODULE:ATTR",
        help=f"one of {', '.join(sorted(POLICIES))}, or a Policy of yours (default: default)",
    )
    parser.add_argument("--bounds", choices=list(BOUNDS), default="small")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw the shortest counterexample, if there is one"
    )
    parser.add_argument(
        "--mutants", action="store_true", help="break the rules on purpose: is it noticed?"
    )


def load_policy(name: str) -> Policy:
    """The policy called ``name``, or the attribute ``module:attr``; modules are looked for in the
    working directory, too.

    Raises:
        argparse.ArgumentTypeError: there is no such policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise argparse.ArgumentTypeError(f"no policy is named {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise argparse.ArgumentTypeError(f"cannot load {name!r}: {exc}") from None
    finally:
        sys.path.pop(0)
    if not isinstance(found, Policy):
        raise argparse.ArgumentTypeError(f"{name!r} is no Policy")
    return found


def run(args: argparse.Namespace) -> int:
    """Carry out the command; the exit code."""
    policy: Policy = args.policy
    bounds = BOUNDS[args.bounds]
    began = time.perf_counter()
    report = explore(policy, bounds, most=len(Property), progress=_show)
    seconds = time.perf_counter() - began
    _show(None)
    stories = [tell(policy, bounds, found) for found in report.counterexamples]
    print(_summary(report, seconds))
    for story in stories:
        print(f"\n{explain(story)}")
    if stories and args.svg is not None:
        shortest = min(stories, key=lambda story: len(story.seen))
        try:
            args.svg.write_text(diagram.svg(shortest), encoding="utf-8")
        except OSError as exc:
            print(f"bridgecore: error: cannot write {args.svg}: {exc.strerror}", file=sys.stderr)
            return 1
    if stories:
        print(f"\n{diagram.text(_shortest(stories))}")
    sound = not stories and report.complete
    if args.mutants and sound:
        sound = _mutants(policy)
    return 0 if sound else 1


def _shortest(stories: list[Story]) -> Story:
    return min(stories, key=lambda story: len(story.seen))


def _show(report: Report | None) -> None:
    """How far it has come, on one line: of the states found so far, how many were looked into.
    ``None``: it is over."""
    if not sys.stderr.isatty():
        return
    text = ""
    if report is not None:
        done = (report.states - report.ahead) / report.states
        bar = ("#" * round(done * _BAR)).ljust(_BAR, ".")
        text = f"[{bar}] {report.states:,} states, {report.edges:,} edges"
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


_BAR = 30  # characters


def _summary(report: Report, seconds: float) -> str:
    bounds: Bounds = report.bounds
    rows = [
        ("policy", report.policy),
        ("bounds", f"{bounds.name}: {_bounds(bounds)}"),
        ("states", f"{report.states:,}{'' if report.complete else ', not all that there are'}"),
        ("edges", f"{report.edges:,}"),
        ("seconds", f"{seconds:.1f}"),
        ("rules fired", str(len(report.rules_fired))),
        ("rules never fired", ", ".join(report.rules_never_fired) or "none"),
        ("pairs ruled", f"{PAIRS} of {PAIRS}; never met: {len(report.pairs_never_met)}"),
    ]
    lines = [f"{name:<18} {value}" for name, value in rows]
    broken = report.broken
    lines.append("")
    lines += [f"{'BROKEN' if prop in broken else 'holds ':<7} {prop.name}" for prop in Property]
    return "\n".join(lines)


def _bounds(bounds: Bounds) -> str:
    times = bounds.timeouts
    return (
        f"{bounds.waiting} waiting, {bounds.refusals} bounded refusals, ticks: connect "
        f"{times.connect}, created {times.created}, idle {times.idle}, turn {times.turn}, "
        f"lifetime {times.lifetime}, expiry {times.expiry}"
    )


def _mutants(policy: Policy) -> bool:
    killers: Counter[str] = Counter()
    survivors = []
    equivalent = 0
    for mutant in mutants(policy):
        verdict = judge(mutant)
        if sys.stderr.isatty():
            print(f"\r\033[K{mutant.name}", end="", file=sys.stderr, flush=True)
        if verdict.killer is not None:
            killers[verdict.killer.name] += 1
        elif verdict.argument is not None:
            equivalent += 1
        else:
            survivors.append(mutant.name)
    _show(None)
    killed = sum(killers.values())
    total = killed + equivalent + len(survivors)
    print(f"\nmutants            {total}: {killed} killed, {equivalent} argued equivalent")
    for name, count in killers.most_common():
        print(f"{count:>7} killed by {name}")
    for name in survivors:
        print(f"SURVIVES {name}")
    return len(survivors) * 100 <= total
