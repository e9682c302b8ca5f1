"""Memory of a replica while its store fills: it is a cache over the store, and stays within bounds.

What belongs here: many conversations of one turn each, the memory of the process on the way, and a
look whether the first ones can still be continued.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import attrs

from benchmarks.replicas.client import Client
from benchmarks.replicas.costs import Replica, replicas
from benchmarks.throughput import machine
from benchmarks.throughput.participants import Bench
from bridgecore.config import Config

AT_ONCE = 64
MIB = 1 << 20
# Small bounds, which are reached long before the first look. What grows after that are the ids that
# are remembered, whose bound is no setting of the command.
_BOUNDS = ("--transcript-bytes", str(8 * MIB), "--max-sessions", "500")
_IDS = (attrs.fields(Config).alias_bytes.default or 0) / MIB
_DELTAS = 5


def bounded(bench: Bench, conversations: int) -> bool:
    """Whether memory grows by no more than its bounds from a fifth of ``conversations`` to all."""
    with tempfile.TemporaryDirectory() as name:
        store = f"sqlite:{name}/conversations.db"
        with replicas(bench, 1, store, Path(name), _BOUNDS) as (replica,):
            return asyncio.run(_fill(replica, conversations))


async def _fill(replica: Replica, conversations: int) -> bool:
    clients = [Client(number) for number in range(AT_ONCE)]
    first: list[tuple[Client, bytes]] = []
    sizes: list[float] = []

    async def begin(client: Client, count: int) -> None:
        for _ in range(count):
            client.last = b""
            await client.turn(replica.port, _DELTAS)
            if len(first) < AT_ONCE:
                first.append((client, client.last))

    print(f"\nmemory of a replica, {conversations:,} conversations in its store")
    for part in range(1, 6):
        each = conversations // 5 // AT_ONCE
        await asyncio.gather(*(begin(client, each) for client in clients))
        sizes.append(machine.resident_bytes(replica.process.pid) / MIB)
        print(f"  {part * each * AT_ONCE:>9,} conversations: {sizes[-1]:.0f} MiB", file=sys.stderr)
    for client, last in first:
        client.last = last
        await client.turn(replica.port, _DELTAS)
    for client in clients:
        await client.close()
    good = sizes[-1] - sizes[0] <= _IDS
    print(f"  the first {len(first)} can be continued")
    verdict = "reached" if good else "MISSED "
    print(f"  {verdict} {sizes[0]:.0f} MiB at a fifth, {sizes[-1]:.0f} at the end,", end=" ")
    print(f"at most {_IDS:.0f} more")
    return good
