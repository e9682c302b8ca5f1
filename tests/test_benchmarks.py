"""Short runs of the benchmarks: the figures that do not depend on the clock hold.

What belongs here: short runs. Times are measured by the benchmarks themselves.
"""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.throughput import machine
from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.report import Report, as_rst, as_svg, results
from benchmarks.throughput.run import main

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(2))
def test_losses_are_invisible_and_frames_do_not_grow(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("conversations").main(seed, 40) == 0
    out = capsys.readouterr().out
    assert out.count("0 errors shown to the application") == 2
    assert "equal" in out


def test_accounted_size_is_the_memory_taken() -> None:
    assert load("continuity").measure_memory()


@pytest.fixture
def _instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = machine.unavailable()
    if problem:
        pytest.skip(problem)
    monkeypatch.setattr("benchmarks.throughput.run.WATCH_SECONDS", 0.05)


def throughput(folder: Path, *arguments: str) -> Report:
    """The report of a run at the smallest scale."""
    path = folder / "report.json"
    run = ("--scale", "tiny", "--rounds", "1", "--even-if-busy", "--report", str(path))
    assert main([*run, *arguments]) == 0
    return Report.load(path)


@pytest.mark.usefixtures("_instruments")
@pytest.mark.parametrize(
    "cases", [CASES[part::3] for part in range(3)], ids=["first", "second", "third"]
)
def test_every_case_gives_its_figures(
    cases: Sequence[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ",".join(case.name for case in cases)
    report = throughput(tmp_path, "--only", only, "--participants", "bridgecore,python")
    out = capsys.readouterr().out
    for case in cases:
        measured = report.measured(case.name)
        assert measured, case.name
        assert {goal.figure for goal in case.goals} <= measured.keys()
        assert case.name in out
    assert report.busy is None or "BUSY" in out


@pytest.mark.usefixtures("_instruments")
def test_floors_are_measured_with_what_they_are_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = tmp_path / "goals.svg"
    names = "bridgecore,null,relay"
    report = throughput(tmp_path, "--only", "paced", "--participants", names, "--svg", str(svg))
    assert [one.goal.over for one in results(report)] == ["null", "relay", "null"]
    assert all(one.value > 0 for one in results(report))
    assert "null bridge" in capsys.readouterr().out
    assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_ratios_compare_figures_of_one_round() -> None:
    report = Report({"processor": "", "cores": "", "system": "", "python": ""}, "tiny")
    report.participants = {"bridgecore": "bridgecore", "null": "null bridge"}
    for mine, null in [(10.0, 10.0), (60.0, 20.0), (80.0, None), (20.0, 10.0)]:
        report.rounds.append({})
        report.add("delta5", "bridgecore", {"cpu_us_per_turn": mine})
        if null is not None:
            report.add("delta5", "null", {"cpu_us_per_turn": null})
    (result,) = results(report)
    assert (result.value, result.low, result.high) == (2.0, 1.0, 3.0)
    assert (result.reached, result.verdict) == (False, "missed by 100%")
    assert "(2.00 x)" in "\n".join(as_rst(report))
    assert "2.00" in as_svg(report)


def test_a_busy_machine_gets_no_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "unavailable", lambda: None)
    monkeypatch.setattr("benchmarks.throughput.run.find_load", lambda _cores: "a proof runs")
    assert main(["--only", "delta5"]) == 3
    assert "refused: a proof runs" in capsys.readouterr().err
