"""One exchange, with a server and a machine that do one thing at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from bridgecore import transport as tp
from bridgecore.recovery.timers import Deadline
from bridgecore.transport.sockets import HIGH_WATER
from bridgecore_asgi.exchange import AnswerCutError, Exchange
from bridgecore_asgi.tasks import AsyncioTasks, TrioTasks

if TYPE_CHECKING:
    from tests.conftest import Backend

Message: TypeAlias = MutableMapping[str, Any]
CONN = 1
HEAD = tp.Respond(CONN, 200, [(b"content-type", b"text/plain")])
START = {"type": "http.response.start", "status": 200, "headers": HEAD.headers}
BEGUN = (b"POST", b"/", [(b"host", b"x")])


def request(body: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def part(body: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Script:
    """A machine that records events, and returns the effects that a test has set for one."""

    def __init__(self, *effects: tuple[tp.TransportEvent, list[tp.TransportEffect]]) -> None:
        self.effects = effects
        self.events: list[tp.TransportEvent] = []

    def new_connection(self) -> int:
        return CONN

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        self.events.append(event)
        return next((effects for at, effects in self.effects if at == event), [])

    def next_timeout(self) -> Deadline | None:
        return None


class Around:
    """The server around an exchange: messages that the test puts in, and those that come out.

    ``stuck``: the next ``send`` blocks. ``fails``: it raises this.
    """

    def __init__(self, *messages: Message) -> None:
        self.put, self.taken = anyio.create_memory_object_stream[Message](math.inf)
        for message in messages:
            self.put.send_nowait(message)
        self.sent: list[Message] = []
        self.stuck = False
        self.fails: Exception | None = None
        self.reached = anyio.Event()  # a send has begun
        self.received = 0

    async def receive(self) -> Message:
        self.received += 1
        return await self.taken.receive()

    async def send(self, message: Message) -> None:
        self.reached.set()
        if self.stuck:
            await anyio.sleep_forever()
        if self.fails is not None:
            raise self.fails
        self.sent.append(message)

    def close(self) -> None:
        self.put.close()
        self.taken.close()


def carried(
    backend: Backend,
    machine: Script,
    body: Callable[[Around, Callable[[], Any], Any], Any],
    *messages: Message,
) -> None:
    """Run ``body`` with the server around an exchange, a function that carries it through, and the
    driver."""

    async def main() -> None:
        around = Around(*messages)
        tasks = TrioTasks() if backend.name == "trio" else AsyncioTasks()
        async with backend.serve(machine, port=None) as server:
            exchange = Exchange(server, tasks, around.receive, around.send)

            async def run() -> bool:
                return await exchange.run(tp.RequestBegun(-1, *BEGUN))

            try:
                await body(around, run, server)
            finally:
                around.close()

    backend.run(main)


def test_a_whole_exchange(backend: Backend) -> None:
    machine = Script(
        (tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, b"one", notify=True), tp.Close(CONN)])
    )

    async def body(around: Around, run: Any, server: Any) -> None:
        assert await run()
        assert around.sent == [START, part(b"one", more=False)]

    carried(backend, machine, body, request(b"x", more=True), request(b"y"))
    begun, *events = machine.events
    assert begun == tp.RequestBegun(CONN, *BEGUN)
    assert events == [
        tp.DataReceived(CONN, b"x"),
        tp.DataReceived(CONN, b"y"),
        tp.RequestEnded(CONN),
        tp.DataSent(CONN),
        tp.Disconnected(CONN),
    ]


def test_a_body_that_middleware_has_collected(backend: Backend) -> None:
    """It may be a ``bytearray``, which servers do not pass on."""
    machine = Script((tp.RequestEnded(CONN), [HEAD, tp.Close(CONN)]))

    async def body(around: Around, run: Any, server: Any) -> None:
        assert await run()

    carried(backend, machine, body, {**request(), "body": bytearray(b"x")})
    assert machine.events[1] == tp.DataReceived(CONN, b"x")
    assert type(machine.events[1].data) is bytes


def test_a_body_that_has_no_bytes_fails_alone(backend: Backend) -> None:
    machine = Script((tp.RequestEnded(CONN), [HEAD, tp.Close(CONN)]))

    async def body(around: Around, run: Any, server: Any) -> None:
        with pytest.raises(TypeError):
            await run()

    carried(backend, machine, body, {**request(), "body": "text"})
    assert machine.events[1:] == [tp.Disconnected(CONN)]


def test_a_head_is_not_held_back_until_there_is_a_body(backend: Backend) -> None:
    machine = Script((tp.RequestEnded(CONN), [HEAD]), (tp.Disconnected(CONN), []))

    async def body(around: Around, run: Any, server: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await around.reached.wait()
            around.put.send_nowait({"type": "http.disconnect"})
        assert around.sent == [START]

    carried(backend, machine, body, request())
    assert machine.events[-1] == tp.Disconnected(CONN)


def test_what_the_server_does_not_take_is_reported(backend: Backend) -> None:
    large = b"x" * (HIGH_WATER + 1)
    machine = Script(
        (tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, large, notify=True)]),
        (tp.WriteUnblocked(CONN), [tp.Send(CONN, b"y"), tp.EndSending(CONN)]),
    )

    async def body(around: Around, run: Any, server: Any) -> None:
        assert await run()
        assert around.sent == [START, part(large, more=True), part(b"y", more=False)]

    carried(backend, machine, body, request())
    assert machine.events[2:] == [
        tp.WriteBlocked(CONN),
        tp.WriteUnblocked(CONN),
        tp.DataSent(CONN),
        tp.Disconnected(CONN),
    ]


def test_reading_is_paused(backend: Backend) -> None:
    machine = Script(
        (tp.DataReceived(CONN, b"x"), [tp.PauseReading(CONN), tp.PauseReading(CONN), HEAD]),
        (tp.DrainRequested(), [tp.ResumeReading(CONN), tp.ResumeReading(CONN)]),
        (tp.RequestEnded(CONN), [tp.Close(CONN)]),
    )

    async def body(around: Around, run: Any, server: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await around.reached.wait()  # which the same event has caused
            await anyio.wait_all_tasks_blocked()
            assert around.received == 1
            server.report(tp.DrainRequested())
        assert around.sent == [START, part(b"", more=False)]

    carried(backend, machine, body, request(b"x", more=True), request())


def test_a_send_that_fails_says_that_the_client_is_gone(backend: Backend) -> None:
    machine = Script((tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, b"x", notify=True)]))

    async def body(around: Around, run: Any, server: Any) -> None:
        around.fails = BrokenPipeError()
        assert await run()

    carried(backend, machine, body, request())
    assert machine.events[2:] == [tp.Disconnected(CONN)]


@pytest.mark.parametrize("stuck", [True, False])
def test_an_abort_raises_and_completes_nothing(backend: Backend, stuck: bool) -> None:
    machine = Script(
        (tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, b"x")]),
        (tp.DrainRequested(), [tp.Abort(CONN)]),
    )

    async def body(around: Around, run: Any, server: Any) -> None:
        async def cut_off() -> None:
            with pytest.raises(AnswerCutError):
                await run()

        around.stuck = stuck
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut_off)
            await around.reached.wait()
            await anyio.wait_all_tasks_blocked()
            server.report(tp.DrainRequested())
        if not stuck:
            impossible = {"type": "bridgecore.cut", "more_body": True}
            assert around.sent == [START, part(b"x", more=True), impossible]

    carried(backend, machine, body, request())
    assert tp.Disconnected(CONN) not in machine.events


def test_an_abort_that_writing_causes(backend: Backend) -> None:
    """The writer itself reports what leads to it, and must not be cancelled later on."""
    machine = Script(
        (tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, b"x", notify=True)]),
        (tp.DataSent(CONN), [tp.Abort(CONN)]),
    )

    async def body(around: Around, run: Any, server: Any) -> None:
        with pytest.raises(AnswerCutError):
            await run()
        await anyio.lowlevel.checkpoint()

    carried(backend, machine, body, request())


def test_an_abort_before_anything_else(backend: Backend) -> None:
    machine = Script((tp.RequestBegun(CONN, *BEGUN), [tp.Abort(CONN)]))

    async def body(around: Around, run: Any, server: Any) -> None:
        with pytest.raises(AnswerCutError):
            await run()

    carried(backend, machine, body, request())
    assert len(machine.events) == 1


def test_a_server_that_cancels_the_request(backend: Backend) -> None:
    machine = Script((tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, b"x")]))

    async def body(around: Around, run: Any, server: Any) -> None:
        around.stuck = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await around.reached.wait()
            tasks.cancel_scope.cancel()

    carried(backend, machine, body, request())
    assert machine.events[-1] == tp.Disconnected(CONN)


def test_a_server_that_raises(backend: Backend) -> None:
    machine = Script((tp.RequestEnded(CONN), [HEAD, tp.Send(CONN, b"x")]))

    async def body(around: Around, run: Any, server: Any) -> None:
        around.put.close()
        with pytest.raises(anyio.EndOfStream):
            await run()

    carried(backend, machine, body, request())
    assert machine.events[-1] == tp.Disconnected(CONN)


def test_a_driver_that_does_not_run_any_more(backend: Backend) -> None:
    machine = Script()

    async def body(around: Around, run: Any, server: Any) -> None:
        server._closed = True
        assert not await run()
        assert not around.sent

    carried(backend, machine, body, request())
