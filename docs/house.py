"""The diagram of the house: the rooms of the code and who imports whom.

What belongs here: reading the real imports of every package, and drawing them in the lines of the
import contracts (``pyproject.toml``). The page is ``docs/architecture.rst``.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = {
    "bridgecore": ROOT / "bridgecore",
    **{name: ROOT / "adapters" / name for name in
       ("bridgecore_asyncio", "bridgecore_trio", "bridgecore_stores", "bridgecore_httpx",
        "bridgecore_pytest", "bridgecore_cli", "bridgecore_asgi")},
}  # fmt: skip


def lines() -> list[list[str]]:
    """The rooms, the highest line first: the adapters, then the core."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = {one["id"]: one for one in tomllib.loads(text)["tool"]["importlinter"]["contracts"]}
    above = [_rooms_in(line) for line in contracts["adapters"]["layers"] if line != "bridgecore"]
    return above + [_rooms_in(line) for line in contracts["house"]["layers"] if line != "__main__"]


def _rooms_in(line: str) -> list[str]:
    return [room.strip(" ()") for room in line.replace("|", ":").split(":")]


def imports() -> dict[str, set[str]]:
    """By room, the rooms that its modules import."""
    rooms = {room for line in lines() for room in line}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for package, folder in _PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            own = path.relative_to(folder).parts[0].removesuffix(".py")
            room = own if package == "bridgecore" else package
            if room not in rooms:
                continue  # bridgecore itself, which only exports
            for name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                head, _, rest = name.partition(".")
                target = rest.partition(".")[0] if head == "bridgecore" else head
                if target in rooms and target != room:
                    found[room].add(target)
    return found


def _imported(tree: ast.AST) -> Iterable[str]:
    """The full name of each module imported anywhere in ``tree``, and of each name of one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _direct(found: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no chain of others implies: the drawing shows these."""
    reached: dict[str, set[str]] = {}

    def below(room: str) -> set[str]:
        if room not in reached:
            reached[room] = found[room].union(*map(below, found[room]))
        return reached[room]

    return [
        (room, target)
        for room in sorted(found)
        for target in sorted(found[room])
        if not any(target in below(other) for other in found[room])
    ]


_LINE, _BOX, _HEIGHT, _TOP = 48, 170, 28, 20  # of a line; of a room; above the first line
_GAP = 40  # between two rooms of a line
_LANE, _EDGE = 15, 24  # between two lanes; between rooms and lanes, and at the margin
_ROUND = 6  # radius of a corner, which tells a turn from a crossing
_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933;text-anchor:middle}"
    "rect.room{fill:#f5f7fa;stroke:#52606d}rect.adapter{fill:#e6f6ff;stroke:#52606d}"
    "path{fill:none;stroke:#7b8794}path.tip{fill:#7b8794;stroke:none}"
)


@attrs.frozen
class _Place:
    """Where a room is: its line, counted from above; ``x``, its middle, 0 in the middle of the
    drawing; ``outer``: on which sides, -1 left and 1 right, no other room is beside it."""

    line: int
    x: int
    outer: tuple[int, ...]

    @property
    def y(self) -> int:
        """The upper edge."""
        return _TOP + self.line * _LINE


def _places() -> dict[str, _Place]:
    found = {}
    for index, rooms in enumerate(lines()):
        for column, room in enumerate(rooms):
            x = (2 * column - len(rooms) + 1) * (_BOX + _GAP) // 2
            outer = (-1,) * (column == 0) + (1,) * (column == len(rooms) - 1)
            found[room] = _Place(index, x, outer)
    return found


def _lanes(spans: Mapping[_Place, tuple[int, int]]) -> dict[_Place, int]:
    """A lane for each target, counted from the rooms outwards. ``spans``: the lines that its arrows
    pass. The shortest is the innermost; two share a lane if they pass none of the same lines."""
    taken: list[list[tuple[int, int]]] = []
    found: dict[_Place, int] = {}
    for target, (top, end) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        free = (
            index
            for index, others in enumerate(taken)
            if all(end < first or last < top for first, last in others)
        )
        lane = next(free, len(taken))
        taken[lane:lane] = [[]] if lane == len(taken) else []
        taken[lane].append((top, end))
        found[target] = lane
    return found


def _down(source: _Place, target: _Place, middle: int | None = None) -> str:
    """An arrow from the lower edge of a room to the upper edge of another, straight down at
    ``middle`` between the rooms of the lines between them, if there are any."""
    y, end, gap = source.y + _HEIGHT, target.y, _LINE - _HEIGHT
    path, x = f"M{source.x} {y}", source.x
    if middle is not None:
        path += f" C{x} {y + gap // 2} {middle} {y + gap // 2} {middle} {y + gap} V{end - gap}"
        y, x = end - gap, middle
    return f"{path} C{x} {y + gap // 2} {target.x} {y + gap // 2} {target.x} {end}"


