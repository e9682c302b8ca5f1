"""The settings of ``bridgecore serve``: one table, from which all three ways to set them follow.

What belongs here: which settings there are, how their text is read, and which source wins (flag,
then environment, then file, then default). A wrong value is an error wherever it stands, also one
that another source overrides: it would come into force on the day that the other is taken away.
What a setting does is the business of ``bridgecore.config`` and ``main``.
"""

from __future__ import annotations

import enum
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs

from bridgecore.config import Config, Continuity, OnAmbiguousLoss, Rotation, UpstreamUrl
from bridgecore.errors import BridgecoreError, ConfigError
from bridgecore.recovery.policy import POLICIES
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.wire.headers import check_forwarded

USAGE = 2  # exit code: a flag is wrong
CONFIGURATION = 78  # exit code: the environment, the file or the upstream's URL is wrong
NONE = "none"  # no file, where one can be named
EMULATOR = "emulator"  # the upstream that needs no key
AUTO = "auto"  # a number that follows from what the process may do
PREFIX = "BRIDGECORE_"

_SHORTEST = Decimal("0.001")  # seconds, as in Config
_LONGEST = 10**9  # seconds, some thirty years: beyond it a clock's arithmetic gets doubtful
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


_NOWHERE = UpstreamUrl.parse("ws://nowhere.invalid/")


class SettingsError(BridgecoreError):
    """A setting that cannot be used. The message, one line, says what is wrong and where."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@attrs.frozen
class Kind:
    """How a setting's value is read, from text or from what TOML makes of it.

    ``read`` raises ValueError with the rest of the sentence "VALUE ...".
    """

    metavar: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str] = str


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or " " in value:
        raise ValueError("is not a name without spaces")
    return value


def _one_of(*names: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError("is not one of " + ", ".join(names))
        return value

    return read


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _port(value: Any) -> int:
    number = _whole_number(value)
    if number is None or not 0 <= number <= 65535:
        raise ValueError("is not a port (0 to 65535)")
    return number


def _size(value: Any) -> int:
    number = _whole_number(value)
    if number is None or not 1 <= number < 10**15:
        raise ValueError("is not a size (a whole number of bytes, at least 1)")
    return number


def _limit(value: Any) -> int | None:
    """None for ``auto``."""
    if value == AUTO:
        return None
    number = _whole_number(value)
    if number is None or number < 1:
        raise ValueError(f"is not a whole number, at least 1, or {AUTO!r}")
    return number


def _seconds(value: Any) -> int:
    """Seconds, as ns. Decimal throughout: 0.1 s is 100,000,000 ns and not one less."""
    if isinstance(value, str):
        number = Decimal(value) if _NUMBER.fullmatch(value) else Decimal("NaN")
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        number = Decimal(value)
    else:
        number = Decimal("NaN")
    if not number.is_finite() or not _SHORTEST <= number <= _LONGEST:
        raise ValueError(f"is not a time (seconds, from {_SHORTEST} to {_LONGEST})")
    return int(number * NS_PER_SECOND)


def _upstream(value: Any) -> UpstreamUrl | None:
    """None for the emulator. What may be a secret in a URL is not repeated."""
    if value == EMULATOR:
        return None
    if not isinstance(value, str):
        raise ValueError(f"is not a ws:// or wss:// URL or {EMULATOR!r}")
    return UpstreamUrl.parse(value)


def _file(value: Any) -> str | None:
    """A path as the operating system takes it; None for ``none``."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("is not the name of a file")
    return None if value == NONE else value


def _header_names(value: Any) -> tuple[str, ...]:
    """Header names: a TOML list, or text with commas or spaces between them; ``none`` for none."""
    if isinstance(value, str):
        names: list[Any] = [] if value == NONE else value.replace(",", " ").split()
        valid = bool(names) or value == NONE
    else:
        names = value if isinstance(value, list) else []
        valid = isinstance(value, list) and all(isinstance(name, str) for name in names)
    if not valid:
        raise ValueError(f"is not a list of header names, or {NONE!r}")
    checked = []
    for name in names:
        try:
            checked.append(check_forwarded(name))
        except ValueError as exc:
            raise ValueError(f"has {name[:100]!r}, which {exc}") from None
    return tuple(dict.fromkeys(checked))


def _show_seconds(value: int) -> str:
    return f"{Decimal(value) / NS_PER_SECOND:f}"


