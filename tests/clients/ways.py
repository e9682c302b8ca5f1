"""The ways through the bridge, and the upstreams that they lead to.

What belongs here: starting bridges and upstreams. Each upstream is there twice: one loses its
connection after each answer, one keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import attrs

from bridgecore import NS_PER_SECOND, Config, Endpoint, UpstreamUrl
from bridgecore.testing import EVERY, CloseWith, Emulator, Fault, FaultPlan, Point
from bridgecore_asgi import BridgeApp
from tests.asgi.conftest import serving
from tests.clients.judge import answer
from tests.clients.libraries import PROXY, Work
from tests.clients.litellm_upstream import proxying, relaying
from tests.e2e.conftest import driven, emulating, running
from tests.e2e.test_codex import Observed


@attrs.frozen
class Target:
    """Where a program sends its turns. ``upstream``: if the bridge is to run in the program."""

    base_url: str
    upstream: str | None = None


Way: TypeAlias = Callable[[str], AbstractContextManager[Target]]
"""Runs a bridge on the upstream with the URL that is given."""


def _at(port: int) -> Target:
    return Target(f"http://127.0.0.1:{port}/v1")


def _config(url: str) -> Config:
    return Config(upstream=UpstreamUrl.parse(url), websocket=True, drain_timeout=5 * NS_PER_SECOND)


def _serve(*arguments: str) -> Way:
    @contextmanager
    def way(url: str) -> Iterator[Target]:
        with running("--upstream", url, "--websocket", "true", *arguments) as process:
            yield _at(process.port)

    return way


def _asgi(kind: str) -> Way:
    @contextmanager
    def way(url: str) -> Iterator[Target]:
        with serving(kind, BridgeApp(_config(url))) as server:
            yield _at(server.port)

    return way


@contextmanager
def _transport(url: str) -> Iterator[Target]:
    # No such host: turns are answered by the transport, and nothing else is requested.
    yield Target("http://bridge.invalid/v1", url)


WAYS: Final[dict[str, Way]] = {
    "serve": _serve(),
    "serve, trio": _serve("--backend", "trio"),
    "uvicorn": _asgi("uvicorn"),
    "hypercorn": _asgi("hypercorn"),
    "hypercorn, trio": _asgi("hypercorn-trio"),
    "transport": _transport,
}


@attrs.frozen
class Bench:
    """The ways to one kind of upstream, twice.

    Attributes:
        emulator: answers in the end; it sees the requests.
        targets: the ways to an upstream that loses its connection after each answer.
        opened: counts the connections to it.
        kept: the way to one that keeps its connection, through ``bridge``.
        kept_opened: counts the connections to that.
        key: which the upstream demands; empty: each run has one of its own.
    """

    emulator: Emulator
    targets: dict[str, Target]
    opened: Callable[[], int]
    bridge: Observed
    kept: Target
    kept_opened: Callable[[], int]
    key: str = ""


def _to(urls: tuple[str, str], ways: Sequence[str], stack: ExitStack) -> tuple[Any, ...]:
    """The targets on the first URL; a bridge on the second one, and its target."""
    targets = {name: stack.enter_context(WAYS[name](urls[0])) for name in ways}
    bridge = Observed(Endpoint(_config(urls[1])))
    return targets, bridge, _at(stack.enter_context(driven(bridge)))


def bench_of(kind: str, work: Work, ways: Sequence[str], stack: ExitStack) -> Bench:
    """A bench with the upstream ``kind``, until ``stack`` is left."""
    emulator = Emulator(answer=answer)
    upstream = stack.enter_context(emulating(emulator))
    if kind == PROXY:
        python = work.folder / PROXY / "bin" / "python"
        port, key = stack.enter_context(proxying(python, upstream.port))
        losing, losing_url = stack.enter_context(relaying(port, cuts=True))
        keeping, keeping_url = stack.enter_context(relaying(port, cuts=False))
        targets, bridge, kept = _to((losing_url, keeping_url), ways, stack)
        counts = (lambda: losing.accepted, lambda: keeping.accepted)
        return Bench(emulator, targets, counts[0], bridge, kept, counts[1], key)
    targets, bridge, kept = _to((upstream.url, upstream.url), ways, stack)
    return Bench(
        emulator, targets, lambda: emulator.upgrades, bridge, kept, lambda: emulator.upgrades
    )


def lose(bench: Bench, *, loses: bool) -> None:
    """Have the emulator close its connections after each answer, or keep them."""
    bench.emulator.faults = FaultPlan()
    if loses and not bench.key:
        bench.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
