"""Tests of what is printed on a terminal: no line is wider, and findings are printed in order."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.policy import DEFAULT
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import Report
from bridgecore.verify.properties import Property
from bridgecore.verify.results import Finding
from bridgecore.wire.decisions import write_header
from bridgecore_cli.arguments import whole_parser
from bridgecore_cli.configfile import folded, toml_value
from bridgecore_cli.main import main
from bridgecore_cli.output import columns, wrapped
from bridgecore_cli.verify_sections import SECTIONS, Costliest, Part, Work, explore_sections
from tests.cli.process import COMMAND, TIME_LIMIT, environment, in_a_terminal, run, screen_lines

NARROW = 60
TRACES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "traces"


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


def test_the_figures_of_all_parts_are_in_one_column() -> None:
    """However long their names are: ``state`` is where the figures begin."""
    said: list[str] = []
    names = ["a", "a part with a name that is longer than those of others"]
    bounds = {"quick": [attrs.evolve(BOUNDS["quick"][0], name=name) for name in names]}
    section = attrs.evolve(SECTIONS[0], bounds=bounds, explore=_found_nothing, closer=lambda _: ())
    explore_sections(DEFAULT, "quick", ["ONE_END"], said.append, [section])
    figures = [line for line in said if "7 states" in line]
    assert [line.split("7 states")[0].strip() for line in figures] == names
    assert len({line.index("7 states") for line in figures}) == 1


def _found_nothing(work: Work, bounds: Bounds) -> Part:
    return Part(bounds, Report(work.policy.name, bounds, complete=True), 7, [])


# ------------------------------------------------------------------ every command


class Terminal(io.StringIO):
    """A stream that says that it is a terminal; how wide, the environment says."""

    def isatty(self) -> bool:
        return True


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """``parser`` and that of each of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands(command)


HELPS = [[*parser.prog.split()[1:], "--help"] for parser in commands(whole_parser())]
POLICY = """
[policy]
name = "a_policy_with_a_name_of_some_length"
summary = "Says in one sentence, which is longer than a line, what is different about it, and why."
[policy.cells]
silent.usually = "refuse_bounded (upstream_request_timeout)"
lost_sent.unanchored = "resend"
[policy.timeouts]
idle = 1000
"""
REPORTS = [
    ["--version"],
    [],
    ["no-such-command"],
    ["rules"],
    ["rules", "--all"],
    ["rules", "--policy", "pr397"],
    ["rules", "--policy", "v1_12", "--diff"],
    ["rules", "--policy", "own.toml"],
    ["rules", "--policy", "own.toml", "--all"],
    ["rules", "--policy", "own.toml", "--diff"],
    ["rules", "--policy", "own.toml", "--toml"],
    ["check-config"],
    ["check-config", "--config", "served.toml"],
    ["verify", "--property", "help"],
    *[["verify", "--trace", path.name] for path in sorted(TRACES.glob("*.jsonl"))],
    ["replay", "decisions.ndjson"],
    ["simulate", "--turns", "3"],
    ["simulate", "--turns", "3", "--policy", "v1_12", "--conversations", "2"],
]


@pytest.mark.parametrize("arguments", [*HELPS, *REPORTS], ids=lambda words: " ".join(words)[-60:])
def test_no_line_of_any_command_is_wider_than_the_terminal(
    arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(POLICY, encoding="utf-8")
    served = (
        f'upstream = "wss://{"long-name." * 9}example/v1"\n{POLICY.partition("[policy.time")[0]}'
    )
    (tmp_path / "served.toml").write_text(served, encoding="utf-8")
    (tmp_path / "decisions.ndjson").write_text(write_header(DEFAULT) + "\n", encoding="utf-8")
    for path in TRACES.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for width in (40, 60, 79, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        with contextlib.suppress(SystemExit):
            main(arguments)
        lines = screen_lines(screen.getvalue())
        assert "".join(lines).strip()
        assert [line for line in lines if len(line) > width] == []


@pytest.mark.parametrize(
    "arguments", [["serve", "--help"], ["rules"], ["check-config"], ["demo", "--turns", "2"]]
)
def test_the_width_is_that_of_the_terminal(arguments: list[str]) -> None:
    status, written = in_a_terminal(*arguments, columns=40, environ={})
    assert status == 0
    assert [line for line in screen_lines(written) if len(line) > 40] == []


def test_the_width_is_that_of_the_stream_that_is_written_to() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 33, 0, 0))
    with (
        os.fdopen(leader, "rb"),
        os.fdopen(follower, "w") as screen,
        pytest.MonkeyPatch.context() as m,
    ):
        m.delenv("COLUMNS", raising=False)
        assert columns(screen) == 33
        m.setenv("COLUMNS", "44")
        assert columns(screen) == 44
        m.setenv("COLUMNS", "0")
        assert columns(screen) == 33
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        assert columns(screen) == 80


WITH_COMMANDS = ("bridgecore", "bridgecore rules")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_command_of_a_help_can_be_copied(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is wider than the terminal goes on after a backslash, as a shell reads it."""
    parsers = [one for one in commands(whole_parser()) if one.prog in WITH_COMMANDS]
    monkeypatch.setenv("COLUMNS", "1000")
    unbroken = "".join(one.format_help() for one in parsers)
    monkeypatch.setenv("COLUMNS", str(width))
    broken = "".join(one.format_help() for one in parsers)
    found = [re.sub(r" +\\\n +", " ", text) for text in (unbroken, broken)]
    wanted = re.findall(r"^  (bridgecore .*?)(?:   *\S.*)?$", found[0], re.MULTILINE)
    assert len(wanted) == 7
    assert re.findall(r"^  (bridgecore .*?)(?:   *\S.*)?$", found[1], re.MULTILINE) == wanted


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.integers(min_value=20, max_value=90),
)
def test_folded_toml_means_the_same(value: str, width: int) -> None:
    text = f"# a comment of some words, which may go on\nkey = {toml_value(value)}\nother = 1\n"
    lines = folded(text, width)
    assert tomllib.loads(lines) == {"key": value, "other": 1}
    if not value.startswith(" "):
        assert max(map(len, lines.split("\n"))) <= width
