"""The figures of a run, and what is made of them: JSON, a table, a page, a chart.

What belongs here: the form of the report, and its medians and ratios. The report holds every figure
of every round. Ratios are made when it is shown, of two figures of one round, and their median
counts: what slows down one round slows down both figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.throughput.cases import CASES, Case, Goal
from bridgecore.tables import list_table

VERSION = 1
_CONDITIONS = ("parse_us", "held")  # figures that say nothing about a participant
_UNITS = {
    "cpu_us_per_turn": "CPU us per turn",
    "cpu_us_per_turn_alone": "CPU us per turn, alone",
    "cpu_us_per_turn_young": "CPU us per turn, first turns",
    "cpu_us_per_event": "CPU us per event",
    "cpu_us_unknown": "CPU us, unknown history",
    "cpu_us_known": "CPU us, known history",
    "parse_us": "CPU us, one parse of the JSON",
    "cpu_ms": "CPU ms",
    "cpu_ms_per_1000": "CPU ms per 1,000",
    "transit_p50_us": "transit p50, us",
    "transit_p99_us": "transit p99, us",
    "first_event_p50_us": "first event p50, us",
    "mib_per_1000": "MiB per 1,000",
    "held": "conversations",
}


Of = tuple[str, str]  # a participant, and the name of a figure
# By case, participant and figure.
Figures = dict[str, dict[str, dict[str, float]]]


@dataclass
class Report:
    """The figures of a run.

    Attributes:
        machine: processor, system and interpreter.
        scale: name of the scale.
        busy: what else the machine was busy with, so that the figures are for trying out; or None.
        participants: titles by name.
        rounds: the figures of each round. What could not be measured is missing.
        errors: measurements that failed.
    """

    machine: dict[str, str]
    scale: str
    busy: str | None = None
    participants: dict[str, str] = field(default_factory=dict)
    rounds: list[Figures] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    version: int = VERSION

    def add(self, case: str, participant: str, figures: dict[str, float]) -> None:
        """Keep the figures of one measurement of the present round."""
        kept = self.rounds[-1].setdefault(case, {})
        kept[participant] = {name: round(value, 3) for name, value in figures.items()}

    def measured(self, case: str) -> dict[str, set[str]]:
        """The figures of a case, in order, and which participants have them."""
        found: dict[str, set[str]] = {}
        for figures in self.rounds:
            for participant, values in figures.get(case, {}).items():
                for name in values:
                    found.setdefault(name, set()).add(participant)
        return found

    def values(self, case: str, participant: str, figure: str) -> list[float | None]:
        """The value of each round; None where there is none."""
        return [figures.get(case, {}).get(participant, {}).get(figure) for figures in self.rounds]

    def ratios(self, case: str, figure: Of, base: Of) -> list[float]:
        """``figure`` over ``base``, in each round that has both."""
        pairs = zip(self.values(case, *figure), self.values(case, *base), strict=True)
        return [value / under for value, under in pairs if value is not None and under]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what ``save`` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise ValueError(f"{path} has version {found['version']}, expected {VERSION}")
        return cls(**found)


@dataclass(frozen=True)
class Result:
    """What became of a goal. ``low`` and ``high``: the extremes of the rounds."""

    case: Case
    goal: Goal
    value: float
    low: float
    high: float

    @property
    def reached(self) -> bool:
        return self.value <= self.goal.limit

    @property
    def verdict(self) -> str:
        if self.reached:
            return "reached"
        return f"missed by {self.value / self.goal.limit - 1:.0%}"


def results(report: Report) -> Iterator[Result]:
    """Every goal that has figures."""
    for case in CASES:
        for goal in case.goals:
            figure = (goal.subject, goal.figure)
            if goal.over is None:
                found = [one for one in report.values(case.name, *figure) if one is not None]
            else:
                found = report.ratios(case.name, figure, (goal.over, goal.base or goal.figure))
            if found:
                yield Result(case, goal, median(found), min(found), max(found))


def shown(value: float) -> str:
    """A number with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


Rows = list[tuple[str, ...]]


def goal_rows(report: Report) -> Rows:
    """The goals, with a head."""
    rows: Rows = [("case", "figure", "median", "rounds", "goal", "")]
    for one in results(report):
        spread = f"{shown(one.low)} to {shown(one.high)}"
        limit = f"<= {shown(one.goal.limit)}"
        rows.append((one.case.title, one.goal.title, shown(one.value), spread, limit, one.verdict))
    return rows


