"""``bridgecore verify --export``: writes what a session can do under a policy, for other programs.

What belongs here: which part of the bounds is explored, and where the text goes. The text itself is
``bridgecore.verify.export``.

Exit codes: 0: written; 1: it could not be, or the exploration did not end; 2: wrong flags.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bridgecore.verify import export
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import Report, Tables, tabulate
from bridgecore_cli.errors import FAILURE, USAGE, CommandError
from bridgecore_cli.output import write_file
from bridgecore_cli.progress import show

_MODULE = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


def run(args: argparse.Namespace) -> int:
    """Write the export; return the exit code.

    Raises:
        CommandError: wrong flags, or the exploration did not end.
    """
    parts: Sequence[Bounds] = BOUNDS[args.bounds]
    output: Path | None = args.output
    if args.part > len(parts):
        names = ", ".join(f"{number} ({part.name})" for number, part in enumerate(parts, 1))
        raise CommandError(f"--part: the bounds {args.bounds} have the parts {names}", USAGE)
    if args.export == "tla" and output is not None and not _is_module(output):
        raise CommandError(
            "--output: TLA+ needs a name such as Session.tla, of letters, digits and underscores, "
            f"not {output.name}",
            USAGE,
        )
    if parts[args.part - 1].depth is not None:
        raise CommandError("--part: this one limits the number of moves; export another", USAGE)
    tables = tabulate(args.policy, parts[args.part - 1], progress=_show)
    show("")
    if tables is None:
        raise CommandError("there are more states than the bounds allow", FAILURE)
    if args.export == "tla" and output is not None:
        written = write_file(output, export.tla(tables, output.stem))
        return 0 if written and write_file(output.with_suffix(".cfg"), export.config()) else FAILURE
    text = _FORMATS[args.export](tables)
    if output is None:
        print(text, end="")
        return 0
    return 0 if write_file(output, text) else FAILURE


_FORMATS: Mapping[str, Callable[[Tables], str]] = {
    "tla": export.tla,
    "json": export.as_json,
    "dot": export.dot,
    "mermaid": export.mermaid,
}


def _is_module(path: Path) -> bool:
    return path.suffix == ".tla" and _MODULE.match(path.stem) is not None


def _show(report: Report) -> None:
    show(f"{report.states:,} states, {report.edges:,} edges")
