"""``bridgecore verify``: checks every property of a policy in every reachable state, within bounds.

What belongs here: the order of the command, what it prints of its results, and the files that it
writes. What is explored is verify_sections.py; the exploration itself is ``bridgecore.verify``.

Exit codes: 0: every property holds, and of the mutants, if they were asked for, at most 1 %
survive; 1: otherwise; 2: wrong flags.
"""

from __future__ import annotations

import argparse
import json

from bridgecore.verify import diagram
from bridgecore.verify.junit import junit
from bridgecore.verify.results import Finding, Results
from bridgecore_cli import export, trace
from bridgecore_cli.colour import Colour, paint
from bridgecore_cli.output import columns, print_text, write_file
from bridgecore_cli.verify_flags import settle
from bridgecore_cli.verify_mutants import judge_mutants
from bridgecore_cli.verify_sections import explore_sections


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        CommandError: flags that do not go together, or a log that cannot be checked.
    """
    settle(args)
    if args.trace is not None:
        return trace.run(args)
    if args.export is not None:
        return export.run(args)
    say = _nothing if args.json else _line
    say(f"policy {args.policy.name}")
    sections = explore_sections(args.policy, args.bounds, args.property or (), say)
    results = Results(args.policy.name, args.bounds, sections)
    for number, found in enumerate(results.findings):
        say(_told(found, drawn=number == 0))
    say(f"\n{paint(results.verdict, Colour.GOOD if results.sound else Colour.BAD)}")
    if args.json:
        print(json.dumps(results.as_data(), indent=1))
    sound = _written(args, results) and results.sound
    if args.mutants and sound:
        sound = judge_mutants(args.policy, args.jobs, args.report)
    return 0 if sound else 1


def _line(text: str) -> None:
    print_text(text)


def _nothing(_: str) -> None:
    """Say nothing: standard output is for one JSON object."""


def _told(found: Finding, *, drawn: bool) -> str:
    """A violation as text. The first one is drawn, too."""
    head = paint(f"rank {int(found.prop.rank)}: {found.prop.rank.words}", Colour.HEAD)
    lines = ["", head, _coloured(found.told())]
    if drawn and found.story is not None:
        lines += ["", diagram.text(found.story, columns())]
    return "\n".join(lines)


def _coloured(told: str) -> str:
    colours = {"broken": Colour.BAD, "because": Colour.WARN, "would hold": Colour.GOOD}
    lines = []
    for line in told.split("\n"):
        word, colon, rest = line.partition(":")
        colour = colours.get(word)
        lines.append(line if colour is None else f"{paint(word + colon, colour)}{rest}")
    return "\n".join(lines)


def _written(args: argparse.Namespace, results: Results) -> bool:
    """Write the files that were asked for; whether all could be written.

    What is drawn is the costliest violation that has a story. Without one no drawing is written.
    """
    stories = [found.story for found in results.findings if found.story is not None]
    written = True
    if args.svg is not None and stories:
        written = write_file(args.svg, diagram.svg(stories[0])) and written
    if args.mermaid is not None and stories:
        written = write_file(args.mermaid, diagram.mermaid(stories[0])) and written
    if args.junit is not None:
        written = write_file(args.junit, junit(results)) and written
    return written
