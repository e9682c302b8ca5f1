"""Draws counterexamples (text, SVG, Mermaid) and the phases of a session (SVG).

What belongs here: which lane an event comes from and an effect goes to, and the drawing. The
history is a ``Story`` of story.py; the transitions between phases are collected by the caller.
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import assert_never

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import Event
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.scenario import command_of, describe
from bridgecore.verify.story import Seen, Story, reasons


class Lane(enum.Enum):
    """The participants. The value is the position from the left."""

    CLIENT = 0
    BRIDGE = 1
    UPSTREAM = 2


@attrs.frozen
class Arrow:
    """A message between two lanes, or, if both are the same, something that happens in one."""

    at: int  # ns since the beginning
    source: Lane
    target: Lane
    text: str


def arrows(story: Story) -> Iterator[Arrow]:
    """The arrows of a story in order: events, the cells of the table that decided, effects."""
    yield from arrows_of(story.seen)


def arrows_of(seen: Iterable[Seen]) -> Iterator[Arrow]:
    """The arrows of a history."""
    for one in seen:
        source = _speaker(one.event)
        yield Arrow(one.at, source, Lane.BRIDGE, command_of(one.event) + one.note)
        for reason in reasons(one.transition):
            yield Arrow(one.at, Lane.BRIDGE, Lane.BRIDGE, reason)
        for effect in one.transition.effects:
            yield Arrow(one.at, Lane.BRIDGE, _listener(effect), describe(effect))


def _speaker(event: Event) -> Lane:
    if isinstance(event, ev.TurnSubmitted | ev.TurnAbandoned | ev.RelayPaused):
        return Lane.CLIENT
    # The operating system of the bridge reports that a frame was sent.
    if isinstance(event, ev.EvictionRequested | ev.DeadlineReached | ev.FrameSent):
        return Lane.BRIDGE
    if isinstance(
        event,
        ev.ConnectionOpened
        | ev.ConnectionLost
        | ev.ResponseCreated
        | ev.OutputReceived
        | ev.ResponseEnded
        | ev.UpstreamRefused,
    ):
        return Lane.UPSTREAM
    assert_never(event)


def _listener(effect: Effect) -> Lane:
    if isinstance(effect, fx.DeliverEvent | fx.CompleteTurn | fx.FailTurn):
        return Lane.CLIENT
    if isinstance(effect, fx.OpenConnection | fx.CloseConnection | fx.SendTurn):
        return Lane.UPSTREAM
    return Lane.BRIDGE


_WIDTH, _NARROW = 26, 10  # characters between two lanes
_NEEDED = 110  # characters of a line, below which the lanes are narrow


def text(story: Story, width: int | None = None) -> str:
    """The diagram as text, one line for each arrow, or more if it is to have ``width`` columns at
    most."""
    return "\n".join([*text_of(story.seen, width), "", f"broken: {story.text}"])


def text_of(seen: Iterable[Seen], width: int | None = None) -> list[str]:
    """The lines of the diagram of a history, of at most ``width`` columns (None: any length)."""
    between = _WIDTH if width is None or width >= _NEEDED else _NARROW
    heads = "".join(lane.name.lower().ljust(between + 1) for lane in Lane)
    lines = [f"{'':9}{heads.rstrip()}"]
    for arrow in arrows_of(seen):
        low, high = sorted((arrow.source.value, arrow.target.value))
        cells = ["|" + " " * between for _ in Lane]
        if low == high:
            cells[low] = "*" + " " * between
        elif arrow.source.value < arrow.target.value:
            cells[low] = "|" + "-" * (between - 1) + ">"
        else:
            cells[low] = "|<" + "-" * (between - 1)
        length = 2 * (between + 1) + 1
        row = "".join(cells)[:length]
        bare = "".join(["|" + " " * between for _ in Lane])[:length]
        room = len(arrow.text) if width is None else max(_NARROW, width - length - 13)
        texts = textwrap.wrap(arrow.text, max(1, room), break_on_hyphens=False) or [""]
        lines.append(f"{arrow.at / NS_PER_SECOND:7.3f}  {row}  {texts[0]}")
        lines += [f"{'':9}{bare}    {more}" for more in texts[1:]]
    return lines


_GAP, _LEFT, _TOP, _ROW, _LINE_HEIGHT = 360, 120, 88, 30, 17  # pixels
_WIDTH_OF_SVG, _MARGIN = _LEFT + 2 * _GAP + 280, 16
_CHARACTER = 8.5  # at most, for text of 13 or 14 pixels in any common monospaced font
_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933}.head{font-weight:bold;font-size:14px}"
    ".time{fill:#7b8794;font-size:11px}.bad{fill:#b42318;font-weight:bold}"
    "line{stroke:#52606d}.lane{stroke:#cbd2d9}"
)


def svg(story: Story) -> str:
    """The diagram as an SVG document without references to other files."""
    return svg_of(story.prop.name, story.seen, story.text)


def svg_of(title: str, seen: Iterable[Seen], broken: str) -> str:
    """The diagram of a history as an SVG document; ``broken``: what is wrong at its end. Text that
    is too long for its place has several lines."""
    rows: list[str] = []
    y = _TOP
    for arrow in arrows_of(seen):
        y += _ROW
        time = f'<text class="time" x="{_MARGIN}" y="{{}}">{arrow.at / NS_PER_SECOND:.3f} s</text>'
        start, end = _x(arrow.source), _x(arrow.target)
        if start == end:
            lines = _wrapped(arrow.text, _WIDTH_OF_SVG - _MARGIN - start - 10)
            rows.append(time.format(y))
            rows.append(f'<circle cx="{start}" cy="{y - 4}" r="3"/>')
            rows.append(_text(lines, start + 10, y))
            y += _LINE_HEIGHT * (len(lines) - 1)
            continue
        lines = _wrapped(arrow.text, _GAP - 2 * _MARGIN)
        middle, first = (start + end) // 2, y - 5
        y += _LINE_HEIGHT * (len(lines) - 1)  # the arrow is below its text
        rows.append(time.format(y))
        rows.append(
            f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" marker-end="url(#tip)"/>'
            + _text(lines, middle, first, 'text-anchor="middle"')
        )
    bottom = y + _ROW
    ends = _wrapped(broken, _WIDTH_OF_SVG - 2 * _MARGIN)
    height = bottom + 60 + _LINE_HEIGHT * (len(ends) - 1)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH_OF_SVG} {height}" '
        f'width="{_WIDTH_OF_SVG}" height="{height}" role="img">',
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#52606d"/></marker></defs>',
        f'<rect width="{_WIDTH_OF_SVG}" height="{height}" fill="#fff"/>',
        f'<text x="{_MARGIN}" y="28" class="head">{_escaped(title)}</text>',
    ]
    for lane in Lane:
        x = _x(lane)
        out.append(f'<text x="{x}" y="60" text-anchor="middle">{lane.name.lower()}</text>')
        out.append(f'<line class="lane" x1="{x}" y1="70" x2="{x}" y2="{bottom}"/>')
    out += rows
    out.append(_text(ends, _MARGIN, bottom + 36, 'class="bad"'))
    return "\n".join([*out, "</svg>", ""])


def _wrapped(text: str, width: int) -> list[str]:
    """``text`` in lines that fit into ``width`` pixels."""
    return textwrap.wrap(text, int(width / _CHARACTER), break_on_hyphens=False) or [""]


def _text(lines: Sequence[str], x: int, y: int, more: str = "") -> str:
    """A text of one or more lines, the first of which is at ``y``."""
    attributes = f'x="{x}" y="{y}"{" " * bool(more)}{more}'
    if len(lines) == 1:
        return f"<text {attributes}>{_escaped(lines[0])}</text>"
    # The space at the end of a line is for whoever copies or searches the text.
    spans = [
        f'<tspan x="{x}" dy="{_LINE_HEIGHT if number else 0}">{_escaped(line)}</tspan>'
        for number, line in enumerate(lines)
    ]
    return f"<text {attributes}>{' '.join(spans)}</text>"


def mermaid(story: Story) -> str:
    """The diagram as a sequence diagram of Mermaid, which many sites draw from its text."""
    return mermaid_of(story.prop.name, story.seen, story.text)


def mermaid_of(title: str, seen: Iterable[Seen], broken: str) -> str:
    """The same of a history; ``broken``: what is wrong at its end."""
    out = ["sequenceDiagram", f"    title {_plain(title)}"]
    out += [f"    participant {lane.name.lower()}" for lane in Lane]
    at = -1
    for arrow in arrows_of(seen):
        source, target = arrow.source.name.lower(), arrow.target.name.lower()
        if arrow.at != at:
            at = arrow.at
            out.append(f"    Note left of client: {at / NS_PER_SECOND:.3f} s")
        if source == target:
            out.append(f"    Note over {source}: {_plain(arrow.text)}")
        else:
            out.append(f"    {source}->>{target}: {_plain(arrow.text)}")
    out.append(f"    Note over client,upstream: broken: {_plain(broken)}")
    return "\n".join([*out, ""])


def _plain(text: str) -> str:
    """``text`` on one line, with codes for what Mermaid takes for the end of a statement, a comment
    or HTML."""
    codes = {"#": "#35;", ";": "#59;", "<": "#lt;", ">": "#gt;", "%": "#37;"}
    return " ".join("".join(codes.get(c, c) for c in text).split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _x(lane: Lane) -> int:
    return _LEFT + _GAP * lane.value


# ---------------------------------------------------------------- the phases of a session

Edges = Mapping[tuple[Phase, Phase], Sequence[str]]  # (from, to): the ids of the rules

# From top to bottom as a turn goes: an arrow that leads on runs at the right, one back at the left.
_ORDER = (
    Phase.CLOSED,
    Phase.RECONNECTING,
    Phase.SEND_SKIPPED,
    Phase.SENDING,
    Phase.SENT,
    Phase.CREATED,
    Phase.OUTPUT,
    Phase.OPEN,
)
# Small enough for a telephone, so that the text need not be scaled down there.
_PAGE_WIDTH, _PITCH = 360, 96
_BOX_LEFT, _BOX_RIGHT, _BOX_HEIGHT = 122, 238, 56
_PORT, _LINE, _FIRST_LINE, _BEND = 13, 21, 40, 7  # distances in pixels
_PHASE_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933;text-anchor:middle}"
    ".number{font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:4px}"
    "rect.phase{fill:#f5f7fa;stroke:#52606d}"
    "path{fill:none;stroke:#7b8794}path.tip{fill:#52606d;stroke:none}"
)


def numbered(edges: Edges) -> dict[tuple[Phase, Phase], int]:
    """The number that each arrow of the drawing has, from 1 on."""
    drawn = [edge for edge in edges if edge[0] is not edge[1]]
    return {edge: number for number, edge in enumerate(drawn, 1)}


def phases(edges: Edges) -> str:
    """The phases of a session and their transitions, as an SVG document without references to other
    files. Each arrow has its number of ``numbered``, and the names of its rules as a tooltip."""
    numbers = numbered(edges)
    height = _PITCH * len(_ORDER)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_PAGE_WIDTH} {height}" '
        f'width="{_PAGE_WIDTH}" height="{height}" role="img">',
        f"<title>The phases of a session</title><style>{_PHASE_STYLE}</style>",
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect width="{_PAGE_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    paths = _paths(numbers)
    for edge, (path, _, _) in paths.items():
        title = _escaped(f"{edge[0].value} to {edge[1].value}: {', '.join(edges[edge])}")
        out.append(f'<path d="{path}" marker-end="url(#to)"><title>{title}</title></path>')
    for phase in _ORDER:
        middle, top = (_BOX_LEFT + _BOX_RIGHT) // 2, _top(phase)
        out.append(
            f'<rect class="phase" x="{_BOX_LEFT}" y="{top}" width="{_BOX_RIGHT - _BOX_LEFT}" '
            f'height="{_BOX_HEIGHT}" rx="8"/>'
            f'<text x="{middle}" y="{top + _BOX_HEIGHT // 2 + 4}">{phase.value}</text>'
        )
    for edge, (_, x, y) in paths.items():
        out.append(f'<text class="number" x="{x}" y="{y + 4}">{numbers[edge]}</text>')
    return "\n".join([*out, "</svg>", ""])


def _top(phase: Phase) -> int:
    return (_PITCH - _BOX_HEIGHT) // 2 + _PITCH * _ORDER.index(phase)


def _paths(edges: Iterable[tuple[Phase, Phase]]) -> dict[tuple[Phase, Phase], tuple[str, int, int]]:
    """For each edge the SVG path of its arrow, and where its number stands."""
    paths = {}
    sides: dict[bool, list[tuple[Phase, Phase]]] = {True: [], False: []}
    for source, target in edges:
        way = _ORDER.index(target) - _ORDER.index(source)
        if abs(way) > 1:
            sides[way > 0].append((source, target))
            continue
        # Neighbours: a straight arrow.
        down = way > 0
        x = (_BOX_LEFT + _BOX_RIGHT) // 2 + (20 if down else -20)
        start, end = _top(source) + _BOX_HEIGHT * down, _top(target) + _BOX_HEIGHT * (not down)
        number = (x + (12 if down else -12), (start + end) // 2)
        paths[source, target] = (f"M{x} {start} V{end + (-2 if down else 2)}", *number)
    for down, some in sides.items():
        paths.update(_around(some, down=down))
    return paths


def _around(
    edges: Sequence[tuple[Phase, Phase]], *, down: bool
) -> Iterator[tuple[tuple[Phase, Phase], tuple[str, int, int]]]:
    """The same for arrows that pass by other phases: down at the right of the boxes, up at their
    left. Arrows to one phase share a vertical line, the longest of which is the outermost."""
    sign = 1 if down else -1
    side = _BOX_RIGHT if down else _BOX_LEFT
    reach = {
        target: max(sign * (_ORDER.index(target) - _ORDER.index(source)) for source in sources)
        for target in {edge[1] for edge in edges}
        if (sources := [edge[0] for edge in edges if edge[1] is target])
    }
    lines = sorted(reach, key=lambda target: (reach[target], _ORDER.index(target)))

    def port(phase: Phase, place: int, places: int) -> int:
        middle = _top(phase) + _BOX_HEIGHT // 2
        return middle + sign * (2 * place - places + 1) * _PORT // 2

    # In the direction of the arrows: first the one that comes in, then those to the outer lines.
    leaving = {
        phase: sorted(
            (target for source, target in edges if source is phase), key=lines.index, reverse=True
        )
        for phase in _ORDER
    }
    for source, target in edges:
        x = side + sign * (_FIRST_LINE + _LINE * lines.index(target))
        entered = source in reach
        places = len(leaving[source]) + entered
        start = port(source, leaving[source].index(target) + entered, places)
        end = port(target, 0, len(leaving[target]) + 1)
        near, far = x - sign * _BEND, sign * _BEND
        path = (
            f"M{side} {start} H{near} Q{x} {start} {x} {start + far} V{end - far} "
            f"Q{x} {end} {near} {end} H{side + 2 * sign}"
        )
        yield (source, target), (path, side + sign * 14, start)
