"""``bridgecore serve --workers N``: N processes that accept on the same sockets, each a replica.

What belongs here: starting the workers, what they report, restarting one that has ended, and
passing signals on. Workers share nothing but the sockets and the store: a turn that reaches another
worker than its conversation's is forwarded, as between hosts.

Each worker reports to this process over a pair of sockets, in the words of ``sd_notify(3)``. At the
end of this process a worker reads the end of that stream, and drains.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import attrs

from bridgecore.config import PeerUrl
from bridgecore.transport import Log, LogLevel
from bridgecore.transport.sockets import BACKLOG
from bridgecore_cli.errors import CONFIGURATION, FAILURE, CommandError, SettingsError
from bridgecore_cli.logs import LineLog
from bridgecore_cli.notify import Notifier
from bridgecore_cli.settings import MEMORY, Settings

# Seconds after which a worker that has ended is started again. Not at once: one that cannot run
# would take all the time of the machine.
_PAUSE = 1.0
_HERE = "127.0.0.1"

Serve = Callable[[Settings, Sequence[socket.socket], Notifier], int]
"""Runs one worker until it has drained; its exit code."""


class WorkerNotifier(Notifier):
    """Reports to the process that has started this worker, instead of a service manager."""

    def __init__(self, to: socket.socket, interval: float | None) -> None:
        super().__init__({})
        self._socket = to
        self.interval = interval
        threading.Thread(target=self._await_end, args=(to.dup(),), daemon=True).start()

    @staticmethod
    def _await_end(other: socket.socket) -> None:
        """Drain when the other end is gone: nothing would restart or stop this worker any more."""
        with contextlib.suppress(OSError), other:
            other.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _send(self, message: bytes, patience: float = 0) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(message + b"\n")


@attrs.define(eq=False)
class _Worker:
    """A running worker. ``said``: our end of the pair of sockets."""

    number: int
    pid: int
    said: socket.socket
    text: bytes = b""
    ready: bool = False
    alive: bool = False  # it has reported so since the manager was last notified


def check(settings: Settings) -> int:
    """How many workers there are.

    Raises:
        SettingsError: there are several, and they could not share conversations.
    """
    count = settings.workers or len(os.sched_getaffinity(0))
    if count > 1 and settings.store == MEMORY:
        raise SettingsError(
            "workers: each is a replica, so they need a store that they share, for example "
            "--store sqlite:PATH with --cluster-keys FILE",
            CONFIGURATION,
        )
    if count > 1 and settings.upstream is None:
        raise SettingsError(
            "workers: the embedded emulator belongs to one process; name an upstream, or leave "
            "workers out",
            CONFIGURATION,
        )
    return count


class Supervisor:
    """Runs ``count`` workers, and one more in place of each that ends, until a signal comes."""

    def __init__(self, settings: Settings, count: int, serve: Serve, notifier: Notifier) -> None:
        self._settings = settings
        self._count = count
        self._serve = serve
        self._notifier = notifier
        self._lines = LineLog(sys.stderr, settings.log_level)
        self._workers: list[_Worker] = []
        self._listeners: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int]] = []  # when to start a worker again, and its number
        self._announced = False
        self._signals = 0
        self._code = 0

    def run(self, announce: Callable[[int], None]) -> int | Callable[[], int]:
        """Run until all workers have ended; the exit code. ``announce``: called with the port when
        all are ready for the first time.

        Returns a function in a worker, which is to be called there: it serves.

        Raises:
            CommandError: the address cannot be listened on.
        """
        self._listen()
        before = {each: signal.signal(each, self._signalled) for each in _SIGNALS}
        awake, waker = socket.socketpair()
        for end in (awake, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(awake, selectors.EVENT_READ)
        try:
            for number in range(self._count):
                if (serve := self._start(number)) is not None:
                    return serve
            while self._workers or self._due:
                for key, _ in self._selector.select(self._wait()):
                    worker = next((w for w in self._workers if w.said is key.fileobj), None)
                    if worker is not None:
                        self._listen_to(worker)
                    else:
                        with contextlib.suppress(BlockingIOError):
                            awake.recv(64)
                if self._all_ready() and not self._announced:
                    self._announced = True
                    announce(self._listeners[0].getsockname()[1])
                    self._notifier.ready()
                if (serve := self._restart()) is not None:
                    return serve
                self._lines.flush()
            return self._code
        finally:
            signal.set_wakeup_fd(-1)
            for each, handler in before.items():
                signal.signal(each, handler)
            awake.close()
            waker.close()
            if not self._is_worker:
                for listener in self._listeners:
                    listener.close()

    # ------------------------------------------------------------ starting

    _is_worker = False

    def _listen(self) -> None:
        settings = self._settings
        try:
            found = socket.getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, _, _, _, address in dict.fromkeys(found):
                listener = socket.create_server(address, family=family, backlog=BACKLOG)
                self._listeners.append(listener)
        except (OSError, UnicodeError) as exc:
            reason = getattr(exc, "strerror", None) or str(exc)
            where = f"{settings.host}:{settings.port}"
            raise CommandError(f"cannot listen on {where}: {reason}", FAILURE) from None

    def _start(self, number: int) -> Callable[[], int] | None:
        """Start a worker. In that worker: what it has to do."""
        ours, theirs = socket.socketpair()
        self._lines.flush()
        # Until it has handlers of its own, a signal ends the new process, and is not passed on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if pid:
            theirs.close()
            ours.setblocking(False)
            worker = _Worker(number, pid, ours)
            self._workers.append(worker)
            self._selector.register(ours, selectors.EVENT_READ)
            return None
        self._is_worker = True
        # A group of its own: CTRL+C on the terminal reaches this process only, which passes it on.
        os.setpgid(0, 0)
        ours.close()
        for other in self._workers:
            other.said.close()
        self._selector.close()
        own = worker_settings(self._settings, number)

        def serve() -> int:
            with WorkerNotifier(theirs, self._notifier.interval) as notifier:
                return self._serve(own, self._listeners, notifier)

        return serve

    def _restart(self) -> Callable[[], int] | None:
        now = time.monotonic()
        for entry in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove(entry)
            if not self._signals and (serve := self._start(entry[1])) is not None:
                return serve
        return None

    def _wait(self) -> float | None:
        """Seconds until something is due; None: nothing is."""
        times = [max(0.0, at - time.monotonic()) for at, _ in self._due]
        return min(times, default=None)

    # ------------------------------------------------------------ reports and signals

    def _all_ready(self) -> bool:
        return len(self._workers) == self._count and all(each.ready for each in self._workers)

    def _listen_to(self, worker: _Worker) -> None:
        try:
            data = worker.said.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended(worker)
            return
        *lines, worker.text = (worker.text + data).split(b"\n")
        for line in lines:
            worker.ready = worker.ready or line == b"READY=1"
            worker.alive = worker.alive or line == b"WATCHDOG=1"
        if self._all_ready() and all(each.alive for each in self._workers):
            self._notifier.alive()
            for each in self._workers:
                each.alive = False

    def _ended(self, worker: _Worker) -> None:
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._selector.unregister(worker.said)
        worker.said.close()
        self._workers.remove(worker)
        if self._signals:
            if worker.ready:  # else it had nothing to finish
                self._code = self._code or (code if code >= 0 else 128 - code)
            return
        fields: dict[str, str | int] = {"worker": worker.number, "exit_code": code}
        if not worker.ready and not self._announced:
            # It has said why. The others would most likely fail in the same way.
            self._code = code if code > 0 else FAILURE
            self._signals = 1
            self._pass_on(signal.SIGTERM)
            return
        self._lines(Log(LogLevel.ERROR, "worker.ended", fields))
        self._due.append((time.monotonic() + _PAUSE, worker.number))

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if not self._signals:
            self._notifier.stopping()
        elif self._signals == 1:
            self._code = 128 + number
        self._signals += 1
        self._due.clear()
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, number)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def worker_settings(settings: Settings, number: int) -> Settings:
    """The settings of a worker: what has to differ between replicas does."""
    url = settings.advertise or PeerUrl(_HERE, 0, tls=False)
    port = url.port + number if url.port else 0
    log = settings.decision_log
    return attrs.evolve(
        settings,
        replica=None if settings.replica is None else f"{settings.replica}-{number}",
        advertise=attrs.evolve(url, port=port),
        decision_log=None if log is None else f"{log}.{number}",
    )
