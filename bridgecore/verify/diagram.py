"""Counterexamples as sequence diagrams, as text and as SVG.

What belongs here: the lanes, who says what to whom, and how that is drawn. What happened is a
``Story`` of explore.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import Event
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.scenario import command_of, describe
from bridgecore.verify.story import Story


class Lane(enum.Enum):
    """Who takes part. The value is the place from the left."""

    CLIENT = 0
    BRIDGE = 1
    UPSTREAM = 2


@attrs.frozen
class Arrow:
    """Something said, or, if both ends are one lane, something that happens there."""

    at: int  # ns since the beginning
    source: Lane
    target: Lane
    text: str


def arrows(story: Story) -> Iterator[Arrow]:
    """Who says what to whom, in order."""
    for one in story.seen:
        source = _speaker(one.event)
        yield Arrow(one.at, source, Lane.BRIDGE, command_of(one.event))
        for effect in one.transition.effects:
            yield Arrow(one.at, Lane.BRIDGE, _listener(effect), describe(effect))


def _speaker(event: Event) -> Lane:
    if isinstance(event, ev.TurnSubmitted | ev.TurnAbandoned | ev.RelayPaused):
        return Lane.CLIENT
    # That a frame is out, the bridge hears of its own operating system.
    if isinstance(event, ev.EvictionRequested | ev.DeadlineReached | ev.FrameSent):
        return Lane.BRIDGE
    return Lane.UPSTREAM


def _listener(effect: Effect) -> Lane:
    if isinstance(effect, fx.DeliverEvent | fx.CompleteTurn | fx.FailTurn):
        return Lane.CLIENT
    if isinstance(effect, fx.OpenConnection | fx.CloseConnection | fx.SendTurn):
        return Lane.UPSTREAM
    return Lane.BRIDGE


_WIDTH = 26  # of a gap between two lanes, in characters


def text(story: Story) -> str:
    """The diagram in characters, a line for each arrow."""
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
    """The diagram as an SVG document that needs nothing else."""
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


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _x(lane: Lane) -> int:
    return _LEFT + _GAP * lane.value