TEXT = Kind("NAME", _text)
PORT = Kind("PORT", _port)
URL = Kind("URL", _upstream, lambda _: EMULATOR)
SECONDS = Kind("SECONDS", _seconds, _show_seconds)
SIZE = Kind("BYTES", _size)
HEADERS = Kind("NAMES", _header_names, lambda names: " ".join(names) or NONE)
LIMIT = Kind("N", _limit, lambda limit: AUTO if limit is None else str(limit))
FILE = Kind("FILE", _file, lambda path: path or NONE)


def _choice(*names: str) -> Kind:
    return Kind("|".join(names), _one_of(*names))


def _member_of(words: type[enum.Enum]) -> Kind:
    """One of the members of ``words``, by its value."""
    names = [word.value for word in words]
    read = _one_of(*names)
    return Kind("|".join(names), lambda value: words(read(value)), lambda word: word.value)


@attrs.frozen
class Setting:
    """A row of the table: its name with ``--`` and hyphens is the flag, with the prefix and in
    capitals the variable, as it is the TOML key, and, for most, the field of ``Config``."""

    name: str
    kind: Kind
    default: Any  # as ``kind.read`` returns it
    doc: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def _of_config(name: str, kind: Kind, doc: str) -> Setting:
    return Setting(name, kind, getattr(attrs.fields(Config), name).default, doc)


CORE = (
    _of_config("connect_timeout", SECONDS, "for TCP, TLS and upgrade together"),
    _of_config("created_timeout", SECONDS, "from the frame sent to response.created"),
    _of_config("idle_timeout", SECONDS, "between upstream events of a turn"),
    _of_config("turn_timeout", SECONDS, "for a whole turn, retries and waits included"),
    _of_config("head_timeout", SECONDS, "to hold the answer's head back for an early failure"),
    _of_config("keepalive", SECONDS, "of silence towards a client before something is sent"),
    _of_config("upstream_lifetime", SECONDS, "until a socket is replaced between turns"),
    _of_config("session_idle", SECONDS, "until an idle conversation gives up its socket"),
    _of_config("drain_timeout", SECONDS, "from the first signal to the end"),
    _of_config("header_timeout", SECONDS, "for a request head to be complete"),
    _of_config("body_timeout", SECONDS, "for a request body to be complete"),
    _of_config(
        "ambiguous", _member_of(OnAmbiguousLoss), "what becomes of a turn that may have run already"
    ),
    _of_config(
        "rotation", _member_of(Rotation), "what follows when a socket is given up for its age"
    ),
    _of_config(
        "continuity", _member_of(Continuity), "what is kept: conversations in memory, or ids alone"
    ),
    _of_config("transcript_bytes", SIZE, "of all conversations kept in memory, at most"),
    _of_config("transcript_scope_bytes", SIZE, "of those of one credential, at most"),
    _of_config("transcript_age", SECONDS, "until a conversation that nobody uses is forgotten"),
    _of_config("forward_headers", HEADERS, "of a request that go upstream, comma-separated"),
    Setting("max_sessions", LIMIT, None, "conversations with a session; idle ones give way"),
    _of_config("max_header", SIZE, "of a request head, at most"),
    _of_config("max_body", SIZE, "of a request body, at most"),
    _of_config("max_message", SIZE, "of one upstream message, at most"),
)

SETTINGS = (
    Setting("host", TEXT, "127.0.0.1", "address to listen on"),
    Setting("port", PORT, 8080, "port to listen on, 0 for any free one"),
    Setting("upstream", URL, None, f"ws:// or wss:// URL, or {EMULATOR!r} for the embedded one"),
    Setting("policy", _choice(*POLICIES), "default", "what to do about a lost socket"),
    Setting("backend", _choice("asyncio", "trio"), "asyncio", "event loop"),
    Setting(
        "log_level", _choice("debug", "info", "warning", "error"), "info", "least severe log line"
    ),
    Setting("decision_log", FILE, None, "file for what was decided, see bridgecore replay"),
    *CORE,
)


