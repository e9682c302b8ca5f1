"""The public surface: which modules and names are public, and the reference page that shows them.

What belongs here: the one list of what is public, ``SURFACE``, and what follows from it. The page
is ``docs/generated/api.rst``, written by ``docs/generate.py`` and filled in by Sphinx's autodoc;
``tests/test_surface.py`` holds the list, the page and the code together.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

# Names under a heading each, in the order of the page.
_Groups = Mapping[str, Sequence[str]]


def _all_but(*internal: str) -> frozenset[str]:
    """Everything that the module defines (or has in ``__all__``), except for these names."""
    return frozenset(internal)


SURFACE: Mapping[str, _Groups | frozenset[str]] = {
    "bridgecore": {
        "The three doors": ("Session", "Gateway", "Endpoint"),
        "Configuration": (
            "Config",
            "UpstreamUrl",
            "HttpUrl",
            "PeerUrl",
            "Continuity",
            "OnAmbiguousLoss",
            "Fallback",
            "Rotation",
            "Store",
            "Resolver",
        ),
        "Policies": (
            "Policy",
            "DEFAULT",
            "PR397",
            "V1_12",
            "POLICIES",
            "Situation",
            "Standing",
            "Remedy",
            "Action",
            "FailureReply",
            "Budgets",
            "Timeouts",
            "Cell",
            "policy_from",
            "policy_table",
            "render_rules",
        ),
        "Decisions": ("step", "Transition", "SessionState"),
        "Time": ("NS_PER_SECOND", "Deadline", "Timer", "Timers"),
        "Requests, events and errors as clients see them": (
            "CreateRequest",
            "UpstreamEvent",
            "EventKind",
            "ApiError",
        ),
        "Exceptions": ("BridgecoreError", "LocalProtocolError", "ConfigError", "InternalError"),
        "Version": ("__version__",),
    },
    "bridgecore.recovery.events": _all_but("Standing"),  # of the package itself
    "bridgecore.recovery.effects": _all_but("FailureReply"),
    "bridgecore.recovery.failure": _all_but(
        "NO_REPLICA", "NOT_FOUND_CODE", "known_name", "known_param"
    ),
    "bridgecore.recovery.state": _all_but("SessionState"),
    "bridgecore.messages": _all_but("TurnReceived", "BridgeEvent", "BridgeEffect"),
    "bridgecore.ownership.store": _all_but(),
    "bridgecore.ownership.forwards": {"": ("Forward",)},
    "bridgecore.wire.sse": _all_but(),
    "bridgecore.transport": _all_but(),
    "bridgecore.telemetry": _all_but(),
    "bridgecore.telemetry.metrics": {
        "": (
            *("Metric", "Kind", "Readings", "Distribution", "METRICS", "BOUNDS", "exposition"),
            "CONTENT_TYPE",
        )
    },
    "bridgecore.transport.driver": _all_but("C"),
    "bridgecore.transport.request": _all_but("Headers", "as_bytes"),
    "bridgecore_asyncio": _all_but(),
    "bridgecore_trio": _all_but(),
    "bridgecore_asgi": _all_but(),
    "bridgecore_stores": _all_but(),
    "bridgecore_httpx": _all_but(),
    "bridgecore_pytest": _all_but(),
    "bridgecore.testing": _all_but(),
    "bridgecore.testing.client": _all_but(),
    "bridgecore.testing.network": _all_but(),
    "bridgecore.testing.virtual": _all_but(),
    "bridgecore.testing.store": {"": ("StoreModel",)},
    "bridgecore.testing.conformance": _all_but(),
    "bridgecore.testing.pytest_plugin": _all_but(),
    "bridgecore.testing.strategies": _all_but("Json", "CONNECTION_POINTS"),
    "bridgecore.simulate": _all_but(),
    "bridgecore.verify.monitor": _all_but(),
    "bridgecore.verify.properties": {"": ("Property", "ViolationError")},
}


def groups_of(module: str) -> _Groups:
    """The public names of ``module``, under their headings; one without a text has none."""
    listed = SURFACE[module]
    if isinstance(listed, frozenset):
        return {"": [name for name in _defined_in(module) if name not in listed]}
    return listed


def names_of(module: str) -> list[str]:
    """The public names of ``module``, in the order of the page."""
    return [name for names in groups_of(module).values() for name in names]


def documentation(module: str, name: str) -> str:
    """What the code says about a public name: its docstring or, for a value, the string below its
    assignment. Empty if it says nothing."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return inspect.cleandoc(value.__doc__ or "")
    return _documentation_of_value(module, name)


def is_data(module: str, name: str) -> bool:
    """Whether the name is that of a value, a type alias included, not of a class or a function."""
    value = getattr(importlib.import_module(module), name)
    return not (inspect.isclass(value) or inspect.isfunction(value))


# ------------------------------------------------------------------ reading the code


def _syntax(module: str) -> list[ast.stmt]:
    """The statements of a module; those below ``if TYPE_CHECKING`` included, because a package that
    loads its names on first use imports them there."""
    statements: list[ast.stmt] = []
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        for_checkers = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        statements += node.body if isinstance(node, ast.If) and for_checkers else [node]
    return statements


def _assigned(node: ast.stmt) -> str:
    """The public name that a statement binds to a value; empty if there is none."""
    targets: list[Any] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    name = targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""
    return "" if name == "__all__" else name


def _defined_in(module: str) -> list[str]:
    """What a module offers: its ``__all__``, else what it defines without an underscore."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return list(loaded.__all__)
    names = []
    for node in _syntax(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        else:
            names.append(_assigned(node))
    return [name for name in names if name and not name.startswith("_")]


def _documentation_of_value(module: str, name: str) -> str:
    body = _syntax(module)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if any((alias.asname or alias.name) == name for alias in node.names):
                return _documentation_of_value(node.module, name)
        elif (
            _assigned(node) == name
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            return inspect.cleandoc(after.value.value)
    return ""


def _members(kind: type[enum.Enum]) -> Iterator[tuple[str, str]]:
    """The members of an enum, each with its meaning or the comment behind it or, without one, its
    value."""
    source = textwrap.dedent(inspect.getsource(kind))
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name, _, rest = token.line.strip().partition(" = ")
        if token.type == tokenize.COMMENT and rest:
            comments[name] = token.string.lstrip("# ")
    for member in kind:
        said = getattr(member, "meaning", "").replace("`", "``") or comments.get(member.name)
        yield member.name, said or f"``{member.value!r}``"


# ------------------------------------------------------------------ the page


def render() -> str:
    """The page, in reStructuredText. Sphinx puts the docstrings in."""
    lines: list[str] = []
    for module in SURFACE:
        title = f"``{module}``"
        lines += [title, "-" * len(title), "", f".. automodule:: {module}", ""]
        for heading, names in groups_of(module).items():
            if heading:
                lines += [heading, "~" * len(heading), ""]
            for name in names:
                lines += [*_entry(importlib.import_module(module), name), ""]
    return "\n".join(lines).rstrip() + "\n"


def _entry(module: ModuleType, name: str) -> list[str]:
    value = getattr(module, name)
    if inspect.isfunction(value):
        return [f".. autofunction:: {module.__name__}.{name}"]
    if not inspect.isclass(value):
        said = documentation(module.__name__, name).splitlines()
        return [f".. py:data:: {name}", "", *[f"   {line}".rstrip() for line in said]]
    lines = [f".. autoclass:: {module.__name__}.{name}"]
    if issubclass(value, enum.Enum):
        lines += ["", *[f"   * ``{member}``: {text}" for member, text in _members(value)]]
    else:
        lines += ["   :members:"]
    return lines
