"""What a command writes: files, text for a terminal, and a standard output that may be closed.

What belongs here: what is the same for every command, and what the process does at its end.
"""

from __future__ import annotations

import contextlib
import os
import re
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
    given = _columns_given()
    if given is None:
        # Of this stream, not of standard output as in ``shutil``: that may be a pipe or a file.
        try:
            given = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):
            given = 0
    return max(_NARROWEST, given or _USUAL)


def _columns_given() -> int | None:
    """The columns that ``COLUMNS`` in the environment says, if it says any."""
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else None


def fitted(text: str, stream: IO[str] | None = None) -> str:
    """``text`` with each line wrapped between words to the width of ``columns``; further lines are
    indented. A word is broken only if it is longer than a line. Colours take no room."""
    return wrapped(text, columns(stream))


def width_of_output() -> int | None:
    """The columns that a line of a report may have: those of the terminal, or, anywhere, those that
    ``COLUMNS`` in the environment says. None: as many as it needs."""
    given = _columns_given()
    return columns() if given is None else max(_NARROWEST, given)


def print_text(text: str) -> None:
    """Print ``text``, which people read, to standard output: on a terminal no line is wider than
    that. What programs read (JSON, decision logs, scripts, log records) is printed as it is."""
    print(fitted(text), flush=True)


def print_error(text: str) -> None:
    """Print ``text`` to standard error: one line in a pipe or a file, wrapped on a terminal."""
    print(fitted(text, sys.stderr), file=sys.stderr, flush=True)


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
    # A word that has room in a line of its own is not broken for the sake of the indent.
    longest = max([_length(word) for word in body.split(" ")])
    room = max(0, width - 2 - longest) if longest <= width else width
    indent = " " * min(len(line) - len(body), width // 2, room)
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
_USUAL: Final = 80  # columns of a terminal that does not say how many it has
_COLOUR: Final = re.compile("\033\\[[0-9;]*m")


def plain(text: str) -> str:
    """``text`` without its colours."""
    return _COLOUR.sub("", text)


def _length(text: str) -> int:
    return len(plain(text))


def write_file(path: Path, text: str) -> bool:
    """Write the file at ``path``; False, after printing the reason, if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        print_error(f"bridgecore: error: cannot write {path}: {exc.strerror}")
        return False
    return True
