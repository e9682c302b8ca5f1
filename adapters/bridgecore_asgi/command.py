"""The command ``python -m bridgecore_asgi``: the bridge under uvicorn.

What belongs here: which settings of ``bridgecore serve`` there are, uvicorn's own, and the signals.
It serves to try the application, and to compare it with the bridge's own server; where ASGI is not
needed, ``bridgecore serve`` takes less time for each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, Literal

import uvicorn

import bridgecore_asyncio
from bridgecore.config import UpstreamUrl
from bridgecore.testing.emulator import Emulator
from bridgecore.transport.sockets import open_listeners
from bridgecore_asgi.app import BridgeApp
from bridgecore_cli.arguments import add_settings
from bridgecore_cli.errors import CONFIGURATION, FAILURE, CommandError, SettingsError
from bridgecore_cli.logs import LineLog
from bridgecore_cli.main import fail
from bridgecore_cli.serve import (
    check_policy,
    listen_error,
    new_uvloop,
    print_where,
    raise_file_limit,
    warn_of,
)
from bridgecore_cli.settings import SETTINGS, Settings, load

# Settings of the command ``bridgecore serve`` alone, with the value that each has here.
_FIXED: Final = {
    "backend": "asyncio",  # uvicorn's
    "workers": 1,
    "store": "memory",
    "decision_log": None,
    "advertise": None,
}
# Seconds that uvicorn waits after the bridge has stopped: clients have to read the end of what it
# has sent.
_MORE: Final = 5


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal; return the exit code, which is as of ``bridgecore serve``."""
    parser = argparse.ArgumentParser(
        prog="python -m bridgecore_asgi",
        description="Run the bridge under uvicorn. The settings are those of bridgecore serve.",
        allow_abbrev=False,
    )
    add_settings(parser, SETTINGS)
    parser.add_argument(
        "--http",
        choices=("h11", "httptools"),
        default="h11",
        help="parser of uvicorn: httptools takes less CPU time, but loses the body of a request "
        "with 'Upgrade: h2c'",
    )
    try:
        given = vars(parser.parse_args(arguments))
        http = given.pop("http")
        settings = load(given, os.environ)
        for name, value in _FIXED.items():
            if getattr(settings, name) != value:
                message = f"{name}: only bridgecore serve has this setting, leave it out"
                raise SettingsError(message, CONFIGURATION)
        loop = new_uvloop() if settings.loop == "uvloop" else None
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(_serve(settings, http))
    except CommandError as exc:
        return fail(str(exc), exc.exit_code)


async def _serve(settings: Settings, http: Literal["h11", "httptools"]) -> int:
    log = LineLog(sys.stderr, settings.log_level)
    loop = asyncio.get_running_loop()
    log.later = loop.call_soon
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(log.flush)
        upstream = settings.upstream
        if upstream is None:
            emulator = await stack.enter_async_context(bridgecore_asyncio.serve(Emulator()))
            upstream = UpstreamUrl.parse(f"ws://127.0.0.1:{emulator.port}/v1/responses")
        config = settings.config(upstream, raise_file_limit(log), "asgi")
        bridge = BridgeApp(config, log=log)
        listeners = _listen(settings)
        warn_of(settings, listeners[0].getsockname()[0], log)
        stack.callback(
            check_policy(settings, config, lambda record: loop.call_soon_threadsafe(log, record))
        )
        server = _Server(bridge, settings, http)
        await server.serve(sockets=listeners)
        return 0 if server.started else FAILURE


def _listen(settings: Settings) -> list[socket.socket]:
    """Sockets that listen. Not left to uvicorn, which does not say which port it has."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listeners = open_listeners(found, socket.create_server)
        for each in listeners:
            # Accepted sockets have it from here. asyncio sets it only for those whose protocol is
            # named, which create_server does not. Without it Nagle's algorithm holds the first
            # event back until the client acknowledges the head: 40 ms.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listeners
    except (OSError, UnicodeError) as exc:
        raise listen_error(host, port, exc) from None


class _Server(uvicorn.Server):
    """uvicorn with the bridge. It tells the bridge when it begins to stop, because the lifespan of
    an application ends only when its last connection has; and it lets the bridge end connections,
    because uvicorn would close WebSockets at once, in the middle of their turns."""

    def __init__(
        self, bridge: BridgeApp, settings: Settings, http: Literal["h11", "httptools"]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                bridge,
                http=http,
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_MORE,
                ws_max_size=settings.core["max_body"],
                ws_per_message_deflate=False,
                h11_max_incomplete_event_size=settings.core["max_header"],
            )
        )
        self._bridge, self._settings = bridge, settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print where."""
        await super().startup(sockets)
        if sockets:
            print_where(self._settings.host, sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait until the bridge has drained, and only then end connections."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        # Nothing new, if a signal has done it: but uvicorn may stop for reasons of its own.
        self._bridge.request_drain("uvicorn")
        await self._bridge.wait_stopped()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends the process at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._bridge.request_drain(signal.Signals(sig).name)
