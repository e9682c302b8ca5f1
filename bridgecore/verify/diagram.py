"""Draws counterexamples (text, SVG, Mermaid).

What belongs here: which lane an event comes from and an effect goes to, and the drawing. The
history is a ``Story`` of story.py.
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Iterator, Sequence
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
