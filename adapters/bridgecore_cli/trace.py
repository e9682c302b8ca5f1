"""``bridgecore verify --trace LOG``: checks a log from production, prints its first wrong line.

What belongs here: printing the verdict, the coverage and the diagram. The check itself is
``bridgecore.verify.trace`` and, for the log of another bridge, ``bridgecore.verify.foreign``.

Exit codes: 0: the log is accepted; 1: a line is wrong; 2: wrong flags; 78: the file cannot be read
or is no log.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify import diagram
from bridgecore.verify.foreign import HIDDEN, OF_LOGS, check_trace, is_decision_log
from bridgecore.verify.junit import junit_of_trace
from bridgecore.verify.properties import Property
from bridgecore.verify.trace import CELLS, RULE_IDS, TraceReport, Wrong, check_decisions
from bridgecore_cli.colour import Colour, paint
from bridgecore_cli.output import printable, width_of_output, wrapped, write_file
from bridgecore_cli.replay import counted, cut_off, opened_log

_LONGEST = 500  # characters of the wrong line that are printed


def run(args: argparse.Namespace) -> int:
    """Check the file and print the result; return the exit code.

    Raises:
        SettingsError: the file cannot be read or is no log.
    """
    path: Path = args.trace
    with opened_log(path) as lines:
        first = b""
        for line in lines:
            first += line  # blank ones, too: they count
            if line.strip():
                break
        allowed = frozenset(args.allow)
        if is_decision_log(first.strip()):
            of_sessions = frozenset(prop for prop in allowed if isinstance(prop, Property))
            report = check_decisions(_all(first, lines), of_sessions)
        else:
            report = check_trace(_all(first, lines), allowed)
    verdict = _verdict(path, report)
    width = width_of_output()
    if width is not None:
        width -= 1  # after a line that fills the last column, some terminals show an empty one
    shown: list[str] = []
    if report.wrong is not None:
        shown = _show(report.wrong, _line(path, report.wrong.line), width)
    if args.json:
        print(json.dumps({"log": str(path), "verdict": verdict, **report.as_data()}, indent=1))
    else:
        for text in [*shown, *_coverage(report), *cut_off(report.incomplete)]:
            print(wrapped(printable(text), width))
        colour = Colour.GOOD if report.wrong is None else Colour.BAD
        print(paint(wrapped(printable(verdict), width, whole=True), colour))
    written = _written(args, report, verdict, "\n".join(shown))
    return 0 if written and report.wrong is None else 1


def _written(args: argparse.Namespace, report: TraceReport, verdict: str, shown: str) -> bool:
    """Write the files that were asked for; whether all could be written. An accepted log has
    nothing to draw. Characters of the log that no file or no XML can have are escaped."""
    wrong, written = report.wrong, True

    def write(path: Path, text: str) -> bool:
        return write_file(path, printable(text, lines=True))

    if args.svg is not None and wrong is not None:
        text = diagram.svg_of(wrong.title, wrong.seen, wrong.text)
        written = write(args.svg, text) and written
    if args.mermaid is not None and wrong is not None:
        text = diagram.mermaid_of(wrong.title, wrong.seen, wrong.text)
        written = write(args.mermaid, text) and written
    if args.junit is not None:
        of_log = [*Property] if report.policies else [p for p in OF_LOGS if p not in HIDDEN]
        judged = [prop for prop in of_log if prop not in args.allow]
        text = junit_of_trace(str(args.trace), judged, report, verdict, shown)
        written = write(args.junit, text) and written
    return written


def _all(first: bytes, others: Iterable[bytes]) -> Iterable[bytes]:
    yield from first.splitlines(keepends=True)
    yield from others


def _line(path: Path, number: int) -> str:
    """The line of the file with that number; empty if it cannot be read again."""
    try:
        with path.open("rb") as lines:
            found = next(islice(lines, number - 1, None), b"")
    except OSError:  # a pipe that is gone
        return ""
    text = found.decode(errors="replace").strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _show(wrong: Wrong, text: str, width: int | None) -> list[str]:
    """What is wrong with the line ``text``, with the history of its session in a diagram of at most
    ``width`` columns."""
    lines = [f"line {wrong.line}, session {wrong.session}: {wrong.title}"]
    if text:
        lines.append(f"  {text}")
    if wrong.prop is not None:
        lines.append(f"  {wrong.prop.value}")
    lines += ["", *diagram.text_of(wrong.seen, width), "", f"wrong: {wrong.text}"]
    if wrong.blamed:
        lines.append(f"decided by: {', then '.join(wrong.blamed)}")
    return [*lines, ""]


def _coverage(report: TraceReport) -> list[str]:
    """How many rules and cells the log has met, and how often. Those of another bridge are not
    known: then it is what ``default`` would meet."""
    met = "met" if report.policies else "that default would meet:"
    return [
        _counted(f"rules {met} {len(report.rules)} of {len(RULE_IDS)}", report.rules),
        _counted(f"cells {met} {len(report.cells)} of {CELLS}", report.cells),
    ]


def _counted(title: str, counts: Counter[str]) -> str:
    names = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    return f"{title}: {names}" if names else title


def _verdict(path: Path, report: TraceReport) -> str:
    steps = f"{counted(report.steps, 'event')} of {counted(report.sessions, 'session')}"
    under = f" under {', '.join(report.policies)}" if report.policies else ""
    if report.wrong is None:
        text = f"accepted: {path}: {steps}{under}, {counted(report.lines, 'line')}"
        return text + assumed(report)
    return (
        f"rejected: {path}, line {report.wrong.line}: {report.wrong.title} ({steps}{under} so far)"
    )


def assumed(report: TraceReport) -> str:
    """What must be so for the log to be accepted, although it does not say so."""
    kinds = [(report.losses, "loss"), (report.deadlines, "deadline")]
    found = [counted(number, noun) for number, noun in kinds if number]
    verb = "was" if report.losses + report.deadlines == 1 else "were"
    parts = [f"{' and '.join(found)} {verb} not logged"] if found else []
    if report.late:
        seconds = f"{report.latest / NS_PER_SECOND:g} s"
        by = f"{seconds} " if report.late == 1 else f"up to {seconds} "
        was = f"{_WAS[report.late == 1]} noticed {by if report.latest else ''}late"
        parts.append(f"{counted(report.late, 'event')} {was}")
    if report.to_come:
        was = _WAS[report.to_come == 1]
        parts.append(f"{counted(report.to_come, 'reaction')} {was} still to come at the end")
    *others, last = parts or [""]
    return f", if {', '.join(others) + ' and ' if others else ''}{last}" if parts else ""


_WAS = ("were", "was")
