"""The HTTP tests of the Open Responses compliance suite, against ``bridgecore serve``.

What belongs here: running ``compliance.mjs``, which restates the suite for Node, if Node is
installed.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridgecore.testing import Alter, Change, CreateFrame, Emulator, Fault, Point, Text
from tests.e2e.conftest import TIME_LIMIT, Shared, emulating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridgecore.testing import Output
    from tests.conftest import Backend

_SCRIPT = Path(__file__).with_name("compliance.mjs")
_TESTS = re.findall(r'^  "([\w-]+)": async', _SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
_OLDEST = 18  # the first Node with fetch


@functools.cache
def node() -> str:
    """The command; skips the test if it is missing or too old."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not on the PATH")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.removeprefix("v").split(".")[0]) < _OLDEST:
        pytest.skip(f"node is older than {_OLDEST}")
    return found


def check(port: int, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run the script against the bridge at ``port``."""
    return subprocess.run(
        [node(), str(_SCRIPT), f"http://127.0.0.1:{port}/v1", *tests],
        capture_output=True,
        text=True,
        timeout=6 * TIME_LIMIT,
        check=False,
    )


def test_compliance_suite(backend: Backend, shared: Shared) -> None:
    node()
    ran = check(shared("--backend", backend.name).port)
    assert ran.stdout.splitlines() == [f"passed {name}" for name in _TESTS], ran.stderr
    assert ran.returncode == 0
    assert len(_TESTS) == 11


def test_the_script_detects_missing_members(shared: Shared) -> None:
    """An item without what the specification requires, and a stream without its first event."""

    def answer(request: CreateFrame) -> Sequence[Output]:
        if request.body.get("tools"):
            return [{"type": "function_call", "name": "get_weather", "arguments": "{}"}]
        return [Text("yes")]

    node()
    emulator = Emulator(answer=answer)
    emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Alter(Change.NO_SEQUENCE)))
    with emulating(emulator) as upstream:
        port = shared("--upstream", upstream.url).port
        ran = check(port, "basic-response", "streaming-response", "tool-calling")
    assert ran.returncode == 1
    passed, *failed = ran.stdout.splitlines()
    assert passed == "passed basic-response"
    assert [line.split(":")[0] for line in failed] == [
        "FAILED streaming-response",
        "FAILED tool-calling",
    ]
    assert "sequence_number: is missing" in failed[0]
    assert "response.output[0].call_id: is missing" in failed[1]
