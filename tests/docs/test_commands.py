"""Every command that README and the documentation show, and how a test runs it.

What belongs here: ``ENTRIES``, the table with one entry for each command, and what runs them. The
text of a command is that of the page: an entry only recognizes it, so a page cannot drift from
what is tested. A command that no entry recognizes fails, with a message that says what to add.

Commands run in a checkout of links, or of copies if they write below its top (``shell.py``).
``PLACEHOLDERS`` are names of the pages for which something of this machine is put in. Where a
command takes long, its entry says by what option it is made small; ``--full``, which ``make
verify-nightly`` gives, runs it as shown. Some run with ``--full`` only, and some are not run by
themselves, because continuous integration or ``make verify-nightly`` run all that they do.
"""

from __future__ import annotations

import ast
import os
import re
import secrets
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest

from benchmarks.throughput import machine
from bridgecore.testing import Emulator
from bridgecore_cli.arguments import parser
from tests.docs.pages import DOCS, ROOT, Shown, blocks, lines_of, shown, shown_in
from tests.docs.shell import RUNNING, Service, Shell, checkout
from tests.e2e.conftest import TIME_LIMIT, Upstream, ask, emulating, post
from tests.e2e.test_codex import CODEX
from tests.verify.test_replay import eventful
from tests.verify.test_replay import lines_of as decisions

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NIGHTLY = MAKEFILE.partition("\nverify-nightly:")[2].partition("\n\n")[0]
AZURE = "/openai/v1/responses"
# What the pages call by a name that is not here: a regular expression, and what is put in for it.
# UPSTREAM and AZURE are addresses of emulators. Ports are chosen by the system.
PLACEHOLDERS = {
    r"wss://api\.openai\.com|ws://127\.0\.0\.1:4000": "ws://UPSTREAM",
    r"https://api\.openai\.com": "http://UPSTREAM",
    r"wss://RESOURCE\.openai\.azure\.com": "ws://AZURE",
    r"--port \d+": "--port 0",
    r"--advertise http://127\.0\.0\.1:\d+": "--advertise http://127.0.0.1:0",
    r"\bFILE\b": "decisions.ndjson",
    r"\.\./other-checkout": ".",
    r"/etc/bridgecore": "etc",
    r"docs/data/performance\.json": "performance.json",
    r"> constraints\.txt": "> frozen.txt",
}
Changes: TypeAlias = Mapping[str, str]  # regular expression: what is put in for it


def more(options: str) -> Changes:
    """The change that adds options at the end."""
    return {r"$": f" {options}"}


def more_args(options: str) -> Changes:
    """The change that adds options to the ``ARGS`` of ``make``."""
    return {r"^(make \w+)$": r'\1 ARGS=""', r'"( &&.*)?$': rf' {options}"\1'}


# ------------------------------------------------------------------ kinds of entries


@attrs.frozen
class Entry:
    """How the commands like ``shown`` are tested; ``...`` in it is anything."""

    shown: str
    page: str = attrs.field(default="", kw_only=True)  # only there

    def knows(self, page: str, command: str) -> bool:
        pattern = re.escape(self.shown).replace(r"\.\.\.", ".*")
        return self.page in ("", page) and re.fullmatch(pattern, command) is not None


@attrs.frozen
class Runs(Entry):
    """Run to its end.

    Attributes:
        prints: a regular expression for what it must print.
        status: its exit status.
        instead: what is changed besides placeholders, because it would reach further than a test.
        less: what makes it small, unless ``--full`` is given.
        nightly: its part of ``make verify-nightly`` that takes the place of ``--full``.
        needs: a program, or else it is skipped; ``root``: to be root; ``bench``: what
            ``make bench`` needs; ``CODEX``: what tests/e2e/test_codex.py needs.
        server: what it asks has to be started before.
        copied: it writes below the top of the checkout, which then is a copy.
        late: why it is run with ``--full`` only. Otherwise ``make`` says what it would run, and the
            programs and files for that have to exist.
    """

    prints: str
    status: int = 0
    instead: Changes = attrs.field(factory=dict, kw_only=True)
    less: Changes = attrs.field(factory=dict, kw_only=True)
    nightly: str = attrs.field(default="", kw_only=True)
    needs: str = attrs.field(default="", kw_only=True)
    server: str = attrs.field(default="", kw_only=True)
    copied: bool = attrs.field(default=False, kw_only=True)
    late: str = attrs.field(default="", kw_only=True)


