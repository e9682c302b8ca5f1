"""Tests of the transports with both libraries: requests, answers, timeouts, ends of turns and of
bridges."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import attrs
import httpx2
import pytest
import trio

from bridgecore import NS_PER_SECOND, Config, ConfigError
from bridgecore import transport as tp
from bridgecore.config import Store
from bridgecore.recovery.timers import Deadline
from bridgecore.testing import Fault, Point, Silence
from bridgecore.transport.driver import StoreClient
from bridgecore.transport.sockets import HIGH_WATER
from bridgecore_httpx import BridgeTransport, SyncBridgeTransport
from tests.e2e.conftest import Json, Upstream, eventually, eventually_in
from tests.httpx.conftest import (
    HEADERS,
    STREAM,
    TURN,
    URL,
    client_of,
    config_of,
    sync_client_of,
    types_in,
)

if TYPE_CHECKING:
    from tests.conftest import Backend


@attrs.define
class Machine:
    """A bridge in miniature: answers each event with a test's function."""

    answer: Callable[[tp.TransportEvent], list[tp.TransportEffect]]
    seen: list[tp.TransportEvent] = attrs.Factory(list)
    numbers: int = 0

    def new_connection(self) -> int:
        self.numbers += 1
        return self.numbers

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        self.seen.append(event)
        return [tp.Stop()] if isinstance(event, tp.DrainRequested) else self.answer(event)

    def next_timeout(self) -> Deadline | None:
        return None

    @property
    def config(self) -> Config:
        """Itself: ``serve`` runs any machine."""
        return cast(Config, self)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


def exchanges(transport: Any) -> list[Any]:
    """The exchanges of a transport that have not ended."""
    thread = getattr(transport, "_thread", None)
    running = transport._running if thread is None else thread.up.result()
    return list(running._exchanges)


def silent(upstream: Upstream, point: Point) -> None:
    upstream.emulator.faults.add(len(upstream.emulator.turns) + 1, Fault(point, Silence()))


# ------------------------------------------------------------------ requests and answers


def test_an_answer(backend: Backend, library: Any, upstream: Upstream) -> None:
    """Host, scheme and what is before ``/responses`` are the client's affair."""
    url = "http://other.test/a/b/responses"

    async def body() -> None:
        async with client_of(library, BridgeTransport(config_of(upstream))) as client:
            assert (await client.post(URL, json=TURN)).status_code == 200
            answer = await client.post(url, json=TURN)
            assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["status"] == "completed"
            assert isinstance(answer, library.Response)
            async with client.stream("POST", url, json=STREAM) as streamed:
                assert streamed.headers["content-type"] == "text/event-stream"
                types = types_in(await streamed.aread())
            assert (types[0], types[-1]) == ("response.created", "response.completed")

    backend.run(body)
    assert len(upstream.emulator.turns) == 3


def test_an_answer_sync(library: Any, upstream: Upstream) -> None:
    with sync_client_of(library, SyncBridgeTransport(config_of(upstream))) as client:
        answer = client.post(URL, json=TURN)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
        assert answer.json()["status"] == "completed"
        with client.stream("POST", URL, json=STREAM) as streamed:
            types = types_in(streamed.read())
        assert (types[0], types[-1]) == ("response.created", "response.completed")


def test_a_query_does_no_harm(upstream: Upstream) -> None:
    with sync_client_of(httpx2, SyncBridgeTransport(config_of(upstream))) as client:
        assert client.post(URL, params={"api-version": "1"}, json=TURN).status_code == 200


def test_a_body_in_parts(backend: Backend, library: Any, upstream: Upstream) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for byte in gzip.compress(json.dumps(TURN).encode()):
            yield bytes([byte])

    async def body() -> None:
        async with client_of(library, BridgeTransport(config_of(upstream))) as client:
            headers = {"content-encoding": "gzip"}
            answer = await client.post(URL, content=parts(), headers=headers)
            assert answer.status_code == 200

    backend.run(body)


parts_of_any_type = pytest.mark.parametrize(
    ("parts", "fails"),
    [
        ([bytearray(b'{"model":"m",'), memoryview(b'"input":"x"}')], False),
        (["text"], True),
        ([b"{", "text"], True),
        ([7], True),
    ],
)


