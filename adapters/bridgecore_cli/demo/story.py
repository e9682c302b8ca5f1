"""The results of the demo as rows of a table and as four sentences.

What belongs here: text. Every number is of the run, and a sentence is said only if the rows show
it; otherwise the opposite is said.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from bridgecore.simulate import Growth, TurnFigures
from bridgecore.simulate.experiment import NOT_FOUND
from bridgecore.simulate.growth_report import counted, statuses, times_not_found

Results: TypeAlias = Mapping[tuple[str, bool], Growth]
"""By the name of the policy, and whether the upstream stores the responses."""

TABLE_WIDTH: Final = 80  # characters of the table, where nothing else is said
COLUMNS: Final = (
    "policy",
    "store",
    "turns",
    "context",
    "full at",
    "errors",
    "to bridge",
    "upstream",
)
_MEANINGS: Final = {
    "turns": "that were answered",
    "context": "in tokens",
    "full at": "turn that fills the window, (N) if it goes on",
    "errors": "what the client got before its answers",
    "to bridge": "bytes that the client sent",
    "upstream": "bytes that the bridge sent",
}
_DISPENSABLE: Final = ("to bridge", "turns", "upstream", "errors", "full at")
"""What is left out where there is no room, the first one first."""


def legend(columns: Sequence[int] = range(len(COLUMNS))) -> list[str]:
    """What the columns of the table mean, and which are not shown."""
    names = [COLUMNS[column] for column in columns]
    hidden = [name for name in COLUMNS if name not in names]
    found = [f"{name}: {words}" for name, words in _MEANINGS.items() if name in names]
    return [*found, f"no room for: {', '.join(hidden)}"] if hidden else found


def legend_lines(columns: Sequence[int], width: int) -> list[str]:
    """The same in lines with as many whole entries as fit."""
    lines: list[str] = []
    for entry in legend(columns):
        if lines and len(lines[-1]) + 2 + len(entry) < width:
            lines[-1] += f"; {entry}"
        else:
            lines += textwrap.wrap(entry, width, subsequent_indent="  ")
    return lines


def columns_within(results: Results, width: int) -> list[int]:
    """The columns of the table that fit into ``width`` characters, with two between them: all, or
    all but those that a reader can do without most easily. No value is cut off."""
    cells = [COLUMNS, *rows(results)]
    kept = list(range(len(COLUMNS)))
    for name in _DISPENSABLE:
        needed = sum(max(len(row[column]) for row in cells) + 2 for column in kept) - 2
        if needed <= width:
            break
        kept.remove(COLUMNS.index(name))
    return kept


def rows(results: Results) -> list[tuple[str, ...]]:
    """A row of the table for each conversation."""
    return [_row(name, store, growth) for (name, store), growth in results.items()]


def _row(name: str, store: bool, growth: Growth) -> tuple[str, ...]:
    context = growth.rows[-1].context if growth.rows else 0
    if growth.full is not None:
        full = str(growth.full)
    else:
        full = "" if growth.full_at is None else f"({growth.full_at})"
    return (
        name,
        str(store).lower(),
        str(len(growth.rows)),
        f"{context:,}",
        full,
        statuses(growth.answered_errors),
        size(growth.client),
        size(growth.upstream),
    )


def plain_table(results: Results, width: int = TABLE_WIDTH) -> list[str]:
    """The table as lines of at most ``width`` characters."""
    columns = columns_within(results, width)
    cells = [[row[column] for column in columns] for row in (COLUMNS, *rows(results))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        name, *numbers = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([name, *numbers]).rstrip())
    return lines


def size(number: int) -> str:
    """Bytes, in a unit that can be read."""
    return f"{number / 1e6:,.1f} MB" if number >= 1_000_000 else f"{number / 1e3:,.0f} KB"


# ------------------------------------------------------------------ the story


def story(results: Results) -> list[str]:
    """What happened, in four sentences: what the broken bridge told its client, what that cost,
    when its window is full, and what ``default`` did instead."""
    broken, usual = results["v1_12", True], results["default", True]
    turns = min(len(broken.rows), len(usual.rows))
    return [
        _told(broken),
        _cost(broken.rows[:turns], usual.rows[:turns]),
        _windows(broken, usual),
        _instead(results, usual),
    ]


def _told(broken: Growth) -> str:
    times, turns = times_not_found(broken)
    code = NOT_FOUND
    if not times and code in broken.unanswered and broken.ended is not None:
        return f"v1_12 told its client {code!r} at turn {broken.ended[0]}, which was the last."
    if not times:
        return f"v1_12 never told its client {code!r}."
    text = (
        f"v1_12 told its client {code!r} in {times} of the {turns} turns that it answered after "
        "the first"
    )
    kept = sum(row.grown > broken.experiment.new_tokens for row in broken.not_found)
    if not kept:
        return f"{text}, so the client sent its whole history."
    whose = "each time" if kept == len(broken.not_found) else f"in {kept} of them"
    return (
        f"{text}, but the upstream had the response {whose}: the client's whole history was added "
        "to it."
    )


def _cost(broken: Sequence[TurnFigures], usual: Sequence[TurnFigures]) -> str:
    if not usual:
        return "No turn was completed, so there is nothing to compare."
    ours, theirs = _costs(broken), _costs(usual)
    turns = "1 turn" if len(usual) == 1 else f"{len(usual)} turns"
    return (
        f"In {turns} that came to {ours[0]} tokens of context (default: {theirs[0]}), {ours[1]} "
        f"from client to bridge (default: {theirs[1]}), and {ours[2]} tokens, {ours[3]}, from "
        f"bridge to upstream (default: {theirs[2]}, {theirs[3]})."
    )


def _costs(figures: Sequence[TurnFigures]) -> tuple[str, str, str, str]:
    """Context, bytes of the client, tokens and bytes upstream."""
    return (
        f"{figures[-1].context:,}",
        size(_sum(figures, "client")),
        f"{_sum(figures, 'upstream_tokens'):,}",
        size(_sum(figures, "upstream")),
    )


def _sum(figures: Sequence[TurnFigures], name: str) -> int:
    return sum(getattr(row, name) for row in figures)


def _windows(broken: Growth, usual: Growth) -> str:
    window = broken.experiment.window
    return f"A window of {window:,} tokens: v1_12 {_window(broken)}; default {_window(usual)}."


def _window(growth: Growth) -> str:
    if growth.full is not None:
        return f"had filled it at turn {growth.full}"
    used = growth.rows[-1].context if growth.rows else 0
    turns = "1 turn" if len(growth.rows) == 1 else f"{len(growth.rows)} turns"
    text = f"used {used:,} in {turns}"
    if growth.stuck is not None:
        return f"{text}, and turn {growth.stuck} did not succeed"
    return text if growth.full_at is None else f"{text} and would fill it at turn {growth.full_at}"


def _instead(results: Results, usual: Growth) -> str:
    times, turns = times_not_found(usual)
    if times:
        return f"default told its client the same, in {times} of {turns} turns."
    got = ", ".join(counted(usual.answered_errors))
    mean = f"{usual.sent_per_turn:,.0f} tokens a turn"
    text = f"default answered no error: {mean}."
    if got:
        text = f"default answered {got} instead, and the client sent the same again: {mean}."
    own = results.get(("default", False))
    if own is None:
        return text
    found = {name: _not_founds(growth) for (name, store), growth in results.items() if not store}
    others = ", ".join(f"{name}: {count:,}" for name, count in found.items() if name != "default")
    itself = " sent the context itself," if own.upstream > 2 * own.client else ""
    return (
        f"{text} With store=false it{itself or ' sent'} {size(own.upstream)} upstream for "
        f"{size(own.client)} from the client, which got {found['default']:,} not-founds ({others})."
    )


def _not_founds(growth: Growth) -> int:
    return growth.answered_errors.count(NOT_FOUND)
