"""How Sphinx builds the documentation."""

from __future__ import annotations

import tomllib
from pathlib import Path

from bridgecore import __version__

_project = tomllib.loads(
    (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
)["project"]

project = "bridgecore"
author = copyright = _project["authors"][0]["name"]
version = release = __version__

extensions: list[str] = []
exclude_patterns = ["_build", "generated", "figures.rst"]  # included by others
highlight_language = "python3"

html_theme = "furo"
html_title = f"bridgecore {release}"
html_copy_source = False
html_show_sphinx = False
