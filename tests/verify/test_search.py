"""Tests of verify/search.py: shortest paths, limits and completeness, on a grid."""

from __future__ import annotations

import pytest

from bridgecore.verify.search import Search

SIZE = 5
Place = tuple[int, int]


def walk(search: Search[Place, str], number: int, place: Place) -> bool:
    """One step right or down on a grid of ``SIZE`` by ``SIZE``."""
    x, y = place
    if x + 1 < SIZE:
        search.reach((x + 1, y), number, "right")
    if y + 1 < SIZE:
        search.reach((x, y + 1), number, "down")
    return True


def searched(*, most: int = 1000, depth: int | None = None) -> Search[Place, str]:
    search: Search[Place, str] = Search(most=most, depth=depth)
    search.reach((0, 0))
    search.run(lambda number, place: walk(search, number, place))
    return search


def test_each_world_is_found_by_a_shortest_path() -> None:
    search = searched()
    assert search.complete
    assert (len(search), search.ahead) == (SIZE * SIZE, 0)
    for number, (x, y) in enumerate(search):
        start, way = search.way(number)
        assert start == 0
        assert (way.count("right"), way.count("down")) == (x, y)
    # In the order of their distance.
    distances = [x + y for x, y in search]
    assert distances == sorted(distances)


def test_a_world_keeps_its_first_path() -> None:
    search = searched()
    number = list(search).index((1, 1))
    assert search.way(number) == (0, ("right", "down"))
    assert search.reach((1, 1), 0, "jump") == number
    assert search.way(number) == (0, ("right", "down"))


def test_a_search_can_begin_in_several_worlds() -> None:
    search: Search[Place, str] = Search(most=1000)
    search.reach((0, 0))
    search.reach((3, 3))
    search.run(lambda number, place: walk(search, number, place))
    assert search.way(list(search).index((4, 4))) == (1, ("right", "down"))


@pytest.mark.parametrize(("depth", "found"), [(0, 1), (1, 3), (2, 6), (8, 25)])
def test_the_depth_is_bounded(depth: int, found: int) -> None:
    search = searched(depth=depth)
    assert (len(search), search.complete) == (found, True)


def test_the_number_of_worlds_is_bounded() -> None:
    search = searched(most=7)
    assert 7 <= len(search) < 10
    assert search.ahead > 0
    assert not search.complete


def test_a_search_can_be_stopped() -> None:
    search: Search[Place, str] = Search(most=1000)
    search.reach((0, 0))
    search.run(lambda number, place: False)
    assert (search.ahead, search.complete) == (0, False)


def test_progress() -> None:
    search: Search[Place, str] = Search(most=1000)
    search.reach((0, 0))
    seen: list[int] = []
    search.run(lambda *world: walk(search, *world), lambda: seen.append(len(search)), every=10)
    assert len(seen) == 2
    assert seen == sorted(seen)
