"""The settings of ``bridgecore serve``, read from flags, environment variables and a TOML file.

What belongs here: the table of settings, from which the flags, the variables, the TOML keys and the
documentation are made; how a value is read; and which source has precedence (flag, environment,
file, default). A wrong value is an error even if another source overrides it, because it would
take effect as soon as that other source is removed. What a setting does is in ``bridgecore.config``
and ``bridgecore_cli.serve``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

import attrs

from bridgecore.config import (
    Config,
    Continuity,
    Fallback,
    HttpUrl,
    OnAmbiguousLoss,
    PeerUrl,
    Rotation,
    Store,
    UpstreamUrl,
)
from bridgecore.errors import ConfigError, did_you_mean
from bridgecore.recovery.policy import DEFAULT as DEFAULT_POLICY
from bridgecore.recovery.policy import POLICIES, Policy, is_named
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.transport import LogLevel
from bridgecore.wire.headers import allowed_origins, forwarded_names
from bridgecore.wire.passing import PASSED_PATHS, passed_paths
from bridgecore_cli.errors import CONFIGURATION, USAGE, SettingsError

U = TypeVar("U")

NONE = "none"  # value of a setting: no file, no headers
EMULATOR = "emulator"  # value of ``upstream``: the embedded emulator, which needs no API key
AUTO = "auto"  # value of a limit, a name or a URL: computed from what else is known
API = "api"  # value of ``pass_through``: all paths of the API that are known
MEMORY = "memory"  # value of ``store``: none
PREFIX = "BRIDGECORE_"

_SHORTEST = Decimal("0.001")  # seconds, as in Config
_LONGEST = 10**9  # seconds, about thirty years, as in Config
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


_HTTP_SCHEMES = "an http:// or https://"
_STORES = ("sqlite", "postgresql", "postgres", "valkey", "valkeys", "redis", "rediss")

# Stands in for the emulator's URL, unknown before it listens, while settings are checked together.
_NOWHERE = UpstreamUrl.parse("ws://nowhere.invalid/")


@attrs.frozen
class Kind:
    """The type of a setting: how its value is read and shown.

    ``metavar``: the placeholder in the help. ``read``: from text, or from the Python value that
    TOML has for it; raises ValueError, whose text continues "SOURCE: VALUE ...". ``show``: the
    value as text that ``read`` accepts.
    """

    metavar: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str] = str


class _SentenceError(ValueError):
    """Its text names what is wrong, so the value is not put before it."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or " " in value:
        raise ValueError("is not a name without spaces")
    return value


def _one_of(*names: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"is not one of {', '.join(names)}{did_you_mean(str(value), names)}")
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
    """A limit as a number; None for ``auto``."""
    if value == AUTO:
        return None
    number = _whole_number(value)
    if number is None or number < 1:
        raise ValueError(f"is not a whole number, at least 1, or {AUTO!r}")
    return number


def _seconds(value: Any) -> int:
    """Seconds as integer nanoseconds. Computed in Decimal, because a float of 0.1 is not exact."""
    if isinstance(value, str):
        number = Decimal(value) if _NUMBER.fullmatch(value) else Decimal("NaN")
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        number = Decimal(value)
    else:
        number = Decimal("NaN")
    if not number.is_finite() or not _SHORTEST <= number <= _LONGEST:
        raise ValueError(f"is not a time (seconds, from {_SHORTEST} to {_LONGEST})")
    return int(number * NS_PER_SECOND)


def _url_or(word: str, schemes: str, parse: Callable[[str], U]) -> Callable[[Any], U | None]:
    """A reader of URLs with ``parse``; ``word`` is read as None. ``schemes``: with which a URL may
    begin, in words."""

    def read(value: Any) -> U | None:
        if value == word:
            return None
        if not isinstance(value, str):
            raise ValueError(f"is not {schemes} URL or {word!r}")
        return parse(value)

    return read


