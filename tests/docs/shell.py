"""Runs commands of the documentation as a reader would run them, in a checkout of links or a copy.

What belongs here: what the tutorial's test and that of all other commands share. What a command
must print is known by the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import attrs

from tests.docs.pages import ROOT
from tests.e2e.conftest import TIME_LIMIT, environment, eventually
from tests.test_project import tree

# What `make` and pytest set for what they run, such as these tests: none of a reader's business.
_NOT_A_READERS = re.compile(r"ARGS|MAKEFLAGS|MAKELEVEL|MFLAGS|VENV|PYTEST_.*")
_STAMPS = (".ready-to-run", ".ready-to-develop", ".ready-for-nightly")


def expected(text: str) -> re.Pattern[str]:
    """What a block of output means: ``...`` is anything, and a line may be broken anywhere."""
    words = [re.escape(word).replace(r"\.\.\.", ".*?") for word in text.split()]
    return re.compile(r"\s+".join(words), re.DOTALL)


def checkout(folder: Path, *, copied: bool = False) -> Path:
    """A checkout in ``folder``, with the environment of this Python as its ``.venv``.

    So a command runs as it is shown, and ``make`` without its set-up. The checkout consists of
    links: a file that a command writes at the top is not in the repository, but what it writes
    below a linked folder would be. ``copied``: of copies, for commands that do so.
    """
    if copied:
        for path in tree():
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)  # with its times: see the stamps below
    else:
        for path in ROOT.iterdir():
            if path.name != ".venv":
                (folder / path.name).symlink_to(path)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name not in _STAMPS:
            (folder / ".venv" / path.name).symlink_to(path)
    for name in _STAMPS:  # younger than the pins, so that nothing is installed
        (folder / ".venv" / name).touch()
    return folder


@attrs.frozen
class Service:
    """A command that goes on running: ``port`` on the page, and the line that says it is ready."""

    port: str
    ready: str


RUNNING = r"[Rr]unning on http://127\.0\.0\.1:(\d+)"


class Shell:
    """Runs commands in a folder, and keeps what they print.

    Attributes:
        copied: whether the folder is a checkout of copies. Its sources are then those that commands
            import, though the environment has those of the repository.
        ports: the port on the page, and the one that the system chose instead.
        printed: by the last command.
    """

    def __init__(self, folder: Path, stack: ExitStack, *, copied: bool = False) -> None:
        self.folder, self.stack, self.copied = folder, stack, copied
        self.ports: dict[str, int] = {}
        self.printed = ""
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def output(self) -> str:
        """What the last command has printed, and what goes on running."""
        return self.printed + "".join(log.read_text(encoding="utf-8") for _, log in self._running)

    def find(self, text: str) -> None:
        """Wait until ``text`` is printed: a log may be written after the answer."""
        pattern = expected(self.here(text))
        try:
            eventually(lambda: pattern.search(self.output()))
        except AssertionError:
            raise AssertionError(f"{text}\n\nis not in\n\n{self.output()}") from None

    def here(self, text: str) -> str:
        """``text`` with the ports that were chosen here."""
        for page, port in self.ports.items():
            text = text.replace(f":{page}", f":{port}")
        return text

    def run(self, command: str, status: int = 0, limit: float = 3 * TIME_LIMIT) -> None:
        """Run a command that has to end with ``status``, in ``limit`` seconds."""
        with self._popen(command, subprocess.PIPE) as process:
            try:
                printed, _ = process.communicate(timeout=limit)
            finally:
                _end(process)
        self.printed = printed.decode()
        assert process.returncode == status, f"{command}: exit {process.returncode}\n{self.printed}"

    def start(self, command: str, service: Service) -> int:
        """Start a command that goes on running, and wait until it is ready; its port."""
        log = self.folder / f"{service.port}-{len(self._running)}.log"
        with log.open("wb") as file:
            process = self._popen(command, file)
        self.stack.callback(_end, process)
        self._running.append((process, log))

        def ready() -> re.Match[str] | None:
            said = log.read_text(encoding="utf-8")
            assert process.poll() is None, f"{command}: exit {process.returncode}\n{said}"
            return re.search(service.ready, said)

        eventually(ready)
        found = ready()
        assert found is not None
        self.ports[service.port] = int(found[1])
        self.printed = ""
        return int(found[1])

    def stop(self) -> None:
        """End what was started, by SIGTERM as a service manager would; it has to end by itself."""
        while self._running:
            process, log = self._running.pop()
            process.terminate()
            code = process.wait(TIME_LIMIT)
            # make and uvicorn end by the signal itself, once what they run has ended well.
            assert code in (0, -signal.SIGTERM), f"exit {code}\n{log.read_text(encoding='utf-8')}"

    def _popen(self, command: str, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, so that all that it starts can be ended."""
        environ = {
            name: text for name, text in environment().items() if not _NOT_A_READERS.fullmatch(name)
        }
        environ["COLUMNS"] = "80"  # as on the pages; the runner of the tests may have set another
        environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if self.copied:
            environ["PYTHONPATH"] = f"{self.folder}:{self.folder / 'adapters'}"
        return subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", self.here(command)],
            cwd=self.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, whatever has become of them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
