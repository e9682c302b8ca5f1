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
from typing import TextIO

from bridgecore.transport import Log, LogLevel

_BARE = re.compile(r"[A-Za-z0-9_.:/@+,-]+")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]")


def utc_now() -> datetime:
    """The wall clock, for the time stamps of log lines; no decision reads it."""
    return datetime.now(UTC)


class LineLog:
    """Writes the records of at least ``level`` (debug, info, warning, error) to ``stream``."""

    def __init__(
        self, stream: TextIO | None, level: str, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._stream = stream
        self._level = LogLevel[level.upper()]
        self._clock = clock

    def __call__(self, record: Log) -> None:
        """Write ``record``. Errors of the stream are ignored: serving matters more than its log."""
        if record.level < self._level or self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(format_line(record, self._clock()) + "\n")
            self._stream.flush()


def format_line(record: Log, at: datetime) -> str:
    """``record`` as one line of printable ASCII, without the newline."""
    stamp = at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"
    words = [stamp, record.level.name.lower(), _name(record.event)]
    words += [f"{_name(key)}={_value(value)}" for key, value in record.fields.items()]
    return " ".join(words)


def _name(text: str) -> str:
    return _NOT_A_NAME.sub("_", text) or "_"


def _value(value: str | int) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")
