"""Clients that leave, and clients that read slowly, on real sockets.

What belongs here: what a client's connection does to its own turn, and that it affects neither the
turns of others nor the bridge's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest

from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline
from bridgecore.testing import CloseWith, Emulator, Fault, Outcome, Point, SendEvents, Silence
from bridgecore.testing.client import SseEvent
from bridgecore.transport import (
    DataReceived,
    Machine,
    PauseReading,
    ResumeReading,
    TransportEffect,
    TransportEvent,
)
from tests.e2e.conftest import (
    Answer,
    Raw,
    Upstream,
    ask,
    eventually_in,
    post,
    running,
)

if TYPE_CHECKING:
    from tests.conftest import Backend, Served

MIB = 2**20
TURN = {"model": "m", "input": "hello"}
STREAM = {**TURN, "stream": True}


@attrs.define
class Watched:
    """A machine that counts the bytes it reads, and records which connections it pauses."""

    machine: Machine
    received: Counter[int] = attrs.Factory(Counter)  # bytes by connection
    paused: set[int] = attrs.Factory(set)
    pauses: int = 0

    def new_connection(self) -> int:
        return self.machine.new_connection()

    def next_timeout(self) -> Deadline | None:
        return self.machine.next_timeout()

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            self.received[event.conn] += len(event.data)
        effects = self.machine.handle(event, now)
        for effect in effects:
            if isinstance(effect, PauseReading):
                self.pauses += 1
                self.paused.add(effect.conn)
            elif isinstance(effect, ResumeReading):
                self.paused.discard(effect.conn)
        return effects


@attrs.frozen
class Running:
    """A bridge and an emulator, both in this process."""

    backend: Backend
    emulator: Emulator
    upstream: Served
    server: Served

    @property
    def watched(self) -> Watched:
        return cast(Watched, self.server.machine)

    @property
    def endpoint(self) -> Endpoint:
        return cast(Endpoint, self.watched.machine)

    async def connect(self) -> Raw:
        return await self.backend.in_thread(Raw, self.server.port)

    async def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await self.backend.in_thread(function, *arguments)

    async def ask(self, body: object) -> Answer:
        return cast(Answer, await self.call(ask, self.server.port, post(body)))

    async def until(self, condition: Callable[[], object]) -> None:
        await eventually_in(self.backend, condition)


def with_bridge(backend: Backend, body: Callable[[Running], Awaitable[None]]) -> None:
    async def main() -> None:
        emulator = Emulator()
        async with backend.serve(emulator) as upstream:
            url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
            machine = Watched(Endpoint(Config(upstream=url, continuity=Continuity.PASSTHROUGH)))
            async with backend.serve(machine) as server:
                await body(Running(backend, emulator, upstream, server))

    backend.run(main)


def leave(raw: Raw, how: str) -> None:
    if how == "reset":
        raw.reset()
    else:
        raw.sock.close()


# ------------------------------------------------------------------ leaving


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
@pytest.mark.parametrize(
    "point", [Point.BEFORE_CREATED, Point.MID_OUTPUT], ids=["before-created", "mid-output"]
)
def test_a_client_that_leaves_closes_its_upstream_socket(
    backend: Backend, point: Point, stream: bool, how: str
) -> None:
    """The connection cannot be used by another turn of its conversation; others are not
    affected."""

    async def body(run: Running) -> None:
        bridge = run.endpoint.bridge
        kept = (await run.ask({**TURN, "store": False})).json["id"]
        run.emulator.faults.add(2, Fault(point, Silence()))

        raw = await run.connect()
        await run.call(raw.send, post({**TURN, "stream": stream}))
        if stream and point is Point.MID_OUTPUT:
            events = await run.call(raw_events, raw)
            while (await run.call(next, events)).name != "response.output_text.delta":
                pass
        else:
            await run.until(lambda: len(run.emulator.turns) == 2)
        assert bridge.turns == 1
        assert run.emulator.connections == 2
        await run.call(leave, raw, how)
        await run.until(lambda: run.emulator.connections == 1)
        await run.until(lambda: run.server.open_connections == 1)
        assert (bridge.turns, bridge.links, run.endpoint.upstreams) == (0, 1, 1)
        assert run.endpoint.clients == 0

        answer = await run.ask({**TURN, "store": False, "previous_response_id": kept})
        assert answer.status == 200
        assert (run.emulator.accepted, run.emulator.connections) == (2, 1)

    with_bridge(backend, body)


def raw_events(raw: Raw) -> Any:
    assert raw.head().status == 200
    return raw.events()


def test_a_client_that_leaves_while_it_sends(backend: Backend) -> None:
    async def body(run: Running) -> None:
        raw = await run.connect()
        await run.call(raw.send, post(TURN)[:-1])
        await run.until(lambda: run.endpoint.clients == 1)
        raw.reset()
        await run.until(lambda: run.server.open_connections == 0)
        assert run.endpoint.clients == 0
        assert run.emulator.accepted == 0

    with_bridge(backend, body)


def test_a_client_that_leaves_the_queue(backend: Backend) -> None:
    """Two turns continue the same response on its one connection; the waiting one leaves."""

    async def body(run: Running) -> None:
        bridge = run.endpoint.bridge
        first = (await run.ask({**TURN, "store": False})).json["id"]
        run.emulator.delta_interval = NS_PER_SECOND // 100
        follow = {"model": "m", "store": False, "previous_response_id": first}
        with await run.connect() as stays:
            await run.call(stays.send, post({**follow, "input": "repeat 30"}))
            await run.until(lambda: len(run.emulator.turns) == 2)
            goes = await run.connect()
            await run.call(goes.send, post({**follow, "input": "never sent"}))
            await run.until(lambda: bridge.turns == 2)
            goes.reset()
            await run.until(lambda: bridge.turns == 1)
            answer = await run.call(stays.answer)
        assert answer.status == 200
        assert [turn.outcome for turn in run.emulator.turns] == [Outcome.COMPLETED] * 2
        assert len(run.emulator.requests) == 2
        assert bridge.turns == 0

    with_bridge(backend, body)


def test_an_idle_upstream_socket_that_closes_is_noticed(backend: Backend) -> None:
    """An idle connection is read: its close is received and answered without any turn."""

    async def body(run: Running) -> None:
        run.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, CloseWith(4000)))
        await run.ask(TURN)
        await run.until(lambda: not run.server.open_connections and not run.emulator.connections)
        assert run.endpoint.bridge.links == 0

    with_bridge(backend, body)


# ------------------------------------------------------------------ reading slowly


def flood(mebibytes: int) -> Fault:
    """Events of 1 MiB each, which an upstream sends as fast as it can."""
    event = b'{"type":"response.output_text.delta","sequence_number":%%SEQUENCE%%,"delta":"%b"}'
    return Fault(Point.BEFORE_TERMINAL, SendEvents((event % (b"x" * MIB),) * mebibytes))


def drink(raw: Raw) -> list[SseEvent]:
    """What a slow client receives when it reads on."""
    return list(raw.events())


def check_flood(events: list[SseEvent], mebibytes: int) -> None:
    assert sum(len(event.data) > MIB for event in events) == mebibytes
    assert events[-1].name == "response.completed"
    numbers = [event.json["sequence_number"] for event in events if len(event.data) < MIB]
    assert numbers == sorted(set(numbers))


def test_a_slow_reader_pauses_only_its_own_upstream(backend: Backend) -> None:
    async def body(run: Running) -> None:
        run.emulator.faults.add(1, flood(32))
        watched = run.watched
        with await run.connect() as slow:
            await run.call(slow.send, post(STREAM))
            assert (await run.call(slow.head)).status == 200
            await run.until(lambda: watched.paused)
            (conn,) = watched.paused
            read = watched.received[conn]
            # What the sockets to the client buffer, and one read: not the whole answer.
            assert read < 16 * MIB
            for number in range(5):
                answer = await run.ask({"model": "m", "input": f"quick {number}"})
                assert answer.json["output"][0]["content"][0]["text"] == f"turn 1: quick {number}"
            assert watched.paused == {conn}
            assert watched.received[conn] == read
            assert run.endpoint.bridge.turns == 1
            check_flood(await run.call(drink, slow), 32)
        assert watched.paused == set()
        assert run.endpoint.bridge.turns == 0

    with_bridge(backend, body)


def test_a_slow_reader_that_leaves(backend: Backend) -> None:
    """A connection that is not read is closed, and what it would still send is discarded."""

    async def body(run: Running) -> None:
        run.emulator.faults.add(1, flood(32))
        slow = await run.connect()
        await run.call(slow.send, post(STREAM))
        await run.until(lambda: run.watched.paused)
        slow.reset()
        await run.until(lambda: not run.server.open_connections and not run.emulator.connections)
        assert run.endpoint.bridge.turns == 0
        assert run.endpoint.upstreams == 0
        assert (await run.ask(TURN)).status == 200

    with_bridge(backend, body)


def test_a_slow_reader_does_not_grow_the_process(backend: Backend, upstream: Upstream) -> None:
    with running("--upstream", upstream.url, "--backend", backend.name) as process:
        # Modules, buffers and caches that are allocated once are not counted.
        upstream.emulator.faults.add(1, flood(4))
        with Raw(process.port) as raw:
            raw.send(post(STREAM))
            assert raw.head().status == 200
            check_flood(drink(raw), 4)
        before = process.memory()

        upstream.emulator.faults.add(2, flood(64))
        with Raw(process.port) as slow:
            slow.send(post(STREAM))
            assert slow.head().status == 200
            upstream.await_turns(2)
            for _ in range(20):
                assert ask(process.port, post(TURN)).status == 200
            check_flood(drink(slow), 64)
        assert process.memory() - before < 16 * MIB
