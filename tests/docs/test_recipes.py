"""docs/recipes.rst: the settings are accepted, and the configurations can be read.

What belongs here: what can be checked of a recipe without its provider. The commands are run by
test_commands.py, the clients by tests/clients, and Codex by tests/e2e.
"""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

from bridgecore_cli.main import main
from tests.docs.pages import DOCS, blocks

PAGE = (DOCS / "recipes.rst").read_text(encoding="utf-8")


def test_settings_in_the_table_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    given = re.findall(r"``([a-z_]+) = \"?([a-z0-9]+)\"?``", PAGE)
    assert ("upstream_lifetime", "1400") in given
    for name, value in given:
        if name != "supports_websockets":  # of Codex
            assert main(["check-config", f"--{name.replace('_', '-')}", value]) == 0
    capsys.readouterr()


def test_configurations_of_codex_can_be_read() -> None:
    first, second = (tomllib.loads(one.text) for one in blocks(PAGE, "toml"))
    assert first["openai_base_url"] == "http://127.0.0.1:8080/v1"
    provider = second["model_providers"][second["model_provider"]]
    assert provider["base_url"] == first["openai_base_url"]
    assert provider["wire_api"] == "responses"


def test_python_can_be_read() -> None:
    (program,) = blocks(PAGE, "python")
    ast.parse(program.text)
