"""The real Codex CLI, with a bridge that holds its conversations.

What belongs here: that each of its requests but the first of a thread is recognised and reduced to
what is new, with every configuration of Codex, and that a lost upstream connection has no effect on
it. These tests need the program: ``CODEX=/path/to/codex``, or ``codex`` on the PATH (``npm install
@openai/codex``; written with 0.171.0). tests/endpoint/test_codex.py has the requests that it sends,
restated, and needs no Codex.

A thread is ``codex exec`` and two times ``codex exec resume --last``; Codex stores it in a file and
repeats all of it in each request. Its processes can reach nothing but this machine.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs
import pytest

from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.timers import Deadline
from bridgecore.testing import EVERY, CreateFrame, Emulator
from bridgecore.testing.answers import Output, Reasoning, Text, ToolCall
from bridgecore.transport import (
    DataReceived,
    Log,
    Machine,
    Send,
    TransportEffect,
    TransportEvent,
)
from tests.e2e.conftest import KEY, Json, eventually_in
from tests.e2e.test_conversations import FAULTS, IDLE_CLOSE, Lost

if TYPE_CHECKING:
    from tests.conftest import Backend

CODEX = os.environ.get("CODEX") or shutil.which("codex")
pytestmark = pytest.mark.skipif(
    CODEX is None, reason="Codex is not installed: no `codex` on the PATH, and no CODEX=PATH"
)

# The prompt of each turn of the thread, and the last message of Codex in it.
THREAD = [
    ("run something", "The command has run."),
    ("again", "Said again."),
    ("run something else", "The command has run."),
]

# ------------------------------------------------------------------ configurations of Codex

COMMON = """\
model = "{model}"
{provider}
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
cli_auth_credentials_store = "file"
[analytics]
enabled = false
[otel]
exporter = "none"
[features]
plugins = false
apps = false
"""
# Codex has only the address of this provider.
CUSTOM = """\
[model_providers.local]
name = "local"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
env_key = "LOCAL_API_KEY"
supports_websockets = {websocket}
"""
# The built-in provider of Codex, OpenAI, at another address. Codex tries WebSocket first. With a
# login it sends more requests than turns, to the other URL.
BUILT_IN = """\
openai_base_url = "http://127.0.0.1:{port}/v1"
chatgpt_base_url = "http://127.0.0.1:{port}/backend-api"
"""


def login() -> Json:
    """The ``auth.json`` of a ChatGPT login. Codex reads names and times from the token, a JWT, and
    does not check its signature."""

    def encoded(part: Json) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    account = {"chatgpt_plan_type": "plus", "chatgpt_user_id": "u", "chatgpt_account_id": "a"}
    claims = {"exp": 4_102_444_800, "https://api.openai.com/auth": account}
    token = f"{encoded({'alg': 'none'})}.{encoded(claims)}.bm9uZQ"
    tokens = {"id_token": token, "access_token": token, "refresh_token": "r", "account_id": "a"}
    # Old tokens would be refreshed, at another server.
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"auth_mode": "chatgpt", "tokens": tokens, "last_refresh": now}


@attrs.frozen
class SetUp:
    """One configuration of Codex."""

    name: str
    compresses: bool = False  # zstd bodies, only with a login
    # Codex 0.171 does not know the model "gpt-5.4", so it uses plain function tools. For
    # "gpt-6.2-sol" the tools are an item of the input, and code calls them.
    model: str = "gpt-5.4"
    websocket: bool = False  # it speaks WebSocket mode to the bridge

    def write(self, home: Path, port: int) -> None:
        """Write the configuration to ``home``, for a bridge at ``port``."""
        custom = self.name == "custom"
        websocket = str(self.websocket).lower()
        provider = 'model_provider = "local"' if custom else BUILT_IN.format(port=port)
        settings = COMMON.format(model=self.model, provider=provider)
        (home / "config.toml").write_text(
            settings + (CUSTOM.format(port=port, websocket=websocket) if custom else ""),
            encoding="utf-8",
        )
        if not custom:
            auth = login() if self.compresses else {"OPENAI_API_KEY": KEY}
            (home / "auth.json").write_text(json.dumps(auth), encoding="utf-8")


SET_UPS = [
    SetUp("custom"),
    SetUp("built-in"),
    SetUp("compressed", compresses=True),
    SetUp("compressed-code-mode", compresses=True, model="gpt-6.2-sol"),
]
set_ups = pytest.mark.parametrize("set_up", SET_UPS, ids=lambda set_up: set_up.name)

# ------------------------------------------------------------------ the run


def answer(request: CreateFrame) -> list[Output]:
    """A command to run, or a message; after reasoning."""
    last = request.input[-1]
    thought = Reasoning("thinking")
    if str(last.get("type")).endswith("_output"):
        return [thought, Text("The command has run.")]
    if "run something" in json.dumps(last):
        return [thought, command(request)]
    return [thought, Text("Said again.")]


def command(request: CreateFrame) -> Output:
    """A call of the tool that runs commands, which differs for each kind of model."""
    tools = cast(list[Json], request.body.get("tools", []))
    if any(tool.get("name") == "exec_command" for tool in tools):
        return ToolCall("exec_command", '{"cmd":"echo from-the-shell"}')
    code = 'text((await tools.exec_command({cmd: "echo from-the-shell"})).output)'
    number = len(request.context)
    return {
        "type": "custom_tool_call",
        "id": f"ctc_{number}",
        "call_id": f"call_{number}",
        "name": "exec",
        "input": code,
        "status": "completed",
    }


@attrs.define
class Observed:
    """A machine, with its log records and what it receives and sends."""

    machine: Machine
    logs: list[Log] = attrs.Factory(list)
    received: defaultdict[int, bytearray] = attrs.Factory(lambda: defaultdict(bytearray))
    sent: defaultdict[int, bytearray] = attrs.Factory(lambda: defaultdict(bytearray))

    def new_connection(self) -> int:
        return self.machine.new_connection()

    def next_timeout(self) -> Deadline | None:
        return self.machine.next_timeout()

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        if isinstance(event, DataReceived):
            self.received[event.conn] += event.data
        effects = self.machine.handle(event, now)
        for effect in effects:
            if isinstance(effect, Log):
                self.logs.append(effect)
            elif isinstance(effect, Send):
                self.sent[effect.conn] += effect.data
        return effects


@contextmanager
def unreachable() -> Iterator[int]:
    """A port of this machine at which no process listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@attrs.frozen
