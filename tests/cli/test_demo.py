"""Tests of ``bridgecore demo``.

What belongs here: the command as a process in a pipe and in a terminal, its files, and what it says
against what it measured. That its experiment is right is tested in ``tests/simulate``.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridgecore import DEFAULT, PR397, V1_12
from bridgecore.recovery.policy_table import ROWS
from bridgecore.simulate import Experiment, Growth, grow
from bridgecore_cli.demo.chart import MARKS, chart
from bridgecore_cli.demo.stage import Conversation, play
from bridgecore_cli.demo.story import (
    COLUMNS,
    columns_within,
    legend_lines,
    plain_table,
    rows,
    size,
    story,
)
from bridgecore_cli.demo.timeline import Arrow, Lane, in_order, svg, words_of
from tests.cli.process import (
    COMMAND,
    TIME_LIMIT,
    environment,
    in_a_terminal,
    pipe,
    run,
    screen_lines,
)

POLICIES = (V1_12, PR397, DEFAULT)
COLOURS = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7])(?:;[0-9;]*)?m")


def experiments(turns: int) -> list[Experiment]:
    return [
        Experiment(policy=policy, store=store, turns=turns)
        for store in (True, False)
        for policy in POLICIES
    ]


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return asyncio.run(play(experiments(4), lambda _: None))


# ------------------------------------------------------------------ what is measured


def test_real_sockets_give_the_figures_of_virtual_time(conversations: list[Conversation]) -> None:
    """Tokens, bytes and errors of each turn: so the experiment is the same."""
    for one in conversations:
        assert one.dialogue.growth() == grow(one.experiment)


def test_the_recorded_turn_tells_what_the_policy_did(conversations: list[Conversation]) -> None:
    told = {}
    for one in conversations:
        arrows = in_order(one.arrows)
        assert arrows[0].text == "connection lost between turns"
        assert arrows[-1].text == "200, response.completed"
        key = one.experiment.policy.name, one.experiment.store
        told[key] = [a.text for a in arrows if a.target is Lane.CLIENT][:-1]
        losses = [a for a in arrows if a.source is Lane.UPSTREAM and a.bad]
        assert len(losses) == 2  # between the turns, and before response.created
        # A decision about a loss is told after the loss, and before what the client got.
        for a, b in pairwise(arrows):
            if a.text.startswith("lost after sending"):
                assert (b.source, b.target) == (Lane.BRIDGE, Lane.CLIENT)
    not_found = "400 previous_response_not_found"
    assert told["v1_12", True] == [not_found]
    assert told["v1_12", False] == [not_found] * 2
    assert told["default", True] == told["default", False] == ["502 stream_incomplete"]
    assert told["pr397", True] == ["502 stream_incomplete"]
    assert told["pr397", False] == ["502 upstream_unavailable"] * 3 + [not_found] * 2


def arrow(attempt: int, at: int, source: Lane, target: Lane, *, bad: bool = False) -> Arrow:
    return Arrow(at, attempt, source, target, "text", bad)


def test_arrows_that_were_recorded_late_are_put_in_order() -> None:
    lost = arrow(1, 5, Lane.UPSTREAM, Lane.BRIDGE, bad=True)
    decided = arrow(1, 4, Lane.BRIDGE, Lane.BRIDGE)
    answer = arrow(1, 2, Lane.BRIDGE, Lane.CLIENT, bad=True)
    asked, again = (arrow(n, 3 * n - 2, Lane.CLIENT, Lane.BRIDGE) for n in (1, 2))
    assert in_order([asked, answer, again, decided, lost]) == [asked, lost, decided, answer, again]


def test_a_cell_is_told_in_the_words_of_the_table() -> None:
    assert words_of("lost_sent/held=refuse") == (
        "lost after sending, before response.created / held: refuse"
    )


def test_a_diagram_can_be_read() -> None:
    lost = arrow(1, 5, Lane.UPSTREAM, Lane.BRIDGE, bad=True)
    root = ElementTree.fromstring(svg("a <b>", [lost]))
    assert "a <b>" in "".join(root.itertext())


def test_a_decision_is_not_written_across_a_lane() -> None:
    longest = [words_of(f"{row}/held_stored=send_or_rehydrate") for row in ROWS]
    decided = [Arrow(1, 1, Lane.BRIDGE, Lane.BRIDGE, text) for text in longest]
    last = arrow(1, 2, Lane.BRIDGE, Lane.CLIENT)
    root = ElementTree.fromstring(svg("title", [*decided, last]))
    texts = [one for one in root.iter() if one.tag.endswith("text")]
    lanes = {"".join(one.itertext()): float(one.attrib["x"]) for one in texts}
    small = [one for one in texts if "stroke" in one.attrib]
    assert " ".join("".join(one.itertext()) for one in small) == " ".join(longest)
    for one in small:
        assert float(one.attrib["x"]) + 6 * len("".join(one.itertext())) < lanes["upstream"]
    heights = [float(one.attrib["y"]) for one in small]
    assert heights == sorted(set(heights))
    assert heights[-1] < float(texts[-1].attrib["y"]) < float(root.attrib["viewBox"].split()[3])


# ------------------------------------------------------------------ what is said


def numbers(pattern: str, text: str) -> tuple[str, ...]:
    """What is where ``pattern`` has ``N``."""
    found = re.search(re.escape(pattern).replace("N", r"([\d,.]+(?: [KM]B)?)"), text)
    assert found, text
    return found.groups()


@cache
def results(turns: int, every: int, run: int) -> dict[tuple[str, bool], Growth]:
    found = {}
    for policy in POLICIES:
        for store in (True, False):
            experiment = Experiment(
                policy=policy,
                store=store,
                turns=turns,
                window=30_000,
                system_tokens=3_000,
                fault_every=every,
                fault_run=run,
            )
            found[policy.name, store] = grow(experiment)
    return found


@pytest.mark.parametrize(("turns", "every", "run"), [(2, 1, 1), (5, 2, 1), (9, 5, 3), (13, 1, 1)])
def test_each_sentence_says_what_the_rows_say(turns: int, every: int, run: int) -> None:
    found = results(turns, every, run)
    broken, usual = found["v1_12", True], found["default", True]
    first, second, third, fourth = story(found)
    told = len(broken.not_found)
    counted = str(told), str(len(broken.rows) - 1)
    assert numbers("in N of the N turns that it answered after the first", first) == counted
    assert "the upstream had the response each time" in first
    # The table says the same: of v1_12 with store=true each error is one not-found.
    cells = {tuple(line.split()[:2]): line.split() for line in plain_table(found)}
    shown = cells["v1_12", "true"]
    assert shown[2:4] == [str(len(broken.rows)), f"{broken.rows[-1].context:,}"]
    assert ("400" if told == 1 else f"{told}x400") in shown
    assert all(row.grown > row.sent for row in broken.not_found)
    n = len(broken.rows) if broken.full else turns
    ours, theirs = broken.rows[:n], usual.rows[:n]
    contexts = f"{ours[-1].context:,}", f"{theirs[-1].context:,}"
    assert numbers("N tokens of context (default: N)", second) == contexts
    clients = [size(sum(row.client for row in rows)) for rows in (ours, theirs)]
    assert numbers("N from client to bridge (default: N)", second) == (*clients,)
    up = [size(sum(row.upstream for row in rows)) for rows in (ours, theirs)]
    tokens = [f"{sum(row.upstream_tokens for row in rows):,}" for rows in (ours, theirs)]
    costs = tokens[0], up[0], tokens[1], up[1]
    assert numbers("N tokens, N, from bridge to upstream (default: N, N)", second) == costs
    if broken.full:
        assert numbers("v1_12 had filled it at turn N;", third) == (str(broken.full),)
    elif broken.full_at:
        assert f"v1_12 used {contexts[0]} in {turns} turns and would fill it" in third
    if usual.full is None:
        assert f"default used {usual.rows[-1].context:,} in {turns} turns" in third
    assert not usual.not_found
    hits = sum(bool(row.errors) for row in usual.rows)
    answered = f"default answered {f'{hits} x ' if hits > 1 else ''}502 stream_incomplete instead"
    assert fourth.startswith(answered)
    missed = {
        name: sum(error.startswith("400 prev") for row in growth.rows for error in row.errors)
        for (name, store), growth in found.items()
        if not store
    }
    assert f"{missed['default']} not-founds (v1_12: {missed['v1_12']}, pr397: " in fourth
    own = found["default", False]
    assert f"{size(own.upstream)} upstream for {size(own.client)} from the client" in fourth


def test_without_losses_nothing_is_said_of_them() -> None:
    calm = {
        (policy.name, store): grow(
            Experiment(policy=policy, store=store, turns=3, system_tokens=500, fault_every=None)
        )
        for policy in POLICIES
        for store in (True, False)
    }
    first, *_, fourth = story(calm)
    assert first == "v1_12 never told its client '400 previous_response_not_found'."
    assert fourth.startswith("default answered no error: 2,000 tokens a turn.")
    assert "sent the context itself" not in fourth


@pytest.mark.parametrize(("width", "height"), [(80, 12), (40, 6), (200, 30), (1, 1)])
def test_the_plot_has_its_marks_where_the_numbers_are(width: int, height: int) -> None:
    lines = [[100_000 * n for n in range(1, 9)], [], [50_000] * 40]
    rows = chart(lines, turns=40, window=876_000, width=width, height=height)
    assert len({len(row) <= max(width, 20) for row in rows}) == 1
    plot = [row.partition("|")[2] for row in rows if "|" in row]
    assert rows[0].startswith("   876 K|")
    # The first line rises from left to right until turn 8, the last one is level.
    columns = [row.find(MARKS[0]) for row in plot if MARKS[0] in row]
    assert columns == sorted(columns, reverse=True)
    assert max(max(row.rfind(MARKS[0]) for row in plot), 0) <= len(rows[-2]) * 8 / 39
    assert sum(MARKS[2] in row for row in plot) == 1
    assert not any(MARKS[1] in row for row in plot)


# ------------------------------------------------------------------ the command in a pipe


class Page(HTMLParser):
    """What of a page refers to something else, and what kinds of elements it has."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.kinds: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.append(tag)
        self.references += [name for name, _ in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_in_a_pipe_it_writes_lines_and_files(tmp_path: Path) -> None:
    html, plot = tmp_path / "demo.html", tmp_path / "demo.svg"
    result = run("demo", "--turns", "15", "--html", str(html), "--svg", str(plot))
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    lines = result.stdout.rstrip("\n").split("\n")
    *_, first, second, third, fourth = lines
    table = {tuple(line.split()[:2]): line.split()[2:] for line in lines if " true " in line}
    assert table["v1_12", "true"][:4] == ["13", "859,300", "14", "12x400"]
    assert table["default", "true"][:3] == ["15", "84,500", "(360)"]
    assert "in 12 of the 12 turns that it answered after the first" in first
    sent = " ".join(table["v1_12", "true"][-4:-2])
    assert f"859,300 tokens of context (default: 79,900), {sent} from client" in second
    assert "v1_12 had filled it at turn 14; default used 84,500 in 15 turns" in third
    assert f"default answered {table['default', 'true'][3].partition('x')[0]} x 502" in fourth

    root = ElementTree.parse(plot).getroot()
    assert root.tag.endswith("svg")
    assert "v1_12: full at turn 14" in "".join(root.itertext())
    page = Page()
    page.feed(html.read_text(encoding="utf-8"))
    page.close()
    assert page.references == []
    assert "http" not in html.read_text(encoding="utf-8")
    assert page.kinds.count("svg") == 8  # the plot, for two widths, and a diagram of each run
    assert "(N) if it goes on; errors: what the client got" in page.text
    assert all(line in page.text for line in (first, second, third, fourth))
    assert page.text.count("connection lost between turns") == 6


def test_a_file_that_cannot_be_written_is_reported_first(tmp_path: Path) -> None:
    result = run("demo", "--html", str(tmp_path / "missing" / "x.html"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "cannot write" in result.stderr


def test_ctrl_c_ends_it_without_a_word() -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--turns", "500"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "500 turns of the same client" in pipe(process.stdout).readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIME_LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, "")
    assert "told its client" not in out


# ------------------------------------------------------------------ the command in a terminal


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}], ids=["colour", "no colour"])
def test_in_a_terminal_no_line_is_too_wide(environ: dict[str, str]) -> None:
    code, written = in_a_terminal("demo", "--turns", "3", environ=environ)
    assert code == 0
    assert (COLOURS.search(written) is not None) == (not environ)
    lines = screen_lines(written)
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert (
        "v1_12 told its client '400 previous_response_not_found' in 2 of the 2 turns that" in text
    )
    assert written.count("\x1b[?25h") == 1  # the cursor is shown again


