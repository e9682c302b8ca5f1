"""How Sphinx builds the documentation."""

from __future__ import annotations

import html
import re
import tomllib
from pathlib import Path

from docutils import nodes  # type: ignore[import-untyped]  # has no stubs
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

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
html_static_path = ["_static"]
html_css_files = ["pages.css"]


class _Translator(HTML5Translator):
    """Prepares tables for ``_static/pages.css``.

    Each cell says in which column it is, because on narrow screens a row is shown as a list. Long
    names can be broken where a reader would: after ``_``, ``.`` and ``/``, or before a capital.
    """

    def visit_entry(self, node: nodes.Element) -> None:
        node["begins"] = len(self.body)
        super().visit_entry(node)
        name = _column(node)
        if name:
            label = f' data-column="{html.escape(name)}"'
            self.body[node["begins"]] = self.body[node["begins"]].replace("<td", f"<td{label}", 1)

    def depart_entry(self, node: nodes.Element) -> None:
        super().depart_entry(node)
        for index in range(node["begins"], len(self.body)):
            part = self.body[index]
            words = _IN_CODE if part.startswith("<span") else _LONG if "<" not in part else _NEVER
            self.body[index] = words.sub(_breakable, part)


_IN_CODE = re.compile(r'(?<=<span class="pre">)[^<]+')
_LONG = re.compile(r"[\w./]{20,}")
_NEVER = re.compile(r"(?!)")


def _breakable(found: re.Match[str]) -> str:
    return re.sub(r"(?<=\w[_./])(?=\w)|(?<=[a-z])(?=[A-Z])", "<wbr>", found[0])


def _column(entry: nodes.Element) -> str:
    """The heading of the column of ``entry``; empty if there is none."""
    row = entry.parent
    group = row.parent.parent
    heads = [head for head in group.findall(nodes.thead) if head.parent is group]
    if isinstance(row.parent, nodes.thead) or not heads:
        return ""
    headings = heads[0][0].children
    index = row.index(entry)
    return headings[index].astext() if index < len(headings) else ""


def setup(app: Sphinx) -> None:
    """Use the translator above for HTML."""
    app.set_translator("html", _Translator)
