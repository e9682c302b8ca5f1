"""Three processes over one store, behind a client that goes round: forwards between real commands.

What belongs here: what the user of openai-python observes when each turn reaches another process,
and when their owner drains or is killed. The same in virtual time is in
tests/endpoint/test_forwards.py, one process after another in tests/e2e/test_restarts.py.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from bridgecore.testing import Fault, Point, Silence
from tests.e2e.conftest import Process, Raw, Upstream, eventually, post, running
from tests.e2e.test_restarts import SHORT, say

if TYPE_CHECKING:
    from tests.conftest import Backend


def replicas(
    stack: ExitStack, upstream: Upstream, backend: Backend, folder: Path, *, tls: bool
) -> list[Process]:
    """Three processes that forward to each other, with TLS if ``tls``."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    where = ["--store", f"sqlite:{folder}/conversations.db", "--cluster-keys", str(keys), *SHORT]
    where += ["--advertise", f"{'https' if tls else 'http'}://127.0.0.1:0"]
    environ = {}
    if tls:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            folder / "own.pem"
        )
        where += ["--cluster-certificate", str(folder / "own.pem")]
        environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
    options = ["--upstream", upstream.url, "--backend", backend.name, *where]
    return [stack.enter_context(running(*options, environ=environ)) for _ in range(3)]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_each_turn_may_reach_another_replica(
    upstream: Upstream, backend: Backend, tmp_path: Path, tls: bool
) -> None:
    with ExitStack() as stack:
        bridges = replicas(stack, upstream, backend, tmp_path, tls=tls)
        statuses: list[int] = []
        last: str | None = None
        for turn in range(6):
            last = say(bridges[turn % 3], "more", last, statuses)
        assert statuses == [200] * 6
        # One connection, the owner's, which has the context cached: only what is new is sent.
        inputs = [turn.request.body["input"] for turn in upstream.emulator.turns]
        assert inputs == ["more"] * 6
        assert sum("turn.forwarded" in bridge.logged() for bridge in bridges) == 2

        bridges[0].terminate()  # the owner
        bridges[0].exit_code()
        for turn in range(1, 3):
            last = say(bridges[turn], "more", last, statuses)
        assert statuses == [200] * 8  # it has given its conversations up, and said so

        bridges[1].popen.send_signal(signal.SIGKILL)  # the owner since then
        bridges[1].popen.wait(20)
        say(bridges[2], "more", last, statuses)
        assert set(statuses) <= {200, 502}
    contexts = [len(turn.request.context) for turn in upstream.emulator.turns]
    assert contexts == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def children(process: Process) -> list[int]:
    """The processes that a process has started."""
    pid = process.popen.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def working(upstream: Upstream, backend: Backend, folder: Path, *more: str) -> Iterator[Process]:
    """``bridgecore serve --workers 3``."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    where = ("--store", f"sqlite:{folder}/conversations.db", "--cluster-keys", str(keys))
    options = ("--upstream", upstream.url, "--backend", backend.name, "--workers", "3")
    with running(*options, *where, *more) as bridge:
        yield bridge


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers at 127.0.0.2")
def test_workers_find_each_other_whatever_address_clients_come_to(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    with working(upstream, backend, tmp_path, "--host", "127.0.0.2") as bridge:
        last = None
        for _ in range(30):  # each on a connection of its own, which any worker may accept
            body = json.dumps({"model": "m", "input": "more", "previous_response_id": last})
            request = urllib.request.Request(
                f"http://127.0.0.2:{bridge.port}/v1/responses",
                body.encode(),
                {"content-type": "application/json", "authorization": "Bearer k"},
            )
            with urllib.request.urlopen(request, timeout=20) as answer:
                last = json.load(answer)["id"]
        bridge.terminate()
        assert bridge.exit_code() == 0
        assert "turn.forwarded" in bridge.logged()


def test_workers_are_replicas_and_one_that_ends_is_replaced(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    with working(upstream, backend, tmp_path) as bridge:
        first = children(bridge)
        assert len(first) == 3
        statuses: list[int] = []
        last = None
        for _ in range(8):
            last = say(bridge, "more", last, statuses)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(children(bridge)) == 3 and not {*children(bridge)} & {*first})
        say(bridge, "more", last, statuses)
        assert statuses == [200] * 9
        assert bridge.logged().count("worker.ended") == 3
        bridge.terminate()
        assert bridge.exit_code() == 0
    contexts = [len(turn.request.context) for turn in upstream.emulator.turns]
    assert contexts == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_workers_end_with_the_process_that_has_started_them(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    with working(upstream, backend, tmp_path) as bridge:
        left = children(bridge)
        bridge.popen.kill()
        bridge.popen.wait(20)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_a_second_signal_ends_all_workers_at_once(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    with working(upstream, backend, tmp_path) as bridge, Raw(bridge.port) as client:
        client.send(post({"model": "m", "input": "hi", "stream": True}))
        client.head()
        bridge.terminate()
        eventually(lambda: bridge.logged().count("drain.started") == 3)
        bridge.popen.send_signal(signal.SIGINT)
        assert bridge.exit_code() == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--upstream", "ws://127.0.0.1:1/"), "they need a store that they share"),
        (("--store", "sqlite:x.db", "--cluster-keys", "keys"), "embedded emulator"),
    ],
)
def test_workers_that_could_share_nothing_are_refused(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(AssertionError, match=words), running("--workers", "2", *options):
        pass
