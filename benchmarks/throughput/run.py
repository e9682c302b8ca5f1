"""Runs the cases in rounds and reports their ratios: ``make bench``.

What belongs here: arguments, the order of measurements, and the refusal to report on a machine that
is busy with other things. Exit status: 0 for a report, 1 if a measurement failed, 2 for wrong
arguments or a machine on which nothing can be measured, 3 if the machine was busy.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.throughput import machine
from benchmarks.throughput.cases import CASES, SCALES, Case
from benchmarks.throughput.participants import Bench, MeasurementError, Participant, find_all
from benchmarks.throughput.report import Report, as_svg, as_text

WATCH_SECONDS = 2.0  # in which nothing is run, so that all load is that of other processes


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a run."""
    names = ", ".join(case.name for case in CASES)
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure the bridge against floors of the same run.",
        epilog=f"Cases: {names}. Participants that are not installed are left out.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--scale", choices=SCALES, default="full", help="how much is done")
    parser.add_argument("--only", metavar="CASES", help="with commas between them; default: all")
    parser.add_argument("--participants", metavar="NAMES", help="with commas; default: all")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="measure another checkout too, as before"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="where to keep the figures"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE.svg", help="draw the goals")
    parser.add_argument(
        "--even-if-busy", action="store_true", help="report on a busy machine, and say so"
    )
    found = parser.parse_args(arguments)
    for name in _listed(found.only):
        if name not in {case.name for case in CASES}:
            parser.error(f"no case {name}; there are: {names}")
    return found


def _listed(text: str | None) -> list[str]:
    return text.split(",") if text else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; the exit status."""
    wanted = read_arguments(arguments)
    problem = machine.unavailable()
    if problem:
        return _refuse(f"cannot measure: {problem}", 2)
    cores = machine.Cores.choose()
    busy = find_load(cores)
    if busy and not wanted.even_if_busy:
        return _refuse(f"refused: {busy}. With --even-if-busy it is reported all the same", 3)
    participants = find_all(wanted.against)
    if wanted.participants:
        unknown = set(_listed(wanted.participants)) - participants.keys()
        if unknown:
            return _refuse(f"not here: {', '.join(unknown)}; here: {', '.join(participants)}", 2)
        participants = {name: participants[name] for name in _listed(wanted.participants)}
    cases = [case for case in CASES if not wanted.only or case.name in _listed(wanted.only)]
    report = Report(machine.describe(), wanted.scale, busy)
    report.participants = {name: one.title for name, one in participants.items()}
    measure(report, cases, participants, cores, wanted.rounds)
    if report.busy and not wanted.even_if_busy:
        return _refuse(f"refused: {report.busy}. With --even-if-busy it is reported", 3)
    print(as_text(report))
    if wanted.report:
        report.save(wanted.report)
    if wanted.svg:
        wanted.svg.write_text(as_svg(report), encoding="utf-8")
    return 1 if report.errors else 0


def _refuse(why: str, status: int) -> int:
    print(f"{why}.", file=sys.stderr)
    return status


def find_load(cores: machine.Cores) -> str | None:
    """Why figures of this machine would mean nothing now, or None."""
    watch = machine.Watch(cores)
    time.sleep(WATCH_SECONDS)
    taken = _taken(watch.others())
    if taken:
        return taken
    for core in (cores.bridge, cores.others):
        found = machine.scatter(core)
        if found > machine.MAX_SCATTER:
            return (
                f"the same work takes {found:.0%} longer in one of ten runs, the limit is "
                f"{machine.MAX_SCATTER:.0%}: something else is running, or the clock rate changes"
            )
    return None


def _taken(others: float) -> str | None:
    if others <= machine.MAX_OTHERS:
        return None
    return f"other processes took {others:.2f} cores, the limit is {machine.MAX_OTHERS:.2f}"


def measure(
    report: Report,
    cases: Sequence[Case],
    participants: dict[str, Participant],
    cores: machine.Cores,
    rounds: int,
) -> None:
    """Measure every pair of case and participant in every round, in another order each time.

    In one round the participants of a case follow each other, so that a ratio compares figures that
    were measured within seconds.
    """
    order = random.Random()
    with Bench.open(cores) as bench:
        for number in range(1, rounds + 1):
            report.rounds.append({})
            watch = machine.Watch(cores)
            upstream_cpu = machine.cpu_ns(bench.upstream_pid)
            for case in order.sample(cases, len(cases)):
                present = [participants[name] for name in case.participants if name in participants]
                for participant in order.sample(present, len(present)):
                    print(
                        f"round {number} of {rounds}: {case.name}, {participant.name}",
                        file=sys.stderr,
                    )
                    measure_one(report, case, participant, bench)
            upstream_cpu = machine.cpu_ns(bench.upstream_pid) - upstream_cpu
            report.busy = report.busy or _taken(watch.others(upstream_cpu))


def measure_one(report: Report, case: Case, participant: Participant, bench: Bench) -> None:
    """Add the figures of one measurement to the report, or why there are none."""
    try:
        figures = case.measure(bench, participant, case, SCALES[report.scale])
    except (MeasurementError, OSError) as error:
        report.errors.append(f"{case.name}, {participant.name}: {error}")
    else:
        report.add(case.name, participant.name, figures)
