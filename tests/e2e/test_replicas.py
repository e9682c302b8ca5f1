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
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import Fault, Point, Silence
from bridgecore_stores import open_maintenance, read_keys
from tests.e2e.conftest import KEY, Process, Raw, Upstream, ask, eventually, post, running
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


# ------------------------------------------------------------------ wrong addresses


@contextmanager
def misdirected(
    upstream: Upstream, backend: Backend, folder: Path, port: int | None
) -> Iterator[tuple[Process, Process, str]]:
    """Replicas b and c, and a response of a third one, a, whose ``advertise`` leads to ``port`` of
    127.0.0.1, None: that of b. It listens at 127.0.0.2 instead."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    store = f"sqlite:{folder}/conversations.db"
    common = ["--upstream", upstream.url, "--backend", backend.name]
    common += ["--store", store, "--cluster-keys", str(keys)]

    def url_of(replica: str) -> str | None:
        with open_maintenance(store, read_keys(str(keys)), timeout=NS_PER_SECOND) as maintenance:
            leases = {lease.replica: lease.advertise for lease in maintenance.live_leases()}
        return leases.get(replica)

    with ExitStack() as stack:

        def start(name: str, *more: str) -> Process:
            return stack.enter_context(running(*common, "--replica", name, *more))

        b, c = (start(name, "--advertise", "http://127.0.0.1:0") for name in ("b", "c"))
        eventually(lambda: url_of("b"))
        address = url_of("b") if port is None else f"http://127.0.0.1:{port}"
        assert address is not None
        a = start("a", "--host", "127.0.0.2", "--advertise", address)
        eventually(lambda: url_of("a"))
        request = urllib.request.Request(
            f"http://127.0.0.2:{a.port}/v1/responses",
            json.dumps({"model": "m", "input": "one", "store": False}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            response = json.load(answer)["id"]
        yield b, c, response


def refusals(process: Process, response: str) -> list[str]:
    """The messages of the errors with which two turns are refused."""
    body = {"model": "m", "input": "two", "store": False, "previous_response_id": response}
    answers = [ask(process.port, post(body)) for _ in range(2)]
    for answer in answers:
        assert (answer.status, answer.code) == (502, "bridge_owner_unreachable")
        # The owner lives and keeps its lease, so a retry at once would be refused, too.
        assert int(answer.headers["retry-after"]) > 5
    return [answer.error["message"] for answer in answers]


def warning(process: Process) -> str:
    """The line of the log about a wrong address: one, however many turns have met it."""
    process.await_logged("forward.misdirected")
    (line,) = [each for each in process.logged().splitlines() if "forward.misdirected" in each]
    return line


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers at 127.0.0.2")
def test_an_address_that_leads_to_another_replica_is_one_clear_line(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    with misdirected(upstream, backend, tmp_path, None) as (b, c, response):
        for process, detail in ((c, "to another replica"), (b, "back to this replica")):
            assert all("was not sent" in each for each in refusals(process, response))
            line = warning(process)
            assert "WARNING" in line.upper()
            for said in ("owner=a", "advertise=http://127.0.0.1:", "replica b", detail):
                assert said in line
    assert len(upstream.emulator.turns) == 1


class NoBridge(BaseHTTPRequestHandler):
    """Any other HTTP server."""

    def do_POST(self) -> None:
        body = b"<h1>It works!</h1>"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to standard error."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers at 127.0.0.2")
def test_an_address_that_leads_to_no_bridge_is_one_clear_line(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), NoBridge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_address[1]
            with misdirected(upstream, backend, tmp_path, port) as (b, _, response):
                assert all("is not known" in each for each in refusals(b, response))
                line = warning(b)
                assert "WARNING" in line.upper()
                for said in ("owner=a", f"advertise=http://127.0.0.1:{port}", "no replica", "port"):
                    assert said in line
        finally:
            server.shutdown()
            thread.join()
    assert len(upstream.emulator.turns) == 1
