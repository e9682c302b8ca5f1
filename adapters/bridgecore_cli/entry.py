"""Where the process begins: it can be interrupted at any time without a traceback.

What belongs here: what must be in place before the command's modules are loaded, and still be when
it has returned. So this module imports next to nothing.
"""

import signal
import sys


def run() -> int:
    """Run the command with the process's arguments; the exit code.

    Loading takes some tenths of a second, and Python turns an interrupt at that time into a
    traceback. Until ``main`` runs, and after it, the operating system's own way holds: SIGINT ends
    the process, and a shell says 130. One that the parent ignores (``nohup``, a job in the
    background) stays ignored.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bridgecore_cli.main import main

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main(sys.argv[1:])
    except KeyboardInterrupt:  # in the few instructions around main's own handler
        return 128 + signal.SIGINT
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
