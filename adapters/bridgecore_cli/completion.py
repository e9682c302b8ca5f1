"""``bridgecore completion``: prints a script with which a shell completes commands and flags.

What belongs here: making the script. It is made from the parser, so it has every flag.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

from bridgecore_cli.arguments import BOTH, POLICY_METAVAR, whole_parser
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
    parser = whole_parser()
    for action in _actions(parser):
        values = _values(action)
        if values:
            action.choices = values  # nothing is parsed with this parser
        elif _takes_file(action):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # read by shtab; argparse declares no such attribute
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The flags and arguments of ``parser`` and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _values(action: argparse.Action) -> list[str]:
    """The values of ``action`` that are known by name; there may be others."""
    placeholder = str(action.metavar or "")
    if placeholder.endswith(POLICY_METAVAR):
        from bridgecore import POLICIES

        both = [BOTH] if placeholder.startswith(BOTH) else []
        return [*both, *sorted(POLICIES)]
    if action.dest in _PROPERTIES:
        from bridgecore_cli.verify_sections import names

        return names()
    words = placeholder.split("|")
    return words if len(words) > 1 and all(_is_value(word) for word in words) else []


_PROPERTIES: Final = ("property", "allow")  # flags that take the name of a property


def _is_value(word: str) -> bool:
    """Whether ``word`` of a placeholder is a value itself: it is in small letters."""
    return word.islower() and word.replace("_", "").replace("-", "").isalnum()


def _takes_file(action: argparse.Action) -> bool:
    return str(action.metavar or "") in ("FILE", "FILE.toml", "LOG")
