"""Runs client libraries through the bridge, unmodified, and writes down what came out.

Each program in ``programs/`` uses one library as its users do, for three turns: a question, one in
which the model calls a tool, and one that needs the first. The upstream is the emulator, which
closes its connection after each answer. A run passes if the client has the three answers *and* the
upstream has read the whole conversation, in order and nothing of it twice (``judge.py``).

Each program runs through each way in ``WAYS``, with and without streaming, and once more with an
upstream that keeps its connection, to see what is sent there. The results are written to
``docs/data/clients.json``, from which ``docs/generate.py`` makes the tables.

``python tests/clients/run.py`` installs the libraries, in the versions of ``pins/``, into folders
below ``--work``, and needs Node.js 20 or newer with npm. Programs reach nothing but this machine.
It is no part of ``make test``, which installs nothing and works without a network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, cast

import attrs

from bridgecore import UpstreamUrl
from bridgecore.testing import CreateFrame
from tests.clients.judge import complaint
from tests.clients.libraries import CLIENTS, PROXY, STREAMED, Client, Work
from tests.clients.ways import WAYS, Bench, Target, bench_of, lose
from tests.e2e.test_codex import Observed

ROOT: Final = Path(__file__).resolve().parent.parent.parent
DATA: Final = ROOT / "docs" / "data" / "clients.json"
PATIENCE: Final = 180.0  # seconds that one conversation may take, start of the program included
REASON: Final = 300  # characters of what a program wrote last that are kept, if it failed
PASSED: Final = "passed"


# ------------------------------------------------------------------ one run


@attrs.frozen
class Run:
    """What one run of a program has left: its answers, or why there are none; what the upstream
    received, and on how many connections."""

    said: list[str]
    failure: str
    requests: list[CreateFrame]
    connections: int
    seconds: float

    @property
    def answered(self) -> list[CreateFrame]:
        """The requests that ask for an answer: not those that only preload a context."""
        return [one for one in self.requests if one.body.get("generate") is not False]


def environment_of(work: Work, target: Target) -> dict[str, str]:
    """The environment of a program: no settings and keys of the user's, no other machine."""
    home = work.folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    nowhere = "http://127.0.0.1:9"  # the discard port: a proxy that does not exist
    inside = target.upstream is not None
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1,bridge.invalid",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")]) if inside else "",
        "CODEX": str(work.folder / "node" / "node_modules" / ".bin" / "codex"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks another machine for prices
        "OPENAI_AGENTS_DISABLE_TRACING": "1",  # traces go to another machine
    }


def ask(work: Work, client: Client, mode: str, target: Target, key: str) -> tuple[list[str], str]:
    """Run the program; its answers, and why it failed, if it did."""
    base_url = target.base_url
    if client.resources and target.upstream is not None:
        base_url = f"http://{UpstreamUrl.parse(target.upstream).authority}/v1"
    task = {
        "base_url": base_url,
        "key": key,
        "variant": client.variant,
        "stream": mode == STREAMED,
        "upstream": target.upstream,
    }
    try:
        done = subprocess.run(
            [*work.command(client), json.dumps(task)],
            env=environment_of(work, target),
            cwd=work.folder / "home",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"no end after {PATIENCE:g} s"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])["answers"], ""
    print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    written = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
    return [], written[-1].strip().replace(str(work.folder), "...")[:REASON]


_keys = itertools.count(1)


def run(work: Work, client: Client, mode: str, bench: Bench, target: Target) -> Run:
    """Run the program once. Its key is used for nothing else if the upstream takes any, so that the
    bridge knows nothing of other runs."""
    loses = target is not bench.kept
    lose(bench, loses=loses)
    opened = bench.opened if loses else bench.kept_opened
    known, before, begun = len(bench.emulator.requests), opened(), time.monotonic()
    said, failure = ask(work, client, mode, target, bench.key or f"sk-run-{next(_keys)}")
    requests = bench.emulator.requests[known:]
    return Run(said, failure, requests, opened() - before, time.monotonic() - begun)


def verdict(found: Run) -> str:
    """Whether it has passed, or why not."""
    return found.failure or complaint(found.answered, found.said) or PASSED


def verdict_of_lost(found: Run) -> str:
    """The same where each connection was lost after its answer: was it?"""
    said, requests = verdict(found), len(found.requests)
    if said == PASSED and found.connections != requests:
        return f"{found.connections} upstream connections for {requests} requests"
    return said


def spoken(bridge: Observed, conns: Iterable[int]) -> str:
    """The protocols in which turns came on ``conns``: HTTP, WebSocket or both."""
    found = set()
    for conn in conns:
        data = bytes(bridge.received[conn])
        if re.match(rb"GET (?s:.*?)\r\nupgrade: websocket\r\n", data, re.IGNORECASE):
            found.add("WebSocket")
        if re.search(rb"POST /\S*/responses HTTP/1\.1\r\n", data):
            found.add("HTTP")
    return " and ".join(sorted(found))


