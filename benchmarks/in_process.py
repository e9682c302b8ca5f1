"""Measures a bridge in the client's process against the same bridge behind ``bridgecore serve``.

What belongs here: the processor time that a turn takes with ``bridgecore_httpx``, of the client and
the bridge together, as a ratio to the same client with a server beside it. In either case the
bridge keeps transcripts and writes no log.

* clients: openai-python, and httpx2 alone, whose own cost hides less of the difference;
* answers: a stream whose events come one by one, one whose events come together, and JSON. There is
  no promise for the second one: what the SDK does with 100 events takes ten times as long as all
  else, and no real model answers so.

Run ``python benchmarks/in_process.py``; it exits with 1 if the median of a promised ratio is above
``MAX_RATIO``. Each round measures both ways of one case in turn, and medians are of the ratios of
rounds, so that other load makes both slower alike. The emulator has a process of its own, which is
not counted.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from statistics import median
from typing import IO, Any, cast

import attrs
import httpx2
import openai

import bridgecore_asyncio
from bridgecore import NS_PER_SECOND, Config, UpstreamUrl
from bridgecore.testing import Emulator
from bridgecore_httpx import BridgeTransport

MAX_RATIO = 0.9
ROUNDS = 15
TURNS = 20  # of a measurement, in one conversation
EVENTS = "repeat 100"  # text deltas of a turn
KEY = "sk-a-credential-of-a-client"
_COMMAND = "import sys; from bridgecore_cli.entry import run; sys.exit(run())"
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")

Turn = Callable[[str | None], Awaitable[str]]


@attrs.frozen
class Case:
    """One kind of turn. ``interval``: between two deltas, ns; ``promised``: its ratio counts."""

    name: str
    stream: bool
    interval: int = 0
    promised: bool = True


CASES = [
    Case("a stream, event by event", stream=True, interval=NS_PER_SECOND // 1000),
    Case("a stream, in one piece", stream=True, promised=False),
    Case("JSON", stream=False),
]


# ------------------------------------------------------------------ clients


def of_openai(case: Case, http: httpx2.AsyncClient) -> Turn:
    """A turn of openai-python; returns the id of the response."""
    sdk = openai.AsyncOpenAI(api_key=KEY, base_url="http://bridge/v1", http_client=http)
    ask: Any = sdk.responses.create

    async def turn(before: str | None) -> str:
        asked = {"model": "m", "input": EVENTS, "previous_response_id": before}
        if not case.stream:
            return cast(str, (await ask(**asked)).id)
        ended = ""
        async for event in await ask(**asked, stream=True):
            if event.type == "response.completed":
                ended = event.response.id
        assert ended, "the stream has no end"
        return ended

    return turn


def of_httpx(case: Case, http: httpx2.AsyncClient) -> Turn:
    """The same of httpx2 alone, without parsing the events."""

    async def turn(before: str | None) -> str:
        body = {"model": "m", "input": EVENTS, "stream": case.stream}
        if before is not None:
            body["previous_response_id"] = before
        headers = {"authorization": f"Bearer {KEY}"}
        url = "http://bridge/v1/responses"
        async with http.stream("POST", url, json=body, headers=headers) as response:
            last = b""
            async for part in response.aiter_raw():
                last = last + part if not case.stream else part
            assert response.status_code == 200, response
        ids: list[bytes] = re.findall(rb'"id": ?"(resp_\w+)"', last)
        return ids[-1].decode()

    return turn


CLIENTS: dict[str, Callable[[Case, httpx2.AsyncClient], Turn]] = {
    "openai": of_openai,
    "httpx2": of_httpx,
}


# ------------------------------------------------------------------ the two ways


@asynccontextmanager
async def within(upstream: int) -> AsyncIterator[tuple[httpx2.AsyncClient, Callable[[], int]]]:
    """A client with the bridge in this process, and a clock of the time taken, ns."""
    url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream}/v1/responses")
    transport = BridgeTransport(Config(upstream=url))
    async with httpx2.AsyncClient(transport=transport, timeout=60) as http:
        yield http, time.process_time_ns


@asynccontextmanager
async def beside(upstream: int) -> AsyncIterator[tuple[httpx2.AsyncClient, Callable[[], int]]]:
    """The same with the bridge in a process of its own."""
    url = f"ws://127.0.0.1:{upstream}/v1/responses"
    quiet = ("--port", "0", "--upstream", url, "--log-level", "error")
    with child("-c", _COMMAND, "serve", *quiet) as (pid, port):

        async def to_bridge(request: httpx2.Request) -> None:
            request.url = request.url.copy_with(host="127.0.0.1", port=port)

        hooks: Any = {"request": [to_bridge]}
        async with httpx2.AsyncClient(timeout=60, event_hooks=hooks) as http:
            yield http, lambda: time.process_time_ns() + taken_by(pid)


def taken_by(pid: int) -> int:
    """The processor time of another process, ns."""
    with open(f"/proc/{pid}/schedstat") as file:  # its main thread; the others do nothing here
        return int(file.read().split()[0])


@contextmanager
def child(*command: str) -> Iterator[tuple[int, int]]:
    """Python with a ``command`` that prints where it listens; its pid and port."""
    popen = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = cast(IO[str], popen.stdout).readline()
        found = _PORT.search(line)
        assert found, f"{command}: {line!r}"
        yield popen.pid, int(found[1])
    finally:
        popen.kill()
        popen.communicate()


async def emulate(interval: int) -> None:
    """The emulator, until it is killed."""
    emulator = Emulator()
    emulator.delta_interval = interval
    async with bridgecore_asyncio.serve(emulator) as server:
        print(f"http://127.0.0.1:{server.port}", flush=True)
        await server.wait_stopped()


@attrs.define
class Way:
    """A conversation in one of the two ways."""

    turn: Turn
    clock: Callable[[], int]
    before: str | None = None

    async def measure(self, turns: int = TURNS) -> float:
        """The processor time of a turn, ms."""
        start = self.clock()
        for _ in range(turns):
            self.before = await self.turn(self.before)
        return (self.clock() - start) / turns / 1e6


async def measure(case: Case, client: str, upstream: int, rounds: int) -> float:
    """Print the figures of one case; its ratio."""
    kind = CLIENTS[client]
    async with within(upstream) as (inner, inner_clock), beside(upstream) as (outer, outer_clock):
        ways = [Way(kind(case, inner), inner_clock), Way(kind(case, outer), outer_clock)]
        for way in ways:
            await way.measure(5)  # imports, caches, the connection
        pairs = [[await way.measure() for way in ways] for _ in range(rounds)]
    ratio = median(inside / outside for inside, outside in pairs)
    inside, outside = (median(column) for column in zip(*pairs, strict=True))
    print(
        f"{client}, {case.name}: {inside:.2f} ms within, {outside:.2f} ms beside, "
        f"ratio {ratio:.2f}",
        flush=True,
    )
    return ratio


def main(rounds: int = ROUNDS) -> int:
    """Measure all cases; 1 if the goal is missed."""
    worst = 0.0
    for case in CASES:
        with child(__file__, "emulate", str(case.interval)) as (_, upstream):
            for client in CLIENTS:
                ratio = asyncio.run(measure(case, client, upstream, rounds))
                worst = max(worst, ratio if case.promised else 0.0)
    print(f"worst {worst:.2f}, at most {MAX_RATIO}: {'held' if worst <= MAX_RATIO else 'missed'}")
    return int(worst > MAX_RATIO)


if __name__ == "__main__":
    if sys.argv[1:2] == ["emulate"]:
        asyncio.run(emulate(int(sys.argv[2])))
    else:
        os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
        sys.exit(main(*map(int, sys.argv[1:])))
