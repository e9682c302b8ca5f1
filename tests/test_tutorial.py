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
import runpy
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, blocks, lines_of
from tests.docs.shell import RUNNING, Service, Shell, checkout

EXAMPLES = DOCS / "examples"
VERIFY = (
    "cd docs/examples && "
    "../../.venv/bin/bridgecore verify --policy policies:careless --bounds quick"
)
PYTHON = ".venv/bin/python"
INSTALL = f"{PYTHON} -m pip install "
PAGE = blocks((DOCS / "tutorial.rst").read_text(encoding="utf-8"))
SERVICES = {
    "make run": Service("8080", RUNNING),
    "upstream.py": Service("9000", r"ws://127\.0\.0\.1:(\d+)/"),
    "uvicorn": Service("8000", RUNNING),
}


class Reader(Shell):
    """Runs the commands of the page: programs in this process, servers until the end."""

    def read(self, command: str) -> None:
        """Do what one block of the page says."""
        for name, service in SERVICES.items():
            if name in command:
                bare = self.here(command).replace(f" {service.port}", " 0")
                self.start(bare + (' ARGS="--port 0"' if name == "make run" else ""), service)
                return
        if command.startswith(f"{PYTHON} docs/examples/"):
            self.printed = self.run_program(*shlex.split(command)[1:])
        else:
            self.run(command)

    def run_program(self, program: str, *arguments: str) -> str:
        """What a program prints. It runs in this process, where its imports are loaded already."""
        for path in EXAMPLES.glob("*.py"):
            source = self.here(path.read_text(encoding="utf-8"))
            (self.folder / path.name).write_text(source, encoding="utf-8")
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


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial needs curl")
def test_the_tutorial(tmp_path: Path) -> None:
    with ExitStack() as stack:
        reader = Reader(checkout(tmp_path), stack)
        last = ""
        for block in PAGE:
            if block.language == "sh":
                (last,) = lines_of(block.text)
                if last.startswith(INSTALL):
                    for package in last.removeprefix(INSTALL).split():
                        assert importlib.util.find_spec(package) is not None, package
                elif last != VERIFY:
                    reader.read(last)
            elif last != VERIFY:
                reader.find(block.text)
        reader.stop()
    assert last == VERIFY