def _store(value: Any) -> str:
    """The URL of a store, or ``memory``."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("is not a store")
    scheme, colon, rest = value.partition(":")
    if value != MEMORY and (scheme not in _STORES or not colon or not rest):
        raise ValueError("is not memory, sqlite:PATH, postgresql://... or valkey://...")
    if scheme == "sqlite" and "?" in rest:
        raise ValueError(
            "has query parameters, and sqlite: takes only the path of a file: leave out the "
            "question mark and what follows it"
        )
    return value


def _replica(value: Any) -> str | None:
    """The name of a replica; None for ``auto``."""
    return None if value == AUTO else _text(value)


def _file(value: Any) -> str | None:
    """A path as the operating system takes it; None for ``none``."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("is not the name of a file")
    return None if value == NONE else value


def _list(
    value: Any, what: str, words: dict[str, tuple[str, ...]], read: Callable[[Any], tuple[str, ...]]
) -> tuple[str, ...]:
    """The parts of a TOML list, or of text with commas or spaces between them, as ``read`` returns
    them; ``what`` they are. ``words``: a word for a whole list, and that list."""
    if isinstance(value, str) and value in words:
        return words[value]
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, list) or (isinstance(value, str) and not parts):
        raise ValueError(f"is not a list of {what}, or " + " or ".join(map(repr, words)))
    try:
        return read(parts)
    except ValueError as exc:
        raise _SentenceError(str(exc)) from None  # it names the part, mostly the only one


def _header_names(value: Any) -> tuple[str, ...]:
    return _list(value, "header names", {NONE: ()}, forwarded_names)


def _paths(value: Any) -> tuple[str, ...]:
    return _list(value, "paths below /v1", {API: PASSED_PATHS, NONE: ()}, passed_paths)


def _origins(value: Any) -> tuple[str, ...]:
    return _list(value, "origins", {NONE: ()}, allowed_origins)


def _policy(value: Any) -> Policy:
    """A policy by name; of a module or a file; or from the table of the configuration file."""
    if isinstance(value, str):
        if value in POLICIES:
            return POLICIES[value]

        from bridgecore_cli.policies import load_policy  # for policies of one's own only

        return load_policy(value)
    if isinstance(value, Mapping):
        from bridgecore.recovery.policy_table import policy_from

        return policy_from(value)
    raise ValueError(f"{value} is no policy: neither a text nor a table")


def _flag(value: Any) -> bool:
    """True or False: a TOML boolean, or its text."""
    known = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in known:
        raise ValueError("is not true or false")
    return known[value]


def _show_paths(paths: tuple[str, ...]) -> str:
    return API if paths == PASSED_PATHS else " ".join(paths) or NONE


def _show_seconds(value: int) -> str:
    return f"{Decimal(value) / NS_PER_SECOND:f}"


TEXT = Kind("NAME", _text)
PORT = Kind("PORT", _port)
URL = Kind(
    "URL",
    _url_or(EMULATOR, "a ws://, wss://, http:// or https://", UpstreamUrl.parse),
    lambda _: EMULATOR,
)
HTTP = Kind("URL", _url_or(AUTO, _HTTP_SCHEMES, HttpUrl.parse), lambda _: AUTO)
FLAG = Kind("true|false", _flag, lambda value: str(value).lower())
POLICY = Kind("NAME|MODULE:ATTR|FILE.toml", _policy, lambda policy: policy.name)
PATHS = Kind("PATHS", _paths, _show_paths)
SECONDS = Kind("SECONDS", _seconds, _show_seconds)
SIZE = Kind("BYTES", _size)
ORIGINS = Kind("ORIGINS", _origins, lambda names: " ".join(names) or NONE)
HEADERS = Kind("NAMES", _header_names, lambda names: " ".join(names) or NONE)
PEER = Kind("URL", _url_or(NONE, _HTTP_SCHEMES, PeerUrl.parse), lambda url: str(url or NONE))
STORE = Kind("URL", _store, lambda _: MEMORY)
REPLICA = Kind("NAME", _replica, lambda name: name or AUTO)
LIMIT = Kind("N", _limit, lambda limit: AUTO if limit is None else str(limit))
FILE = Kind("FILE", _file, lambda path: path or NONE)


