"""Tests of verify/phases.py: every arrow has its names, and they can be read.

What belongs here: the drawing of the documentation. Its widths on a page are checked by
``make check-pages``.
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import attrs
import pytest

from bridgecore.recovery.rules import RULES
from bridgecore.recovery.state import Phase
from bridgecore.verify.phases import Edges, draw, lines_of

TABLE = Path(__file__).parents[2] / "docs" / "generated" / "states.rst"
SPACE = "{http://www.w3.org/2000/svg}"
CHARACTER, ASCENT, DESCENT = 7.3, 9, 2  # pixels of the font


def explored() -> Edges:
    """The edges of the documentation, which are explored when it is generated."""
    rows = re.findall(r"\* - (\w+)\n +- (\w+)\n +- (.*)\n", TABLE.read_text(encoding="utf-8"))
    found = {(Phase(a), Phase(b)): re.findall("``(.+?)``", names) for a, b, names in rows[1:]}
    assert len(found) > 20
    return found


@attrs.frozen
class Words:
    left: float
    y: float
    text: str
    phase: bool

    def covers(self, other: Words) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not apart and abs(self.y - other.y) < ASCENT + DESCENT

    @property
    def right(self) -> float:
        return self.left + len(self.text) * CHARACTER


def words(root: ElementTree.Element) -> list[Words]:
    found = []
    for text in root.iter(f"{SPACE}text"):
        x, y, said = float(text.attrib["x"]), float(text.attrib["y"]), "".join(text.itertext())
        middle = text.attrib.get("class") == "phase"
        left = x - len(said) * CHARACTER / 2 if middle else x
        found.append(Words(left, y, said, middle))
    return found


def straight(path: str) -> list[tuple[float, float, float, float]]:
    """The lines of a path, without its bends: left, top, right, bottom."""
    found, x, y = [], 0.0, 0.0
    for command, rest in re.findall(r"([MHVQ])([^MHVQ]*)", path):
        numbers = [float(number) for number in rest.split()]
        before = x, y
        x = numbers[0] if command == "H" else numbers[-2] if command in "MQ" else x
        y = numbers[0] if command == "V" else numbers[-1] if command in "MQ" else y
        if command in "HV":
            found.append(
                (min(before[0], x), min(before[1], y), max(before[0], x), max(before[1], y))
            )
    return found


def test_each_arrow_has_the_names_of_its_rules() -> None:
    edges = explored()
    root = ElementTree.fromstring(draw(edges))
    found = words(root)
    named = [
        name for one in found if not one.phase for name in one.text.removesuffix(",").split(", ")
    ]
    expected = [name for names in edges.values() for name in names]
    assert set(expected) <= {rule.id for rule in RULES.values()}
    assert sorted(named) == sorted(expected)
    phases = {phase.value for edge in edges for phase in edge}
    assert phases == {one.text for one in found if one.phase}
    arrows = [path for path in root.iter(f"{SPACE}path") if "marker-end" in path.attrib]
    titles = {"".join(path.itertext()) for path in arrows}
    assert titles == {
        f"{a.value} to {b.value}: {', '.join(names)}" for (a, b), names in edges.items()
    }


def test_no_words_are_covered_or_cut_off() -> None:
    root = ElementTree.fromstring(draw(explored()))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    found = words(root)
    for one, other in combinations(found, 2):
        assert not one.covers(other), (one, other)
    for one in found:
        assert 0 < one.left < one.right < width
        assert ASCENT < one.y < height
    for path in root.iter(f"{SPACE}path"):
        if "marker-end" in path.attrib:
            for left, top, right, bottom in straight(path.attrib["d"]):
                for one in found:
                    beside = right <= one.left or one.right <= left
                    assert beside or bottom < one.y - ASCENT or one.y < top, (path.attrib, one)


def test_the_text_is_not_too_small_on_a_telephone() -> None:
    """There the drawing is 42 rem wide and scrolls: docs/_static/pages.css."""
    root = ElementTree.fromstring(draw(explored()))
    assert 12 * 42 * 16 / float(root.attrib["width"]) >= 9.5


@pytest.mark.parametrize("width", [1, 60, 200])
def test_names_are_broken_between_words(width: float) -> None:
    names = ["lost-in-flight", "ended", "a", "b"]
    lines = lines_of(names, width)
    assert " ".join(lines) == "lost-in-flight, ended, a, b"
    assert all(len(line) * CHARACTER <= width or " " not in line for line in lines)


def test_a_small_machine_can_be_drawn() -> None:
    edges = {(Phase.CLOSED, Phase.OPEN): ["x"], (Phase.OUTPUT, Phase.RECONNECTING): ["y", "z"]}
    said = {one.text for one in words(ElementTree.fromstring(draw(edges)))}
    assert {"x", "y, z"} <= said
