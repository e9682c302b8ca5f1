"""Log records, for embedders and for those who run the command.

What belongs here: the form of a record. Records are effects like all others, so that they keep
their place among them; writing them is the adapter's. What is counted is in
``bridgecore.telemetry.metrics``.
"""

from __future__ import annotations

import enum

import attrs


class LogLevel(enum.IntEnum):
    """Severity of a log record; the numbers of the standard library's logging."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@attrs.define
class Log:
    """Write a log record. ``event``: its name; ``fields``: scalars. It contains no bodies and no
    credentials, and ids only as hashes."""

    level: LogLevel
    event: str
    fields: dict[str, str | int]