def _choice(*names: str) -> Kind:
    return Kind("|".join(names), _one_of(*names))


def _member_of(words: type[enum.Enum]) -> Kind:
    """The kind of a setting whose values are the members of ``words``, written by their values."""
    names = [word.value for word in words]
    read = _one_of(*names)
    return Kind("|".join(names), lambda value: words(read(value)), lambda word: word.value)


@attrs.frozen
class Setting:
    """One setting. ``name`` is its TOML key and, for those of ``CORE``, the field of ``Config``.

    ``default``: as ``kind.read`` returns it. ``doc``: what is set, one line for the help and for
    the table in README.md and docs/operating.rst, which ``make generate`` writes; code in
    backquotes. With a kind that has a unit it continues that unit: "SECONDS for a turn".
    """

    name: str
    kind: Kind
    default: Any
    doc: str

    @property
    def flag(self) -> str:
        """The flag: ``--created-timeout``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable: ``BRIDGECORE_CREATED_TIMEOUT``."""
        return PREFIX + self.name.upper()


def _of_config(name: str, kind: Kind, doc: str) -> Setting:
    return Setting(name, kind, getattr(attrs.fields(Config), name).default, doc)


CORE = (
    _of_config("connect_timeout", SECONDS, "for TCP, TLS and the WebSocket upgrade together"),
    _of_config(
        "created_timeout",
        SECONDS,
        "from sending a turn to `response.created`; while a large turn is sent, from one part of "
        "it to the next",
    ),
    _of_config(
        "idle_timeout",
        SECONDS,
        "between two upstream events of a turn, while the upstream answers pings: reasoning "
        "models are silent for minutes",
    ),
    _of_config("turn_timeout", SECONDS, "for a whole turn, retries and waits included"),
    _of_config(
        "head_timeout",
        SECONDS,
        "to hold back the head of an answer, so that an early failure still gets its own status",
    ),
    _of_config("keepalive", SECONDS, "of silence on a stream before a keepalive is sent"),
    _of_config(
        "upstream_lifetime",
        SECONDS,
        "until an upstream connection is replaced, between two turns and before the provider "
        "closes it",
    ),
    _of_config("session_idle", SECONDS, "until an unused conversation closes its connection"),
    _of_config("drain_timeout", SECONDS, "from the first signal to the end of the process"),
    _of_config("header_timeout", SECONDS, "for a request head to be complete"),
    _of_config("body_timeout", SECONDS, "for a request body to be complete"),
    _of_config(
        "ambiguous",
        _member_of(OnAmbiguousLoss),
        "what to do about a turn that was lost when it may have run already: refuse it as "
        "retriable (`refuse`), or send it again (`replay`)",
    ),
    _of_config(
        "fallback",
        _member_of(Fallback),
        "what to do where the upstream refuses a WebSocket (with 404, 405, 426 or 501), or a "
        "message for its size on one: refuse the turn (`none`), or send it over HTTP (`http`)",
    ),
    _of_config(
        "rotation",
        _member_of(Rotation),
        "when to replace a connection that was closed for its age: with the next turn (`lazy`), "
        "or at once, preloaded with the context (`warm`)",
    ),
    _of_config(
        "continuity",
        _member_of(Continuity),
        "what to keep of a conversation: its items, in memory (`transcript`), or only ids "
        "(`passthrough`)",
    ),
    _of_config("transcript_bytes", SIZE, "of all transcripts together, at most"),
    _of_config("transcript_scope_bytes", SIZE, "of the transcripts of one credential, at most"),
    _of_config("transcript_age", SECONDS, "until an unused transcript is forgotten"),
    _of_config(
        "forward_headers",
        HEADERS,
        "request headers to send upstream: names with commas or spaces between them, in TOML a "
        "list; `none` for none",
    ),
    _of_config(
        "upstream_http",
        HTTP,
        "base of the upstream's HTTP API, such as `https://api.openai.com/v1`, for requests other "
        "than `POST /v1/responses`; `auto`: `upstream` over HTTP, without its `/responses`",
    ),
    _of_config(
        "pass_through",
        PATHS,
        "paths below `/v1` that are passed through to `upstream_http`, with all below them: with "
        "commas or spaces between them, in TOML a list; `api` for those of OpenAI's API, `none` "
        "for none",
    ),
    _of_config(
        "websocket",
        FLAG,
        "whether clients may speak WebSocket mode on `/v1/responses`, too; otherwise an upgrade is "
        "answered with 426",
    ),
    _of_config(
        "websocket_idle", SECONDS, "until a client's WebSocket without a turn is closed (1001)"
    ),
    _of_config(
        "websocket_lifetime",
        SECONDS,
        "after which a client's WebSocket is closed (1001), once no turn runs",
    ),
    _of_config(
        "websocket_origins",
        ORIGINS,
        "web pages that may open WebSockets: origins with commas or spaces between them, in TOML a "
        "list; `none` for none. Programs send no origin",
    ),
    _of_config(
        "metrics",
        FLAG,
        "whether `GET /metrics` answers what is counted, in the text format of Prometheus, to "
        "everyone who reaches the port",
    ),
    Setting(
        "max_sessions",
        LIMIT,
        None,
        "conversations with a session; for a new one the longest idle one is closed; `auto`: "
        "10,000, or fewer where the process may open few files",
    ),
    _of_config("max_header", SIZE, "of a request head, at most"),
    _of_config(
        "max_body",
        SIZE,
        "of a request body, at most, both compressed and decompressed; not of one that is passed "
        "through, which is not kept",
    ),
    _of_config("max_message", SIZE, "of one upstream message, at most"),
    _of_config(
        "lease_ttl",
        SECONDS,
        "that this replica owns its conversations without renewing its lease in the store",
    ),
    _of_config(
        "lease_margin", SECONDS, "by which it stops earlier, by its own clock, than the store says"
    ),
    _of_config("store_timeout", SECONDS, "for one operation of the store"),
)

