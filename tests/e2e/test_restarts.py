"""Conversations of openai-python that go on after their bridge was killed or drained.

What belongs here: the real command with a real store, ended by a signal between two turns, and what
the SDK's user observes. The same in virtual time is in tests/endpoint/test_replicas.py.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest

from tests.e2e.conftest import (
    Answer,
    Process,
    Upstream,
    ask,
    environment,
    eventually,
    post,
    running,
    sdk,
)
from tests.stores import servers

if TYPE_CHECKING:
    from tests.conftest import Backend

# A lease that is over soon: after a kill, another replica has to wait for it, except with SQLite,
# where the processes of one host see at once which of them are gone.
SHORT = ("--lease-ttl", "2.5", "--lease-margin", "0.5", "--store-timeout", "0.5")


@pytest.fixture(params=["sqlite", "postgresql", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/conversations.db"
        return
    start = servers.postgresql if request.param == "postgresql" else servers.valkey
    with start() as server:
        if server is None:
            pytest.skip(f"there is no {request.param} server for this platform")
        yield server.url


@pytest.fixture
def options(store: str, upstream: Upstream, backend: Backend, tmp_path: Path) -> tuple[str, ...]:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    where = ("--store", store, "--cluster-keys", str(keys), *SHORT)
    return ("--upstream", upstream.url, "--backend", backend.name, *where)


def say(bridge: Process, text: str, previous: str | None, statuses: list[int]) -> str:
    """The id of the response to one turn of the SDK, which retries as the answers say."""
    more = {} if previous is None else {"previous_response_id": previous}
    with sdk(bridge.port, max_retries=3, statuses=statuses) as client:
        response = client.responses.create(model="m", input=text, store=False, extra_body=more)
    assert response.status == "completed"
    return response.id


def test_a_conversation_goes_on_after_each_end_of_its_bridge(
    options: tuple[str, ...], upstream: Upstream
) -> None:
    last: str | None = None
    for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        statuses: list[int] = []
        with running(*options) as bridge:
            for _ in range(2):
                last = say(bridge, "more", last, statuses)
            bridge.popen.send_signal(end)
            bridge.popen.wait(20)
        assert set(statuses) <= {200, 502}
    contexts = [len(turn.request.context) for turn in upstream.emulator.turns]
    # Each turn has the whole context: the messages and the answers before it.
    assert contexts == [1, 3, 5, 7, 9, 11]


def test_a_context_is_known_after_each_end_of_its_bridge(
    options: tuple[str, ...], upstream: Upstream
) -> None:
    """The upstream stores nothing of it. A look-up needs no lease, so it waits for none."""
    with running(*options) as bridge:
        last = say(bridge, "one", None, [])
        bridge.popen.kill()
        bridge.popen.wait(20)
    with running(*options) as bridge, sdk(bridge.port) as client:
        counted = client.responses.input_tokens.count(
            model="m", input="more", previous_response_id=last
        )
        compacted = client.responses.compact(model="m", input="more", previous_response_id=last)
        with sdk(bridge.port, key="sk-other") as stranger, pytest.raises(openai.BadRequestError):
            stranger.responses.compact(model="m", input="more", previous_response_id=last)
        again = client.responses.create(model="m", input="more", store=False)
    assert again.usage is not None
    assert counted.input_tokens > again.usage.input_tokens  # the context before is counted, too
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    about = [one.body for one in upstream.emulator.http_requests]
    assert [b"previous_response_id" in body for body in about] == [False, False, True]


def test_a_conversation_of_the_upstream_needs_no_bridge_of_its_own(
    options: tuple[str, ...], upstream: Upstream
) -> None:
    """Any process takes any turn of it, in place of one that was killed and beside it."""
    with running(*options) as one, running(*options) as two:
        with sdk(one.port) as client:
            name = client.conversations.create().id
        statuses: list[int] = []
        for bridge in (one, two, one, two, two):
            with sdk(bridge.port, statuses=statuses) as client:
                client.responses.create(model="m", input="hi", conversation=name, store=False)
            if len(statuses) == 3:
                one.popen.kill()
                one.popen.wait(20)
        with sdk(two.port) as client:
            assert len(list(client.conversations.items.list(name))) == 10
        assert "not_durable" not in two.logged()
    assert statuses == [200] * 5
    contexts = [len(turn.request.context) for turn in upstream.emulator.turns]
    assert contexts == [1, 3, 5, 7, 9]
    assert upstream.emulator.upgrades == 2


def continued(bridge: Process, response: str) -> Answer:
    body = {"model": "m", "input": "more", "store": False, "previous_response_id": response}
    return ask(bridge.port, post(body))


def is_gone(bridge: Process, response: str) -> bool:
    return continued(bridge, response).status == 400


def test_a_purge_holds_beside_a_process_that_has_the_conversation_in_memory(
    options: tuple[str, ...], upstream: Upstream, tmp_path: Path
) -> None:
    """It learns of it when it renews its lease, or when it stores the end of a turn."""
    where = options[options.index("--store") :][:4]
    purge = [sys.executable, "-m", "bridgecore_cli", "store", "purge", "--all", "--yes", *where]
    with running(*options) as bridge:
        last = say(bridge, "one", None, [])
        kept = say(bridge, "another", None, [])
        subprocess.run(purge, env=environment(), check=True, timeout=60, capture_output=True)
        answer = continued(bridge, last)
        # The first turn may be answered from memory; neither it nor what it continues can be
        # continued.
        gone = [last, kept, *([answer.json["id"]] if answer.status == 200 else [])]
        for response in gone:
            eventually(partial(is_gone, bridge, response))
        say(bridge, "three", say(bridge, "anew", None, []), [])
        bridge.popen.kill()
        bridge.popen.wait(20)
    with running(*options) as bridge:
        for response in gone:
            eventually(partial(is_gone, bridge, response))


def test_nothing_that_was_said_can_be_read_in_the_file(
    upstream: Upstream, backend: Backend, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    path = tmp_path / "conversations.db"
    where = ("--store", f"sqlite:{path}", "--cluster-keys", str(keys))
    with running("--upstream", upstream.url, "--backend", backend.name, *where) as bridge:
        answer = say(bridge, "an unusual secret", None, [])
        files = b"".join(each.read_bytes() for each in tmp_path.glob("*.db*") if each.is_file())
        assert b"unusual" not in files
        assert answer.encode() not in files
        logged = bridge.logged()
    assert "unusual" not in logged


def test_a_store_that_cannot_be_used_is_one_clear_line(upstream: Upstream, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    wrong = {
        f"sqlite:{tmp_path}/missing/conversations.db": "missing",
        "postgresql://user:hunter2@127.0.0.1:1/db": "PostgreSQL cannot be reached",
        "valkey://:hunter2@127.0.0.1:1/0": "Valkey",
    }
    for url, named in wrong.items():
        with (
            pytest.raises(AssertionError) as caught,
            running("--upstream", upstream.url, "--store", url, "--cluster-keys", str(keys)),
        ):
            pass
        text = str(caught.value)
        assert "bridgecore: error: store: " in text
        assert named in text
        assert "hunter2" not in text
        assert "Traceback" not in text
