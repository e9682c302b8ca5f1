"""Shows the progress of a long command on one line of the terminal.

What belongs here: drawing that line. Nothing is written if standard error is not a terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from bridgecore_cli.output import columns

_WIDTH: Final = 20  # characters


def show(text: str) -> None:
    """Replace the line with ``text``, as much of it as fits; an empty text clears it. A terminal
    would go on in the next line, and only that one would be cleared."""
    width = columns(sys.stderr)
    if width is not None:
        with contextlib.suppress(OSError, ValueError):  # COLUMNS may be wrong
            width = min(width, os.get_terminal_size(sys.stderr.fileno()).columns or width)
        print(f"\r\033[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)


def bar(done: float) -> str:
    """A progress bar; ``done`` is a fraction from 0 to 1."""
    return f"[{('#' * round(done * _WIDTH)).ljust(_WIDTH, '.')}]"
