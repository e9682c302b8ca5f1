"""Which flags of ``bridgecore verify`` go together, and the values of those that were not given.

What belongs here: the refusal of a flag that would have no effect. A user who gives it expects
something that does not happen, so silence would mislead.
"""

from __future__ import annotations

import argparse
import os
from typing import Final

from bridgecore.recovery.policy import DEFAULT
from bridgecore_cli.errors import USAGE, CommandError

_DEFAULTS: Final = {"policy": DEFAULT, "bounds": "small", "jobs": os.cpu_count() or 1, "part": 1}
# Why each is of no use with --trace.
_EXPLORES: Final = "--trace explores nothing"
_WITHOUT_TRACE: Final = {
    "policy": "a decision log has the policy that it was recorded under, and another bridge has "
    "none; to compare a decision log with another policy: bridgecore replay LOG --policy POLICY",
    "bounds": _EXPLORES,
    "property": "a log is judged by all properties; --allow leaves one out",
    "mutants": _EXPLORES,
    "jobs": _EXPLORES,
    "report": _EXPLORES,
    "export": _EXPLORES,
    "part": _EXPLORES,
    "output": _EXPLORES,
}
# Why each is of no use with --export.
_JUDGES: Final = "--export judges nothing"
_WITHOUT_EXPORT: Final = {
    "property": _JUDGES,
    "svg": _JUDGES,
    "mermaid": "it draws a counterexample, and --export judges nothing; for a diagram of the "
    "phases: --export mermaid --output FILE",
    "junit": _JUDGES,
    "json": "what is printed is the export; for JSON: --export json",
    "mutants": _JUDGES,
    "jobs": _JUDGES,
    "report": _JUDGES,
}
_OF_EXPORTS: Final = ("part", "output")


def settle(args: argparse.Namespace) -> None:
    """Set the flags that were not given to their defaults.

    Raises:
        CommandError: one was given that has no effect together with the others.
    """
    if args.trace is not None:
        for name, why in _WITHOUT_TRACE.items():
            if getattr(args, name):
                raise CommandError(f"--{name} cannot be given with --trace: {why}", USAGE)
    elif args.allow:
        text = "--allow is of use only with --trace; --property says what is explored"
        raise CommandError(text, USAGE)
    if args.export is not None:
        for name, why in _WITHOUT_EXPORT.items():
            if getattr(args, name):
                raise CommandError(f"--{name} cannot be given with --export: {why}", USAGE)
    else:
        for name in _OF_EXPORTS:
            if getattr(args, name):
                raise CommandError(f"--{name} is of use only with --export", USAGE)
    if args.json and args.mutants:
        raise CommandError("--json: not allowed with --mutants", USAGE)
    for name, value in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
