"""What is measured: bridgecore in its variants, and the floors that it is compared with.

What belongs here: how each is started, and the processes of a measurement. Each measurement has a
process of its own, because the memory of earlier ones would change its figures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

from benchmarks.throughput import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
START_SECONDS = 15.0
# Between two looks whether a participant listens. nginx does not report it. The others write it to
# a file and not to a pipe: a pipe has to be read all the time, or it fills and the writer blocks.
POLL_SECONDS = 0.02
_NICE_0 = 20  # of RLIMIT_NICE, to give a process the usual priority (getrlimit(2))
CLIENT_SECONDS = 300  # for all turns of a measurement: 10,000 first ones take half a minute
_COMMAND = "import sys; from bridgecore_cli.entry import run; sys.exit(run())"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


class MeasurementError(Exception):
    """A measurement that has no figure, because something did not start or turns failed."""


@dataclass(frozen=True)
class Participant:
    """A program that is measured: a ``Server``, a ``Command``, or both."""

    name: str
    title: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables in addition to those of this process."""
        return {}


@dataclass(frozen=True)
class Server(Participant, ABC):
    """A program between the clients and the upstream."""

    @abstractmethod
    def serve(self, upstream: int, port: int, folder: Path, settings: Sequence[str]) -> list[str]:
        """The command that serves. ``upstream``: the port of the upstream. ``port``: one to listen
        on, for those that cannot choose one and print it. ``folder``: for files."""


@dataclass(frozen=True)
class Command(Participant, ABC):
    """A program whose start is measured."""

    @abstractmethod
    def help(self) -> list[str]:
        """The command that starts, prints its help if it has any, and ends."""


@dataclass(frozen=True)
class Bridgecore(Server, Command):
    """The command of a checkout, with transcripts, rules, and a log of level ``info``."""

    checkout: Path = ROOT
    options: tuple[str, ...] = ()

    def serve(self, upstream: int, port: int, folder: Path, settings: Sequence[str]) -> list[str]:
        url = f"ws://127.0.0.1:{upstream}/v1/responses"
        flags = ["--port", "0", "--upstream", url, "--log-level", "info"]
        return [sys.executable, "-c", _COMMAND, "serve", *flags, *self.options, *settings]

    def help(self) -> list[str]:
        return [sys.executable, "-c", _COMMAND, "--help"]

    @property
    def environment(self) -> dict[str, str]:
        return _importing(self.checkout, self.checkout / "adapters")


@dataclass(frozen=True)
class Asgi(Server):
    """The same bridge as an ASGI application under uvicorn, with httptools."""

    def serve(self, upstream: int, port: int, folder: Path, settings: Sequence[str]) -> list[str]:
        url = f"ws://127.0.0.1:{upstream}/v1/responses"
        flags = ["--port", "0", "--upstream", url, "--log-level", "info"]
        return [sys.executable, "-m", "bridgecore_asgi", "--http", "httptools", *flags, *settings]

    @property
    def environment(self) -> dict[str, str]:
        return _importing(ROOT, ROOT / "adapters")


@dataclass(frozen=True)
class Script(Server):
    """A floor of this folder, written in Python."""

    path: Path = HERE

    def serve(self, upstream: int, port: int, folder: Path, settings: Sequence[str]) -> list[str]:
        return [sys.executable, str(self.path), str(upstream)]

    @property
    def environment(self) -> dict[str, str]:
        return _importing(ROOT)


def _importing(*roots: Path) -> dict[str, str]:
    """The variable by which Python imports from ``roots`` first: the virtual environment has the
    code of one checkout, which need not be the one that is measured."""
    return {"PYTHONPATH": os.pathsep.join(map(str, roots))}


@dataclass(frozen=True)
class Interpreter(Command):
    """Python that runs nothing: the floor of a start."""

    def help(self) -> list[str]:
        return [sys.executable, "-c", "pass"]


