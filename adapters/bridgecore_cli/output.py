"""What a command writes: files, text for a terminal, and a standard output that may be closed.

What belongs here: what is the same for every command, and what the process does at its end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def give_up_stdout_if_broken() -> None:
    """If standard output is a closed pipe, redirect it to the null device. Otherwise the
    interpreter would report an error when it flushes the rest at exit."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` with control characters escaped: what comes from a file, a database or a user may
    contain commands to the terminal. ``lines``: line breaks stay."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)


def write_file(path: Path, text: str) -> bool:
    """Write the file at ``path``; False, after printing the reason, if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        print(f"bridgecore: error: cannot write {path}: {exc.strerror}", file=sys.stderr)
        return False
    return True