def last_turn(work: Work, client: Client, bench: Bench) -> tuple[str, dict[str, Any]]:
    """Run the program once with a connection that is kept: the verdict, and what its last request
    was, on its way to the bridge and from there to the upstream."""
    bridge = bench.bridge
    conns, logged = set(bridge.received), len(bridge.logs)
    found = run(work, client, client.modes[0], bench, bench.kept)
    said = verdict(found)
    protocol = spoken(bridge, bridge.received.keys() - conns)
    if said == PASSED and protocol != client.speaks:
        said = f"it spoke {protocol}"
    if said != PASSED:
        return said, {}
    sent = [log.fields for log in bridge.logs[logged:] if log.event == "turn.sent"][-1]
    size, saved = cast(int, sent["bytes"]), cast(int, sent["saved"])
    continues = "history" if sent["standing"] == "injected" else "id"
    if "conversation" in found.answered[-1].body:
        continues = "conversation"
    return said, {
        "continues": continues,
        "received": size + saved,
        "sent": size,
        # Behind the proxy the emulator sees requests of the proxy.
        "items": None if bench.key else len(found.answered[-1].input),
        "store": json.dumps(found.answered[-1].body.get("store", "left out")).strip('"'),
        "requests": len(found.requests),
        "connections": found.connections,
    }


# ------------------------------------------------------------------ all runs


def judge(
    work: Work, clients: Sequence[Client], ways: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of ``clients``, each with the name of its client."""
    for kind in dict.fromkeys(client.upstream for client in clients):
        with ExitStack() as stack:
            bench = bench_of(kind, work, ways, stack)
            for client in clients:
                if client.upstream == kind:
                    yield client.name, judge_one(work, client, bench)


def judge_one(work: Work, client: Client, bench: Bench) -> dict[str, Any]:
    """The results of one client."""
    outcomes: dict[str, Any] = {}
    rebuilt: int | None = None
    for way, target in bench.targets.items():
        if way == "transport" and client.inside:
            outcomes[way] = client.inside
            continue
        outcomes[way] = {}
        for mode in client.modes:
            found = run(work, client, mode, bench, target)
            outcomes[way][mode] = said = verdict_of_lost(found)
            if said == PASSED and not bench.key:  # the emulator sees the requests of the bridge
                rebuilt = len(found.answered[-1].raw)
            print(f"{client.name}; {way}; {mode}; {found.seconds:.1f} s: {said}", flush=True)
    said, figures = last_turn(work, client, bench)
    print(f"{client.name}; connection kept: {said} {figures}", flush=True)
    return {
        "packages": work.versions(client),
        "speaks": client.speaks,
        "ways": outcomes,
        "kept": said,
        "last_turn": {**figures, "rebuilt": rebuilt} if figures else {},
    }


def main() -> int:
    """Install, run and write; 0 if all that ran has passed."""
    parser = argparse.ArgumentParser(description="Run client libraries through the bridge.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "clients")
    parser.add_argument("--only", help="a regular expression for the names of clients")
    parser.add_argument("--way", action="append", choices=WAYS, help="repeatable; default: all")
    parser.add_argument("--dry", action="store_true", help="do not write the results")
    args = parser.parse_args()
    clients = [one for one in CLIENTS if not args.only or re.search(args.only, one.name)]
    work = Work(args.work.resolve())
    ways = args.way or list(WAYS)
    missing = {one for one in needed(clients) if not work.install(one)}
    good = not missing
    for client in clients:
        if missing & needed([client]) and not args.dry:
            write(client.name, not_run(work, client, ways, "it could not be installed"))
    ready = [client for client in clients if not missing & needed([client])]
    for name, result in judge(work, ready, ways):
        good = good and passed(result)
        if not args.dry:
            write(name, result)
    return 0 if good else 1


def needed(clients: Iterable[Client]) -> set[str]:
    """The environments that ``clients`` need."""
    found = set()
    for client in clients:
        found |= {client.environment} | ({PROXY} if client.upstream == PROXY else set())
    return found


def not_run(work: Work, client: Client, ways: Sequence[str], why: str) -> dict[str, Any]:
    """The results of a client that was not run."""
    return {
        "packages": work.versions(client),
        "speaks": client.speaks,
        "ways": dict.fromkeys(ways, why),
        "kept": why,
        "last_turn": {},
    }


def passed(result: dict[str, Any]) -> bool:
    """Whether every way that a client ran through has passed."""
    outcomes = [one for one in result["ways"].values() if isinstance(one, dict)]
    good = all(verdict == PASSED for one in outcomes for verdict in one.values())
    return good and result["kept"] == PASSED


def merged(earlier: dict[str, Any] | None, result: dict[str, Any]) -> dict[str, Any]:
    """``result`` with the outcomes of the ways that were not run again, in the order of ``WAYS``.
    Those of other versions are dropped: the table names one."""
    if earlier is None or earlier["packages"] != result["packages"]:
        return result
    ways = {**earlier["ways"], **result["ways"]}
    return {**result, "ways": {way: ways[way] for way in WAYS if way in ways}}


def write(name: str, result: dict[str, Any]) -> None:
    """Keep the results of one client in place of its earlier ones, in the order of ``CLIENTS``."""
    known = json.loads(DATA.read_text("utf-8"))["clients"] if DATA.exists() else {}
    known[name] = merged(known.get(name), result)
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    written = {
        "python": platform.python_version(),
        "node": node.stdout.strip().removeprefix("v"),
        "clients": {client.name: known[client.name] for client in CLIENTS if client.name in known},
    }
    DATA.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
