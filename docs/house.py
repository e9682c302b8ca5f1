"""The diagram of the house: the rooms of the code and who imports whom.

What belongs here: reading the real imports of every package, and drawing them in the lines of the
import contracts (``pyproject.toml``). The page is ``docs/architecture.rst``.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = {
    "bridgecore": ROOT / "bridgecore",
    **{name: ROOT / "adapters" / name for name in
       ("bridgecore_asyncio", "bridgecore_trio", "bridgecore_cli")},
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


_WIDTH, _LINE, _BOX, _HEIGHT, _TOP = 940, 58, 190, 32, 24
_STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2933;text-anchor:middle}"
    "rect.room{fill:#f5f7fa;stroke:#52606d}rect.adapter{fill:#e6f6ff;stroke:#52606d}"
    "path{fill:none;stroke:#9aa5b1}path.tip{fill:#9aa5b1}"
)


def draw() -> str:
    """The rooms with their imports, as an SVG document that needs nothing else. A room's title
    names everything that it imports; arrows that follow from others are left out."""
    found, places = imports(), {}
    for row, rooms in enumerate(lines()):
        left = (_WIDTH - len(rooms) * (_BOX + 40) + 40) // 2
        for column, room in enumerate(rooms):
            places[room] = (left + column * (_BOX + 40), _TOP + row * _LINE)
    height = _TOP * 2 + len(lines()) * _LINE
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img">',
        f"<title>Which room imports which</title><style>{_STYLE}</style>",
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for index, (room, target) in enumerate(_direct(found)):
        (x1, y1), (x2, y2) = places[room], places[target]
        start, end = x1 + _BOX // 2, x2 + _BOX // 2
        span = (y2 - y1) // _LINE
        # A long arrow goes around the rooms between, to the left and to the right by turns.
        aside = 0 if span < 2 else (90 + 26 * span) * (-1 if index % 2 else 1)
        bend = (y2 - y1 - _HEIGHT) // 3
        out.append(
            f'<path d="M{start} {y1 + _HEIGHT} C{start + aside} {y1 + _HEIGHT + bend} '
            f'{end + aside} {y2 - bend} {end} {y2}" marker-end="url(#to)"/>'
        )
    for room, (x, y) in places.items():
        kind = "adapter" if room.startswith("bridgecore_") else "room"
        below = ", ".join(sorted(found[room])) or "nothing"
        out.append(
            f'<g><title>{room} imports {below}</title><rect class="{kind}" x="{x}" y="{y}" '
            f'width="{_BOX}" height="{_HEIGHT}" rx="6"/>'
            f'<text x="{x + _BOX // 2}" y="{y + 21}">{room}</text></g>'
        )
    return "\n".join([*out, "</svg>", ""])
