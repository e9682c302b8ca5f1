"""``bridgecore completion``: prints a script with which a shell completes commands and flags.

What belongs here: making the script. It is made from the parser, so it has every flag.
"""

from __future__ import annotations

import argparse

from bridgecore_cli.arguments import whole_parser
from bridgecore_cli.errors import FAILURE, CommandError


def run(options: argparse.Namespace) -> int:
    """Print the script; return the exit code.

    Raises:
        CommandError: the package that makes it is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise CommandError(
            "completion needs a package that is not installed: pip install 'bridgecore[cli]'",
            FAILURE,
        ) from None
    print(shtab.complete(whole_parser(), options.shell))
    return 0
