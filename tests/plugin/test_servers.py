"""Tests of servers.py: servers on threads begin, serve, fail and end, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from bridgecore import Config, ConfigError, Store, UpstreamUrl
from bridgecore.testing import CreateFrame, Emulator, Output
from bridgecore_pytest.servers import bridge_server, upstream_server
from tests.e2e.conftest import Raw, ask, post

TURN = {"model": "m", "input": "hi"}


def resources() -> set[str]:
    """All threads and open descriptors."""
    gc.collect()  # what earlier tests have left is not to vanish between two calls
    threads = {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}
    return threads | set(os.listdir("/proc/self/fd"))


def test_a_server_leaves_no_thread_and_no_descriptor() -> None:
    with upstream_server(Emulator()) as first:
        ask(first.port, post(TURN))  # whatever is opened once for the whole process is open now
    before = resources()
    with upstream_server(Emulator()) as upstream:
        assert upstream.url == f"ws://127.0.0.1:{upstream.port}/v1/responses"
        assert upstream.http_url == f"http://127.0.0.1:{upstream.port}/v1"
        config = Config(upstream=UpstreamUrl.parse(upstream.url))
        with bridge_server(config) as bridge:
            assert bridge.base_url == f"http://127.0.0.1:{bridge.port}/v1"
            assert ask(bridge.port, post(TURN)).status == 200
            with Raw(bridge.port) as unanswered:  # a client that is still connected
                unanswered.send(b"POST ")
                new = resources() - before
                for name in ("bridgecore upstream", "bridgecore bridge"):
                    assert any(one.startswith(name) for one in new)
                assert len([one for one in new if one.isdigit()]) > 4  # descriptors
    assert resources() <= before


def test_a_machine_that_fails_is_reported_at_the_end() -> None:
    def broken(frame: CreateFrame) -> list[Output]:
        raise RuntimeError(f"no answer to turn {frame.number}")

    before = resources()

    def use() -> None:
        with upstream_server(Emulator(answer=broken)) as upstream, Raw(upstream.port) as client:
            client.send(post(TURN))
            assert client.ended()

    with pytest.raises(RuntimeError, match="no answer to turn 1"):
        use()
    assert resources() <= before


def test_a_server_that_cannot_start_raises() -> None:
    upstream = UpstreamUrl.parse("ws://127.0.0.1:1/v1/responses")
    config = Config(upstream=upstream, store=Store.DRIVER, cluster_secrets=(b"s" * 32,))
    before = resources()
    with pytest.raises(ConfigError), bridge_server(config):
        pass
    assert resources() <= before
