"""Tests of what both adapters use for sockets: opening listeners, with listeners of the test's."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from bridgecore.transport.sockets import BACKLOG, open_listeners


class Host:
    """Creates listeners; on some of its addresses they fail with an error."""

    def __init__(self, errors: dict[str, int] | None = None) -> None:
        self.errors = errors or {}
        self.open: list[str] = []

    def create_server(self, address: Any, *, family: int, backlog: int) -> Listener:
        name = address[0]
        assert family == (socket.AF_INET6 if ":" in name else socket.AF_INET)
        assert backlog == BACKLOG
        if (error := self.errors.get(name)) is not None:
            raise OSError(error, name)
        self.open.append(name)
        return Listener(self, name)


class Listener:
    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.name = name

    def close(self) -> None:
        self._host.open.remove(self.name)


def found(*names: str) -> list[Any]:
    """What ``getaddrinfo`` returns."""
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (name, 80, 0, 0))
        if ":" in name
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, 80))
        for name in names
    ]


def test_each_address_is_listened_on_once() -> None:
    listeners = open_listeners(found("::1", "127.0.0.1", "127.0.0.1"), Host().create_server)
    assert [listener.name for listener in listeners] == ["::1", "127.0.0.1"]


def test_a_family_that_the_host_lacks_is_skipped() -> None:
    host = Host({"::1": errno.EAFNOSUPPORT})
    listeners = open_listeners(found("::1", "127.0.0.1"), host.create_server)
    assert [listener.name for listener in listeners] == ["127.0.0.1"]


def test_a_host_that_lacks_all_families_is_reported() -> None:
    with pytest.raises(OSError, match="::1") as info:
        open_listeners(found("::1"), Host({"::1": errno.EAFNOSUPPORT}).create_server)
    assert info.value.errno == errno.EAFNOSUPPORT


def test_no_listener_is_left_open_after_a_failure() -> None:
    host = Host({"127.0.0.2": errno.EADDRINUSE})
    with pytest.raises(OSError, match=r"127\.0\.0\.2"):
        open_listeners(found("127.0.0.1", "127.0.0.2"), host.create_server)
    assert host.open == []
