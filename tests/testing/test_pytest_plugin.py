"""Tests of testing/pytest_plugin.py: pytest as a project of somebody else runs it.

What belongs here: a file of tests in a folder of its own, with the plugin and nothing else of ours.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "test_gateway.py"

BROKEN = """
import attrs
import pytest

from bridgecore import V1_12
from bridgecore.testing import policies
from bridgecore.verify.environment import BOUNDS

pytest_plugins = ["bridgecore.testing.pytest_plugin"]


def test_my_policy_holds(bridgecore_virtual_bridge):
    few = [attrs.evolve(part, max_states=300) for part in BOUNDS["quick"]]
    policies.check(V1_12, "few", few, ())
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in ``folder``, without settings, fixtures or other plugins of this project."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "BRIDGECORE", "OPENAI"))
    }
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(180)  # it explores 11,000 states: 8 s on a machine that does nothing else
def test_the_example_runs_in_a_project_that_has_nothing_else(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 30
    done = run_pytest(tmp_path, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_broken_property_is_drawn_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "test_policy.py").write_text(BROKEN, encoding="utf-8")
    done = run_pytest(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert ">       policies.check(V1_12," in done.stdout
    assert "client                     bridge                     upstream" in done.stdout
    assert "|------------------------->|                          |  submit 1 bound" in done.stdout
    assert "testing/policies.py" not in done.stdout  # the failure is at the line of the test
    assert "1 failed" in done.stdout


def test_it_is_loaded_only_where_it_is_named() -> None:
    """As an entry point it would be loaded in every test run of everyone who has bridgecore."""
    plugins = importlib.metadata.entry_points(group="pytest11")
    assert [plugin.value for plugin in plugins if plugin.value.startswith("bridgecore")] == []
