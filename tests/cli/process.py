"""Runs the command as a process: starts it, reads its port, waits for its end.

What belongs here: what more than one file of this folder needs to run the command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

TIME_LIMIT = 20  # seconds
COMMAND = [sys.executable, "-W", "error", "-m", "bridgecore_cli"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    ours = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("BRIDGECORE_") and key not in ("COLUMNS", "LINES")
    }
    return {**ours, **(extra or {})}


def run(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


@contextmanager
def serving(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        env=environment(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def running_port(process: subprocess.Popen[str]) -> int:
    """The port in the first line on standard output, which must be exactly as documented."""
    line = pipe(process.stdout).readline()
    match = re.fullmatch(
        r"bridgecore running on http://127\.0\.0\.1:(\d+) \(Press CTRL\+C to quit\)\n", line
    )
    assert match, line or pipe(process.stderr).read()
    return int(match[1])


# ------------------------------------------------------------------ in a terminal


def in_a_terminal(
    *arguments: str,
    columns: int = 80,
    interrupt_at: str = "",
    before: str = "",
    environ: Mapping[str, str],
) -> tuple[int, str]:
    """Run the command in a terminal that is so wide; its exit code, and all that it wrote. It gets
    SIGINT from the terminal when it has written ``interrupt_at``. ``before``: a line of Python that
    is run first."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", IN_A_TERMINAL.replace("BEFORE", before), *arguments],
        env=environment({"TERM": "xterm-256color", **environ}),
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while piece := os.read(main, 65_536):
            written += piece
            if interrupt_at and interrupt_at.encode() in written:
                os.write(main, b"\x03")
                interrupt_at = ""
    os.close(main)
    return process.wait(TIME_LIMIT), written.decode()


# Makes the terminal the controlling one, whose Ctrl-C is a signal.
IN_A_TERMINAL = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from bridgecore_cli.entry import run
BEFORE
sys.exit(run())
"""


def screen_lines(written: str) -> list[str]:
    """What is written to a terminal as lines, without escape sequences. A line that is replaced
    counts as several."""
    return re.split(r"\r*\n|\r", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))
