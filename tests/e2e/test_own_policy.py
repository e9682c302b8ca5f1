"""A policy of one's own that is served: processes decide by it, check it, and say what it breaks.

What belongs here: ``serve`` with such a policy, and the process that checks it. What a file may say
is in tests/recovery/test_policy_table.py, the other commands in tests/cli/test_policies.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from bridgecore.config import OnAmbiguousLoss
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, Policy, replaying
from bridgecore.recovery.policy_table import policy_from
from bridgecore.testing import CloseWith, Fault, Point
from bridgecore.transport import Log, LogLevel
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.properties import Property
from bridgecore.wire.decisions import write_header
from bridgecore_cli.main import main
from bridgecore_cli.policy_check import Found, PolicyCheck, check
from bridgecore_cli.serve import warn_of
from bridgecore_cli.settings import load
from tests.e2e.conftest import TIME_LIMIT, Upstream, eventually, running, sdk

if TYPE_CHECKING:
    from tests.conftest import Backend

RESENDS = """
[policy]
name = "resends"
[policy.cells]
lost_sent.unanchored = "resend"
"""
LOST = Fault(Point.BEFORE_CREATED, CloseWith(1011))
TINY = attrs.evolve(
    BOUNDS["quick"][0], standings=(Standing.UNANCHORED,), remote=False, causes=False, http=False
)


@pytest.fixture
def resends(tmp_path: Path) -> str:
    """A file with a policy that sends an ambiguous turn again."""
    path = tmp_path / "resends.toml"
    path.write_text(RESENDS, encoding="utf-8")
    return str(path)


# ------------------------------------------------------------------ it decides


def test_the_bridge_decides_by_it_and_says_what_it_breaks(
    backend: Backend, upstream: Upstream, resends: str, tmp_path: Path
) -> None:
    """The turn is lost when it may have been accepted. The policy has it sent again; ``default``
    refuses it."""
    log = tmp_path / "decisions.ndjson"
    upstream.emulator.faults.add(1, LOST)
    url = f"ws://127.0.0.1:{upstream.port}/v1/responses"
    flags = ("--backend", backend.name, "--upstream", url, "--decision-log", str(log))
    with running("--policy", resends, *flags) as process:
        with sdk(process.port) as client:
            assert client.responses.create(model="m", input="hello").status == "completed"
        eventually(lambda: " policy.breaks " in process.logged())
        process.terminate()
        assert process.exit_code() == 0
        logged = process.logged()
    assert [frame.number for frame in upstream.emulator.requests] == [1, 2]
    assert " serving upstream=127.0.0.1:" in logged
    assert " policy=resends " in logged
    (line,) = [line for line in logged.splitlines() if " warning " in line]
    assert (
        " warning policy.breaks policy=resends property=NO_AMBIGUOUS_RESEND "
        'cell="lost_sent/unanchored=resend" detail=' in line
    )
    assert ' path="submit unanchored, opened, ' in line
    assert "Traceback" not in logged

    decided = [json.loads(line)["cells"] for line in log.read_text("ascii").splitlines()[1:]]
    assert [cells for cells in decided if cells] == [["lost_sent/unanchored=resend"]]
    assert main(["replay", str(log)]) == 0
    assert main(["replay", str(log), "--policy", resends]) == 0
    assert main(["replay", str(log), "--policy", "default"]) == 1


# What ``serve`` has loaded, said at its end on standard error.
LOADED = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sys.modules, file=sys.stderr))
from bridgecore_cli.entry import run
sys.exit(run())
"""


@pytest.mark.parametrize(
    ("flags", "checks"), [([], True), (["--no-verify"], False), (["--verify", "false"], False)]
)
def test_the_check_can_be_left_out(resends: str, flags: list[str], checks: bool) -> None:
    command = (sys.executable, "-W", "error", "-c", LOADED, "serve", "--policy", resends)
    with running(*flags, command=command) as process:
        process.terminate()
        assert process.exit_code() == 0
        (loaded,) = [line for line in process.logged().splitlines() if line.startswith("loaded: ")]
    assert ("bridgecore_cli.policy_check" in loaded.split()) is checks
    assert not any(name.startswith("bridgecore.verify") for name in loaded.split())


# ------------------------------------------------------------------ the check


def found_in(policy: Policy, bounds: Bounds = TINY, *without: str) -> list[Found]:
    found: list[Found] = []
    check(policy, [bounds], without, found.append)
    return found


def test_a_policy_that_holds() -> None:
    (figures,) = found_in(DEFAULT)
    assert int(figures.pop("states", 0)) > 50
    assert figures.pop("seconds") in range(60)
    assert figures == {"complete": True, "broken": 0}


