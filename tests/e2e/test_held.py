"""Real clients whose conversations the bridge holds, with losses of its upstream connection.

What belongs here: openai-python and openai-agents unchanged, with a bridge without settings, on
both backends; nothing is stored upstream (``store=false``). What the bridge does in each case is in
tests/endpoint/test_losses.py; here it counts what a user observes: nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import agents
import openai
import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore.testing import EVERY, Abort, CloseWith, CreateFrame, Emulator, Fault, Point
from bridgecore.testing.answers import Output, Text, echo
from tests.e2e.conftest import KEY, TIME_LIMIT, Process, Upstream, eventually, running, sdk
from tests.e2e.test_conversations import (
    BULK,
    FAULTS,
    IDLE_CLOSE,
    OK,
    TURNS,
    Client,
    Lost,
    Running,
    conversation,
    expected,
    messages,
)

if TYPE_CHECKING:
    from tests.conftest import Backend

HITS = (3, 6, 9)  # the turns with a loss

# ------------------------------------------------------------------ openai-python


async def hold(run: Running, client: Client, lost: Lost) -> None:
    """Run a conversation with repeated losses; the transcript is held throughout."""
    hits = (5,) if lost is Lost.SENDING else HITS
    others = run.sockets
    for turn in range(1, TURNS + 1):
        client.begin(*([BULK] if lost is Lost.SENDING and turn in hits else []))
        run.emulator.faults.clear()
        closes = lost in (Lost.BETWEEN, Lost.REFUSED) and turn + 1 in hits
        if closes:
            run.emulator.faults.add(run.next_frame, IDLE_CLOSE)
        attempts = [OK]
        if turn in hits:
            run.strike(lost)
            # For a held context the errors are those for a stored one.
            attempts = expected("default", lost, store=True, stream=client.stream)
        for attempt in attempts:
            assert await run.backend.in_thread(client.attempt) == attempt.told
        answered = run.emulator.requests[-1]
        assert messages(answered) == conversation(client.name, turn)
        assert answered.body["store"] is False
        assert (answered.anchor is None) is (turn == 1 or turn in hits)
        if closes:
            await run.sockets_fall_to(others)


@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.name.lower())
def test_ten_turns_with_store_false_succeed(backend: Backend, lost: Lost) -> None:
    async def body() -> None:
        emulator = Emulator()
        async with backend.serve(emulator) as upstream:
            url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
            async with backend.serve(Config(upstream=url)) as server:
                run = Running(backend, emulator, server)
                with sdk(server.port) as client:
                    for stream in (True, False):
                        name = "streamed" if stream else "plain"
                        await hold(run, Client(client, name, store=False, stream=stream), lost)
                assert run.endpoint.bridge.turns == 0

    backend.run(body)


def next_frame(upstream: Upstream) -> int:
    requests = upstream.emulator.requests
    return requests[-1].number + 1 if requests else 1


def test_an_application_sees_no_loss(backend: Backend, upstream: Upstream) -> None:
    """The SDK unchanged: whatever is lost in each of its turns, the application gets answers."""
    losses = [Lost.SENT, Lost.CREATED, Lost.OUTPUT]
    plan = upstream.emulator.faults
    with running("--upstream", upstream.url, "--backend", backend.name) as process:
        statuses: list[int] = []
        with sdk(process.port, max_retries=2, statuses=statuses) as openai_client:
            client = Client(openai_client, "held", store=False, stream=False)
            for turn in range(1, TURNS + 1):
                client.begin()
                plan.clear()
                plan.add(EVERY, IDLE_CLOSE)
                plan.add(next_frame(upstream), FAULTS[losses[turn % len(losses)]])
                assert client.attempt() == "ok"
                assert messages(upstream.emulator.requests[-1]) == conversation("held", turn)
                eventually(lambda: not upstream.emulator.connections)
        assert statuses == [502, 200] * TURNS
        end_cleanly(process)


def end_cleanly(process: Process) -> None:
    process.terminate()
    assert process.exit_code() == 0, process.logged()
    logged = process.logged()
    assert "Traceback" not in logged
    assert KEY not in logged
    assert "user: " not in logged


# ------------------------------------------------------------------ openai-agents


def last_tool(request: CreateFrame) -> list[Output]:
    """The emulator's answers, but only the last tool output is repeated: the answer must not depend
    on how many of them one frame has."""
    last = request.input[-1]
    if last.get("type") == "function_call_output":
        return [Text(f"The tool said {last['output']}.")]
    return list(echo(request))


@agents.function_tool
def double(number: int) -> str:
    """Double a number."""
    return str(2 * number)


async def run_agent(port: int, streamed: bool) -> list[str]:
    """The messages of an agent in ten runs of one conversation, each with a call of its tool."""
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key=KEY,
        timeout=TIME_LIMIT,
        http_client=openai.DefaultAsyncHttpxClient(verify=False),
    )
    async with client:
        agent = agents.Agent(
            name="Doubler",
            instructions="Double numbers.",
            model=agents.OpenAIResponsesModel("gpt-5.4", openai_client=client),
            model_settings=agents.ModelSettings(store=False),
            tools=[double],
        )
        said = []
        previous: str | None = None
        for number in range(1, TURNS + 1):
            text = f'call tool double {{"number":{number}}}'
            result: agents.RunResult | agents.RunResultStreaming
            if streamed:
                result = agents.Runner.run_streamed(
                    agent, text, previous_response_id=previous, auto_previous_response_id=True
                )
                async for _ in result.stream_events():
                    pass
            else:
                result = await agents.Runner.run(
                    agent, text, previous_response_id=previous, auto_previous_response_id=True
                )
            previous = result.last_response_id
            said.append(str(result.final_output))
    return said


@pytest.mark.parametrize("streamed", [True, False])
def test_an_agent_with_a_tool_sees_no_loss(
    backend: Backend, upstream: Upstream, streamed: bool
) -> None:
    """Every connection is lost after its turn, and every fifth turn loses one after it was sent."""
    emulator = upstream.emulator
    emulator.answer = last_tool
    emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    point = Point.BEFORE_CREATED if streamed else Point.MID_OUTPUT
    for number in range(4, 24, 5):
        emulator.faults.add(number, Fault(point, Abort()))
    with running("--upstream", upstream.url, "--backend", backend.name) as process:
        said = asyncio.run(run_agent(process.port, streamed))
        assert said == [f"The tool said {2 * number}." for number in range(1, TURNS + 1)]
        end_cleanly(process)
    whole = emulator.requests[-1].context
    assert [item.get("type", item.get("role")) for item in whole] == [
        *["user", "function_call", "function_call_output", "message"] * (TURNS - 1),
        *["user", "function_call", "function_call_output"],
    ]
    calls = {item["call_id"] for item in whole if item.get("type") == "function_call"}
    assert len(calls) == TURNS
