"""Judges mutants for ``bridgecore verify --mutants``: does a property notice each broken rule?

What belongs here: spreading the work over processes, printing the results and writing the report.
Which mutants there are, and how one is judged, is ``bridgecore.verify.mutate``.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bridgecore.recovery.policy import Policy
from bridgecore.verify.mutate import (
    BOUNDS,
    KEPT,
    Mutant,
    candidates,
    changes_nothing,
    judge,
    observe,
    witness,
)
from bridgecore.verify.properties import Property
from bridgecore_cli.output import print_text, write_file
from bridgecore_cli.progress import show


def judge_mutants(policy: Policy, jobs: int, report: Path | None) -> bool:
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
    print_text(f"\nmutants            {len(every):,} that change something, of {len(everything):,}")
    print_text(f"killed             {killed:,}, {killed / len(every):.1%}")
    print_text(f"argued equivalent  {len(equivalent)}")
    for name in survivors:
        print_text(f"SURVIVES {name}")
    tasks = [(prop, first[prop][:_TRIES]) for prop in Property]
    found = _spread(tasks, jobs, _witness, "properties")
    witnesses = {prop.name: one for prop, one in zip(Property, found, strict=True)}
    for name, one in witnesses.items():
        count = len(first[Property[name]])
        only = "" if one is None else f", only it: {one}"
        print_text(f"{count:>6} first noticed by {name}{only}")
    needless = [
        name for name, one in witnesses.items() if one is None and Property[name] not in KEPT
    ]
    for name in needless:
        print_text(f"NEEDLESS {name}: no mutant that only it notices, and no reason to keep it")
    if report is not None:
        data = {
            "policy": policy.name,
            "bounds": [bound.name for bound in BOUNDS],
            "candidates": len(everything),
            "total": len(every),
            "killed": killed,
            "equivalent": equivalent,
            "survivors": survivors,
            "kills": {rule: dict(sorted(by.items())) for rule, by in sorted(kills.items())},
            "witness": witnesses,
        }
        if not write_file(report, json.dumps(data, indent=1, sort_keys=True) + "\n"):
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
