"""Headers of a client's request: which go upstream, which name its tenant, which name the request.

What belongs here: the names of header fields and what each is for. Names are compared in lower
case; whoever hands headers to the core may write them in any (RFC 9110, section 5.1).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from bridgecore.errors import LocalProtocolError

__all__ = [
    "CREDENTIAL_HEADERS",
    "FORWARDED_HEADERS",
    "Headers",
    "check_forwarded",
    "check_headers",
    "credential_names",
    "lower_names",
    "make_request_id",
    "request_id_of",
    "upgrade_headers",
]

Headers = list[tuple[bytes, bytes]]

# Whose request it is: the credential, and whom it acts for. They count whether or not they are
# forwarded.
CREDENTIAL_HEADERS = frozenset(
    {
        b"api-key",  # Azure
        b"authorization",
        b"chatgpt-account-id",
        b"openai-organization",
        b"openai-project",
    }
)

# Headers that say something about the client or its request, not about whose it is. Any other
# header that is forwarded may be a credential, so it is taken for one.
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

# What goes upstream unless the operator says otherwise: what OpenAI's and Azure's services and
# Codex' own backend read on a WebSocket upgrade.
FORWARDED_HEADERS = tuple(
    sorted(name.decode("ascii") for name in CREDENTIAL_HEADERS | _NOT_CREDENTIALS)
)

_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_REFUSED = frozenset(
    {
        # About this connection or this message only (RFC 9110, sections 7.6.1 and 8; 10.1.1).
        *("connection", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"),
        "upgrade",
        # What the body is and how the answer may be encoded: an upgrade has neither.
        *("accept-encoding", "content-encoding", "content-length", "content-type"),
        # A browser's session with this host is nothing for another.
        *("cookie", "cookie2", "set-cookie"),
    }
)


def check_forwarded(name: str) -> str:
    """``name`` in lower case, if a header of that name may be forwarded.

    Raises:
        ValueError: the rest of the sentence "VALUE ...".
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError("is not the name of a header")
    lowered = name.lower()
    if lowered in _REFUSED or lowered.startswith("sec-websocket-"):
        raise ValueError("names a header that must not be forwarded")
    return lowered


def check_headers(headers: Iterable[object], whose: str) -> None:
    """Refuse what is no list of headers; ``whose`` they are is for the text.

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
    """The headers that tell one tenant from another where ``forwarded`` go upstream.

    A forwarded header that is not known to be something else counts: it may be a key that the
    upstream knows, and then two values of it are two tenants.
    """
    names = frozenset(name.encode("ascii") for name in forwarded)
    return CREDENTIAL_HEADERS | (names - _NOT_CREDENTIALS)


def upgrade_headers(headers: Headers, forwarded: frozenset[bytes]) -> Headers:
    """Those of ``headers`` (names in lower case) that the upgrade request carries."""
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


# What Codex sends with each HTTP request. OpenAI's backend closes a WebSocket that it came with.
_HTTP_BETA = b"responses=experimental"


def _without_http_beta(value: bytes) -> bytes:
    """The tokens of an ``OpenAI-Beta`` header that are not about HTTP; unchanged if all are."""
    tokens = [token.strip(b" \t") for token in value.split(b",")]
    kept = [token for token in tokens if token.lower() != _HTTP_BETA]
    return value if len(kept) == len(tokens) else b", ".join(token for token in kept if token)


_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")


def request_id_of(headers: Headers) -> str | None:
    """The client's own ``x-request-id``, if it sent one that is safe to repeat in an answer and in
    a log: up to 256 visible ASCII characters. ``headers``: names in lower case."""
    values = [value for name, value in headers if name == b"x-request-id"]
    if len(values) != 1 or _REQUEST_ID.fullmatch(values[0]) is None:
        return None
    return values[0].decode("ascii")


def make_request_id(seed: bytes, number: int) -> str:
    """An id for the request of that number. It tells nothing about ``seed`` and the number."""
    return "req_" + hashlib.sha256(b"%d/%b" % (number, seed)).hexdigest()[:24]
