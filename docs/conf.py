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

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# The reference: docs/surface.py lists what is in it.
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
nitpick_ignore_regex = [
    ("py:.*", r"st\..*"),  # hypothesis.strategies, where an annotation could not be resolved
    ("py:class", r"_Driver|deque|tp\..*"),  # of private fields of testing.network.End
    ("py:class", r"bridgecore\.transport\.driver\.C"),  # a type variable
    ("py:class", r"tuple\[bytes"),  # how Sphinx reads the type of Config.cluster_secrets
    # Internal: open_store makes stores.
    ("py:class", r"bridgecore_stores\.backend\.(Backend|Connector)"),
    # Of other projects, whose indexes cannot be looked up here: a build needs no network.
    (
        "py:.*",
        r"(abc|asyncio|collections|contextlib|enum|hypothesis|httpx2?|msgspec|os|socket|ssl|trio|typing)\..*",
    ),
]

exclude_patterns = ["_build", "examples", "generated", "figures.rst"]  # included by others
highlight_language = "python3"

html_theme = "furo"
html_title = f"bridgecore {release}"
html_copy_source = False
html_show_sphinx = False
