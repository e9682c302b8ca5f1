"""Ten turns of openai-python through a bridge whose upstream connection is lost in one of them.

What belongs here: what the SDK's user observes of a lost connection, attempt by attempt, for each
named policy, and what the upstream receives. The tables below are written by hand; nothing is
derived from the policies under test.

A conversation is incremental: each turn has the id of the response before and one new message. The
connection is lost twice: in the first turn, which needs nothing that the connection has cached, and
in the fifth. After not-found the client sends its whole history, as such clients do.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import os
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import attrs
import openai
import pytest
import trio
from openai.types.responses import Response, ResponseStreamEvent

from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import POLICIES
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    CreateFrame,
    Emulator,
    Fault,
    Point,
    Reject,
)
from tests.e2e.conftest import (
    Json,
    Process,
    Upstream,
    eventually,
    eventually_in,
    running,
    sdk,
)

if TYPE_CHECKING:
    from tests.conftest import Backend, Served

MODEL = "gpt-5.4"
TURNS = 10
HIT = 5  # the anchored turn with a loss
# An item larger than what sockets and their buffers hold while the peer does not read: its turn is
# still being sent when the connection is lost.
BULK: Json = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x" * 2**23}


class Lost(enum.Enum):
    """When the connection is lost."""

    BETWEEN = "between turns"
    REFUSED = "between turns, and the reconnect fails"
    SENDING = "during the send"
    SENT = "before response.created"
    CREATED = "after response.created"
    OUTPUT = "mid-output"


FAULTS = {
    Lost.REFUSED: Fault(Point.ON_UPGRADE, Reject(503)),
    Lost.SENDING: Fault(Point.WHILE_RECEIVING, Abort()),
    Lost.SENT: Fault(Point.BEFORE_CREATED, CloseWith(1006)),
    Lost.CREATED: Fault(Point.AFTER_CREATED, Abort()),
    Lost.OUTPUT: Fault(Point.MID_OUTPUT, CloseWith(1011), deltas=2),
}
IDLE_CLOSE = Fault(Point.AFTER_TERMINAL, CloseWith(1001))

# ------------------------------------------------------------------ what clients should observe


@attrs.frozen
class Attempt:
    """The result of one request of the client."""

    told: str  # "ok", a status and a code, or "failed" and a code: response.failed in a stream
    frames: int  # complete create frames that the upstream receives


OK = Attempt("ok", 1)
REPLAYED = Attempt("ok", 2)
UNAVAILABLE = Attempt("502 upstream_unavailable", 0)
GONE = Attempt("400 previous_response_not_found", 0)
CUT = Attempt("502 stream_incomplete", 1)
CUT_SENDING = Attempt("502 stream_incomplete", 0)
BROKEN_OFF = Attempt("failed stream_incomplete", 1)

# The first turn, which is unanchored, up to its success.
FIRST: dict[str, dict[Lost, list[Attempt]]] = {
    "default": {
        Lost.BETWEEN: [OK],
        Lost.REFUSED: [UNAVAILABLE, OK],
        Lost.SENDING: [CUT_SENDING, OK],
        Lost.SENT: [CUT, OK],
        Lost.CREATED: [BROKEN_OFF, OK],
        Lost.OUTPUT: [BROKEN_OFF, OK],
    },
    "pr397": {
        Lost.BETWEEN: [OK],
        Lost.REFUSED: [UNAVAILABLE, OK],
        Lost.SENDING: [OK],  # the upstream receives no complete frame of the first send
        Lost.SENT: [REPLAYED],
        Lost.CREATED: [BROKEN_OFF, OK],
        Lost.OUTPUT: [BROKEN_OFF, OK],
    },
}
FIRST["v1_12"] = FIRST["pr397"]

# The answer of the anchored turn to the loss itself.
ANCHORED: dict[str, dict[Lost, list[Attempt]]] = {
    "default": {
        Lost.BETWEEN: [],
        Lost.REFUSED: [UNAVAILABLE],
        Lost.SENDING: [CUT_SENDING],
        Lost.SENT: [CUT],
        Lost.CREATED: [BROKEN_OFF],
        Lost.OUTPUT: [BROKEN_OFF],
    },
    "pr397": {
        Lost.BETWEEN: [],
        Lost.REFUSED: [UNAVAILABLE],
        Lost.SENDING: [Attempt("502 bridge_owner_unreachable", 0)],
        Lost.SENT: [CUT],
        Lost.CREATED: [BROKEN_OFF],
        Lost.OUTPUT: [BROKEN_OFF],
    },
    "v1_12": {
        Lost.BETWEEN: [],
        Lost.REFUSED: [GONE],
        Lost.SENDING: [GONE],
        Lost.SENT: [attrs.evolve(GONE, frames=1)],
        Lost.CREATED: [Attempt("failed previous_response_not_found", 1)],
        Lost.OUTPUT: [Attempt("failed previous_response_not_found", 1)],
    },
}
# The answers after that, with the same id, if only the lost connection knew the id.
LOST_FOR_GOOD = {
    "default": [UNAVAILABLE] * 3 + [GONE],
    "pr397": [UNAVAILABLE] * 3 + [GONE],
    "v1_12": [GONE],
}


def expected(policy: str, lost: Lost, *, store: bool, stream: bool) -> list[Attempt]:
    """The attempts of the anchored turn, up to its success or to not-found."""
    told = ANCHORED[policy][lost]
    if stream or lost not in (Lost.CREATED, Lost.OUTPUT):
        seen = list(told)
    else:
        seen = [as_status(attempt) for attempt in told]
    if seen and seen[-1].told.endswith(" previous_response_not_found"):
        return seen
    return [*seen, OK] if store else seen + LOST_FOR_GOOD[policy]


def as_status(attempt: Attempt) -> Attempt:
    """The same for a client that waits for JSON: its head was not sent yet."""
    code = attempt.told.removeprefix("failed ")
    status = 400 if code == "previous_response_not_found" else 502
    return attrs.evolve(attempt, told=f"{status} {code}")


# ------------------------------------------------------------------ the client


@attrs.define
class Client:
    """One conversation of an application that uses the SDK. Blocking: to be used from a thread."""

    sdk: openai.OpenAI
    name: str  # in each of its messages, to tell conversations apart
    store: bool
    stream: bool
    history: list[Json] = attrs.Factory(list)  # all messages so far, the model's included
    anchor: str | None = None
    turn: int = 0  # the running turn, from 1
    items: list[Json] = attrs.Factory(list)  # new ones, of this turn

    def begin(self, *extra: Json) -> None:
        """Begin a turn whose input is ``extra`` and a message."""
        self.turn += 1
        self.items = [*extra, {"role": "user", "content": f"{self.name} {self.turn}"}]

    def attempt(self) -> str:
        """Send one request; its result, see ``Attempt``."""
        return self._ask(self.items, self.anchor)

    def start_over(self) -> str:
        """Send the whole history, without the id."""
        return self._ask([*self.history, *self.items], None)

    def _ask(self, items: list[Json], anchor: str | None) -> str:
        arguments: dict[str, Any] = {"model": MODEL, "input": items, "store": self.store}
        if anchor is not None:
            arguments["previous_response_id"] = anchor
        try:
            if self.stream:
                with self.sdk.responses.create(**arguments, stream=True) as events:
                    response = read_stream(list(events))
            else:
                response = self.sdk.responses.create(**arguments)
        except openai.APIStatusError as exc:
            check_refusal(exc, anchor)
            return f"{exc.status_code} {exc.code}"
        if response.status == "failed":
            assert response.error is not None
            assert response.error.message
            return f"failed {response.error.code}"
        # The answer has the number of messages in the context, and the last of them.
        text = f"turn {self.turn}: {self.name} {self.turn}"
        assert response.output_text == text
        self.anchor = response.id
        # A client keeps messages; an item of one turn only is not sent again.
        self.history += [self.items[-1], {"role": "assistant", "content": text}]
        return "ok"


def read_stream(events: Sequence[ResponseStreamEvent]) -> Response:
    """The response at the end of a stream. Checks what holds for every stream."""
    first, last = events[0], events[-1]
    assert first.type == "response.created"
    assert last.type in ("response.completed", "response.failed")
    assert not {first.type, last.type} & {event.type for event in events[1:-1]}
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    response = last.response
    assert response.id == first.response.id
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    if response.status == "completed":
        assert said == response.output_text
    return response


def check_refusal(exc: openai.APIStatusError, anchor: str | None) -> None:
    """An error must be one that clients can act upon."""
    assert exc.type
    body = cast(Json, exc.body)
    assert body["message"]
    wait = exc.response.headers.get("retry-after")
    if exc.status_code == 502:
        assert re.fullmatch("[1-9][0-9]*", wait or "")
        assert exc.param is None
    else:
        assert wait is None
        assert exc.param == "previous_response_id"
        assert anchor is not None
        assert anchor in body["message"]


def messages(request: CreateFrame) -> list[str]:
    """The texts of the effective context of a create frame."""
    found = []
    for item in request.context:
        if "role" in item:
            content = item["content"]
            text = content if isinstance(content, str) else "".join(p["text"] for p in content)
            found.append(f"{item['role']}: {text}")
    return found


def conversation(name: str, turns: int) -> list[str]:
    """The context that turn number ``turns`` of the conversation ``name`` should have."""
    found = []
    for turn in range(1, turns + 1):
        found += [f"user: {name} {turn}", f"assistant: turn {turn}: {name} {turn}"]
    return found[:-1]


# ------------------------------------------------------------------ the run


@attrs.frozen
class Running:
    """A bridge and an emulator, both in this process."""

    backend: Backend
    emulator: Emulator
    server: Served

    @property
    def endpoint(self) -> Endpoint:
        return cast(Endpoint, self.server.machine)

    async def hold(self, client: Client, policy: str, lost: Lost) -> None:
        """Run a conversation that loses its connection; check all that can be observed."""
        # of conversations that have ended; their connections stay open for a while
        others = self.sockets
        for turn in range(1, TURNS + 1):
            client.begin(*([BULK] if lost is Lost.SENDING and turn in (1, HIT) else []))
            self.emulator.faults.clear()
            attempts = [OK]
            if turn == 1:
                self.strike(lost)
                attempts = FIRST[policy][lost]
                if not client.stream and lost in (Lost.CREATED, Lost.OUTPUT):
                    attempts = [as_status(BROKEN_OFF), OK]
            elif turn == HIT:
                self.strike(lost)
                attempts = expected(policy, lost, store=client.store, stream=client.stream)
            elif turn == HIT - 1 and lost in (Lost.BETWEEN, Lost.REFUSED):
                self.emulator.faults.add(self.next_frame, IDLE_CLOSE)
            for number, attempt in enumerate(attempts):
                before = len(self.emulator.requests)
                told = await self.backend.in_thread(client.attempt)
                frames = self.emulator.requests[before:]
                where = f"turn {turn}, attempt {number} of {attempts}"
                assert Attempt(told, len(frames)) == attempt, where
            if attempts[-1].told != "ok":
                assert await self.backend.in_thread(client.start_over) == "ok"
                # The cost: not one new message, but the whole history once more.
                sent = self.emulator.requests[-1]
                assert sent.anchor is None
                assert len(sent.input) - (lost is Lost.SENDING) == 2 * turn - 1
            answered = self.emulator.requests[-1]
            assert messages(answered) == conversation(client.name, turn)
            assert answered.body["store"] is client.store
            if turn == HIT - 1 and lost in (Lost.BETWEEN, Lost.REFUSED):
                await self.sockets_fall_to(others)
        assert self.endpoint.bridge.turns == 0

    def strike(self, lost: Lost) -> None:
        """Let the next frame, or the next connection, have the loss."""
        if lost is Lost.REFUSED:
            self.emulator.faults.add(self.emulator.accepted + 1, FAULTS[lost])
        elif lost is not Lost.BETWEEN:
            self.emulator.faults.add(self.next_frame, FAULTS[lost])

    @property
    def next_frame(self) -> int:
        requests = self.emulator.requests
        return requests[-1].number + 1 if requests else 1

    @property
    def sockets(self) -> int:
        """Upstream connections, as counted by either side."""
        return self.emulator.connections + self.endpoint.upstreams

    async def sockets_fall_to(self, count: int) -> None:
        await eventually_in(self.backend, lambda: self.sockets <= count)


async def with_bridge(
    backend: Backend, policy: str, body: Any, session_idle: int = 900 * 10**9
) -> None:
    """Call ``body`` with a ``Running`` and the SDK."""
    emulator = Emulator()
    async with backend.serve(emulator) as upstream:
        url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
        config = Config(
            upstream=url,
            policy=POLICIES[policy],
            session_idle=session_idle,
            continuity=Continuity.PASSTHROUGH,
        )
        async with backend.serve(config) as server:
            await body(Running(backend, emulator, server))


def hold(backend: Backend, policy: str, lost: Lost, *, store: bool, streams: list[bool]) -> None:
    """Conversations one after the other on one bridge, each of them streamed or not."""

    async def body(run: Running) -> None:
        with sdk(run.server.port) as client:
            for stream in streams:
                name = "streamed" if stream else "plain"
                await run.hold(Client(client, name, store, stream), policy, lost)

    backend.run(with_bridge, backend, policy, body)


@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.name.lower())
@pytest.mark.parametrize("store", [True, False], ids=["stored", "not-stored"])
@pytest.mark.parametrize("policy", ["default", "pr397"])
def test_ten_turns_while_the_socket_is_lost(
    backend: Backend, policy: str, store: bool, lost: Lost
) -> None:
    """A lost connection costs a retry, but never a conversation that is stored."""
    hold(backend, policy, lost, store=store, streams=[True, False])


# ------------------------------------------------------------------ the broken policy

# Between turns a stored conversation continues even under v1_12.
LIES = [
    (lost, store)
    for lost in Lost
    for store in (True, False)
    if (lost, store) != (Lost.BETWEEN, True)
]


@pytest.mark.parametrize(
    ("lost", "store"),
    LIES,
    ids=[f"{lost.name.lower()}-{'stored' if store else 'not-stored'}" for lost, store in LIES],
)
def test_v1_12_answers_not_found_after_a_mere_loss(
    backend: Backend, lost: Lost, store: bool
) -> None:
    """At the first loss the client sends its whole history: the context grows."""
    told = expected("v1_12", lost, store=store, stream=store)
    assert len(told) == 1
    assert told[0].told.endswith(" previous_response_not_found")
    hold(backend, "v1_12", lost, store=store, streams=[store])


def test_a_response_that_v1_12_calls_not_found_can_be_continued(backend: Backend) -> None:
    """The upstream stores the response: a second request with the same id succeeds."""

    async def body(run: Running) -> None:
        with sdk(run.server.port) as openai_client:
            client = Client(openai_client, "stored", store=True, stream=False)
            client.begin()
            assert await backend.in_thread(client.attempt) == "ok"
            client.begin()
            run.strike(Lost.SENT)
            assert await backend.in_thread(client.attempt) == "400 previous_response_not_found"
            assert await backend.in_thread(client.attempt) == "ok"
            assert messages(run.emulator.requests[-1]) == conversation("stored", 2)

    backend.run(with_bridge, backend, "v1_12", body)


# ------------------------------------------------------------------ nothing is left


@attrs.frozen
class Left:
    """Resources of a process that can leak."""

    descriptors: int
    threads: list[str]
    tasks: int


def left(backend: Backend) -> Left:
    """The resources of this process, without the test's own worker threads."""
    gc.collect()
    workers = ("asyncio_", "Trio thread ")
    threads = sorted(t.name for t in threading.enumerate() if not t.name.startswith(workers))
    if backend.name == "trio":
        tasks = trio.lowlevel.current_statistics().tasks_living
    else:
        tasks = len(asyncio.all_tasks())
    return Left(len(os.listdir("/proc/self/fd")), threads, tasks)


