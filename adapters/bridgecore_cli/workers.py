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
from typing import NoReturn

import attrs

from bridgecore.config import PeerUrl
from bridgecore.transport import Log, LogLevel
from bridgecore.transport.sockets import open_listeners
from bridgecore_cli.errors import CONFIGURATION, FAILURE, SettingsError
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
    """A running worker. ``reports``: where they are received."""

    number: int
    pid: int
    reports: socket.socket
    text: bytes = b""  # of a report that is not complete
    ready: bool = False
    alive: bool = False  # it has reported so since the manager was last notified


def check(settings: Settings) -> int:
    """How many workers there are.

    Raises:
        SettingsError: there are several, and they could not share conversations.
    """
    count = settings.workers or available_cpus()
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
    if count > 1 and settings.core["metrics"]:
        raise SettingsError(
            "metrics: each worker counts for itself, and a request for /metrics reaches any of "
            "them; start one process for each port instead, each with a --replica of its own",
            CONFIGURATION,
        )
    return count


def available_cpus() -> int:
    """How many CPUs this process may use: those of the machine if the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def listen(host: str, port: int) -> list[socket.socket]:
    """The sockets that all workers accept on.

    Raises:
        OSError, UnicodeError: the address cannot be listened on.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return open_listeners(found, socket.create_server)


class Supervisor:
    """Runs ``count`` workers, and one more in place of each that ends, until a signal comes.

    ``listeners``: what the workers accept on; ``run`` closes them.
    """

    def __init__(
        self,
        settings: Settings,
        count: int,
        listeners: Sequence[socket.socket],
        serve: Serve,
        notifier: Notifier,
    ) -> None:
        self._settings = settings
        self._count = count
        self._listeners = listeners
        self._serve = serve
        self._notifier = notifier
        self._lines = LineLog(sys.stderr, settings.log_level)
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._awake, self._waker = socket.socketpair()  # a signal makes the first one readable
        # When to start a worker, and its number.
        self._due: list[tuple[float, int]] = [(0.0, number) for number in range(count)]
        self._announced = False
        self._signals = 0
        self._code = 0

    def run(self, announce: Callable[[], None]) -> int:
        """Run until all workers have ended; the exit code. ``announce``: called when all are ready
        for the first time.

        Raises:
            SystemExit: this is the process of a worker, which has drained.
            Exception: this is the process of a worker; whatever ``serve`` raised.
        """
        for end in (self._awake, self._waker):
            end.setblocking(False)
        before = {each: signal.signal(each, self._signalled) for each in _SIGNALS}
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._awake, selectors.EVENT_READ)
        try:
            self._start_due()
            while self._workers or self._due:
                for key, _ in self._selector.select(self._wait()):
                    worker = next((w for w in self._workers if w.reports is key.fileobj), None)
                    if worker is not None:
                        self._read_reports(worker)
                    else:
                        with contextlib.suppress(BlockingIOError):
                            self._awake.recv(64)
                if self._all_ready() and not self._announced:
                    self._announced = True
                    announce()
                    self._notifier.ready()
                self._start_due()
                self._lines.flush()
            return self._code
        finally:  # at the end of a worker, too
            signal.set_wakeup_fd(-1)
            for each, handler in before.items():
                signal.signal(each, handler)
            for open_socket in (self._awake, self._waker, *self._listeners):
                open_socket.close()

    # ------------------------------------------------------------ starting

    def _start_due(self) -> None:
        """Start each worker whose time has come. In the process of a worker this does not return:
        see ``_work``."""
        # Signals wait meanwhile: they are passed on to workers that are listed, and a new process
        # has to drop this one's handlers first.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        now = time.monotonic()
        for at, number in list(self._due):
            if at <= now:
                self._due.remove((at, number))
                if not self._signals:
                    self._start(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        self._lines.flush()  # or the new process would write the lines again
        pid = os.fork()
        if not pid:
            ours.close()
            self._work(number, theirs)
        theirs.close()
        ours.setblocking(False)
        self._workers.append(_Worker(number, pid, ours))
        self._selector.register(ours, selectors.EVENT_READ)

    def _work(self, number: int, supervisor: socket.socket) -> NoReturn:
        """Serve, in the process of a worker, and exit. ``supervisor``: where it sends reports."""
        # Until it has handlers of its own, a signal ends it.
        signal.set_wakeup_fd(-1)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        # A group of its own: CTRL+C on the terminal reaches the supervisor, which passes it on.
        os.setpgid(0, 0)
        for inherited in (self._awake, self._waker, *(other.reports for other in self._workers)):
            inherited.close()
        self._selector.close()
        settings = worker_settings(self._settings, number)
        with WorkerNotifier(supervisor, self._notifier.interval) as notifier:
            sys.exit(self._serve(settings, self._listeners, notifier))

    def _wait(self) -> float | None:
        """Seconds until something is due; None: nothing is."""
        times = [max(0.0, at - time.monotonic()) for at, _ in self._due]
        return min(times, default=None)

    # ------------------------------------------------------------ reports and signals

    def _all_ready(self) -> bool:
        return len(self._workers) == self._count and all(each.ready for each in self._workers)

    def _read_reports(self, worker: _Worker) -> None:
        try:
            data = worker.reports.recv(4096)
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
        self._selector.unregister(worker.reports)
        worker.reports.close()
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


def peer_host(settings: Settings) -> str:
    """The address at which a worker with ``settings`` takes forwards: where the workers of a
    machine look for each other, whatever address clients come to; or that of clients, if replicas
    on other machines are to reach it, too."""
    url = settings.advertise
    return _HERE if url is not None and url.host == _HERE else settings.host


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
        verify=settings.verify and number == 0,  # once is enough
    )