SETTINGS = (
    Setting("host", TEXT, "127.0.0.1", "address to listen on"),
    Setting(
        "port",
        PORT,
        8080,
        "port to listen on; 0 picks a free one, which the first line of output names",
    ),
    Setting(
        "upstream",
        URL,
        None,
        "`ws://` or `wss://` URL of a WebSocket, `http://` or `https://` base URL of an API that "
        "has none, or `emulator` for the embedded one",
    ),
    Setting(
        "policy",
        POLICY,
        DEFAULT_POLICY,
        "what to do about lost connections: `default`, `pr397`, `v1_12`, or a policy of your own, "
        "as `MODULE:ATTR`, as a TOML file, or as a table `[policy]` of the configuration file; "
        "`bridgecore rules` prints each",
    ),
    Setting(
        "verify",
        FLAG,
        True,
        "whether a policy of your own is checked when the bridge starts: each property that it "
        "breaks is a warning in the log; `--no-verify` to skip it",
    ),
    Setting(
        "backend",
        _choice("asyncio", "trio"),
        "asyncio",
        "event loop; `trio` is installed with the extra `trio`",
    ),
    Setting(
        "loop",
        _choice("asyncio", "uvloop"),
        "asyncio",
        "implementation of the event loop of the backend `asyncio`; `uvloop` takes less CPU time, "
        "and is installed with the extra `uvloop`",
    ),
    Setting(
        "workers",
        LIMIT,
        1,
        "processes that serve together, each a replica over the `store`; `auto`: one for each core",
    ),
    Setting(
        "log_level",
        _choice("debug", "info", "warning", "error"),
        "info",
        "least severe log line that is written",
    ),
    Setting(
        "decision_log",
        FILE,
        None,
        "file to which every decision is appended, for `bridgecore replay`",
    ),
    Setting(
        "store",
        STORE,
        MEMORY,
        "where responses are kept for other replicas and the time after a restart: `memory` (no "
        "other process, no restart), `sqlite:PATH`, `postgresql://...` or `valkey://...`",
    ),
    Setting(
        "replica",
        REPLICA,
        None,
        "name of this process, unique among those that share a store; `auto`: the host's name and "
        "a random suffix",
    ),
    Setting(
        "cluster_keys",
        FILE,
        None,
        "file of secrets, one a line, newest first, that encrypt what is stored and sign what is "
        "forwarded; required with a "
        "store other than `memory`",
    ),
    Setting(
        "advertise",
        PEER,
        None,
        "`http://HOST:PORT` at which other replicas reach this one, to forward turns of its "
        "conversations; the port is listened on, too, at the address `host`",
    ),
    Setting(
        "cluster_certificate",
        FILE,
        None,
        "file with a certificate and its private key (PEM) for `advertise` with `https://`",
    ),
    *CORE,
)


