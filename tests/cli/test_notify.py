"""What a service manager is notified of, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from bridgecore_cli.notify import Notifier
from tests.cli.process import TIME_LIMIT, running_port, serving
from tests.stores.servers import temporary_folder

if TYPE_CHECKING:
    from tests.conftest import Backend


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """The socket of a service manager, and its name as the manager passes it on."""
    with temporary_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(TIME_LIMIT)
        if request.param == "file":
            bound.bind(str(folder / "notify"))
            yield bound, str(folder / "notify")
            return
        try:
            bound.bind("")  # the system picks an abstract name
        except OSError:
            pytest.skip("this system has no abstract names of sockets")
        name = bound.getsockname()
        if not isinstance(name, bytes) or name[:1] != b"\0":
            pytest.skip("this system has no abstract names of sockets")
        yield bound, "@" + name[1:].decode()


def test_the_command_says_when_it_is_ready_and_when_it_drains(
    backend: Backend, manager: tuple[socket.socket, str]
) -> None:
    bound, name = manager
    arguments = ("--port", "0", "--backend", backend.name)
    with serving(*arguments, environ={"NOTIFY_SOCKET": name}) as process:
        assert bound.recv(64) == b"READY=1"
        with socket.create_connection(("127.0.0.1", running_port(process)), timeout=TIME_LIMIT):
            pass  # it listens
        process.terminate()
        assert bound.recv(64) == b"STOPPING=1"
        _, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, err
    bound.setblocking(False)
    with pytest.raises(BlockingIOError):
        bound.recv(64)  # no watchdog was asked for


@pytest.mark.parametrize("manager", ["file"], indirect=True)
def test_the_event_loop_says_that_it_runs(
    backend: Backend, manager: tuple[socket.socket, str]
) -> None:
    bound, name = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000"}
    with serving("--port", "0", "--backend", backend.name, environ=environ) as process:
        said = [bound.recv(64) for _ in range(6)]
        process.terminate()
        while (message := bound.recv(64)) == b"WATCHDOG=1":
            pass
        assert message == b"STOPPING=1"
        _, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, err
    assert sorted(said) == [b"READY=1", *[b"WATCHDOG=1"] * 5]


@pytest.mark.parametrize("name", ["{0}/missing", "{0}/closed", "@bridgecore-missing", "vsock:2:9"])
def test_a_manager_that_cannot_be_reached_harms_nothing(name: str) -> None:
    with temporary_folder() as folder:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as closed:
            closed.bind(str(folder / "closed"))
        environ = {"NOTIFY_SOCKET": name.format(folder), "WATCHDOG_USEC": "20000"}
        with serving("--port", "0", environ=environ) as process:
            running_port(process)
            process.terminate()
            _, err = process.communicate(timeout=TIME_LIMIT)
            assert process.returncode == 0, err
    assert " warning " not in err


@pytest.mark.parametrize("manager", ["file"], indirect=True)
def test_a_manager_that_does_not_read_holds_nothing_up(
    manager: tuple[socket.socket, str],
) -> None:
    """Its queue is full: messages are dropped."""
    _, name = manager
    with Notifier({"NOTIFY_SOCKET": name}) as notifier:
        for _ in range(10_000):
            notifier.stopping()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_told_twice_in_its_time(
    environ: dict[str, str], interval: float | None
) -> None:
    with Notifier({"NOTIFY_SOCKET": "/nowhere", **environ}) as notifier:
        assert notifier.interval == interval


def test_without_a_manager_there_is_no_watchdog() -> None:
    with Notifier({"WATCHDOG_USEC": "30000000"}) as notifier:
        assert notifier.interval is None
