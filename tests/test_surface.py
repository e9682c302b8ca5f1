"""The public surface: what is listed as public exists, is documented, and needs nothing internal.

What belongs here: the list in ``docs/surface.py`` against the code, the reference page and the
pages of the documentation. It is about all packages, and so named after no module.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import bridgecore
import bridgecore_asgi
import bridgecore_asyncio
import bridgecore_cli
import bridgecore_httpx
import bridgecore_pytest
import bridgecore_trio
from docs import surface

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "generated" / "api.rst"
PUBLIC = [(module, name) for module in surface.SURFACE for name in surface.names_of(module)]
PACKAGES = (
    bridgecore,
    bridgecore_asgi,
    bridgecore_asyncio,
    bridgecore_cli,
    bridgecore_httpx,
    bridgecore_pytest,
    bridgecore_trio,
)


def modules() -> Iterator[ModuleType]:
    """Every module of the project; the two that run something when imported are left out."""
    for package in PACKAGES:
        yield package
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def test_the_package_exports_what_is_listed_as_public() -> None:
    assert sorted(bridgecore.__all__) == sorted(surface.names_of("bridgecore"))


def test_the_package_loads_what_a_type_checker_reads() -> None:
    """The imports below ``if TYPE_CHECKING``, the table of modules and ``__all__`` are one list."""
    (read,) = (
        node
        for node in ast.parse(inspect.getsource(bridgecore)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    homes = {
        alias.name: node.module
        for node in read.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == bridgecore._HOMES
    assert sorted({*homes, "__version__"}) == sorted(bridgecore.__all__)
    for name, home in homes.items():
        assert getattr(bridgecore, name) is getattr(importlib.import_module(home or ""), name)


def in_a_new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_name_is_loaded_when_it_is_used() -> None:
    code = """
import sys
import bridgecore
assert not {"attrs", "h11", "msgspec", "wsproto"} & sys.modules.keys()
from bridgecore import Session
assert Session is bridgecore.Session
assert "Session" in vars(bridgecore)
assert not {"h11", "msgspec", "wsproto"} & sys.modules.keys()
import bridgecore.config
assert not {"h11", "wsproto", "bridgecore.endpoint"} & sys.modules.keys()
"""
    assert in_a_new_process(code) == ""


def test_all_names_can_be_imported_listed_and_shown() -> None:
    code = """
import pickle, pydoc
import bridgecore
assert set(bridgecore.__all__) <= set(dir(bridgecore))
from bridgecore import *
assert {name for name in bridgecore.__all__ if name not in globals()} == set()
assert pickle.loads(pickle.dumps(Timers)) is bridgecore.Timers
text = pydoc.plain(pydoc.render_doc(bridgecore))
assert [name for name in bridgecore.__all__ if name[0] != "_" and name not in text] == []
"""
    assert in_a_new_process(code) == ""


@pytest.mark.parametrize("name", ["Sesion", "policy"])
def test_a_name_that_does_not_exist_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'bridgecore' has no attribute '{name}'"):
        getattr(bridgecore, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'bridgecore'"):
        exec(f"from bridgecore import {name}")


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_a_public_name_exists_and_says_what_it_is(module: str, name: str) -> None:
    assert surface.documentation(module, name)
    value = getattr(importlib.import_module(module), name)
    for member, method in vars(value).items() if inspect.isclass(value) else ():
        if not member.startswith("_") and inspect.isfunction(method):
            assert inspect.getdoc(method), f"{name}.{member} has no docstring"


def test_the_reference_has_every_public_name_and_nothing_else() -> None:
    text = PAGE.read_text(encoding="utf-8")
    module, shown = "", []
    for directive, target in re.findall(r"^\.\. ([\w:]+):: (\S+)$", text, re.MULTILINE):
        if directive == "automodule":
            module = target
        else:
            shown.append((module, target.removeprefix(module + ".")))
    assert shown == PUBLIC


def test_a_public_name_is_in_one_place() -> None:
    """A class, a function or a type is documented once: a reader need not ask which one to take."""
    homes: dict[int, list[str]] = {}
    for module, name in PUBLIC:
        if not surface.is_data(module, name):
            value = getattr(importlib.import_module(module), name)
            homes.setdefault(id(value), []).append(f"{module}.{name}")
    assert [places for places in homes.values() if len(places) > 1] == []


def test_the_pages_and_examples_import_public_names_only() -> None:
    found = []
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.rst"), *(ROOT / "docs").glob("*/*.py")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(
            r"^\W*from (bridgecore[\w.]*) import ([\w, ]+)", text, re.M
        ):
            for name in re.split(r",\s*", names.strip()):
                name = name.partition(" as ")[0]
                whole = f"{module}.{name}"
                if (module, name) not in PUBLIC and whole not in surface.SURFACE:
                    found.append(f"{page.name}: {whole}")
    assert found == []


def test_a_module_that_is_not_public_is_said_to_be_internal() -> None:
    """By itself, or by the package that it is in. The command is for its users, not to import."""
    silent = []
    for module in modules():
        name = module.__name__
        if name in surface.SURFACE or name.partition(".")[0] != "bridgecore":
            continue
        package = importlib.import_module(name.rpartition(".")[0])
        if "internal" not in f"{module.__doc__} {package.__doc__}".lower():
            silent.append(name)
    assert silent == []


def test_exceptions_of_the_project_have_one_base() -> None:
    strangers = [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and not issubclass(value, bridgecore.BridgecoreError)
    ]
    assert strangers == []


# ------------------------------------------------------------------ python -m bridgecore


def test_the_package_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bridgecore", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"bridgecore {bridgecore.__version__}\n"


def test_without_the_command_its_absence_is_reported() -> None:
    script = (
        "import importlib.util, runpy; found = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name: name != 'bridgecore_cli' and found(name) or None; "
        "runpy.run_module('bridgecore', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("bridgecore: error: the command is the package bridgecore_cli")
    assert len(done.stderr.splitlines()) == 1