_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 64m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream responses {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://responses; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Nginx(Server):
    """nginx as a plain HTTP proxy, one process, without a log: HTTP and SSE on both sides."""

    def serve(self, upstream: int, port: int, folder: Path, settings: Sequence[str]) -> list[str]:
        files = machine.file_limit()
        text = _NGINX.format(
            folder=folder, upstream=upstream, port=port, files=files, connections=files - 64
        )
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        program = shutil.which("nginx", path=_SEARCH) or "nginx"
        return [program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


# Distributions put nginx where only administrators search.
_SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


def find_all(against: Path | None) -> dict[str, Participant]:
    """All that can be measured here, by name. ``against``: another checkout, named ``before``."""
    found: list[Participant] = [Bridgecore("bridgecore", "bridgecore, asyncio")]
    if importlib.util.find_spec("trio") is not None:
        found.append(Bridgecore("trio", "bridgecore, trio", options=("--backend", "trio")))
    if importlib.util.find_spec("uvloop") is not None and _knows("--loop"):
        found.append(Bridgecore("uvloop", "bridgecore, uvloop", options=("--loop", "uvloop")))
    if importlib.util.find_spec("uvicorn") is not None:
        found.append(Asgi("asgi", "bridgecore, uvicorn"))
    if against is not None:
        found.append(Bridgecore("before", "bridgecore, before", checkout=against.resolve()))
    found.append(Script("null", "null bridge, h11 + wsproto", HERE / "null_bridge.py"))
    found.append(Script("relay", "bare asyncio relay", HERE / "bare_relay.py"))
    if shutil.which("nginx", path=_SEARCH) is not None:
        found.append(Nginx("nginx", "nginx, plain HTTP proxy"))
    found.append(Interpreter("python", "python -c pass"))
    return {participant.name: participant for participant in found}


def _knows(flag: str) -> bool:
    command = [sys.executable, "-c", _COMMAND, "serve", "--help"]
    return flag in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass
class Process:
    """A running participant."""

    pid: int
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/responses"


class Result(TypedDict):
    """What the load generator measured: see native/loadgen.c."""

    completed: int
    failed: int
    first_p50_us: float
    transit_p50_us: float
    transit_p99_us: float
    events: int
    cpu_ns: int
    wall_ns: int
    reasons: list[str]


@dataclass
class Clients:
    """A running load generator."""

    process: subprocess.Popen[str]

    def wait_for_streams(self) -> None:
        """Wait until every client's stream has begun, with ``--streams``."""
        if "running" not in self._line():
            raise MeasurementError("streams ended before all had begun")

    def result(self) -> Result:
        """What it measured, once it has; turns may have failed."""
        line = self._line()
        while line.startswith('{"running"'):
            line = self._line()
        found: Result = json.loads(line)
        return found

    def successes(self) -> Result:
        """The same, if no turn failed."""
        result = self.result()
        if result["failed"] or not (result["completed"] or result["events"]):
            raise MeasurementError(f"turns failed: {result}")
        return result

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise MeasurementError("the load generator ended without a result")
        return line


@dataclass
class Bench:
    """The upstream of a run, and how programs are started next to it."""

    cores: machine.Cores
    loadgen: Path
    upstream: int = 0  # its port
    upstream_pid: int = 0

    @classmethod
    @contextmanager
    def open(cls, cores: machine.Cores) -> Iterator[Bench]:
        """Start the upstream, for as long as the block runs."""
        with machine.many_files(), machine.pinned(cores.others):
            program = machine.build("upstream")
            bench = cls(cores, machine.build("loadgen"))
            process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
            try:
                assert process.stdout is not None
                bench.upstream = int(process.stdout.readline())
                bench.upstream_pid = process.pid
                yield bench
            finally:
                process.kill()
                process.communicate()

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Have the upstream stop at once when another program wakes up on its core.

        Otherwise a client and a replica that share that core wait until the upstream's time slice
        is over, which the scheduler of newer kernels (6.6) does not cut short. That is no latency
        of a bridge, which has cores of its own. Without the right to undo it, nothing is done.
        """
        nice = resource.getrlimit(resource.RLIMIT_NICE)[0]
        if os.geteuid() != 0 and nice != resource.RLIM_INFINITY and nice < _NICE_0:
            yield
            return
        os.sched_setscheduler(self.upstream_pid, os.SCHED_IDLE, os.sched_param(0))
        try:
            yield
        finally:
            os.sched_setscheduler(self.upstream_pid, os.SCHED_OTHER, os.sched_param(0))

    @contextmanager
    def serving(
        self, participant: Participant, settings: Sequence[str] = (), upstream: int | None = None
    ) -> Iterator[Process]:
        """Run a participant on the bridge's core."""
        if not isinstance(participant, Server):
            raise MeasurementError(f"{participant.title} does not serve")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            port = _free_port()
            command = participant.serve(upstream or self.upstream, port, folder, settings)
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGECORE_")}
            out, log = folder / "out", folder / "log"
            with out.open("wb") as to, log.open("wb") as errors, machine.pinned(self.cores.bridge):
                process = subprocess.Popen(
                    command,
                    stdout=to,
                    stderr=errors,
                    cwd=folder,
                    env={**inherited, **participant.environment},
                )
            try:
                chosen = _wait_for(process, out, port, isinstance(participant, Nginx))
                if chosen is None:
                    said = log.read_text(encoding="utf-8", errors="replace")
                    raise MeasurementError(f"{participant.title} did not start: {said[-500:]}")
                yield Process(process.pid, chosen, log)
            finally:
                process.kill()
                process.wait()

    @contextmanager
    def clients(self, process: Process, *flags: str | int) -> Iterator[Clients]:
        """Run the load generator against a participant; it ends with the block."""
        command = [str(self.loadgen), "--url", process.url, "--pid", str(process.pid)]
        command += ["--timeout", str(CLIENT_SECONDS)]
        running = subprocess.Popen(
            [*command, *map(str, flags)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Clients(running)
        finally:
            _close(running.stdin)
            try:
                running.wait(10)
            finally:
                running.kill()
                running.wait()
                _close(running.stdout)

    def run(self, process: Process, *flags: str | int) -> Result:
        """The result of clients whose turns must all succeed."""
        with self.clients(process, *flags) as clients:
            return clients.successes()


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], out: Path, port: int, silent: bool) -> int | None:
    """The port on which a process listens: the one it prints, or ``port`` if it prints none."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if not silent:
            found = _ADDRESS.search(out.read_text(encoding="utf-8"))
            if found:
                return int(found[1])
        else:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                pass
            else:
                return port
        time.sleep(POLL_SECONDS)
    return None
