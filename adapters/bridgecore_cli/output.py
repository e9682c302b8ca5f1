"""What a command writes: files, text for a terminal, and a standard output that may be closed.

What belongs here: what is the same for every command, and what the process does at its end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import IO, Final


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


def columns(stream: IO[str] | None = None) -> int | None:
    """The width of the terminal that ``stream`` (None: standard output) writes to; None if it is no
    terminal: there lines may have any length, because programs read them."""
    stream = sys.stdout if stream is None else stream
    if stream is None or not stream.isatty():
        return None
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def fitted(text: str, stream: IO[str] | None = None) -> str:
    """``text`` with each line wrapped between words to the width of ``columns``; further lines are
    indented. A word is broken only if it is longer than a line. Colours take no room."""
    return wrapped(text, columns(stream))


def width_of_output() -> int | None:
    """The columns that a line of a report may have: those of the terminal, or, anywhere, those that
    ``COLUMNS`` in the environment says. None: as many as it needs."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return max(_NARROWEST, shutil.get_terminal_size().columns)
    return columns()


def wrapped(text: str, width: int | None, *, whole: bool = False) -> str:
    """``text`` with each line that has more than ``width`` columns broken between words; what goes
    on is indented. ``whole``: a word that is longer than a line, such as the path of a file, stays
    in one piece, so that it can be copied."""
    if width is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _parts(line, width, whole))


def _parts(line: str, width: int, whole: bool) -> list[str]:
    """``line`` in parts of at most ``width`` columns."""
    if _length(line) <= width:
        return [line]
    body = line.lstrip(" ")
    indent = " " * min(len(line) - len(body), width // 2)
    parts, part, empty = [], indent, True
    for word in body.split(" "):
        while True:
            longer = part + word if empty else f"{part} {word}"
            if _length(longer) <= width:
                part, empty = longer, False
                break
            if not empty:
                parts.append(part.rstrip(" "))
                part, empty = indent + "  ", True
                continue
            room = len(word) if whole else width - len(part)  # even alone it is too long
            parts.append(part + word[:room])
            word, part = word[room:], indent + "  "
            if not word:
                break
    return parts if empty and parts else [*parts, part]


_NARROWEST: Final = 20  # columns for which text is still wrapped
_COLOUR: Final = re.compile("\033\\[[0-9;]*m")


def _length(text: str) -> int:
    return len(_COLOUR.sub("", text))


def write_file(path: Path, text: str) -> bool:
    """Write the file at ``path``; False, after printing the reason, if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        error = f"bridgecore: error: cannot write {path}: {exc.strerror}"
        print(fitted(error, sys.stderr), file=sys.stderr)
        return False
    return True