@attrs.frozen
class Serves(Entry):
    """Started, asked for one turn, and ended by a signal. ``instead``: as of ``Runs``."""

    instead: Changes = attrs.field(factory=lambda: more("--port 0"))


@attrs.frozen
class PartOf(Entry):
    """Not run by itself, for the reason ``why``: each line that ``make`` says it would run has to
    be one of ``make verify-nightly`` or ``.ci/run``."""

    why: str


@attrs.frozen
class Synopsis(Entry):
    """Not one command but all of a kind: it has to have these flags and choices."""


@attrs.frozen
class Elsewhere(Entry):
    """Run by another test, named as for pytest. ``nightly``: its full form there."""

    by: str
    nightly: str = ""


@attrs.frozen
class Cannot(Entry):
    """Nothing that a test may do, for the reason ``why``."""

    why: str


# ------------------------------------------------------------------ the table

# Tests that run what entries of the table show.
STORE = "tests/cli/test_store.py::test_the_commands_of_the_documentation_run"
CLEAN_POLICY = "tests/cli/test_verify.py::test_a_clean_policy"
TUTORIAL = "tests/test_tutorial.py::test_the_tutorial"
UNIT = "tests/e2e/test_deploying.py::test_the_unit_is_valid"
WHEEL = "tests/test_project.py::test_the_wheel_installs_and_runs"
DEMO = "tests/cli/test_demo.py::test_in_a_pipe_it_writes_lines_and_files"
EXPORT = "tests/cli/test_export.py::test_a_module_gets_its_configuration_beside_it"
REPLICAS = "tests/e2e/test_replicas.py::test_each_turn_may_reach_another_replica"
RATING = "tests/e2e/test_deploying.py::test_the_rating_of_the_unit"
NIGHTLY_BOUNDS = "bridgecore verify --bounds nightly"
QUICK = "--bounds quick --property"
TINY = "--scale tiny --rounds 1 --even-if-busy --only delta5 --participants bridgecore"
STREAMED = r"event: response\.completed"
FEW = "-n0 tests/test_timer_queue.py"  # instead of all tests, of which this is one
SCENARIO = "tests/scenarios/default-lost-sent-bound.txt"

