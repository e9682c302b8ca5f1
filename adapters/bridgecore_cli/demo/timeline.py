"""What happened in one turn, as a sequence diagram.

What belongs here: the arrows and their drawing as SVG. They are recorded in ``stage.py``.
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Sequence
from html import escape

import attrs

from bridgecore.recovery.policy_table import ACTIONS, COLUMNS, ROWS


class Lane(enum.Enum):
    """The participants. The value is the position from the left."""

    CLIENT = 0
    BRIDGE = 1
    UPSTREAM = 2


@attrs.frozen
class Arrow:
    """A message between two lanes, or, if both are the same, a decision there. ``attempt``: the
    request that it belongs to, counted from 1; ``bad``: it is a loss, or an error."""

    at: int  # ns, when it was recorded
    attempt: int
    source: Lane
    target: Lane
    text: str
    bad: bool = False


def words_of(cell: str) -> str:
    """A cell of a policy's table, as logs name it, in the words of ``bridgecore rules``."""
    row, _, rest = cell.partition("/")
    column, _, action = rest.partition("=")
    return f"{ROWS[row].value} / {COLUMNS[column].value}: {ACTIONS[action].value}"


def in_order(arrows: Sequence[Arrow]) -> list[Arrow]:
    """``arrows`` as one caused the other. They are recorded by several threads, and a bridge logs a
    loss, and what it decided about it, after the answer has left: so the answer to a request is
    moved behind all else of it, and a decision behind the loss that was logged after it."""
    found = sorted(arrows, key=lambda one: (one.attempt, one.target is Lane.CLIENT, one.at))
    for index in range(len(found) - 1):
        one, other = found[index : index + 2]
        decides = one.source is one.target
        if decides and other.bad and other.source is Lane.UPSTREAM:
            found[index : index + 2] = other, one
    return found


_LEFT, _GAP, _TOP, _ROW, _LINE = 90, 330, 64, 26, 14
_DECISION = 52  # characters of a decision on one line, so that it ends before the next lane
_WIDTH = _LEFT + 2 * _GAP + 90
_PALE, _DARK, _RED = "#cbd2d9", "#52606d", "#b42318"


def svg(title: str, arrows: Sequence[Arrow]) -> str:
    """The diagram as an SVG element without references to anything else."""
    decisions = {
        number: textwrap.wrap(arrow.text, _DECISION, break_on_hyphens=False)
        for number, arrow in enumerate(arrows)
        if arrow.source is arrow.target
    }
    more = sum(len(lines) - 1 for lines in decisions.values())
    bottom = _TOP + _ROW * (len(arrows) + 1) + _LINE * more
    marker = f"tip-{''.join(c for c in title if c.isalnum())}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom}" '
        f'font-family="sans-serif" font-size="13" role="img" aria-label="{escape(title)}">',
        f'<defs><marker id="{marker}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="{_DARK}"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{bottom}" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for lane in Lane:
        x = _x(lane)
        out.append(f'<text x="{x}" y="44" text-anchor="middle">{lane.name.lower()}</text>')
        out.append(f'<line x1="{x}" y1="52" x2="{x}" y2="{bottom - 8}" stroke="{_PALE}"/>')
    latest = begun = arrows[0].at if arrows else 0
    y = _TOP - 6
    for number, arrow in enumerate(arrows):
        y += _ROW
        colour = _RED if arrow.bad else "#1f2933"
        start, end = _x(arrow.source), _x(arrow.target)
        latest = max(latest, arrow.at)
        at = f"{(latest - begun) / 1e6:,.0f} ms"
        out.append(f'<text x="4" y="{y}" font-size="11" fill="#7b8794">{at}</text>')
        if start == end:
            out.append(f'<circle cx="{start}" cy="{y - 4}" r="3" fill="{_DARK}"/>')
            for index, words in enumerate(decisions[number]):
                y += _LINE * (index > 0)
                out.append(
                    f'<text x="{start + 8}" y="{y}" font-size="11" fill="#7b8794" stroke="#fff" '
                    f'stroke-width="4" paint-order="stroke">{escape(words)}</text>'
                )
            continue
        stroke = _RED if arrow.bad else _DARK
        out.append(
            f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" stroke="{stroke}" '
            f'marker-end="url(#{marker})"/>'
            f'<text x="{(start + end) // 2}" y="{y - 5}" text-anchor="middle" fill="{colour}">'
            f"{escape(arrow.text)}</text>"
        )
    return "\n".join([*out, "</svg>"])


def _x(lane: Lane) -> int:
    return _LEFT + _GAP * lane.value
