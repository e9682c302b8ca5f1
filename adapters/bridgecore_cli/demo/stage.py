"""Runs the demo: an upstream, three bridges and their clients in one process, over real sockets.

What belongs here: sockets and threads, and recording what passes. The upstream is the emulator,
which loses connections as ``bridgecore.simulate`` has it; the client is the standard library's HTTP
client, which does what ``Dialogue`` says. Each client runs in a thread of its own, everything else
in the event loop.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Final

from bridgecore import Config, UpstreamUrl
from bridgecore import transport as tp
from bridgecore.recovery.timers import Deadline
from bridgecore.simulate.experiment import (
    Dialogue,
    Experiment,
    LostBeforeCreated,
    turn_of,
    upstream_of,
)
from bridgecore.telemetry import Log
from bridgecore.testing.answers import CreateFrame, count_tokens
from bridgecore.testing.emulator import Outcome
from bridgecore.testing.faults import CloseWith, Fault, FaultPlan, Point
from bridgecore_asyncio import Server, serve
from bridgecore_cli.demo.timeline import Arrow, Lane, words_of
from bridgecore_cli.serve import listen_error

HURRY: Final = 50
"""The client waits that part of the time which an error asks for, so that the demo is short."""
_HOST = "127.0.0.1"
_INTERVAL = 0.1  # seconds between two updates of the view
_NOTICE = 5  # seconds until the bridge must have noticed a lost connection; it takes some ms
_PATIENCE = 60  # seconds for an answer
_TOLD = 2  # the turn of which the arrows are recorded: the first that loses its connection


class Conversation:
    """One conversation of the client with a bridge, and what was seen of it."""

    def __init__(self, experiment: Experiment, stopping: threading.Event) -> None:
        self.experiment = experiment
        self.dialogue = Dialogue(experiment)
        self.credential = f"Bearer {experiment.policy.name}-{experiment.store}"
        self.arrows: list[Arrow] = []
        self._stopping = stopping
        self._noticed = threading.Event()
        self._attempts = 0

    # -- in a thread of its own

    def run(self, port: int) -> None:
        """Have the conversation with the bridge on ``port``."""
        connection = http.client.HTTPConnection(_HOST, port, timeout=_PATIENCE)
        try:
            while not self.dialogue.done and not self._stopping.is_set():
                self._step(connection)
        finally:
            connection.close()

    def wake(self) -> None:
        """Have it wait no longer for a loss to be noticed."""
        self._noticed.set()

    def _step(self, connection: http.client.HTTPConnection) -> None:
        """One request and its answer."""
        dialogue = self.dialogue
        if dialogue.between_turns:
            dialogue.begin_turn()
            self._noticed.clear()
        if not dialogue.begin_try():
            return
        self._attempts += 1
        self._see(Lane.CLIENT, Lane.BRIDGE, f"POST: {self._form()}")
        seconds = self._ask(connection)
        if dialogue.between_turns and self.experiment.is_hit(dialogue.turn + 1):
            # The next turn is to find its connection lost, not to meet the loss half-way.
            if not dialogue.done:
                self._noticed.wait(_NOTICE)
        elif seconds:
            self._stopping.wait(seconds / HURRY)

    def _ask(self, connection: http.client.HTTPConnection) -> int:
        """Send the request and read its answer; the seconds to wait before the next try."""
        dialogue = self.dialogue
        headers = {
            "authorization": self.credential,
            "content-type": "application/json",
            "x-request-id": f"{self.credential.split()[1]}-{self._attempts}",
        }
        try:
            connection.request("POST", "/v1/responses", dialogue.body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return dialogue.connection_lost()
        found = _response(answer.headers.get("content-type", ""), data)
        seconds = dialogue.answered(answer.status, found, answer.headers.get("retry-after"))
        failed = answer.status != 200
        said = dialogue.errors[-1] if failed else "200, response.completed"
        self._see(Lane.BRIDGE, Lane.CLIENT, said, bad=failed)
        return seconds

    def _form(self) -> str:
        dialogue = self.dialogue
        parts = ["id"] if dialogue.anchored else []
        parts += ["whole history"] if dialogue.whole else ["new items"]
        return f"{' + '.join(parts)}, {len(dialogue.body):,} bytes"

    # -- in the event loop

    def reached(self, request: CreateFrame, outcome: Outcome | None) -> None:
        """A create frame has reached the upstream."""
        self.dialogue.reached(request)
        form = "id + " if request.anchor is not None else ""
        tokens = count_tokens(request.input)
        self._see(Lane.BRIDGE, Lane.UPSTREAM, f"frame: {form}{tokens:,} tokens")
        if outcome is Outcome.COMPLETED:
            self._see(Lane.UPSTREAM, Lane.BRIDGE, "response.completed")

    def lost(self, attempt: int, *, idle: bool) -> None:
        """The bridge has noticed the loss of its connection to the upstream, in or after the
        request with that number."""
        text = f"connection lost{' between turns' if idle else ''}"
        turn = self.dialogue.turn + idle
        self._see(Lane.UPSTREAM, Lane.BRIDGE, text, bad=True, turn=turn, attempt=attempt)
        if idle:
            self._noticed.set()

    def decided(self, attempt: int, cell: str) -> None:
        """The bridge has looked up a cell of its policy."""
        self._see(Lane.BRIDGE, Lane.BRIDGE, words_of(cell), attempt=attempt)

    def _see(
        self,
        source: Lane,
        target: Lane,
        text: str,
        *,
        bad: bool = False,
        turn: int | None = None,
        attempt: int | None = None,
    ) -> None:
        if (self.dialogue.turn if turn is None else turn) == _TOLD:
            number = self._attempts if attempt is None else attempt
            self.arrows.append(Arrow(time.monotonic_ns(), number, source, target, text, bad))


def _response(content_type: str, data: bytes) -> dict[str, Any]:
    """The response object of an answer: that of its last event, or the body of JSON."""
    streamed = content_type.startswith("text/event-stream")
    if streamed:
        data = data.strip().rsplit(b"\n\n", 1)[-1].partition(b"data: ")[2]
    found: dict[str, Any] = json.loads(data)
    return found["response"] if streamed else found


# ------------------------------------------------------------------ the upstream


class Upstream:
    """The emulator, with the faults of the experiment, and with what reaches it attributed to
    conversations. A ``Machine``."""

    def __init__(self, experiment: Experiment, conversations: Sequence[Conversation]) -> None:
        self._of = {one.credential.encode(): one for one in conversations}
        self._emulator = upstream_of(experiment)
        self._emulator.faults = _Faults(self)
        self.lost_before_created = LostBeforeCreated(experiment, self._emulator)
        self.experiment = experiment

    def new_connection(self) -> int:
        """The number of a connection that was just accepted."""
        return self._emulator.new_connection()

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
        return self._emulator.next_timeout()

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Handle ``event`` at ``now`` (ns, monotonic); the effects, in order."""
        effects = self._emulator.handle(event, now)
        outcomes = {turn.request.number: turn.outcome for turn in self._emulator.turns}
        for request in self._emulator.requests:
            self.conversation(request).reached(request, outcomes.get(request.number))
        self._emulator.requests.clear()
        self._emulator.turns.clear()
        return effects

    def conversation(self, request: CreateFrame) -> Conversation:
        """The conversation that a create frame belongs to, by its credential."""
        return self._of[dict(request.headers)[b"authorization"]]

    def request(self, nth: int) -> CreateFrame:
        """The ``nth`` create frame, which has just been received."""
        return next(one for one in self._emulator.requests if one.number == nth)


