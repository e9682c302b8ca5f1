"""Runs the command as a process: starts it, reads its port, waits for its end.

What belongs here: what more than one file of this folder needs to run the command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

TIME_LIMIT = 20  # seconds
COMMAND = [sys.executable, "-W", "error", "-m", "bridgecore_cli"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGECORE_")}
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