GROUPS: Mapping[str, tuple[str, ...]] = {
    "where to listen, and the upstream": (
        *("host", "port", "upstream", "upstream_http", "pass_through", "forward_headers"),
    ),
    "lost connections": ("policy", "verify", "ambiguous", "fallback", "rotation"),
    "what is kept of conversations": (
        *("continuity", "transcript_bytes", "transcript_scope_bytes", "transcript_age"),
        "max_sessions",
    ),
    "time limits": (
        *("connect_timeout", "created_timeout", "idle_timeout", "turn_timeout", "head_timeout"),
        *("keepalive", "upstream_lifetime", "session_idle", "drain_timeout", "header_timeout"),
        "body_timeout",
    ),
    "sizes": ("max_header", "max_body", "max_message"),
    "clients that speak WebSocket mode": (
        *("websocket", "websocket_idle", "websocket_lifetime", "websocket_origins"),
    ),
    "the process and its logs": (
        *("backend", "loop", "workers", "log_level", "decision_log", "metrics"),
    ),
    "several replicas, and restarts": (
        *("store", "replica", "cluster_keys", "advertise", "cluster_certificate"),
        *("lease_ttl", "lease_margin", "store_timeout"),
    ),
}
"""The names of the settings by subject, in the order of the help."""


@attrs.frozen(kw_only=True)
class Settings:
    """The checked settings of one ``bridgecore serve``. ``upstream``: None for the emulator."""

    host: str
    port: int
    upstream: UpstreamUrl | None
    policy: Policy
    verify: bool
    backend: str
    loop: str
    workers: int | None  # None: one for each core
    log_level: str
    decision_log: str | None  # a file's path
    store: str  # a URL, or ``MEMORY``
    replica: str | None  # None: a name is made
    cluster_keys: str | None  # a file's path
    advertise: PeerUrl | None
    cluster_certificate: str | None  # a file's path
    core: Mapping[str, Any]  # the fields of Config by name, in ns and bytes

    def config(
        self,
        upstream: UpstreamUrl,
        files: int | None,
        replica: str,
        secrets: tuple[bytes, ...] = (),
    ) -> Config:
        """The configuration of the bridge.

        Args:
            upstream: the URL to connect to; the embedded emulator's once it listens.
            files: how many files the process may open, None for no limit.
            replica: the name of this process among those that share a store.
            secrets: those in ``cluster_keys``.
        """
        core = dict(self.core)
        # No setting of the command: a policy's own number counts.
        core["max_waiting"] = self.policy.budgets.waiting
        if core["max_sessions"] is None:
            core["max_sessions"] = sessions_for(files, emulator=self.upstream is None)
        return Config(
            upstream=upstream,
            policy=self.policy,
            decisions=self.decision_log is not None,
            log_level=LogLevel[self.log_level.upper()],
            store=Store.MEMORY if self.store == MEMORY else Store.DRIVER,
            replica=replica,
            advertise=self.advertise,
            cluster_secrets=secrets,
            **core,
        )


