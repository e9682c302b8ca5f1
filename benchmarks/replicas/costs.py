"""CPU time and latency of a turn: with each store, at its owner, forwarded, and over two replicas.

What belongs here: starting replicas on a core of their own, and one function for each comparison.
All figures of one round are measured within seconds of each other, in an order that changes.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.replicas.client import Client
from benchmarks.throughput import machine
from benchmarks.throughput.participants import ROOT, Bench, MeasurementError
from tests.stores import servers

_COMMAND = "import sys; from bridgecore_cli.entry import run; sys.exit(run())"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
# After which a process has become idle: its CPU time is exact only then (``machine.cpu_ns``).
_SETTLE_SECONDS = 0.2
CLIENTS = 16
FULL = 32  # clients that keep a replica busy all the time


@dataclass
class Replica:
    """A running ``bridgecore serve``."""

    process: subprocess.Popen[str]
    port: int


@dataclass(frozen=True)
class Cost:
    """Figures of a run. ``cpu``: microseconds of a turn, over all replicas; ``first``, ``end``:
    medians in milliseconds, of one client alone."""

    cpu: float
    first: float
    end: float


@contextmanager
def replicas(
    bench: Bench, count: int, store: str | None, folder: Path, flags: Sequence[str] = ()
) -> Iterator[list[Replica]]:
    """``count`` replicas over ``store``; None: with ``store = memory``. The first one has the core
    of bridges, a second one that of everything else: two on one core would take turns."""
    options = [*flags]
    if store is not None:
        keys = folder / "keys"
        if not keys.exists():
            keys.touch(mode=0o600)
            keys.write_text(secrets.token_hex(32), encoding="utf-8")
        options += ["--store", store, "--cluster-keys", str(keys)]
        options += ["--advertise", "http://127.0.0.1:0"]
    url = f"ws://127.0.0.1:{bench.upstream}/v1/responses"
    with ExitStack() as stack:
        cores = (bench.cores.bridge, bench.cores.others)
        yield [stack.enter_context(serving(url, options, core)) for core in cores[:count]]


@contextmanager
def serving(upstream: str, options: Sequence[str], core: int | None) -> Iterator[Replica]:
    """One ``bridgecore serve``, pinned to ``core``; killed at the end."""
    command = [sys.executable, "-c", _COMMAND, "serve", "--port", "0", "--upstream", upstream]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGECORE_")}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "adapters")))
    with tempfile.TemporaryFile("w+") as errors:
        with machine.pinned(core):
            process = subprocess.Popen(
                [*command, *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        try:
            assert process.stdout is not None
            found = _ADDRESS.search(process.stdout.readline())
            if found is None:
                errors.seek(0)
                raise MeasurementError(f"a replica did not start: {errors.read()[-500:]}")
            yield Replica(process, int(found[1]))
        finally:
            process.kill()
            process.communicate()


def measure(
    bench: Bench,
    running: Sequence[Replica],
    at: int,
    turns: int,
    deltas: int,
    *,
    count: int = CLIENTS,
    beside: bool = False,
) -> Cost:
    """The cost of turns at ``running[at]`` of conversations that begin at the first replica.

    ``count``: of the clients. ``beside``: every second one begins and goes on at the second replica
    instead.
    """
    return asyncio.run(_measure(bench, running, at, turns, deltas, count, beside=beside))


async def _measure(
    bench: Bench,
    running: Sequence[Replica],
    at: int,
    turns: int,
    deltas: int,
    count: int,
    *,
    beside: bool,
) -> Cost:
    clients = [Client(number) for number in range(count)]

    async def several(client: Client, times: int, where: int) -> None:
        if beside:
            where = client.number % 2
        for _ in range(times):
            await client.turn(running[where].port, deltas)

    await asyncio.gather(*(several(client, 1, 0) for client in clients))
    await asyncio.gather(*(several(client, 2, at) for client in clients))  # all is opened
    before = _cpu(running)
    await asyncio.gather(*(several(client, turns, at) for client in clients))
    cpu = (_cpu(running) - before) / (turns * len(clients)) / 1000
    alone = Client(len(clients))
    await several(alone, 1, 0)
    await several(alone, 3, at)
    alone.first.clear()
    alone.end.clear()
    with bench.giving_way():
        await several(alone, 4 * turns, at)
    for client in (*clients, alone):
        await client.close()
    return Cost(cpu, 1000 * median(alone.first), 1000 * median(alone.end))


def _cpu(running: Sequence[Replica]) -> int:
    # Nothing reports when a process has become idle, so this is no wait that an event could end.
    time.sleep(_SETTLE_SECONDS)
    return sum(machine.cpu_ns(replica.process.pid) for replica in running)


def one_round(bench: Bench, turns: int, deltas: int) -> dict[str, Cost]:
    """All comparisons, once, in any order: memory, SQLite, PostgreSQL, forwarded, and two replicas
    side by side."""
    found: dict[str, Cost] = {}
    with servers.temporary_folder() as folder, servers.postgresql() as database:

        def with_memory() -> None:
            with replicas(bench, 1, None, folder) as running:
                found["memory"] = measure(bench, running, 0, turns, deltas)

        def with_sqlite() -> None:
            with replicas(bench, 1, f"sqlite:{folder}/one.db", folder) as running:
                found["sqlite"] = measure(bench, running, 0, turns, deltas)

        def with_postgresql() -> None:
            if database is not None:
                with replicas(bench, 1, database.url, folder) as running:
                    found["postgresql"] = measure(bench, running, 0, turns, deltas)

        def two() -> None:
            store = f"sqlite:{folder}/two.db" if database is None else database.url
            with replicas(bench, 2, store, folder) as running:
                found["owner"] = measure(bench, running, 0, turns, deltas)
                found["forwarded"] = measure(bench, running, 1, turns, deltas)
                # What replicas can carry shows when each has as much to do as it can.
                found["full"] = measure(bench, running, 0, turns, deltas, count=FULL)
                found["two full"] = measure(
                    bench, running, 0, turns, deltas, count=2 * FULL, beside=True
                )

        for each in random.sample((with_memory, with_sqlite, with_postgresql, two), 4):
            each()
    return found
