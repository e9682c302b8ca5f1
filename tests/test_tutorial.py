"""The tutorial, run as a reader would run it: each command of the page, in order.

What belongs here: the commands and the output of ``docs/tutorial.rst``. Some things are done in
another way than a reader does them: the system chooses the ports, what is to be installed has to be
installed already, programs run in this process, and the last command, which takes longest, is run
by ``tests/cli/test_verify.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from tests.e2e.conftest import environment, eventually

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
VERIFY = (
    "cd docs/examples && "
    "../../.venv/bin/bridgecore verify --policy policies:careless --bounds quick"
)
PYTHON = ".venv/bin/python"
INSTALL = f"{PYTHON} -m pip install "


@attrs.frozen
class Service:
    """A command that goes on running: ``port`` on the page, and the line that says it is ready."""

    port: str
    ready: str


SERVICES = {
    "make run": Service("8080", r"running on http://127\.0\.0\.1:(\d+) "),
    "upstream.py": Service("9000", r"ws://127\.0\.0\.1:(\d+)/"),
    "uvicorn": Service("8000", r"running on http://127\.0\.0\.1:(\d+) "),
}


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of code on the page, in order."""
    page = (ROOT / "docs" / "tutorial.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", page, re.MULTILINE)
    return [
        (name, re.sub(r"^   ", "", text, flags=re.MULTILINE).strip("\n")) for name, text in found
    ]


def expected(text: str) -> re.Pattern[str]:
    """What a block of output stands for: ``...`` is anything, and a line may be broken anywhere."""
    words = [re.escape(word).replace(r"\.\.\.", ".*?") for word in text.split()]
    return re.compile(r"\s+".join(words), re.DOTALL)


class Reader:
    """Runs the commands of the page, and keeps what they print."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.ports: dict[str, int] = {}  # on the page: here
        self.printed = ""  # by the last command
        self.logs: list[Path] = []  # of what goes on running

    def output(self) -> str:
        """What the last command has printed, and what goes on running."""
        return self.printed + "".join(log.read_text(encoding="utf-8") for log in self.logs)

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

    def run(self, command: str) -> None:
        """Run a command; one that goes on running until it is ready."""
        for name, service in SERVICES.items():
            if name in command and not command.startswith(INSTALL):
                self.start(command, service)
                return
        for program in EXAMPLES.glob("*.py"):
            source = self.here(program.read_text(encoding="utf-8"))
            (self.folder / program.name).write_text(source, encoding="utf-8")
        if command.startswith(f"{PYTHON} docs/examples/"):
            self.printed = self.run_program(*command.split()[1:])
            return
        done = subprocess.run(
            ["bash", "-c", self.here(command)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        self.printed = done.stdout

    def run_program(self, program: str, *arguments: str) -> str:
        """What a program prints. It runs in this process, where its imports are loaded already."""
        printed, before = io.StringIO(), (sys.argv, sys.path)
        file = str(self.folder / Path(program).name)
        sys.argv, sys.path = [file, *arguments], [str(self.folder), *sys.path]
        try:
            with contextlib.redirect_stdout(printed):
                runpy.run_path(file, run_name="__main__")
        finally:
            sys.argv, sys.path = before
            sys.modules.pop("policies", None)
        return printed.getvalue()

    def start(self, command: str, service: Service) -> None:
        command = self.here(command).replace(f" {service.port}", " 0")
        if command == "make run":  # without its set-up
            assert "@$(BIN)/bridgecore serve $(ARGS)" in (ROOT / "Makefile").read_text()
            command = f"{PYTHON} -m bridgecore_cli serve --port 0"
        log = self.folder / f"{service.port}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", command.replace(PYTHON, shlex.quote(sys.executable))],
                cwd=ROOT,
                env=environment(),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.stack.callback(process.wait)
        self.stack.callback(os.killpg, process.pid, signal.SIGKILL)
        self.logs.append(log)
        eventually(lambda: re.search(service.ready, log.read_text(encoding="utf-8")))
        found = re.search(service.ready, log.read_text(encoding="utf-8"))
        assert found is not None
        self.ports[service.port] = int(found[1])
        self.printed = ""


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial needs curl")
def test_the_tutorial(tmp_path: Path) -> None:
    with ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        last = ""
        for language, text in blocks():
            if language == "sh":
                last = text.replace("\\\n", "")
                if last.startswith(INSTALL):
                    for package in last.removeprefix(INSTALL).split():
                        assert importlib.util.find_spec(package) is not None, package
                elif last != VERIFY:
                    reader.run(last)
            elif last != VERIFY:
                reader.find(text)
    assert last == VERIFY
