"""A conversation that loses its connection: what its client sees, and how the bridge decides.

``python loss.py`` runs it with the default policy, ``python loss.py careless`` with a policy of
``policies.py``.
"""

import asyncio
import importlib
import json
import sys

import openai

from bridgecore import DEFAULT, Config, Policy, UpstreamUrl
from bridgecore.telemetry import Log
from bridgecore.testing import CloseWith, Emulator, Fault, Point
from bridgecore_asyncio import serve


def show(record: Log) -> None:
    """Print the lines of the decision log that have a cell, without time and session."""
    if record.event == "session.decision":
        line = json.loads(str(record.fields["line"]))
        if "event" in line and line["cells"]:
            parts = {name: line[name] for name in ("event", "rule", "cells", "effects")}
            print("bridge:", json.dumps(parts))


async def converse(client: openai.AsyncOpenAI) -> None:
    """Two turns; the second is sent again if the bridge says that it may be."""
    ask = client.with_options(max_retries=0).responses.create
    first = await ask(model="m", input="My name is Ada.", store=False)
    while True:
        try:
            again = await ask(model="m", input="And?", store=False, previous_response_id=first.id)
        except openai.InternalServerError as exc:
            print(f"client: {exc.status_code} {exc.code}")
        else:
            print(f"client: {again.output_text}")
            return


async def main(policy: Policy) -> None:
    """Have the upstream close the connection when it gets the second turn."""
    emulator = Emulator()
    emulator.faults.add(2, Fault(Point.BEFORE_CREATED, CloseWith(1012)))
    async with serve(emulator) as upstream:
        url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
        config = Config(upstream=url, policy=policy, decisions=True)
        async with serve(config, log=show) as bridge:
            base = f"http://127.0.0.1:{bridge.port}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key="any") as client:
                await converse(client)


if __name__ == "__main__":
    name = sys.argv[1] if sys.argv[1:] else ""
    asyncio.run(main(getattr(importlib.import_module("policies"), name) if name else DEFAULT))
