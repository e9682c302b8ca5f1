"""docs/recipes.rst: the commands are accepted, and the configurations can be read.

What belongs here: what can be checked of a recipe without its provider. The clients themselves are
run by tests/clients, and Codex by tests/e2e.
"""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest

from bridgecore_cli.main import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.rst").read_text(encoding="utf-8")
SERVES = re.findall(r"^ +bridgecore serve (.*)$", PAGE, re.MULTILINE)


def blocks(language: str) -> list[str]:
    found = re.findall(
        rf"^\.\. code-block:: {language}\n(?:   :.*\n)*\n((?:   .*\n|\n)+)", PAGE, re.MULTILINE
    )
    return [textwrap.dedent(block) for block in found]


@pytest.mark.parametrize("flags", SERVES)
def test_a_command_is_accepted(
    flags: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-config", *shlex.split(flags)]) == 0, capsys.readouterr().err
    assert tomllib.loads(capsys.readouterr().out)["upstream"]


def test_settings_in_the_table_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    given = re.findall(r"``([a-z_]+) = \"?([a-z0-9]+)\"?``", PAGE)
    assert ("upstream_lifetime", "1400") in given
    for name, value in given:
        if name != "supports_websockets":  # of Codex
            assert main(["check-config", f"--{name.replace('_', '-')}", value]) == 0
    capsys.readouterr()


def test_configurations_of_codex_can_be_read() -> None:
    first, second = map(tomllib.loads, blocks("toml"))
    assert first["openai_base_url"] == "http://127.0.0.1:8080/v1"
    provider = second["model_providers"][second["model_provider"]]
    assert provider["base_url"] == first["openai_base_url"]
    assert provider["wire_api"] == "responses"


def test_python_can_be_read() -> None:
    (program,) = blocks("python")
    ast.parse(program)