class Run:
    """A bridge and an emulator, both in this process, and the home of a Codex that uses them."""

    backend: Backend
    emulator: Emulator
    bridge: Observed
    home: Path

    async def codex(self, turn: int) -> None:
        """Run Codex for one turn of the thread."""
        prompt, said = THREAD[turn]
        output = await self.backend.in_thread(self._codex, turn > 0, prompt)
        assert said in output

    def _codex(self, resumes: bool, prompt: str) -> str:
        assert CODEX is not None
        flags = ["--json", "--skip-git-repo-check"]
        with unreachable() as port:
            # A separate environment, so that no key and no address of ours is used; requests to
            # other machines go to a proxy that does not exist.
            proxy = f"http://127.0.0.1:{port}"
            done = subprocess.run(
                [CODEX, "exec", *(["resume", "--last"] if resumes else []), *flags, prompt],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.home),
                    "CODEX_HOME": str(self.home),
                    "LOCAL_API_KEY": KEY,
                    "HTTP_PROXY": proxy,
                    "HTTPS_PROXY": proxy,
                    "ALL_PROXY": proxy,
                    "NO_PROXY": "127.0.0.1",
                },
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=40,
                check=False,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def sockets_are_gone(self) -> None:
        """Wait until neither side has an upstream connection."""
        endpoint = cast(Endpoint, self.bridge.machine)
        await eventually_in(
            self.backend, lambda: not self.emulator.connections and not endpoint.upstreams
        )

    def logged(self, event: str) -> list[dict[str, str | int]]:
        """The fields of what was logged as ``event``."""
        return [log.fields for log in self.bridge.logs if log.event == event]

    @property
    def standings(self) -> list[object]:
        """The standing of each request's anchor."""
        return [fields["standing"] for fields in self.logged("turn.received")]


def with_codex(backend: Backend, set_up: SetUp, body: Callable[[Run], Awaitable[None]]) -> None:
    """Call ``body`` with a ``Run``; check what holds for each."""

    async def main(home: Path) -> None:
        emulator = Emulator(answer=answer)
        async with backend.serve(emulator) as upstream:
            url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
            bridge = Observed(Endpoint(Config(upstream=url, websocket=set_up.websocket)))
            async with backend.serve(bridge) as server:
                set_up.write(home, server.port)
                run = Run(backend, emulator, bridge, home)
                await body(run)
                check(run, set_up)

    with tempfile.TemporaryDirectory() as folder:
        backend.run(main, Path(folder))


