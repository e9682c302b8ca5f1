"""Draws counterexamples (text, SVG, Mermaid) and the phases of a session (SVG).

What belongs here: which lane an event comes from and an effect goes to, and the drawing. The
history is a ``Story`` of story.py; the transitions between phases are collected by the caller.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import Event
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.scenario import command_of, describe
from bridgecore.verify.story import Story, reasons


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
    for one in story.seen:
        source = _speaker(one.event)
        yield Arrow(one.at, source, Lane.BRIDGE, command_of(one.event))
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


_WIDTH = 26  # characters between two lanes


def text(story: Story) -> str:
    """The diagram as text, one line for each arrow."""
    heads = "".join(lane.name.lower().ljust(_WIDTH + 1) for lane in Lane)
    lines = [f"{'':9}{heads.rstrip()}"]
    for arrow in arrows(story):
        low, high = sorted((arrow.source.value, arrow.target.value))
        cells = ["|" + " " * _WIDTH for _ in Lane]
        if low == high:
            cells[low] = "*" + " " * _WIDTH
        elif arrow.source.value < arrow.target.value:
            cells[low] = "|" + "-" * (_WIDTH - 1) + ">"
        else:
            cells[low] = "|<" + "-" * (_WIDTH - 1)
        row = "".join(cells)[: 2 * (_WIDTH + 1) + 1]
        lines.append(f"{arrow.at / NS_PER_SECOND:7.3f}  {row}  {arrow.text}")
    lines += ["", f"broken: {story.text}"]
    return "\n".join(lines)


_GAP, _LEFT, _TOP, _ROW = 360, 120, 88, 30
_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933}.head{font-weight:bold;font-size:14px}"
    ".time{fill:#7b8794;font-size:11px}.bad{fill:#b42318;font-weight:bold}"
    "line{stroke:#52606d}.lane{stroke:#cbd2d9}"
)


def svg(story: Story) -> str:
    """The diagram as an SVG document without references to other files."""
    rows = list(arrows(story))
    bottom = _TOP + _ROW * (len(rows) + 1)
    width = _LEFT + 2 * _GAP + 280
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 60}" '
        f'width="{width}" height="{bottom + 60}" role="img">',
        f"<title>{_escaped(story.prop.name)}</title><style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#52606d"/></marker></defs>',
        f'<rect width="{width}" height="{bottom + 60}" fill="#fff"/>',
        f'<text x="16" y="28" class="head">{_escaped(story.prop.name)}</text>',
    ]
    for lane in Lane:
        x = _x(lane)
        out.append(f'<text x="{x}" y="60" text-anchor="middle">{lane.name.lower()}</text>')
        out.append(f'<line class="lane" x1="{x}" y1="70" x2="{x}" y2="{bottom}"/>')
    for index, arrow in enumerate(rows):
        y = _TOP + _ROW * (index + 1)
        label = _escaped(arrow.text)
        out.append(f'<text class="time" x="16" y="{y}">{arrow.at / NS_PER_SECOND:.3f} s</text>')
        start, end = _x(arrow.source), _x(arrow.target)
        if start == end:
            out.append(f'<circle cx="{start}" cy="{y - 4}" r="3"/>')
            out.append(f'<text x="{start + 10}" y="{y}">{label}</text>')
            continue
        out.append(
            f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" marker-end="url(#tip)"/>'
            f'<text x="{(start + end) // 2}" y="{y - 5}" text-anchor="middle">{label}</text>'
        )
    out.append(f'<text class="bad" x="16" y="{bottom + 36}">{_escaped(story.text)}</text>')
    return "\n".join([*out, "</svg>", ""])


def mermaid(story: Story) -> str:
    """The diagram as a sequence diagram of Mermaid, which many sites draw from its text."""
    out = ["sequenceDiagram", f"    title {_plain(story.prop.name)}"]
    out += [f"    participant {lane.name.lower()}" for lane in Lane]
    at = -1
    for arrow in arrows(story):
        source, target = arrow.source.name.lower(), arrow.target.name.lower()
        if arrow.at != at:
            at = arrow.at
            out.append(f"    Note left of client: {at / NS_PER_SECOND:.3f} s")
        if source == target:
            out.append(f"    Note over {source}: {_plain(arrow.text)}")
        else:
            out.append(f"    {source}->>{target}: {_plain(arrow.text)}")
    out.append(f"    Note over client,upstream: broken: {_plain(story.text)}")
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

_BOX_WIDTH, _BOX_HEIGHT = 130, 40
# Connecting on the left, the phases of a turn from left to right, idle below.
_PLACES: Mapping[Phase, tuple[int, int]] = {
    Phase.CLOSED: (60, 330),
    Phase.RECONNECTING: (60, 90),
    Phase.SENDING: (330, 90),
    Phase.SENT: (560, 90),
    Phase.CREATED: (790, 90),
    Phase.OUTPUT: (1020, 90),
    Phase.SEND_SKIPPED: (330, 330),
    Phase.OPEN: (790, 330),
}
_PHASE_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933;text-anchor:middle}"
    ".count{font-size:11px;fill:#7b8794}rect.phase{fill:#f5f7fa;stroke:#52606d}"
    "path{fill:none;stroke:#9aa5b1}path.tip{fill:#9aa5b1}"
)


def phases(edges: Edges) -> str:
    """The phases of a session and their transitions, as an SVG document without references to other
    files. Each arrow has the number of its rules, and their names as a tooltip."""
    width, height = 1210, 460
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>The phases of a session</title><style>{_PHASE_STYLE}</style>",
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for (source, target), rules in edges.items():
        if source is not target:
            out += _curve(source, target, rules)
    for phase, (x, y) in _PLACES.items():
        out.append(
            f'<rect class="phase" x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" '
            f'rx="8"/><text x="{x + _BOX_WIDTH // 2}" y="{y + 25}">{phase.value}</text>'
        )
    return "\n".join([*out, "</svg>", ""])


def _curve(source: Phase, target: Phase, rules: Sequence[str]) -> list[str]:
    """An arrow that bends to its right, so that it does not cover the one in the other
    direction."""
    (x1, y1), (x2, y2) = (_middle(phase) for phase in (source, target))
    dx, dy = x2 - x1, y2 - y1
    length = max(1, round((dx * dx + dy * dy) ** 0.5))
    bend = max(24, length // 7)
    bx, by = (x1 + x2) // 2 - dy * bend // length, (y1 + y2) // 2 + dx * bend // length
    (ax, ay), (cx, cy) = _edge(x1, y1, bx, by), _edge(x2, y2, bx, by)
    title = _escaped(f"{source.value} to {target.value}: {', '.join(rules)}")
    mx, my = (ax + 2 * bx + cx) // 4, (ay + 2 * by + cy) // 4
    return [
        f'<g><title>{title}</title><path d="M{ax} {ay} Q{bx} {by} {cx} {cy}" '
        f'marker-end="url(#to)"/><text class="count" x="{mx}" y="{my + 4}">{len(rules)}</text></g>'
    ]


def _middle(phase: Phase) -> tuple[int, int]:
    x, y = _PLACES[phase]
    return x + _BOX_WIDTH // 2, y + _BOX_HEIGHT // 2


def _edge(x: int, y: int, towards_x: int, towards_y: int) -> tuple[int, int]:
    """The point at which the line from the centre of a box to another point leaves the box."""
    dx, dy = towards_x - x, towards_y - y
    half_x, half_y = _BOX_WIDTH // 2 + 2, _BOX_HEIGHT // 2 + 2
    if abs(dx) * half_y > abs(dy) * half_x:
        return x + (half_x if dx > 0 else -half_x), y + dy * half_x // abs(dx)
    return x + dx * half_y // max(1, abs(dy)), y + (half_y if dy > 0 else -half_y)
