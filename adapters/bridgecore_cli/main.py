"""Runs a command and returns its exit code.

What belongs here: the choice of the command, standard output and exit codes. Each command is a
module of its own, which is imported when it runs.

* 0: success
* 1: failure at run time
* 2: wrong flags
* 78: wrong configuration
* 128 plus the number of a signal: ended by it. For ``serve`` that is the second SIGINT (130) or
  SIGTERM (143), for another command the first SIGINT (130), or a closed pipe on standard output
  (SIGPIPE, 141).

A failure is one line on standard error, never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence

from bridgecore_cli.arguments import parser
from bridgecore_cli.errors import FAILURE, USAGE, CommandError
from bridgecore_cli.output import give_up_stdout_if_broken, print_error, printable

# The exit code of a process that SIGPIPE ended. A number, since not every system has the name.
NO_READER = 128 + 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (None: those of the process); return the exit code."""
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return NO_READER
    except OSError as exc:
        return fail(f"cannot write standard output: {exc.strerror}", FAILURE)
    finally:
        give_up_stdout_if_broken()
    return code


def _main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except CommandError as exc:
        return fail(str(exc), exc.exit_code, options.command)
    except Exception as exc:
        if isinstance(exc, BrokenPipeError) and options.command != "serve":
            raise  # the reader of standard output is gone, as after ``| head -1``
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC and options.command != "serve":
            raise  # of standard output, too: commands report it of their files themselves
        import traceback

        # A bug. Its message may contain what a client sent, so only the place in the code is shown.
        frames = traceback.extract_tb(exc.__traceback__)[-3:]
        places = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames[::-1])
        return fail(f"internal error: {type(exc).__name__} at {places}", FAILURE)


def _run(options: argparse.Namespace) -> int:
    if options.command == "rules":
        from bridgecore_cli import rules

        return rules.run(options)
    if options.command == "serve":
        from bridgecore_cli import serve

        return serve.run(options)
    if options.command == "check-config":
        from bridgecore_cli import check_config

        return check_config.run(options)
    if options.command == "completion":
        from bridgecore_cli import completion

        return completion.run(options)
    if options.command == "store":
        from bridgecore_cli import store

        return store.run(options)
    if options.command == "replay":
        from bridgecore_cli import replay

        return replay.run(options)
    if options.command == "demo":
        from bridgecore_cli.demo import command

        return command.run(options)
    if options.command == "simulate":
        from bridgecore_cli import simulate

        return simulate.run(options)
    from bridgecore_cli import verify

    return verify.run(options)


def fail(message: str, exit_code: int, command: str = "") -> int:
    """Write ``message`` as one line, wrapped on a terminal, to standard error; return the exit
    code."""
    line = printable(message)
    hint = f" (see bridgecore {command} --help)" if command and exit_code == USAGE else ""
    with contextlib.suppress(OSError, ValueError):
        print_error(f"bridgecore: error: {line}{hint}")
    return exit_code
