"""Rules about the repository as a whole, checked on its files.

What belongs here: what is about no single module. Each rule is a function from a source text to the
problems in it, so that the second half of the file can show with a bad text that the check finds
it. Which module may import which of the project's own is checked by import-linter
(``pyproject.toml``); which *outside* modules may be imported is checked here, because a layer
contract cannot list the standard library.
"""

from __future__ import annotations

import ast
import doctest
import email
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
import venv
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bridgecore
from bridgecore_cli.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "bridgecore": ROOT / "bridgecore",
    "bridgecore_asgi": ROOT / "adapters" / "bridgecore_asgi",
    "bridgecore_asyncio": ROOT / "adapters" / "bridgecore_asyncio",
    "bridgecore_cli": ROOT / "adapters" / "bridgecore_cli",
    "bridgecore_httpx": ROOT / "adapters" / "bridgecore_httpx",
    "bridgecore_pytest": ROOT / "adapters" / "bridgecore_pytest",
    "bridgecore_stores": ROOT / "adapters" / "bridgecore_stores",
    "bridgecore_trio": ROOT / "adapters" / "bridgecore_trio",
}

# The part of the standard library that computes and does nothing else. A module is listed by its
# full name: `collections` does not bring its submodules along, `http` (for HTTPStatus) not
# http.client. datetime is absent on purpose: time is integer nanoseconds here.
PURE_STDLIB = frozenset(
    {
        "__future__",
        "abc",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "collections.abc",
        "contextlib",
        "copy",
        "decimal",
        "difflib",
        "enum",
        "errno",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "http",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "string",
        "struct",
        "textwrap",
        "types",
        "typing",
        "urllib.parse",
        "zlib",
    }
)
CORE_LIBRARIES = frozenset({"attrs", "h11", "msgspec", "wsproto"})
# zstd is in the standard library from Python 3.14 on; sys, for its version number, tells which.
ZSTD = frozenset({"backports.zstd", "compression.zstd", "sys"})

# What the conformance checks need to be the other end of a driver, and to wait for it: the one
# place in the core with I/O. Nothing else in the core imports it (`pyproject.toml`, "conformance").
SOCKETS = frozenset(
    {"os", "pathlib", "queue", "resource", "socket", "ssl", "threading", "time", "unittest"}
)

# Builtins with side effects, for which a pure module needs no import.
IMPURE_CALLS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}
)

# Spelled in parts, or this file would break the rule it checks.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("anaconda", "org"),
        ("golang", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
    )
)


# ------------------------------------------------------------------ the rules, as functions


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of each module imported anywhere in ``tree``, functions included.

    A relative import comes out with its dots, which no allow-list has.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def allowed_imports(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """For a module of the core: the outside modules it may import, and the packages of the project.

    ``path`` is relative to the repository, with forward slashes.
    """
    match path.split("/")[1:]:
        case ["recovery", *_]:
            return PURE_STDLIB | {"attrs"}, frozenset({"bridgecore.errors", "bridgecore.recovery"})
        case ["admission", *_]:  # it uses recovery's ``Standing``
            own = frozenset({"bridgecore.admission", "bridgecore.recovery"})
            return PURE_STDLIB | {"attrs"}, own
        case ["__init__.py"]:  # it loads its own modules when their names are used
            return PURE_STDLIB | {"importlib"}, frozenset({"bridgecore"})
        case ["__main__.py"]:  # it runs the command, which it finds by name
            return PURE_STDLIB | {"importlib.util", "runpy", "sys"}, frozenset()
        case ["testing", "strategies.py"]:
            return PURE_STDLIB | CORE_LIBRARIES | {"hypothesis"}, frozenset({"bridgecore"})
        case ["testing", "conformance", *_]:
            return PURE_STDLIB | CORE_LIBRARIES | SOCKETS, frozenset({"bridgecore"})
        case ["wire", "codings.py"]:
            return PURE_STDLIB | CORE_LIBRARIES | ZSTD, frozenset({"bridgecore"})
        case _:
            return PURE_STDLIB | CORE_LIBRARIES, frozenset({"bridgecore"})


def impurities(path: str, source: str) -> list[str]:
    """Forbidden imports and calls in the module of the core at ``path``."""
    tree = ast.parse(source)
    outside, own = allowed_imports(path)
    found = []
    for line, module in imports_of(tree):
        root = module.split(".")[0]
        # Of a library every module may be used, of the standard library exactly the listed ones.
        listed = module in outside or (root in outside and root not in sys.stdlib_module_names)
        if not listed and not any(module == name or module.startswith(name + ".") for name in own):
            found.append(f"{path}:{line}: must not import {module}")
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in IMPURE_CALLS
        ):
            found.append(f"{path}:{node.lineno}: must not call {node.func.id}()")
    return found