# Descriptors reserved for other uses than sessions: standard streams, the event loop, the listener,
# the decision log, name look-ups, and clients that are refused with 503. A process that may open
# very few files reserves a quarter of them.
_SPARE = 64


def sessions_for(files: int | None, *, emulator: bool) -> int:
    """``max_sessions`` for a process that may open ``files`` files (None: no limit).

    A session needs two descriptors, one for its client and one for its upstream connection, and
    three if the embedded emulator holds the other end of the latter in the same process. At most
    the default of ``Config``.
    """
    most: int | None = attrs.fields(Config).max_sessions.default
    assert most is not None
    if files is None:
        return most
    room = files - min(_SPARE, files // 4)
    return max(1, min(most, room // (3 if emulator else 2)))


DEFAULT = "default"  # the source of a setting that no source has


@attrs.frozen
class Chosen:
    """The value of a setting that counts, as ``Kind.read`` returns it, and where it came from: a
    flag, a variable, a key of a file, or ``DEFAULT``. ``given``: as it was written there."""

    value: Any
    source: str = DEFAULT
    given: Any = None


def load(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """The settings from all sources. ``flags``: by name of the setting, None if not given.

    Raises:
        SettingsError: for the first value that cannot be used; flags are read first.
    """
    return checked(read_sources(flags, environ))


def read_sources(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> dict[str, Chosen]:
    """What counts for each setting, by its name; each value by itself is valid.

    Raises:
        SettingsError: for the first value that cannot be used; flags are read first.
    """
    chosen = {setting.name: Chosen(setting.default) for setting in SETTINGS}
    by_flag = {
        s.name: Chosen(_read(s, flags[s.name], s.flag, USAGE), s.flag, flags[s.name])
        for s in SETTINGS
        if flags.get(s.name) is not None
    }
    path, path_from = flags.get("config"), "--config"
    if path is None:
        path, path_from = environ.get(PREFIX + "CONFIG"), PREFIX + "CONFIG"
    file = {} if path is None else _read_file(path, path_from)
    for setting in SETTINGS:  # in order of precedence, the lowest first
        name = setting.name
        if name in file:
            value = _read(setting, file[name], f"{path}: {name}", CONFIGURATION)
            chosen[name] = Chosen(value, f"{path}", file[name])
        if (text := environ.get(setting.variable)) is not None:
            chosen[name] = Chosen(_read_variable(setting, text), setting.variable, text)
    return chosen | by_flag


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables that begin like those of settings and are none: probably misspelled."""
    known = {PREFIX + "CONFIG", *(setting.variable for setting in SETTINGS)}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def checked(chosen: Mapping[str, Chosen]) -> Settings:
    """The settings, after a check that they do not contradict each other.

    Raises:
        SettingsError: they do.
    """
    given = {name for name, each in chosen.items() if each.source.startswith("--")}
    values = {name: each.value for name, each in chosen.items()}
    core = {setting.name: values.pop(setting.name) for setting in CORE}
    settings = Settings(core=core, **values)
    alone = settings.store == MEMORY or settings.cluster_keys is None
    if settings.advertise is not None and alone:  # as Config says it, of the names here
        raise SettingsError(
            "advertise is for replicas that share a store, and what they forward is signed: it "
            "needs a store other than memory, and cluster_keys",
            USAGE if "advertise" in given else CONFIGURATION,
        )
    try:
        # Finds values that contradict each other. The secrets are read when the store is opened.
        secrets = () if settings.cluster_keys is None else (b"",)
        settings.config(_NOWHERE, None, AUTO, secrets)
    except ConfigError as exc:
        by_flags = "advertise" in given or any(setting.name in given for setting in CORE)
        raise SettingsError(str(exc), USAGE if by_flags else CONFIGURATION) from None
    if not is_named(settings.policy):
        _require_servable(settings.policy, USAGE if "policy" in given else CONFIGURATION)
    if settings.store != MEMORY and settings.cluster_keys is None:
        raise SettingsError(
            "store: what is stored is encrypted, so cluster_keys must name a file with a secret, "
            "for example one that `openssl rand -hex 32` has written",
            CONFIGURATION,
        )
    url = settings.advertise
    if (url is not None and url.tls) is not (settings.cluster_certificate is not None):
        raise SettingsError(
            "cluster_certificate: a certificate is needed for, and only for, an advertise that "
            "begins with https://",
            USAGE if {"advertise", "cluster_certificate"} & given else CONFIGURATION,
        )
    return settings


def _require_servable(policy: Policy, exit_code: int) -> None:
    from bridgecore_cli.policies import require_servable

    try:
        require_servable(policy)
    except ConfigError as exc:
        raise SettingsError(str(exc), exit_code) from None


def _read_variable(setting: Setting, text: str) -> Any:
    try:
        return _read(setting, text, setting.variable, CONFIGURATION)
    except SettingsError as exc:
        if setting.kind is not PORT or "://" not in text:
            raise
        hint = (
            "Kubernetes sets this variable for a Service named bridgecore: rename the Service or "
            "set enableServiceLinks: false"
        )
        raise SettingsError(f"{exc}; {hint}", CONFIGURATION) from None


def _read(setting: Setting, value: Any, where: str, exit_code: int) -> Any:
    try:
        return setting.kind.read(value)
    except ValueError as exc:
        if setting.kind is POLICY:  # whole sentences
            if isinstance(value, Mapping):  # with a place that begins with the setting's name
                where = where.removesuffix(f": {setting.name}")
            raise SettingsError(f"{where}: {exc}", exit_code) from None
        if setting.kind is STORE:  # a URL may hold a password
            raise SettingsError(f"{where}: the value {exc}", CONFIGURATION) from None
        if setting.kind in _URLS and isinstance(exc, ConfigError):
            # Whole sentences about a URL, which may hold a secret.
            said = _without_secrets(exc, value).removeprefix(f"{_URLS[setting.kind]} ")
            code = exit_code if setting.kind is PEER else CONFIGURATION
            raise SettingsError(f"{where}: {said}", code) from None
        if setting.kind in (URL, HTTP):
            exit_code = CONFIGURATION
        if isinstance(exc, _SentenceError):
            raise SettingsError(f"{where}: {exc}", exit_code) from None
        shown = repr(value) if isinstance(value, str | bool) else str(value)
        raise SettingsError(f"{where}: {shown[:100]} {exc}", exit_code) from None


# What the errors of a URL begin with: the source of the value is named instead.
_URLS: Mapping[Kind, str] = {URL: "upstream URL", HTTP: "upstream_http", PEER: "advertise"}


def _without_secrets(exc: ValueError, url: object) -> str:
    """The message; a general one if the URL has a part that may be a key, which is not logged."""
    if isinstance(url, str) and any(c in url for c in "@?#"):
        return "not a URL without credentials, of the form that is needed (it is not repeated here)"
    return str(exc)


def _read_file(path: str, where: str) -> dict[str, Any]:
    from bridgecore_cli.configfile import read_file

    table = read_file(path, f"{where}: ")
    known = [setting.name for setting in SETTINGS]
    unknown = sorted(table.keys() - set(known))
    if unknown:
        names = ", ".join(map(repr, unknown))
        meant = did_you_mean(unknown[0], known)
        raise SettingsError(f"{where}: {path} has unknown keys: {names}{meant}", CONFIGURATION)
    return table
