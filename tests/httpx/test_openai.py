"""openai-python with the bridge as its transport: conversations as its users write them.

What belongs here: what a program observes that uses the SDK, async on either loop and sync. The
transport itself is tested beside this, with the two libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import openai
import pytest

from bridgecore.testing import EVERY, Abort, CloseWith, Fault, Point
from bridgecore_httpx import BridgeTransport, SyncBridgeTransport
from tests.e2e.conftest import KEY, TIME_LIMIT, Json, Upstream, eventually
from tests.httpx.conftest import config_of

if TYPE_CHECKING:
    from tests.conftest import Backend

BASE = "https://api.upstream.test/v1"
WEATHER: Json = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def asyncly(library: Any, upstream: Upstream, **more: Any) -> openai.AsyncOpenAI:
    transport = BridgeTransport(config_of(upstream))
    http = library.AsyncClient(transport=transport, timeout=TIME_LIMIT)
    return openai.AsyncOpenAI(api_key=KEY, base_url=BASE, http_client=http, **more)


def syncly(library: Any, upstream: Upstream, **more: Any) -> openai.OpenAI:
    transport = SyncBridgeTransport(config_of(upstream))
    http = library.Client(transport=transport, timeout=TIME_LIMIT)
    return openai.OpenAI(api_key=KEY, base_url=BASE, http_client=http, **more)


# Either library without a loss, and the losses with one of them.
LOSSES = [(httpx2, None), (httpx, None), (httpx2, Abort()), (httpx2, CloseWith(1001))]
NAMES = ["httpx2", "httpx", "reset", "closed"]


def lose(upstream: Upstream, loss: Any) -> int:
    """Lose the upstream connection after each answer; how many connections three turns take."""
    if loss is not None:
        upstream.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, loss))
    return 1 if loss is None else 3


def lost(upstream: Upstream, loss: Any) -> None:
    """Wait until the connection is lost. A turn that is sent at the same time may have run, so it
    would be refused as retriable."""
    eventually(lambda: loss is None or upstream.emulator.connections == 0)


@pytest.mark.parametrize(("library", "loss"), LOSSES, ids=NAMES)
def test_three_turns(backend: Backend, library: Any, upstream: Upstream, loss: Any) -> None:
    connections = lose(upstream, loss)

    async def body() -> None:
        async with asyncly(library, upstream) as client:
            ask: Any = client.responses.create
            one = await ask(model="m", input="one", store=False)
            assert one.output_text == "turn 1: one"
            await backend.in_thread(lost, upstream, loss)
            last: Any = None
            follow = {"model": "m", "store": False, "previous_response_id": one.id}
            async for event in await ask(**follow, input="two", stream=True):
                last = event
            assert last.response.output_text == "turn 2: two"
            await backend.in_thread(lost, upstream, loss)
            follow["previous_response_id"] = last.response.id
            async with client.responses.stream(**follow, input="three") as stream:
                deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
                three = await stream.get_final_response()
            assert "".join(deltas) == three.output_text == "turn 3: three"

    backend.run(body)
    assert upstream.emulator.accepted == connections


@pytest.mark.parametrize(("library", "loss"), LOSSES, ids=NAMES)
def test_three_turns_sync(library: Any, upstream: Upstream, loss: Any) -> None:
    connections = lose(upstream, loss)
    with syncly(library, upstream) as client:
        ask: Any = client.responses.create
        one = ask(model="m", input="one", store=False)
        assert one.output_text == "turn 1: one"
        lost(upstream, loss)
        follow = {"model": "m", "store": False, "previous_response_id": one.id}
        *_, last = ask(**follow, input="two", stream=True)
        assert last.response.output_text == "turn 2: two"
        lost(upstream, loss)
        follow["previous_response_id"] = last.response.id
        with client.responses.stream(**follow, input="three") as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            three = stream.get_final_response()
        assert "".join(deltas) == three.output_text == "turn 3: three"
    assert upstream.emulator.accepted == connections


def test_a_tool_call(backend: Backend, upstream: Upstream) -> None:
    upstream.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, Abort()))

    async def body() -> None:
        async with asyncly(httpx2, upstream) as client:
            ask: Any = client.responses.create
            asked = {"model": "m", "tools": [WEATHER], "store": False}
            first = await ask(**asked, input='call tool weather {"city":"Oslo"}')
            await backend.in_thread(lost, upstream, Abort())
            (call,) = first.output
            assert (call.type, call.name, call.arguments) == (
                "function_call",
                "weather",
                '{"city":"Oslo"}',
            )
            output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
            second = await ask(**asked, input=[output], previous_response_id=first.id)
            assert (
                second.output_text == "turn 1: weather returned rain"
            )  # it counts users' messages

    backend.run(body)


def test_the_defaults_of_the_sdk_go_with_the_transport(upstream: Upstream) -> None:
    async def body() -> None:
        transport = BridgeTransport(config_of(upstream))
        http = openai.DefaultAsyncHttpxClient(transport=transport)
        async with openai.AsyncOpenAI(api_key=KEY, http_client=http) as client:
            answer = await client.responses.create(model="m", input="hi")
            assert answer.output_text == "turn 1: hi"

    asyncio.run(body())


# ------------------------------------------------------------------ errors


def test_the_sdk_itself_repeats_a_turn_that_is_refused(upstream: Upstream) -> None:
    """A turn that the upstream may have begun is not sent again by the bridge."""
    upstream.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, Abort()))
    with syncly(httpx2, upstream, max_retries=1) as client:
        answer = client.responses.with_raw_response.create(model="m", input="hi")
        assert (answer.status_code, answer.retries_taken) == (200, 1)


@pytest.mark.parametrize(
    ("asked", "error", "code", "param"),
    [
        (
            {"model": "m", "input": "x", "stream": "y"},
            openai.BadRequestError,
            "invalid_request_body",
            "stream",
        ),
        (
            {"model": "m", "input": "x", "previous_response_id": "resp_unknown"},
            openai.BadRequestError,
            "previous_response_not_found",
            "previous_response_id",
        ),
    ],
)
def test_errors_have_their_usual_shape(
    backend: Backend, upstream: Upstream, asked: Json, error: Any, code: str | None, param: str
) -> None:
    def check(found: Any) -> None:
        assert (found.value.code, found.value.param) == (code, param)
        assert found.value.type == "invalid_request_error"
        assert found.value.request_id

    async def body() -> None:
        async with asyncly(httpx2, upstream, max_retries=0) as client:
            with pytest.raises(error) as found:
                await client.post("/responses", body=asked, cast_to=object)
            check(found)

    backend.run(body)
    with syncly(httpx2, upstream, max_retries=0) as client:
        with pytest.raises(error) as found:
            client.post("/responses", body=asked, cast_to=object)
        check(found)


# ------------------------------------------------------------------ leaving


def test_leaving_a_stream_ends_its_turn(backend: Backend, upstream: Upstream) -> None:
    upstream.emulator.delta_interval = 10**7

    async def body() -> None:
        async with asyncly(httpx2, upstream) as client:
            kept = await client.responses.create(model="m", input="hi", store=False)
            manager: Any = client.responses.stream(
                model="m", input="repeat 1000", store=False, previous_response_id=kept.id
            )
            async with manager as stream, contextlib.aclosing(aiter(stream)) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        break
            await backend.in_thread(eventually, lambda: upstream.emulator.connections == 0)
            again: Any = client.responses.create
            answer = await again(
                model="m", input="again", store=False, previous_response_id=kept.id
            )
            assert answer.output_text == "turn 2: again"

    backend.run(body)


def test_leaving_a_stream_sync(upstream: Upstream) -> None:
    upstream.emulator.delta_interval = 10**7
    with syncly(httpx2, upstream) as client:
        with client.responses.stream(model="m", input="repeat 1000") as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    break
        eventually(lambda: upstream.emulator.connections == 0)
        assert client.responses.create(model="m", input="hi").output_text == "turn 1: hi"
