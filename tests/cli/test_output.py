"""Tests of what is printed on a terminal: no line is wider, and findings are printed in order."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from bridgecore.verify.properties import Property
from bridgecore.verify.results import Finding
from bridgecore_cli.output import wrapped
from bridgecore_cli.verify_sections import Costliest
from tests.cli.process import COMMAND, TIME_LIMIT, environment, run

NARROW = 60


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", [""]),
        ("short", ["short"]),
        ("one two three four", ["one two", "  three", "  four"]),
        ("  in two three four", ["  in two", "    three", "    four"]),
        ("BROKEN  NAME1", ["BROKEN", "  NAME1"]),
        ("a-b-c-d-e-f-g", ["a-b-c-d-e-", "  f-g"]),
        ("an abcdefghijklmnop", ["an", "  abcdefgh", "  ijklmnop"]),
        ("\033[1;31mone two\033[0m th", ["\033[1;31mone two\033[0m th"]),
    ],
)
def test_a_line_is_wrapped_between_words(line: str, parts: list[str]) -> None:
    assert wrapped(line, 10).split("\n") == parts


def test_a_long_word_can_stay_whole() -> None:
    assert wrapped("at /a/path/of/a/file, line 3", 10, whole=True).split("\n") == [
        *("at", "  /a/path/of/a/file,", "  line 3"),
    ]
    assert wrapped("at /a/path/of/a/file", 10, whole=True) == "at\n  /a/path/of/a/file"


def test_no_part_is_longer_than_it_may_be() -> None:
    line = "    word " * 3 + "x" * 50 + " y" * 30
    for width in range(10, 60):
        parts = wrapped(line, width).split("\n")
        assert max(map(len, parts)) <= width
        assert "".join("".join(parts).split()) == "".join(line.split())


def on_a_terminal(*arguments: str) -> str:
    """What the command prints on a terminal of ``NARROW`` columns, with standard error."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, NARROW, 0, 0))
    ours = environment({"TERM": "xterm", "NO_COLOR": "1"})
    ours.pop("COLUMNS", None)
    with os.fdopen(leader, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=follower, stderr=follower, env=ours
        )
        os.close(follower)
        text = b""
        with contextlib.suppress(OSError):  # the end, as Linux reports it
            while part := screen.read(65536):
                text += part
        process.wait(TIME_LIMIT)
    return re.sub(r"\033\[\w", "", text.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--policy", "no_such_policy"],
        ["verify", "--bounds", "quick", "--export", "dot", "--part", "99"],
        ["replay", "/nowhere/to/be/found/decisions-of-yesterday.ndjson"],
        ["serve", "--no-such-setting-is-known-to-any-version-of-it", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_error_is_wrapped_on_a_terminal_and_one_line_in_a_pipe(arguments: list[str]) -> None:
    lines = on_a_terminal(*arguments).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= NARROW
    (line,) = run(*arguments).stderr.splitlines()
    assert line.startswith("bridgecore: error: ")
    assert "".join("".join(lines).split()) == "".join(line.split())


def test_the_costliest_violation_is_told_first() -> None:
    said: list[str] = []
    costliest = Costliest(said.append)
    costliest.tell()
    assert (said, costliest.count) == ([], "")
    costliest.found(Finding(Property.REBIND_CODE_IS_NOT_WITHHELD, "", ("a", "b")))
    costliest.found(Finding(Property.NOT_FOUND_IS_EARNED, "", ("c", "d", "e")))
    costliest.tell()
    head = "  broken, the costliest so far: NOT_FOUND_IS_EARNED (rank 1), after 3 moves"
    assert said == [head, "    c; d; e", f"    costs: {Property.NOT_FOUND_IS_EARNED.cost}"]
    assert costliest.count == ", 2 broken"
    costliest.found(Finding(Property.REFUSED_IS_NOT_REPEATED, "", ()))
    costliest.tell()
    assert len(said) == 3