def test_ctrl_c_in_a_terminal_shows_the_cursor_again() -> None:
    code, written = in_a_terminal("demo", "--turns", "500", interrupt_at="to bridge", environ={})
    assert code == 130
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert "Traceback" not in written


def test_without_rich_it_writes_lines() -> None:
    """The extra ``cli`` has it; the command works without."""
    code, written = in_a_terminal(
        "demo", "--turns", "2", environ={}, before="sys.modules['rich'] = None"
    )
    assert code == 0
    assert "\x1b" not in written
    assert max(map(len, written.replace("\r", "").split("\n"))) <= 80
    assert "turn 2: v1_12 106,900 tokens" in written


@pytest.mark.parametrize("width", [80, 60, 50, 40])
def test_tables_fit_a_terminal(width: int) -> None:
    found = results(9, 5, 3)
    columns = columns_within(found, width)
    table, legend = plain_table(found, width), legend_lines(columns, width)
    assert all(len(line) <= width for line in (*table, *legend))
    # What is shown is whole, and what is not is named.
    for line, row in zip(table[1:], rows(found), strict=True):
        assert re.split(r"  +", line.rstrip()) == [row[column] for column in columns if row[column]]
    hidden = [name for index, name in enumerate(COLUMNS) if index not in columns]
    assert (hidden == []) == (width == 80)
    said = " ".join(" ".join(legend).split())
    assert said.partition("no room for: ")[2] == ", ".join(hidden)


