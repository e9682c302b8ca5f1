"""Reads the TOML files of the command: the configuration of ``serve``, and policies.

What belongs here: the file as a table, and the messages if it is none. What the table may say is in
``settings`` and ``policies``.
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from bridgecore_cli.errors import CONFIGURATION, SettingsError


def read_file(path: str, where: str = "") -> dict[str, Any]:
    """The table in the TOML file at ``path``, with Decimal for numbers that are not whole.

    ``where``: begins the text of errors.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file, parse_float=Decimal)
    except OSError as exc:
        reason = f"cannot read {path}: {exc.strerror}"
    except UnicodeDecodeError:
        reason = f"{path} is not UTF-8"
    except (ValueError, ArithmeticError, RecursionError) as exc:
        reason = f"{path} is not TOML: {' '.join(str(exc).split())}"
    raise SettingsError(f"{where}{reason}", CONFIGURATION)
