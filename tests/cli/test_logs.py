"""Tests of bridgecore_cli.logs: the format of a log line."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from bridgecore.transport import Log, LogLevel
from bridgecore_cli.logs import LineLog, format_line

AT = datetime(2026, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)


def test_a_log_line() -> None:
    record = Log(LogLevel.INFO, "turn.refused", {"turn": 3, "session": "s-1", "rule": "resend"})
    assert format_line(record, AT) == (
        "2026-01-01T00:00:00.001Z info turn.refused turn=3 session=s-1 rule=resend"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("a\nb", '"a\\nb"'),
        ("a\r\x1b[31m", '"a\\r\\u001b[31m"'),
        ("a\u2028b", '"a\\u2028b"'),
        ("\x7f\x85", '"\\u007f\\u0085"'),
        (-1, "-1"),
        ("127.0.0.1:80", "127.0.0.1:80"),
    ],
)
def test_a_value_cannot_make_a_line_of_its_own(value: str | int, shown: str) -> None:
    line = format_line(Log(LogLevel.WARNING, "e", {"k": value}), AT)
    assert line == f"2026-01-01T00:00:00.001Z warning e k={shown}"
    assert line.isascii()
    assert line.isprintable()


def test_field_names_cannot_make_a_line_of_their_own() -> None:
    line = format_line(Log(LogLevel.ERROR, "e\nf", {"k\n v=": 1, "": 2}), AT)
    assert line == "2026-01-01T00:00:00.001Z error e_f k__v_=1 _=2"


def test_only_records_of_the_level_are_written() -> None:
    stream = io.StringIO()
    log = LineLog(stream, "warning", lambda: AT)
    for level in LogLevel:
        log(Log(level, level.name, {}))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["warning", "error"]


def test_the_lines_of_one_pass_of_the_loop_are_written_together() -> None:
    stream, calls = io.StringIO(), deque[Callable[[], None]]()
    log = LineLog(stream, "info", lambda: AT)
    log(Log(LogLevel.INFO, "a", {}))
    assert stream.getvalue().count("\n") == 1
    log.later = calls.append
    for event in ("b", "c"):
        log(Log(LogLevel.INFO, event, {}))
    assert stream.getvalue().count("\n") == 1
    (flush,) = calls
    flush()
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["a", "b", "c"]
    calls.clear()
    log(Log(LogLevel.INFO, "d", {}))
    assert len(calls) == 1
    log.flush()
    assert stream.getvalue().endswith(" d\n")


def test_the_last_lines_are_left_to_a_signal_handler() -> None:
    stream = io.StringIO()
    log = LineLog(stream, "warning", lambda: AT)
    log.later = lambda flush: None
    log(Log(LogLevel.WARNING, "a", {}))
    last = log.unwritten(Log(LogLevel.WARNING, "b", {}))
    assert [line.split()[2] for line in last.splitlines()] == ["a", "b"]
    assert last.endswith("\n")
    quiet = log.unwritten(Log(LogLevel.INFO, "c", {}))
    assert [line.split()[2] for line in quiet.splitlines()] == ["a"]
    assert stream.getvalue() == ""


def test_a_closed_log_stream_is_no_error() -> None:
    stream = io.StringIO()
    log = LineLog(stream, "info")
    stream.close()
    log(Log(LogLevel.INFO, "e", {}))
    LineLog(None, "info")(Log(LogLevel.INFO, "e", {}))
