"""Mutates the function bodies of ``recovery/`` and ``admission/``, and reports what the tests miss.

What belongs here: how mutmut is made to handle this code. It works on a copy of the tree:

* mutmut does not mutate decorated functions, and every rule is one. In the copy the decorator is
  called after the function instead, which is equivalent.
* What runs when a module is imported (the tables) has run before mutmut chooses a mutant. Those
  functions are mutated in a second pass, in processes that import everything anew.

``make mutation`` runs it; it takes about half an hour. The numbers of mutants that cannot be
detected are listed with their reasons in ``EQUIVALENT``.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WANTED = 0.95  # of the mutants
AT_IMPORT = (
    "bridgecore.recovery.rules.x__register*",
    "bridgecore.recovery.rules.x__rule*",
    "bridgecore.recovery.rules.x__ignore*",
    "bridgecore.recovery.rules.x__illegal*",
    "bridgecore.recovery.policy.x__row*",
    "bridgecore.recovery.policy.x__table*",
)
EQUIVALENT: Mapping[str, str] = {
    "bridgecore.recovery.rules.x__ended__mutmut_3": (
        "no rule reads the generation of a refusal that a rule makes of a failed response"
    ),
    "bridgecore.recovery.failure.x_classify__mutmut_34": "unreachable: the text is never logged",
    "bridgecore.recovery.rules.x__connection_opened__mutmut_1": (
        "the send that follows at once opens the session, or skips the socket"
    ),
}
CONFIG = """
[tool.mutmut]
source_paths = ["bridgecore/"]
only_mutate = ["bridgecore/recovery/*.py", "bridgecore/admission/*.py"]
also_copy = ["tests", "adapters"]
pytest_add_cli_args_test_selection = ["tests/recovery", "tests/admission"]
pytest_add_cli_args = ["-p", "no:cacheprovider"]
"""
ANEW = """process_isolation = "forkserver"
forkserver_warmup = "none"
"""


def undecorated(source: str) -> str:
    """``source`` with each decorator of a function called after it instead."""
    lines = source.split("\n")
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.FunctionDef) or not node.decorator_list:
            continue
        call = node.name
        for decorator in reversed(node.decorator_list):
            call = f"{ast.unparse(decorator)}({call})"
        lines[node.end_lineno : node.end_lineno] = ["", call]
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines)


def prepare(work: Path, more: str = "") -> None:
    """Copy the tree to ``work``, in the form that mutmut needs."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("bridgecore", "adapters", "tests"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    rules = work / "bridgecore" / "recovery" / "rules.py"
    rules.write_text(undecorated(rules.read_text(encoding="utf-8")), encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = "[tool.pytest.ini_options]\n"
    found = f'{table}pythonpath = [".", "adapters"]\n'
    text = project.replace(table, found) + CONFIG + more
    (work / "pyproject.toml").write_text(text, encoding="utf-8")


def mutmut(work: Path, *args: str) -> str:
    """The output of ``mutmut``; progress goes to the terminal."""
    command = [sys.executable, "-m", "mutmut", *args]
    show = args[0] == "run"
    done = subprocess.run(command, cwd=work, text=True, check=False,
                          stdout=None if show else subprocess.PIPE)  # fmt: skip
    if show and done.returncode != 0:
        raise SystemExit(f"mutmut failed with {done.returncode}")
    return done.stdout or ""


def results(work: Path) -> dict[str, str]:
    """The result of each mutant, by name."""
    pairs = [line.strip().rsplit(": ", 1) for line in mutmut(work, "results", "--all", "1")
             .splitlines() if ": " in line]  # fmt: skip
    return {name: status for name, status in pairs if status != "not checked"}


def main() -> int:
    """Run both passes; 0 if enough mutants were detected."""
    parser = argparse.ArgumentParser(description="Mutate recovery/ and admission/.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    jobs = str(parser.parse_args().jobs)
    work = ROOT / "build" / "mutation"
    prepare(work)
    mutmut(work, "run", "--max-children", jobs)
    found = results(work)
    prepare(work, ANEW)
    mutmut(work, "run", "--max-children", jobs, *AT_IMPORT)
    found |= results(work)
    missed = {name: status for name, status in found.items() if not _noticed(status)}
    argued = {name for name in missed if name in EQUIVALENT}
    share = 1 - len(missed) / len(found)
    print(f"\n{len(found)} mutants, {len(found) - len(missed)} noticed: {share:.1%}")
    print(f"{len(argued)} of the others are argued equivalent")
    for name, status in sorted(missed.items()):
        print(f"{status:<10} {name}{' (equivalent)' if name in argued else ''}")
    return 0 if share >= WANTED else 1


def _noticed(status: str) -> bool:
    return status in ("killed", "timeout", "segfault", "suspicious")


if __name__ == "__main__":
    sys.exit(main())
