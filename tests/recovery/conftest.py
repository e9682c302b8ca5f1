"""The option that rewrites the golden output of the scenarios."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write what sessions do today under the commands of tests/scenarios/*.txt",
    )