# The first entry that knows a command is the one that counts.
ENTRIES: tuple[Entry, ...] = (
    # ---- bridgecore, in a moment
    Synopsis("bridgecore ...[...]..."),
    Synopsis("bridgecore verify --bounds ...|..."),
    Runs("bridgecore --version", r"^bridgecore \d"),
    Runs("bridgecore --help", r"The first steps:"),
    Runs("bridgecore serve --help", r"--created-timeout"),
    Runs("bridgecore check-config", r'\nupstream = "emulator"'),
    Runs("bridgecore rules...", r"lost_sent"),
    Runs("bridgecore completion", r"complete .* bridgecore", instead=more("bash")),
    Runs("bridgecore store", r"rotate-keys", instead=more("--help")),
    Elsewhere("bridgecore store ...", STORE),
    Elsewhere("export BRIDGECORE_STORE=...", STORE),
    Elsewhere("(umask 077; { openssl ...cat keys; } > keys.new; mv keys.new keys)", STORE),
    Runs("bridgecore replay", r"no divergence", instead=more("decisions.ndjson")),
    Runs("bridgecore replay decisions.ndjson", r"no divergence"),
    Synopsis("bridgecore replay LOG --policy POLICY"),
    Runs("bridgecore replay decisions.ndjson --policy ...", r"would have decided differently", 1),
    # ---- bridgecore demo and simulate
    Elsewhere("bridgecore demo", DEMO),
    Runs("bridgecore simulate", r"default: \d+ turns use", less=more("--turns 5")),
    Runs(
        "bridgecore simulate --policy both",
        r"v1_12: the window .* is full at turn 14\b",
        less=more("--turns 15"),
    ),
    Runs("bridgecore simulate --policy v1_12 --faults 5/7", r"is full at turn 17\b", 1),
    Runs(
        "bridgecore simulate --policy policy.toml",
        r"policy patient: One conversation",
        less=more("--turns 5"),
    ),
    Runs(
        "bridgecore simulate --conversations ... --replicas 3",
        r"\b0 violations",
        less={r"--conversations \d+": "--conversations 4", "--turns 20": "--turns 3"},
        nightly="simulate --conversations 1280 --turns 20 --faults 3 --seed 77 --replicas 3",
    ),
    Runs(
        "bridgecore simulate --conversations ...",
        r"\b0 violations",
        less={r"--conversations \w+": "--conversations 8", "$": " --turns 3"},
        nightly="simulate --conversations 23000 --turns 20 --faults 3 --seed 77",
    ),
    # ---- bridgecore verify
    Runs("bridgecore verify --trace decisions.ndjson", r"accepted: "),
    Runs("bridgecore verify --trace log.jsonl --svg found.svg", r"rejected: ", 1),
    Runs("bridgecore verify --trace docs/examples/traces/answers_not_found.jsonl", "", 1),
    Elsewhere(
        "bridgecore verify --mutants",
        "tests/verify/test_mutate.py::test_the_property_that_notices",
        "bridgecore verify --mutants",
    ),
    Elsewhere(
        "bridgecore verify | head -1",
        "tests/cli/test_main.py::test_a_closed_pipe_on_standard_output_is_no_error",
    ),
    Elsewhere(
        "...bridgecore verify --policy policies:careless...",
        "tests/cli/test_verify.py::test_a_policy_of_ones_own",
    ),
    Runs(
        "bridgecore verify --policy policy.toml",
        r"BROKEN  NO_AMBIGUOUS_RESEND",
        1,
        less=more(f"{QUICK} NO_AMBIGUOUS_RESEND"),
    ),
    Elsewhere("bridgecore verify ...--export tla --output Session.tla", EXPORT),
    Runs(
        "bridgecore verify --policy pr397",
        r"BROKEN  NO_AMBIGUOUS_RESEND",
        1,
        less=more(f"{QUICK} NO_AMBIGUOUS_RESEND"),
    ),
    Runs(
        "bridgecore verify --policy v1_12",
        r"BROKEN  NOT_FOUND_IS_EARNED",
        1,
        less=more(f"{QUICK} NOT_FOUND_IS_EARNED"),
    ),
    Elsewhere("bridgecore verify", CLEAN_POLICY, NIGHTLY_BOUNDS),
    Elsewhere("...bridgecore verify --bounds ...", CLEAN_POLICY, NIGHTLY_BOUNDS),
    Elsewhere(
        "java -Xss64m -cp tla2tools.jar tlc2.TLC -continue Session",
        "tests/tlc/test_run.py::test_what_tlc_counts_is_read",
        "-m tests.tlc.run",
    ),
    # ---- servers
    Serves("bridgecore serve...--policy policy.toml", more("--port 0 --no-verify")),
    Serves("bridgecore serve..."),
    Runs("(umask 077; openssl rand -hex 32 > ...keys)", "", needs="openssl"),
    Serves("python -m bridgecore_asgi"),
    Serves("uvicorn module:app"),
    Elsewhere("uvicorn fastapi_app:app", TUTORIAL),
    Serves("uvicorn ...", more("module:app --port 0")),
    Serves("hypercorn ...", more("module:app --bind 127.0.0.1:0")),
    Elsewhere(
        "UPSTREAM=wss://... python aiohttp_app.py",
        "tests/test_examples.py::test_aiohttp_keeps_conversations",
    ),
    Serves("make run...", more_args("--port 0")),
    # ---- the tutorial, in order
    Elsewhere("python loss.py...", TUTORIAL),
    Elsewhere("...", TUTORIAL, page="docs/tutorial.rst"),
    Runs(
        "curl .../metrics",
        r"\nbridgecore_conversations 0\n",
        needs="curl",
        server="bridgecore serve --port 0 --metrics true",
    ),
    Runs("curl ...", STREAMED, needs="curl", server="bridgecore serve --port 0"),
    # ---- make
    Runs(
        "make demo",
        r"(?s)default\s+answered\s+\d+\s+x\s+502\s+stream_incomplete\s+instead,.*pr397:\s+\d+\)\.\n$",
    ),
    Runs("make demo ARGS=...", r"default\s+answered\s+\d+\s+x\s+502", less=more_args("--turns 3")),
    Runs('make bench ARGS="--help"', r"usage: make bench"),
    Runs(  # as shown, an hour on a machine that does nothing else
        "make bench...",
        r"CPU us per turn",
        instead={"&& make generate": "&& make --dry-run generate", **more_args(TINY)},
        needs="bench",
    ),
    Runs(
        "SHORTCUT_CASES=... make test ARGS=...",
        r"\n\d+ passed",
        instead={r"=\d+": "=1000"},  # 100,000 take 40 minutes; `make test` has 200
        less={r"=\d+": "=5", r"(?=.$)": " -k change_nothing"},
        copied=True,
    ),
    Runs('make test ARGS="tests/...', r"\n\d+ passed", less=more_args("-n0"), copied=True),
    Runs("make test...", r"\n\d+ passed", instead=more_args(FEW), copied=True),
    Runs("make check", r"Success: no issues", copied=True, late="it takes two minutes"),
    Runs(
        "make docs",
        r"<title>bridgecore",
        instead=more("&& cat docs/_build/html/index.html"),
        copied=True,
        late="it takes a minute",
    ),
    Runs(
        "make generate",
        r"/docs/generated/costs\.rst: written",
        instead={"^": "rm docs/generated/costs.rst; "},
        copied=True,
        late="it takes a minute",
    ),
    Runs(
        "make format",
        r"\nx = \[1\]\n",
        instead={"^": "echo 'x = [ 1 ]' > loose.py; ", "$": "; cat loose.py"},
        # It fails if there is a finding that it cannot mend; that is for `make check` to say.
        less={"^": "rm -r adapters benchmarks bridgecore docs tests; "},
        copied=True,
    ),
    # It installs the clients that are selected, from the network, which no test uses: so none is,
    # and it ends at once. With clients it is run by hand; docs/data/clients.json has the results.
    Runs("make clients...", r"clients/run\.py", instead=more_args("--only NONE"), copied=True),
    PartOf("make check-pages", "it takes minutes, and a browser"),
    PartOf("make verify-nightly", "it takes hours, and runs this test"),
    PartOf("make verify-tlc", "it takes minutes, and Java"),
    PartOf("make mutation", "it takes hours"),
    # ---- figures, and what developers run
    Runs(
        "python tests/autobahn/run.py",
        r"\nexcused:",
        less=more("--case 1.1.1 server"),
        nightly="tests/autobahn/run.py",
    ),
    Runs("python benchmarks/conversations.py", r"\nkept\n$", less=more("1 20")),
    Elsewhere(
        "python benchmarks/continuity.py",
        "tests/test_benchmarks.py::test_accounted_size_is_the_memory_taken",
        "benchmarks/continuity.py",
    ),
    Runs(
        "python -m benchmarks.replicas --only memory",
        r"reached .* at the end",
        less=more("--stored 200"),
        needs="bench",
    ),
    Elsewhere("python -m benchmarks.replicas --only losses", REPLICAS, "--only losses"),
    Elsewhere("python -m benchmarks.replicas --only costs", REPLICAS),
    Runs(
        ".venv/bin/python -m pytest tests/wire/...",
        r"\n\d+ passed",
        less=more("-k chunked"),
        copied=True,
    ),
    Runs(
        "... pytest ... --rewrite-scenarios",
        r"\n\d+ passed",
        instead={
            "^": f"cp {SCENARIO} before; sed -i 's/complete turn/finish turn/' {SCENARIO}; ",
            "$": f"; cmp before {SCENARIO}",
        },
        less={"(?=--rewrite)": "-k prints "},
        copied=True,
    ),
    Runs(
        "CODEX=... pytest tests/e2e/test_codex.py",
        r"\n\d+ passed",
        instead={r"^CODEX=\S+ ": ""},  # that of this test
        less=more("--backend asyncio -k all_but_the_first"),
        needs="CODEX",
        copied=True,
    ),
    Runs(
        ".venv/bin/python -m pip freeze --exclude-editable > constraints.txt",
        r"\nattrs==",
        instead=more("&& cat frozen.txt"),
    ),
    Runs("towncrier build", r"## 9 ", instead=more("--draft --version 9")),
    Elsewhere(
        "python -m hatchling build",
        "tests/test_project.py::test_the_wheel_has_the_packages_and_nothing_else",
    ),
    Elsewhere("node ...compliance.mjs ...", "tests/e2e/test_compliance.py::test_the_suite"),
    Runs(
        ".ci/run",
        r"\n\d+ passed(.*\n)+Success: no issues",
        instead={"^": f"ARGS='{FEW}' "},
        copied=True,
        late="it takes two minutes",
    ),
    Cannot("npm install @openai/codex", "it installs from the network"),
    Cannot("apt-get install haproxy nginx", "it installs from the network, as root"),
    Cannot("pip install 'bridgecore[...]' ...", "there is no release yet to install"),
    Cannot("codex login", "it needs an account"),
    # ---- deployments
    Runs("ulimit -Hn", r"^(\d+|unlimited)\n$"),
    Runs("mkdir /etc/bridgecore", ""),
    Runs("chown 10001 keys", "", needs="root"),
    Cannot("useradd ...", "it adds a user to this machine"),
    Elsewhere("python3 -m venv /opt/bridgecore", WHEEL),
    Elsewhere(
        "/opt/bridgecore/bin/pip install '.[store]'",
        WHEEL,
    ),
    Elsewhere(
        "systemctl enable --now bridgecore@...",
        "tests/e2e/test_deploying.py::test_the_unit_is_valid",
    ),
    Elsewhere(
        "systemctl restart bridgecore@...", "tests/e2e/test_deploying.py::test_the_unit_is_valid"
    ),
    Cannot("systemctl start", "it needs a machine that systemd manages"),
    Elsewhere(
        "systemd-analyze security", "tests/e2e/test_deploying.py::test_the_rating_of_the_unit"
    ),
    Elsewhere("docker ...", "tests/e2e/test_deploying.py::test_the_image_runs"),
    Runs(
        "kubectl rollout restart",
        r"kubectl rollout restart",
        instead=more("--help"),  # there is no cluster
        needs="kubectl",
    ),
    Cannot("nginx -s reload", "it is for the nginx of the machine"),
)

