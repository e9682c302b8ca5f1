"""Log records as lines: ``2026-01-01T00:00:00.000Z info turn.refused turn=3 rule=resend``.

What belongs here: how a record looks and which are shown. Each is one line whatever is in it, so
that nobody can write a line that the bridge did not.
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
    """The wall clock: only people read it."""
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
        """Write ``record``. A stream that is gone is no reason to stop serving."""
        if record.level < self._level or self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(format_line(record, self._clock()) + "\n")
            self._stream.flush()


def format_line(record: Log, at: datetime) -> str:
    """The record as one line of printable ASCII, without the line's end."""
    stamp = at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"
    words = [stamp, record.level.name.lower(), _name(record.event)]
    words += [f"{_name(key)}={_value(value)}" for key, value in record.fields.items()]
    return " ".join(words)


def _name(text: str) -> str:
    return _NOT_A_NAME.sub("_", text) or "_"


def _value(value: str | int) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")
