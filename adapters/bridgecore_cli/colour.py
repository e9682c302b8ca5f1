"""Colours on a terminal.

What belongs here: when there are any, and the few that commands use. There are none if the stream
is no terminal, if the environment has a ``NO_COLOR`` that is not empty (https://no-color.org), or
if ``TERM`` is ``dumb``.
"""

from __future__ import annotations

import enum
import os
import sys
from typing import IO


class Colour(enum.Enum):
    """What a text is. The value is the code that begins it (ECMA-48, SGR)."""

    GOOD = "\033[32m"  # green
    BAD = "\033[1;31m"  # bold red
    WARN = "\033[33m"  # yellow
    HEAD = "\033[1m"  # bold
    FAINT = "\033[2m"


_END = "\033[0m"


def has_colour(stream: IO[str] | None = None) -> bool:
    """Whether ``stream`` (None: standard output) takes colours."""
    stream = sys.stdout if stream is None else stream
    if stream is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, colour: Colour, stream: IO[str] | None = None) -> str:
    """``text`` in ``colour`` if ``stream`` (None: standard output) takes colours."""
    return f"{colour.value}{text}{_END}" if has_colour(stream) else text
