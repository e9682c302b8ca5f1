"""Tests of bridgecore_cli.workers: how many there are, and where they listen.

Workers that serve are tested in ``tests/e2e/test_replicas.py``.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import pytest

from bridgecore_cli.settings import load
from bridgecore_cli.workers import available_cpus, worker_settings
from tests.cli.process import run


def test_cpus_that_the_process_may_not_use_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert available_cpus() == 2


def test_a_system_that_cannot_tell_has_all_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus() == 1


def test_one_worker_checks_the_policy_for_all() -> None:
    settings = load({}, {})
    assert [worker_settings(settings, number).verify for number in range(3)] == [True, False, False]
    none = load({"verify": "false"}, {})
    assert not worker_settings(none, 0).verify


def test_workers_have_no_common_metrics(tmp_path: Path) -> None:
    where = ("--store", f"sqlite:{tmp_path}/turns.db", "--cluster-keys", "keys")
    upstream = ("--upstream", "ws://127.0.0.1:1/")
    result = run("serve", "--workers", "2", "--metrics", "true", *where, *upstream)
    assert (result.returncode, result.stdout) == (78, "")
    assert "metrics: each worker counts for itself" in result.stderr


def test_a_port_in_use_is_reported_once_and_as_without_workers(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    replicas = ("--store", f"sqlite:{tmp_path}/turns.db", "--cluster-keys", str(keys))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ("--port", str(port), "--upstream", "ws://127.0.0.1:1/")
        result = run("serve", "--workers", "2", *where, *replicas)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"bridgecore: error: cannot listen on 127.0.0.1:{port}: Address already in use; end the "
        "program that listens there, or choose another port (0: any that is free)\n"
    )
