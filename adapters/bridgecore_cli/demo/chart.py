"""The plot of the demo in characters: context by turn, a mark for each conversation.

What belongs here: which character is where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MARKS: Final = ("x", "+", "o")
"""The mark of each line. No label of the plot contains one of them."""
_LABEL = 8  # characters left of the axis


def chart(
    lines: Sequence[Sequence[int]], *, turns: int, window: int, width: int, height: int
) -> list[str]:
    """Rows of text, the highest first. ``lines``: the tokens after each turn; where two lines meet,
    the later one is seen. ``width``, ``height``: of all of it, in characters."""
    plot = max(10, width - _LABEL - 1)
    tall = max(3, height - 3)  # without the axis and its labels
    grid = [[" "] * plot for _ in range(tall + 1)]
    grid[tall] = ["-"] * plot
    for mark, line in zip(MARKS, lines, strict=True):
        for column in range(plot):
            turn = 1 + column / (plot - 1) * (turns - 1)
            if turn <= len(line):
                tokens = min(_between(line, turn), window)
                grid[_row(tokens, window, tall)][column] = mark
    labels = {_row(tokens, window, tall): tokens for tokens in _round_numbers(window)}
    labels[tall] = window
    rows = []
    for number in range(tall, -1, -1):
        label = f"{labels[number] // 1000:,} K" if number in labels else ""
        rows.append(f"{label:>{_LABEL}}|{''.join(grid[number])}".rstrip())
    rows.append(f"{'':>{_LABEL}}+{'-' * plot}")
    rows.append(f"{'turn':>{_LABEL}} 1{turns:>{plot - 1}}")
    return rows


def _between(line: Sequence[int], turn: float) -> float:
    """The value of ``line`` at ``turn``, which may be between two turns."""
    before = int(turn)
    value, after = line[before - 1], line[min(before, len(line) - 1)]
    return value + (after - value) * (turn - before)


def _round_numbers(window: int) -> list[int]:
    """Zero and about four round numbers below ``window``."""
    step = 10 ** (len(str(window)) - 1)
    step = next(step * part // 10 for part in (2, 5, 10, 20, 50) if window * 10 <= step * part * 5)
    return list(range(0, window, step))


def _row(tokens: float, window: int, tall: int) -> int:
    return round(tokens / window * tall)