@pytest.mark.parametrize("width", [80, 50])
def test_no_value_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    code, written = in_a_terminal("demo", "--turns", "3", columns=width, environ={})
    assert code == 0
    lines = screen_lines(written)
    assert max(map(len, lines)) <= width
    assert not any("\u2026" in line for line in lines)
    last = max(number for number, line in enumerate(lines) if line.startswith("policy"))
    table = [line.split() for line in lines[last + 1 : last + 7]]
    assert [row[:2] for row in table if "2x400" in row] == [["v1_12", "true"]]
    assert all("MB" in row or "KB" in row for row in table) == (width == 80)


@pytest.mark.parametrize("width", [80, 50])
def test_in_a_pipe_lines_are_as_wide_as_the_environment_says(width: int) -> None:
    result = run("demo", "--turns", "3", environ={"COLUMNS": str(width)})
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= width
    unlimited = run("demo", "--turns", "3", environ={"COLUMNS": ""})
    # The client sends the rest of them: the 2,000 tokens a turn of the last line.
    assert "2,300 new ones a turn, 300 of them in the answer." in unlimited.stdout
    assert "the client sent the same again: 2,000 tokens a turn." in unlimited.stdout
    assert max(map(len, unlimited.stdout.splitlines())) > 80
    assert (
        " ".join(unlimited.stdout.split()).partition("v1_12 told")[2]
        == (" ".join(result.stdout.split()).partition("v1_12 told")[2])
    )
