"""Tests of ``bridgecore verify --trace``: what it prints, writes and returns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bridgecore.verify.trace import TraceReport
from bridgecore_cli.errors import CONFIGURATION, USAGE
from bridgecore_cli.main import main
from bridgecore_cli.trace import assumed
from tests.verify.test_replay import eventful, lines_of

Capture = pytest.CaptureFixture[str]
TRACES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "traces"


def unwrapped(text: str) -> str:
    return " ".join(text.split())


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
    assert f"accepted: {log}: " in unwrapped(out)


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
    out = unwrapped(out)
    assert "wrong: recorded ended: nothing to do; the rules decide ended:" in out
    assert "decided by: ended" in out
    assert f"rejected: {path}, line {number + 1}: " in out
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
    name: str, status: int, words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(TRACES)
    assert main(["verify", "--trace", f"{name}.jsonl"]) == status
    out = capsys.readouterr().out
    assert words in out
    assert max(len(line) for line in out.splitlines()) < 80
    assert re.search(
        r"^rules that default would meet: [0-9]+ of 35: submit [0-9],", out, re.MULTILINE
    )
    assert "\ncells that default would meet: " in out
    assert " of 1 session" in unwrapped(out)


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
    out = unwrapped(capsys.readouterr().out)
    assert "line 2: the log does not begin with this session" in out
    assert "Put the files of a rotated log together" in out
    assert "decided by" not in out
    assert main(["replay", str(path)]) == 1
    assert "Put the files of a rotated log together" in unwrapped(capsys.readouterr().out)
    path.write_bytes(b"".join(lines[number:]))
    for command in (["verify", "--trace"], ["replay"]):
        assert main([*command, str(path)]) == CONFIGURATION
        assert "Put the files of a rotated log together" in capsys.readouterr().err


def test_the_verdict_says_what_it_assumes(capsys: Capture) -> None:
    assert main(["verify", "--trace", str(TRACES / "sound.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "25 events of 1 session, 27 lines, if 1 loss was not logged" in unwrapped(out)
    assert "send_skipped/held 2" in unwrapped(out)


def test_the_verdict_says_what_was_noticed_late(tmp_path: Path, capsys: Capture) -> None:
    """In text, in JSON and in JUnit's XML."""
    rows = list(map(json.loads, (TRACES / "sound.jsonl").read_bytes().splitlines()))[:12]
    assert [row.get("event") for row in rows[-3:]] == ["turn_submitted", "upstream_opened", "sent"]
    # The connection was lost 1.25 s before, and the turn is sent on it nevertheless.
    rows[10] = {**rows[11], "at": 65250, "previous_response_id": "resp_1"}
    rows[11] = {"at": 65300, "session": "s1", "event": "answered", "turn": "t2", "status": 502}
    log = tmp_path / "late.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["verify", "--trace", str(log), "--junit", str(tmp_path / "junit")]) == 0
    words = "12 lines, if 1 event was noticed 1.25 s late"
    assert unwrapped(capsys.readouterr().out).endswith(words)
    assert words in (tmp_path / "junit").read_text(encoding="utf-8")
    assert main(["verify", "--trace", str(log), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"].endswith(words)
    assert found["late"] == {"reactions": 1, "seconds": 1.25, "to_come": 0}


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"late": 1}, ", if 1 event was noticed late"),
        ({"late": 2, "latest": 10**9}, ", if 2 events were noticed up to 1 s late"),
        ({"to_come": 1}, ", if 1 reaction was still to come at the end"),
        (
            {"losses": 1, "deadlines": 2, "late": 1, "latest": 10**6, "to_come": 2},
            ", if 1 loss and 2 deadlines were not logged, 1 event was noticed 0.001 s late and 2 "
            "reactions were still to come at the end",
        ),
        ({}, ""),
    ],
)
def test_the_verdict_names_all_that_it_assumes(report: dict[str, int], words: str) -> None:
    assert assumed(TraceReport(1, 1, 1, None, **report)) == words  # type: ignore[arg-type]  # of the fields that are numbers


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_no_line_is_wider_than_the_terminal(
    columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(TRACES)
    for name in ("sound", "answers_not_found", "sends_again", "gets_stuck"):
        main(["verify", "--trace", f"{name}.jsonl"])
        out = capsys.readouterr().out
        assert max(len(line) for line in out.splitlines()) < columns
        assert "..." not in out


@pytest.mark.parametrize(("name", "status"), [("sound", 0), ("sends_again", 1)])
def test_the_result_of_another_bridges_log_for_machines(
    name: str, status: int, tmp_path: Path, capsys: Capture
) -> None:
    log, files = str(TRACES / f"{name}.jsonl"), [tmp_path / "junit", tmp_path / "mermaid"]
    flags = ["--json", "--junit", str(files[0]), "--mermaid", str(files[1])]
    assert main(["verify", "--trace", log, *flags]) == status
    found = json.loads(capsys.readouterr().out)
    assert (found["accepted"], found["log"]) == (status == 0, log)
    assert found["not_logged"] == {"losses": 1 - status, "deadlines": 0}
    assert (
        list(found["cells"])
        == (["send_skipped/held", "lost_sent/bound"], ["lost_sent/held"])[status]
    )
    assert found["rules"]["submit"] > 0
    cases = ElementTree.fromstring(files[0].read_text(encoding="utf-8")).findall("*/testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert {"TURNS_END", "CONTEXT_IS_MEANT"} <= {case.get("name") for case in cases}
    assert len(skipped) == (len(cases) - 1) * status
    if status == 0:
        assert (failed, found["wrong"], files[1].exists()) == ([], None, False)
        return
    assert failed == ["NO_AMBIGUOUS_RESEND"] == [found["wrong"]["property"]]
    assert found["wrong"]["line"] == 13
    assert found["wrong"]["history"][-1]["effects"] == ["send turn 2 rehydrated on connection 2"]
    assert files[1].read_text(encoding="utf-8").startswith("sequenceDiagram\n")


def test_the_result_of_a_decision_log_for_machines(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    path, junit = tmp_path / "altered", tmp_path / "junit"
    path.write_bytes(log.read_bytes().replace(b'"rule":"ended"', b'"rule":"end"', 1))
    flags = ["--json", "--junit", str(junit)]
    found: dict[str, Any] = {}
    for trace, failed in ((log, []), (path, ["decisions"])):
        assert main(["verify", "--trace", str(trace), *flags]) == len(failed)
        found = json.loads(capsys.readouterr().out)
        assert found["policies"] == ["default"]
        assert found["accepted"] is (failed == [])
        cases = ElementTree.fromstring(junit.read_text(encoding="utf-8")).findall("*/testcase")
        assert [case.get("name") for case in cases if case.find("failure") is not None] == failed
    assert found["wrong"]["blamed"] == ["ended"]


def test_the_files_are_valid_whatever_a_turn_is_called(tmp_path: Path, capsys: Capture) -> None:
    """JSON has characters that XML cannot have, and half surrogate pairs, which no file can."""
    log, svg, junit = tmp_path / "log", tmp_path / "svg", tmp_path / "junit"
    rows = [
        {"at": 0, "session": "\udfff<&>", "event": "turn_submitted", "turn": "\0\ud800\x1b]]>\n"},
        {"at": 700_000, "event": "log_ended"},
    ]
    log.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    flags = ["--svg", str(svg), "--junit", str(junit), "--mermaid", str(tmp_path / "mermaid")]
    assert main(["verify", "--trace", str(log), *flags]) == 1
    assert capsys.readouterr().err == ""
    assert "turn \\x00\\ud800\\x1b]]>" in "".join(ElementTree.parse(svg).getroot().itertext())
    (found,) = ElementTree.parse(junit).getroot().iter("failure")
    assert "turn \\x00\\ud800\\x1b]]>" in found.attrib["message"]
    assert "\\x00\\ud800" in (tmp_path / "mermaid").read_text(encoding="utf-8")


def test_a_property_that_is_allowed_is_no_case(tmp_path: Path) -> None:
    trace, junit = str(TRACES / "sends_again.jsonl"), tmp_path / "junit"
    flags = ["--allow", "no_ambiguous_resend", "--junit", str(junit)]
    assert main(["verify", "--trace", trace, *flags]) == 0
    assert "NO_AMBIGUOUS_RESEND" not in junit.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--policy", "default"], "to compare a decision log with another policy: bridgecore"),
        (["--bounds", "small"], "--trace explores nothing"),
        (["--property", "TURNS_END"], "--allow leaves one out"),
        (["--mutants"], "--trace explores nothing"),
        (["--export", "json"], "--trace explores nothing"),
        (["--part", "1"], "--trace explores nothing"),
        (["--jobs", "1"], "--trace explores nothing"),
        (["--report", "x"], "--trace explores nothing"),
        (["--output", "x"], "--trace explores nothing"),
    ],
)
def test_a_flag_without_effect_is_refused(
    flags: list[str], why: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--trace", str(TRACES / "sound.jsonl"), *flags]) == USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{flags[0]} cannot be given with --trace: " in err
    assert why in err


def test_a_property_is_allowed_only_in_a_log(capsys: Capture) -> None:
    assert main(["verify", "--bounds", "quick", "--allow", "TURNS_END"]) == USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "--allow is of use only with --trace" in err


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