def test_each_property_that_is_broken_is_found_once() -> None:
    bounds = attrs.evolve(TINY, depth=6)
    first, figures = found_in(replaying(DEFAULT), bounds)
    prop = Property.NO_AMBIGUOUS_RESEND
    assert first["property"] == prop.name
    assert first["detail"] == prop.value
    assert first["cost"] == prop.cost
    assert first["cell"] == "lost_sending/unanchored=resend"
    assert figures["broken"] == 1
    (figures,) = found_in(replaying(DEFAULT), bounds, prop.name)
    assert figures["broken"] == 0


def test_what_is_responsible_need_not_be_a_cell() -> None:
    """This budget has a reconnect use up the only replay."""
    budgets = attrs.evolve(DEFAULT.budgets, reconnect_uses_replay=True)
    policy = attrs.evolve(replaying(DEFAULT), budgets=budgets)
    *found, _ = found_in(policy, TINY, "NO_AMBIGUOUS_RESEND")
    responsible = {each["property"]: each.get("budget") for each in found}
    assert responsible == {"RECONNECT_COSTS_NO_REPLAY": "reconnect_uses_replay=True"}


def test_an_exploration_that_does_not_end_proves_nothing() -> None:
    (figures,) = found_in(DEFAULT, attrs.evolve(TINY, max_states=20))
    assert figures["complete"] is False


class Records:
    """The records of a check."""

    def __init__(self) -> None:
        self.records: list[Log] = []

    def __call__(self, record: Log) -> None:
        self.records.append(record)


def test_what_is_found_is_logged_at_once() -> None:
    records = Records()
    one = PolicyCheck(replaying(DEFAULT), records)
    eventually(lambda: records.records)
    one.end()
    assert records.records[0].event == "policy.breaks"
    assert records.records[0].fields["property"] == "NO_AMBIGUOUS_RESEND"
    assert all(record.event == "policy.breaks" for record in records.records)


def test_a_check_that_is_ended_says_nothing() -> None:
    records = Records()
    PolicyCheck(DEFAULT, records).end()
    assert records.records == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("/nonexistent/python", "No such file or directory"),
        ("false", "the process has ended with exit code 1"),
    ],
)
def test_a_check_that_fails_is_a_warning(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    records = Records()
    one = PolicyCheck(DEFAULT, records)
    eventually(lambda: records.records)
    one.end()
    (record,) = records.records
    assert (record.level, record.event) == (LogLevel.WARNING, "policy.unchecked")
    assert reason in str(record.fields["reason"])


@pytest.mark.parametrize(
    ("complete", "level", "event"),
    [(True, LogLevel.INFO, "policy.holds"), (False, LogLevel.WARNING, "policy.unchecked")],
)
def test_what_the_figures_say(
    complete: bool, level: LogLevel, event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program writes the figures: to explore a policy takes too long."""
    figures = {"states": 9, "seconds": 1, "complete": complete, "broken": 0}
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nread policy\necho '{json.dumps(figures)}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    records = Records()
    one = PolicyCheck(DEFAULT, records)
    eventually(lambda: records.records)
    one.end()
    (record,) = records.records
    assert (record.level, record.event) == (level, event)
    assert record.fields["policy"] == "default"
    if complete:
        bounds = {"bounds": "quick"}
        assert record.fields == {"policy": "default", **bounds, "states": 9, "seconds": 1}


def test_the_process_that_checks_ends_with_the_bridge() -> None:
    """When the bridge is killed, the input of that process ends: long before it is done."""
    command = [sys.executable, "-W", "error", "-m", "bridgecore_cli.policy_check"]
    done = subprocess.run(
        command,
        input=write_header(DEFAULT) + "\n",
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


# ------------------------------------------------------------------ settings that override it


def test_cells_that_a_setting_overrides_are_warned_of(tmp_path: Path) -> None:
    cells = {
        "lost_sent": {"held": "fail", "bound": "fail"},
        "no_websocket": {"held": "refuse (bridge_overloaded)", "stored": "surface"},
    }
    policy = policy_from({"name": "mine", "cells": cells})
    settings = attrs.evolve(load({"ambiguous": "replay", "fallback": "http"}, {}), policy=policy)
    records = Records()
    warn_of(settings, "127.0.0.1", records)
    assert [(record.event, record.fields) for record in records.records] == [
        (
            "policy.overridden",
            {"policy": "mine", "setting": "ambiguous=replay", "cells": "lost_sent/held"},
        ),
        (
            "policy.overridden",
            {"policy": "mine", "setting": "fallback=http", "cells": "no_websocket/stored"},
        ),
    ]
    records = Records()
    core = {**settings.core, "ambiguous": OnAmbiguousLoss.REFUSE}
    warn_of(attrs.evolve(settings, core=core, policy=DEFAULT), "127.0.0.1", records)
    assert records.records == []
