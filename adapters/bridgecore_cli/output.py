"""Standard output whose reader has closed the pipe, as ``| head -1`` does.

What belongs here: what every command, and the process at its end, does about that.
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
