"""The command line: the parser of all commands and their flags.

What belongs here: every flag, its help, and how its value is read. The flags of a command are made
when it is chosen, because most need names and defaults from the core, which takes longer to load
than the help of ``bridgecore`` itself takes to print.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import stat
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from bridgecore import __version__
from bridgecore.errors import did_you_mean
from bridgecore_cli.errors import USAGE
from bridgecore_cli.output import fitted, plain, print_text, printable, wrapped

if TYPE_CHECKING:
    from bridgecore import Policy
    from bridgecore.verify.cost import CostedProperty
    from bridgecore_cli.settings import Setting

# As in bridgecore.verify, which is slow to import.
BOUNDS_NAMES: Final = ("quick", "small", "ci", "nightly")
BOTH: Final = "both"
POLICY_METAVAR: Final = "NAME|MODULE:ATTR|FILE.toml"


class _Help(argparse.HelpFormatter):
    """Wraps everything to the terminal. Lines that begin with a space are commands to copy: each
    keeps its line if that is wide enough."""

    def format_help(self) -> str:
        """The text. argparse does not wrap a usage that was given to it, nor what it cannot break,
        such as a flag with a long placeholder."""
        return wrapped(super().format_help(), self._columns)

    @property
    def _columns(self) -> int:
        return self._width + 2  # argparse leaves that many free

    def _format_usage(self, *args: Any) -> str:
        # argparse puts every flag below the first one, which leaves a narrow terminal no room.
        text = super()._format_usage(*args)
        if all(len(line) <= self._columns for line in plain(text).split("\n")):
            return text
        line, *parts = _USAGE.findall(" ".join(plain(text).split()))
        lines = []
        for part in parts:
            if len(f"{line} {part}") > self._columns:
                lines.append(line)
                line = f"  {part}"
            else:
                line += f" {part}"
        return "\n".join([*lines, line]) + "\n\n"

    def _split_lines(self, text: str, width: int) -> list[str]:
        # As in the base class, which breaks the names of headers at their hyphens.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = re.split(r"(?m)((?:^ .*\n?)+)", text)
        kept = [
            _commands(part, self._columns)
            if part.startswith(" ")
            else super(_Help, self)._fill_text(part, width, indent) + "\n"
            for part in parts
            if part.strip()
        ]
        return "".join(kept).rstrip("\n")


def _commands(lines: str, width: int) -> str:
    """The commands in ``lines``, each with a remark perhaps. If both do not fit in ``width``, the
    remark is put below; if the command does not, it goes on after a backslash, as a shell reads
    it."""
    found = []
    for line in lines.splitlines():
        parts = re.fullmatch(r"( *\S.*?)(?:  +(.*))?", line)
        if len(line) <= width or parts is None:
            found.append(line)
            continue
        command, remark = parts.groups()
        folded = wrapped(command, width - len(_GOES_ON), whole=True)
        found.append(folded.replace("\n", f"{_GOES_ON}\n"))
        if remark:
            found.append(wrapped(f"      {remark}", width))
    return "\n".join(found) + "\n"


_GOES_ON: Final = " \\"
# The parts of a usage: the command, what stands in brackets, and what is alone.
_USAGE: Final = re.compile(r"usage:(?: [a-z][a-z-]*)+|\([^)]*\)|\[(?:[^][]|\[[^]]*\])*\]|[^ ]+")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the name that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the help is; the usage alone may be a page."""
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found is not None:
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and message.endswith(
                f"required: {action.metavar}"
            ):
                message += f", which is one of {', '.join(action.choices)}"
        line = printable(message)
        text = f"bridgecore: error: {line} (see {self.prog} --help)"
        self.exit(USAGE, fitted(text, sys.stderr) + "\n")

    def refuse(self, unknown: Sequence[str]) -> None:
        """Report arguments that no flag takes, if there are any."""
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            word = unknown[0].partition("=")[0]
            meant = did_you_mean(word, flags) if word.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")


