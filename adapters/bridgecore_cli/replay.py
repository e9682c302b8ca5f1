"""The file of the decision log: written by ``serve --decision-log``, read by ``replay``.

What belongs here: opening, writing and reading the file, and printing the comparison. The format of
a line is in ``bridgecore.wire.decisions``, the comparison in ``bridgecore.verify.replay``.

Exit codes of ``replay``: 0: every decision is as recorded; 1: one differs; 2: wrong flags; 78: the
file cannot be read or is not a decision log.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from bridgecore.recovery.policy import Policy
from bridgecore.transport import Log, LogLevel
from bridgecore.wire.decisions import DECISION, show
from bridgecore_cli.errors import CONFIGURATION, SettingsError
from bridgecore_cli.output import print_text, printable

if TYPE_CHECKING:  # loading it takes time, which ``serve`` should not spend
    from bridgecore.verify.replay import Divergence, Report

_SHOWN = 20  # differences that are printed; of the others only the number


class DecisionLog:
    """A log that appends the lines of decisions to the file at ``path`` and passes all other
    records to ``log``.

    Each line is written at once and completely. If one cannot be written, because the disk is full,
    ``log`` gets one warning and recording stops, because a log with a gap cannot be replayed.

    Raises:
        SettingsError: the file cannot be opened for writing.
    """

    def __init__(self, path: str, log: Callable[[Log], None]) -> None:
        self._log = log
        self._path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            self._file = os.open(path, flags, 0o600)
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "strerror", None) or str(exc)
            raise SettingsError(
                f"decision_log: cannot write {path}: {reason}", CONFIGURATION
            ) from None
        self._recording = True
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")  # the last line is incomplete: the machine has crashed

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recording = False
        os.close(self._file)

    def __call__(self, record: Log) -> None:
        """Write ``record``'s line, or pass the record on."""
        if record.event != DECISION:
            self._log(record)
        elif self._recording:
            self._write(str(record.fields["line"]).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            reason = None if written == len(data) else "No space left on device"
        except OSError as exc:
            reason = exc.strerror or str(exc)
        if reason is not None:
            self._recording = False
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)  # remove an incomplete line
            fields: dict[str, str | int] = {"path": self._path, "reason": reason}
            self._log(Log(LogLevel.WARNING, "decision_log.stopped", fields))


@contextlib.contextmanager
def opened_log(path: Path) -> Iterator[BinaryIO]:
    """The log at ``path``, of this bridge or of another one, open for reading.

    Raises:
        SettingsError: the file cannot be read, or what reads it in the context finds that it is no
            log.
    """
    from bridgecore.verify.replay import MalformedLog

    try:
        with path.open("rb") as lines:
            yield lines
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise SettingsError(f"cannot read {path}: {reason}", CONFIGURATION) from None
    except MalformedLog as exc:
        raise SettingsError(f"{path}, {exc}", CONFIGURATION) from None


# ------------------------------------------------------------------ replay


def run(options: argparse.Namespace) -> int:
    """Replay the file and print how the decisions compare; return the exit code.

    Raises:
        SettingsError: the file cannot be read or is not a decision log.
    """
    from bridgecore.verify.replay import replay

    other: Policy | None = options.policy
    name = None if other is None else other.name
    with opened_log(options.file) as lines:
        report = replay(lines, other)
    if report.divergence is not None:
        _print("first divergence: " + _tell(report.divergence, "recorded", "replayed"))
        if report.divergence.begun:
            from bridgecore.verify.replay import BEGUN

            _print(f"  {BEGUN}")
    for difference in report.differences[:_SHOWN]:
        _print("difference: " + _tell(difference, "recorded", name or ""))
    if len(report.differences) > _SHOWN:
        _print(f"and {len(report.differences) - _SHOWN} more")
    for line in cut_off(report.incomplete):
        _print(line)
    _print(_summary(report, name))
    return 0 if report.same else 1


def cut_off(lines: Sequence[int]) -> list[str]:
    """What is said of the incomplete ``lines`` of a log."""
    return [f"line {line} is incomplete: it was cut off, and is not checked" for line in lines]


def _tell(found: Divergence, expected: str, actual: str) -> str:
    width = max(len(expected), len(actual)) + 1
    rows = [("event", show(found.event)), (expected, found.expected), (actual, found.actual)]
    lines = [f"  {name + ':':{width}} {value}" for name, value in rows]
    where = f"line {found.line}, run {found.run}, session {found.session}, at {found.at} ns"
    return "\n".join([where, *lines])


def _summary(report: Report, other: str | None) -> str:
    parts = (
        counted(report.runs, "run"),
        counted(report.sessions, "session"),
        counted(report.transitions, "transition"),
    )
    text = f"replayed {', '.join(parts)}, recorded under {', '.join(report.policies)}: "
    if report.divergence is not None:
        return text + "ended at a divergence"
    if other is None:
        return text + "no divergence"
    sessions = {(difference.run, difference.session) for difference in report.differences}
    if not sessions:
        return text + f"{other} would have decided the same"
    differences = counted(len(report.differences), "decision")
    among = counted(len(sessions), "session")
    return text + f"{other} would have decided differently in {differences} of {among}"


def counted(number: int, noun: str) -> str:
    """The number with its noun, in the plural unless it is one."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def _print(text: str) -> None:
    print_text(printable(text, lines=True))
