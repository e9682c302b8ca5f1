"""``bridgecore simulate``: measures context growth under a policy and runs it on a faulty network.

What belongs here: printing results, and the exit code. The simulation itself is
``bridgecore.simulate``; this module reads the clock and writes the files.

Without ``--policy`` the growth under ``default`` and under ``v1_12`` is compared, and crowds run
under ``default`` alone.

Exit codes: 0: the context window sufficed, every turn completed, the bridge never answered that a
response was not found, and no property was violated; 1: otherwise (of several policies this is
judged for the first, safe one only); 2: wrong flags.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, Final

import attrs

from bridgecore.recovery.policy import DEFAULT, V1_12, Policy
from bridgecore.simulate import (
    Experiment,
    Growth,
    Outage,
    Report,
    Scenario,
    Shrunk,
    TurnFigures,
    grow,
    run_many,
    shrink,
)
from bridgecore.simulate.growth_report import (
    comparison,
    plot,
    setting,
    side_by_side,
    summary,
    table,
    why_not_as_in_production,
)
from bridgecore_cli.arguments import SEVERAL
from bridgecore_cli.errors import USAGE, CommandError
from bridgecore_cli.output import width_of_output, wrapped, write_file
from bridgecore_cli.progress import bar, show

_CLUSTER: Final = 98  # columns of what replicas did, where lines are not wrapped


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if args.faults[1] == SEVERAL and args.conversations:
        raise CommandError("--faults M/K is for the long conversation only", USAGE)
    for flag, given in (("--warm", args.warm), ("--replicas", args.replicas > 1)):
        if given and not args.conversations:
            raise CommandError(f"{flag} is of use only with --conversations", USAGE)
    policies: list[Policy] = args.policy or [DEFAULT, V1_12]
    width = width_of_output()
    growths = [_grow(_experiment(args, policy)) for policy in policies]
    if not args.json:
        print(wrapped(_text(growths), width))
    if args.svg is not None and not write_file(args.svg, plot(growths)):
        return 1
    sound = growths[0].sound
    storms: dict[str, Any] = {}
    crowds: list[Policy] = args.policy or [DEFAULT]
    for policy in crowds if args.conversations else ():
        storm = _Storm(args, policy)
        if not args.json:
            print(wrapped(storm.text(), width))
        storms[policy.name] = storm.figures()
        sound = sound and (policy is not policies[0] or not storm.report.violations)
    if args.json:
        found = {growth.experiment.policy.name: _figures(growth) for growth in growths}
        print(json.dumps({"growth": found, "conversations": storms, "sound": sound}))
    return 0 if sound else 1


def _experiment(args: argparse.Namespace, policy: Policy) -> Experiment:
    run, every = args.faults[0]
    return Experiment(
        policy=policy,
        turns=args.turns or 200,
        fault_every=every,
        fault_run=run,
        seed=args.seed,
        store=args.store,
        window=args.window,
        system_tokens=args.system_tokens,
    )


def _grow(experiment: Experiment) -> Growth:
    """Run the experiment, with a progress bar."""

    def progress(row: TurnFigures) -> None:
        show(
            f"{bar(row.turn / experiment.turns)} {experiment.policy.name}: turn {row.turn:,} of "
            f"{experiment.turns:,}"
        )

    growth = grow(experiment, progress=progress)
    show("")
    return growth


def _text(growths: list[Growth]) -> str:
    """The results, and what follows from them."""
    policies = " and ".join(growth.experiment.policy.name for growth in growths)
    sentences = [summary(growth) for growth in growths]
    sentences += comparison(growths)
    sentences += [why for growth in growths if (why := why_not_as_in_production(growth))]
    parts = [
        f"policy {policies}: {setting(growths[0].experiment)}",
        "",
        table(growths[0]) if len(growths) == 1 else side_by_side(growths),
        "",
        *sentences,
        "",
    ]
    return "\n".join(parts)


def _figures(growth: Growth) -> dict[str, Any]:
    return {
        "turns": [attrs.asdict(row) for row in growth.rows],
        "tokens_per_turn": growth.per_turn,
        "tokens_sent_per_turn": growth.sent_per_turn,
        "bytes_from_client": growth.client,
        "bytes_upstream": growth.upstream,
        "tokens_upstream": growth.upstream_tokens,
        "conversation_lost_turns": len(growth.not_found),
        "window": growth.experiment.window,
        "full_at_turn": growth.full,
        "projected_full_at_turn": growth.full_at,
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
            f"{report.conversations:,} conversations, {len(report.violations):,} violations, "
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
        found = {
            name: ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items())
            for name, counts in self._cluster().items()
        }
        return [wrapped(f"  {name}: {text}", _CLUSTER) for name, text in found.items()]