WHAT_TO_ADD = """\
{page} shows a command that no test runs:

    {command}

Add an entry for it to ENTRIES in tests/docs/test_commands.py: Runs or Serves if a test can run it
(with less=... if it takes more than two seconds, copied=True if it writes below the top, late=...
if it takes minutes whatever its options), Elsewhere if another test does, PartOf if make
verify-nightly or .ci/run do all that it does, or Cannot with the reason."""


def entry_for(page: str, command: str) -> Entry:
    """The entry that counts for a command.

    Raises:
        LookupError: there is none; the message says what to add.
    """
    for entry in ENTRIES:
        if entry.knows(page, command):
            return entry
    raise LookupError(WHAT_TO_ADD.format(page=page, command=command))


# ------------------------------------------------------------------ the table is complete

SHOWN = shown()
COMMANDS = sorted({(one.page, command) for one in SHOWN for command in one.commands})


def test_every_command_has_an_entry() -> None:
    assert len(COMMANDS) > 100
    for page, command in COMMANDS:
        entry_for(page, command)


def test_every_entry_is_of_a_command() -> None:
    used = [entry_for(page, command) for page, command in COMMANDS]
    assert [entry.shown for entry in ENTRIES if entry not in used] == []


def test_the_tests_and_the_nightly_runs_that_entries_name_exist() -> None:
    for entry in ENTRIES:
        if isinstance(entry, Elsewhere):
            path, _, name = entry.by.partition("::")
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in names, entry
        if isinstance(entry, Runs | Elsewhere):
            assert entry.nightly in NIGHTLY, entry
    assert "tests/docs/test_commands.py --full" in NIGHTLY


