"""Tests of simulate/growth.py, experiment.py and growth_report.py: the growth of contexts, its
projection, and what is said about it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import attrs
import pytest

from bridgecore.recovery.policy import DEFAULT, PR397, V1_12, Policy
from bridgecore.simulate import Experiment, Growth, TurnFigures, grow
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.experiment import NOT_FOUND
from bridgecore.simulate.growth_report import (
    comparison,
    headline,
    plot,
    setting,
    side_by_side,
    summary,
    table,
    why_not_as_in_production,
)


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


@pytest.mark.parametrize("policy", [V1_12, PR397], ids=lambda policy: policy.name)
def test_without_storage_a_not_found_is_reported_although_the_context_is_small(
    policy: Policy,
) -> None:
    """The context grows as under ``default``; what it costs is in other columns."""
    growth = grow(Experiment(turns=6, store=False, policy=policy))
    assert growth.per_turn == 2_300
    assert len(growth.not_found) == 5
    assert not growth.sound
    assert (
        "after 400 previous_response_not_found the client sent its whole history in 5 of the 5 "
        "turns that were answered after the first: 58,900 tokens on average, 2,000 of them new"
    ) in summary(growth)


def test_production_filled_its_window_later_because_fewer_turns_were_hit() -> None:
    """``why_not_as_in_production`` says so."""
    assert grow(Experiment(policy=V1_12, fault_every=7, fault_run=5)).full == 17
    said = why_not_as_in_production(grow(Experiment(policy=V1_12)))
    assert said is not None
    assert said.startswith("Why turn 14, and turn 17 in production: here 12 of the 12 turns")
    assert "about 12 such turns among 16 (try --faults 5/7)" in said
    assert why_not_as_in_production(grow(Experiment(turns=20))) is None


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(("every", "run"), [(None, 1), (1, 1), (3, 1), (5, 3)])
@pytest.mark.parametrize("policy", [DEFAULT, V1_12], ids=lambda policy: policy.name)
def test_the_projection_is_what_happens(
    policy: Policy, every: int | None, run: int, store: bool
) -> None:
    whole = grow(
        Experiment(
            policy=policy,
            fault_every=every,
            fault_run=run,
            store=store,
            window=60_000,
            system_tokens=3_000,
            turns=40,
        )
    )
    assert whole.full is not None
    least = 1 + 2 * (every or 1)
    for turns in range(1, len(whole.rows)):
        part = attrs.evolve(whole, rows=whole.rows[:turns], full=None, unanswered=())
        assert part.full_at == (whole.full if turns >= least else None)


def test_a_context_that_does_not_grow_is_never_full() -> None:
    growth = grow(Experiment(turns=3))
    rows = tuple(attrs.evolve(row, grown=0, context=100) for row in growth.rows)
    assert attrs.evolve(growth, rows=rows).full_at is None


ERRORS = (NOT_FOUND, "502 stream_incomplete", "502 upstream_unavailable", "lost connection")
LARGEST = (1, 3_000, 999_999)


def some_growth(*key: int) -> Growth:
    """A result that the experiment may not be able to have; but in turn 1 nothing can be lost."""
    rng = Rng(*key)
    most = rng.pick(LARGEST)

    def errors(highest: int) -> tuple[str, ...]:
        return tuple(rng.pick(ERRORS) for _ in range(rng.between(0, highest)))

    def row(turn: int) -> TurnFigures:
        numbers = [rng.between(1, most) for _ in range(6)]
        sent, grown, context, upstream, tokens, client = numbers
        said = errors(4) if turn > 1 else ()
        return TurnFigures(turn, sent, grown, context, said, upstream, tokens, client)

    rows = tuple(row(turn) for turn in range(1, 1 + rng.between(0, 12)))
    end = rng.between(1, 3) if rows else 3
    return Growth(
        Experiment(policy=rng.pick((DEFAULT, V1_12)), window=rng.between(0, 10**7)),
        rows,
        full=len(rows) + 1 if end == 1 else None,
        stuck=len(rows) + 1 if end == 2 else None,
        unanswered=() if end == 3 else errors(3),
    )


def number(pattern: str, text: str) -> int | None:
    """The number where ``pattern`` has ``N``; None if the text does not say it."""
    found = re.search(pattern.replace("N", r"([\d,]+)"), text)
    return None if found is None else int(found[1].replace(",", ""))


@pytest.mark.parametrize("seed", range(60))
def test_a_summary_says_what_the_rows_say(seed: int) -> None:
    growth = some_growth(seed)
    said, rows = summary(growth), growth.rows
    assert number("is full at turn N", said) == growth.full
    assert number(": turn N did not", said) == growth.stuck
    assert number("N bytes from the client", said) == sum(row.client for row in rows)
    assert number("N bytes and", said) == sum(row.upstream for row in rows)
    assert number("N tokens upstream", said) == sum(row.upstream_tokens for row in rows)
    lost = [row.sent for row in rows if NOT_FOUND in row.errors]
    at_the_end = NOT_FOUND in growth.unanswered
    assert number("in N of the [0-9]+ turns that were answered", said) == (len(lost) or None)
    assert ("whole history" in said) == (lost != [] or at_the_end)
    assert ("whole history" in headline(growth)) == (lost != [])
    if lost:
        assert number("N tokens on average", said) == int(f"{sum(lost) / len(lost):.0f}")
    elif not at_the_end and len(rows) > 1:
        mean = sum(row.sent for row in rows[1:]) / (len(rows) - 1)
        assert number("the client sends N tokens a turn", said) == int(f"{mean:.0f}")
    if lost or at_the_end or growth.ended is not None:
        assert not growth.sound


def columns(line: str) -> list[str]:
    return line.replace(",", "").split()


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(("every", "run"), [(None, 1), (1, 1), (4, 3), (7, 5), (3, 1)])
@pytest.mark.parametrize("policy", [DEFAULT, V1_12, PR397], ids=lambda policy: policy.name)
def test_sentences_follow_from_the_table_that_is_printed(
    policy: Policy, every: int | None, run: int, store: bool
) -> None:
    """By what a reader sees: a row is counted if it has figures, and 400 among its errors."""
    usual = Experiment(
        policy=policy, turns=28, store=store, fault_every=every, fault_run=run, window=600_000
    )
    for experiment in (usual, attrs.evolve(usual, window=876_000)):
        growth = grow(experiment)
        lines = [columns(line) for line in table(growth).splitlines()[1:]]
        rows = [line for line in lines if line and line[0].isdigit() and len(line) >= 7]
        ends = [line for line in lines if line and line[0].isdigit() and len(line) < 7]
        hit = [row for row in rows if any("400" in error for error in row[7:])]
        said = summary(growth)
        assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
        assert [line[:2] for line in ends] == ([[str(growth.full), "full"]] if growth.full else [])
        if hit:
            mean = sum(int(row[1]) for row in hit) / len(hit)
            assert (
                f"history in {len(hit)} of the {len(rows) - 1} turns that were answered after the "
                f"first: {mean:,.0f} tokens on average"
            ) in said
            assert f"history sent in {len(hit)} of {len(rows) - 1} turns" in headline(growth)
        else:
            assert "history" not in said + headline(growth)
        for column, what in (
            (4, "bytes from the client"),
            (5, "bytes and"),
            (6, "tokens upstream"),
        ):
            assert number(f"N {what}", said) == sum(int(row[column]) for row in rows)
        why = why_not_as_in_production(growth)
        assert (why is not None) == (
            policy is V1_12
            and store
            and growth.full not in (None, 17)
            and experiment.window == 876_000
        )
        if why is not None:
            grown = [int(row[2]) for row in hit]
            assert f"here {len(hit)} of the {len(rows) - 1} turns that were answered" in why
            assert f"appended {min(grown):,} to {max(grown):,} tokens each" in why


def test_a_comparison_has_the_errors_of_the_last_turn_apart() -> None:
    growths = [grow(Experiment(policy=policy, turns=15)) for policy in (DEFAULT, V1_12)]
    assert side_by_side(growths).endswith(
        "errors that v1_12 answered: 12 x 400 previous_response_not_found; at turn 14, the last: "
        "400 previous_response_not_found, 400 context_length_exceeded"
    )


@pytest.mark.parametrize("seed", range(30))
def test_a_comparison_says_what_the_rows_say(seed: int) -> None:
    pair = [some_growth(seed, 0), some_growth(seed, 1)]
    usual, other = pair
    turns = min(len(usual.rows), len(other.rows))
    lines = comparison(pair)
    assert len(lines) == (turns > 0)
    for line in lines:
        ours, theirs = (sum(row.client for row in one.rows[:turns]) for one in (other, usual))
        if ours == theirs:
            assert f"the same bytes from the client ({ours:,})" in line
        elif theirs:
            assert f"times the bytes from the client ({ours:,} against {theirs:,})" in line
            assert " 1.0 times" not in line


@pytest.mark.parametrize("seed", range(30))
def test_tables_fit_a_terminal_and_have_the_rows(seed: int) -> None:
    pair = [some_growth(seed, 0), some_growth(seed, 1)]
    for text in (side_by_side(pair), *map(table, pair)):
        numbers = [line for line in text.splitlines() if re.match(r" *\d+ ", line)]
        assert all(len(line) <= 80 for line in numbers)
    for growth in pair:
        lines = table(growth).splitlines()[1:]
        for row, line in zip(growth.rows, lines, strict=False):
            assert f"{row.context:,}" in line.split()


def test_the_setting_says_what_was_done() -> None:
    assert "no connection is lost" in setting(Experiment(fault_every=None))
    assert "no connection is lost" in setting(Experiment(turns=1))
    assert "; each turn after the first loses its connection" in setting(Experiment())
    assert "; 1 of 3 turns loses its connection" in setting(Experiment(fault_every=3))
    assert "; 5 of 7 turns lose their" in setting(Experiment(fault_every=7, fault_run=5))


@pytest.mark.parametrize("page", [380, 860])
def test_the_words_of_a_plot_fit_its_width(page: int) -> None:
    growths = [grow(Experiment(turns=15, policy=policy)) for policy in (DEFAULT, V1_12)]
    root = ElementTree.fromstring(plot(growths, page=page))
    texts = [one for one in root.iter() if one.tag.endswith("text")]
    said = " ".join("".join(one.itertext()) for one in texts)
    assert all(headline(growth) in said for growth in growths)
    starting = [one for one in texts if one.attrib["text-anchor"] == "start"]
    for one in starting:
        wide = 9 if "font-weight" in one.attrib else 7
        assert float(one.attrib["x"]) + wide * len("".join(one.itertext())) <= page
    heights = [float(one.attrib["y"]) for one in starting]
    assert heights == sorted(set(heights))


def test_the_plot_can_be_read() -> None:
    growths = [
        grow(Experiment(turns=30, fault_every=3)),
        grow(Experiment(turns=30, policy=V1_12, fault_every=3)),
    ]
    root = ElementTree.fromstring(plot(growths))
    space = "{http://www.w3.org/2000/svg}"
    texts = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert {"turn", "context, tokens", "window, 876 K", "0 K", "0"} <= set(texts)
    assert all(headline(growth) in texts for growth in growths)
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
    assert len(lines) < 34
    assert lines[1].split()[0] == "1"
    assert lines[-1] == "502: stream_incomplete"
    assert lines[-3].split()[0] == "60"
