"""Tests of colour.py: when there are colours."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from typing import IO

import pytest

from bridgecore_cli.colour import Colour, has_colour, paint


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[str]]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        yield stream
    os.close(leader)


def test_on_a_terminal(terminal: IO[str]) -> None:
    assert has_colour(terminal)
    assert paint("holds", Colour.GOOD, terminal) == "\033[32mholds\033[0m"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_can_refuse(
    terminal: IO[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert paint("holds", Colour.GOOD, terminal) == "holds"


def test_an_empty_no_color_refuses_nothing(
    terminal: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert has_colour(terminal)


def test_not_in_a_pipe() -> None:
    assert paint("holds", Colour.GOOD, io.StringIO()) == "holds"