def check(run: Run, set_up: SetUp) -> None:
    """Bodies have the form of this configuration, and the context at the upstream is the whole
    thread."""
    received = b"\n".join(run.bridge.received.values())
    posts = re.findall(rb"POST (\S+) HTTP/1\.1\r\n", received)
    assert set(posts) == (set() if set_up.websocket else {b"/v1/responses"})
    codings = re.findall(rb"\r\ncontent-encoding: (\S+)\r\n", received)
    assert codings == [b"zstd"] * len(posts) * set_up.compresses
    # A service drops encrypted reasoning in another context than the one it was made in.
    sent = b"\n".join(run.bridge.sent.values())
    assert not re.search(rb'"input_transformations":\[[^]]', sent)
    shown = run.emulator.requests[-1].context
    users = [str(item) for item in shown if item.get("role") == "user"][-len(THREAD) :]
    assert all(prompt in item for (prompt, _), item in zip(THREAD, users, strict=True))
    calls = {item["call_id"] for item in shown if str(item.get("type")).endswith("_call")}
    outputs = [item for item in shown if str(item.get("type")).endswith("_call_output")]
    assert len(calls) == 2
    assert {item["call_id"] for item in outputs} == calls
    assert all("from-the-shell" in str(item["output"]) for item in outputs)
    assert sum(item.get("type") == "reasoning" for item in shown) == 4


# ------------------------------------------------------------------ tests


@set_ups
def test_all_but_the_first_request_of_a_thread_are_reduced(backend: Backend, set_up: SetUp) -> None:
    async def body(run: Run) -> None:
        for turn in range(len(THREAD)):
            await run.codex(turn)
        requests, turns = run.emulator.requests, run.emulator.turns
        # Two tool calls, each with an answer to its output, and an answer without.
        assert len(requests) == 5
        assert run.standings == ["unanchored"] + ["injected"] * 4
        first, *later = run.logged("turn.sent")
        assert (first["form"], first["saved"]) == ("as_is", 0)
        for number, fields in enumerate(later, 1):
            request = requests[number]
            assert fields["form"] == "as_is"
            # Unreduced, it would be larger than the first; the base prompt alone has some 10 KiB.
            assert cast(int, fields["saved"]) > 10_000
            assert fields["bytes"] == len(request.raw)
            assert request.anchor == turns[number - 1].response_id
            assert len(request.input) == 1
        # Other connections are of requests that are passed through, such as those for models.
        assert len(run.logged("session.connect")) == run.emulator.upgrades == 1

    with_codex(backend, set_up, body)


@set_ups
def test_a_socket_that_is_lost_between_turns(backend: Backend, set_up: SetUp) -> None:
    """The next request is sent unchanged, on a new connection; those after it are reduced again."""

    async def body(run: Run) -> None:
        run.emulator.faults.add(2, IDLE_CLOSE)
        await run.codex(0)
        await run.sockets_are_gone()
        for turn in range(1, len(THREAD)):
            await run.codex(turn)
        requests = run.emulator.requests
        assert [request.anchor is None for request in requests] == [True, False, True, False, False]
        assert run.standings == ["unanchored", "injected", "unanchored", "injected", "injected"]
        saved = [cast(int, fields["saved"]) for fields in run.logged("turn.sent")]
        assert [bytes_saved > 0 for bytes_saved in saved] == [False, True, False, True, True]
        assert run.emulator.upgrades == 2
        assert not run.logged("turn.refused")

    with_codex(backend, set_up, body)


@set_ups
def test_connections_lost_after_every_turn(backend: Backend, set_up: SetUp) -> None:
    """Each after its turn, and one during a turn that may have been run: Codex retries by
    itself."""

    async def body(run: Run) -> None:
        run.emulator.faults.add(EVERY, IDLE_CLOSE)
        run.emulator.faults.add(2, FAULTS[Lost.SENT])
        for turn in range(len(THREAD)):
            await run.codex(turn)
            await run.sockets_are_gone()
        assert [fields["code"] for fields in run.logged("turn.refused")] == ["stream_incomplete"]
        assert len(run.emulator.requests) == 6
        assert not any(request.anchor for request in run.emulator.requests[2:])

    with_codex(backend, set_up, body)


def test_a_client_of_websocket_mode_whose_upstream_is_lost_after_every_turn(
    backend: Backend,
) -> None:
    """Codex keeps its own connection for the turns of one process, and continues them by id."""

    async def body(run: Run) -> None:
        run.emulator.faults.add(EVERY, IDLE_CLOSE)
        for turn in range(len(THREAD)):
            await run.codex(turn)
            await run.sockets_are_gone()
        assert not run.logged("turn.refused")
        assert "held" in run.standings  # an id whose connection at the upstream was gone

    with_codex(backend, SetUp("custom", websocket=True), body)
