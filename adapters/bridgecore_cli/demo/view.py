"""Shows the demo while it runs: a table and a plot in a terminal, lines otherwise.

What belongs here: writing to the screen. What is written is made in ``story.py`` and ``chart.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from bridgecore.simulate import Growth
from bridgecore_cli.demo.chart import MARKS, chart
from bridgecore_cli.demo.story import (
    COLUMNS,
    TABLE_WIDTH,
    Results,
    columns_within,
    legend_lines,
    plain_table,
    rows,
)
from bridgecore_cli.output import width_of_output, wrapped

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

_HEIGHT: Final = 12  # rows of the plot
_WIDEST: Final = 100  # characters of it
_STYLES: Final = {"x": "bold red", "+": "yellow", "o": "bold green", "-": "dim"}


class View(Protocol):
    """Shows results."""

    def update(self, results: Results) -> None:
        """Show the results so far."""

    def end(self, results: Results, story: list[str]) -> None:
        """Show the results, and what follows from them."""


@contextlib.contextmanager
def open_view(introduction: str) -> Iterator[View]:
    """A view for standard output: live in a terminal, if rich is installed; lines otherwise."""
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        yield _Lines(introduction, width_of_output())
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    console.print(introduction, style="bold")
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield _Screen(console, live)


# ------------------------------------------------------------------ what both show


def _stored(results: Results) -> dict[str, Growth]:
    return {name: growth for (name, store), growth in results.items() if store}


def _plot(results: Results, width: int, height: int = _HEIGHT) -> list[str]:
    stored = _stored(results)
    experiment = next(iter(stored.values())).experiment
    lines = [[row.context for row in growth.rows] for growth in stored.values()]
    size = {"width": width, "height": height}
    return chart(lines, turns=experiment.turns, window=experiment.window, **size)


def _plot_title(results: Results) -> str:
    stored = _stored(results)
    marks = ", ".join(f"{mark} {name}" for mark, name in zip(MARKS, stored, strict=True))
    return f"Context by turn, store=true: {marks} (where equal, the last)"


# ------------------------------------------------------------------ lines


class _Lines:
    """Writes a line now and then, and everything at the end. ``width``: of all lines; None: of the
    sentences as much as they need."""

    def __init__(self, introduction: str, width: int | None) -> None:
        self._width = width
        self._shown = 1  # the latest turn that a line was written for
        self._say(introduction)

    def update(self, results: Results) -> None:
        stored = _stored(results)
        turns = next(iter(stored.values())).experiment.turns
        step = max(1, turns // 8)
        while True:
            turn = self._shown + step
            reached = [len(one.rows) >= turn or one.full is not None for one in stored.values()]
            if turn > turns or not all(reached):
                return
            self._shown = turn
            said = ", ".join(f"{name} {_at(one, turn)}" for name, one in stored.items())
            self._say(f"turn {turn}: {said}")

    def end(self, results: Results, story: list[str]) -> None:
        self.update(results)
        width = TABLE_WIDTH if self._width is None else self._width
        legend = legend_lines(columns_within(results, width), width)
        self._say("")
        for line in (*plain_table(results, width), "", *legend, "", _plot_title(results)):
            self._say(line)
        for line in (*_plot(results, min(_WIDEST, width - 2)), "", *story):
            self._say(line)

    def _say(self, line: str) -> None:
        print(wrapped(line, self._width), flush=True)


def _at(growth: Growth, turn: int) -> str:
    if len(growth.rows) >= turn:
        return f"{growth.rows[turn - 1].context:,} tokens"
    return f"full at turn {growth.full}"


# ------------------------------------------------------------------ a terminal


class _Screen:
    """A table and a plot that are drawn again and again, with rich."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live

    def update(self, results: Results) -> None:
        self._live.update(self._draw(results), refresh=True)

    def end(self, results: Results, story: list[str]) -> None:
        self.update(results)
        self._live.stop()
        width = self._console.width
        for line in story:
            print(f"\n{textwrap.fill(line, max(20, width))}")

    def _draw(self, results: Results) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        width, height = self._console.size
        columns = columns_within(results, width)
        for column in columns:
            table.add_column(COLUMNS[column], justify="left" if column == 0 else "right")
        marks = dict(zip(_stored(results), MARKS, strict=True))
        for row in rows(results):
            cells = [row[column] for column in columns]
            table.add_row(*cells, style=_STYLES[marks[row[0]]].removeprefix("bold "))
        legend = [Text(line, style="dim") for line in legend_lines(columns, width)]
        title = Text(wrapped(_plot_title(results), width))
        # Beside the table, the legend and the title there are two lines, and two empty ones.
        room = height - len(results) - len(legend) - title.plain.count("\n") - 5
        lines = _plot(results, min(_WIDEST, width - 1), max(6, min(_HEIGHT, room)))
        plot = [self._coloured(line) for line in lines]
        return Group("", table, *legend, "", title, *plot)

    @staticmethod
    def _coloured(line: str) -> Text:
        from rich.text import Text

        label, axis, cells = line.partition("|")
        if not axis:
            return Text(line, no_wrap=True)
        text = Text(label + axis, no_wrap=True)
        for character in cells:
            text.append(character, style=_STYLES.get(character))
        return text
