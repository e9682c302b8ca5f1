"""The settings of a bridge: ``Config``, its defaults and its validation.

What belongs here: values and their checks. Durations are integer nanoseconds, sizes bytes. An
invalid value raises ``ConfigError`` when the object is built, not when it is first used.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

import attrs

from bridgecore.errors import ConfigError
from bridgecore.recovery.policy import DEFAULT, Policy, Timeouts, falling_back, replaying
from bridgecore.recovery.policy_table import require_possible
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.telemetry import LogLevel
from bridgecore.wire.headers import FORWARDED_HEADERS, allowed_origins, forwarded_names
from bridgecore.wire.passing import PASSED_PATHS, passed_paths

_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}
_PEER_PORTS = {"http": 80, "https": 443}
_RESPONSES = "/responses"


@attrs.frozen
class UpstreamUrl:
    """The URL at which the upstream takes turns, parsed. Build it with ``parse``."""

    host: str
    port: int
    tls: bool
    target: str  # path and query, as requests send them
    authority: str  # the Host header's value
    http: bool = False  # over HTTP only; otherwise by WebSocket

    @classmethod
    def parse(cls, url: str) -> UpstreamUrl:
        """Parse ``ws://host[:port]/path`` or ``wss://...``, the URL of a WebSocket; or
        ``http://host[:port]/path`` or ``https://...``, the base URL of the API, as clients have it,
        with or without ``/responses`` at its end.

        Raises:
            ConfigError: ``url`` cannot be used; the message says why.
        """
        parts, port = _split(url, "upstream URL", _PORTS)
        if parts.username is not None or parts.password is not None:
            raise ConfigError("upstream URL must not carry credentials: clients send their own")
        if parts.fragment:
            raise ConfigError(
                f"upstream URL {url!r} must not have a fragment: no request carries one"
            )
        if port == 0:
            raise ConfigError(f"upstream URL {url!r}: port must be 1 to 65535")
        http = parts.scheme in _PEER_PORTS
        target = parts.path or "/"
        if http:
            target = target.rstrip("/").removesuffix(_RESPONSES) + _RESPONSES
        if parts.query:
            target += "?" + parts.query
        return cls(
            host=parts.hostname or "",
            port=port,
            tls=parts.scheme in ("wss", "https"),
            target=target,
            authority=parts.netloc,
            http=http,
        )


@attrs.frozen
class HttpUrl:
    """The base of the upstream's HTTP API, such as ``https://api.openai.com/v1``, parsed. Build it
    with ``parse``."""

    host: str
    port: int
    tls: bool
    path: str  # without a slash at its end; empty for none
    query: str  # goes with each request, such as the api-version of Azure
    authority: str  # the Host header's value

    @classmethod
    def parse(cls, url: str) -> HttpUrl:
        """Parse ``http://host[:port]/path`` or ``https://...``.

        Raises:
            ConfigError: ``url`` cannot be used; the message says why.
        """
        parts, port = _split(url, "upstream_http", _PEER_PORTS)
        if parts.username is not None or parts.password is not None:
            raise ConfigError("upstream_http must not carry credentials: clients send their own")
        if parts.fragment:
            raise ConfigError(f"upstream_http {url!r} must not have a fragment")
        if port == 0:
            raise ConfigError(f"upstream_http {url!r}: port must be 1 to 65535")
        return cls(
            host=parts.hostname or "",
            port=port,
            tls=parts.scheme == "https",
            path=parts.path.rstrip("/"),
            query=parts.query,
            authority=parts.netloc,
        )

    @classmethod
    def beside(cls, upstream: UpstreamUrl) -> HttpUrl:
        """The base whose ``/responses`` is ``upstream``: the same host and path over HTTP."""
        path, _, query = upstream.target.partition("?")
        path = path.rstrip("/").removesuffix("/responses").rstrip("/")
        return cls(upstream.host, upstream.port, upstream.tls, path, query, upstream.authority)


@attrs.frozen
class PeerUrl:
    """The URL at which other replicas reach this one, parsed. Build it with ``parse``."""

    host: str
    port: int  # 0 in a setting: the system chooses one
    tls: bool

    @classmethod
    def parse(cls, url: str) -> PeerUrl:
        """Parse ``http://host:port`` or ``https://...``.

        Raises:
            ConfigError: ``url`` cannot be used; the message says why.
        """
        parts, port = _split(url, "advertise", _PEER_PORTS)
        if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise ConfigError(f"advertise {url!r} must have the form http://host:port")
        return cls(parts.hostname or "", port, parts.scheme == "https")

    @property
    def authority(self) -> str:
        """The host and the port as a Host header has them, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def _split(url: str, what: str, ports: Mapping[str, int]) -> tuple[SplitResult, int]:
    """The parts of ``url`` and its port, that of its scheme in ``ports`` if it names none.

    Raises:
        ConfigError: it has another scheme, no host, or cannot be read. ``what``: begins the text.
    """
    if not isinstance(url, str):
        raise ConfigError(f"{what} must be a str, not {_a(url)}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"{what} {url!r}: {exc}") from None
    if parts.scheme not in ports:
        schemes = " or ".join(f"{scheme}://" for scheme in ports)
        raise ConfigError(f"{what} {url!r} must begin with {schemes}")
    if not parts.hostname:
        raise ConfigError(f"{what} {url!r} names no host")
    if any(c <= " " or c >= "\x7f" for c in url):
        raise ConfigError(f"{what} {url!r} has characters that a URL cannot have")
    return parts, ports[parts.scheme] if port is None else port


class Continuity(enum.Enum):
    """What the bridge keeps in memory of a conversation."""

    TRANSCRIPT = "transcript"  # its items: after a loss they are sent on a new connection
    PASSTHROUGH = "passthrough"  # only ids: after a loss only stored responses can be continued


class Store(enum.Enum):
    """Where responses are kept so that they can be continued."""

    MEMORY = "memory"  # only in the memory of this process: a restart forgets them
    # also by the driver, in a store that replicas share: ``AskStore``, answered by
    # ``StoreAnswered``
    DRIVER = "driver"


class OnAmbiguousLoss(enum.Enum):
    """What to do about a turn whose connection was lost when the upstream may have received it."""

    REFUSE = "refuse"  # refuse it as retriable: the client decides whether to run it again
    REPLAY = "replay"  # send it again, within the policy's budget: it may run twice


class Fallback(enum.Enum):
    """What to do where the upstream refuses a WebSocket, or a message for its size on one."""

    NONE = "none"  # refuse the turn
    HTTP = "http"  # send it over HTTP


class Rotation(enum.Enum):
    """When to replace a connection that was closed for its age."""

    LAZY = "lazy"  # with the next turn, which then sends the whole context
    WARM = "warm"  # at once, preloaded with the context (``generate: false``)


# Bounds of a duration, ns. A value below 1 ms was probably meant as seconds or milliseconds; one of
# more than about thirty years would not fit into the clocks of event loops.
_SHORTEST = NS_PER_SECOND // 1000
_LONGEST = 10**9 * NS_PER_SECOND
_LARGEST = 10**15 - 1  # bytes or a count: more than any machine has


def _header_names(value: Iterable[str]) -> tuple[str, ...]:
    return _list("forward_headers", "header names", value, forwarded_names)


def _passed_paths(value: Iterable[str]) -> tuple[str, ...]:
    return _list("pass_through", "paths below /v1", value, passed_paths)


def _origins(value: Iterable[str]) -> tuple[str, ...]:
    return _list("websocket_origins", "origins", value, allowed_origins)


def _list(
    name: str,
    what: str,
    value: Iterable[object],
    read: Callable[[Iterable[object]], tuple[str, ...]],
) -> tuple[str, ...]:
    """``value`` of the setting ``name``, as ``read`` returns it. Raises ConfigError if it is no
    list, or if ``read`` raises ValueError."""
    # A str is an iterable, too, but of single letters.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list of {what}, not {value!r:.100}")
    try:
        return read(value)
    except ValueError as exc:
        raise ConfigError(f"{name}: {exc}") from None


def _seconds(count: int) -> int:
    """A field of ``Config`` for a duration; ``count``: its default in seconds, stored as ns."""
    return attrs.field(default=count * NS_PER_SECOND, metadata={"unit": "ns"})


def _check(field: attrs.Attribute[Any], value: object) -> None:
    """Raise ``ConfigError`` unless ``value`` has the type of the default of ``field`` and, if it is
    a number, is within the bounds of its unit."""
    name, default = field.name, field.default
    if name == "upstream":
        if not isinstance(value, UpstreamUrl):
            # The value is not shown: it may be a URL with a secret in it.
            what = f"an UpstreamUrl, not {_a(value)}: use UpstreamUrl.parse('wss://...')"
            raise ConfigError(f"upstream must be {what}")
    elif name == "upstream_http":
        if not isinstance(value, HttpUrl | None):
            what = f"an HttpUrl, not {_a(value)}: use HttpUrl.parse('https://...')"
            raise ConfigError(f"upstream_http must be {what}")
    elif name == "advertise":
        if not isinstance(value, PeerUrl | None):
            what = f"a PeerUrl, not {_a(value)}: use PeerUrl.parse('http://...')"
            raise ConfigError(f"advertise must be {what}")
    elif name == "cluster_secrets":
        if not isinstance(value, tuple) or any(not isinstance(each, bytes) for each in value):
            raise ConfigError("cluster_secrets must be a tuple of bytes")
    elif name == "policy":
        if not isinstance(value, Policy):
            what = f"a Policy such as bridgecore.DEFAULT, not {value!r:.100}"
            raise ConfigError(f"policy must be {what}")
        require_possible(value)
    elif type(default) is str:
        if not isinstance(value, str) or not value:
            _refuse(name, value, "must be a text that is not empty")
    elif field.metadata.get("unit") == "ns":
        if type(value) is not int:
            _refuse(name, value, "is no duration: give whole nanoseconds, an int", in_ns=True)
        if not _SHORTEST <= value <= _LONGEST:
            what = "is no duration between 1 ms and 10**9 s in nanoseconds"
            _refuse(name, value, what, in_ns=True)
    elif type(default) is int:
        least = field.metadata.get("least", 1)
        if type(value) is not int or not least <= value <= _LARGEST:
            _refuse(name, value, f"is no whole number between {least} and {_LARGEST:,}")
    elif isinstance(default, enum.Enum):
        if not isinstance(value, type(default)):
            names = ", ".join(map(str, type(default)))
            _refuse(name, value, f"must be one of {names}")
    elif isinstance(default, bool) and not isinstance(value, bool):
        _refuse(name, value, "must be True or False")


def _refuse(name: str, value: Any, why: str, *, in_ns: bool = False) -> NoReturn:
    hint = ""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if in_ns and number and 0 < value < _SHORTEST:
        hint = f"; {value:g} seconds are int({value:g} * bridgecore.NS_PER_SECOND)"
    raise ConfigError(f"{name}={value!r:.100} {why}{hint}")


def _in_seconds(ns: int) -> str:
    """A duration as users give it: ``1.5 s``."""
    return f"{Decimal(ns) / NS_PER_SECOND:f} s"


def _a(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


@attrs.frozen(kw_only=True)
class Config:
    """The settings of a bridge. Names and defaults are those of the command line.

    Durations are integer nanoseconds (``NS_PER_SECOND`` of them are a second), sizes bytes.

    Raises:
        ConfigError: a value has a wrong type or is out of bounds. A duration below 1 ms is out of
            bounds, because it was probably given in seconds. Or ``policy`` has a cell that no
            bridge can carry out, such as a rehydration of what the bridge does not hold.
    """

    upstream: UpstreamUrl
    policy: Policy = DEFAULT

    connect_timeout: int = _seconds(10)  # TCP, TLS and upgrade together
    created_timeout: int = _seconds(60)  # from sending a turn's frame to response.created
    idle_timeout: int = _seconds(1200)  # between two upstream events of a turn
    turn_timeout: int = _seconds(3600)  # a whole turn, retries and waits included
    head_timeout: int = _seconds(15)  # how long the answer's head is held back
    keepalive: int = _seconds(15)  # silence on a stream before a keepalive
    upstream_lifetime: int = _seconds(3300)  # age at which a connection is replaced
    session_idle: int = _seconds(900)  # until an idle conversation closes its link
    drain_timeout: int = _seconds(30)  # from the first signal to the end
    header_timeout: int = _seconds(10)  # until a request head must be complete
    body_timeout: int = _seconds(60)  # until a request body must be complete

    ambiguous: OnAmbiguousLoss = OnAmbiguousLoss.REFUSE
    # Over HTTP a turn is sent with its whole context, unless its context is stored upstream.
    fallback: Fallback = Fallback.NONE
    rotation: Rotation = Rotation.LAZY
    continuity: Continuity = Continuity.TRANSCRIPT
    transcript_bytes: int = 256 * 1024 * 1024  # all transcripts together
    # The transcripts of one credential. Less than all, so that no tenant can evict every other's.
    transcript_scope_bytes: int = 128 * 1024 * 1024
    transcript_age: int = _seconds(21_600)  # until an unused transcript is forgotten

    store: Store = Store.MEMORY
    replica: str = "replica"  # the name of this process, unique among those that share the store
    lease_ttl: int = _seconds(15)  # how long this replica owns its conversations without renewal
    lease_margin: int = _seconds(3)  # how much earlier it stops, by its own clock
    store_timeout: int = _seconds(2)  # one question to the store
    # Where other replicas reach this one, to forward turns of its conversations to it. None: they
    # cannot, and their clients have to wait until it gives a conversation back.
    advertise: PeerUrl | None = None
    # Sign what is forwarded, the newest first. Empty: nothing is forwarded.
    cluster_secrets: tuple[bytes, ...] = attrs.field(default=(), repr=False)

    max_header: int = 65_536  # bytes of a request head
    # Bytes of a request body that is read here: those of turns, but not one that is passed through,
    # of which no more is in memory than one read.
    max_body: int = 64 * 1024 * 1024
    max_message: int = 16 * 1024 * 1024  # bytes of one upstream message

    # Whether tenants have one credential at the upstream, which then does not keep them apart: an
    # application that authenticates clients itself may send all turns with a key of its own. Only
    # what this bridge knows to be of a tenant may be named then. See ``bridgecore.tenancy``.
    shared_credential: bool = False

    # Headers of a client that its upgrade request carries upstream. Those of unknown meaning
    # identify the tenant, too: see ``bridgecore.wire.headers``.
    forward_headers: tuple[str, ...] = attrs.field(
        default=FORWARDED_HEADERS, converter=_header_names
    )

    # Paths below /v1 that are passed through to the upstream's HTTP API, with all below them.
    # Empty: all but POST /v1/responses are answered with 404.
    pass_through: tuple[str, ...] = attrs.field(default=PASSED_PATHS, converter=_passed_paths)
    # Where they go. None: the host and path of ``upstream`` over HTTP, without its ``/responses``.
    upstream_http: HttpUrl | None = None

    # Whether clients may speak WebSocket mode, too: GET of the path for turns, with an upgrade.
    websocket: bool = False
    websocket_idle: int = _seconds(3600)  # until a connection without a turn is closed
    # Age at which a connection is closed after its turn. As at OpenAI, so that clients expect it.
    websocket_lifetime: int = _seconds(3600)
    # Pages that may connect, such as "https://chat.example". A browser lets any page try.
    websocket_origins: tuple[str, ...] = attrs.field(default=(), converter=_origins)

    # Count what happens, and answer GET /metrics. Off, because whoever reaches the port reads it.
    metrics: bool = False
    decisions: bool = False  # log every decision of every session (``bridgecore.wire.decisions``)

    log_level: LogLevel = LogLevel.DEBUG  # log records below it are not made

    # Not settings of the command line, except max_sessions: these suit all upstreams known so far.
    ping_interval: int = _seconds(20)  # silence before an upstream connection is pinged
    ping_timeout: int = _seconds(20)  # from a ping to a sign of life
    client_idle: int = _seconds(300)  # until an idle client connection is closed
    close_timeout: int = _seconds(2)  # from our close to the peer's
    # For how long what the upstream has refused over WebSocket is sent over HTTP. Long enough that
    # the refusals cost nothing, and short enough that a proxy that was being deployed does not cost
    # whole contexts for hours.
    fallback_period: int = _seconds(600)
    max_sessions: int = 10_000  # conversations with a session; idle ones are evicted for new ones
    # Turns that may wait for one conversation's session; 0: a second turn is refused at once.
    max_waiting: int = attrs.field(default=64, metadata={"least": 0})
    alias_bytes: int = 128 * 1024 * 1024  # remembered response ids; least recently used evicted
    # Handle the most frequent input on shorter paths with the same results. Off only to compare
    # both in tests, or to exclude the shortcuts as the cause of an error.
    shortcuts: bool = True

    @property
    def http_base(self) -> HttpUrl:
        """The base of the upstream's HTTP API."""
        given = self.upstream_http
        return HttpUrl.beside(self.upstream) if given is None else given

    @property
    def session_policy(self) -> Policy:
        """What all sessions of a bridge follow. That is ``policy``, its table as ``ambiguous`` and
        ``fallback`` change it, with the times and budgets of this configuration."""
        policy = self.policy
        if self.ambiguous is OnAmbiguousLoss.REPLAY:
            policy = replaying(policy)
        if self.fallback is Fallback.HTTP:
            policy = falling_back(policy)
        return attrs.evolve(
            policy,
            timeouts=Timeouts(
                connect=self.connect_timeout,
                created=self.created_timeout,
                idle=self.idle_timeout,
                turn=self.turn_timeout,
                lifetime=self.upstream_lifetime,
                expiry=self.session_idle,
            ),
            budgets=attrs.evolve(
                policy.budgets,
                waiting=self.max_waiting,
                warm=policy.budgets.warm or self.rotation is Rotation.WARM,
            ),
        )

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(Config):
            _check(field, getattr(self, field.name))
        # A second attempt has to fit in, or each slow answer of the store would cost the lease.
        short = self.lease_ttl - self.lease_margin < 3 * self.store_timeout
        if self.store is Store.DRIVER and short:
            raise ConfigError(
                f"lease_ttl ({_in_seconds(self.lease_ttl)}) less lease_margin "
                f"({_in_seconds(self.lease_margin)}) must be at least three times store_timeout "
                f"({_in_seconds(self.store_timeout)}): a lease must outlive two renewals that are "
                "not answered"
            )
        if self.advertise is not None and (self.store is Store.MEMORY or not self.cluster_secrets):
            raise ConfigError(
                "advertise is for replicas that share a store, and what they forward is signed: it "
                "needs a store other than memory, and cluster_secrets"
            )
        scope, whole = self.transcript_scope_bytes, self.transcript_bytes
        # Lowering transcript_bytes alone is no error: the default of the other is then too large,
        # and has no effect.
        if scope > whole and scope != attrs.fields(Config).transcript_scope_bytes.default:
            raise ConfigError(
                f"transcript_scope_bytes={scope} is more than transcript_bytes={whole}: one "
                "credential cannot have more than all of them together"
            )
