"""Reads and writes TOML for the command: the configuration of ``serve``, and policies.

What belongs here: a file as a table, the messages if it is none, and values as text. What the table
may say is in ``settings`` and ``policies``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from bridgecore_cli.errors import CONFIGURATION, SettingsError
from bridgecore_cli.output import wrapped


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


def folded(text: str, width: int | None) -> str:
    """The lines of TOML in ``text``, each with at most ``width`` columns, with the same meaning: a
    comment goes on in another one, and a long text on further lines after backslashes. A key with
    its equals sign is not broken."""
    if width is None:
        return text
    return "\n".join(_fold(line, width) for line in text.split("\n"))


def _fold(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    if line.startswith("#"):
        return "\n".join([f"# {part}" for part in wrapped(line[2:], width - 2).split("\n")])
    value = re.fullmatch(r'([\w.-]+ = )"((?:[^"\\]|\\.)+)"', line)
    if value is None or value[2].startswith(" "):  # spaces after a backslash do not count
        return line
    room = width - len(_INDENT) - len(_END)
    lines, part = [f'{value[1]}"""\\'], ""
    # Words with the spaces after them. One that is too long is broken between its characters.
    for word in re.findall(r"[^ ]+ *", value[2]):
        pieces = [word]
        if len(word.rstrip(" ")) > room:
            pieces = re.findall(r"\\u[0-9a-fA-F]{4}|\\.|[^\\] *", word)
        for piece in pieces:
            if part and len(part + piece.rstrip(" ")) > room:
                lines.append(f"{_INDENT}{part}\\")
                part = ""
            part += piece
    return "\n".join([*lines, f"{_INDENT}{part}{_END}"])


_INDENT: Final = "  "
_END: Final = '"""'