def test_the_extras_that_commands_name_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [
        name
        for _, command in COMMANDS
        for names in re.findall(r"(?:bridgecore|'\.)\[(\w+(?:,\w+)*)\]", command)
        for name in names.split(",")
    ]
    assert {"store", "testing"} <= set(named)
    assert set(named) <= project["optional-dependencies"].keys()


def test_an_unknown_command_is_reported_with_what_to_add() -> None:
    page = "Try ``bridgecore fly --high``, then::\n\n   make tea\n\nand not ``bridgecore``.\n"
    found = [one.commands for one in shown_in("docs/x.rst", page)]
    assert found == [("make tea",), ("bridgecore fly --high",)]
    with pytest.raises(LookupError, match=r"docs/x\.rst shows .*\n\n    make tea\n\nAdd an entry"):
        entry_for("docs/x.rst", "make tea")


def test_every_way_to_show_a_command_is_read() -> None:
    page = """
.. code-block:: sh
   :caption: x

   (umask 077; true)   # why
   curl -N a \\
     -d '{"b": 1}'

   make run

::

   bridgecore running on http://127.0.0.1:8080

.. code-block:: text

   $ make demo
   line one
   $ make run
"""
    assert [(one.commands, one.outputs) for one in shown_in("p", page)] == [
        (("(umask 077; true)", "curl -N a -d '{\"b\": 1}'", "make run"), ("", "", "")),
        (("make demo",), ("line one\n",)),
        (("make run",), ("",)),
    ]
    table = '| `make demo` | `ARGS="--html x"` |\n\n```sh\nmake test  # all\n```\n'
    assert [one.commands for one in shown_in("p.md", table)] == [
        ("make test",),
        ("make demo",),
        ('make demo ARGS="--html x"',),
    ]


