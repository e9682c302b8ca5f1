"""Tests of ``bridgecore verify --trace``: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridgecore_cli.errors import CONFIGURATION
from bridgecore_cli.main import main
from tests.verify.test_replay import eventful, lines_of

Capture = pytest.CaptureFixture[str]
TRACES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "traces"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs") / "decisions.ndjson"
    path.write_bytes(b"".join(line + b"\n" for line in lines_of(eventful())))
    return path


def test_an_accepted_log_shows_what_it_has_met(log: Path, capsys: Capture) -> None:
    assert main(["verify", "--trace", str(log)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "rules met " in out
    assert "cells met " in out
    assert "send_skipped/bound" in out
    assert out.splitlines()[-1].startswith(f"accepted: {log}: ")
    assert max(len(line) for line in out.splitlines()[:-1]) < 80


def test_an_altered_decision_is_shown_with_its_diagram(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    lines = log.read_bytes().splitlines()
    number = next(nth for nth, line in enumerate(lines) if b"CompleteTurn" in line)
    decision = json.loads(lines[number])
    decision["effects"] = []
    lines[number] = json.dumps(decision).encode()
    path, drawing = tmp_path / "altered", tmp_path / "found.svg"
    path.write_bytes(b"\n".join(lines))
    assert main(["verify", "--trace", str(path), "--svg", str(drawing)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"line {number + 1}, session {decision['session']}: not the decision")
    assert "wrong: recorded ended: nothing to do; the rules decide ended:" in out
    assert "decided by: ended" in out
    assert f"rejected: {path}, line {number + 1}: " in out.splitlines()[-1]
    assert ElementTree.fromstring(drawing.read_text(encoding="utf-8")).tag.endswith("svg")


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("sound", 0, "accepted"),
        ("answers_not_found", 1, "line 12, session s1: NOT_FOUND_IS_EARNED"),
        ("sends_again", 1, "line 13, session s1: NO_AMBIGUOUS_RESEND"),
        ("gets_stuck", 1, "line 12, session s1: TURNS_END"),
    ],
)
def test_the_examples_of_the_documentation(
    name: str, status: int, words: str, capsys: Capture
) -> None:
    assert main(["verify", "--trace", str(TRACES / f"{name}.jsonl")]) == status
    out = capsys.readouterr().out
    assert words in out
    assert "rules met" not in out


def test_a_property_can_be_allowed(capsys: Capture) -> None:
    trace = str(TRACES / "sends_again.jsonl")
    assert main(["verify", "--trace", trace, "--allow", "no_ambiguous_resend"]) == 0
    assert "accepted" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "--trace", trace, "--allow", "no_such"])
    assert "no property is named 'no_such'" in capsys.readouterr().err


def test_a_log_that_was_cut_off_is_checked(log: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "cut"
    whole = log.read_bytes()
    path.write_bytes(whole + b"\n" + whole.splitlines()[-1][:40])
    number = len(whole.splitlines()) + 2
    for command in (["verify", "--trace"], ["replay"]):
        assert main([*command, str(path)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert f"\nline {number} is incomplete: it was cut off" in f"\n{out}"


def test_a_log_that_begins_in_a_session_says_what_to_do(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "rotated"
    lines = log.read_bytes().splitlines(keepends=True)
    number = next(nth for nth, line in enumerate(lines) if b"ResponseCreated" in line)
    path.write_bytes(b"".join([lines[0], *lines[number:]]))
    assert main(["verify", "--trace", str(path)]) == 1
    out = capsys.readouterr().out
    assert "line 2: the log does not begin with this session" in out
    assert "Put the files of a\nrotated log together" in out
    assert "decided by" not in out
    assert main(["replay", str(path)]) == 1
    assert "Put the files of a rotated\n  log together" in capsys.readouterr().out
    path.write_bytes(b"".join(lines[number:]))
    for command in (["verify", "--trace"], ["replay"]):
        assert main([*command, str(path)]) == CONFIGURATION
        assert "Put the files of a rotated log together" in capsys.readouterr().err


def test_the_verdict_says_what_it_assumes(capsys: Capture) -> None:
    assert main(["verify", "--trace", str(TRACES / "sound.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "25 events of 1 session, 27 lines, if 1 loss was not logged" in out


def test_what_is_no_log_is_named(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "log"
    assert main(["verify", "--trace", str(path)]) == CONFIGURATION
    assert f"cannot read {path}" in capsys.readouterr().err
    path.write_bytes(b'{"log":"bridgecore decisions"}\n')
    assert main(["verify", "--trace", str(path)]) == CONFIGURATION
    assert f"{path}, line 1: its format is None" in capsys.readouterr().err
    path.write_bytes(b"")
    assert main(["verify", "--trace", str(path)]) == CONFIGURATION
    assert "line 1: the log is empty" in capsys.readouterr().err
    trace = str(TRACES / "sends_again.jsonl")
    assert main(["verify", "--trace", trace, "--svg", "/dev/full"]) == 1
    assert "cannot write /dev/full" in capsys.readouterr().err
