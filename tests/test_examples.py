"""The programs in ``docs/examples``, run as a reader would run them.

What belongs here: what each program does, with connections that are lost; for the servers, also
clients that leave or read slowly, and the end. They use sockets of 127.0.0.1 on ports that the
system chooses, and are type-checked with the rest (``mypy.ini``). The programs of the tutorial are
run by ``tests/test_tutorial.py``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from aiohttp import web

from bridgecore import NS_PER_SECOND, Config, UpstreamUrl
from bridgecore.testing import EVERY, CloseWith, Emulator, Fault, Point, Silence, Text
from bridgecore.transport import Disconnected
from bridgecore.transport.request import InProcessRequest
from bridgecore.transport.sockets import HIGH_WATER, READ_SIZE
from tests.asgi.conftest import serving
from tests.e2e.conftest import (
    TIME_LIMIT,
    Json,
    Raw,
    Upstream,
    ask,
    driven,
    emulating,
    eventually,
    post,
    request,
)

TURN: Json = {"model": "m", "input": "hi"}
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "examples"


def run(name: str, *arguments: str) -> Any:
    """What ``main`` of an example returns."""
    return load(name).main(*arguments)


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spend_passes(port: int) -> None:
    """Have the loop of a server wait for sockets many times: it could read 8 MiB meanwhile."""
    with Raw(port) as raw:
        for _ in range(150):
            raw.send(request("GET", "/livez"))
            assert raw.answer().status == 200


def text_of(answer: Json) -> Any:
    """The text of a response."""
    return answer["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("name", "most"), [("fastapi_app", 25), ("openai_in_process", 25), ("aiohttp_app", 80)]
)
def test_an_embedder_needs_few_lines(name: str, most: int) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= most


def test_door_1_sends_a_lost_turn_again_as_its_policy_says() -> None:
    assert run("door1_decisions") == ["decided by lost_sent/unanchored=resend", "Hello!"]


def test_a_store_passes_the_checks() -> None:
    lines = run("own_store").splitlines()
    assert len(lines) == 38
    assert {line.split()[0] for line in lines} == {"passed"}


@pytest.mark.parametrize("name", ["door2_messages", "door3_bytes"])
def test_the_other_doors_answer_a_request(name: str) -> None:
    answer = run(name)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"event: response.created\n" in answer
    assert b"event: response.completed\n" in answer


def test_a_client_with_a_bridge_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with emulating() as upstream:
        upstream.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
        assert asyncio.run(run("openai_in_process", upstream.url)) == "turn 2: And?"


def test_the_application_separates_its_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(key: str, **more: object) -> bytes:
        body = json.dumps({"model": "m", "input": "hi", "store": False, **more}).encode()
        return request("POST", "/llm/v1/responses", body, x_tenant_key=key)

    with emulating() as upstream:
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with serving("uvicorn", load("fastapi_app").app) as server:
            assert ask(server.port, turn("unknown-key")).status == 401
            first = ask(server.port, turn("key-of-ann")).json["id"]
            anns = turn("key-of-ann", previous_response_id=first)
            bobs = turn("key-of-bob", previous_response_id=first)
            assert ask(server.port, bobs).status != 200
            assert ask(server.port, anns).status == 200


# ------------------------------------------------------------------ aiohttp


@contextmanager
def aiohttp_serving(app: web.Application) -> Iterator[tuple[int, Callable[[], object]]]:
    """The application on a thread of its own: its port, and what begins to stop it."""
    up: Future[tuple[int, Callable[[], object]]] = Future()

    async def serve() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        runner = web.AppRunner(app, shutdown_timeout=TIME_LIMIT)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        up.set_result((runner.addresses[0][1], partial(loop.call_soon_threadsafe, over.set)))
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    port, stop = up.result(TIME_LIMIT)
    try:
        yield port, stop
    finally:
        if thread.is_alive():
            stop()
        thread.join(TIME_LIMIT)
        assert not thread.is_alive()


def test_aiohttp_keeps_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulating() as upstream:
        upstream.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with aiohttp_serving(load("aiohttp_app").app) as (port, _), Raw(port) as raw:
            raw.send(post(TURN))
            first = raw.answer().json["id"]
            raw.send(post({**TURN, "stream": True, "previous_response_id": first}))
            assert raw.head().headers["content-type"] == "text/event-stream"
            assert text_of(list(raw.events())[-1].json["response"]) == "turn 2: hi"
            raw.send(post(b"no JSON"))
            assert raw.answer().code == "invalid_request_body"
            raw.send(request("GET", "/livez"))
            assert raw.answer().status == 200


def test_a_client_of_aiohttp_that_leaves_ends_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulating() as upstream:
        upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with aiohttp_serving(load("aiohttp_app").app) as (port, _):
            with Raw(port) as raw:
                raw.send(post({**TURN, "stream": True}))
                assert raw.head().status == 200
                assert next(raw.events()).name == "response.created"
            eventually(lambda: upstream.emulator.connections == 0)
            assert ask(port, post(TURN)).status == 200


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[InProcessRequest]:
    """The requests that are begun."""
    begun: list[InProcessRequest] = []
    begin = InProcessRequest.begin

    def kept(request: InProcessRequest, *arguments: Any) -> None:
        begun.append(request)
        begin(request, *arguments)

    monkeypatch.setattr(InProcessRequest, "begin", kept)
    return begun


def test_an_answer_that_aiohttp_cannot_complete_does_not_look_complete(
    requests: list[InProcessRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulating() as upstream:
        upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with aiohttp_serving(load("aiohttp_app").app) as (port, _), Raw(port) as raw:
            raw.send(post({**TURN, "stream": True}))
            assert raw.head().status == 200
            events = raw.events()
            assert next(events).name == "response.created"
            (cut,) = requests

            def lose() -> None:
                cut.lose()
                cut._driver.report(Disconnected(cut.conn), cut)

            cut._driver._from_thread(lose)
            with pytest.raises(EOFError):
                list(events)


def test_a_client_of_aiohttp_that_reads_slowly_slows_the_upstream(
    requests: list[InProcessRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 8 * 2**20
    with emulating(Emulator(answer=lambda frame: [Text("x" * size)], deltas=1000)) as upstream:
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with aiohttp_serving(load("aiohttp_app").app) as (port, _), Raw(port) as raw:
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            raw.send(post({**TURN, "stream": True}))
            assert raw.head().status == 200
            eventually(lambda: requests[0].blocked)
            spend_passes(port)
            assert requests[0]._waiting < HIGH_WATER + 8 * READ_SIZE
            deltas = [each for each in raw.events() if each.name == "response.output_text.delta"]
            assert sum(len(each.json["delta"]) for each in deltas) == size


def test_aiohttp_ends_running_turns_before_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulating(Emulator(delta_interval=NS_PER_SECOND // 20)) as upstream:
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with aiohttp_serving(load("aiohttp_app").app) as (port, stop), Raw(port) as raw:
            raw.send(post({**TURN, "stream": True}))
            events = raw.events() if raw.head().status == 200 else iter(())
            assert next(events).name == "response.created"
            stop()
            assert list(events)[-1].name == "response.completed"


# ------------------------------------------------------------------ threads


def bridge_on(upstream: Upstream, scheme: str = "ws", **settings: Any) -> Config:
    url = upstream.url.replace("ws:", f"{scheme}:").replace("127.0.0.1", "localhost")
    return Config(upstream=UpstreamUrl.parse(url), **settings)


def test_a_bridge_on_threads_keeps_conversations() -> None:
    """What drives the bridge drives the upstream, too."""
    threads, emulator = load("threads"), Emulator()
    emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    with (
        threads.serve(emulator) as upstream,
        threads.serve(bridge_on(Upstream(emulator, upstream.port))) as server,
    ):
        with Raw(server.port) as raw:
            raw.send(post(TURN))
            first = raw.answer().json["id"]
            raw.send(post({**TURN, "stream": True, "previous_response_id": first}))
            assert raw.head().status == 200
            assert text_of(list(raw.events())[-1].json["response"]) == "turn 2: hi"
        server.request_drain()
        assert server.stopped.wait(TIME_LIMIT)
    assert emulator.accepted == 2


def test_a_bridge_on_threads_speaks_tls_with_the_upstream() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    authority.issue_cert("localhost").configure_cert(theirs)
    emulator = Emulator(answer=lambda frame: [Text("x" * 2**20)])
    with driven(emulator, theirs) as port:
        config = bridge_on(Upstream(emulator, port), "wss")
        with load("threads").serve(config, upstream_ssl=ours) as server:
            body = {**TURN, "input": "y" * 2**20}
            assert text_of(ask(server.port, post(body)).json) == "x" * 2**20
        with load("threads").serve(config) as server:
            assert ask(server.port, post(TURN)).code == "upstream_unavailable"


def test_a_bridge_on_threads_ends_the_turn_of_a_client_that_leaves() -> None:
    with emulating() as upstream, load("threads").serve(bridge_on(upstream)) as server:
        upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
        with Raw(server.port) as raw:
            raw.send(post({**TURN, "stream": True}))
            assert raw.head().status == 200
            assert next(raw.events()).name == "response.created"
            raw.reset()
        eventually(lambda: upstream.emulator.connections == 0)
        assert ask(server.port, post(TURN)).status == 200


def test_a_client_that_reads_slowly_slows_the_upstream_of_a_bridge_on_threads() -> None:
    size = 8 * 2**20
    emulator = Emulator(answer=lambda frame: [Text("x" * size)], deltas=1000)
    with (
        emulating(emulator) as upstream,
        load("threads").serve(bridge_on(upstream)) as server,
        Raw(server.port) as raw,
    ):
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.send(post({**TURN, "stream": True}))
        assert raw.head().status == 200
        eventually(lambda: any(each.blocked for each in set(server.alive)))
        spend_passes(server.port)
        assert max(len(each.out) for each in set(server.alive)) < HIGH_WATER + 8 * READ_SIZE
        deltas = [each for each in raw.events() if each.name == "response.output_text.delta"]
        assert sum(len(each.json["delta"]) for each in deltas) == size


def test_a_bridge_on_threads_ends_running_turns_before_it_stops() -> None:
    emulator = Emulator(delta_interval=NS_PER_SECOND // 20)
    with (
        emulating(emulator) as upstream,
        load("threads").serve(bridge_on(upstream)) as server,
        Raw(server.port) as raw,
    ):
        raw.send(post({**TURN, "stream": True}))
        events = raw.events() if raw.head().status == 200 else iter(())
        assert next(events).name == "response.created"
        server.request_drain("test")
        assert list(events)[-1].name == "response.completed"
        raw.sock.close()
        assert server.stopped.wait(TIME_LIMIT)


# ------------------------------------------------------------------ anyio


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_conversations_side_by_side_on_anyio(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with emulating() as upstream:
        upstream.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
        example = load("anyio_program")
        answers = anyio.run(example.main, upstream.url, backend=backend_name)
    assert answers == {name: f"turn 2: Who is {name}?" for name in ("Ada", "Grace", "Edsger")}
    assert upstream.emulator.accepted == 6  # each turn's connection is lost after it


def test_a_conversation_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with emulating() as upstream:
        upstream.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
        example = load("anyio_program")
        monkeypatch.setattr(example, "SECONDS", 0.1)
        assert anyio.run(example.main, upstream.url) == {}
        eventually(lambda: upstream.emulator.connections == 0)
