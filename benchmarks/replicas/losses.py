"""What clients notice when the owner of their conversations is killed, or all are replaced.

What belongs here: crowds of conversations over three real processes behind a round robin, with an
emulator that records every turn. Each attempt of a client has a text of its own, so a turn that a
bridge sends twice is seen. The client retries as OpenAI's libraries do: twice, after the time that
the answer names.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import openai

import bridgecore_asyncio
from benchmarks.replicas.costs import Replica, serving
from bridgecore.testing import Emulator
from tests.stores import servers

RETRIES = 2  # of OpenAI's libraries
# Leases that are over soon, so that twenty of them take minutes and not an hour.
_LEASE_SECONDS = 5
_SHORT = ("--lease-ttl", str(_LEASE_SECONDS), "--lease-margin", "1", "--store-timeout", "1")


@dataclass
class Crowd:
    """What the clients have seen."""

    running: list[Replica]
    turns: int = 0  # completed
    enough: int = 0  # turns at which ``reached`` is set
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    broken: int = 0  # streams that ended in the middle
    retried: Counter[int] = field(default_factory=Counter)  # statuses that a retry cleared
    errors: list[str] = field(default_factory=list)  # that reached the application
    wrong: list[str] = field(default_factory=list)  # contexts that are not the client's
    over: bool = False
    _next: itertools.count[int] = field(default_factory=itertools.count)

    def port(self) -> int:
        """That of the next replica."""
        return self.running[next(self._next) % len(self.running)].port


class StreamBrokenError(Exception):
    """The stream ended before its response was complete."""


class LostError(Exception):
    """A turn failed in spite of the library's retries. The text has the answers to all attempts."""


async def converse(crowd: Crowd, client: openai.AsyncOpenAI, emulator: Emulator, name: int) -> None:
    """One conversation, until the crowd is over."""
    last: str | None = None
    believed: list[str] = []
    for turn in itertools.count():
        if crowd.over:
            return
        try:
            response, text = await one_turn(crowd, client, f"c{name} t{turn}", last)
        except StreamBrokenError:
            crowd.broken += 1  # the application sends its turn again
            continue
        except LostError as error:
            crowd.errors.append(f"c{name} t{turn}: {error}")
            continue
        believed = [*believed, text]
        shown = [said for said in context(emulator, response) if said.startswith("c")]
        if shown != believed:
            crowd.wrong.append(f"c{name} t{turn}: {shown[-3:]} for {believed[-3:]}")
        last = response
        crowd.turns += 1
        if crowd.turns >= crowd.enough:
            crowd.reached.set()


async def one_turn(
    crowd: Crowd, client: openai.AsyncOpenAI, text: str, last: str | None
) -> tuple[str, str]:
    """The id of the response to a turn, and the text of the attempt that got it."""
    trail: list[str] = []
    for tries in itertools.count():
        attempt = len(trail)
        said = f"{text} a{tries} {secrets.token_hex(4)}"
        port = crowd.port()
        try:
            stream = await client.with_options(
                base_url=f"http://127.0.0.1:{port}/v1"
            ).responses.create(
                model="m",
                input=said,
                store=False,
                stream=True,
                extra_body={} if last is None else {"previous_response_id": last},
            )
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx.ConnectError):
                continue  # nothing was sent: a balancer takes the next replica
            trail.append("reset")
            if attempt >= RETRIES:
                raise StreamBrokenError(", ".join(trail)) from None
            # The load: a client library waits about this long before it tries again.
            await asyncio.sleep(0.5)
            continue
        except openai.APIStatusError as error:
            wait = error.response.headers.get("retry-after", "1")
            words = str(error.message)[:60]
            trail.append(f"{error.status_code} {words!r} retry-after {wait}")
            if attempt >= RETRIES or error.status_code < 500:
                raise LostError(", ".join(trail)) from None
            crowd.retried[error.status_code] += 1
            await asyncio.sleep(float(wait))  # the load: a client that obeys Retry-After
            continue
        response = ""
        try:
            async with stream:
                async for event in stream:
                    if event.type == "response.completed":
                        response = event.response.id
        except (httpx.TransportError, openai.APIError) as error:
            raise StreamBrokenError from error
        if not response:
            raise StreamBrokenError
        return response, said
    raise AssertionError("an endless loop has ended")


def context(emulator: Emulator, response: str) -> list[str]:
    """The texts of users in the context of a response, as the upstream had it."""
    turn = next(turn for turn in reversed(emulator.turns) if turn.response_id == response)
    found = []
    for item in turn.request.context:
        content = item.get("content", "")
        parts = [content] if isinstance(content, str) else [part["text"] for part in content]
        found += parts if item.get("role") == "user" else []
    return found