async def fail_in_every_way(run: Running) -> None:
    """Conversations that all end with a loss, and a client that does not come back."""
    with sdk(run.server.port) as openai_client:
        for lost in Lost:
            for stream in (True, False):
                client = Client(openai_client, lost.name, store=False, stream=stream)
                run.emulator.faults.clear()
                if lost in (Lost.BETWEEN, Lost.REFUSED):
                    run.emulator.faults.add(run.next_frame, IDLE_CLOSE)
                others = run.sockets
                client.begin()
                assert await run.backend.in_thread(client.attempt) == "ok"
                if lost in (Lost.BETWEEN, Lost.REFUSED):
                    await run.sockets_fall_to(others)
                client.begin(*([BULK] if lost is Lost.SENDING else []))
                run.strike(lost)
                assert await run.backend.in_thread(client.attempt) != "ok"


@pytest.mark.parametrize("policy", ["default", "pr397", "v1_12"])
def test_two_failing_runs_leave_no_turn_link_or_socket(backend: Backend, policy: str) -> None:
    async def body(run: Running) -> None:
        bridge = run.endpoint.bridge

        def is_over() -> bool:
            counts = (bridge.turns, bridge.links, bridge.conversations, run.endpoint.clients)
            return not any(counts) and not run.sockets and not run.server.open_connections

        found = []
        for _ in range(2):
            await fail_in_every_way(run)
            assert bridge.turns == 0
            await eventually_in(backend, is_over)
            found.append(left(backend))
        assert found[0] == found[1]
        assert bridge.next_timeout() is None

    # Conversations without a turn are closed soon, so that only leaks are counted.
    backend.run(with_bridge, backend, policy, body, 300_000_000)