@parts_of_any_type
def test_parts_that_are_no_bytes(
    backend: Backend, library: Any, upstream: Upstream, parts: list[Any], fails: bool
) -> None:
    """What has bytes is sent; else the request fails, and only that one."""

    async def generated() -> AsyncGenerator[Any]:
        for part in parts:
            yield part

    async def body() -> None:
        async with (
            client_of(library, BridgeTransport(config_of(upstream))) as client,
            contextlib.aclosing(generated()) as content,
        ):
            if fails:
                with pytest.raises(TypeError):
                    await client.post(URL, content=content)
            else:
                assert (await client.post(URL, content=content)).status_code == 200
            assert (await client.post(URL, json=TURN)).status_code == 200

    backend.run(body)


@parts_of_any_type
def test_parts_that_are_no_bytes_sync(
    library: Any, upstream: Upstream, parts: list[Any], fails: bool
) -> None:
    with sync_client_of(library, SyncBridgeTransport(config_of(upstream))) as client:
        if fails:
            with pytest.raises(TypeError):
                client.post(URL, content=iter(parts))
        else:
            assert client.post(URL, content=iter(parts)).status_code == 200
        assert client.post(URL, json=TURN).status_code == 200


def test_a_body_in_parts_sync(library: Any, upstream: Upstream) -> None:
    def parts() -> Iterator[bytes]:
        for byte in gzip.compress(json.dumps(TURN).encode()):
            yield bytes([byte])

    with sync_client_of(library, SyncBridgeTransport(config_of(upstream))) as client:
        headers = {"content-encoding": "gzip"}
        assert client.post(URL, content=parts(), headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_not_sent_to_its_end(
    backend: Backend, upstream: Upstream
) -> None:
    taken = 0

    def some() -> Iterator[bytes]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield b" " * 1000

    async def parts() -> AsyncGenerator[bytes, None]:
        for part in some():
            yield part

    async def body() -> None:
        transport = BridgeTransport(config_of(upstream, max_body=10_000))
        async with client_of(httpx2, transport) as client:
            async with contextlib.aclosing(parts()) as content:
                answer = await client.post(URL, content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
            assert taken < 20

    backend.run(body)
    sync = SyncBridgeTransport(config_of(upstream, max_body=10_000))
    with sync_client_of(httpx2, sync) as client:
        assert client.post(URL, content=some()).status_code == 413


def test_the_scope_is_the_tenant(upstream: Upstream) -> None:
    """Two keys of one scope share conversations; without a scope they do not."""
    body: Json = {**TURN, "store": False}
    for scope, status in (("a", 200), (None, 400)):
        transport = SyncBridgeTransport(config_of(upstream), scope=scope)
        with sync_client_of(httpx2, transport) as client:
            first = client.post(URL, json=body).json()["id"]
            follow = {**body, "previous_response_id": first}
            other = {"authorization": "Bearer sk-other"}
            assert client.post(URL, json=follow, headers=other).status_code == status


# ------------------------------------------------------------------ other requests


class Inner(httpx2.MockTransport):
    """Takes the requests that are no turns, and records its end."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.closed = False
        super().__init__(self.take)

    def take(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(f"{request.method} {request.url}")
        return httpx2.Response(200, json={"object": "list"})

    async def aclose(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


OTHERS = [
    ("GET", "https://api.upstream.test/v1/models"),
    ("GET", URL),
    ("POST", URL + "/resp_1/cancel"),
    ("DELETE", URL + "/resp_1"),
]


def test_other_requests_go_to_the_inner_transport(backend: Backend, upstream: Upstream) -> None:
    inner, sync = Inner(), Inner()

    async def body() -> None:
        async with client_of(httpx2, BridgeTransport(config_of(upstream), inner=inner)) as client:
            for method, url in OTHERS:
                assert (await client.request(method, url)).json() == {"object": "list"}

    backend.run(body)
    with sync_client_of(httpx2, SyncBridgeTransport(config_of(upstream), inner=sync)) as client:
        for method, url in OTHERS:
            assert client.request(method, url).json() == {"object": "list"}
    assert inner.requests == sync.requests == [f"{method} {url}" for method, url in OTHERS]
    assert inner.closed
    assert sync.closed
    assert upstream.emulator.accepted == 0


def test_the_inner_transport_is_by_default_that_of_the_library(
    backend: Backend, library: Any, upstream: Upstream
) -> None:
    async def body() -> None:
        async with backend.serve(config_of(upstream)) as server:
            url = f"http://127.0.0.1:{server.port}/livez"
            async with client_of(library, BridgeTransport(config_of(upstream))) as client:
                assert (await client.get(url)).json() == {"status": "ok"}

            def get() -> object:
                transport = SyncBridgeTransport(config_of(upstream))
                with sync_client_of(library, transport) as client:
                    return client.get(url).json()

            assert await backend.in_thread(get) == {"status": "ok"}

    backend.run(body)


# ------------------------------------------------------------------ timeouts and cut answers


WHERE = [(TURN, Point.BEFORE_CREATED), (STREAM, Point.MID_OUTPUT)]


def test_read_timeout(backend: Backend, library: Any, upstream: Upstream) -> None:
    """Before the answer, and within it."""

    async def body() -> None:
        async with client_of(library, BridgeTransport(config_of(upstream)), timeout=0.1) as client:
            for asked, point in WHERE:
                silent(upstream, point)
                with pytest.raises(library.ReadTimeout, match=r"within 0\.1 s") as found:
                    await client.post(URL, json=asked)
                assert found.value.request.url == URL
                await eventually_in(backend, lambda: upstream.emulator.connections == 0)

    backend.run(body)


def test_read_timeout_sync(library: Any, upstream: Upstream) -> None:
    with sync_client_of(library, SyncBridgeTransport(config_of(upstream)), timeout=0.1) as client:
        for asked, point in WHERE:
            silent(upstream, point)
            with pytest.raises(library.ReadTimeout, match=r"within 0\.1 s"):
                client.post(URL, json=asked)
            eventually(lambda: upstream.emulator.connections == 0)


def test_no_timeout_waits(backend: Backend, upstream: Upstream) -> None:
    upstream.emulator.delta_interval = NS_PER_SECOND // 100

    async def body() -> None:
        async with client_of(httpx2, BridgeTransport(config_of(upstream)), timeout=None) as client:
            assert (await client.post(URL, json=STREAM)).status_code == 200

    backend.run(body)


def pausing(event: tp.TransportEvent) -> list[tp.TransportEffect]:
    return [tp.PauseReading(event.conn)] if isinstance(event, tp.DataReceived) else []


def test_write_timeout(backend: Backend, library: Any) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"
        yield b"c"

    async def body() -> None:
        machine = Machine(pausing)
        async with (
            client_of(library, BridgeTransport(machine.config), timeout=0.05) as client,
            contextlib.aclosing(parts()) as content,
        ):
            with pytest.raises(library.WriteTimeout, match="no part of the request was taken"):
                await client.post(URL, content=content)
        assert machine.kinds()[:3] == ["RequestBegun", "DataReceived", "Disconnected"]

    backend.run(body)
    machine = Machine(pausing)
    with sync_client_of(library, SyncBridgeTransport(machine.config), timeout=0.05) as client:
        with pytest.raises(library.WriteTimeout):
            client.post(URL, content=iter([b"a", b"b", b"c"]))
        eventually(lambda: "Disconnected" in machine.kinds())
    assert "RequestEnded" not in machine.kinds()


def test_a_request_goes_on_when_the_bridge_takes_it_again(backend: Backend) -> None:
    def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
        if isinstance(event, tp.DataReceived) and event.data == b"a":
            return [tp.PauseReading(event.conn), tp.ResumeReading(event.conn)]
        if isinstance(event, tp.RequestEnded):
            conn = event.conn
            return [tp.Respond(conn, 200, []), tp.Send(conn, b"hi"), tp.EndSending(conn)]
        return []

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def body() -> None:
        machine = Machine(answer)
        async with client_of(httpx2, BridgeTransport(machine.config)) as client:
            assert (await client.post(URL, content=parts())).content == b"hi"
        kinds = ["RequestBegun", "DataReceived", "DataReceived", "RequestEnded", "Disconnected"]
        assert machine.kinds()[:5] == kinds

    backend.run(body)


def test_connect_timeout(library: Any, upstream: Upstream) -> None:
    """There is nothing to connect to but the bridge, which takes a moment to start. (On asyncio it
    does not, and in any case the start is not given up.)"""

    async def body() -> None:
        transport = BridgeTransport(config_of(upstream))
        client = library.AsyncClient(transport=transport)  # its context would start the bridge
        with pytest.raises(library.ConnectTimeout, match="the bridge did not start"):
            await client.post(URL, json=TURN, timeout=library.Timeout(5, connect=0))
        assert (await client.post(URL, json=TURN, headers=HEADERS)).status_code == 200
        await client.aclose()

    trio.run(body)


def test_connect_timeout_sync(library: Any) -> None:
    may_start = threading.Event()

    def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
        if isinstance(event, tp.Started):
            may_start.wait()
        return crashing(event)

    store = cast(StoreClient, object())  # with a store, the driver reports Started
    transport = SyncBridgeTransport(Machine(answer).config, store=store)
    client = library.Client(transport=transport, timeout=library.Timeout(5, connect=0.01))
    with pytest.raises(library.ConnectTimeout, match="the bridge did not start"):
        client.post(URL, json=TURN)
    may_start.set()
    client.close()


@pytest.mark.parametrize("head", [False, True])
def test_an_answer_that_is_cut_off(backend: Backend, library: Any, head: bool) -> None:
    def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
        if not isinstance(event, tp.RequestEnded):
            return []
        conn = event.conn
        begun: list[tp.TransportEffect] = [tp.Respond(conn, 200, []), tp.Send(conn, b"part")]
        return [*(begun if head else []), tp.Abort(conn)]

    said = "before the answer was complete" if head else "without an answer"

    async def body() -> None:
        async with client_of(library, BridgeTransport(Machine(answer).config)) as client:
            got: list[bytes] = []

            async def ask() -> None:
                async with client.stream("POST", URL, json=TURN) as response:
                    async for part in response.aiter_raw():
                        got.append(part)

            with pytest.raises(library.RemoteProtocolError, match=said):
                await ask()
            assert got == ([b"part"] if head else [])

    backend.run(body)
    with (
        sync_client_of(library, SyncBridgeTransport(Machine(answer).config)) as client,
        pytest.raises(library.RemoteProtocolError, match=said),
    ):
        client.post(URL, json=TURN)


# ------------------------------------------------------------------ slow readers

LONG: Json = {**STREAM, "input": "repeat 6000"}  # more than a megabyte


def test_a_slow_reader_stops_the_upstream(backend: Backend, upstream: Upstream) -> None:
    async def body() -> None:
        transport = BridgeTransport(config_of(upstream))
        async with (
            client_of(httpx2, transport) as client,
            client.stream("POST", URL, json=LONG) as response,
        ):
            (exchange,) = exchanges(transport)
            await eventually_in(backend, lambda: exchange.blocked)
            waiting = 0
            for _ in range(10):  # nothing more comes, however long it waits
                waiting = exchange._waiting
                await backend.in_thread(threading.Event().wait, 0.005)
            assert HIGH_WATER < waiting == exchange._waiting < 8 * HIGH_WATER
            types = types_in(await response.aread())
            assert types.count("response.output_text.delta") == 6000
            assert types[-1] == "response.completed"

    backend.run(body)


def test_a_slow_reader_in_another_thread(upstream: Upstream) -> None:
    transport = SyncBridgeTransport(config_of(upstream))
    with (
        sync_client_of(httpx2, transport) as client,
        client.stream("POST", URL, json=LONG) as response,
    ):
        (exchange,) = exchanges(transport)
        eventually(lambda: exchange.blocked)
        types = types_in(response.read())
        assert types.count("response.output_text.delta") == 6000
        assert types[-1] == "response.completed"


def test_a_large_answer_in_one_piece(backend: Backend, upstream: Upstream) -> None:
    """Its end follows only after it was taken."""
    asked = {**TURN, "input": "repeat 20000"}

    async def body() -> None:
        async with client_of(httpx2, BridgeTransport(config_of(upstream))) as client:
            answer = await client.post(URL, json=asked)
            assert len(answer.content) > HIGH_WATER
            assert answer.json()["status"] == "completed"

    backend.run(body)
    with sync_client_of(httpx2, SyncBridgeTransport(config_of(upstream))) as client:
        assert client.post(URL, json=asked).json()["status"] == "completed"


# ------------------------------------------------------------------ turns that end early


@pytest.mark.parametrize(("asked", "point"), WHERE)
def test_cancellation_ends_the_turn(
    backend: Backend, upstream: Upstream, asked: Json, point: Point
) -> None:
    async def body() -> None:
        transport = BridgeTransport(config_of(upstream))
        async with client_of(httpx2, transport) as client:
            silent(upstream, point)
            if backend.name == "asyncio":
                task = asyncio.create_task(client.post(URL, json=asked))
                await eventually_in(backend, lambda: upstream.emulator.turns)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: client.post(URL, json=asked))
                    await eventually_in(backend, lambda: upstream.emulator.turns)
                    nursery.cancel_scope.cancel()
            await eventually_in(backend, lambda: upstream.emulator.connections == 0)
            assert exchanges(transport) == []
            assert (await client.post(URL, json=asked)).status_code == 200

    backend.run(body)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_turn(upstream: Upstream) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        upstream.await_turns(1)
        signal.pthread_kill(main, signal.SIGINT)

    silent(upstream, Point.BEFORE_CREATED)
    transport = SyncBridgeTransport(config_of(upstream))
    with sync_client_of(httpx2, transport) as client:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.post(URL, json=TURN)
        thread.join()
        eventually(lambda: upstream.emulator.connections == 0)
        eventually(lambda: not exchanges(transport))
        assert client.post(URL, json=TURN).status_code == 200


def test_many_threads_share_a_transport(upstream: Upstream) -> None:
    with sync_client_of(httpx2, SyncBridgeTransport(config_of(upstream))) as client:

        def ask(number: int) -> str:
            asked = {**STREAM, "input": f"number {number}"}
            return cast(str, client.post(URL, json=asked).text)

        with ThreadPoolExecutor(8) as pool:
            for number, text in enumerate(pool.map(ask, range(40))):
                assert f'turn 1: number {number}"' in text
                assert "response.completed" in text


# ------------------------------------------------------------------ the life of the bridge


def test_closing_lets_running_turns_end(backend: Backend, upstream: Upstream) -> None:
    upstream.emulator.delta_interval = NS_PER_SECOND // 100

    async def body() -> None:
        transport = BridgeTransport(config_of(upstream))
        client = httpx2.AsyncClient(transport=transport, headers=HEADERS, timeout=10)
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await client.post(URL, json=STREAM))

        async def close() -> None:
            await eventually_in(backend, lambda: upstream.emulator.turns)
            await transport.aclose()
            with pytest.raises(RuntimeError, match="closed"):
                await client.post(URL, json=TURN)

        await backend.gather(ask, close)
        assert types_in(answers[0].content)[-1] == "response.completed"
        await client.aclose()

    backend.run(body)


def test_closing_ends_turns_at_the_deadline(backend: Backend, upstream: Upstream) -> None:
    silent(upstream, Point.MID_OUTPUT)

    async def body() -> None:
        transport = BridgeTransport(config_of(upstream, drain_timeout=NS_PER_SECOND // 20))
        client = httpx2.AsyncClient(transport=transport, headers=HEADERS, timeout=10)
        async with client.stream("POST", URL, json=STREAM) as response:
            await transport.aclose()
            assert types_in(await response.aread())[-1] == "response.failed"
        await client.aclose()

    backend.run(body)


def test_closing_ends_turns_at_the_deadline_sync(upstream: Upstream) -> None:
    silent(upstream, Point.MID_OUTPUT)
    transport = SyncBridgeTransport(config_of(upstream, drain_timeout=NS_PER_SECOND // 20))
    client = httpx2.Client(transport=transport, headers=HEADERS, timeout=10)
    with client.stream("POST", URL, json=STREAM) as response:
        transport.close()
        assert types_in(response.read())[-1] == "response.failed"
    with pytest.raises(RuntimeError, match="closed"):
        client.post(URL, json=TURN)
    client.close()
    assert "bridgecore" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_closing_ends_turns_at_once(upstream: Upstream) -> None:
    """The default would let the turn run for 30 s."""
    main = threading.get_ident()
    records: list[tp.Log] = []

    def interrupt() -> None:
        eventually(lambda: [record for record in records if record.event == "drain.started"])
        signal.pthread_kill(main, signal.SIGINT)

    silent(upstream, Point.MID_OUTPUT)
    transport = SyncBridgeTransport(config_of(upstream), log=records.append)
    client = httpx2.Client(transport=transport, headers=HEADERS, timeout=10)
    with client.stream("POST", URL, json=STREAM) as response:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            transport.close()
        thread.join()
        with pytest.raises(httpx2.RemoteProtocolError):
            response.read()
    client.close()
    eventually(lambda: upstream.emulator.connections == 0)


def test_an_exception_ends_turns_at_once(backend: Backend, upstream: Upstream) -> None:
    """The default would let the turn run for 30 s. It is not in an exception group either."""
    silent(upstream, Point.MID_OUTPUT)

    async def body() -> None:
        async with client_of(httpx2, BridgeTransport(config_of(upstream))) as client:
            request = client.build_request("POST", URL, json=STREAM)
            response = await client.send(request, stream=True)
            assert response.status_code == 200
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backend.run(body)
    eventually(lambda: upstream.emulator.connections == 0)


def test_an_exception_ends_turns_at_once_sync(upstream: Upstream) -> None:
    silent(upstream, Point.MID_OUTPUT)

    def body() -> None:
        with sync_client_of(httpx2, SyncBridgeTransport(config_of(upstream))) as client:
            request = client.build_request("POST", URL, json=STREAM)
            assert client.send(request, stream=True).status_code == 200
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    eventually(lambda: upstream.emulator.connections == 0)


def test_the_end_of_the_loop_ends_the_bridge(upstream: Upstream) -> None:
    """Of a transport that is not closed."""

    async def body() -> object:
        client = httpx2.AsyncClient(transport=BridgeTransport(config_of(upstream)))
        assert (await client.post(URL, json=TURN)).status_code == 200
        return client

    for run in (asyncio.run, trio.run):
        client = cast(Any, run)(body if run is trio.run else body())
        eventually(lambda: upstream.emulator.connections == 0)
        gc.collect()
        with pytest.raises(RuntimeError, match="one transport for each event loop"):
            asyncio.run(client.post(URL, json=TURN))
        asyncio.run(client.aclose())


def test_another_loop_is_refused(upstream: Upstream) -> None:
    async def other(client: Any, transport: BridgeTransport) -> None:
        with pytest.raises(RuntimeError, match="one transport for each event loop"):
            await client.post(URL, json=TURN)
        with pytest.raises(RuntimeError, match="one transport for each event loop"):
            await transport.__aexit__(ValueError)
        with pytest.raises(RuntimeError, match="one transport for each event loop"):
            await transport.aclose()

    async def body() -> None:
        transport = BridgeTransport(config_of(upstream))
        async with client_of(httpx2, transport) as client:
            assert (await client.post(URL, json=TURN)).status_code == 200
            running = transport._running
            assert running is not None
            await asyncio.to_thread(lambda: asyncio.run(other(client, transport)))
            await asyncio.to_thread(trio.run, other, client, transport)
            assert (await client.post(URL, json=TURN)).status_code == 200
        assert running.ended.is_set()  # what was refused elsewhere can still be done here

    asyncio.run(body())


def test_several_loops_with_a_transport_each(upstream: Upstream) -> None:
    async def body() -> None:
        async with client_of(httpx2, BridgeTransport(config_of(upstream))) as client:
            assert (await client.post(URL, json=TURN)).status_code == 200

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(trio.run, body) for _ in range(2)]
        runs += [pool.submit(lambda: asyncio.run(body())) for _ in range(2)]
        for run in runs:
            run.result()


def test_a_forgotten_transport_ends_its_bridge(backend: Backend, upstream: Upstream) -> None:
    async def body() -> None:
        client: Any = httpx2.AsyncClient(transport=BridgeTransport(config_of(upstream)))
        assert (await client.post(URL, json=TURN)).status_code == 200
        assert upstream.emulator.connections == 1
        del client
        gc.collect()
        await eventually_in(backend, lambda: upstream.emulator.connections == 0)
        for _ in range(5):
            await backend.tick()  # the last steps of the background task

    backend.run(body)


def test_an_answer_keeps_its_bridge(backend: Backend, upstream: Upstream) -> None:
    """Although its client is forgotten."""
    upstream.emulator.delta_interval = NS_PER_SECOND // 100

    async def body() -> None:
        client: Any = httpx2.AsyncClient(transport=BridgeTransport(config_of(upstream)))
        request = client.build_request("POST", URL, json=STREAM)
        response = await client.send(request, stream=True)
        del client
        gc.collect()
        assert types_in(await response.aread())[-1] == "response.completed"
        del response
        gc.collect()
        await eventually_in(backend, lambda: upstream.emulator.connections == 0)
        for _ in range(5):
            await backend.tick()  # the last steps of the background task

    backend.run(body)


def test_an_answer_keeps_its_thread(upstream: Upstream) -> None:
    upstream.emulator.delta_interval = NS_PER_SECOND // 100
    client: Any = httpx2.Client(transport=SyncBridgeTransport(config_of(upstream)))
    request = client.build_request("POST", URL, json=STREAM)
    response = client.send(request, stream=True)
    del client
    gc.collect()
    assert types_in(response.read())[-1] == "response.completed"
    del response
    gc.collect()
    eventually(lambda: "bridgecore" not in [thread.name for thread in threading.enumerate()])


def test_a_forgotten_transport_ends_its_thread(upstream: Upstream) -> None:
    client: Any = httpx2.Client(transport=SyncBridgeTransport(config_of(upstream)))
    assert client.post(URL, json=TURN).status_code == 200
    del client
    gc.collect()
    eventually(lambda: "bridgecore" not in [thread.name for thread in threading.enumerate()])
    eventually(lambda: upstream.emulator.connections == 0)


SCRIPT = """
import os, sys, warnings
import httpx2
from bridgecore import Config, UpstreamUrl
from bridgecore_httpx import SyncBridgeTransport
config = Config(upstream=UpstreamUrl.parse(sys.argv[1]))
client = httpx2.Client(transport=SyncBridgeTransport(config), timeout=10)
url = "http://x/responses"
request = client.build_request("POST", url, json={"model": "m", "input": "x", "stream": True})
response = client.send(request, stream=True)
"""
FORK = """
warnings.simplefilter("ignore")
if (child := os.fork()) == 0:
    try:
        client.post(url, json={"model": "m", "input": "hi"})
    except RuntimeError as exc:
        os._exit(7 if "has stopped" in str(exc) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.parametrize("more", ["", FORK], ids=["forgotten", "forked"])
def test_the_interpreter_ends_with_a_bridge_that_runs(upstream: Upstream, more: str) -> None:
    silent(upstream, Point.MID_OUTPUT)
    command = [sys.executable, "-W", "error", "-c", SCRIPT + more, upstream.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bridge_that_cannot_start(backend: Backend, upstream: Upstream) -> None:
    config = config_of(upstream, store=Store.DRIVER)  # without one

    async def body() -> None:
        client = httpx2.AsyncClient(transport=BridgeTransport(config))
        for _ in range(2):
            with pytest.raises(ConfigError, match="store"):
                await client.post(URL, json=TURN)
        with pytest.raises(ConfigError, match="store"):
            await client.aclose()

    backend.run(body)
    client = httpx2.Client(transport=SyncBridgeTransport(config))
    for _ in range(2):
        with pytest.raises(ConfigError, match="store"):
            client.post(URL, json=TURN)
    client.close()


def crashing(event: tp.TransportEvent) -> list[tp.TransportEffect]:
    if isinstance(event, tp.RequestEnded):
        raise ZeroDivisionError("a bug")
    return []


def test_a_bug_of_the_bridge_reaches_its_clients(backend: Backend, library: Any) -> None:
    async def body() -> None:
        transport = BridgeTransport(Machine(crashing).config)
        client = library.AsyncClient(transport=transport)
        with pytest.raises(library.RemoteProtocolError, match="without an answer"):
            await client.post(URL, json=TURN)
        with pytest.raises(RuntimeError, match="has stopped"):
            await client.post(URL, json=TURN)
        with pytest.raises(ZeroDivisionError):
            await client.aclose()

    backend.run(body)
    client = library.Client(transport=SyncBridgeTransport(Machine(crashing).config))
    with pytest.raises(library.RemoteProtocolError, match="without an answer"):
        client.post(URL, json=TURN)
    with pytest.raises(RuntimeError, match="has stopped"):
        client.post(URL, json=TURN)
    with pytest.raises(ZeroDivisionError):
        client.close()
