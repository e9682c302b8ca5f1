"""The command: arguments in, exit code out.

What belongs here: what ``serve``, ``rules`` and ``--version`` do with standard output, signals and
the exit code. 0: clean; 1: run-time failure; 2: usage; 78: bad configuration; 128 plus the signal's
number: a second signal. A failure is one line on standard error, never a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any, Protocol

from bridgecore.config import UpstreamUrl
from bridgecore.recovery.policy import POLICIES
from bridgecore.wire.transport import Log, LogLevel
from bridgecore_cli import replay
from bridgecore_cli.arguments import parser
from bridgecore_cli.logs import LineLog
from bridgecore_cli.settings import (
    CONFIGURATION,
    USAGE,
    Settings,
    SettingsError,
    load,
)

FAILURE = 1


class _Server(Protocol):
    host: str
    port: int

    def request_drain(self) -> None: ...
    async def wait_stopped(self) -> None: ...


_Serve = Callable[..., AbstractAsyncContextManager[_Server]]
_WriteLog = Callable[[Log], None]


class _RunError(Exception):
    """Why the run cannot go on, in one line for people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the process's); the exit code."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return FAILURE
    finally:
        _flush_stdout()


def _main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.command == "rules":
        from bridgecore.tables import render_rules

        print(render_rules(POLICIES[options.policy]).rstrip("\n"))
        return 0
    try:
        if options.command == "serve":
            return _serve(load(vars(options), os.environ))
        if options.command == "replay":
            return replay.run(options)
        if options.command == "simulate":
            from bridgecore_cli import simulate

            return simulate.run(options)
        from bridgecore_cli import verify

        return verify.run(options)
    except SettingsError as exc:
        return _fail(str(exc), exc.exit_code)
    except _RunError as exc:
        return _fail(str(exc), FAILURE)
    except Exception as exc:
        # A bug. Its message may hold what a client sent, so only the place is shown.
        frames = traceback.extract_tb(exc.__traceback__)[-3:]
        places = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames[::-1])
        return _fail(f"internal error: {type(exc).__name__} at {places}", FAILURE)


# ------------------------------------------------------------------ serve


def _serve(settings: Settings) -> int:
    with contextlib.ExitStack() as stack:
        log: _WriteLog = LineLog(sys.stderr, settings.log_level)
        if settings.decision_log is not None:
            log = stack.enter_context(replay.DecisionLog(settings.decision_log, log))
        _run(settings, log)
    return 0


def _run(settings: Settings, log: _WriteLog) -> None:
    signals = _Signals()
    if settings.backend == "asyncio":
        from bridgecore_asyncio import serve as asyncio_serve

        async def bridge() -> None:
            signals.wake(asyncio.get_running_loop())
            await _bridge(asyncio_serve, settings, log, signals)

        asyncio.run(bridge())
    else:
        try:
            import trio
        except ImportError:
            raise SettingsError(
                "backend trio is not installed: pip install 'bridgecore[trio]'", CONFIGURATION
            ) from None
        from bridgecore_trio import serve as trio_serve

        trio.run(_bridge, trio_serve, settings, log, signals)


async def _bridge(serve: _Serve, settings: Settings, log: _WriteLog, signals: _Signals) -> None:
    """The same on both backends: it awaits nothing but servers."""
    async with contextlib.AsyncExitStack() as stack:

        async def listen(machine: Any, host: str, port: int, **options: Any) -> _Server:
            try:
                return await stack.enter_async_context(
                    serve(machine, host=host, port=port, **options)
                )
            except (OSError, UnicodeError) as exc:
                reason = getattr(exc, "strerror", None) or str(exc)
                if isinstance(exc, OSError) and (exc.errno or 0) > 0:
                    reason = os.strerror(exc.errno or 0)
                raise _RunError(f"cannot listen on {_authority(host, port)}: {reason}") from None

        upstream = settings.upstream
        if upstream is None:
            from bridgecore.testing.emulator import Emulator

            emulator = await listen(Emulator(), "127.0.0.1", 0)
            upstream = UpstreamUrl.parse(f"ws://127.0.0.1:{emulator.port}/v1/responses")
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        config = settings.config(upstream, None if files == resource.RLIM_INFINITY else files)
        server = await listen(config, settings.host, settings.port, log=log)
        where = _authority(settings.host, server.port)
        _print(f"bridgecore running on http://{where} (Press CTRL+C to quit)")
        origin = "emulator" if settings.upstream is None else upstream.authority
        fields: dict[str, str | int] = {"upstream": origin, "policy": settings.policy}
        fields["max_sessions"] = config.max_sessions
        log(Log(LogLevel.INFO, "serving", {**fields, "backend": settings.backend}))
        signals.on_first(server.request_drain)
        await server.wait_stopped()


class _Signals:
    """SIGINT and SIGTERM: the first asks for a drain, the second ends the process at once."""

    def __init__(self) -> None:
        self._received = 0
        self._drain: Callable[[], None] | None = None
        self._install()

    def _install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have signals wake ``loop``: one that comes just before it sleeps would wait, too."""
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)  # sets the wakeup descriptor
        self._install()

    def on_first(self, drain: Callable[[], None]) -> None:
        """Call ``drain`` at the first signal, at once if it has come already."""
        self._drain = drain
        if self._received:
            drain()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        if self._received > 1:
            os._exit(128 + number)
        if self._drain is not None:
            self._drain()


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ------------------------------------------------------------------ output


def _print(line: str) -> None:
    """Whoever started us may not listen: that is no reason not to serve."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True)


def _fail(message: str, exit_code: int) -> int:
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    hint = " (see bridgecore serve --help)" if exit_code == USAGE else ""
    with contextlib.suppress(OSError, ValueError):
        print(f"bridgecore: error: {line}{hint}", file=sys.stderr, flush=True)
    return exit_code


def _flush_stdout() -> None:
    """Flush now, or the interpreter complains at its end about a pipe that is closed."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