# An ignored finding names itself and is followed by the reason, in the same comment or the next.
_IGNORE = re.compile(
    r"#\s*(?:type:\s*ignore(?P<mypy>\[[\w, -]+\])?|noqa(?P<ruff>:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?)"
    r"(?P<reason>.*)",
    re.IGNORECASE,
)


def unexplained_ignores(path: str, source: str) -> list[str]:
    """``type: ignore`` and ``noqa`` comments that lack a code or a reason beside it."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or (ignore := _IGNORE.search(token.string)) is None:
            continue
        where = f"{path}:{token.start[0]}: {ignore.group().strip()!r}"
        if not (ignore["mypy"] or ignore["ruff"]):
            found.append(f"{where} names no code")
        if len(re.findall(r"[A-Za-z]{2,}", ignore["reason"])) < 2:
            found.append(f"{where} gives no reason")
    return found


def missing_docstring(path: str, source: str) -> list[str]:
    """Whether a module with code has no docstring."""
    tree = ast.parse(source)
    if tree.body and not ast.get_docstring(tree):
        return [f"{path}:1: opens without a docstring that says what belongs in the file"]
    return []


def unmirrored(path: str, source: str, modules: Container[str]) -> list[str]:
    """Whether a test file neither has the name of a module nor a docstring with "What belongs
    here".

    ``modules``: the paths of all modules that are tested, such as ``bridgecore/wire/http.py``.
    """
    folder, test, name = path.removeprefix("tests/").rpartition("test_")
    packages = _TESTED_IN.get(folder, (f"bridgecore/{folder}",))
    if not test or any(f"{package}{name}" in modules for package in packages):
        return []
    if "what belongs here" in (ast.get_docstring(ast.parse(source)) or "").lower():
        return []
    return [f"{path}: is named after no module, and does not say what belongs here"]


_TESTED_IN = {
    "adapters/": ("adapters/bridgecore_asyncio/", "adapters/bridgecore_trio/"),
    "asgi/": ("adapters/bridgecore_asgi/",),
    "cli/": ("adapters/bridgecore_cli/",),
    "httpx/": ("adapters/bridgecore_httpx/",),
    "plugin/": ("adapters/bridgecore_pytest/",),
    "stores/": ("adapters/bridgecore_stores/",),
}


def registry_hosts(path: str, text: str) -> list[str]:
    """Host names of package registries: where packages come from is configured on each machine."""
    lowered = text.lower()
    return [f"{path}: names the registry host {host}" for host in REGISTRY_HOSTS if host in lowered]


def not_text(path: str, data: bytes) -> list[str]:
    """Files that cannot be read: packages and other downloads do not belong here."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return [f"{path}: is no text"]
    return []


_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!]*")


def bad_pins(path: str, text: str) -> list[str]:
    """Lines of a constraints file that are not exactly ``name==version``, and repeated names."""
    found = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not _PIN.fullmatch(line):
            found.append(f"{path}:{number}: {line!r} is not name==version")
            continue
        name = canonicalize_name(line.split("==")[0])
        if name in seen:
            found.append(f"{path}:{number}: {name} is pinned twice")
        seen.add(name)
    return found


def unpinned(requirements: Iterable[str], constraints: str) -> list[str]:
    """Requirements without a pin, or whose pin is not one of the versions they ask for."""
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in constraints.splitlines())
    }
    found = []
    for requirement in map(Requirement, requirements):
        version = pins.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{requirement} has no pin")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement} is pinned to {version}")
    return found


_FRAGMENT = re.compile(r"(?:\d+|\+[a-z0-9-]+)\.(?:breaking|added|changed|fixed|security)\.md")


def bad_fragments(names: Iterable[str]) -> list[str]:
    """Names in ``changes/`` that would not make it into the changelog."""
    return [
        f"changes/{name}: see changes/README.md for the name of a news fragment"
        for name in names
        if name != "README.md" and not _FRAGMENT.fullmatch(name)
    ]


def unlike(left: Iterable[str], right: Iterable[str]) -> list[str]:
    """Names that only one of two mirrored packages has."""
    return sorted(set(left) ^ set(right))


# ------------------------------------------------------------------ the tree

