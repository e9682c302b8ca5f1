"""The Open Responses compliance suite, against the bridge in front of several upstreams.

What belongs here: running ``compliance.mjs``, which restates the suite for Node, if Node is
installed. The bridge is run as ``bridgecore serve`` and as an ASGI application; its upstream is the
emulator, by WebSocket and by HTTP, and a server of other authors.

Two tests of the suite ask for ``previous_response_not_found`` where the bridge promises to go on: a
response with ``store: false`` is continued on another connection, and after a continuation that
failed. They are run with ``--keeps-context``, which asks for that. The emulator passes them as they
are.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridgecore.testing import Alter, Change, CreateFrame, Emulator, Fault, Point, Text
from bridgecore_asgi import BridgeApp
from tests.asgi.conftest import SERVERS, config, serving
from tests.e2e.conftest import TIME_LIMIT, Shared, emulating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridgecore.testing import Output
    from tests.conftest import Backend

_SCRIPT = Path(__file__).with_name("compliance.mjs")
_TESTS = re.findall(r'^  "([\w-]+)": async', _SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
_KEPT = ("websocket-reconnect-store-false-recovery", "websocket-failed-continuation-evicts-cache")
_OLDEST = (20, 10)  # the first Node with --experimental-websocket
WEBSOCKET = ("--websocket", "true")


@functools.cache
def node() -> str:
    """The command; skips the test if it is missing or too old."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not on the PATH")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    major, minor, _ = version.stdout.removeprefix("v").split(".")
    if (int(major), int(minor)) < _OLDEST:
        pytest.skip("node is older than {}.{}".format(*_OLDEST))
    return found


def check(port: int, *tests: str, keeps: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script against the server at ``port``. ``keeps``: it is a bridge, which keeps the
    context of responses with ``store: false``."""
    base = f"http://127.0.0.1:{port}/v1"
    given = ["--keeps-context", base, *tests] if keeps else [base, *tests]
    return subprocess.run(
        [node(), "--experimental-websocket", "--no-warnings", str(_SCRIPT), *given],
        capture_output=True,
        text=True,
        timeout=3 * TIME_LIMIT,
        check=False,
    )


def assert_passed(ran: subprocess.CompletedProcess[str], names: Sequence[str] = _TESTS) -> None:
    assert ran.stdout.splitlines() == [f"passed {name}" for name in names], ran.stderr
    assert ran.returncode == 0


def test_the_suite(backend: Backend, shared: Shared) -> None:
    node()
    assert_passed(check(shared("--backend", backend.name, *WEBSOCKET).port))
    assert len(_TESTS) == 21


def test_the_suite_on_an_upstream_that_speaks_http(shared: Shared) -> None:
    node()
    with emulating() as upstream:
        url = f"http://127.0.0.1:{upstream.port}/v1"
        assert_passed(check(shared("--upstream", url, *WEBSOCKET).port))
        assert upstream.emulator.upgrades == 0


@pytest.mark.parametrize("kind", list(SERVERS))
def test_the_suite_in_an_asgi_server(kind: str) -> None:
    node()
    with (
        emulating() as upstream,
        serving(kind, BridgeApp(config(upstream, websocket=True))) as server,
    ):
        assert_passed(check(server.port))


def test_the_emulator_itself_passes_the_suite_to_the_letter() -> None:
    node()
    with emulating() as upstream:
        assert_passed(check(upstream.port, keeps=False))


# ------------------------------------------------------------------ a server of other authors


@contextmanager
def fastresponses() -> Iterator[int]:
    """``fastresponses``, a server of the Open Responses API around an agent: here, one that calls
    the tools that it is offered, and counts the items of its context. The port."""
    library: Any = pytest.importorskip("fastresponses")
    models: Any = pytest.importorskip("fastresponses.models")
    compaction: Any = pytest.importorskip("fastresponses.compaction")

    class Agent(library.AgentAdapter):  # type: ignore[misc]  # the package has no types here
        name = "counting"

        async def run(self, run: Any) -> AsyncIterator[Any]:
            items: list[Any] = []
            for item in run.context_items:
                sealed = item.type == "compaction"
                items += compaction.expand_compaction_item(item) if sealed else [item]
            calls = {item.call_id for item in items if item.type == "function_call"}
            outputs = [item for item in items if item.type == "function_call_output"]
            if not calls.issuperset(item.call_id for item in outputs):
                raise library.AdapterError("There is no such call.", type="invalid_request")
            size = len("".join(item.model_dump_json() for item in items))
            yield library.UsageDelta(input_tokens=size, output_tokens=3, total_tokens=size + 3)
            if run.request.tools and items[-1].type == "message":
                yield library.ItemDone(
                    models.FunctionCallItem(
                        id=models.new_function_call_id(),
                        call_id=models.new_call_id(),
                        name=run.request.tools[0].name,
                        arguments='{"place":"Oslo"}',
                        status="completed",
                    )
                )
            else:
                for word in ("I have ", str(len(items)), " items."):
                    yield library.TextDelta(word)

    with serving("uvicorn", library.create_app(Agent())) as server:
        yield server.port


# It warms nothing up (``generate: false``), which the suite does not ask for any more.
_ASKED = [name for name in _TESTS if name != "websocket-generate-false"]


def test_the_suite_on_a_server_of_other_authors(shared: Shared) -> None:
    node()
    with fastresponses() as port:
        for url in (f"ws://127.0.0.1:{port}/v1/responses", f"http://127.0.0.1:{port}/v1"):
            assert_passed(check(shared("--upstream", url, *WEBSOCKET).port, *_ASKED), _ASKED)
        assert_passed(check(port, *_ASKED, keeps=False), _ASKED)  # as they are, without a bridge


# ------------------------------------------------------------------ the script


def test_the_script_detects_missing_members(shared: Shared) -> None:
    """An item without what the specification requires, and streams without numbers."""

    def answer(request: CreateFrame) -> Sequence[Output]:
        if request.body.get("tools"):
            return [{"type": "function_call", "name": "get_weather", "arguments": "{}"}]
        return [Text("yes")]

    node()
    emulator = Emulator(answer=answer)
    for number in (2, 4):
        emulator.faults.add(number, Fault(Point.BEFORE_CREATED, Alter(Change.NO_SEQUENCE)))
    with emulating(emulator) as upstream:
        port = shared("--upstream", upstream.url, *WEBSOCKET).port
        names = ("basic-response", "streaming-response", "tool-calling", "websocket-response")
        ran = check(port, *names)
    assert ran.returncode == 1
    passed, *failed = ran.stdout.splitlines()
    assert passed == "passed basic-response"
    assert [line.split(":")[0] for line in failed] == [f"FAILED {name}" for name in names[1:]]
    assert "sequence_number: is missing" in failed[0]
    assert "response.output[0].call_id: is missing" in failed[1]
    assert "sequence_number: is missing" in failed[2]


def test_the_script_detects_whether_a_context_is_kept(shared: Shared) -> None:
    node()
    with emulating() as upstream:
        kept = check(shared("--upstream", upstream.url, *WEBSOCKET).port, *_KEPT, keeps=False)
        lost = check(upstream.port, *_KEPT)
    assert kept.stdout.splitlines() == [f"FAILED {name}: the response was found" for name in _KEPT]
    assert lost.stdout.count("previous_response_not_found") == lost.stdout.count("FAILED") == 2