class _Faults(FaultPlan):
    """The connection is lost after the turn before one with a fault, and at that one's first create
    frame."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__()
        self._upstream = upstream

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults of the ``nth`` turn at ``point``."""
        if point not in (Point.BEFORE_CREATED, Point.AFTER_TERMINAL):
            return []
        upstream = self._upstream
        request = upstream.request(nth)
        if point is Point.BEFORE_CREATED:
            conversation = upstream.conversation(request).credential
            return upstream.lost_before_created.of(request, conversation)
        hit = upstream.experiment.is_hit(turn_of(request) + 1)
        return [Fault(point, CloseWith(1006))] if hit else []


# ------------------------------------------------------------------ the bridges


class _Watcher:
    """Reads the log of a bridge: which conversation lost its connection, and which cells of the
    policy decided."""

    def __init__(self, conversations: Mapping[str, Conversation]) -> None:
        self._conversations = conversations  # by the beginning of their request ids
        self._latest: dict[object, tuple[Conversation, int]] = {}  # request of each session

    def __call__(self, record: Log) -> None:
        fields = record.fields
        name, _, number = str(fields.get("request_id", "")).rpartition("-")
        session = fields.get("session")
        if name in self._conversations:
            self._latest[session] = self._conversations[name], int(number)
        if session not in self._latest:
            return
        conversation, attempt = self._latest[session]
        if record.event == "session.connection_lost":
            conversation.lost(attempt, idle=fields.get("rule") == "lost-idle")
        elif record.event in ("turn.sent", "turn.refused") and "cell" in fields:
            conversation.decided(attempt, str(fields["cell"]))


async def play(
    experiments: Sequence[Experiment], update: Callable[[Sequence[Conversation]], None]
) -> list[Conversation]:
    """Run all experiments at the same time, and call ``update`` now and then. They differ in policy
    and storage only.

    Raises:
        CommandError: no port can be listened on.
    """
    stopping = threading.Event()
    conversations = [Conversation(one, stopping) for one in experiments]
    pool = ThreadPoolExecutor(len(conversations))
    try:
        async with AsyncExitStack() as stack:

            async def listen(machine: Config | tp.Machine, **options: Any) -> Server:
                try:
                    return await stack.enter_async_context(serve(machine, host=_HOST, **options))
                except OSError as exc:
                    raise listen_error(_HOST, 0, exc) from None

            there = await listen(Upstream(experiments[0], conversations))
            url = UpstreamUrl.parse(f"ws://{_HOST}:{there.port}/v1/responses")
            ports: dict[str, int] = {}
            for policy in {one.policy.name: one.policy for one in experiments}.values():
                own = {
                    one.credential.split()[1]: one
                    for one in conversations
                    if one.experiment.policy is policy
                }
                config = Config(upstream=url, policy=policy)
                ports[policy.name] = (await listen(config, log=_Watcher(own))).port
            loop = asyncio.get_running_loop()
            runs = [
                loop.run_in_executor(pool, one.run, ports[one.experiment.policy.name])
                for one in conversations
            ]
            try:
                pending: set[asyncio.Future[None]] = set(runs)
                while pending:
                    _, pending = await asyncio.wait(pending, timeout=_INTERVAL)
                    update(conversations)
                for run in runs:
                    run.result()
            finally:
                # What else a client waits for, the servers abort, which stop now.
                stopping.set()
                for one in conversations:
                    one.wake()
    finally:
        pool.shutdown()
    return conversations
