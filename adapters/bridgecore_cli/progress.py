"""How far a long command has come, on one line of the terminal.

What belongs here: the line. It is for people: without a terminal there is none.
"""

from __future__ import annotations

import sys
from typing import Final

_WIDTH: Final = 30  # characters


def show(text: str) -> None:
    """Put ``text`` in place of the last one; nothing: it is over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def bar(done: float) -> str:
    """A bar of which the part ``done`` (0 to 1) is full."""
    return f"[{('#' * round(done * _WIDTH)).ljust(_WIDTH, '.')}]"
