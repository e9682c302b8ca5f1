"""Writes log records as lines: ``2026-01-01T00:00:00.000Z info turn.refused turn=3 rule=resend``.

What belongs here: the format of a line and the filter by level. A record is always one line:
control characters in it are escaped, so that a client cannot forge a line of the log.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

from bridgecore.transport import Log, LogLevel

_BARE = re.compile(r"[A-Za-z0-9_.:/@+,-]+")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]")


def utc_now() -> datetime:
    """The wall clock, for the time stamps of log lines; no decision reads it."""
    return datetime.now(UTC)


class LineLog:
    """Writes the records of at least ``level`` (debug, info, warning, error) to ``stream``.

    Each line is written at once, until ``later`` is set to a function that calls another one soon,
    such as ``call_soon`` of an event loop. Then the lines of one pass of the loop are written
    together, because a write costs more than the line, and a busy bridge makes many in one pass.
    Whoever sets it calls ``flush`` at the end.
    """

    later: Callable[[Callable[[], None]], object] | None = None

    def __init__(
        self, stream: TextIO | None, level: str, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._stream = stream
        self._level = LogLevel[level.upper()]
        self._clock = clock
        self._waiting: list[str] = []  # lines that are not written yet

    def __call__(self, record: Log) -> None:
        """Write ``record``. Errors of the stream are ignored: serving matters more than its log."""
        if record.level < self._level or self._stream is None:
            return
        self._waiting.append(format_line(record, self._clock()))
        if self.later is None:
            self.flush()
        elif len(self._waiting) == 1:
            self.later(self.flush)

    def flush(self) -> None:
        """Write the lines that are not written yet."""
        lines, self._waiting = self._waiting, []
        if lines and self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()

    def unwritten(self, last: Log) -> str:
        """The lines that are not written yet, and the one of ``last``, if it is of the level.

        For a signal handler that ends the process: it may have interrupted a write to the stream,
        whose lock is held then, so it has to write the text in another way.
        """
        lines = [*self._waiting]
        if last.level >= self._level:
            lines.append(format_line(last, self._clock()))
        return "".join(f"{line}\n" for line in lines)


def format_line(record: Log, at: datetime) -> str:
    """``record`` as one line of printable ASCII, without the newline."""
    stamp = at.isoformat(timespec="milliseconds")[: len("2026-01-01T00:00:00.000")]
    words = [f"{stamp}Z {record.level.name.lower()} {_name(record.event)}"]
    for key, value in record.fields.items():
        text = str(value)
        shown = text if _BARE.fullmatch(text) else _quoted(text)
        words.append(f"{_name(key)}={shown}")
    return " ".join(words)


@lru_cache(maxsize=256)  # there are some fifty names
def _name(text: str) -> str:
    return _NOT_A_NAME.sub("_", text) or "_"


def _quoted(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")
