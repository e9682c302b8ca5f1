"""Presents results of the growth experiment: tables, sentences, a plot.

What belongs here: text and SVG. The figures are measured elsewhere, and every sentence is derived
from the rows that a table shows: what they do not show is not said. Turns that were answered are
counted and averaged; the one at which the conversation ended has no figures, so it is named, but
not counted. No line of a table is longer than 80 characters; sentences are not wrapped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from bridgecore.simulate.experiment import (
    MAX_TRIES,
    NOT_FOUND,
    OUTPUT_TOKENS,
    Experiment,
    Growth,
    TurnFigures,
)

_ALL_ROWS: Final = 30  # up to that many turns are all shown, of more a selection
# Of the production system in README.md: at which turn its window was full, and by how many tokens
# its context grew in a turn that lost its connection.
_PRODUCTION_FULL: Final = 17
_PRODUCTION_GROWTH: Final = 70_000


# ------------------------------------------------------------------ tables


def table(growth: Growth) -> str:
    """The turns as a table; a selection of them if they are many."""
    lines = [
        f"{'turn':>4} {'sent':>8} {'grown':>8} {'context':>8} {'client B':>10} {'upstream B':>11} "
        f"{'tokens up':>9}  errors"
    ]
    shown = _selection([growth])
    lines += [
        f"{row.turn:>4} {row.sent:>8,} {row.grown:>8,} {row.context:>8,} {row.client:>10,} "
        f"{row.upstream:>11,} {row.upstream_tokens:>9,}  {statuses(row.errors)}"
        for row in growth.rows
        if row.turn in shown
    ]
    if growth.ended is not None:
        turn, end = growth.ended
        lines.append(f"{turn:>4} {'':>8} {'':>8} {end:>8} {'':>32}  {statuses(growth.unanswered)}")
    codes = _codes([*growth.answered_errors, *growth.unanswered])
    return "\n".join([line.rstrip() for line in lines] + codes)


def side_by_side(growths: Sequence[Growth]) -> str:
    """The turns of several results beside each other, as one table."""
    shown = _selection(growths)
    names = "".join(f" {growth.experiment.policy.name:>30}" for growth in growths)
    lines = [
        f"    {names}",
        "turn" + f" {'sent':>9} {'context':>9} {'upstream B':>10}" * len(growths),
    ]
    rows = [{row.turn: row for row in growth.rows} for growth in growths]
    for turn in shown:
        parts = [
            _three(own.get(turn), growth.ended, turn)
            for own, growth in zip(rows, growths, strict=True)
        ]
        lines.append(f"{turn:>4}{''.join(parts)}".rstrip())
    lines.append("")
    for growth in growths:
        said = ", ".join(counted(growth.answered_errors)) or "none"
        if growth.ended is not None and growth.unanswered:
            turn, _ = growth.ended
            said += f"; at turn {turn}, the last: {', '.join(counted(growth.unanswered))}"
        lines.append(f"errors that {growth.experiment.policy.name} answered: {said}")
    return "\n".join(lines)


def _three(row: TurnFigures | None, ended: tuple[int, str] | None, turn: int) -> str:
    if row is None:
        return f" {ended[1] if ended is not None and ended[0] == turn else '':>30}"
    return f" {row.sent:>9,} {row.context:>9,} {row.upstream:>10,}"


def _selection(growths: Sequence[Growth]) -> list[int]:
    """The turns to show: all, or, of many, the first ones, the last of each, and some between."""
    last = [len(growth.rows) for growth in growths]
    ends = {growth.ended[0] for growth in growths if growth.ended is not None} | {*last}
    highest = max(ends, default=0)
    step = max(1, highest // 15)
    return [
        turn
        for turn in range(1, highest + 1)
        if highest <= _ALL_ROWS or turn <= 8 or turn % step == 0 or turn in ends
    ]


def counted(errors: Sequence[str]) -> list[str]:
    """Each error once, with the number of times that it occurs."""
    return [
        error if errors.count(error) == 1 else f"{errors.count(error):,} x {error}"
        for error in dict.fromkeys(errors)
    ]


def statuses(errors: Sequence[str]) -> str:
    """The same in short: without the codes."""
    return " ".join(part.replace(" x ", "x") for part in counted([e.split()[0] for e in errors]))


def _codes(errors: Iterable[str]) -> list[str]:
    """A line that says which codes the statuses had; none if there are no errors."""
    found: dict[str, list[str]] = {}
    for error in dict.fromkeys(errors):
        status, _, code = error.partition(" ")
        found.setdefault(status, []).append(code)
    said = [f"{status}: {' or '.join(codes)}" for status, codes in found.items()]
    return ["", *said] if said else []


# ------------------------------------------------------------------ sentences


def setting(experiment: Experiment) -> str:
    """What was done, in a sentence."""
    every, run = experiment.fault_every, experiment.fault_run
    if every is None or experiment.hits == 0:
        hit = "no connection is lost"
    else:
        who = "each turn after the first" if run >= every else f"{run} of {every} turns"
        hit = f"{who} loses its connection, before it and again before response.created"
        if run < every and run > 1:
            hit = hit.replace("turns loses its connection", "turns lose their connection")
    return (
        f"One conversation, store={str(experiment.store).lower()}, a system prompt of "
        f"{experiment.system_tokens:,} tokens, about {experiment.new_tokens:,} new ones a turn; "
        f"{hit}."
    )


def summary(growth: Growth) -> str:
    """The result in one sentence, which says no more than the rows show."""
    parts = [_window_part(growth), _growth_part(growth), _client_part(growth)]
    parts.append(
        f"{growth.client:,} bytes from the client, {growth.upstream:,} bytes and "
        f"{growth.upstream_tokens:,} tokens upstream"
    )
    return f"{growth.experiment.policy.name}: {'; '.join(part for part in parts if part)}"


def headline(growth: Growth) -> str:
    """The result in a few words."""
    parts = [_short_window_part(growth)]
    if len(growth.rows) > 1:
        parts.append(f"{growth.per_turn:,.0f} tokens a turn")
    times, turns = times_not_found(growth)
    if times:
        parts.append(f"whole history sent in {times} of {turns} turns")
    return f"{growth.experiment.policy.name}: {', '.join(parts)}"


def _window_part(growth: Growth) -> str:
    window = growth.experiment.window
    if growth.full is not None:
        return f"the window of {window:,} tokens is full at turn {growth.full}"
    if growth.stuck is not None:
        return f"turn {growth.stuck} did not succeed in {MAX_TRIES} tries"
    turns = len(growth.rows)
    if not turns:
        return "no turn was completed"
    used = growth.rows[-1].context
    text = f"{turns} turn{' uses' if turns == 1 else 's use'} {used:,} of {window:,} tokens"
    return (
        text if growth.full_at is None else f"{text}, full at turn {growth.full_at} if it goes on"
    )


def _short_window_part(growth: Growth) -> str:
    if growth.full is not None:
        return f"full at turn {growth.full}"
    if growth.full_at is not None:
        return f"full at turn {growth.full_at} if it goes on"
    return _window_part(growth)


def _growth_part(growth: Growth) -> str:
    if len(growth.rows) < 2:
        return ""
    return f"the context grows by {growth.per_turn:,.0f} tokens a turn"


def times_not_found(growth: Growth) -> tuple[int, int]:
    """In how many of the turns that were answered after the first the client got ``NOT_FOUND``
    before, and how many those are."""
    return len(growth.not_found), max(0, len(growth.rows) - 1)


def _client_part(growth: Growth) -> str:
    times, turns = times_not_found(growth)
    if times:
        new = growth.experiment.new_tokens - OUTPUT_TOKENS
        sent = sum(row.sent for row in growth.not_found) / times
        return (
            f"after {NOT_FOUND} the client sent its whole history in {times} of the {turns} turns "
            f"that were answered after the first: {sent:,.0f} tokens on average, {new:,} of them "
            "new"
        )
    if NOT_FOUND in growth.unanswered and growth.ended is not None:
        return f"after {NOT_FOUND} the client sent its whole history at turn {growth.ended[0]}"
    return f"the client sends {growth.sent_per_turn:,.0f} tokens a turn" if turns else ""


def comparison(growths: Sequence[Growth]) -> list[str]:
    """What each of the later results cost over the turns that it has in common with the first."""
    first, *others = growths
    lines = []
    for other in others:
        turns = min(len(first.rows), len(other.rows))
        if not turns:
            continue
        own, usual = other.rows[:turns], first.rows[:turns]
        costs = (
            _times(own[-1].context, usual[-1].context, "context", " tokens"),
            _times(_sum(own, "client"), _sum(usual, "client"), "bytes from the client"),
            _times(_sum(own, "upstream"), _sum(usual, "upstream"), "bytes upstream"),
        )
        names = other.experiment.policy.name, first.experiment.policy.name
        text = ", ".join(costs)
        lines.append(f"Over {_turns(turns)}, {names[0]} needs, against {names[1]}: {text}.")
    return lines


def _turns(number: int) -> str:
    return "the first turn" if number == 1 else f"the first {number} turns"


def _sum(rows: Iterable[TurnFigures], name: str) -> int:
    return sum(getattr(row, name) for row in rows)


def _times(value: int, usual: int, what: str, unit: str = "") -> str:
    if value == usual:
        return f"the same {what} ({value:,}{unit})"
    times = value / usual
    shown = f"{times:.1f}" if abs(times - 1) >= 0.1 else f"{times:.4f}"
    return f"{shown} times the {what} ({value:,} against {usual:,}{unit})"


def why_not_as_in_production(growth: Growth) -> str | None:
    """Why the window was full at another turn than that of the production system in README.md; None
    if it was not, or the settings are not those of that system."""
    usual = Experiment()
    own = growth.experiment
    same = (own.window, own.system_tokens, own.new_tokens) == (
        usual.window,
        usual.system_tokens,
        usual.new_tokens,
    )
    appended = [row.grown for row in growth.not_found if row.grown > own.new_tokens]
    if growth.full in (None, _PRODUCTION_FULL) or not appended or not same:
        return None
    _, turns = times_not_found(growth)
    before = _PRODUCTION_FULL - 1
    room = own.window - growth.rows[0].context - before * own.new_tokens
    hits = round(room / (_PRODUCTION_GROWTH - own.new_tokens))
    return (
        f"Why turn {growth.full}, and turn {_PRODUCTION_FULL} in production: here {len(appended)} "
        f"of the {turns} turns that were answered after the first appended {min(appended):,} to "
        f"{max(appended):,} tokens each; at the {_PRODUCTION_GROWTH:,} of production the window "
        f"is full after about {hits} such turns among {before} (try --faults 5/7)."
    )


# ------------------------------------------------------------------ the plot


_COLOURS: Final = ("#8a5fb0", "#b5761a", "#1a9c9c", "#666")
_OF_POLICIES: Final = {"default": "#1a6fb5", "v1_12": "#c8371b", "pr397": "#3a8f3a"}
_WIDTH, _HEIGHT = 860, 480  # of the plot of two results
_LEFT, _RIGHT, _BOTTOM = 84, 24, 64  # margins around the plot; the legend is above it


def plot(growths: Sequence[Growth], *, page: int = _WIDTH) -> str:
    """The context over the turns, a line for each of ``growths``, as an SVG document that is
    ``page`` pixels wide."""
    window = max(growth.experiment.window for growth in growths)
    last = max([10, *(row.turn for growth in growths for row in growth.rows)])
    highest = max([window, *(row.context for growth in growths for row in growth.rows)]) * 1.06
    narrow = page < _WIDTH
    title = textwrap.wrap(_TITLE, int((page - _RIGHT) / 9))
    legends = [
        textwrap.wrap(headline(growth), int((page - (8 if narrow else _LEFT) - 40) / 7))
        for growth in growths
    ]
    top = 36 + 20 * len(title) + 20 * sum(map(len, legends))
    width, height = page - _LEFT - _RIGHT, _HEIGHT - 96 - _BOTTOM
    whole = top + height + _BOTTOM

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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page} {whole}" '
        f'width="{page}" height="{whole}" font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{page}" height="{whole}" fill="#fff"/>',
    ]
    words_left = 8 if narrow else _LEFT
    for number, words in enumerate(title):
        parts.append(text(words_left, 26 + 20 * number, words, "start", _BOLD))
    for tokens in _ticks(highest):
        parts.append(line(_LEFT, y(tokens), page - _RIGHT, y(tokens), grid))
        parts.append(text(_LEFT - 8, y(tokens) + 4, f"{tokens // 1000:,} K", "end"))
    for turn in _ticks(last):
        parts.append(line(x(turn), y(0), x(turn), y(0) + 5, axis))
        parts.append(text(x(turn), y(0) + 20, str(turn)))
    parts.append(line(_LEFT, y(0), page - _RIGHT, y(0), axis))
    parts.append(line(_LEFT, top, _LEFT, y(0), axis))
    parts.append(text(_LEFT + width / 2, whole - 18, "turn"))
    middle = top + height / 2
    turned = f' transform="rotate(-90 20 {middle:.1f})"'
    parts.append(text(20, middle, "context, tokens", more=turned))
    dashed = 'stroke="#777" stroke-dasharray="6 4"'
    parts.append(line(_LEFT, y(window), page - _RIGHT, y(window), dashed))
    label = f"window, {window // 1000:,} K"
    parts.append(text(page - _RIGHT, y(window) - 6, label, "end", ' fill="#777"'))
    drawn: set[str] = set()
    row = 28 + 20 * len(title)
    for index, growth in enumerate(growths):
        colour = _OF_POLICIES.get(growth.experiment.policy.name, _COLOURS[index % len(_COLOURS)])
        points = " ".join(f"{x(row.turn):.1f},{y(row.context):.1f}" for row in growth.rows)
        # Dashed on a line that is the same, so that both are seen.
        dashes = ' stroke-dasharray="10 10"' if points in drawn else ""
        drawn.add(points)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"'
            f"{dashes}/>"
        )
        if growth.full is not None and growth.rows:
            end = growth.rows[-1]
            parts.append(
                f'<circle cx="{x(end.turn):.1f}" cy="{y(end.context):.1f}" r="5" fill="{colour}"/>'
            )
        style = f'stroke="{colour}" stroke-width="3"'
        parts.append(line(words_left, row - 4, words_left + 24, row - 4, style))
        for words in legends[index]:
            parts.append(text(words_left + 32, row, words, "start"))
            row += 20
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


_TITLE: Final = "Context of one conversation when sockets are lost"
_BOLD = ' font-size="16" font-weight="bold"'


def _ticks(highest: float) -> list[int]:
    """Five to ten round numbers from 0 to ``highest``."""
    step = 1
    while highest / step > 10:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return list(range(0, int(highest) + 1, step))
