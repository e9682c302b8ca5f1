"""``bridgecore serve``: starts the bridge on the chosen event loop, and stops it by a signal.

What belongs here: signals, the first line of output, the limit on open files, and warnings about
settings. What only one choice of settings needs is imported when it is chosen: trio, uvloop, the
emulator, the decision log.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib
import ipaddress
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from bridgecore.config import Config, OnAmbiguousLoss, UpstreamUrl
from bridgecore.recovery.policy import V1_12, is_named
from bridgecore.transport import Log, LogLevel
from bridgecore.transport.driver import StoreClient
from bridgecore.transport.sockets import PeerPortError
from bridgecore_cli.check_config import unknown
from bridgecore_cli.errors import CONFIGURATION, FAILURE, CommandError, SettingsError
from bridgecore_cli.logs import LineLog
from bridgecore_cli.notify import Notifier
from bridgecore_cli.output import fitted, give_up_stdout_if_broken
from bridgecore_cli.settings import EMULATOR, MEMORY, Settings, load, unknown_variables

if TYPE_CHECKING:
    import asyncio


class _Server(Protocol):
    host: str
    port: int
    machine: Any  # an ``Endpoint``, or the emulator

    def request_drain(self, by: str = "") -> None: ...
    async def wait_stopped(self) -> None: ...


_Serve = Callable[..., AbstractAsyncContextManager[_Server]]
_WriteLog = Callable[[Log], None]
# Has the event loop call a function soon, with its arguments; any thread may do so.
_CallSoon = Callable[..., object]
_RunBridge = Callable[[_Serve, _CallSoon], Coroutine[Any, Any, None]]


def run(options: argparse.Namespace) -> int:
    """Run the command until it is stopped; return the exit code.

    Raises:
        CommandError: it cannot start; for a setting, ``SettingsError``.
    """
    settings = load(vars(options), os.environ)
    with Notifier(os.environ) as notifier:
        if settings.workers == 1:
            return _serve(settings, (), notifier)
        from bridgecore_cli import workers

        count = workers.check(settings)
        if count == 1:
            return _serve(settings, (), notifier)
        try:
            listeners = workers.listen(settings.host, settings.port)
        except (OSError, UnicodeError) as exc:
            raise listen_error(settings.host, settings.port, exc) from None
        port = listeners[0].getsockname()[1]
        supervisor = workers.Supervisor(settings, count, listeners, _serve, notifier)
        return supervisor.run(lambda: print_where(settings.host, port))


def _serve(settings: Settings, sockets: Sequence[socket.socket], notifier: Notifier) -> int:
    """Serve in this process. ``sockets``: to accept on, if it is one of several workers."""
    with contextlib.ExitStack() as stack:
        lines = LineLog(sys.stderr, settings.log_level)
        stack.callback(lines.flush)
        log: _WriteLog = lines
        if settings.decision_log is not None:
            from bridgecore_cli.replay import DecisionLog

            log = stack.enter_context(DecisionLog(settings.decision_log, log))
        cluster = attrs.evolve(_open_cluster(settings, stack), sockets=sockets)
        _run(settings, lines, log, cluster, notifier)
    return 0


@attrs.frozen
class _Cluster:
    """What this process has as a replica. ``secrets``: of the cluster; ``peer_ssl``: for
    connections of other replicas; ``sockets``: to accept on, if it is a worker. The default: it is
    none."""

    store: StoreClient | None = None
    secrets: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    peer_ssl: ssl.SSLContext | None = None
    sockets: Sequence[socket.socket] = ()


def _open_cluster(settings: Settings, stack: contextlib.ExitStack) -> _Cluster:
    """The store of the settings, closed with ``stack``, and what replicas need besides.

    Raises:
        SettingsError: it cannot be used.
    """
    if settings.store == MEMORY or settings.cluster_keys is None:
        return _Cluster()
    try:
        from bridgecore_stores import StoreError, open_store, read_keys, read_secrets
    except ImportError:
        raise SettingsError(
            "a store needs a package that is not installed: pip install 'bridgecore[store]'",
            CONFIGURATION,
        ) from None
    timeout = settings.core["store_timeout"]
    try:
        secrets = read_secrets(settings.cluster_keys)
        store = open_store(settings.store, read_keys(settings.cluster_keys), timeout=timeout)
    except StoreError as exc:
        raise SettingsError(f"store: {exc}", CONFIGURATION) from None
    stack.callback(store.close, timeout)
    return _Cluster(store, secrets, _certificate(settings.cluster_certificate))


def _certificate(path: str | None) -> ssl.SSLContext | None:
    """TLS for connections of other replicas, with the certificate and key in a file."""
    if path is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(path)
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror if type(exc) is not ssl.SSLError else "no certificate with its key"
        raise SettingsError(f"cluster_certificate: {path}: {reason}", CONFIGURATION) from None
    return context


def _run(
    settings: Settings, lines: LineLog, log: _WriteLog, cluster: _Cluster, notifier: Notifier
) -> None:
    """Serve with the chosen backend. ``lines``: what ``log`` writes lines to; they are written once
    in each pass of the event loop."""
    signals = _Signals(lines)
    bridge = functools.partial(
        _bridge, settings=settings, log=log, signals=signals, cluster=cluster, notifier=notifier
    )
    if settings.backend == "asyncio":
        _run_asyncio(settings, lines, signals, notifier, bridge)
    else:
        _run_trio(settings, lines, notifier, bridge)


def _run_asyncio(
    settings: Settings,
    lines: LineLog,
    signals: _Signals,
    notifier: Notifier,
    run_bridge: _RunBridge,
) -> None:
    new_loop = new_uvloop() if settings.loop == "uvloop" else None

    import asyncio

    from bridgecore_asyncio import serve

    async def bridge() -> None:
        loop = asyncio.get_running_loop()
        signals.wake(loop)
        lines.later = loop.call_soon
        watchdog = loop.create_task(notifier.keep_alive(asyncio.sleep))
        await run_bridge(serve, loop.call_soon_threadsafe)
        watchdog.cancel()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(bridge())


def new_uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        uvloop = importlib.import_module("uvloop")  # by name: it has no types where it is missing
    except ImportError:
        raise SettingsError(
            "loop uvloop is not installed: pip install 'bridgecore[uvloop]'", CONFIGURATION
        ) from None
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


def _run_trio(
    settings: Settings, lines: LineLog, notifier: Notifier, run_bridge: _RunBridge
) -> None:
    if settings.loop != "asyncio":
        raise SettingsError(
            f"loop {settings.loop} is one of the backend asyncio, and the backend is "
            f"{settings.backend}: leave one of the two settings out",
            CONFIGURATION,
        )
    try:
        import trio
    except ImportError:
        raise SettingsError(
            "backend trio is not installed: pip install 'bridgecore[trio]'", CONFIGURATION
        ) from None
    from bridgecore_trio import serve

    async def bridge() -> None:
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        lines.later = call_soon
        # A task of the system ends with the run, and needs no nursery around the bridge, which
        # would wrap its errors.
        trio.lowlevel.spawn_system_task(notifier.keep_alive, trio.sleep)
        await run_bridge(serve, call_soon)

    trio.run(bridge)


async def _bridge(
    serve: _Serve,
    call_soon: _CallSoon,
    *,
    settings: Settings,
    log: _WriteLog,
    signals: _Signals,
    cluster: _Cluster,
    notifier: Notifier,
) -> None:
    """Start the emulator, if it is the upstream, and the bridge, and wait until it has stopped.

    Awaits only what both backends offer, so that one function serves asyncio and trio.
    """
    files = raise_file_limit(log)
    async with contextlib.AsyncExitStack() as stack:

        async def listen(machine: Any, host: str, port: int, **options: Any) -> _Server:
            try:
                return await stack.enter_async_context(
                    serve(machine, host=host, port=port, **options)
                )
            except (OSError, UnicodeError) as exc:
                raise listen_error(host, port, exc) from None

        upstream = settings.upstream
        if upstream is None:
            from bridgecore.testing.emulator import Emulator

            emulator = await listen(Emulator(), "127.0.0.1", 0)
            upstream = UpstreamUrl.parse(f"ws://127.0.0.1:{emulator.port}/v1/responses")
        name = settings.replica or _make_name()
        config = settings.config(upstream, files, name, cluster.secrets)
        host = settings.host
        if cluster.sockets:  # to which clients come: only other replicas come to ``host``
            from bridgecore_cli import workers

            host = workers.peer_host(settings)
        server = await listen(
            config,
            host,
            settings.port,
            sockets=cluster.sockets,
            peer_ssl=cluster.peer_ssl,
            store=cluster.store,
            log=log,
        )
        if not cluster.sockets:  # else the process that has started the workers says it
            print_where(settings.host, server.port)
        _announce(settings, config, server, log)
        stack.callback(check_policy(settings, config, lambda record: call_soon(log, record)))
        notifier.ready()

        def drain(by: str) -> None:
            notifier.stopping()
            if by == signal.SIGINT.name and not cluster.sockets:
                _print_draining(server.machine.turns)
            server.request_drain(by)

        signals.on_first(drain)
        await server.wait_stopped()


def listen_error(host: str, port: int, why: OSError | UnicodeError) -> CommandError:
    """The error for an address that cannot be listened on."""
    reason = getattr(why, "strerror", None) or str(why)
    # The text of the system, since ``socket.create_server`` adds the address to its own. A failed
    # look-up has a number of the resolver, which means something else to the system.
    if isinstance(why, OSError) and why.errno and not isinstance(why, socket.gaierror):
        reason = os.strerror(why.errno)
    where, another = _authority(host, port), "choose another port (0: any that is free)"
    if isinstance(why, PeerPortError):
        where = f"{_authority(host, why.port)}, the port of advertise"
        another = "give advertise another port"
    advice = _advice(why, another)
    return CommandError(f"cannot listen on {where}: {reason}{advice and f'; {advice}'}", FAILURE)


def _advice(why: OSError | UnicodeError, another: str) -> str:
    """What to do about an address that cannot be listened on. ``another``: how to name another
    port."""
    if isinstance(why, UnicodeError | socket.gaierror):
        return "host has to be an address of this machine, or a name for one"
    return {
        errno.EADDRINUSE: f"end the program that listens there, or {another}",
        errno.EADDRNOTAVAIL: "host has to be an address of this machine, or 0.0.0.0 for all of its "
        "addresses",
        errno.EACCES: f"a port below 1024 needs a privilege; {another}",
    }.get(why.errno or 0, "")


def raise_file_limit(log: _WriteLog) -> int | None:
    """Raise this process's limit on open files to the highest that it may have; None: no limit.

    Systems set it to 1,024 at first for the sake of programs that use ``select``, which cannot
    handle more. The event loops here can, and ``max_sessions`` follows from it.
    """
    before, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before != highest:
        with contextlib.suppress(OSError, ValueError):  # macOS says "unlimited", and means 10,240
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = {"before": _shown(before), "highest": _shown(highest), "now": _shown(now)}
    log(Log(LogLevel.DEBUG, "files.limit", shown))
    return None if now == resource.RLIM_INFINITY else now


def _shown(limit: int) -> str | int:
    return "unlimited" if limit == resource.RLIM_INFINITY else limit


def _make_name() -> str:
    """A name for this process that no other has: it can be started again before the lease of its
    predecessor has ended."""
    return f"{os.uname().nodename}-{os.urandom(4).hex()}"


def print_where(host: str, port: int) -> None:
    """Print where the bridge can be reached."""
    _print(f"bridgecore running on http://{_authority(host, port)} (Press CTRL+C to quit)")


def _print_draining(turns: int) -> None:
    """Print that the end has begun, and how many turns run."""
    _print(f"draining, {turns} turn{'' if turns == 1 else 's'} left; CTRL+C again to quit")


def _announce(settings: Settings, config: Config, server: _Server, log: _WriteLog) -> None:
    """Log how the bridge runs."""
    fields: dict[str, str | int] = {
        "upstream": EMULATOR if settings.upstream is None else settings.upstream.authority,
        "policy": config.policy.name,
        "max_sessions": config.max_sessions,
        "backend": settings.backend,
    }
    if settings.loop != settings.backend == "asyncio":
        fields["loop"] = settings.loop
    if settings.store != MEMORY:
        # Not the URL: it may hold a password.
        fields |= {"store": settings.store.partition(":")[0], "replica": config.replica}
    log(Log(LogLevel.INFO, "serving", fields))
    for name in unknown_variables(os.environ):
        log(Log(LogLevel.WARNING, "settings.unknown", {"detail": unknown(name)}))
    warn_of(settings, server.host, log)


def warn_of(settings: Settings, address: str, log: _WriteLog) -> None:
    """Warn of settings that are valid but rarely intended. ``address``: listened on."""
    if not _is_loopback(address):
        # The bridge has neither TLS nor a login of its own: it passes credentials on, unchecked.
        detail = (
            "any host that can reach this address can use the bridge: it does not authenticate "
            "clients and does not encrypt connections; put a proxy or a firewall in front, or "
            "listen on 127.0.0.1"
        )
        log(Log(LogLevel.WARNING, "listening.open", {"host": settings.host, "detail": detail}))
    if settings.policy is V1_12:
        detail = (
            "this policy answers lost connections with previous_response_not_found, so that "
            "clients resend their whole history; it exists for demonstration, use default"
        )
        fields: dict[str, str | int] = {"policy": settings.policy.name, "detail": detail}
        log(Log(LogLevel.WARNING, "policy.broken", fields))
    elif not is_named(settings.policy):
        from bridgecore_cli.policies import overridden

        for setting, cells in overridden(settings.policy, settings.core):
            fields = {"policy": settings.policy.name, "setting": setting, "cells": ",".join(cells)}
            log(Log(LogLevel.WARNING, "policy.overridden", fields))


def check_policy(
    settings: Settings, config: Config, log: Callable[[Log], object]
) -> Callable[[], None]:
    """Begin to check a policy of one's own, unless the settings say otherwise. ``log``: any thread
    may call it. Returns a function that ends the check."""
    if is_named(settings.policy) or not settings.verify:
        return lambda: None

    from bridgecore_cli.policy_check import PolicyCheck

    deliberate = ["NO_AMBIGUOUS_RESEND"] if config.ambiguous is OnAmbiguousLoss.REPLAY else []
    return PolicyCheck(config.session_policy, log, deliberate).end


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class _Signals:
    """Handles SIGINT and SIGTERM: the first starts a drain, the second ends the process at once.

    The bridge logs the first when it begins to drain (``drain.started``), not the handler, which
    may have interrupted the writing of another line. The second one is logged here, after the
    ``lines`` that are not written yet.
    """

    def __init__(self, lines: LineLog) -> None:
        self._lines = lines
        self._first: str | None = None  # the name of the first signal, once it has come
        self._drain: Callable[[str], None] | None = None
        self._install()

    def _install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have signals wake ``loop``: one that arrives just before it sleeps would be handled only
        when something else wakes it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)  # sets signal.set_wakeup_fd
        self._install()

    def on_first(self, drain: Callable[[str], None]) -> None:
        """Call ``drain`` with the name of the first signal, at once if it was received before."""
        self._drain = drain
        if self._first is not None:
            drain(self._first)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._first is not None:
            fields: dict[str, str | int] = {"by": name, "exit_code": 128 + number}
            record = Log(LogLevel.WARNING, "drain.cut_short", fields)
            with contextlib.suppress(OSError):
                os.write(2, self._lines.unwritten(record).encode())
            os._exit(128 + number)
        self._first = name
        if self._drain is not None:
            self._drain(name)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _print(line: str) -> None:
    """Print a line of ``serve``. A closed standard output is ignored: serving goes on."""
    with contextlib.suppress(OSError, ValueError):
        print(fitted(line), flush=True)
    give_up_stdout_if_broken()
