"""The option that has commands of the documentation run with their own sizes."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="run the commands of the documentation as shown, also where that takes minutes",
    )
