"""Draws counterexamples (text, SVG, Mermaid).

What belongs here: which lane an event comes from and an effect goes to, and the drawing. The
history is a ``Story`` of story.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import assert_never

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import Event
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


_WIDTH = 26  # characters between two lanes


def text(story: Story) -> str:
    """The diagram as text, one line for each arrow."""
    return "\n".join([*text_of(story.seen), "", f"broken: {story.text}"])


def text_of(seen: Iterable[Seen]) -> list[str]:
    """The lines of the diagram of a history."""
    heads = "".join(lane.name.lower().ljust(_WIDTH + 1) for lane in Lane)
    lines = [f"{'':9}{heads.rstrip()}"]
    for arrow in arrows_of(seen):
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
    return lines


_GAP, _LEFT, _TOP, _ROW = 360, 120, 88, 30
_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933}.head{font-weight:bold;font-size:14px}"
    ".time{fill:#7b8794;font-size:11px}.bad{fill:#b42318;font-weight:bold}"
    "line{stroke:#52606d}.lane{stroke:#cbd2d9}"
)


def svg(story: Story) -> str:
    """The diagram as an SVG document without references to other files."""
    return svg_of(story.prop.name, story.seen, story.text)


def svg_of(title: str, seen: Iterable[Seen], broken: str) -> str:
    """The diagram of a history as an SVG document; ``broken``: what is wrong at its end."""
    rows = list(arrows_of(seen))
    bottom = _TOP + _ROW * (len(rows) + 1)
    width = _LEFT + 2 * _GAP + 280
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 60}" '
        f'width="{width}" height="{bottom + 60}" role="img">',
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#52606d"/></marker></defs>',
        f'<rect width="{width}" height="{bottom + 60}" fill="#fff"/>',
        f'<text x="16" y="28" class="head">{_escaped(title)}</text>',
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
    out.append(f'<text class="bad" x="16" y="{bottom + 36}">{_escaped(broken)}</text>')
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
