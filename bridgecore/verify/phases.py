"""Draws the phases of a session, with the names of the rules beside each arrow (SVG).

What belongs here: the drawing. The transitions between phases are collected by the caller.

A session rests in two phases, ``closed`` and ``open``: they are bars at the left and the right, as
high as the drawing. The phases of a turn are boxes between them, from top to bottom as a turn goes.
So an arrow between a box and a bar is a straight line with its names above it. An arrow that passes
by other boxes runs at their right if it leads on, at their left if it leads back, and has its names
where it leaves its box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from bridgecore.recovery.state import Phase

Edge: TypeAlias = tuple[Phase, Phase]
Edges: TypeAlias = Mapping[Edge, Sequence[str]]
"""(from, to): the ids of the rules."""

_ORDER: Final = (
    Phase.RECONNECTING,
    Phase.SEND_SKIPPED,
    Phase.SENDING,
    Phase.SENT,
    Phase.CREATED,
    Phase.OUTPUT,
)
# Distances in pixels. The width of a character is that of common monospaced fonts.
_CHARACTER, _LINE, _SPACE, _MARGIN = 7.3, 14, 12, 6
_BAR, _BOX = 62, 108
_NARROW, _WIDE = 128, 194  # of the names beside a box; of those beside the bar of ``closed``
_LANE, _FIRST_LANE, _BEND = 14, 10, 6
_STYLE = (
    "text{font:12px ui-monospace,monospace;fill:#1f2933;paint-order:stroke;stroke:#fff;"
    "stroke-width:4px}"
    ".phase{font-size:13px;font-weight:bold;text-anchor:middle;stroke:none}"
    "rect.phase{fill:#eef2f6;stroke:#52606d;stroke-width:1}"
    "path{fill:none;stroke:#7b8794}path.tip{fill:#52606d;stroke:none}"
)


@attrs.frozen
class _Text:
    """One line of names. ``x``, ``y``: the left end of its base line."""

    x: float
    y: float
    words: str


def draw(edges: Edges) -> str:
    """An SVG document without references to other files."""
    return _Drawing(edges).svg()


def lines_of(names: Sequence[str], width: float) -> list[str]:
    """``names`` with commas between them, in lines of at most ``width`` pixels if each fits."""
    lines: list[str] = []
    for index, name in enumerate(names):
        word = name if index == len(names) - 1 else f"{name},"
        if lines and (len(lines[-1]) + 1 + len(word)) * _CHARACTER <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _row(phase: Phase) -> int:
    return _ORDER.index(phase)


class _Drawing:
    """Where everything is; each part is placed below the one before."""

    def __init__(self, edges: Edges) -> None:
        self._edges = {edge: names for edge, names in edges.items() if edge[0] is not edge[1]}
        self._texts: list[_Text] = []
        self._paths: list[tuple[str, Edge]] = []
        self._boxes: dict[Phase, tuple[float, float]] = {}  # top and bottom
        self._ports: dict[tuple[Edge, Phase], float] = {}  # the height of an end of a passing arrow
        passing = [edge for edge in self._edges if self._passes(edge)]
        self._lanes = {
            **_lanes([(a, b) for a, b in passing if _row(a) < _row(b)]),
            **_lanes([(a, b) for a, b in passing if _row(a) > _row(b)]),
        }
        room = {True: 0.0, False: 0.0}  # of the lanes at the right, at the left
        for edge, lane in self._lanes.items():
            down = _row(edge[0]) < _row(edge[1])
            room[down] = max(room[down], _FIRST_LANE + _LANE * (lane + 1))
        self._closed = _MARGIN + _BAR  # the inner edge of that bar
        self._left = self._closed + _WIDE + room[False] + _NARROW
        self._right = self._left + _BOX
        self._open = self._right + _NARROW + room[True] + _SPACE
        self._height = self._place()

    # ------------------------------------------------------------ kinds of arrows

    def _passes(self, edge: Edge) -> bool:
        """Whether an arrow between two boxes passes by another one."""
        return set(edge) <= {*_ORDER} and abs(_row(edge[0]) - _row(edge[1])) > 1

    def _with_bar(self, phase: Phase, bar: Phase) -> list[Edge]:
        """The arrows between a box and a bar, that to the box first."""
        return [edge for edge in ((bar, phase), (phase, bar)) if edge in self._edges]

    def _passing(self, phase: Phase, *, down: bool, leaves: bool) -> list[Edge]:
        """Passing arrows of one side of a box, so sorted that they do not cross."""
        found = [
            edge
            for edge in self._lanes
            if edge[not leaves] is phase and (_row(edge[0]) < _row(edge[1])) is down
        ]
        # Down: those that leave for an outer lane are above, those that come from one below.
        return sorted(found, key=self._lanes.__getitem__, reverse=leaves is down)

    # ------------------------------------------------------------ places

    def _place(self) -> float:
        """Place everything; the height."""
        y = float(_MARGIN + _SPACE)
        rest = (Phase.OPEN, Phase.CLOSED)
        for edge in (rest, rest[::-1]):
            if edge in self._edges:
                y = self._across(edge, y)
        for phase in _ORDER:
            y = self._gap(phase, y + _MARGIN)
            bottom = max(y + 40, self._beside(phase, y, down=False), self._beside(phase, y))
            self._boxes[phase] = y, bottom
            y = bottom
        for edge in self._lanes:
            self._lane(edge)
        return y + _MARGIN + _SPACE

    def _across(self, edge: Edge, y: float) -> float:
        """Place an arrow between the bars below ``y``; the height where it ends."""
        ends = self._open, self._closed
        start, end = ends if edge[0] is Phase.OPEN else ends[::-1]
        y = self._names(edge, self._closed + _SPACE, y, self._open - self._closed - 2 * _SPACE)
        self._paths.append((f"M{start:g} {y:g} H{_before(start, end):g}", edge))
        return y + _SPACE

    def _beside(self, phase: Phase, y: float, *, down: bool = True) -> float:
        """Place the arrows of one side of a box that begins at ``y``; where it has to end.

        ``down``: the right side, where arrows lead on and the bar is ``open``.
        """
        bar = Phase.OPEN if down else Phase.CLOSED
        for edge in self._passing(phase, down=down, leaves=not down):
            y = self._end(edge, phase, y, named=not down)
        if down:
            for edge in self._with_bar(phase, bar):
                y = self._level(edge, phase, y, self._right + _SPACE, _NARROW - _SPACE)
            for edge in self._passing(phase, down=down, leaves=True):
                y = self._end(edge, phase, y, named=True)
        else:
            for edge in self._with_bar(phase, bar):
                y = self._level(edge, phase, y, self._closed + _SPACE, _WIDE - _SPACE)
            for edge in self._passing(phase, down=down, leaves=False):
                y = self._end(edge, phase, y, named=False)
        return y + _MARGIN

    def _level(self, edge: Edge, phase: Phase, y: float, x: float, width: float) -> float:
        """Place an arrow between a box and a bar below ``y``; where it is."""
        y = self._names(edge, x, y, width)
        right = Phase.OPEN in edge
        ends = (self._right, self._open) if right else (self._left, self._closed)
        start, end = ends if edge[0] is phase else ends[::-1]
        self._paths.append((f"M{start:g} {y:g} H{_before(start, end):g}", edge))
        return y + 2

    def _end(self, edge: Edge, phase: Phase, y: float, *, named: bool) -> float:
        """Place an end of a passing arrow at a box, below ``y``; where it is."""
        if named:
            down = _row(edge[0]) < _row(edge[1])
            x = self._right + _SPACE if down else self._left - _NARROW + 2
            y = self._names(edge, x, y, _NARROW - _SPACE)
        else:
            y += _SPACE
        self._ports[edge, phase] = y
        return y + 2

    def _lane(self, edge: Edge) -> None:
        """Draw a passing arrow between its two ends."""
        down = _row(edge[0]) < _row(edge[1])
        sign = 1 if down else -1
        side = self._right if down else self._left
        x = side + sign * (_NARROW + _FIRST_LANE + _LANE * self._lanes[edge])
        start, end = self._ports[edge, edge[0]], self._ports[edge, edge[1]]
        near, bend = x - sign * _BEND, sign * _BEND
        path = (
            f"M{side:g} {start:g} H{near:g} Q{x:g} {start:g} {x:g} {start + bend:g} "
            f"V{end - bend:g} Q{x:g} {end:g} {near:g} {end:g} H{side + 2 * sign:g}"
        )
        self._paths.append((path, edge))

    def _gap(self, phase: Phase, y: float) -> float:
        """Place the arrows between a box and the one above it; where the box begins."""
        if _row(phase) == 0:
            return y + _SPACE
        above = _ORDER[_row(phase) - 1]
        start, middle = self._boxes[above][1], (self._left + self._right) / 2
        down, up = (above, phase), (phase, above)
        on, back = (lines_of(self._edges.get(edge, ()), _NARROW) for edge in (down, up))
        end = start + max(2, len(on), len(back)) * _LINE + 2 * _SPACE
        for edge, lines, x in ((down, on, middle + 12), (up, back, middle - 12)):
            if edge not in self._edges:
                continue
            ends = (start, end) if edge is down else (end, start)
            self._paths.append((f"M{x:g} {ends[0]:g} V{_before(*ends):g}", edge))
            first = (start + end - len(lines) * _LINE) / 2 + _LINE - 3
            for number, words in enumerate(lines):
                left = x + 8 if edge is down else x - 8 - len(words) * _CHARACTER
                self._texts.append(_Text(left, first + number * _LINE, words))
        return end

    def _names(self, edge: Edge, x: float, y: float, width: float) -> float:
        """Place the names of an arrow below ``y``; where its line is to be."""
        for words in lines_of(self._edges[edge], width):
            y += _LINE
            self._texts.append(_Text(x, y, words))
        return y + 6

    # ------------------------------------------------------------ SVG

    def svg(self) -> str:
        """The document."""
        width, height = self._open + _BAR + _MARGIN, self._height
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
                f'width="{width:g}" height="{height:g}" role="img">',
                f"<title>The phases of a session</title><style>{_STYLE}</style>",
                '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
                'markerHeight="8" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker>'
                "</defs>",
                f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
                *self._arrows(),
                *self._phases(),
                *(
                    f'<text x="{text.x:g}" y="{text.y:g}">{_escaped(text.words)}</text>'
                    for text in self._texts
                ),
                "</svg>",
                "",
            ]
        )

    def _arrows(self) -> Iterator[str]:
        for path, (source, target) in self._paths:
            names = ", ".join(self._edges[source, target])
            title = _escaped(f"{source.value} to {target.value}: {names}")
            yield f'<path d="{path}" marker-end="url(#to)"><title>{title}</title></path>'

    def _phases(self) -> Iterator[str]:
        bars = ((Phase.CLOSED, float(_MARGIN)), (Phase.OPEN, self._open))
        ends = float(_MARGIN), self._height - _MARGIN
        places = [(phase, x, _BAR, *ends) for phase, x in bars]
        places += [(phase, self._left, _BOX, *box) for phase, box in self._boxes.items()]
        for phase, x, width, top, bottom in places:
            yield (
                f'<rect class="phase" x="{x:g}" y="{top:g}" width="{width}" '
                f'height="{bottom - top:g}" rx="8"/>'
                f'<text class="phase" x="{x + width / 2:g}" y="{(top + bottom) / 2 + 4:g}">'
                f"{phase.value}</text>"
            )


def _before(start: float, end: float) -> float:
    """Two pixels before ``end``, for the tip of the arrow."""
    return end - 2 if end > start else end + 2


def _lanes(edges: Sequence[Edge]) -> dict[Edge, int]:
    """For each arrow that passes by a box the number of its line, 0 next to the boxes: the shortest
    are innermost, and arrows that are beside each other have different lines."""
    found: dict[Edge, int] = {}

    def span(edge: Edge) -> tuple[int, int]:
        low, high = sorted(map(_row, edge))
        return low, high

    for edge in sorted(edges, key=lambda one: (span(one)[1] - span(one)[0], span(one))):
        low, high = span(edge)
        taken = {
            lane
            for other, lane in found.items()
            if span(other)[0] <= high and low <= span(other)[1]
        }
        found[edge] = next(lane for lane in range(len(edges)) if lane not in taken)
    return found


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
