"""The command out of file descriptors: idle connections are closed, the log stays short, service
resumes.

What belongs here: the real command under a limit on open files. The same in virtual time is in
tests/endpoint/test_sockets.py.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Process, Raw, Upstream, ask, eventually, post, running

if TYPE_CHECKING:
    from tests.conftest import Backend

FILES = 48
TURN = post({"model": "m", "input": "hi"})
LAST_TURN = post({"model": "m", "input": "hi"}, connection="close")


@contextmanager
def short_of_files(backend: Backend, upstream: Upstream) -> Iterator[Process]:
    """A bridge that may open ``FILES`` files; the limit is set after its start, unknown to it."""
    options = ("--upstream", upstream.url, "--backend", backend.name, "--max-sessions", "1000")
    with running(*options) as bridge:
        resource.prlimit(bridge.popen.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        yield bridge
        bridge.terminate()
        assert bridge.exit_code() == 0
        logged = bridge.logged()
        assert "Traceback" not in logged
        assert "upstream.connect_failed" not in logged
        stamps = re.findall(r"^(\S+) warning sockets\.exhausted ", logged, re.MULTILINE)
        at = [datetime.fromisoformat(stamp).timestamp() for stamp in stamps]
        assert at
        assert all(later - earlier > 0.9 for earlier, later in pairwise(at))


def test_more_conversations_than_files_one_after_the_other(
    backend: Backend, upstream: Upstream
) -> None:
    """Each leaves an idle connection; the oldest is closed for the next."""
    with short_of_files(backend, upstream) as bridge:
        found = [ask(bridge.port, LAST_TURN).status for _ in range(2 * FILES)]
    assert found == [200] * (2 * FILES)


def test_more_clients_at_once_than_files(backend: Backend, upstream: Upstream) -> None:
    with short_of_files(backend, upstream) as bridge, ExitStack() as stack:
        clients = [stack.enter_context(Raw(bridge.port)) for _ in range(3 * FILES)]
        for client in clients:
            client.send(LAST_TURN)
        found = []
        for client in clients:
            found.append(client.answer().status)
            assert client.ended()
            client.sock.close()
        assert set(found) <= {200, 503}
        assert 200 in found
        assert [ask(bridge.port, LAST_TURN).status for _ in range(3)] == [200] * 3


def test_idle_client_connections_are_closed_too(backend: Backend, upstream: Upstream) -> None:
    """Each keeps its connection after its answer, as client libraries do."""
    with short_of_files(backend, upstream) as bridge, ExitStack() as stack:
        for _ in range(2 * FILES):
            client = stack.enter_context(Raw(bridge.port))
            client.send(TURN)
            assert client.answer().status == 200


@pytest.mark.parametrize("files", [64, 128])
def test_the_number_of_sessions_follows_from_the_files(files: int) -> None:
    with running("--upstream", "ws://127.0.0.1:9/", files=(files, files)) as bridge:
        eventually(lambda: f"max_sessions={(files - files // 4) // 2}" in bridge.logged())


def test_the_soft_limit_on_files_is_raised_to_the_hard_one(backend: Backend) -> None:
    options = ("--upstream", "ws://127.0.0.1:9/", "--backend", backend.name)
    with running(*options, "--log-level", "debug", files=(64, 128)) as bridge:
        eventually(lambda: "max_sessions=48 " in bridge.logged())
        assert "debug files.limit before=64 highest=128 now=128\n" in bridge.logged()
        limits = resource.prlimit(bridge.popen.pid, resource.RLIMIT_NOFILE)
    assert limits == (128, 128)
