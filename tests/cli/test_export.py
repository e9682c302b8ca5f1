"""Tests of ``bridgecore verify --export``: what it writes, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridgecore_cli.main import main

VERIFY = ("verify", "--policy", "v1_12", "--bounds", "quick", "--part", "2")


def test_a_module_gets_its_configuration_beside_it(tmp_path: Path) -> None:
    output = tmp_path / "Bridge_1.tla"
    assert main([*VERIFY, "--export", "tla", "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert text.startswith("-------------------- MODULE Bridge_1 ----")
    assert "the policy v1_12, explored within the bounds quick, over HTTP." in text
    assert (tmp_path / "Bridge_1.cfg").read_text(encoding="utf-8").startswith("SPECIFICATION Spec")


def test_without_a_file_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*VERIFY, "--export", "mermaid"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("stateDiagram-v2\n")
    assert printed.out.endswith("retired --> [*]\n")
    assert printed.err == ""


@pytest.mark.parametrize("name", ["two words.tla", "1st.tla", "session.txt", ".tla"])
def test_a_name_that_is_no_module_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*VERIFY, "--export", "tla", "--output", str(tmp_path / name)]) == 2
    assert f"not {name}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_there_has_to_be_such_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--bounds", "quick", "--export", "dot", "--part", "9"]) == 2
    assert main(["verify", "--bounds", "quick", "--export", "dot", "--part", "6"]) == 2
    error = capsys.readouterr().err
    assert "the bounds quick have the parts 1 (quick), 2 (quick, over HTTP)" in error


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--property", "TURNS_END"], "--export judges nothing"),
        (["--svg", "x"], "--export judges nothing"),
        (["--mermaid", "x"], "for a diagram of the phases: --export mermaid --output FILE"),
        (["--junit", "x"], "--export judges nothing"),
        (["--json"], "for JSON: --export json"),
        (["--mutants"], "--export judges nothing"),
        (["--jobs", "1"], "--export judges nothing"),
        (["--report", "x"], "--export judges nothing"),
    ],
)
def test_a_flag_without_effect_is_refused(
    flags: list[str],
    why: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*VERIFY, "--export", "dot", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{flags[0]} cannot be given with --export: " in err
    assert why in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--part", "1"], ["--output", "x"]])
def test_a_flag_of_an_export_is_of_use_only_with_one(
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--bounds", "quick", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{flags[0]} is of use only with --export" in err
