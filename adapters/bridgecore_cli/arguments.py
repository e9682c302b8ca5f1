"""What the commands are asked with.

What belongs here: every flag, and how its value is read. What is done with them is each command's
own module, which is loaded when it is its turn: ``serve`` need not wait for the verifier.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeAlias

from bridgecore.recovery.policy import DEFAULT, POLICIES, V1_12, Policy
from bridgecore_cli.settings import SETTINGS, Setting

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

BOUNDS_NAMES: Final = ("small", "ci", "nightly")  # of bridgecore.verify, which is not loaded here
_BOTH: Final = "both"


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; ``command`` is the name of the command."""
    whole = argparse.ArgumentParser(
        prog="bridgecore",
        description="HTTP and SSE in front of the Responses API's WebSocket mode.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"bridgecore {_version()}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_serve, _rules, _replay, _simulate, _verify):
        add(commands)
    return whole


def _help(setting: Setting) -> str:
    return f"{setting.doc.replace('`', '')} (default: {setting.kind.show(setting.default)})"


def _version() -> str:
    try:
        return metadata.version("bridgecore")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "(not installed)"


def _serve(commands: _Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the bridge",
        description="Run the bridge. A flag wins over its environment variable, that over the "
        "key of the same name in the file, that over the default.",
        epilog="Variables are the flags in capitals, so BRIDGECORE_LOG_LEVEL is --log-level; "
        "keys of the file are as log_level. Times are decimal seconds.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.toml", help="file with settings")
    for setting in SETTINGS:
        parser.add_argument(
            setting.flag, dest=setting.name, metavar=setting.kind.metavar, help=_help(setting)
        )


def _rules(commands: _Commands) -> None:
    parser = commands.add_parser("rules", help="print a policy and the rules", allow_abbrev=False)
    parser.add_argument("--policy", choices=sorted(POLICIES), default="default")


def _replay(commands: _Commands) -> None:
    parser = commands.add_parser(
        "replay",
        help="run a decision log through the core again",
        description="Run the log that 'serve --decision-log FILE' wrote through the core again and "
        "tell the first decision that is not the recorded one. With --policy, tell what another "
        "policy would have decided otherwise.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the decision log")
    parser.add_argument(
        "--policy", choices=sorted(POLICIES), help="compare with this policy's decisions"
    )


def _simulate(commands: _Commands) -> None:
    parser = commands.add_parser(
        "simulate",
        help="run the context-growth experiment, and many conversations on a faulty network",
        description="One long conversation whose sockets are lost, through a real endpoint and an "
        "emulated upstream, in virtual time: how its context grows. With --conversations, also "
        "that many conversations of all kinds of clients on a network that loses, stalls and "
        "reorders, with every property checked; a violation is shrunk to a timeline.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--policy",
        type=_policies,
        default=[DEFAULT],
        metavar="NAME|MODULE:ATTR",
        help=f"one of {', '.join(sorted(POLICIES))}, or a Policy of yours; {_BOTH}: "
        f"{DEFAULT.name} and {V1_12.name} (default: {DEFAULT.name})",
    )
    parser.add_argument(
        "--turns",
        type=_at_least(1),
        metavar="N",
        help="of the long conversation (default: 200), and of each of the others (default: 20)",
    )
    parser.add_argument(
        "--conversations",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="how many to run on the faulty network (default: 0)",
    )
    parser.add_argument(
        "--faults",
        type=_every,
        default=(1, 4),
        metavar="K|none",
        help="one turn in K is hit (default: each of the long conversation, 1 in 4 of the others)",
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="the others' sockets are given up after minutes, and those that follow are warmed",
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, metavar="S")
    parser.add_argument(
        "--store",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the upstream stores the long conversation's responses",
    )
    parser.add_argument(
        "--window", type=_at_least(1), default=876_000, metavar="TOKENS", help="context window"
    )
    parser.add_argument(
        "--system-tokens",
        type=_at_least(1),
        default=50_000,
        metavar="N",
        help="size of the system prompt",
    )
    parser.add_argument("--svg", type=_writable, metavar="FILE", help="write a plot of the context")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no tables")


def _verify(commands: _Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="explore every state that a policy can reach, and check every property",
        description="Explore every state that a session can reach under a policy, within bounds, "
        "and check every property in each. What does not hold is shown with a shortest way to it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--policy",
        type=load_policy,
        default=DEFAULT,
        metavar="NAME|MODULE:ATTR",
        help=f"one of {', '.join(sorted(POLICIES))}, or a Policy of yours (default: default)",
    )
    parser.add_argument("--bounds", choices=BOUNDS_NAMES, default=BOUNDS_NAMES[0])
    parser.add_argument(
        "--svg",
        type=_writable,
        metavar="FILE",
        help="draw the shortest counterexample, if there is one",
    )
    parser.add_argument(
        "--mutants", action="store_true", help="break the rules on purpose: is it noticed?"
    )
    parser.add_argument(
        "--jobs",
        type=_at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that judge mutants (default: one for each core)",
    )
    parser.add_argument(
        "--report", type=_writable, metavar="FILE", help="write what became of the mutants, as JSON"
    )


# ------------------------------------------------------------------ values


def load_policy(name: str) -> Policy:
    """The policy called ``name``, or the attribute ``module:attr``; modules are looked for in the
    working directory, too.

    Raises:
        argparse.ArgumentTypeError: there is no such policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise argparse.ArgumentTypeError(f"no policy is named {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise argparse.ArgumentTypeError(f"cannot load {name!r}: {exc}") from None
    finally:
        sys.path.pop(0)
    if not isinstance(found, Policy):
        raise argparse.ArgumentTypeError(f"{name!r} is no Policy")
    return found


def _writable(text: str) -> Path:
    """A file that can be written when the run is over, which may take an hour. Nothing is created.

    Raises:
        argparse.ArgumentTypeError: it cannot, as far as can be seen now.
    """
    path = Path(text)
    try:
        if path.is_dir():
            reason = errno.EISDIR
        elif path.exists():
            reason = 0 if os.access(path, os.W_OK) else errno.EACCES
        elif not path.parent.is_dir():
            reason = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
        else:
            reason = 0 if os.access(path.parent, os.W_OK | os.X_OK) else errno.EACCES
    except (OSError, ValueError) as exc:  # a name that is too long, a null byte
        reason = getattr(exc, "errno", None) or errno.EINVAL
    if reason:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {os.strerror(reason)}")
    return path


def _policies(name: str) -> list[Policy]:
    return [DEFAULT, V1_12] if name == _BOTH else [load_policy(name)]


def _at_least(low: int) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}")
        return value

    return integer


def _every(text: str) -> tuple[int | None, int | None]:
    """How often the turns of the long conversation and of the others are hit."""
    if text == "none":
        return None, None
    value: int = _at_least(1)(text)
    return value, value