@attrs.frozen(kw_only=True)
class Settings:
    """What ``bridgecore serve`` was told, checked. ``upstream`` is None for the emulator."""

    host: str
    port: int
    upstream: UpstreamUrl | None
    policy: str
    backend: str
    log_level: str
    decision_log: str | None  # a file's path
    core: Mapping[str, Any]  # the fields of Config by name, in ns and bytes

    def config(self, upstream: UpstreamUrl, files: int | None) -> Config:
        """The bridge's configuration, with ``upstream`` in place of the emulator, for a process
        that may open ``files`` files (None: as many as it likes)."""
        core = dict(self.core)
        if core["max_sessions"] is None:
            core["max_sessions"] = sessions_for(files, emulator=self.upstream is None)
        return Config(
            upstream=upstream,
            policy=POLICIES[self.policy],
            decisions=self.decision_log is not None,
            **core,
        )


# Descriptors that are not for sessions: standard streams, the event loop's own, the listener, the
# decision log, look-ups of names, and clients that are to be told 503. A process that may open
# very few keeps a quarter for them.
_SPARE = 64


def sessions_for(files: int | None, *, emulator: bool) -> int:
    """How many conversations have room in a process that may open ``files`` files (None: as many
    as it likes).

    A session costs a client's socket and an upstream socket; the embedded emulator has the other
    end of that in the same process. Never more than the default of ``Config``.
    """
    most: int | None = attrs.fields(Config).max_sessions.default
    assert most is not None
    if files is None:
        return most
    room = files - min(_SPARE, files // 4)
    return max(1, min(most, room // (3 if emulator else 2)))


def load(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """Put flags, environment, file and defaults together; ``flags`` are by setting name.

    Raises:
        SettingsError: the first value that cannot be used, flags before the rest.
    """
    values = {setting.name: setting.default for setting in SETTINGS}
    given = {s.name: s for s in SETTINGS if flags.get(s.name) is not None}
    chosen = {n: _read(s, flags[n], s.flag, USAGE) for n, s in given.items()}
    path, path_from = flags.get("config"), "--config"
    if path is None:
        path, path_from = environ.get(PREFIX + "CONFIG"), PREFIX + "CONFIG"
    file = {} if path is None else _read_file(path, path_from)
    for setting in SETTINGS:  # the source that wins is read last
        if setting.name in file:
            where = f"{path}: {setting.name}"
            values[setting.name] = _read(setting, file[setting.name], where, CONFIGURATION)
        if (text := environ.get(setting.variable)) is not None:
            values[setting.name] = _read_variable(setting, text)
    values |= chosen
    core = {setting.name: values.pop(setting.name) for setting in CORE}
    settings = Settings(core=core, **values)
    try:
        settings.config(_NOWHERE, None)  # values that are right one by one need not go together
    except ConfigError as exc:
        by_flags = any(setting.name in given for setting in CORE)
        raise SettingsError(str(exc), USAGE if by_flags else CONFIGURATION) from None
    return settings


def _read_variable(setting: Setting, text: str) -> Any:
    try:
        return _read(setting, text, setting.variable, CONFIGURATION)
    except SettingsError as exc:
        if setting.kind is not PORT or "://" not in text:
            raise
        hint = "Kubernetes sets it for a Service of that name; enableServiceLinks: false ends that"
        raise SettingsError(f"{exc}; {hint}", CONFIGURATION) from None


def _read(setting: Setting, value: Any, where: str, exit_code: int) -> Any:
    try:
        return setting.kind.read(value)
    except ValueError as exc:
        if setting.kind is URL:  # its messages are whole sentences
            raise SettingsError(f"{where}: {_without_secrets(exc, value)}", CONFIGURATION) from None
        shown = repr(value) if isinstance(value, str | bool) else str(value)
        raise SettingsError(f"{where}: {shown[:100]} {exc}", exit_code) from None


def _without_secrets(exc: ValueError, url: object) -> str:
    """The message, unless the URL has a place where people put keys: then only what is safe."""
    if isinstance(url, str) and any(c in url for c in "@?#"):
        return "not a ws:// or wss:// URL without credentials (it is not repeated here)"
    return str(exc)


def _read_file(path: str, where: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            table = tomllib.load(file, parse_float=Decimal)
    except OSError as exc:
        raise SettingsError(f"{where}: cannot read {path}: {exc.strerror}", CONFIGURATION) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{where}: {path} is not UTF-8", CONFIGURATION) from None
    except (ValueError, ArithmeticError, RecursionError) as exc:
        message = " ".join(str(exc).split())
        raise SettingsError(f"{where}: {path} is not TOML: {message}", CONFIGURATION) from None
    unknown = sorted(table.keys() - {setting.name for setting in SETTINGS})
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise SettingsError(f"{where}: {path} has unknown keys: {names}", CONFIGURATION)
    return table