# ------------------------------------------------------------------ the command


def test_the_command_holds_a_stored_conversation(backend: Backend, upstream: Upstream) -> None:
    """The SDK's own retries suffice, except for a stream that has begun: that cannot be retried."""
    plan = upstream.emulator.faults

    def next_frame() -> int:
        requests = upstream.emulator.requests
        return requests[-1].number + 1 if requests else 1

    faults = {3: Lost.SENT, 4: Lost.SENDING, 7: Lost.OUTPUT, 8: Lost.OUTPUT}
    with running(
        "--upstream", upstream.url, "--backend", backend.name, "--continuity", "passthrough"
    ) as process:
        statuses: list[int] = []
        with sdk(process.port, max_retries=2, statuses=statuses) as openai_client:
            client = Client(openai_client, "stored", store=True, stream=False)
            for turn in range(1, TURNS + 1):
                client.stream = turn in (2, 3, 5, 8, 10)
                client.begin(*([BULK] if turn == 4 else []))
                plan.clear()
                if turn in faults:
                    plan.add(next_frame(), FAULTS[faults[turn]])
                elif turn == 5:
                    plan.add(EVERY, IDLE_CLOSE)
                statuses.clear()
                told = client.attempt()
                if turn == 8:
                    assert (told, statuses) == ("failed stream_incomplete", [200])
                    told = client.attempt()
                elif turn in faults:
                    assert statuses == [502, 200]
                else:
                    assert statuses == [200]
                assert told == "ok"
                if turn == 5:
                    eventually(lambda: not upstream.emulator.connections)
                assert messages(upstream.emulator.requests[-1]) == conversation("stored", turn)
        end_cleanly(process)


