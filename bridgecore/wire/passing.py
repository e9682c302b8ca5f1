"""Requests that are passed through to the upstream's HTTP API: which, and with which headers.

What belongs here: the paths that are passed, their target at the upstream, and the headers that go
with a request and come back with its answer. Nothing of a body is read. How a request and its
answer are carried is in ``bridgecore.passages``.

A path is compared segment by segment as it was sent, and never normalised: this server and the
upstream could normalise it differently, and then a path that is passed for one resource would reach
another. So a path that could be read in two ways is not passed at all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qsl, unquote

import attrs

from bridgecore.wire.headers import VALUE, Headers

__all__ = [
    "PASSED_PATHS",
    "REBUILT",
    "TURN_ALIAS",
    "PassedRequest",
    "answer_headers",
    "below_version",
    "deleted_response",
    "is_passed",
    "is_shareable",
    "named_response",
    "passed_headers",
    "passed_paths",
    "target_of",
]

# ------------------------------------------------------------------ paths

# The default of the setting ``pass_through``: what the API reference has below /v1 and is plain
# HTTP (``realtime`` is a WebSocket, of which only the calls that prepare one are HTTP). The
# administration of an organization is left out: it takes keys of administrators, which are not
# meant to pass through a service for conversations.
PASSED_PATHS: Final = (
    "assistants",
    "audio",
    "batches",
    "chat/completions",
    "chatkit",
    "completions",
    "containers",
    "conversations",
    "embeddings",
    "evals",
    "files",
    "fine_tuning",
    "graders",
    "images",
    "models",
    "moderations",
    "realtime/calls",
    "realtime/client_secrets",
    "responses",
    "skills",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
)

TURN_ALIAS: Final = "/responses"
"""The path of turns without the version, for clients whose base URL ends before it."""

REBUILT: Final = frozenset({("responses", "compact"), ("responses", "input_tokens")})
"""The paths whose body may name a response that only this bridge knows."""

# RFC 3986, section 3.3: a segment, without the encoded characters that are refused below.
_SEGMENT: Final = re.compile(r"(?:[-A-Za-z0-9._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+")
# Encoded, they are dots, separators, the escape character itself or control characters.
_HIDDEN: Final = re.compile(r"%(?:2[EFef5]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])")


def passed_paths(paths: Iterable[object]) -> tuple[str, ...]:
    """The setting ``pass_through``, checked: each path once, in their order.

    Raises:
        ValueError: one is not a path below /v1, such as ``models``; the text names it.
    """
    checked = []
    for path in paths:
        if not isinstance(path, str) or _segments("/" + path) is None:
            raise ValueError(f"{path!r:.100} is not a path below /v1, such as 'models'")
        if path.split("/")[0] == "v1":
            raise ValueError(f"{path!r:.100} begins with v1: leave that out")
        checked.append(path)
    return tuple(dict.fromkeys(checked))


def _segments(path: str) -> tuple[str, ...] | None:
    """The segments of an absolute path; None if it could be read in two ways."""
    first, *segments = path.split("/")
    plain = not first and all(
        _SEGMENT.fullmatch(one) and one not in (".", "..") and not _HIDDEN.search(one)
        for one in segments
    )
    return tuple(segments) if plain and segments else None


def below_version(path: str) -> tuple[str, ...]:
    """The segments of ``path`` below /v1, which may be left out; empty if it has none, or could be
    read in two ways."""
    segments = _segments(path) or ()
    return segments[1:] if segments[:1] == ("v1",) else segments


def is_passed(segments: tuple[str, ...], paths: tuple[str, ...]) -> bool:
    """Whether ``segments``, of ``below_version``, are one of ``paths`` or below one. Not the path
    of turns, which are served here."""
    if segments == ("responses",):
        return False
    return any(segments[: len(path)] == path for path in _split(paths))


@functools.lru_cache(16)
def _split(paths: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(path.split("/")) for path in paths)


# Of an account that tenants share: what neither reads nor changes what is kept there. (A method and
# the segments of a path below /v1.)
_SHAREABLE: Final = frozenset(
    {
        *(("POST", ("chat", "completions")), ("POST", ("completions",))),
        *(("POST", ("embeddings",)), ("POST", ("moderations",))),
        *(("POST", ("audio", each)) for each in ("speech", "transcriptions", "translations")),
        *(("POST", ("images", each)) for each in ("edits", "generations", "variations")),
    }
)


def is_shareable(method: bytes, segments: tuple[str, ...]) -> bool:
    """Whether a request can be passed through for tenants that share a credential: it names nothing
    that the upstream keeps but a response, which is to be checked."""
    if segments[:1] == ("responses",):
        return True
    if method in (b"GET", b"HEAD") and segments[:1] == ("models",):
        return len(segments) <= 2
    return (method.decode("latin-1"), segments) in _SHAREABLE


def named_response(method: bytes, segments: tuple[str, ...]) -> str | None:
    """The id of the response that the path of a request names; None if it names none."""
    if segments[:1] != ("responses",) or (method == b"POST" and segments in REBUILT):
        return None
    return unquote("/".join(segments[1:2]))


def deleted_response(method: bytes, segments: tuple[str, ...]) -> str | None:
    """The id of the response that a request deletes if it succeeds."""
    if method == b"DELETE" and len(segments) == 2 and segments[0] == "responses":
        return unquote(segments[1])
    return None


def target_of(segments: tuple[str, ...], query: bytes, path: str, base_query: str) -> bytes:
    """The request target at the upstream.

    Args:
        segments: the path below the version.
        query: of the request, as it was sent.
        path: of the upstream's HTTP base, without a slash at its end.
        base_query: of the base. The part that the request names itself is left out, because a
            parameter that is given twice has no defined meaning.
    """
    target = "/".join([path, *segments]).encode("ascii")
    named = {name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)}
    own = [
        part.encode("ascii")
        for part in base_query.split("&")
        if part and part.partition("=")[0] not in named
    ]
    parts = b"&".join([*own, query] if query else own)
    return target + b"?" + parts if parts else target


# ------------------------------------------------------------------ headers

# What describes the body of a request and the answer that is wanted goes upstream besides the
# headers of the setting ``forward_headers``. Neither list has cookies: a browser sends those of
# this host. Framing (Content-Length, Transfer-Encoding) is written anew.
_DESCRIBING: Final = frozenset(
    {
        # The body (RFC 9110, section 8).
        *(b"content-disposition", b"content-encoding", b"content-language", b"content-type"),
        *(b"content-digest", b"digest", b"content-md5"),
        # The answer that is wanted (sections 12 and 14): its form, and which part of it.
        *(b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"prefer"),
        *(b"range", b"cache-control", b"pragma"),
        # Conditions (section 13).
        *(b"if-match", b"if-modified-since", b"if-none-match", b"if-range"),
        b"if-unmodified-since",
        # A repeated request must be recognised by the service that carries it out.
        b"idempotency-key",
        # The client waits for the service to agree to a body (section 10.1.1).
        b"expect",
    }
)

# RFC 9110, section 7.6.1: valid for one connection only.
_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info"),
        *(b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"),
        b"upgrade",
    }
)
_NOT_ANSWERED: Final = _HOP_BY_HOP | {
    b"content-length",  # framed anew
    *(b"set-cookie", b"set-cookie2"),  # a session with another host
    b"x-request-id",  # each answer has that of this bridge, which its log has, too
    # They say how to reach the upstream's host, not this one.
    *(b"alt-svc", b"strict-transport-security"),
}


def passed_headers(headers: Headers, forwarded: frozenset[bytes]) -> Headers:
    """The headers of a request that go upstream. ``headers``: names in lower case; ``forwarded``:
    those of the setting ``forward_headers``. What ``Connection`` names is for this hop alone."""
    own = _named(headers)
    return [
        (name, value)
        for name, value in headers
        if (name in forwarded or name in _DESCRIBING)
        and name not in own
        and VALUE.fullmatch(value) is not None
    ]


def answer_headers(headers: Headers) -> Headers:
    """The headers of an upstream's answer that go to the client. ``headers``: names in lower
    case. A value with a control character is dropped with its name."""
    own = _named(headers)
    return [
        (name, value)
        for name, value in headers
        if name not in _NOT_ANSWERED and name not in own and VALUE.fullmatch(value) is not None
    ]


def _named(headers: Headers) -> frozenset[bytes]:
    """The headers that ``Connection`` names."""
    values = b",".join(value for name, value in headers if name == b"connection")
    return frozenset(name.strip(b" \t").lower() for name in values.split(b","))


@attrs.frozen
class PassedRequest:
    """A request that is passed through.

    ``segments``: its path below the version. ``headers``: all of the client's, names in lower case.
    ``length``: bytes of its body, None if that is not known or there is none. ``chunked``: its
    length is not known. ``request_id``: for its answer and the log.
    """

    method: bytes
    segments: tuple[str, ...]
    query: bytes
    headers: Headers = attrs.field(repr=False)
    length: int | None
    chunked: bool
    request_id: str
    # Its body may name a response that only this bridge knows, so it is read here as a whole.
    whole: bool = False
    scope: str | None = None  # the tenant, if the program around the bridge names it

    @property
    def route(self) -> str:
        """Its path for the log: the first segment, because others are ids of the client."""
        return self.segments[0]
