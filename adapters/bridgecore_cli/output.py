"""Standard output that may be closed.

What belongs here: what every command does if nobody reads its output any more.
"""

from __future__ import annotations

import contextlib
import os
import sys


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
