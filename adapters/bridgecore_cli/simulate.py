"""``bridgecore simulate``: measures context growth under a policy and runs it on a faulty network.

What belongs here: printing results, and the exit code. The simulation itself is
``bridgecore.simulate``; this module reads the clock and writes the files.

Exit codes: 0: the context window sufficed, every turn completed, and no property was violated; 1:
otherwise (with ``--policy both`` this is judged for the first, safe policy only); 2: wrong flags.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from typing import Any

import attrs

from bridgecore.recovery.policy import Policy
from bridgecore.simulate import (
    Experiment,
    Growth,
    Outage,
    Report,
    Scenario,
    Shrunk,
    grow,
    run_many,
    shrink,
)
from bridgecore.simulate.growth_report import plot, summary, table
from bridgecore_cli.progress import bar, show


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    policies: list[Policy] = args.policy
    growths = [grow(_experiment(args, policy)) for policy in policies]
    if not args.json:
        for growth in growths:
            print(f"{_setting(growth.experiment)}\n\n{table(growth)}\n\n{summary(growth)}\n")
    if args.svg is not None:
        try:
            args.svg.write_text(plot(growths), encoding="utf-8")
        except OSError as exc:
            print(f"bridgecore: error: cannot write {args.svg}: {exc.strerror}", file=sys.stderr)
            return 1
    sound = growths[0].sound
    storms: dict[str, Any] = {}
    for policy in policies if args.conversations else ():
        storm = _Storm(args, policy)
        if not args.json:
            print(storm.text())
        storms[policy.name] = storm.figures()
        sound = sound and (policy is not policies[0] or not storm.report.violations)
    if args.json:
        found = {growth.experiment.policy.name: _figures(growth) for growth in growths}
        print(json.dumps({"growth": found, "conversations": storms, "sound": sound}))
    return 0 if sound else 1


def _experiment(args: argparse.Namespace, policy: Policy) -> Experiment:
    return Experiment(
        policy=policy,
        turns=args.turns or 200,
        fault_every=args.faults[0],
        seed=args.seed,
        store=args.store,
        window=args.window,
        system_tokens=args.system_tokens,
    )


def _setting(experiment: Experiment) -> str:
    every = experiment.fault_every
    hit = (
        "no turn is" if every is None else f"1 turn in {every} is" if every > 1 else "each turn is"
    )
    return (
        f"policy {experiment.policy.name}: one conversation, store={str(experiment.store).lower()},"
        f" a system prompt of {experiment.system_tokens:,} tokens, about {experiment.new_tokens:,}"
        f" new ones a turn;\n{hit} hit: the socket is lost before the turn, and again before"
        " response.created. Tokens:"
    )


def _figures(growth: Growth) -> dict[str, Any]:
    return {
        "turns": [attrs.asdict(row) for row in growth.rows],
        "tokens_per_turn": growth.per_turn,
        "bytes_upstream": growth.upstream,
        "window": growth.experiment.window,
        "full_at_turn": growth.full,
        "stuck_at_turn": growth.stuck,
    }


class _Storm:
    """Many conversations on a faulty network under one policy, and the time that they took."""

    def __init__(self, args: argparse.Namespace, policy: Policy) -> None:
        scenario = Scenario(
            seed=args.seed,
            policy=policy,
            turns=args.turns or 20,
            fault_every=args.faults[1],
            warm=args.warm,
            replicas=args.replicas,
        )
        if scenario.fault_every is None:
            scenario = attrs.evolve(scenario, outages=())
        self.policy = policy
        self.replicas = scenario.replicas
        self.turns = scenario.turns
        self.report = Report()
        self.shrunk: Shrunk | None = None
        first: Scenario | None = None
        wall, cpu = time.perf_counter(), time.process_time()
        for one, report in run_many(scenario, args.conversations):
            self.report.add(report)
            if report.violations and first is None:
                first = one
            show(self._progress(args.conversations, time.perf_counter() - wall))
        self.wall = time.perf_counter() - wall
        self.cpu = time.process_time() - cpu
        if first is not None:
            show(f"{self.policy.name}: shrinking the first violation")
            self.shrunk = shrink(first, self.report.violations[0])
        show("")

    def _progress(self, conversations: int, seconds: float) -> str:
        report = self.report
        done = report.conversations / conversations
        return (
            f"{bar(done)} {self.policy.name}: "
            f"{report.conversations:,} conversations, {report.events:,} events, "
            f"{len(report.violations):,} violations, "
            f"{seconds / done - seconds:,.0f} s to go"
        )

    def figures(self) -> dict[str, Any]:
        """The results as values for JSON."""
        report = self.report
        cluster = {} if self.replicas == 1 else {"cluster": self._cluster()}
        return {
            **cluster,
            "conversations": report.conversations,
            "conversation_hours": report.hours,
            "turns": report.turns,
            "honestly_refused": report.given_up,
            "foreign_ids_tried": report.probes,
            "continuity": attrs.asdict(report.ledger),
            "attempts": report.attempts,
            "whole_histories_resent": report.resends,
            "troubles": dict(report.troubles),
            "upstream_restarts": report.restarts,
            "events": report.events,
            "wall_seconds": self.wall,
            "cpu_seconds": self.cpu,
            "conversation_hours_per_minute": report.hours / self.wall * 60,
            "conversation_hours_per_cpu_minute": report.hours / self.cpu * 60,
            "violations": [str(violation) for violation in report.violations],
            "shrunk": None if self.shrunk is None else str(self.shrunk),
        }

    def text(self) -> str:
        """The results as text."""
        report = self.report
        troubles = sum(report.troubles.values())
        over = "" if self.replicas == 1 else f", over {self.replicas} replicas"
        lines = [
            f"policy {self.policy.name}: {report.conversations:,} conversations of {self.turns} "
            f"turns on a faulty network{over}",
            f"  {report.hours:,.0f} conversation-hours in {self.wall:,.1f} s "
            f"({self.cpu:,.1f} s of one core): {report.hours / self.wall * 60:,.0f} a minute "
            f"({report.hours / self.cpu * 60:,.0f} a minute of one core)",
            f"  {report.turns:,} turns completed in {report.attempts:,} attempts, "
            f"{report.given_up:,} refused for good, {report.resends:,} whole histories resent, "
            f"{report.probes:,} ids of other tenants tried",
            f"  {report.ledger.text}",
            f"  {troubles:,} faults of {len(report.troubles)} kinds, "
            f"{report.restarts:,} restarts of the upstream, {report.events:,} events",
            *([] if self.replicas == 1 else self._cluster_lines()),
            f"  {len(report.violations):,} violations"
            + ("" if len(report.violations) == 0 else ":"),
        ]
        counts: dict[str, int] = {}
        for violation in report.violations:
            counts[violation.prop] = counts.get(violation.prop, 0) + 1
        lines += [f"    {count:>6,}  {prop}" for prop, count in sorted(counts.items())]
        if self.shrunk is not None:
            lines += ["", f"The first one, shrunk in {self.shrunk.runs} runs:", str(self.shrunk)]
        return "\n".join(lines) + "\n"

    def _cluster(self) -> dict[str, dict[str, int]]:
        """What the replicas did, and what happened to them, by what is counted."""
        report = self.report
        outages = {name.lower(): report.troubles[name] for name in Outage.__members__}
        return {"replicas": dict(sorted(report.cluster.items())), "outages": outages}

    def _cluster_lines(self) -> list[str]:
        lines: list[str] = []
        for name, counts in self._cluster().items():
            text = ", ".join(
                f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items()
            )
            lines += textwrap.wrap(
                f"{name}: {text}", 98, initial_indent="  ", subsequent_indent="    "
            )
        return lines
