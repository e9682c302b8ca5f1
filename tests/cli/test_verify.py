"""Tests of ``bridgecore verify`` as a process: what it prints, writes and returns."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridgecore.verify.environment import BOUNDS
from bridgecore.verify.explore_bridge import BRIDGE_BOUNDS
from bridgecore.verify.explore_ownership import OWNERSHIP_BOUNDS
from bridgecore.verify.explore_pair import PAIR_BOUNDS
from bridgecore_cli.arguments import BOUNDS_NAMES
from tests.docs.shell import expected
from tests.test_tutorial import EXAMPLES, PAGE, VERIFY

COMMAND = [sys.executable, "-W", "error", "-m", "bridgecore_cli", "verify"]
TIME_LIMIT = 150  # seconds
OWN = EXAMPLES / "policies.py"  # the tutorial's policy


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGECORE_")}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=ours,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


@pytest.mark.timeout(200)
def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    """The last command of the tutorial, and the example of docs/verifying.rst."""
    shutil.copy(OWN, tmp_path)
    files = {name: tmp_path / f"found.{name}" for name in ("svg", "mermaid", "junit")}
    flags = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    done = run(*VERIFY.split()[5:], *flags, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""  # progress is for terminals
    assert "\033" not in done.stdout  # colours, too
    assert "BROKEN  NO_AMBIGUOUS_RESEND" in done.stdout
    assert "holds   NOT_FOUND_IS_EARNED" in done.stdout
    assert "submit 1 held resp_0" in done.stdout
    assert expected(PAGE[-1].text).search(done.stdout)
    assert "\nnot explored: bridges, ownership, pairs, as a property of " in done.stdout
    for line in _examples():
        assert f"\n{line}\n" in done.stdout, line
    assert re.fullmatch(
        r"1 of 37 properties broken, [0-9,]+ states, [0-9.]+ s", done.stdout.splitlines()[-1]
    )
    text = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    assert ElementTree.fromstring(text["svg"]).tag.endswith("svg")
    assert text["mermaid"].startswith("sequenceDiagram\n")
    cases = ElementTree.fromstring(text["junit"]).findall("testsuite/testcase")
    failed = [case for case in cases if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["NO_AMBIGUOUS_RESEND"]
    assert len([case for case in cases if case.find("skipped") is not None]) == 37


def _examples() -> list[str]:
    """What the documentation says that the command prints at the end of the violation."""
    page = (Path(__file__).parent.parent.parent / "docs" / "verifying.rst").read_text("utf-8")
    lines = [line.strip() for line in page.splitlines()]
    wanted = [line for line in lines if line.startswith(("costs: ", "because: ", "would hold: "))]
    shown = [line for line in wanted if "`default` has" not in line]
    assert len(shown) == 3
    return shown


@pytest.mark.timeout(200)
def test_a_clean_policy() -> None:
    done = run("--policy", "default", "--bounds", "quick")
    assert (done.returncode, done.stderr) == (0, "")
    assert "BROKEN" not in done.stdout
    explored = re.findall(r"^  quick.* ([0-9,]+) states", done.stdout, re.MULTILINE)
    assert [int(states.replace(",", "")) > 500 for states in explored] == [True] * 7
    assert "holds   ONE_LIVE_OWNER" in done.stdout
    assert "holds   UNKNOWN_IS_LEFT_TO_THE_CLIENT" in done.stdout
    *_, verdict = done.stdout.splitlines()
    assert re.fullmatch(
        r"all 74 properties hold within the quick bounds, [0-9,]+ states, [0-9.]+ s", verdict
    )


def test_json_and_chosen_properties() -> None:
    chosen = ("NO_AMBIGUOUS_RESEND", "NOT_FOUND_IS_EARNED", "SESSIONS_ARE_LIMITED")
    flags = [word for name in chosen for word in ("--property", name)]
    done = run("--policy", "v1_12", "--bounds", "quick", "--json", *flags)
    assert (done.returncode, done.stderr) == (1, "")
    data = json.loads(done.stdout)
    assert data["policy"] == "v1_12"
    assert data["found"] == ["NOT_FOUND_IS_EARNED", "NO_AMBIGUOUS_RESEND"]
    statuses = {prop["name"]: prop["status"] for prop in data["properties"]}
    assert statuses == {
        "NOT_FOUND_IS_EARNED": "broken",
        "NO_AMBIGUOUS_RESEND": "broken",
        "SESSIONS_ARE_LIMITED": "skipped",
    }
    lost = data["properties"][0]
    assert lost["cell"] == {
        "situation": "SEND_SKIPPED",
        "standing": "HELD",
        "action": "REFUSE",
        "answer": "NOT_FOUND",
    }
    assert [one["remedy"] for one in lost["would_hold"]] == ["rehydrate (upstream_unavailable)"]
    assert lost["story"][-1]["rule"] == "connection-opened"


def test_no_such_property() -> None:
    done = run("--property", "not-found-is-earnt")
    assert done.returncode == 2
    assert "did you mean NOT_FOUND_IS_EARNED?" in done.stderr


def test_json_cannot_be_had_with_mutants() -> None:
    assert run("--json", "--mutants").returncode == 2


def test_colours_on_a_terminal() -> None:
    flags = ("--policy", "v1_12", "--bounds", "quick", "--property", "NO_AMBIGUOUS_RESEND")
    ours = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGECORE_")}
    ours.pop("NO_COLOR", None)
    ours.pop("COLUMNS", None)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    with os.fdopen(leader, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*COMMAND, *flags],
            stdout=follower,
            stderr=subprocess.DEVNULL,
            env={**ours, "TERM": "xterm"},
        )
        os.close(follower)
        text = b""
        with contextlib.suppress(OSError):  # the end, as Linux reports it
            while part := screen.read(65536):
                text += part
        assert process.wait(TIME_LIMIT) == 1
    assert b"\033[1;31mBROKEN\033[0m  NO_AMBIGUOUS_RESEND" in text
    assert b"\033[32mwould hold:\033[0m refuse (stream_incomplete)" in text
    assert b", the costliest so far: NO_AMBIGUOUS_RESEND (rank 1), after 4 moves" in text
    lines = re.sub(r"\033\[[0-9;]*m", "", text.decode()).splitlines()
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("policy", ["nobody", "no_such_module:policy", "policies:number", ":x"])
def test_no_such_policy(policy: str, tmp_path: Path) -> None:
    (tmp_path / "policies.py").write_text("number = 7\n", encoding="utf-8")
    done = run("--policy", policy, folder=tmp_path)
    assert done.returncode == 2
    assert policy in done.stderr
    assert "Traceback" not in done.stderr


def test_the_names_of_the_bounds_are_those_that_there_are() -> None:
    for bounds in (BOUNDS, BRIDGE_BOUNDS, OWNERSHIP_BOUNDS, PAIR_BOUNDS):
        assert tuple(bounds) == BOUNDS_NAMES
