"""Reads and writes TOML for the command: the configuration of ``serve``, and policies.

What belongs here: a file as a table, the messages if it is none, and values as text. What the table
may say is in ``settings`` and ``policies``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    import tomllib  # without a file nothing else needs it

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


def toml_value(value: object) -> str:
    """``value`` as TOML has it on one line: a text, a number, a boolean, or a table of these."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
