"""Short runs of the benchmarks: the figures that do not depend on the clock hold.

What belongs here: short runs. Times are measured by the benchmarks themselves.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