# ------------------------------------------------------------------ running


def apply(changes: Changes, command: str) -> str:
    for pattern, text in changes.items():
        command = re.sub(pattern, text, command, count=1)
    return command


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    """What takes the place of providers."""
    with emulating() as upstream, emulating(Emulator(path=AZURE)) as azure:
        yield {"UPSTREAM": upstream, "AZURE": azure}


class Runner:
    """Runs the commands of one block in one folder, in order."""

    def __init__(self, shell: Shell, upstreams: Mapping[str, Upstream], full: bool) -> None:
        self.shell, self.upstreams, self.full = shell, upstreams, full
        self.services = 0

    def run(self, entry: Entry, command: str, output: str) -> None:
        """Do what the entry says; ``output``: what the page says that the command prints."""
        match entry:
            case Runs() if entry.late and not self.full:
                self.recipe(command)
            case Runs():
                self.shell.stop()
                if entry.server:
                    self.shell.start(entry.server, Service("8080", RUNNING))
                less: Changes = {} if self.full and not entry.nightly else entry.less
                changed = self.here(apply(less, apply(entry.instead, command)))
                self.shell.run(changed, entry.status, 3600 if self.full else 3 * TIME_LIMIT)
                assert re.search(entry.prints, self.shell.printed), self.shell.printed
                self.shell.find(output)
            case Serves():
                self.services += 1
                service = Service(f"service {self.services}", RUNNING)
                port = self.shell.start(self.here(apply(entry.instead, command)), service)
                answer = ask(port, post({"model": "m", "input": "hello"}))
                assert answer.json["output"][0]["content"][0]["text"] == "turn 1: hello"
            case PartOf():
                run_anyway = self.recipe("make verify-nightly") | self.recipe(".ci/run")
                assert self.recipe(command) <= run_anyway
            case Synopsis():
                self.check_synopsis(command)
            case _:
                pass  # run by another test, or by none

    def recipe(self, command: str) -> set[str]:
        """What ``make`` says that a target, or those of ``.ci/run``, would run here. Each line has
        to have a program, files and, if it is a command of the bridge, flags that exist."""
        script = (ROOT / command).read_text(encoding="utf-8") if command == ".ci/run" else command
        targets = [line for line in lines_of(script) if line.startswith("make ")]
        assert targets
        found = set()
        for target in targets:
            self.shell.run(f"make --dry-run {target.removeprefix('make ')}")
            lines = lines_of(self.shell.printed)
            found |= {line for line in lines if line.startswith(".venv/bin/")}
        assert found
        for line in found:
            check_line(line)
        return found

    def check_synopsis(self, command: str) -> None:
        """Check that the help has each flag and each alternative of a synopsis."""
        name, _, rest = command.removeprefix("bridgecore ").partition(" ")
        actions = re.match(r"[\w-]+(?:\|[\w-]+)+", rest)
        helps = [name]
        helps += [f"{name} {action}" for action in actions[0].split("|")] if actions else []
        self.shell.run("; ".join(f"bridgecore {each} --help" for each in helps))
        words = re.findall(r"--[a-z-]+", command)
        words += re.findall(r"[\w-]+(?=\|)|(?<=\w\|)[\w-]+", command)
        assert [word for word in words if word not in self.shell.printed] == []

    def here(self, command: str) -> str:
        """The command with what is here put in for placeholders."""
        for pattern, text in PLACEHOLDERS.items():
            command = re.sub(pattern, text, command)
        for name, upstream in self.upstreams.items():
            command = command.replace(f"//{name}", f"//127.0.0.1:{upstream.port}")
        return command