def _around(source: _Place, target: _Place, side: int, lane: int) -> str:
    """An arrow around the rooms between: out at the ``side`` of a room, down the lane at ``lane``,
    and in. Where another room is beside it on that side, out from below or in from above."""
    turn, gap = lane - side * _ROUND, (_LINE - _HEIGHT) // 2
    if side in source.outer:
        y = source.y + _HEIGHT * 2 // 3
        path = f"M{source.x + side * _BOX // 2} {y}"
    else:
        x, y = source.x, source.y + _HEIGHT + gap
        path = f"M{x} {y - gap} V{y - _ROUND} Q{x} {y} {x + side * _ROUND} {y}"
    inner = side in target.outer
    end = target.y + _HEIGHT // 3 if inner else target.y - gap
    path += f" H{turn} Q{lane} {y} {lane} {y + _ROUND} V{end - _ROUND} Q{lane} {end} {turn} {end}"
    if inner:
        return f"{path} H{target.x + side * _BOX // 2}"
    return f"{path} H{target.x + side * _ROUND} Q{target.x} {end} {target.x} {target.y}"


def _gap(source: _Place, target: _Place, places: Iterable[_Place]) -> int | None:
    """Where an arrow can go straight down between the rooms of the lines between, nearest to its
    source; None: nowhere, or one of them has a single room."""
    passed: dict[int, list[int]] = {line: [] for line in range(source.line + 1, target.line)}
    for place in places:
        if place.line in passed:
            passed[place.line].append(place.x)
    gaps = [{x + (_BOX + _GAP) // 2 for x in sorted(xs)[:-1]} for xs in passed.values()]
    common = set.intersection(*gaps)
    return min(common, key=lambda x: (abs(x - source.x), x), default=None)


def _arrows(
    edges: Iterable[tuple[str, str]], places: Mapping[str, _Place]
) -> tuple[list[str], int]:
    """The paths of the arrows, and how far they and the rooms reach to each side.

    An arrow to the next line goes down. One that can goes straight down between rooms. Any other
    goes around; all arrows to one room on one side share a lane.
    """
    paths, between, around = [], [], []
    for source, target in edges:
        here, there = places[source], places[target]
        if there.line == here.line + 1:
            paths.append(_down(here, there))
        elif (middle := _gap(here, there, places.values())) is not None:
            between.append((here, there, middle))
        else:
            around.append((here, there, 1 if (here.x or there.x) > 0 else -1))
    for here, there, middle in between:
        # In one gap, a line for each target: those on the left to the left.
        others = sorted({to.x for of, to, x in between if x == middle != of.x})
        offset = 0 if here.x == middle else (2 * others.index(there.x) - len(others) + 1) * 6
        paths.append(_down(here, there, middle + offset))
    reach = edge = max(place.x for place in places.values()) + _BOX // 2
    for side in (-1, 1):
        spans: dict[_Place, tuple[int, int]] = {}
        for here, there, at in around:
            if at == side:
                first, _ = spans.get(there, (here.line, 0))
                spans[there] = (min(first, here.line), there.line)
        lanes = {place: edge + _EDGE + lane * _LANE for place, lane in _lanes(spans).items()}
        reach = max(reach, *lanes.values())
        paths += [
            _around(here, there, side, side * lanes[there])
            for here, there, at in around
            if at == side
        ]
    return paths, reach


def draw() -> str:
    """The rooms with their imports, as an SVG document that needs nothing else. A room's title
    names everything that it imports; arrows that follow from others are left out."""
    found, places = imports(), _places()
    paths, reach = _arrows(_direct(found), places)
    half = reach + _EDGE
    height = _TOP * 2 + len(lines()) * _LINE - _LINE + _HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-half} 0 {half * 2} {height}" '
        f'width="{half * 2}" height="{height}" role="img">',
        f"<title>Which room imports which</title><style>{_STYLE}</style>",
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect x="{-half}" width="{half * 2}" height="{height}" fill="#fff"/>',
        *(f'<path d="{path}" marker-end="url(#to)"/>' for path in paths),
    ]
    for room, place in places.items():
        kind = "adapter" if room.startswith("bridgecore_") else "room"
        below = ", ".join(sorted(found[room])) or "nothing"
        out.append(
            f'<g><title>{room} imports {below}</title><rect class="{kind}" '
            f'x="{place.x - _BOX // 2}" y="{place.y}" '
            f'width="{_BOX}" height="{_HEIGHT}" rx="6"/>'
            f'<text x="{place.x}" y="{place.y + 19}">{room}</text></g>'
        )
    return "\n".join([*out, "</svg>", ""])