def figure_rows(report: Report) -> Rows:
    """The medians of all figures, a column for each participant, with a head.

    With the median of the ratios to the floor of the case, if that was measured.
    """
    everywhere = [report.measured(case.name).values() for case in CASES]
    present = {name for figures in everywhere for names in figures for name in names}
    columns = [name for name in report.participants if name in present]
    rows: Rows = [("case", "figure", *columns)]
    for case in CASES:
        for figure in report.measured(case.name):
            floor = (case.floor, figure)
            cells = [_figure_cell(report, case.name, (name, figure), floor) for name in columns]
            rows.append((case.name, _UNITS[figure], *cells))
    return rows


def _figure_cell(report: Report, case: str, figure: Of, floor: Of) -> str:
    found = [value for value in report.values(case, *figure) if value is not None]
    if not found:
        return ""
    compared = report.ratios(case, figure, floor)
    if not compared or figure == floor:
        return shown(median(found))
    return f"{shown(median(found))} ({shown(median(compared))} x)"


def before_rows(report: Report) -> Rows:
    """This checkout over the other one, with a head; only the head if there was no other."""
    rows: Rows = [("case", "figure", "now / before", "rounds")]
    for case in CASES:
        for figure in report.measured(case.name):
            found = report.ratios(case.name, ("bridgecore", figure), ("before", figure))
            if found and figure not in _CONDITIONS:
                spread = f"{shown(min(found))} to {shown(max(found))}"
                rows.append((case.name, _UNITS[figure], shown(median(found)), spread))
    return rows


def text_table(rows: Rows) -> str:
    """Rows in columns, the first row as a head. Each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def as_text(report: Report) -> str:
    """Everything, for a terminal."""
    parts = []
    if report.busy:
        parts.append(f"BUSY: {report.busy}. The figures are for trying out, not for reporting.")
    for rows in (goal_rows(report), before_rows(report), figure_rows(report)):
        if len(rows) > 1:
            parts.append(text_table(rows))
    parts += report.errors
    return "\n\n".join(parts)


def as_rst(report: Report) -> list[str]:
    """The tables of the documentation, and under which conditions they were measured."""
    machine = report.machine
    lines = [
        f"{len(report.rounds)} rounds at scale ``{report.scale}`` on {machine['processor']}, "
        f"{machine['cores']} cores, {machine['system']}, {machine['python']}.",
        "",
    ]
    if report.busy:
        lines += [
            ".. warning::",
            "",
            f"   The machine was busy: {report.busy}. These figures are for trying out.",
            "",
        ]
    lines += list_table(goal_rows(report))
    changes = before_rows(report)
    if len(changes) > 1:
        lines += list_table(changes)
    lines += [
        "The medians behind it. In brackets: the median of the ratios to the floor, which is the",
        "null bridge, or the bare interpreter for a start.",
        "",
        *list_table(figure_rows(report)),
    ]
    return lines


_ROW, _LABEL, _BAR = 22, 290, 300  # pixels: height of a row, widths of the labels and the bars
_LIMIT = 2.0  # as long as a bar gets, as a multiple of the goal


def as_svg(report: Report) -> str:
    """A bar for each goal: the figure as a multiple of its goal, which is a line."""
    found = list(results(report))
    height = _ROW * (len(found) + 2)
    width = _LABEL + _BAR + 170
    goal = _LABEL + _BAR / _LIMIT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{goal:.0f}" y="15" text-anchor="middle" fill="#555555">goal</text>',
    ]
    for number, one in enumerate(found):
        top = _ROW * (number + 1)
        multiple = one.value / one.goal.limit
        length = min(multiple, _LIMIT) / _LIMIT * _BAR
        fill = "#2f855a" if one.reached else "#c05621"
        label = f"{one.case.name}: {one.goal.title}"
        lines += [
            f'<text x="{_LABEL - 8}" y="{top + 15}" text-anchor="end" fill="#222222">'
            f"{label}</text>",
            f'<rect x="{_LABEL}" y="{top + 4}" width="{length:.1f}" height="{_ROW - 8}" '
            f'fill="{fill}"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{top + 15}" fill="#222222">'
            f"{shown(one.value)}, goal {shown(one.goal.limit)}</text>",
        ]
    lines += [
        f'<line x1="{goal:.0f}" y1="20" x2="{goal:.0f}" y2="{height - _ROW}" stroke="#222222" '
        'stroke-dasharray="3 3"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
