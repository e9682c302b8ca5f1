"""Tests of simulate/growth.py and growth_report.py: the growth of contexts, and its
presentation."""

from __future__ import annotations

from xml.etree import ElementTree

import attrs

from bridgecore.recovery.policy import V1_12
from bridgecore.simulate import Experiment, grow
from bridgecore.simulate.growth_report import plot, summary, table


def test_the_context_grows_by_what_is_new_under_default() -> None:
    growth = grow(Experiment())
    assert growth.sound
    assert len(growth.rows) == 200
    assert all(row.grown == 2_300 for row in growth.rows[1:])
    assert all(row.sent == 2_000 for row in growth.rows[1:])
    assert all(row.errors == ("502 stream_incomplete",) for row in growth.rows[1:])


def test_the_context_blows_up_under_v1_12() -> None:
    growth = grow(Experiment(policy=V1_12))
    assert growth.full is not None
    assert 10 <= growth.full < 20
    assert 60_000 <= growth.per_turn <= 75_000
    assert not growth.sound
    assert all(
        row.errors == ("400 previous_response_not_found",) and row.grown == row.sent + 300
        for row in growth.rows[1:]
    )


def test_without_losses_the_policies_have_equal_growth() -> None:
    calm = Experiment(turns=10, fault_every=None)
    assert grow(calm).rows == grow(attrs.evolve(calm, policy=V1_12)).rows


def test_a_small_window_is_full_without_losses() -> None:
    growth = grow(Experiment(turns=10, window=60_000))
    assert growth.full == 5
    assert "full at turn 5" in summary(growth)


def test_without_storage_the_context_equals_the_history() -> None:
    growth = grow(Experiment(turns=6, store=False))
    assert growth.sound
    # Rehydrated items lack the service's ids, which cost no tokens.
    assert all(row.grown == 2_300 and row.sent == 2_000 for row in growth.rows[1:])


def test_the_plot_can_be_read() -> None:
    growths = [
        grow(Experiment(turns=30, fault_every=3)),
        grow(Experiment(turns=30, policy=V1_12, fault_every=3)),
    ]
    root = ElementTree.fromstring(plot(growths))
    space = "{http://www.w3.org/2000/svg}"
    texts = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert {"turn", "context, tokens", "window, 876 K", "0 K", "0"} <= set(texts)
    assert all(summary(growth) in texts for growth in growths)
    lines = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [len(growth.rows) for growth in growths]
    # Larger values are higher up, and all points are inside the plot.
    heights = [float(point.split(",")[1]) for point in lines[1]]
    assert heights == sorted(heights, reverse=True)
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    for line in lines:
        for point in line:
            x, y = map(float, point.split(","))
            assert 0 < x < width
            assert 0 < y < height


def test_a_long_table_is_shortened() -> None:
    growth = grow(Experiment(turns=60, new_tokens=500, system_tokens=500))
    lines = table(growth).splitlines()
    assert len(lines) < 32
    assert lines[1].split()[0] == "1"
    assert lines[-1].split()[0] == "60"
