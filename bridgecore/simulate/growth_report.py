"""Presents the result of the growth experiment: a table, a sentence, a plot.

What belongs here: text and SVG. The figures are measured in ``growth.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bridgecore.simulate.growth import MAX_TRIES, Growth

_ALL_ROWS: Final = 30  # up to that many turns are all shown, of more a selection


def table(growth: Growth) -> str:
    """The turns as a table; a selection of them if they are many."""
    rows = growth.rows
    shown = rows
    if len(rows) > _ALL_ROWS:
        step = max(1, len(rows) // 15)
        shown = tuple(
            row for row in rows if row.turn <= 8 or row.turn % step == 0 or row == rows[-1]
        )
    lines = [
        f"{'turn':>5} {'sent':>9} {'grown':>9} {'context':>9} {'bytes up':>12}"
        "  errors before the answer"
    ]
    lines += [
        f"{row.turn:>5} {row.sent:>9,} {row.grown:>9,} {row.context:>9,} {row.upstream:>12,}"
        f"  {_errors(row.errors)}"
        for row in shown
    ]
    return "\n".join(lines)


def _errors(errors: tuple[str, ...]) -> str:
    parts: list[str] = []
    for error in dict.fromkeys(errors):
        count = errors.count(error)
        parts.append(error if count == 1 else f"{count} x {error}")
    return ", ".join(parts)


def summary(growth: Growth) -> str:
    """The result in one sentence."""
    name = growth.experiment.policy.name
    turns = len(growth.rows)
    window = growth.experiment.window
    mean = f"{growth.per_turn:,.0f} tokens a turn, {growth.upstream:,} bytes upstream"
    if growth.full is not None:
        return f"{name}: the window of {window:,} tokens is full at turn {growth.full}; {mean}"
    if growth.stuck is not None:
        return f"{name}: turn {growth.stuck} did not succeed in {MAX_TRIES} tries; {mean}"
    context = growth.rows[-1].context if growth.rows else 0
    return f"{name}: {turns} turns use {context:,} of {window:,} tokens; {mean}"


_COLOURS: Final = ("#1a6fb5", "#c8371b", "#3a8f3a", "#8a5fb0")
_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _BOTTOM = 84, 24, 64  # margins around the plot; the legend is above it


def plot(growths: Sequence[Growth]) -> str:
    """The context over the turns, a line for each of ``growths``, as an SVG document."""
    window = max(growth.experiment.window for growth in growths)
    last = max([10, *(row.turn for growth in growths for row in growth.rows)])
    highest = max([window, *(row.context for growth in growths for row in growth.rows)]) * 1.06
    top = 56 + 20 * len(growths)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - top - _BOTTOM

    def x(turn: float) -> float:
        return _LEFT + width * turn / last

    def y(tokens: float) -> float:
        return top + height * (1 - tokens / highest)

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle", more: str = "") -> str:
        place = f'x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}"'
        return f"<text {place}{more}>{_escaped(words)}</text>"

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    grid, axis = 'stroke="#ddd"', 'stroke="#333"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        text(_LEFT, 26, "Context of one conversation when sockets are lost", "start", _BOLD),
    ]
    for tokens in _ticks(highest):
        parts.append(line(_LEFT, y(tokens), _WIDTH - _RIGHT, y(tokens), grid))
        parts.append(text(_LEFT - 8, y(tokens) + 4, f"{tokens // 1000:,} K", "end"))
    for turn in _ticks(last):
        parts.append(line(x(turn), y(0), x(turn), y(0) + 5, axis))
        parts.append(text(x(turn), y(0) + 20, str(turn)))
    parts.append(line(_LEFT, y(0), _WIDTH - _RIGHT, y(0), axis))
    parts.append(line(_LEFT, top, _LEFT, y(0), axis))
    parts.append(text(_LEFT + width / 2, _HEIGHT - 18, "turn"))
    middle = top + height / 2
    turned = f' transform="rotate(-90 20 {middle:.1f})"'
    parts.append(text(20, middle, "context, tokens", more=turned))
    dashed = 'stroke="#777" stroke-dasharray="6 4"'
    parts.append(line(_LEFT, y(window), _WIDTH - _RIGHT, y(window), dashed))
    label = f"window, {window // 1000:,} K"
    parts.append(text(_WIDTH - _RIGHT, y(window) - 6, label, "end", ' fill="#777"'))
    for index, growth in enumerate(growths):
        colour = _COLOURS[index % len(_COLOURS)]
        points = " ".join(f"{x(row.turn):.1f},{y(row.context):.1f}" for row in growth.rows)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        if growth.full is not None and growth.rows:
            end = growth.rows[-1]
            parts.append(
                f'<circle cx="{x(end.turn):.1f}" cy="{y(end.context):.1f}" r="5" fill="{colour}"/>'
            )
        row = 48 + 20 * index
        style = f'stroke="{colour}" stroke-width="3"'
        parts.append(line(_LEFT, row - 4, _LEFT + 24, row - 4, style))
        parts.append(text(_LEFT + 32, row, summary(growth), "start"))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


_BOLD = ' font-size="16" font-weight="bold"'


def _ticks(highest: float) -> list[int]:
    """Five to ten round numbers from 0 to ``highest``."""
    step = 1
    while highest / step > 10:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return list(range(0, int(highest) + 1, step))
