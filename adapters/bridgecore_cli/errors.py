"""Exit codes, and the exceptions that end a command with one of them.

What belongs here: what ``main`` needs to report a failure, whichever command it is of. So nothing
is imported that takes time to load.
"""

from __future__ import annotations

from typing import Final

from bridgecore.errors import BridgecoreError

FAILURE: Final = 1  # a failure at run time
USAGE: Final = 2  # a flag is wrong (the code of argparse)
CONFIGURATION: Final = 78  # environment, file or a URL is wrong (EX_CONFIG, sysexits.h)


class CommandError(BridgecoreError):
    """A command cannot go on. The message, one line, says why; ``exit_code`` is that of the
    process."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class SettingsError(CommandError):
    """A setting cannot be used. The message, one line, names the setting, its source and why."""
