"""The command where files run out: idle sockets give way, the log stays short, service resumes.

What belongs here: the real command under a limit on open files. The same in virtual time is
tests/endpoint/test_sockets.py.
"""

from __future__ import annotations

import json
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import TIME_LIMIT, Process, Upstream, eventually, running

if TYPE_CHECKING:
    from tests.conftest import Backend

FILES = 48
BODY = json.dumps({"model": "m", "input": "hi"}).encode()
REQUEST = (
    b"POST /v1/responses HTTP/1.1\r\nhost: a\r\nauthorization: Bearer k\r\n"
    b"connection: %s\r\ncontent-length: %d\r\n\r\n%s"
)


@contextmanager
def short_of_files(backend: Backend, upstream: Upstream) -> Iterator[Process]:
    """A bridge that may open ``FILES`` files and has not been told so when it started."""
    options = ("--upstream", upstream.url, "--backend", backend.name, "--max-sessions", "1000")
    with running(*options) as bridge:
        resource.prlimit(bridge.popen.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        yield bridge
        bridge.terminate()
        assert bridge.exit_code() == 0
        logged = bridge.logged()
        assert "Traceback" not in logged
        assert "connect_failed" not in logged
        stamps = re.findall(r"^(\S+) warning sockets\.exhausted ", logged, re.MULTILINE)
        at = [datetime.fromisoformat(stamp).timestamp() for stamp in stamps]
        assert at
        assert all(later - earlier > 0.9 for earlier, later in pairwise(at))


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(TIME_LIMIT)
    return sock


def status(sock: socket.socket) -> int:
    """Of the one answer to a request that asked to close."""
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    assert data, "closed without an answer"
    return int(data.split(b" ", 2)[1])


def ask(port: int) -> int:
    with connect(port) as sock:
        sock.sendall(REQUEST % (b"close", len(BODY), BODY))
        return status(sock)


def test_more_conversations_than_files_one_after_the_other(
    backend: Backend, upstream: Upstream
) -> None:
    """Each leaves an idle socket; the oldest gives way to the next."""
    with short_of_files(backend, upstream) as bridge:
        assert [ask(bridge.port) for _ in range(2 * FILES)] == [200] * (2 * FILES)


def test_more_clients_at_once_than_files(backend: Backend, upstream: Upstream) -> None:
    with short_of_files(backend, upstream) as bridge, ExitStack() as stack:
        clients = [stack.enter_context(connect(bridge.port)) for _ in range(3 * FILES)]
        for client in clients:
            client.sendall(REQUEST % (b"close", len(BODY), BODY))
        found = []
        for client in clients:
            found.append(status(client))
            client.close()
        assert set(found) <= {200, 503}
        assert 200 in found
        assert [ask(bridge.port) for _ in range(3)] == [200] * 3


def test_idle_client_connections_are_closed_too(backend: Backend, upstream: Upstream) -> None:
    """Each keeps its connection after its answer, as client libraries do."""
    with short_of_files(backend, upstream) as bridge, ExitStack() as stack:
        for _ in range(2 * FILES):
            client = stack.enter_context(connect(bridge.port))
            client.sendall(REQUEST % (b"keep-alive", len(BODY), BODY))
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("files", [64, 128])
def test_the_number_of_sessions_follows_from_the_files(files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))  # the process inherits it
    try:
        with running("--upstream", "ws://127.0.0.1:9/") as bridge:
            eventually(lambda: f"max_sessions={(files - files // 4) // 2}" in bridge.logged())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
