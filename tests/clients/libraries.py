"""The client libraries: which ways of using them are run, and how they are installed.

What belongs here: the table of clients, in the order in which they are shown, and their packages
with the versions of ``pins/``. The programs that use them are in ``programs/``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import attrs

from tests.clients.judge import PROGRAMS

PINS: Final = Path(__file__).resolve().parent / "pins"
INSTALLING: Final = 1800.0  # seconds for one set of libraries

STREAMED, WHOLE = "streamed", "whole"


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
        speaks: the protocol in which it sends its turns.
        resources: whether it also uses other paths of the API. Where the bridge is its transport,
            these go to the upstream.
        upstream: what is upstream of the bridge: the emulator, or LiteLLM in front of it.
    """

    name: str
    program: str
    variant: str = ""
    environment: str = "python"
    packages: tuple[str, ...] = ()
    modes: tuple[str, ...] = (STREAMED, WHOLE)
    inside: str = ""
    speaks: str = "HTTP"
    resources: bool = False
    upstream: str = "emulator"


SOCKET: Final[dict[str, Any]] = {
    "inside": "speaks WebSocket; the transport is for HTTP",
    "speaks": "WebSocket",
}
NODE: Final = "not in Python"
ONE: Final = (STREAMED,)
NODE_PINS: Final = PINS / "node" / "package.json"
PROXY: Final = "litellm_proxy"


def _python(name: str, variant: str, **more: Any) -> Client:
    return Client(
        f"openai-python: {name}", "openai_python.py", variant, packages=("openai",), **more
    )


def _node(name: str, program: str, variant: str, *packages: str, **more: Any) -> Client:
    more = {"environment": "node", "inside": NODE, **more}
    return Client(name, program, variant, packages=packages, **more)


def _vercel(name: str, variant: str) -> Client:
    return _node(f"Vercel AI SDK: {name}", "ai_sdk.mjs", variant, "ai", "@ai-sdk/openai")


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
    return Client(f"LlamaIndex: {name}", "llama_index_chat.py", variant, "llama_index", packages)


def _litellm(name: str, variant: str) -> Client:
    return Client(f"LiteLLM: {name}", "litellm_client.py", variant, packages=("litellm",))


def _codex(name: str, variant: str) -> Client:
    return Client(
        f"Codex: {name}",
        "codex.py",
        variant,
        "node",
        ("@openai/codex",),
        ONE,
        inside="a program of its own",
        speaks=name,
    )


CLIENTS: Final = (
    _python("OpenAI", "sync"),
    _python("AsyncOpenAI", "async"),
    _python("responses.stream, responses.parse", "helpers"),
    _python("responses.connect", "connect", modes=ONE, **SOCKET),
    _python("responses.connect, async", "connect-async", modes=ONE, **SOCKET),
    _node("openai-node: responses.create", "openai_node.mjs", "http", "openai"),
    _node("openai-node: ResponsesWS", "openai_node.mjs", "ws", "openai", "ws", modes=ONE, **SOCKET),
    _agents("auto_previous_response_id", "id"),
    _agents("SQLiteSession", "session"),
    _agents("OpenAIResponsesCompactionSession", "compaction"),
    _agents("OpenAIConversationsSession", "conversations", resources=True),
    _agents("conversation_id", "conversation", resources=True),
    _agents("auto_previous_response_id, WebSocket", "id-ws", **SOCKET),
    _agents("SQLiteSession, WebSocket", "session-ws", **SOCKET),
    _agents("OpenAIConversationsSession, WebSocket", "conversations-ws", **SOCKET),
    _agents("conversation_id, WebSocket", "conversation-ws", **SOCKET),
    _codex("HTTP", "http"),
    _codex("WebSocket", "websocket"),
    _vercel("messages", "history"),
    _vercel("messages, store: false", "history-unstored"),
    _vercel("previousResponseId", "id"),
    _langchain("messages", "history"),
    _langchain("use_previous_response_id", "id"),
    _pydantic("message_history", "history"),
    _pydantic("openai_previous_response_id", "id"),
    _pydantic("openai_transport", "websocket", **SOCKET),
    _llama_index("FunctionAgent", "history"),
    _llama_index("track_previous_responses", "id"),
    _litellm("input", "history"),
    _litellm("previous_response_id", "id"),
    Client(
        "LiteLLM: proxy, as the upstream of OpenAI",
        "openai_python.py",
        "sync",
        packages=("openai",),
        upstream=PROXY,
    ),
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
        pins = pins_of(client.environment)
        found = {name: pins[name] for name in client.packages}
        if client.upstream == PROXY:
            found["litellm[proxy]"] = pins_of(PROXY)["litellm"]
        return found

    def install(self, environment: str) -> bool:
        """Install a set of libraries, unless these pins are installed already; whether it went
        well."""
        node = environment == "node"
        source = NODE_PINS if node else PINS / f"{environment}.txt"
        home = self.folder / environment
        stamp, pins = home / "installed", source.read_text("utf-8")
        if not stamp.exists() or stamp.read_text("utf-8") != pins:
            print(f"installing {environment} ...", flush=True)
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            try:
                self._install(source, home)
            except (OSError, subprocess.SubprocessError) as exc:
                print(exc, file=sys.stderr)
                return False
            stamp.write_text(pins, encoding="utf-8")
        if node:  # a module finds its packages in folders above its own
            for file in [*PROGRAMS.glob("*.mjs"), *PROGRAMS.glob("*.json")]:
                shutil.copy(file, home)
        return True

    def _install(self, source: Path, home: Path) -> None:
        if source == NODE_PINS:
            shutil.copy(source, home)
            quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")
            _do("npm", "install", *quiet, cwd=home)
        else:
            _do(sys.executable, "-m", "venv", str(home))
            pip = (str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
            _do(*pip, "install", "--quiet", "--no-deps", "--requirement", str(source))


def pins_of(environment: str) -> dict[str, str]:
    """The version of each package of an environment."""
    if environment == "node":
        pins: dict[str, str] = json.loads(NODE_PINS.read_text("utf-8"))["dependencies"]
        return pins
    lines = (PINS / f"{environment}.txt").read_text("utf-8").splitlines()
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def _do(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, timeout=INSTALLING)
