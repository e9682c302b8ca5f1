"""Reads pages of the documentation: their blocks of code, and every command that they show.

What belongs here: reading. How each command is run is ``test_commands.py``; running is
``shell.py``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.glob("*.rst")),
    *sorted((DOCS / "generated").rglob("*.rst")),
)
SHELLS = {"sh", "bash", "shell", "console"}
# The programs that a reader is shown. In running text there is nothing else by which a command
# differs from a name or a path; in a block of a shell each line is one.
PROGRAMS = (
    "apt|apt-get|bash|bridgecore|chown|codex|curl|docker|git|haproxy|hypercorn|java|kubectl"
    "|make|mypy|nginx|node|npm|npx|openssl|pip|psql|pytest|python|python3|ruff|sh|sphinx-build"
    "|sqlite3|systemctl|systemd-analyze|towncrier|ulimit|useradd|uvicorn"
)
_COMMAND = re.compile(
    rf"(?:[A-Z_]+=\S+ )*(?:cd \S+ && )?(?:[\w./-]*/)?(?:{PROGRAMS}) \S.*|\.ci/run"
)
_ARGS = re.compile(r"ARGS=(?:\".*\"|'.*')")
# The first line of output of `bridgecore serve`, which begins like a command.
_OUTPUT = "bridgecore running on "


@attrs.frozen
class Block:
    """A block of code: its language (``text`` for one without), and its text, not indented."""

    language: str
    text: str


@attrs.frozen
class Shown:
    """Commands of one block, in order, or a single one in running text.

    Attributes:
        page: where, relative to the root of the repository.
        commands: each on one line, without comments.
        outputs: what the page says that each prints; "" where it says nothing.
    """

    page: str
    commands: tuple[str, ...]
    outputs: tuple[str, ...]


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The blocks of code of a page of reStructuredText or Markdown, of one language or all."""
    found = [
        (match.start(), Block(match[1] or "text", match[2].rstrip("\n")))
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    for match in re.finditer(
        r"^( *)(?:\.\. code-block:: (\w+)\n(?:\1 +:.*\n)*|(?!\.\. ).*::\n)\n"
        r"((?:\1 +\S.*\n|[ ]*\n)+)",
        text,
        re.MULTILINE,
    ):
        inner = textwrap.dedent(match[3]).strip("\n")
        found.append((match.start(), Block(match[2] or "text", inner)))
    return [one for _, one in sorted(found) if language in (None, one.language)]


def lines_of(script: str) -> list[str]:
    """The commands of a script: continued lines are joined, comments and empty lines left out."""
    joined = re.sub(r"\\\n\s*", "", script)
    joined = re.sub(r"\n +(?=\S)", " ", joined)  # a synopsis goes on in an indented line
    lines = [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def shown_in(page: str, text: str) -> Iterator[Shown]:
    """The commands that a page shows, in blocks and in running text."""
    for block in blocks(text):
        if block.language in SHELLS:
            commands = lines_of(block.text)
        elif block.text.startswith("$ "):
            yield from _sessions(page, block.text)
            continue
        elif block.language == "text":
            commands = lines_of(block.text)
            first = commands[0].lstrip("(") if commands else ""
            if not _COMMAND.fullmatch(first) or first.startswith(_OUTPUT):
                continue
        else:
            continue
        yield Shown(page, tuple(commands), ("",) * len(commands))
    for command in _inline(text):
        yield Shown(page, (command,), ("",))


def _sessions(page: str, text: str) -> Iterator[Shown]:
    """Of a block with prompts: each command and what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Shown(page, (command,), (output,))


def _inline(text: str) -> Iterator[str]:
    """Commands in running text, and in the docstrings of included programs.

    Arguments alone (``ARGS="..."``) are those of the target that was named last.
    """
    for name in re.findall(r"^ *\.\. literalinclude:: (examples/\S+)$", text, re.MULTILINE):
        text += (DOCS / name).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    target = "make"
    for match in re.finditer(r"``([^`]+)``|`([^`]+)`(?!`)", text):
        words = " ".join((match[1] or match[2]).split())
        if words.startswith("make "):
            target = " ".join(words.split()[:2])
        if _ARGS.fullmatch(words):
            yield f"{target} {words}"
        elif _COMMAND.fullmatch(words) and not words.startswith(_OUTPUT):
            yield words


def shown() -> list[Shown]:
    """Every command of README and the documentation; each group of commands once, with its first
    page."""
    found: dict[tuple[str, ...], Shown] = {}
    for path in PAGES:
        for one in shown_in(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")):
            found.setdefault(one.commands, one)
    return list(found.values())
