"""Tests of the decision log as a file and of ``bridgecore replay``, as a process."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.policy import DEFAULT
from bridgecore.testing.client import read_answers
from bridgecore.transport import Log, LogLevel
from bridgecore.wire.decisions import DECISION, Recorder, write_header
from bridgecore_cli.errors import CONFIGURATION, SettingsError
from bridgecore_cli.main import main
from bridgecore_cli.replay import DecisionLog
from tests.cli.process import TIME_LIMIT, run, running_port, serving

if TYPE_CHECKING:
    from tests.conftest import Backend

KEY = "sk-secret-of-a-client"
WORDS = "words of a client"


def ask(port: int, **body: Any) -> str:
    """A turn over a new connection; the id of its response."""
    data = json.dumps({"model": "m", "input": WORDS, **body}).encode()
    head = (
        "POST /v1/responses HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT) as client:
        client.sendall(head.encode() + data)
        (answer,) = read_answers(b"".join(iter(lambda: client.recv(65536), b"")))
    assert answer.status == 200, answer
    return str(answer.json["id"])


def serve_some_turns(backend: Backend, path: Path) -> list[str]:
    """Two conversations through a bridge that logs to ``path``; the ids of their responses."""
    with serving("--backend", backend.name, "--port", "0", "--decision-log", str(path)) as process:
        port = running_port(process)
        first = ask(port)
        ids = [first, ask(port, previous_response_id=first), ask(port, store=False)]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert "Warning" not in err
    assert DECISION not in err
    return ids


def test_a_served_log_replays_without_divergence(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "decisions.ndjson"
    ids = serve_some_turns(backend, path)
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    for secret in (KEY, WORDS, *ids):
        assert secret not in text
    lines = len(text.splitlines())
    result = run("replay", str(path))
    assert result.stderr == ""
    assert result.returncode == 0
    assert result.stdout == (
        f"replayed 1 run, 2 sessions, {lines - 1} transitions, recorded under default: "
        "no divergence\n"
    )
    serve_some_turns(backend, path)
    result = run("replay", str(path), "--policy", "default")
    assert result.returncode == 0
    assert result.stdout.startswith("replayed 2 runs, 4 sessions, ")
    assert result.stdout.endswith("default would have decided the same\n")


def test_the_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "decisions.ndjson"
    with DecisionLog(str(path), unexpected):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/decisions.ndjson", errno.ENOENT),
        ("", errno.EISDIR),
    ],
)
def test_a_file_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, name: str, reason: int
) -> None:
    path = tmp_path / name
    result = run("serve", "--port", "0", "--decision-log", str(path))
    assert result.returncode == 78
    assert result.stdout == ""
    said = f"decision_log: cannot write {path}: {os.strerror(reason)}"
    assert result.stderr == f"bridgecore: error: {said}\n"


# ------------------------------------------------------------------ the file


def unexpected(record: Log) -> None:
    raise AssertionError(record)


def decision(line: str) -> Log:
    return Log(LogLevel.DEBUG, DECISION, {"line": line})


def test_other_records_go_on_and_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    passed: list[Log] = []
    other = Log(LogLevel.INFO, "turn.sent", {"turn": 1})
    with DecisionLog(str(path), passed.append) as log:
        log(decision("two"))
        log(other)
        assert path.read_bytes() == b"one\ntwo\n"
        log(decision("three"))
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert passed == [other]
    log(decision("late"))  # an event of a connection while everything ends
    assert passed == [other]


def test_a_line_that_was_cut_short_does_not_spoil_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"cut sho")
    with DecisionLog(str(path), unexpected) as log:
        log(decision("next"))
    assert path.read_bytes() == b"cut sho\nnext\n"


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="the system has no device that is always full")
def test_a_full_disk_is_logged_once_and_stops_only_the_recording() -> None:
    passed: list[Log] = []
    with DecisionLog(str(FULL), passed.append) as log:
        log(decision("one"))
        log(decision("two"))
    fields: dict[str, str | int] = {"path": str(FULL), "reason": os.strerror(errno.ENOSPC)}
    assert passed == [Log(LogLevel.WARNING, "decision_log.stopped", fields)]


def test_a_line_that_does_not_fit_is_not_written_in_part(tmp_path: Path) -> None:
    """A limit on file sizes has the effect of a disk with room for half a line."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "log"
    passed: list[Log] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with DecisionLog(str(path), passed.append) as log:
            log(decision("x" * 99))
            resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
            log(decision("y" * 99))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            log(decision("z"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"x" * 99 + b"\n"
    assert [record.event for record in passed] == ["decision_log.stopped"]


def test_a_directory_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        DecisionLog(str(tmp_path), unexpected)
    assert caught.value.exit_code == CONFIGURATION


# ------------------------------------------------------------------ the command


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """A log with one lost connection about which policies differ, in its line 5."""
    recorder = Recorder(DEFAULT)
    session = recorder.session(7)
    session.handle(ev.TurnSubmitted(ev.Turn(1, ev.Standing.STORED, "resp_1")), 10)
    session.handle(ev.ConnectionOpened(1), 20)
    session.handle(ev.FrameSent(1), 30)
    session.handle(ev.ConnectionLost(1, Closed(1006)), 40)
    path = tmp_path / "log.ndjson"
    lines = [str(record.fields["line"]) + "\n" for record in recorder.take()]
    path.write_text("".join(lines), encoding="ascii")
    return path


def test_a_divergence_is_shown(log_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = log_file.read_text(encoding="ascii")
    header, _, rest = text.partition("\n")
    rest = rest.replace("stream_incomplete", "bridge_overloaded")
    log_file.write_text(f"{header}\n{rest}", encoding="ascii")
    assert main(["replay", str(log_file)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    where, event, recorded, replayed, summary = out.splitlines()
    assert where == "first divergence: line 5, run 1, session 7, at 40 ns"
    shown = '{"ConnectionLost":{"generation":1,"cause":{"Closed":{"code":1006}},"unsent":false}}'
    assert event == f"  event:    {shown}"
    assert recorded.startswith('  recorded: lost-in-flight: {"FailTurn":{"turn":1,')
    assert "bridge_overloaded" in recorded
    assert recorded.endswith(", because lost_sent/stored=refuse")
    assert replayed.startswith('  replayed: lost-in-flight: {"FailTurn":{"turn":1,')
    assert "stream_incomplete" in replayed
    assert summary == (
        "replayed 1 run, 1 session, 4 transitions, recorded under default: ended at a divergence"
    )


def test_the_first_decision_that_differs_under_another_policy_is_shown(
    log_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(log_file), "--policy", "v1_12"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    where, _, recorded, other, summary = out.splitlines()
    assert where == "difference: line 5, run 1, session 7, at 40 ns"
    assert "stream_incomplete" in recorded
    assert recorded.endswith(", because lost_sent/stored=refuse")
    assert other.startswith("  v1_12:    lost-in-flight: ")
    assert "previous_response_not_found" in other
    assert summary.endswith("v1_12 would have decided differently in 1 decision of 1 session")


def test_many_differences_are_counted(log_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_file.write_bytes(log_file.read_bytes() * 25)
    assert main(["replay", str(log_file), "--policy", "v1_12"]) == 1
    out = capsys.readouterr().out
    assert out.count("difference: ") == 20
    *_, more, summary = out.splitlines()
    assert more == "and 5 more"
    assert summary.endswith("differently in 25 decisions of 25 sessions")


def test_a_malformed_file_is_named_with_its_line(
    log_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_file.open("a", encoding="ascii") as file:
        file.write("not a line\n")
    assert main(["replay", str(log_file)]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"bridgecore: error: {log_file}, line 6: it is not JSON\n"


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, reason in ((tmp_path, errno.EISDIR), (tmp_path / "missing", errno.ENOENT)):
        assert main(["replay", str(path)]) == 78
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"bridgecore: error: cannot read {path}: {os.strerror(reason)}\n"


def test_a_file_cannot_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    header = json.loads(write_header(DEFAULT))
    path.write_text(json.dumps({**header, "policy": "\x1b[2J"}), encoding="ascii")
    assert main(["replay", str(path)]) == 0
    assert "recorded under \\x1b[2J" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--policy", "nope", "file"], ["one", "two"]])
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["replay", *arguments])
    assert caught.value.code == 2
