"""Tests of ``bridgecore verify`` as a process: what it prints, writes and returns."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridgecore.verify.environment import BOUNDS
from bridgecore.verify.explore_bridge import BRIDGE_BOUNDS
from bridgecore.verify.explore_ownership import OWNERSHIP_BOUNDS
from bridgecore.verify.explore_pair import PAIR_BOUNDS
from bridgecore_cli.arguments import BOUNDS_NAMES
from tests.test_tutorial import EXAMPLES, VERIFY, blocks, expected

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
    """The last command of the tutorial."""
    shutil.copy(OWN, tmp_path)
    drawing = tmp_path / "found.svg"
    done = run(*VERIFY.split()[5:], "--svg", str(drawing), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""  # progress is for terminals
    assert "BROKEN  NO_AMBIGUOUS_RESEND" in done.stdout
    assert "holds   NOT_FOUND_IS_EARNED" in done.stdout
    assert "submit 1 held resp_0" in done.stdout
    assert expected(blocks()[-1][1]).search(done.stdout)
    assert ElementTree.fromstring(drawing.read_text(encoding="utf-8")).tag.endswith("svg")


@pytest.mark.timeout(200)
def test_a_clean_policy() -> None:
    done = run("--policy", "default", "--bounds", "quick")
    assert (done.returncode, done.stderr) == (0, "")
    assert "BROKEN" not in done.stdout
    explored = re.findall(r"^states +([0-9,]+)", done.stdout, re.MULTILINE)
    assert [int(states.replace(",", "")) > 2_000 for states in explored[:2]] == [True, True]
    assert "holds   ONE_LIVE_OWNER" in done.stdout
    assert "holds   UNKNOWN_IS_LEFT_TO_THE_CLIENT" in done.stdout


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
