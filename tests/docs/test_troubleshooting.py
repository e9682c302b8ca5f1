"""docs/troubleshooting.rst explains every error code that the bridge can answer with, and no other.

What belongs here: reading the codes from the source, and comparing them with the page.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from bridgecore.api_error import render_answer
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.failure import NOT_FOUND_CODE, ErrorFrame, classify

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.rst").read_text(encoding="utf-8")
# What the bridge is tested and explored with answers nobody.
APART = {"simulate", "testing", "verify"}
# Names of what holds a code that was made elsewhere, where this file finds it.
PASSED_ON = {"answer.value", "code", "event.code", "exc.code", "refusal.code", "refused.code"}
MAKERS = {"api_error", "BadRequest", "BodyRefused", "RefusedError", "UpgradeError"}


@attrs.frozen
class Made:
    """A code in the source, with the status that it is made with, if that is written beside it."""

    code: str
    status: int | None
    where: str


def sources() -> Iterator[Path]:
    for folder in (ROOT / "bridgecore", ROOT / "adapters"):
        for path in sorted(folder.rglob("*.py")):
            if APART.isdisjoint(path.relative_to(ROOT).parts):
                yield path


def codes_in(source: str, where: str) -> Iterator[Made]:
    """The codes that ``source`` makes errors with. Raises ``ValueError`` if one cannot be read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            for code in re.findall(rb'"code":"([a-z_]+)"', node.value):
                yield Made(code.decode(), None, where)
        if not isinstance(node, ast.Call):
            continue
        maker = ast.unparse(node.func).rpartition(".")[2]
        if maker == "ErrorFrame":
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    yield Made(str(keyword.value.value), None, where)
        if maker not in MAKERS:
            continue
        status, code = node.args[:2]
        known = int(ast.literal_eval(status)) if isinstance(status, ast.Constant) else None
        words = ast.unparse(code)
        if isinstance(code, ast.Constant):
            yield Made(str(code.value), known, where)
        elif match := re.fullmatch(r"(?:fx\.)?FailureReply\.(\w+)\.value", words):
            yield Made(FailureReply[match[1]].value, known, where)
        elif words == "NOT_FOUND_CODE":
            yield Made(NOT_FOUND_CODE, known, where)
        elif words not in PASSED_ON:
            raise ValueError(f"{where}:{node.lineno}: which code is {words}?")


def made() -> list[Made]:
    found = [Made(reply.value, None, "FailureReply") for reply in FailureReply]
    # Those of an upstream's error without a code.
    for error in (ErrorFrame(status=429), ErrorFrame(status=413), ErrorFrame()):
        answer = render_answer(FailureReply.UPSTREAM_ERROR, classify(error), error, None)
        found.append(Made(answer.code, answer.status, "api_error.py"))
    for path in sources():
        found += codes_in(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    return found


EXPLAINED = dict(re.findall(r"^``(\w+)`` \((\d+)\)$", PAGE, re.MULTILINE))


def test_every_code_is_explained() -> None:
    assert {one.code for one in made()} - set(EXPLAINED) == set()


def test_no_other_code_is_explained() -> None:
    assert set(EXPLAINED) - {one.code for one in made()} == set()


def test_each_code_has_the_status_that_it_is_made_with() -> None:
    wrong = [
        one for one in made() if one.status is not None and EXPLAINED[one.code] != str(one.status)
    ]
    assert wrong == []


@pytest.mark.parametrize("reply", FailureReply, ids=lambda reply: reply.name)
def test_a_failure_reply_has_the_status_on_the_page(reply: FailureReply) -> None:
    answer = render_answer(reply, None, None, "resp_1")
    assert (answer.code, str(answer.status)) == (reply.value, EXPLAINED[reply.value])


def test_every_log_line_on_the_page_exists() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in sources())
    named = {
        name
        for name in re.findall(r"``([a-z]+\.[a-z_]+)``", PAGE)
        if name.partition(".")[0] not in ("error", "response", "bridge")
    }
    assert len(named) > 10
    assert {name for name in named if f'"{name}"' not in source} == set()


def test_a_code_that_cannot_be_read_is_reported() -> None:
    with pytest.raises(ValueError, match=r"x\.py:1: which code is mystery"):
        list(codes_in("api_error(400, mystery, 'words')", "x.py"))
    assert list(codes_in("api_error(400, 'new_code', 'words')", "x.py")) == [
        Made("new_code", 400, "x.py")
    ]
