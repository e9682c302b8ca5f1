"""Tests of ``bridgecore simulate``: its tables, its JSON and its exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridgecore_cli import simulate as command
from bridgecore_cli.arguments import parser
from bridgecore_cli.errors import CommandError
from tests.cli.process import in_a_terminal, run, screen_lines


@pytest.fixture(autouse=True)
def _without_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def invoke(*arguments: str) -> int:
    return command.run(parser().parse_args(["simulate", *arguments]))


def test_the_command_shows_both_policies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    svg = tmp_path / "context.svg"
    assert invoke("--policy", "both", "--turns", "20", "--svg", str(svg)) == 0
    out = capsys.readouterr().out
    assert "default: 20 turns use" in out
    assert "full at turn 360 if it goes on" in out
    assert "v1_12: the window of 876,000 tokens is full at turn 14" in out
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_both_policies_are_compared_unless_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--turns", "3", "--conversations", "2") == 0
    out = capsys.readouterr().out
    assert "Over the first 3 turns, v1_12 needs, against default: 2.9 times the context" in out
    assert "policy default: 2 conversations" in out
    assert "policy v1_12: 2 conversations" not in out


def test_a_not_found_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Although the context is as small as it can be."""
    assert invoke("--policy", "v1_12", "--no-store", "--turns", "3") == 1
    assert "whole history in 2 of the 2 turns" in capsys.readouterr().out


def test_a_share_of_turns_can_be_hit(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--turns", "6", "--faults", "2/3", "--policy", "default") == 0
    out = capsys.readouterr().out
    assert "2 of 3 turns lose their connection" in out
    assert out.count(" 502\n") == 4
    with pytest.raises(CommandError, match="long conversation only"):
        invoke("--faults", "2/3", "--conversations", "1")


def test_the_command_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke(
        "--policy", "v1_12", "--turns", "8", "--conversations", "32", "--faults", "2", "--json"
    )
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["sound"] is False
    assert len(found["growth"]["v1_12"]["turns"]) == 8
    storm = found["conversations"]["v1_12"]
    assert found["growth"]["v1_12"]["conversation_lost_turns"] == 4
    assert found["growth"]["v1_12"]["projected_full_at_turn"] == 22
    assert storm["violations"]
    assert storm["conversation_hours_per_minute"] > 0
    assert "VIOLATION" in storm["shrunk"]


def test_the_command_reports_a_sound_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--turns", "5", "--conversations", "8", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert "8 conversations of 5 turns" in out
    assert "0 violations" in out
    assert "a minute" in out
    assert "sockets warmed" not in out


def test_the_command_warms_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--turns", "5", "--conversations", "8", "--warm") == 0
    assert "sockets warmed" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_command_fails_if_the_plot_cannot_be_written_after_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A path that cannot be opened is reported before the run: tests/cli/test_main.py."""
    assert invoke("--turns", "2", "--svg", "/dev/full") == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--turns", "0"],
        ["--faults", "often"],
        ["--faults", "4/3"],
        ["--seed", "-1"],
        ["--policy", "none"],
    ],
)
def test_the_command_refuses_bad_flags(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        invoke(*arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("flags", [["--warm"], ["--replicas", "3"]])
def test_a_flag_of_the_faulty_network_needs_conversations_on_it(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match=f"{flags[0]} is of use only with --conversations"):
        invoke("--turns", "2", *flags)
    assert capsys.readouterr().out == ""


CROWD = ("simulate", "--turns", "3", "--conversations", "4")


@pytest.mark.parametrize("more", [[], ["--replicas", "2"]], ids=["one", "replicas"])
def test_no_line_is_wider_than_the_terminal(more: list[str]) -> None:
    code, written = in_a_terminal(*CROWD, *more, environ={})
    assert code == 0
    lines = screen_lines(written)
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"\[[#.]+\] default: .* violations, .* s to go$", line) for line in lines)
    assert "4 conversations of 3 turns" in " ".join(lines)


def test_in_a_pipe_lines_are_as_wide_as_the_environment_says() -> None:
    results = {width: run(*CROWD, environ={"COLUMNS": width}) for width in ("80", "120", "")}
    widest = {width: max(map(len, result.stdout.splitlines())) for width, result in results.items()}
    assert 70 < widest["80"] <= 80 < widest["120"] <= 120 < widest[""]
    texts = [result.stdout.split("conversation-hours")[0] for result in results.values()]
    assert len({" ".join(text.split()) for text in texts}) == 1
