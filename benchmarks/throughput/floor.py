"""What the floors written in Python share: serving, and dialling the upstream.

What belongs here: what is done once for a process or a connection. What is done for each event is
what a floor measures, so it stays in the file of that floor, where it can be read at a glance.

A floor is a script, ``python PATH UPSTREAM_PORT``, for a Python that can import ``benchmarks``, as
that of ``.venv`` can. It prints the address that it listens on.
"""

from __future__ import annotations

import asyncio
import sys


def dial(upstream: asyncio.Protocol) -> asyncio.Task[object]:
    """Connect ``upstream`` to the upstream. Keep the task: the loop has only a weak reference."""
    loop = asyncio.get_running_loop()
    port = int(sys.argv[1])
    return loop.create_task(loop.create_connection(lambda: upstream, "127.0.0.1", port))


def run(client: type[asyncio.Protocol]) -> None:
    """Serve until the process is ended. ``client``: reads one connection of a client."""
    asyncio.run(_serve(client))


async def _serve(client: type[asyncio.Protocol]) -> None:
    loop = asyncio.get_running_loop()
    # All clients of a case may connect at once, before the first is accepted.
    server = await loop.create_server(client, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()