def check_line(line: str) -> None:
    """Raise ``AssertionError`` if a line of a recipe has a program, a file or a flag that is not
    there."""
    program, *arguments = shlex.split(line)
    assert Path(sys.executable).with_name(Path(program).name).exists(), program
    files = [word for word in arguments if re.fullmatch(r"[\w/]+\.py|tests/\w+", word)]
    assert [name for name in files if not (ROOT / name).exists()] == [], line
    if program.endswith("/bridgecore"):
        parser().parse_args(arguments)


def prepare(
    folder: Path, commands: str, upstreams: Mapping[str, Upstream], *, copied: bool
) -> None:
    """Make a checkout with the files that commands name, as the pages around them say."""
    checkout(folder, copied=copied)
    examples = DOCS / "examples"
    shutil.copy(examples / "policies.py", folder)
    shutil.copy(examples / "policy.toml", folder)
    shutil.copy(examples / "traces" / "answers_not_found.jsonl", folder / "log.jsonl")
    policy = (examples / "policy.toml").read_text(encoding="utf-8")
    (folder / "bridge.toml").write_text(f"port = 9000\n{policy}", encoding="utf-8")
    if "decisions.ndjson" in commands or "bridgecore replay" in commands:
        log = b"".join(line + b"\n" for line in decisions(eventful()))
        (folder / "decisions.ndjson").write_bytes(log)
    if "> keys" not in commands:
        (folder / "keys").touch(mode=0o600)
        (folder / "keys").write_text(secrets.token_hex(32), encoding="utf-8")
    page = (DOCS / "embedding.rst").read_text(encoding="utf-8")
    (module,) = (one.text for one in blocks(page, "python") if one.text.startswith("app = "))
    imports = "from bridgecore import Config, UpstreamUrl\nfrom bridgecore_asgi import BridgeApp\n"
    url = upstreams["UPSTREAM"].url
    module = module.replace("wss://api.openai.com/v1/responses", url)
    (folder / "module.py").write_text(f"{imports}\n{module}\n", encoding="utf-8")


def available(needs: str) -> bool:
    """Whether this machine has what an entry needs."""
    match needs:
        case "root":
            return os.geteuid() == 0
        case "bench":
            return not machine.unavailable()
        case "CODEX":
            return CODEX is not None
        case _:
            return shutil.which(needs) is not None


def scenes() -> list[Shown]:
    """The groups of commands to run: without those whose commands are all in another one."""
    idle = (Elsewhere, Cannot)
    run = [
        one
        for one in SHOWN
        if not all(isinstance(entry_for(one.page, each), idle) for each in one.commands)
    ]
    return [one for one in run if not any(set(one.commands) < set(other.commands) for other in run)]


def test_a_copy_has_what_is_in_the_repository_and_uses_it(tmp_path: Path) -> None:
    checkout(tmp_path, copied=True)
    links = [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert {path.parent for path in links} == {tmp_path / ".venv"}
    with ExitStack() as stack:
        shell = Shell(tmp_path, stack, copied=True)
        shell.run(
            ".venv/bin/python -c 'import bridgecore as core, bridgecore_cli as adapter; "
            "print(core.__file__, adapter.__file__)'"
        )
    packages = tmp_path / "bridgecore", tmp_path / "adapters" / "bridgecore_cli"
    assert shell.printed.split() == [str(folder / "__init__.py") for folder in packages]


def test_a_target_that_is_part_of_no_other_run_is_noticed(tmp_path: Path) -> None:
    target = PartOf("make changelog", "it is not")
    with ExitStack() as stack, pytest.raises(AssertionError, match="towncrier"):
        Runner(Shell(checkout(tmp_path), stack), {}, False).run(target, target.shown, "")


@pytest.mark.parametrize("scene", scenes(), ids=lambda one: f"{one.page}: {one.commands[0][:60]}")
def test_the_commands_run(
    scene: Shown,
    upstreams: dict[str, Upstream],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    full = bool(request.config.getoption("--full", default=False))
    entries = [entry_for(scene.page, command) for command in scene.commands]
    copied = any(isinstance(entry, Runs) and entry.copied for entry in entries)
    prepare(tmp_path, " ".join(scene.commands), upstreams, copied=copied)
    with ExitStack() as stack:
        runner = Runner(Shell(tmp_path, stack, copied=copied), upstreams, full)
        for entry, command, output in zip(entries, scene.commands, scene.outputs, strict=True):
            needs = entry.needs if isinstance(entry, Runs) else ""
            if needs and not available(needs):
                pytest.skip(f"{command} needs {needs}")
            runner.run(entry, command, output)
        runner.shell.stop()
