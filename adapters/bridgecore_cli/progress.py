"""Shows the progress of a long command on one line of the terminal.

What belongs here: drawing that line. Nothing is written if standard error is not a terminal.
"""

from __future__ import annotations

import shutil
import sys
from typing import Final

_WIDTH: Final = 30  # characters


def show(text: str) -> None:
    """Replace the line with ``text``; an empty text clears it. What is too long for the terminal is
    cut off: a line that wraps cannot be replaced."""
    if sys.stderr.isatty():
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def bar(done: float) -> str:
    """A progress bar; ``done`` is a fraction from 0 to 1."""
    return f"[{('#' * round(done * _WIDTH)).ljust(_WIDTH, '.')}]"