def test_the_command_gives_up_a_conversation_without_transcript_or_store(
    backend: Backend, upstream: Upstream
) -> None:
    """Three times 502, whoever counts them; then not-found, at which the SDK stops."""
    with running(
        "--upstream", upstream.url, "--backend", backend.name, "--continuity", "passthrough"
    ) as process:
        statuses: list[int] = []
        with sdk(process.port, statuses=statuses) as openai_client:
            client = Client(openai_client, "lost", store=False, stream=True)
            for turn in range(1, TURNS + 1):
                client.begin()
                upstream.emulator.faults.clear()
                if turn == HIT - 1:
                    upstream.emulator.faults.add(EVERY, IDLE_CLOSE)
                statuses.clear()
                if turn == HIT:
                    client.sdk = openai_client.with_options(max_retries=1)
                    assert client.attempt() == UNAVAILABLE.told
                    assert client.attempt() == GONE.told
                    assert statuses == [502, 502, 502, 400]
                    assert client.start_over() == "ok"
                else:
                    assert client.attempt() == "ok"
                if turn == HIT - 1:
                    eventually(lambda: not upstream.emulator.connections)
                assert messages(upstream.emulator.requests[-1]) == conversation("lost", turn)
            assert len(upstream.emulator.requests) == TURNS
        end_cleanly(process)


def end_cleanly(process: Process) -> None:
    process.terminate()
    assert process.exit_code() == 0, process.logged()
    assert "Traceback" not in process.logged()
