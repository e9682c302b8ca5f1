"""What an embedder or the command line can set, with the defaults the contract promises.

What belongs here: values and their validation. Durations are integer nanoseconds, sizes bytes. A
value that cannot be used is a ``ConfigError`` when the object is built, not when it is needed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import urlsplit

import attrs

from bridgecore.errors import ConfigError
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.wire.headers import FORWARDED_HEADERS, forwarded_names

_PORTS = {"ws": 80, "wss": 443}


@attrs.frozen
class UpstreamUrl:
    """Where the upstream's WebSocket listens, taken apart. Build with ``parse``."""

    host: str
    port: int
    tls: bool
    target: str  # path and query, as the upgrade request sends them
    authority: str  # the Host header's value

    @classmethod
    def parse(cls, url: str) -> UpstreamUrl:
        """Take ``ws://host[:port]/path`` or ``wss://...`` apart.

        Raises:
            ConfigError: what is wrong with ``url``, in one sentence.
        """
        if not isinstance(url, str):
            raise ConfigError(f"upstream URL must be a str, not {_a(url)}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigError(f"upstream URL {url!r}: {exc}") from None
        if parts.scheme not in _PORTS:
            raise ConfigError(f"upstream URL {url!r} must begin with ws:// or wss://")
        if not parts.hostname:
            raise ConfigError(f"upstream URL {url!r} names no host")
        if parts.username is not None or parts.password is not None:
            raise ConfigError("upstream URL must not carry credentials: clients send their own")
        if parts.fragment:
            raise ConfigError(
                f"upstream URL {url!r} must not have a fragment (RFC 6455, section 3)"
            )
        if any(c <= " " or c >= "\x7f" for c in url):
            raise ConfigError(f"upstream URL {url!r} has characters that a URL cannot have")
        if port == 0:
            raise ConfigError(f"upstream URL {url!r}: port must be 1 to 65535")
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        return cls(
            host=parts.hostname,
            port=port if port is not None else _PORTS[parts.scheme],
            tls=parts.scheme == "wss",
            target=target,
            authority=parts.netloc,
        )


class Continuity(enum.Enum):
    """What the bridge keeps of a conversation."""

    TRANSCRIPT = "transcript"  # its items, in memory: a lost socket is rebuilt from them
    PASSTHROUGH = "passthrough"  # nothing but ids: what a lost socket knew is lost


class OnAmbiguousLoss(enum.Enum):
    """What becomes of a turn that was lost when the upstream may have had it already."""

    REFUSE = "refuse"  # it is refused as retriable: the client decides whether it is run again
    REPLAY = "replay"  # it is sent again within the policy's budget, and may run twice


class Rotation(enum.Enum):
    """What follows when a socket is given up for its age."""

    LAZY = "lazy"  # the next turn opens another, and pays for what it has to be told
    WARM = "warm"  # another is opened and told what the old one knew, before anybody asks for it


_SHORTEST = NS_PER_SECOND // 1000  # less is a number of seconds or ms that was given as ns
_LONGEST = 10**9 * NS_PER_SECOND  # some thirty years: beyond it a clock's arithmetic gets doubtful
_LARGEST = 10**15 - 1  # bytes, or how many


def _header_names(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` in lower case. Raises ConfigError, with the name, if one must not be forwarded."""
    # A str is an iterable, too, of but of single letters.
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"forward_headers must be a list of header names, not {names!r:.100}")
    try:
        return forwarded_names(names)
    except ValueError as exc:
        raise ConfigError(f"forward_headers: {exc}") from None


def _seconds(count: int) -> int:
    """A duration with this default. In ``Config`` it is in ns; its value is checked as one."""
    return attrs.field(default=count * NS_PER_SECOND, metadata={"unit": "ns"})


def _check(field: attrs.Attribute[Any], value: object) -> None:
    """Raise ``ConfigError`` unless ``value`` suits ``field``: it has the type of the default, and a
    number is within the bounds of its unit."""
    name, default = field.name, field.default
    if name == "upstream":
        if not isinstance(value, UpstreamUrl):
            # A URL may carry a secret, so it is not repeated.
            what = f"an UpstreamUrl, not {_a(value)}: use UpstreamUrl.parse('wss://...')"
            raise ConfigError(f"upstream must be {what}")
    elif name == "policy":
        if not isinstance(value, Policy):
            what = f"a Policy such as bridgecore.DEFAULT, not {value!r:.100}"
            raise ConfigError(f"policy must be {what}")
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


def _a(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


@attrs.frozen(kw_only=True)
class Config:
    """Everything an ``Endpoint`` is told. Names and defaults are those of the command line.

    Durations are integer nanoseconds (``NS_PER_SECOND`` of them are a second), sizes bytes.

    Raises:
        ConfigError: a value has a wrong type, or is out of bounds; a duration below 1 ms, for one,
            is taken for a number of seconds that was not converted.
    """

    upstream: UpstreamUrl
    policy: Policy = DEFAULT

    connect_timeout: int = _seconds(10)  # TCP, TLS and upgrade together
    created_timeout: int = _seconds(60)  # frame sent to response.created
    idle_timeout: int = _seconds(1200)  # between upstream events of a turn
    turn_timeout: int = _seconds(3600)  # a whole turn, replays and waits included
    head_timeout: int = _seconds(15)  # holding back the answer's head for an early failure
    keepalive: int = _seconds(15)  # silence towards a client before something is sent
    upstream_lifetime: int = _seconds(3300)  # age at which a socket is replaced between turns
    session_idle: int = _seconds(900)  # idle conversations give up their socket
    drain_timeout: int = _seconds(30)  # from the first signal to the end
    header_timeout: int = _seconds(10)  # a request head must be complete
    body_timeout: int = _seconds(60)  # a request body must be complete

    ambiguous: OnAmbiguousLoss = OnAmbiguousLoss.REFUSE
    rotation: Rotation = Rotation.LAZY
    continuity: Continuity = Continuity.TRANSCRIPT
    transcript_bytes: int = 256 * 1024 * 1024  # of all transcripts together
    transcript_scope_bytes: int = 128 * 1024 * 1024  # of those of one credential
    transcript_age: int = _seconds(21_600)  # unused transcripts are forgotten

    max_header: int = 65_536  # bytes of a request head
    max_body: int = 64 * 1024 * 1024  # bytes of a request body
    max_message: int = 16 * 1024 * 1024  # bytes of one upstream message

    # Headers of a client that the upgrade request carries. Those that are not known to be harmless
    # are part of the credential, see ``bridgecore.wire.headers``.
    forward_headers: tuple[str, ...] = attrs.field(
        default=FORWARDED_HEADERS, converter=_header_names
    )

    decisions: bool = False  # tell every decision of every session (``bridgecore.wire.decisions``)

    # Not settings of the command line: mechanics that every upstream known so far agrees with.
    ping_interval: int = _seconds(20)  # quiet time before an upstream socket is pinged
    ping_timeout: int = _seconds(20)  # how late a pong may be
    client_idle: int = _seconds(300)  # how long a kept client connection may be unused
    close_timeout: int = _seconds(2)  # how long a peer may take to close after we did
    max_sessions: int = 10_000  # conversations with state; idle ones make room
    # Turns that wait for one conversation's socket; 0: a second one is refused at once.
    max_waiting: int = attrs.field(default=64, metadata={"least": 0})
    alias_bytes: int = 128 * 1024 * 1024  # of response ids remembered; least recently used go first

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(Config):
            _check(field, getattr(self, field.name))
        scope, whole = self.transcript_scope_bytes, self.transcript_bytes
        # Whoever lowers the one need not lower the other: its default then counts for less.
        if scope > whole and scope != attrs.fields(Config).transcript_scope_bytes.default:
            raise ConfigError(
                f"transcript_scope_bytes={scope} is more than transcript_bytes={whole}: one "
                "credential cannot have more than all of them together"
            )