def sent_twice(emulator: Emulator) -> int:
    """Attempts whose text the upstream got as new input more than once."""
    new: Counter[str] = Counter()
    for turn in emulator.turns:
        users = [item for item in turn.request.context if item.get("role") == "user"]
        if users:
            new[str(users[-1]["content"])] += 1
    return sum(count > 1 for count in new.values())


@contextlib.asynccontextmanager
async def crowded(
    conversations: int,
) -> AsyncIterator[tuple[Crowd, Emulator, list[str], contextlib.ExitStack]]:
    """A crowd over three replicas, whose clients are running."""
    emulator = Emulator()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(servers.temporary_folder())
        database = stack.enter_context(servers.postgresql())
        options = options_of(folder, None if database is None else database.url)
        async with bridgecore_asyncio.serve(emulator) as upstream:
            url = f"ws://127.0.0.1:{upstream.port}/v1/responses"
            command = [url, *options]
            running = [
                await loop.run_in_executor(None, stack.enter_context, serving(url, options, None))
                for _ in range(3)
            ]
            crowd = Crowd(running)
            async with (
                openai.AsyncOpenAI(api_key="sk-1", max_retries=0, timeout=120) as client,
                asyncio.TaskGroup() as tasks,
            ):
                for name in range(conversations):
                    tasks.create_task(converse(crowd, client, emulator, name))
                yield crowd, emulator, command, stack
                crowd.over = True


def options_of(folder: Path, store: str | None) -> list[str]:
    """The flags of all replicas."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32), encoding="utf-8")
    where = store or f"sqlite:{folder}/conversations.db"
    return [
        "--store",
        where,
        "--cluster-keys",
        str(keys),
        "--advertise",
        "http://127.0.0.1:0",
        *_SHORT,
    ]


async def start_another(crowd: Crowd, command: list[str], stack: contextlib.ExitStack) -> None:
    """Start a replica."""
    url, *options = command
    loop = asyncio.get_running_loop()
    fresh = await loop.run_in_executor(None, stack.enter_context, serving(url, options, None))
    crowd.running.append(fresh)


async def settle(crowd: Crowd, turns: int) -> None:
    """Wait until the crowd has completed so many more turns."""
    crowd.enough = crowd.turns + turns
    crowd.reached.clear()
    await crowd.reached.wait()


async def killed(conversations: int, kills: int) -> bool:
    """Kill a replica at random, again and again; whether no conversation was lost."""
    chance = random.Random(7)
    async with crowded(conversations) as (crowd, emulator, command, stack):
        for number in range(kills):
            await settle(crowd, conversations)
            # A balancer sees at once that the process is gone, and uses its connections no more.
            crowd.running.pop(chance.randrange(3)).process.send_signal(signal.SIGKILL)
            await start_another(crowd, command, stack)
            print(f"killed {number + 1} of {kills}, {crowd.turns} turns", file=sys.stderr)
            # One loss at a time: a turn that meets two of them may have no retry left.
            await asyncio.sleep(2 * _LEASE_SECONDS + 2)
        await settle(crowd, 2 * conversations)
    return report(f"{conversations} conversations, {kills} replicas killed", crowd, emulator)


async def rolling(conversations: int) -> bool:
    """Replace all replicas, one after the other, in order; whether the application saw nothing."""
    async with crowded(conversations) as (crowd, emulator, command, stack):
        loop = asyncio.get_running_loop()
        for place in (0, 0, 0):  # the oldest
            await settle(crowd, conversations)
            leaving = crowd.running[place]
            leaving.process.send_signal(signal.SIGTERM)
            await loop.run_in_executor(None, leaving.process.wait, 60)
            crowd.running.remove(leaving)
            await start_another(crowd, command, stack)
        await settle(crowd, conversations)
    good = report(f"{conversations} conversations, rolling restart of 3 replicas", crowd, emulator)
    return good and not crowd.broken


def report(title: str, crowd: Crowd, emulator: Emulator) -> bool:
    """Print what was seen; whether nothing was lost and nothing sent twice."""
    twice = sent_twice(emulator)
    print(f"\n{title}")
    print(f"  {crowd.turns} turns completed, {crowd.broken} streams broken by a kill")
    print(f"  statuses that a retry of the library cleared: {dict(crowd.retried) or 'none'}")
    print(f"  errors that reached the application: {len(crowd.errors)} {crowd.errors[:5]}")
    print(f"  turns with another context than their client's: {len(crowd.wrong)} {crowd.wrong[:3]}")
    print(f"  attempts that were sent upstream twice: {twice}")
    return not crowd.errors and not crowd.wrong and not twice
