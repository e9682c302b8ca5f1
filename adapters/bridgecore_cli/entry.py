"""Entry point of the process: makes it interruptible without a traceback from the first moment.

What belongs here: the handling of signals before the command's modules are loaded and after it has
returned. Importing them takes time, so this module imports almost nothing itself.
"""

import os
import signal
import sys
from types import FrameType


def run() -> int:
    """Run the command with the process's arguments; return the exit code.

    Loading takes some tenths of a second, and Python would answer an interrupt during that time
    with a traceback. So before and after ``main`` SIGINT has its default action: it ends the
    process, which a shell reports as 130. If the parent ignores it (``nohup``, a background job),
    it stays ignored.

    The first process of a container (process 1) ignores a signal that has no handler. If it were
    stopped while it starts, it would run on until it is killed. So it gets a handler that ends it.
    """
    default = _end if os.getpid() == 1 else signal.SIG_DFL
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, default)
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, default)
    from bridgecore_cli.main import main

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main(sys.argv[1:])
    except KeyboardInterrupt:  # just before or after main's own handler
        return 128 + signal.SIGINT
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, default)


def _end(number: int, _: FrameType | None) -> None:
    """End the process at once."""
    os._exit(128 + number)
