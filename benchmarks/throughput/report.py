"""The figures of a run, and what is made of them: JSON, a table, a page's tables, a chart.

What belongs here: the form of the report and its medians and ratios. The report holds every figure
of every round; ratios are made when it is shown, within a round, and the median of the rounds
counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.throughput.cases import CASES, Case, Goal

VERSION = 1
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
    "held": "conversations held",
}


@dataclass
class Report:
    """The figures of a run.

    Attributes:
        machine: processor, system and interpreter.
        scale: name of the scale.
        rounds: how often everything was measured.
        quiet: False if other processes took part of the cores, and the figures are for trying out.
        others: cores that other processes took, at most, in one round.
        participants: titles by name.
        figures: by case, participant and figure, the values of the rounds.
        errors: measurements that failed.
    """

    machine: dict[str, str]
    scale: str
    rounds: int
    quiet: bool = True
    others: float = 0.0
    participants: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    version: int = VERSION

    def add(self, case: str, participant: str, figures: dict[str, float]) -> None:
        """Keep the figures of one measurement."""
        kept = self.figures.setdefault(case, {}).setdefault(participant, {})
        for name, value in figures.items():
            kept.setdefault(name, []).append(round(value, 3))

    def values(self, case: str, participant: str, figure: str) -> list[float]:
        """The values of the rounds; none if it was not measured."""
        return self.figures.get(case, {}).get(participant, {}).get(figure, [])

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
            values = report.values(case.name, goal.subject, goal.figure)
            if goal.over is not None:
                bases = report.values(case.name, goal.over, goal.base or goal.figure)
                values = ratios(values, bases)
            if values:
                yield Result(case, goal, median(values), min(values), max(values))


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """The ratios of the rounds in which both were measured."""
    return [value / base for value, base in zip(values, bases, strict=False) if base]


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
    """The medians of all figures, a column for each participant, with a head."""
    names = [
        name
        for name in report.participants
        if any(name in by_participant for by_participant in report.figures.values())
    ]
    rows: Rows = [("case", "figure", *names)]
    for case in CASES:
        measured = report.figures.get(case.name, {})
        figures = dict.fromkeys(figure for by in measured.values() for figure in by)
        for figure in figures:
            cells = []
            for name in names:
                values = report.values(case.name, name, figure)
                cells.append(shown(median(values)) if values else "")
            rows.append((case.title, _UNITS.get(figure, figure), *cells))
    return rows


def before_rows(report: Report) -> Rows:
    """This checkout over the other one, with a head; only the head if there was no other."""
    rows: Rows = [("case", "figure", "now / before", "rounds")]
    for case in CASES:
        for figure, values in report.figures.get(case.name, {}).get("bridgecore", {}).items():
            changes = ratios(values, report.values(case.name, "before", figure))
            if changes and figure not in ("parse_us", "held"):
                spread = f"{shown(min(changes))} to {shown(max(changes))}"
                rows.append(
                    (case.title, _UNITS.get(figure, figure), shown(median(changes)), spread)
                )
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
    if not report.quiet:
        parts.append(
            f"NOT QUIET: other processes took up to {report.others:.2f} cores. The figures are for "
            "trying out, not for reporting."
        )
    for rows in (goal_rows(report), before_rows(report), figure_rows(report)):
        if len(rows) > 1:
            parts.append(text_table(rows))
    parts += report.errors
    return "\n\n".join(parts)


_ROW, _LABEL, _BAR, _LIMIT = 22, 430, 300, 2.0


def as_svg(report: Report) -> str:
    """A bar for each goal: the figure as a multiple of its goal, which is a line."""
    found = list(results(report))
    height = _ROW * (len(found) + 2)
    width = _LABEL + _BAR + 60
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
            f"{shown(one.value)}</text>",
        ]
    lines += [
        f'<line x1="{goal:.0f}" y1="20" x2="{goal:.0f}" y2="{height - _ROW}" stroke="#222222" '
        'stroke-dasharray="3 3"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
