"""Runs client libraries through the bridge, unmodified, and writes down what came out.

Each program in ``programs/`` uses one library as its users do, for three turns: a question, one in
which the model calls a tool, and one that needs the first. The upstream is the emulator, which
closes its connection after each answer. A run passes if the client has the three answers *and* the
upstream has read the whole conversation, in order and nothing of it twice (``judge.py``).

Each program runs through each way in ``WAYS``, with and without streaming, and once more with an
upstream that keeps its connection, to see what is sent there. The results are written to
``docs/data/clients.json``, from which ``docs/generate.py`` makes the tables.

``python tests/clients/run.py`` installs the libraries, in the versions of ``pins/``, into folders
below ``--work``, and needs Node.js 20 or newer with npm. Programs reach nothing but this machine. It is
no part of ``make test``: that installs nothing, and works without a network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from bridgecore import NS_PER_SECOND, Config, UpstreamUrl
from bridgecore.testing import EVERY, CloseWith, CreateFrame, Emulator, Fault, Point
from bridgecore_asgi import BridgeApp
from tests.asgi.conftest import serving
from tests.clients.judge import ENDS, PROGRAMS, answer, complaint
from tests.e2e.conftest import Upstream, emulating, running

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PINS: Final = Path(__file__).resolve().parent / "pins"
DATA: Final = ROOT / "docs" / "data" / "clients.json"
PATIENCE: Final = 180.0  # seconds that one conversation may take, start of the program included
INSTALLING: Final = 1800.0  # seconds for one set of libraries
REASON: Final = 300  # characters of what a program wrote last that are kept, if it failed

STREAMED, WHOLE = "streamed", "whole"
PASSED: Final = "passed"


# ------------------------------------------------------------------ the clients


@attrs.frozen
class Client:
    """One way of using one library.

    Attributes:
        name: as it is shown.
        program: its file in ``programs/``.
        variant: what the program calls this way of using the library.
        environment: where it is installed: a file in ``pins/``, without its suffix.
        packages: whose versions are shown.
        modes: streamed, whole or both; a WebSocket has no other answers than streamed ones.
        inside: why the bridge cannot be its transport; empty if it can.
    """

    name: str
    program: str
    variant: str = ""
    environment: str = "python"
    packages: tuple[str, ...] = ()
    modes: tuple[str, ...] = (STREAMED, WHOLE)
    inside: str = ""


SOCKET: Final = "it speaks WebSocket, and the transport is for HTTP"
NODE: Final = "the transport is for clients in Python"
ONE: Final = (STREAMED,)


def _python(name: str, variant: str, **more: Any) -> Client:
    return Client(f"openai-python: {name}", "openai_python.py", variant, packages=("openai",), **more)


def _node(name: str, program: str, variant: str, *packages: str, **more: Any) -> Client:
    more = {"environment": "node", "inside": NODE, **more}
    return Client(name, program, variant, packages=packages, **more)


def _agents(name: str, variant: str, **more: Any) -> Client:
    packages = ("openai-agents", "openai")
    return Client(f"openai-agents: {name}", "openai_agents.py", variant, packages=packages, **more)


def _langchain(name: str, variant: str) -> Client:
    packages = ("langchain", "langchain-openai", "openai")
    return Client(f"LangChain: {name}", "langchain_chat.py", variant, packages=packages)


def _pydantic(name: str, variant: str, **more: Any) -> Client:
    packages = ("pydantic-ai-slim", "openai")
    return Client(f"pydantic-ai: {name}", "pydantic_agent.py", variant, packages=packages, **more)


def _llama_index(name: str, variant: str) -> Client:
    packages = ("llama-index-core", "llama-index-llms-openai", "openai")
    return Client(
        f"LlamaIndex: {name}", "llama_index_chat.py", variant, "llama_index", packages
    )


def _litellm(name: str, variant: str) -> Client:
    return Client(f"LiteLLM: {name}", "litellm_client.py", variant, packages=("litellm",))


def _codex(name: str, variant: str) -> Client:
    inside = "it is a program of its own"
    return Client(
        f"Codex: {name}", "codex.py", variant, "node", ("@openai/codex",), ONE, inside=inside
    )


CLIENTS: Final = (
    _python("OpenAI", "sync"),
    _python("AsyncOpenAI", "async"),
    _python("responses.stream, responses.parse", "helpers"),
    _python("responses.connect", "connect", modes=ONE, inside=SOCKET),
    _python("responses.connect, async", "connect-async", modes=ONE, inside=SOCKET),
    _node("openai-node: responses.create", "openai_node.mjs", "http", "openai"),
    _node("openai-node: ResponsesWS", "openai_node.mjs", "ws", "openai", "ws", modes=ONE),
    _agents("auto_previous_response_id", "id"),
    _agents("SQLiteSession", "session"),
    _agents("OpenAIResponsesCompactionSession", "compaction"),
    _agents("auto_previous_response_id, WebSocket", "id-ws", inside=SOCKET),
    _agents("SQLiteSession, WebSocket", "session-ws", inside=SOCKET),
    _codex("HTTP", "http"),
    _codex("WebSocket", "websocket"),
    _node("Vercel AI SDK: messages", "ai_sdk.mjs", "history", "ai", "@ai-sdk/openai"),
    _node("Vercel AI SDK: previousResponseId", "ai_sdk.mjs", "id", "ai", "@ai-sdk/openai"),
    _langchain("messages", "history"),
    _langchain("use_previous_response_id", "id"),
    _pydantic("message_history", "history"),
    _pydantic("openai_previous_response_id", "id"),
    _pydantic("openai_transport", "websocket", inside=SOCKET),
    _llama_index("FunctionAgent", "history"),
    _llama_index("track_previous_responses", "id"),
    _litellm("input", "history"),
    _litellm("previous_response_id", "id"),
)


# ------------------------------------------------------------------ installing


@attrs.frozen
class Work:
    """The folder in which libraries are installed."""

    folder: Path

    def command(self, client: Client) -> list[str]:
        """The command that runs the program of ``client``, without its task."""
        home = self.folder / client.environment
        if client.program.endswith(".mjs"):
            return ["node", str(home / client.program)]
        python = sys.executable if client.environment == "node" else str(home / "bin" / "python")
        return [python, str(PROGRAMS / client.program)]

    def versions(self, client: Client) -> dict[str, str]:
        """The versions of its packages, which are those of the pins."""
        if client.environment == "node":
            pins = json.loads((PINS / "node" / "package.json").read_text("utf-8"))["dependencies"]
        else:
            text = (PINS / f"{client.environment}.txt").read_text("utf-8")
            pins = dict(line.split("==") for line in text.splitlines())
        return {name: pins[name] for name in client.packages}

    def install(self, environment: str) -> None:
        """Install a set of libraries, unless these pins are installed already."""
        node = environment == "node"
        source = PINS / "node" / "package.json" if node else PINS / f"{environment}.txt"
        home = self.folder / environment
        stamp, pins = home / "installed", source.read_text("utf-8")
        if not stamp.exists() or stamp.read_text("utf-8") != pins:
            print(f"installing {environment} ...", flush=True)
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            if node:
                shutil.copy(source, home)
                quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")
                _do("npm", "install", *quiet, cwd=home)
            else:
                _do(sys.executable, "-m", "venv", str(home))
                pip = (str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
                _do(*pip, "install", "--quiet", "--no-deps", "--requirement", str(source))
            stamp.write_text(pins, encoding="utf-8")
        if node:  # a module finds its packages in folders above its own
            for file in [*PROGRAMS.glob("*.mjs"), *PROGRAMS.glob("*.json")]:
                shutil.copy(file, home)


def _do(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, timeout=INSTALLING)


# ------------------------------------------------------------------ the ways through the bridge


@attrs.frozen
class Target:
    """Where a program sends its turns. ``upstream``: if the bridge is to run in the program.
    ``log``: what the bridge has logged, where that is read."""

    base_url: str
    upstream: str | None = None
    log: Callable[[], str] = lambda: ""


Way: TypeAlias = Callable[[Upstream], AbstractContextManager[Target]]


def _at(port: int, log: Callable[[], str] = lambda: "") -> Target:
    return Target(f"http://127.0.0.1:{port}/v1", log=log)


def _serve(*arguments: str) -> Way:
    @contextmanager
    def way(upstream: Upstream) -> Iterator[Target]:
        settings = ("--upstream", upstream.url, "--websocket", "true", *arguments)
        with running(*settings) as process:
            yield _at(process.port, process.logged)

    return way


def _asgi(kind: str) -> Way:
    @contextmanager
    def way(upstream: Upstream) -> Iterator[Target]:
        config = Config(
            upstream=UpstreamUrl.parse(upstream.url),
            websocket=True,
            drain_timeout=5 * NS_PER_SECOND,
        )
        with serving(kind, BridgeApp(config)) as server:
            yield _at(server.port)

    return way


@contextmanager
def _transport(upstream: Upstream) -> Iterator[Target]:
    # Nothing listens at this address: turns go through the transport, and there is nothing else.
    yield Target("http://bridge.invalid/v1", upstream.url)


WAYS: Final[dict[str, Way]] = {
    "serve": _serve(),
    "serve, trio": _serve("--backend", "trio"),
    "uvicorn": _asgi("uvicorn"),
    "hypercorn": _asgi("hypercorn"),
    "transport": _transport,
}
KEPT: Final = _serve("--log-level", "debug")


# ------------------------------------------------------------------ one run


@attrs.frozen
class Run:
    """What one run of a program has left: its answers, or why there are none; and what the upstream
    received."""

    said: list[str]
    failure: str
    requests: list[CreateFrame]
    seconds: float


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


def run(work: Work, client: Client, mode: str, target: Target, upstream: Upstream) -> Run:
    """Run the program once, as a tenant of its own: its key is used for nothing else."""
    run.count += 1  # type: ignore[attr-defined]  # a counter of the function's own
    key = f"sk-run-{os.getpid()}-{run.count}"  # type: ignore[attr-defined]  # as above
    task = {
        "base_url": target.base_url,
        "key": key,
        "variant": client.variant,
        "stream": mode == STREAMED,
        "upstream": target.upstream,
    }
    begun, said, failure = time.monotonic(), [], ""
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
        failure = f"no end after {PATIENCE:g} s"
    else:
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            said = json.loads(lines[-1])["answers"]
        else:
            written = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
            failure = written[-1].strip()[:REASON]
            if VERBOSE:
                print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    secret = b"Bearer " + key.encode()
    requests = [
        request
        for request in upstream.emulator.requests
        if dict(request.headers).get(b"authorization") == secret
    ]
    return Run(said, failure, requests, time.monotonic() - begun)


run.count = 0  # type: ignore[attr-defined]  # as above
VERBOSE = False


def answered(requests: Sequence[CreateFrame]) -> list[CreateFrame]:
    """Those that ask for an answer: not what only preloads a context."""
    return [request for request in requests if request.body.get("generate") is not False]


def verdict(found: Run, *, lost: bool) -> str:
    """Whether it has passed, or why not."""
    wrong = complaint(answered(found.requests), found.said, lost=lost)
    if found.failure:
        return f"{found.failure} ({wrong})" if wrong and not found.said else found.failure
    return PASSED if wrong is None else wrong


_SENT = re.compile(r" turn\.sent .*?standing=(\w+) .*?bytes=(\d+) saved=(-?\d+)")


def measured(found: Run, log: str) -> dict[str, Any]:
    """What the last request was, on its way to the bridge and from it to the upstream."""
    last = answered(found.requests)[-1]
    sent = _SENT.findall(log)
    standing, size, saved = sent[-1]
    assert int(size) == len(last.raw), "the log is of another turn"
    return {
        "continues": {"injected": "history"}.get(standing, "id"),
        "received": int(size) + int(saved),
        "sent": int(size),
        "items": len(last.input),
    }


# ------------------------------------------------------------------ all runs


def judge(work: Work, clients: Sequence[Client], ways: Sequence[str]) -> dict[str, Any]:
    """The results of ``clients``, by name."""
    results: dict[str, Any] = {client.name: {"ways": {}} for client in clients}
    lossy, keeping = Emulator(answer=answer), Emulator(answer=answer)
    lossy.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    with ExitStack() as stack:
        upstream, kept = (stack.enter_context(emulating(one)) for one in (lossy, keeping))
        targets = {name: stack.enter_context(WAYS[name](upstream)) for name in ways}
        untouched = stack.enter_context(KEPT(kept))
        for client in clients:
            result = results[client.name]
            result["packages"] = work.versions(client)
            rebuilt = 0
            for way, target in targets.items():
                if way == "transport" and client.inside:
                    result["ways"][way] = client.inside
                    continue
                outcome = result["ways"][way] = {}
                for mode in client.modes:
                    found = run(work, client, mode, target, upstream)
                    outcome[mode] = verdict(found, lost=True)
                    if outcome[mode] == PASSED:
                        rebuilt = len(answered(found.requests)[-1].raw)
                    shown = f"{client.name}; {way}; {mode}; {found.seconds:.1f} s"
                    print(f"{shown}: {outcome[mode]}", flush=True)
            before = len(untouched.log())
            found = run(work, client, client.modes[0], untouched, kept)
            said = verdict(found, lost=False)
            print(f"{client.name}; connection kept: {said}", flush=True)
            if said == PASSED:
                figures = measured(found, untouched.log()[before:])
                result["last_turn"] = {**figures, "rebuilt": rebuilt}
            else:
                result["last_turn"] = said
    return results


def main() -> int:
    """Install, run and write; 0 if all that ran has passed."""
    global VERBOSE
    parser = argparse.ArgumentParser(description="Run client libraries through the bridge.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "clients")
    parser.add_argument("--only", help="a regular expression for the names of clients")
    parser.add_argument("--way", action="append", choices=WAYS, help="repeatable; default: all")
    parser.add_argument("--verbose", action="store_true", help="show what failed programs wrote")
    parser.add_argument("--dry", action="store_true", help="do not write the results")
    args = parser.parse_args()
    VERBOSE = args.verbose
    clients = [one for one in CLIENTS if not args.only or re.search(args.only, one.name)]
    work = Work(args.work.resolve())
    for environment in dict.fromkeys(client.environment for client in clients):
        work.install(environment)
    results = judge(work, clients, args.way or list(WAYS))
    if not args.dry:
        write(results, merge=len(clients) < len(CLIENTS))
    return 0 if all(passed(result) for result in results.values()) else 1


def passed(result: dict[str, Any]) -> bool:
    """Whether every way that a client ran through has passed."""
    outcomes = [one for one in result["ways"].values() if isinstance(one, dict)]
    good = all(verdict == PASSED for one in outcomes for verdict in one.values())
    return good and isinstance(result["last_turn"], dict)


def write(results: dict[str, Any], *, merge: bool) -> None:
    """Write the results, in the order of ``CLIENTS``. ``merge``: keep those of other clients."""
    known = json.loads(DATA.read_text("utf-8"))["clients"] if merge and DATA.exists() else {}
    found = {**known, **results}
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    written = {
        "python": platform.python_version(),
        "node": node.stdout.strip().removeprefix("v"),
        "clients": {client.name: found[client.name] for client in CLIENTS if client.name in found},
    }
    DATA.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
