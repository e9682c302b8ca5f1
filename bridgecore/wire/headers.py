"""Headers of a client's request: which are forwarded, which identify its tenant, its request id.

What belongs here: the names of header fields and what each is used for. A caller may pass header
names in any case; they are lowered before they are compared (RFC 9110, section 5.1).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from bridgecore.errors import LocalProtocolError

__all__ = [
    "CREDENTIAL_HEADERS",
    "FORWARDED_HEADERS",
    "VALUE",
    "Headers",
    "allowed_origins",
    "check_headers",
    "credential_names",
    "forwarded_names",
    "lower_names",
    "make_request_id",
    "request_id_of",
    "upgrade_headers",
]

Headers = list[tuple[bytes, bytes]]

# Headers that identify the tenant: the credential, and the account or project it acts for. Requests
# that differ in one of them share nothing, whether or not these headers are forwarded.
CREDENTIAL_HEADERS = frozenset(
    {
        b"api-key",  # Azure
        b"authorization",
        b"chatgpt-account-id",
        b"openai-organization",
        b"openai-project",
    }
)

# Headers that describe the client or its request and identify no tenant. Any other forwarded header
# may be a credential that only the upstream understands, so it is treated as one.
_NOT_CREDENTIALS = frozenset(
    {
        b"openai-beta",
        b"originator",
        b"session-id",
        b"thread-id",
        b"user-agent",
        b"x-client-request-id",
        b"x-codex-beta-features",
        b"x-codex-turn-metadata",
        b"x-codex-window-id",
    }
)

# The default of the setting ``forward_headers``: what OpenAI's and Azure's services and the backend
# of Codex read on a WebSocket upgrade.
FORWARDED_HEADERS = tuple(
    sorted(name.decode("ascii") for name in CREDENTIAL_HEADERS | _NOT_CREDENTIALS)
)

# The value of a header without the control characters that RFC 9110, section 5.5, lets a recipient
# keep.
VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|null")  # RFC 6454, section 6.2
_REFUSED = frozenset(
    {
        # Valid for this connection or this message only (RFC 9110, sections 7.6.1 and 8; 10.1.1).
        *("connection", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"),
        "upgrade",
        # They describe a request body and an answer body, and an upgrade has neither.
        *("accept-encoding", "content-encoding", "content-length", "content-type"),
        # A browser sends its session with this host, which must not leak to another one.
        *("cookie", "cookie2", "set-cookie"),
    }
)


def forwarded_names(names: Iterable[object]) -> tuple[str, ...]:
    """The setting ``forward_headers``, checked: ``names`` in lower case, each once, in their order.

    Raises:
        ValueError: a name is malformed, or its header must not go upstream; the text names it.
    """
    lowered = []
    for name in names:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r:.100} is not the name of a header")
        lowered.append(name.lower())
        if lowered[-1] in _REFUSED or lowered[-1].startswith("sec-websocket-"):
            raise ValueError(f"{name!r:.100} names a header that must not be forwarded")
    return tuple(dict.fromkeys(lowered))


def allowed_origins(origins: Iterable[object]) -> tuple[str, ...]:
    """The setting ``websocket_origins``, checked: ``origins`` in lower case, as browsers send them,
    each once, in their order.

    Raises:
        ValueError: one is no origin; the text names it.
    """
    found = []
    for origin in origins:
        if not isinstance(origin, str) or _ORIGIN.fullmatch(origin.lower()) is None:
            what = "is no origin: give scheme and host, and a port if it is not the usual one"
            raise ValueError(f"{origin!r:.100} {what}")
        found.append(origin.lower())
    return tuple(dict.fromkeys(found))


def check_headers(headers: Iterable[object], whose: str) -> None:
    """Check that ``headers`` are pairs of bytes. ``whose``: names the request in the error's text.

    Raises:
        LocalProtocolError: an entry is not (name, value), both bytes.
    """
    for header in headers:
        if not (isinstance(header, tuple) and [type(part) for part in header] == [bytes, bytes]):
            what = "headers must be a list of (name, value), both bytes"
            raise LocalProtocolError(f"{whose}: {what}")


def lower_names(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """``headers`` with their names in lower case."""
    return [(name.lower(), value) for name, value in headers]


def credential_names(forwarded: Iterable[str]) -> frozenset[bytes]:
    """The headers that identify a tenant if ``forwarded`` are the headers that are sent upstream.

    A forwarded header of unknown meaning is included: it may be a key that the upstream knows, and
    then two values of it are two tenants.
    """
    names = frozenset(name.encode("ascii") for name in forwarded)
    return CREDENTIAL_HEADERS | (names - _NOT_CREDENTIALS)


def upgrade_headers(headers: Headers, forwarded: frozenset[bytes]) -> Headers:
    """The part of ``headers`` (names in lower case) that the upgrade request carries upstream."""
    found = []
    for name, value in headers:
        if name not in forwarded:
            continue
        if name == b"openai-beta":
            value = _without_http_beta(value)
            if not value:
                continue
        found.append((name, value))
    return found


# Codex sends this token with each HTTP request, and OpenAI's backend closes a WebSocket whose
# upgrade request had it.
_HTTP_BETA = b"responses=experimental"


def _without_http_beta(value: bytes) -> bytes:
    """An ``OpenAI-Beta`` header without the token for HTTP; unchanged if it does not have it."""
    tokens = [token.strip(b" \t") for token in value.split(b",")]
    kept = [token for token in tokens if token.lower() != _HTTP_BETA]
    return value if len(kept) == len(tokens) else b", ".join(token for token in kept if token)


_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")


def request_id_of(headers: Headers) -> str | None:
    """The client's ``x-request-id``, if it sent exactly one and that is safe to repeat in an answer
    and in a log: up to 256 visible ASCII characters. ``headers``: names in lower case."""
    values = [value for name, value in headers if name == b"x-request-id"]
    if len(values) != 1 or _REQUEST_ID.fullmatch(values[0]) is None:
        return None
    return values[0].decode("ascii")


def make_request_id(seed: bytes, number: int) -> str:
    """An id for request ``number``: a digest, so it reveals neither ``seed`` nor the count."""
    return "req_" + hashlib.sha256(b"%d/%b" % (number, seed)).hexdigest()[:24]