class _Whole(_Parser):
    """The parser of the whole command line."""

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As in the base class, which would only say of a wrong flag that the command is
        missing."""
        given = sys.argv[1:] if not args or args[0] is None else args[0]
        first = given[0] if given else ""
        if first.startswith("-") and first not in ("--", *self._option_string_actions):
            self.refuse([first])
        return super().parse_known_args(*args, **options)


class _Command(_Parser):
    """The parser of one command; ``flags`` adds its flags when the command is chosen."""

    def __init__(self, *, flags: Callable[[_Command], None], **options: Any) -> None:
        super().__init__(**options)
        self._flags: Callable[[_Command], None] | None = flags

    def complete(self) -> None:
        """Add the flags, unless they were."""
        if self._flags is not None:
            add, self._flags = self._flags, None
            add(self)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As in the base class, which calls it for the command that was chosen."""
        self.complete()
        known, unknown = super().parse_known_args(*args, **options)
        self.refuse(unknown)
        return known, unknown


def whole_parser() -> argparse.ArgumentParser:
    """The parser with the flags of every command."""
    whole = parser()
    ahead = [whole]
    while ahead:
        for action in ahead.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    command.complete()
                    ahead.append(command)
    return whole


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; ``command`` is the name of the command."""
    whole = _Whole(
        prog="bridgecore",
        description="HTTP, SSE and WebSocket in front of the Responses API's WebSocket mode.",
        epilog="The first steps:\n"
        "  bridgecore demo                     what losses cost under three policies\n"
        "  bridgecore serve                    a bridge in front of an emulated upstream\n"
        "  bridgecore serve --upstream wss://api.openai.com/v1/responses\n"
        "  bridgecore rules                    what it does about each loss\n"
        "  bridgecore verify --bounds quick    whether that keeps its promises\n",
    )
    whole.add_argument("--version", action="version", version=f"bridgecore {__version__}")
    commands = whole.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command
    )
    commands.add_parser(
        "serve",
        flags=_serve,
        help="run the bridge",
        usage="bridgecore serve [--config FILE.toml] [--SETTING VALUE ...]",
        description="Run the bridge. A flag overrides the environment variable of the same "
        "setting, which overrides its key in the configuration file.",
        epilog="The setting --log-level is the environment variable BRIDGECORE_LOG_LEVEL and the "
        "key log_level in the file. Times are decimal seconds. Examples:\n"
        "  bridgecore serve --port 9000\n"
        "  bridgecore serve --upstream wss://api.openai.com/v1/responses --websocket true\n"
        "  bridgecore serve --config bridge.toml --log-level debug\n",
    )
    commands.add_parser(
        "check-config",
        flags=_check_config,
        help="print the settings that serve would have, and where each came from",
        usage="bridgecore check-config [--config FILE.toml] [--SETTING VALUE ...]",
        description="Read flags, environment variables and configuration file as 'serve' does, "
        "and print every setting with its value and its source, as a file that --config takes. "
        "Exit code 0 if 'serve' would take them, 78 or 2 with the first error if not.",
        epilog="Examples:\n"
        "  bridgecore check-config --config bridge.toml\n"
        "  BRIDGECORE_PORT=9000 bridgecore check-config > bridge.toml\n",
    )
    commands.add_parser(
        "demo",
        flags=_demo,
        help="see what three policies make of lost connections, in a few seconds",
        description="Run the same client behind three bridges, with the policies v1_12, pr397 and "
        "default, and an upstream that loses its connections; show the context and what was sent "
        "as it grows, and say in four lines what it came to. Everything is in this process, over "
        "real sockets on 127.0.0.1.",
        epilog="Example:\n  bridgecore demo --html demo.html\n",
    )
    commands.add_parser(
        "rules",
        flags=_rules,
        help="print the table of a policy, or what differs from another one",
        description="Print the table of a policy: a row for each thing that can happen to a turn, "
        "with the usual action and the columns that differ. The names are those of decision logs "
        "and of TOML files.",
        epilog="Examples:\n"
        "  bridgecore rules --policy v1_12 --diff    # what differs from default\n"
        "  bridgecore rules --toml > mine.toml       # to begin a policy of your own\n",
    )
    commands.add_parser(
        "replay",
        flags=_replay,
        help="run a recorded decision log through the core again and compare",
        description="Run the log that 'serve --decision-log FILE' wrote through the core again and "
        "print the first decision that differs from the recorded one. With --policy, print the "
        "decisions that another policy would have made differently.",
        epilog="Examples:\n"
        "  bridgecore replay decisions.ndjson\n"
        "  bridgecore replay decisions.ndjson --policy pr397\n",
    )
    commands.add_parser(
        "simulate",
        flags=_simulate,
        help="measure context growth and run many conversations on a faulty network",
        description="Measure how the context of one long conversation grows when its connections "
        "are lost, with a real endpoint and an emulated upstream in virtual time. With "
        "--conversations, also run that many conversations of all kinds of clients on a network "
        "that loses, stalls and reorders, and check every property; the first violation is shrunk "
        "to a short timeline.",
        epilog="Examples:\n"
        "  bridgecore simulate --svg context.svg\n"
        "  bridgecore simulate --conversations 1000 --seed 7\n",
    )
    commands.add_parser(
        "verify",
        flags=_verify,
        help="check every property in every state that a policy can reach",
        description="Explore every state that a session can reach under a policy, within bounds, "
        "and check every property in each. Broken ones are printed with a shortest sequence of "
        "events that breaks them, the cell or rule that is responsible, and what would hold there; "
        "those that cost a user most come first. Exit code 0 if every property holds, 1 if not.",
        epilog="Examples:\n"
        "  bridgecore verify --bounds quick\n"
        "  bridgecore verify --policy v1_12 --svg found.svg\n"
        "  bridgecore verify --policy mine.toml --property NO_AMBIGUOUS_RESEND\n"
        "  bridgecore verify --property help         # the names of all properties\n"
        "  bridgecore verify --trace decisions.ndjson\n",
    )
    commands.add_parser(
        "store",
        flags=_store,
        help="check a store, count what it has, delete from it, change its keys",
        description="Look after the store that processes of 'serve' share. They can run meanwhile.",
    )
    commands.add_parser(
        "completion",
        flags=_completion,
        help="print a script with which a shell completes commands and flags",
        description="Print a script with which a shell completes commands and flags.",
        epilog="Examples:\n"
        '  eval "$(bridgecore completion bash)"\n'
        '  bridgecore completion zsh > "${fpath[1]}/_bridgecore"\n',
    )
    return whole


def _serve(parser: argparse.ArgumentParser) -> None:
    from bridgecore_cli.settings import GROUPS, SETTINGS

    parser.add_argument("--config", metavar="FILE.toml", help="configuration file")
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        _add_flags(group, [setting for setting in SETTINGS if setting.name in names])


_check_config = _serve


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def _store(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=_Command
    )
    actions.add_parser(
        "check",
        flags=_store_check,
        help="check that the store can be reached, written and read",
        description="Check that the store can be reached and written, has tables of this version, "
        "and can be read with the keys; and list the processes that have a lease. Exit code 0 if "
        "it can be used, 78 if URL or keys are wrong, 1 if it fails or something in it is damaged.",
    )
    actions.add_parser(
        "stats",
        flags=_store_stats,
        help="count what is stored",
        description="Count conversations, responses and bytes, and say which keys they need.",
    )
    actions.add_parser(
        "purge",
        flags=_store_purge,
        help="delete what was not used for some time",
        description="Delete responses that were not used for some time and that no kept response "
        "continues, in small steps.",
    )
    actions.add_parser(
        "rotate-keys",
        flags=_store_settings,
        help="have nothing need an older secret any more",
        description="Seal again with the newest secret what an older one has sealed. It can be "
        "ended at any time and begun again. Afterwards the older secrets can be removed.",
    )


def _store_settings(parser: argparse.ArgumentParser) -> None:
    from bridgecore_cli.settings import SETTINGS

    add_settings(parser, [s for s in SETTINGS if s.name in ("store", "cluster_keys")])


def _store_check(parser: argparse.ArgumentParser) -> None:
    _store_settings(parser)
    parser.add_argument(
        "--all", action="store_true", help="read every response, not only those used last"
    )


def _store_stats(parser: argparse.ArgumentParser) -> None:
    _store_settings(parser)
    _add_json(parser)


def _store_purge(parser: argparse.ArgumentParser) -> None:
    _store_settings(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--older-than",
        type=_duration,
        metavar="DURATION",
        help="delete what was not used for that long: seconds, or a number with s, m, h, d or w",
    )
    what.add_argument("--all", action="store_true", help="delete everything")
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask before everything is deleted; required if standard input is no terminal",
    )


def add_settings(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    parser.add_argument("--config", metavar="FILE.toml", help="configuration file")
    _add_flags(parser, settings)


def _add_flags(where: argparse._ActionsContainer, settings: Iterable[Setting]) -> None:
    for setting in settings:
        default = setting.kind.show(setting.default)
        where.add_argument(
            setting.flag,
            dest=setting.name,
            metavar=setting.kind.metavar,
            help=f"{setting.doc.replace('`', '')} (default: {default})",
        )
        if setting.default is True:
            where.add_argument(
                setting.flag.replace("--", "--no-", 1),
                dest=setting.name,
                action="store_const",
                const="false",
                help=f"the same as {setting.flag} false",
            )


# Flags that mean the same for every command that has them.


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="S", help="random seed (default: 0)"
    )


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--svg", type=_writable, metavar="FILE", help="plot the context here")


def _add_json(where: argparse._ActionsContainer) -> None:
    where.add_argument("--json", action="store_true", help="print one JSON object instead")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--turns",
        type=_at_least(2),
        default=40,
        metavar="N",
        help="turns of each conversation (default: 40)",
    )
    _add_seed(parser)
    _add_plot(parser)
    parser.add_argument(
        "--html",
        type=_writable,
        metavar="FILE",
        help="write a page with the plot, sequence diagrams of one loss, and the numbers here",
    )


def _rules(parser: argparse.ArgumentParser) -> None:
    from bridgecore import DEFAULT

    parser.add_argument(
        "--policy",
        type=load_policy,
        default=DEFAULT,
        metavar=POLICY_METAVAR,
        help=f"the policy to print: {_policy_help()} (default: {DEFAULT.name})",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--diff",
        type=load_policy,
        nargs="?",
        const=DEFAULT,
        metavar=POLICY_METAVAR,
        help="print only what differs from this policy (without a value: default)",
    )
    what.add_argument(
        "--all",
        action="store_true",
        help="print the table in words, and the rules of the state machine",
    )
    what.add_argument(
        "--toml", action="store_true", help="print a TOML file that describes the policy"
    )


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the decision log")
    parser.add_argument(
        "--policy",
        type=load_policy,
        metavar=POLICY_METAVAR,
        help=f"compare with the decisions of this policy: {_policy_help()}",
    )


def _simulate(parser: argparse.ArgumentParser) -> None:
    from bridgecore import DEFAULT, V1_12

    parser.add_argument(
        "--policy",
        type=_policies,
        metavar=f"{BOTH}|{POLICY_METAVAR}",
        help=f"{_policy_help()}; "
        f"{BOTH} compares {DEFAULT.name} and {V1_12.name} (default: {BOTH} for the long "
        f"conversation, {DEFAULT.name} for the others)",
    )
    parser.add_argument(
        "--turns",
        type=_at_least(1),
        metavar="N",
        help="turns of the long conversation (default: 200) and of each other one (default: 20)",
    )
    parser.add_argument(
        "--conversations",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="number of conversations on the faulty network (default: 0)",
    )
    parser.add_argument(
        "--faults",
        type=_every,
        default=((1, 1), 4),
        metavar="K|M/K|none",
        help="inject a fault into one turn in K, or M of K turns of the long conversation "
        "(default: each turn of the long conversation, one in 4 of the others)",
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="on the faulty network, replace connections after minutes and preload the new ones",
    )
    parser.add_argument(
        "--replicas",
        type=_replicas,
        default=1,
        metavar="N",
        help="on the faulty network, N replicas that share a store serve all conversations; they "
        "crash, are replaced, paused and cut off (default: 1, without a store)",
    )
    _add_seed(parser)
    parser.add_argument(
        "--store",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store the responses of the long conversation upstream",
    )
    parser.add_argument(
        "--window",
        type=_at_least(1),
        default=876_000,
        metavar="TOKENS",
        help="context window of the model (default: 876000)",
    )
    parser.add_argument(
        "--system-tokens",
        type=_at_least(1),
        default=50_000,
        metavar="N",
        help="size of the system prompt in tokens (default: 50000)",
    )
    _add_plot(parser)
    _add_json(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    from bridgecore import DEFAULT

    group = parser.add_argument_group("what is explored")
    group.add_argument(
        "--policy",
        type=load_policy,
        metavar=POLICY_METAVAR,
        help=f"{_policy_help()} (default: {DEFAULT.name})",
    )
    group.add_argument(
        "--bounds",
        choices=BOUNDS_NAMES,
        help="how much to explore (default: small)",
    )
    group.add_argument(
        "--property",
        type=_property,
        action="append",
        metavar="NAME",
        help="judge this property only; may be given several times; help lists them",
    )
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--svg",
        type=_writable,
        metavar="FILE",
        help="draw the costliest counterexample here, if there is one; of a log, its wrong line",
    )
    group.add_argument(
        "--mermaid",
        type=_writable,
        metavar="FILE",
        help="write the costliest one here as a sequence diagram of Mermaid",
    )
    group.add_argument(
        "--junit",
        type=_writable,
        metavar="FILE",
        help="write the results here as JUnit's XML, with a test case for each property",
    )
    _add_json(group)
    group = parser.add_argument_group("a log from production instead")
    group.add_argument(
        "--trace",
        type=Path,
        metavar="LOG",
        help="check this log from production: a decision log, or one of another bridge; with "
        "--svg, --mermaid, --junit, --json and --allow",
    )
    group.add_argument(
        "--allow",
        type=_broken_on_purpose,
        action="append",
        default=[],
        metavar="PROPERTY",
        help="a property that this bridge breaks on purpose; can be repeated",
    )
    group = parser.add_argument_group("how good the properties are")
    group.add_argument(
        "--mutants",
        action="store_true",
        help="also change each rule and check that a property notices",
    )
    group.add_argument(
        "--jobs",
        type=_at_least(1),
        metavar="N",
        help="processes for --mutants (default: one for each core)",
    )
    group.add_argument(
        "--report", type=_writable, metavar="FILE", help="write the results of --mutants as JSON"
    )
    group = parser.add_argument_group("what a session can do instead")
    group.add_argument(
        "--export",
        choices=("tla", "mermaid", "dot", "json"),
        help="write what a session can do: every state and move as TLA+ or JSON, or the "
        "phases and rules as a diagram for Mermaid or Graphviz (dot)",
    )
    group.add_argument(
        "--part",
        type=_at_least(1),
        metavar="N",
        help="the part of the bounds that --export explores (default: 1)",
    )
    group.add_argument(
        "--output", type=_writable, metavar="FILE", help="write the export here (default: print it)"
    )


# ------------------------------------------------------------------ values


def load_policy(text: str) -> Policy:
    """The policy that ``text`` names: see ``bridgecore_cli.policies``.

    Raises:
        argparse.ArgumentTypeError: there is none, or it is wrong.
    """
    from bridgecore import POLICIES, ConfigError

    if text in POLICIES:
        return POLICIES[text]

    from bridgecore_cli import policies

    try:
        return policies.load_policy(text)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _policy_help() -> str:
    from bridgecore import POLICIES

    return (
        f"{', '.join(sorted(POLICIES))}, or one of your own, as MODULE:ATTR or a file with a "
        "table [policy]"
    )


def _writable(text: str) -> Path:
    """The path of a file to write at the end. Checked at the start, because the run may take an
    hour; nothing is created yet.

    Raises:
        argparse.ArgumentTypeError: the file could not be written now.
    """
    path = Path(text)
    reason = 0
    try:
        # Not Path.exists and the like: since Python 3.14 they are False for whatever is wrong.
        try:
            folder = stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError:
            path.parent.stat()
            if not os.access(path.parent, os.W_OK | os.X_OK):
                reason = errno.EACCES
        else:
            if folder:
                reason = errno.EISDIR
            elif not os.access(path, os.W_OK):
                reason = errno.EACCES
    except (OSError, ValueError) as exc:  # such as a name that is too long or has a null byte
        reason = getattr(exc, "errno", None) or errno.EINVAL
    if reason:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {os.strerror(reason)}")
    return path


def _property(name: str) -> str:
    """The name of a property. ``help`` prints all of them and ends the process.

    Raises:
        argparse.ArgumentTypeError: there is no such property.
    """
    from bridgecore_cli.verify_sections import SECTIONS, names

    if name == _LIST:
        for section in SECTIONS:
            print_text(section.title)
            for prop in section.properties:
                print_text(f"  {prop.name}: {prop.value}")
        raise SystemExit(0)
    return _named(name, names())


_LIST: Final = "help"


def _named(name: str, known: Sequence[str]) -> str:
    """The one of the properties ``known`` that ``name`` names, in any case."""
    word = name.upper().replace("-", "_")
    if word in known:
        return word
    meant = did_you_mean(word, known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=_NEAR)
    if not meant and near:
        meant = f"; the nearest: {', '.join(near)}"
    hint = f"; bridgecore verify --property {_LIST} lists them all"
    raise argparse.ArgumentTypeError(f"no property is named {name!r}{meant}{hint}")


_NEAR: Final = 0.4  # of 1


def _policies(name: str) -> list[Policy]:
    from bridgecore import DEFAULT, V1_12

    return [DEFAULT, V1_12] if name == BOTH else [load_policy(name)]


def _broken_on_purpose(name: str) -> CostedProperty:
    """The property called ``name``, in any case: one that a log can break."""
    from bridgecore.verify.foreign import OF_LOGS

    return {prop.name: prop for prop in OF_LOGS}[_named(name, [prop.name for prop in OF_LOGS])]


def _at_least(low: int) -> Any:
    """A reader of whole numbers of at least ``low``."""

    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}")
        return value

    return integer


def _duration(text: str) -> int:
    """A time in ns: a number of seconds, or of what the letter after it says."""
    found = re.fullmatch(r"(\d{1,10}(?:\.\d{1,9})?)([smhdw]?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90, 15m, 12h, 7d or 2w")
    from fractions import Fraction

    seconds = Fraction(found[1]) * _SECONDS[found[2] or "s"]
    if seconds > 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is more than thirty years")
    return int(seconds * 10**9)


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _replicas(text: str) -> int:
    """A number of replicas; each needs a letter for its name."""
    value: int = _at_least(1)(text)
    if value > _MOST_REPLICAS:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_REPLICAS}")
    return value


_MOST_REPLICAS: Final = 9


Faults: TypeAlias = "tuple[tuple[int, int | None], int | str | None]"


def _every(text: str) -> Faults:
    """Which turns faults hit: M of K turns of the long conversation, as (M, K), and one in K turns
    of the others. For the others ``SEVERAL`` if M is not 1: their faults are drawn one by one."""
    if text == "none":
        return (1, None), None
    first, slash, second = text.partition("/")
    run: int = _at_least(1)(first) if slash else 1
    every: int = _at_least(1)(second if slash else first)
    if run > every:
        raise argparse.ArgumentTypeError(f"{run} of {every} turns are too many")
    return (run, every), every if run == 1 else SEVERAL


SEVERAL: Final = "several"