# What git does not keep, by name; .gitignore is not interpreted here.
_NOT_SOURCE = re.compile(
    r"\.git|\.venv|__pycache__|\.\w+_cache|\.hypothesis|_build|build|dist|node_modules|.*\.egg-info"
)


def tree() -> list[Path]:
    """Every file of the project."""
    files = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if not _NOT_SOURCE.fullmatch(name))
        files += [Path(folder, name) for name in sorted(names) if not name.startswith(".coverage")]
    # In a linked work tree .git is a file.
    return [file for file in files if file.name != ".git"]


def relative(path: Path) -> str:
    """``path`` relative to the repository, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def python_files(*folders: Path) -> list[tuple[str, str]]:
    """Path and source of every Python file under ``folders``; by default under all."""
    files = [
        (relative(file), file.read_text(encoding="utf-8"))
        for file in tree()
        if file.suffix == ".py" and (not folders or any(map(file.is_relative_to, folders)))
    ]
    assert files, f"no Python files under {folders}"
    return files


def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_core_is_pure() -> None:
    problems = [
        problem
        for path, source in python_files(PACKAGES["bridgecore"])
        for problem in impurities(path, source)
    ]
    assert problems == []


@pytest.mark.parametrize("rule", [unexplained_ignores, missing_docstring])
def test_every_python_file_keeps_the_rule(rule: Callable[[str, str], list[str]]) -> None:
    assert [problem for path, source in python_files() for problem in rule(path, source)] == []


def test_test_files_mirror_modules_or_say_why_not() -> None:
    modules = {path for path, _ in python_files(*PACKAGES.values())}
    problems = [
        problem
        for path, source in python_files(ROOT / "tests")
        for problem in unmirrored(path, source, modules)
    ]
    assert problems == []


def test_no_file_names_a_package_registry() -> None:
    problems = []
    for file in tree():
        text = file.read_bytes().decode("utf-8", errors="replace")
        problems += registry_hosts(relative(file), text)
    assert problems == []


def test_every_file_is_text() -> None:
    problems = []
    for file in tree():
        problems += not_text(relative(file), file.read_bytes())
    assert problems == []


def test_development_dependencies_are_pinned() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    project = pyproject()
    extras = project["project"]["optional-dependencies"]
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(
            requirement
            for extra in extras.values()
            for requirement in extra
            if not requirement.startswith("bridgecore[")
        ),
    ]
    assert bad_pins("constraints.txt", constraints) == []
    assert unpinned(requirements, constraints) == []


def test_news_fragments_make_it_into_the_changelog() -> None:
    assert bad_fragments(file.name for file in (ROOT / "changes").iterdir()) == []


def test_the_adapters_have_the_same_files() -> None:
    left, right = (
        [
            file.relative_to(PACKAGES[package]).as_posix()
            for file in tree()
            if file.is_relative_to(PACKAGES[package])
        ]
        for package in ("bridgecore_asyncio", "bridgecore_trio")
    )
    assert unlike(left, right) == []


@pytest.mark.parametrize(
    ("page", "row"),
    [
        ("README.md", r"^\| `([a-z_]+)` \| .* \| (.*) \|$"),
        ("docs/generated/settings.rst", r"^   \* - ``(\w+)``\n     - .*\n     - (.*)$"),
    ],
)
def test_the_settings_are_documented(page: str, row: str) -> None:
    """All settings, with their defaults, and no others."""
    text = (ROOT / page).read_text(encoding="utf-8")
    documented = {
        name: default.replace(",", "") for name, default in re.findall(row, text, re.MULTILINE)
    }
    assert documented == {setting.name: setting.kind.show(setting.default) for setting in SETTINGS}


def test_the_examples_of_the_documentation_run() -> None:
    done = doctest.testfile(str(ROOT / "docs" / "embedding.rst"), module_relative=False)
    assert done.attempted > 0
    assert done.failed == 0


# ------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a release would ship, built from the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def run(*command: str, cwd: Path) -> str:
    """The standard output of a command that has to succeed, without settings in its environment."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "BRIDGECORE_"))
    }
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_has_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    expected = {
        (Path(package) / file.relative_to(folder)).as_posix()
        for package, folder in PACKAGES.items()
        for file in tree()
        if file.is_relative_to(folder)
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert {name for name in shipped if not name.startswith(f"{info}/")} == expected
    assert f"{info}/licenses/LICENSE" in shipped


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    assert fields["Name"] == "bridgecore"
    assert fields["Version"] == bridgecore.__version__
    assert fields["License-Expression"] == "MIT"
    assert fields["Requires-Python"] == ">=3.11"
    # The dependencies of every installation; others need an extra.
    run_time = [Requirement(text) for text in fields.get_all("Requires-Dist") or []]
    assert {requirement.name for requirement in run_time if requirement.marker is None} == {
        "attrs",
        "h11",
        "msgspec",
        "wsproto",
    }
    (zstd,) = (one for one in run_time if canonicalize_name(one.name) == "backports-zstd")
    assert str(zstd.marker) == 'python_version < "3.14"'


def test_the_wheel_installs_and_runs(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, with the dependencies but without the checkout."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    bin_folder = environment / ("Scripts" if os.name == "nt" else "bin")
    python = str(bin_folder / "python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    # A .pth file adds a folder without reading the .pth files in it, so the editable install of the
    # checkout is not on the path.
    purelib = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    dependencies = Path(attrs.__file__).resolve().parent.parent
    Path(purelib.strip(), "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")

    script = "; ".join(
        [
            "import " + ", ".join(sorted(PACKAGES)),
            "print(bridgecore.__file__, bridgecore_cli.__file__)",
        ]
    )
    for file in run(python, "-c", script, cwd=tmp_path).split():
        assert Path(file).is_relative_to(environment)
    for command in ([str(bin_folder / "bridgecore")], [python, "-m", "bridgecore"]):
        said = run(*command, "--version", cwd=tmp_path)
        assert said == f"bridgecore {bridgecore.__version__}\n"


@pytest.mark.xdist_group("together")
def test_tests_of_a_group_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """Otherwise nothing fails, but what they share, a server or an exploration, is made again in
    each process. pytest-xdist finds the group of a test in its id."""
    grouping = request.config.getoption("loadgroup", default=False)
    assert request.node.nodeid.endswith("@together") is grouping


# ------------------------------------------------------------------ the rules can fail


@pytest.mark.parametrize(
    ("path", "source", "offence"),
    [
        ("bridgecore/bridge.py", "import time", "time"),
        ("bridgecore/bridge.py", "import collections, socket as s", "socket"),
        ("bridgecore/bridge.py", "from random import choice", "random"),
        ("bridgecore/bridge.py", "def f():\n    import asyncio", "asyncio"),
        ("bridgecore/bridge.py", "import http.client", "http.client"),
        ("bridgecore/bridge.py", "from urllib import request", "urllib"),
        ("bridgecore/bridge.py", "from datetime import datetime", "datetime"),
        ("bridgecore/bridge.py", "import trio", "trio"),
        ("bridgecore/bridge.py", "from bridgecore_asyncio import serve", "bridgecore_asyncio"),
        ("bridgecore/bridge.py", "import hypothesis", "hypothesis"),
        ("bridgecore/testing/emulator/service.py", "import hypothesis", "hypothesis"),
        ("bridgecore/testing/network.py", "import socket", "socket"),
        ("bridgecore/testing/conformance/driver.py", "import asyncio", "asyncio"),
        ("bridgecore/testing/conformance/driver.py", "import pytest", "pytest"),
        ("bridgecore/bridge.py", "from . import config", "."),
        ("bridgecore/bridge.py", "def f():\n    open('x')", "open()"),
        ("bridgecore/bridge.py", "import backports.zstd as zstd", "backports.zstd"),
        ("bridgecore/wire/codings.py", "import backports.tarfile", "backports.tarfile"),
        ("bridgecore/bridge.py", "print(1)", "print()"),
        ("bridgecore/recovery/rules.py", "import msgspec", "msgspec"),
        (
            "bridgecore/recovery/rules.py",
            "from bridgecore.wire.http import HttpServer",
            "bridgecore.wire.http",
        ),
        (
            "bridgecore/recovery/rules.py",
            "import bridgecore.recovery_tools",
            "bridgecore.recovery_tools",
        ),
        (
            "bridgecore/admission/gates.py",
            "from bridgecore.transport import Log",
            "bridgecore.transport",
        ),
    ],
)
def test_an_impure_module_is_found(path: str, source: str, offence: str) -> None:
    (problem,) = impurities(path, source)
    assert problem.startswith(f"{path}:")
    assert problem.endswith(f" {offence}")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bridgecore/bridge.py", "import attrs, msgspec, h11._events, wsproto.frame_protocol"),
        ("bridgecore/bridge.py", "from urllib.parse import urlsplit\nfrom http import HTTPStatus"),
        ("bridgecore/bridge.py", "from bridgecore.wire.http import HttpServer"),
        ("bridgecore/bridge.py", "archive.open('x')"),
        ("bridgecore/wire/codings.py", "import sys, zlib\nimport compression.zstd as zstd"),
        ("bridgecore/testing/strategies.py", "from hypothesis import strategies"),
        ("bridgecore/testing/conformance/peers.py", "import socket, ssl, threading, time"),
        ("bridgecore/recovery/rules.py", "import attrs\nfrom bridgecore.recovery import timers"),
    ],
)
def test_a_pure_module_passes(path: str, source: str) -> None:
    assert impurities(path, source) == []


# The marks are put together here so that linters and type checkers do not take them for their own.
_TYPE = "# type" + ": ignore"
_NOQA = "# no" + "qa"


@pytest.mark.parametrize(
    ("comment", "problems"),
    [
        (_TYPE, ["names no code", "gives no reason"]),
        (f"{_TYPE}[arg-type]", ["gives no reason"]),
        (f"{_TYPE}  # the stubs are wrong", ["names no code"]),
        (f"{_TYPE}[arg-type, misc]  # the stubs are wrong", []),
        (_NOQA, ["names no code", "gives no reason"]),
        (f"{_NOQA}: E501", ["gives no reason"]),
        (f"{_NOQA}: E501, B008  x", ["gives no reason"]),
        (f"{_NOQA}: E501, B008 - a table reads better unbroken", []),
        ("# an ordinary remark", []),
    ],
)
def test_an_unexplained_ignore_is_found(comment: str, problems: list[str]) -> None:
    found = unexplained_ignores("x.py", f"y = 1\nx = 1  {comment}\n")
    assert [text.split("' ")[-1] for text in found] == problems
    assert all(text.startswith("x.py:2: ") for text in found)


def test_an_ignore_inside_a_string_is_not_a_comment() -> None:
    assert unexplained_ignores("x.py", f"x = '{_TYPE}'\n") == []


def test_a_missing_docstring_is_found() -> None:
    assert missing_docstring("x.py", "import os\n")
    assert not missing_docstring("x.py", '"""What belongs here."""\nimport os\n')
    assert not missing_docstring("x.py", "")


def test_an_unmirrored_test_file_is_found() -> None:
    modules = {"bridgecore/wire/http.py", "adapters/bridgecore_cli/logs.py"}
    for path in ("tests/wire/test_http.py", "tests/cli/test_logs.py", "tests/world.py"):
        assert unmirrored(path, "", modules) == []
    said = '"""Whole answers.\n\nWhat belongs here: no single module."""'
    assert unmirrored("tests/wire/test_answers.py", said, modules) == []
    (problem,) = unmirrored("tests/test_http.py", '"""Tests of HTTP."""', modules)
    assert "named after no module" in problem


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_a_registry_host_is_found(host: str) -> None:
    assert registry_hosts("x", f"see https://Files.{host.upper()}/simple")
    assert not registry_hosts("x", "see the package index")


def test_a_file_that_is_no_text_is_found() -> None:
    assert not_text("a-1.0-py3-none-any.whl", b"PK\x03\x04\x14\x00\xff")
    assert not not_text("a.txt", "caf\u00e9".encode())


@pytest.mark.parametrize(
    "line",
    ["a>=1", "a", "a==1 --hash=sha256:00", "a @ file:///tmp/a", "-e .", "a==1; x", "# note", ""],
)
def test_a_bad_pin_is_found(line: str) -> None:
    assert len(bad_pins("constraints.txt", f"good==1.0\n{line}\n")) == 1


def test_a_repeated_pin_is_found() -> None:
    assert bad_pins("constraints.txt", "a-b==1\nA_B==2\n")
    assert not bad_pins("constraints.txt", "a-b==1\nc==2.0+local\n")


@pytest.mark.parametrize("requirement", ["absent", "here>=3", "here<2"])
def test_an_unpinned_requirement_is_found(requirement: str) -> None:
    assert len(unpinned([requirement, "Here>=2"], "here==2.1\n")) == 1


@pytest.mark.parametrize(
    "name", ["1.md", "1.fix.md", "words.fixed.md", "1.fixed.rst", "+A.fixed.md"]
)
def test_a_bad_fragment_is_found(name: str) -> None:
    assert len(bad_fragments([name, "README.md", "12.fixed.md", "+two-words.added.md"])) == 1


def test_unlike_packages_are_found() -> None:
    assert unlike(["a.py", "b.py"], ["a.py", "c.py"]) == ["b.py", "c.py"]
