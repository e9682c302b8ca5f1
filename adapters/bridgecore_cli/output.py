"""What a command writes: files, text for a terminal, and a standard output that may be closed.

What belongs here: what is the same for every command, and what the process does at its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Final

_NARROWEST: Final = 20  # columns for which text is still wrapped


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


def width_of_output() -> int | None:
    """The columns that a line of standard output may have: those of the terminal, or, anywhere,
    those that ``COLUMNS`` in the environment says. None: as many as it needs."""
    given = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty() or (given.isdecimal() and int(given) > 0):
        return max(_NARROWEST, shutil.get_terminal_size().columns)
    return None


def wrapped(text: str, width: int | None) -> str:
    """``text`` with each line that has more than ``width`` columns broken between words; what goes
    on is indented."""
    if width is None:
        return text
    return "\n".join(
        line
        if len(line) <= width
        else textwrap.fill(
            line,
            width,
            subsequent_indent=line[: len(line) - len(line.lstrip())][: width // 2] + "  ",
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )


def write_file(path: Path, text: str) -> bool:
    """Write the file at ``path``; False, after printing the reason, if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        print(f"bridgecore: error: cannot write {path}: {exc.strerror}", file=sys.stderr)
        return False
    return True
