"""The head of an HTTP/1.1 request: bytes in, its parts or a refusal out.

What belongs here: one head, from its request line to its empty line (RFC 9112, sections 2 to 6).
What it means for the connection is up to ``bridgecore.wire.http``.

* *The guard* accepts a head only if all HTTP implementations read it alike. h11 accepts much that
  two parsers may read differently (bare LF, folded lines, two lengths, a length next to a transfer
  coding). As there may be a proxy in front of the bridge, an ambiguous request is refused and never
  repaired: request smuggling depends on such differences.
* *h11* parses the heads that the guard accepts, so that two parsers have to agree. It is used like
  a function: an ``h11.Connection`` reads one head and is dropped, so no state of one exchange is
  left in the next, and an idle connection keeps none.
* *Outlines* of heads that were parsed are kept, and save the work on further ones that differ only
  in some values, with the same results: see ``_VALUES``.

``scan_head`` finds the end of a head in the input. Then ``read_known_head`` reads it by an outline,
or ``parse_request_line`` and ``parse_head`` do so afresh.
"""

from __future__ import annotations

import functools
import ipaddress
import re

import attrs
import h11

from bridgecore.errors import BridgecoreError

__all__ = [
    "TOKEN",
    "RefusedError",
    "RequestHead",
    "RequestLine",
    "body_too_large",
    "malformed",
    "parse_head",
    "parse_request_line",
    "read_known_head",
    "scan_head",
]

# Limits that no correct client comes near, so they are not settings.
_MAX_FIELDS = 256  # header fields of one request
_MAX_LENGTH_DIGITS = 20  # of a Content-Length without leading zeros: enough for 64 bits


@attrs.define
class RequestHead:
    """The complete head of a request.

    ``path``: the path of the target as it was sent, visible ASCII, not percent-decoded. ``query``:
    the part after the ``?``. The scheme and authority of an absolute-form target are left out: they
    override ``Host``, which has no effect on this server. ``headers``: names in lower case, values
    without surrounding white space, possibly with bytes above 127.
    """

    method: bytes
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    content_length: int | None  # declared length in bytes; None if there is none
    chunked: bool  # the body is chunked: its length is known at its end
    expects_continue: bool  # the client may wait for a 100 Continue, see ``HttpServer.wants_body``

    @property
    def has_body(self) -> bool:
        """Whether the body may be non-empty."""
        return self.chunked or bool(self.content_length)


@attrs.frozen
class RequestLine:
    """The first line of a head."""

    method: bytes
    target: bytes
    version: bytes  # b"1.1" or b"1.0"


# ---------------------------------------------------------------------- the guard


class RefusedError(BridgecoreError):
    """The request is malformed or too large: the fields of a ``BadRequest``, its message the text.

    ``status`` is 400, 413 or 431. The message contains no field values and no body.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def malformed(message: str) -> RefusedError:
    """The error for a request that is not valid, or that not all parsers may read alike."""
    return RefusedError(400, "malformed_request", message)


def _head_too_large(message: str) -> RefusedError:
    return RefusedError(431, "head_too_large", message)


def body_too_large(limit: int) -> RefusedError:
    """The error for a body of more than ``limit`` bytes."""
    return RefusedError(
        413, "body_too_large", f"the request body is larger than {limit} bytes; send a smaller one"
    )


# RFC 9110, section 5.5, allows recipients to keep control characters in field values. They have no
# use, and some parsers take several of them for the end of a line.
_FIELD_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_METHOD = re.compile(TOKEN)
_FIELD = re.compile(rb"(" + TOKEN + rb"):([^\x00]*)")
_VERSION = re.compile(rb"HTTP/([0-9]\.[0-9])")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_SCHEME = re.compile(rb"https?://", re.IGNORECASE)

ANY_LENGTH = 2**63 - 1
"""The limit, in bytes, of bodies that are not kept: any that 63 bits can count."""

# RFC 3986, section 3.2.2, without userinfo. A name may contain a comma, but it is refused here: an
# intermediary may have joined two Host fields with it.
_HOST = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?:[-.~_!$&'()*+;=0-9A-Za-z]|%[0-9A-Fa-f]{2})+)"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)


def scan_head(buffer: bytearray, scanned: int, limit: int) -> tuple[int, bool]:
    """The size of the head at the front of ``buffer``, and True; how much of an incomplete one was
    checked, and False.

    ``scanned``: what was checked before, so that each byte is looked at once. ``limit``: bytes of
    the largest head. Checks that each byte, except CRLF, is allowed in a field. This is done while
    input is received and not only at the end of the head: a client that ends its lines with LF
    alone sends a head that never ends, and would wait for an answer in vain.

    Raises:
        RefusedError: a byte is not allowed, or the head is too large.
    """
    # Bytes beyond the limit are ignored, so that the result does not depend on how the input
    # was split into reads.
    found = buffer.find(b"\r\n\r\n", max(0, scanned - 3), limit)
    end = found + 4 if found >= 0 else min(len(buffer), limit)
    if found < 0 and buffer.endswith(b"\r", 0, end):
        end -= 1  # a lone CR or half of a CRLF: the next byte decides
    fresh = buffer[scanned:end]
    rest = fresh.translate(None, _FIELD_BYTES)
    if 2 * fresh.count(b"\r\n") != len(rest):
        raise _stray_byte(buffer, end)
    if found < 0 and len(buffer) >= limit:
        raise _head_too_large(
            f"the request head is larger than {limit} bytes; send fewer or shorter headers"
        )
    return end, found >= 0


def _stray_byte(buffer: bytearray, end: int) -> RefusedError:
    """The error for a head with a forbidden byte before ``end``."""
    if buffer.startswith(b"\x16"):
        return malformed("this looks like TLS and the port speaks plain HTTP; use http://")
    match = _STRAY.search(buffer, 0, end)
    stray = match[0] if match else b""
    if stray == b"\n":
        return malformed("a line of the request head ends with a bare LF; end it with CRLF")
    if stray == b"\r":
        return malformed("the request head has a bare CR; it may stand before LF only")
    return malformed("the request head has a control character; remove or encode it")


def parse_request_line(raw: bytes) -> RequestLine:
    """The request line of the head in ``raw``, which ``scan_head`` accepted.

    Raises:
        RefusedError: it is malformed, or of another version.
    """
    parts = raw[: raw.index(b"\r\n")].split(b" ")
    if len(parts) != 3:
        raise malformed("the request line must be a method, a target and HTTP/1.1, one space each")
    method, target, protocol = parts
    if _METHOD.fullmatch(method) is None:
        raise malformed("the request method is not a token")
    match = _VERSION.fullmatch(protocol)
    if match is None:
        raise malformed("the request line does not end with an HTTP version; send HTTP/1.1")
    if match[1] not in (b"1.1", b"1.0"):
        raise malformed("this HTTP version is not spoken here; send HTTP/1.1")
    return RequestLine(method, target, match[1])


def _split_target(method: bytes, target: bytes) -> tuple[str, bytes]:
    """Path and query of a target in origin form or absolute form (RFC 9112, section 3.2).

    Clients send ``http://host/path`` to a proxy, and every server has to accept it; behind a TLS
    terminator it may be https. The other two forms are for proxies (CONNECT) and for the server as
    a whole (OPTIONS), and are refused.
    """
    if _TARGET.fullmatch(target) is None:
        raise malformed("the request target has a character that must be percent-encoded")
    if b"#" in target:
        raise malformed("the request target has a fragment; send it without")
    path, _, query = target.partition(b"?")
    scheme = _SCHEME.match(path)
    if scheme is not None:
        authority, slash, rest = path[scheme.end() :].partition(b"/")
        if not _is_authority(authority):
            raise malformed(
                "the request target's authority is malformed; send a host name and, at most, a port"
            )
        path = slash + rest or b"/"  # RFC 9110, section 4.2.3
    if not path.startswith(b"/") or method == b"CONNECT":
        raise malformed(
            "the request target must be a path or an http URL; this is a server, not a proxy"
        )
    return path.decode("ascii"), query


def _split_field(line: bytes) -> tuple[bytes, bytes]:
    """The name, in lower case, and the trimmed value of a field line."""
    match = _FIELD.fullmatch(line)
    if match is None:
        if line.startswith((b" ", b"\t")):
            raise malformed("a header is folded over several lines; send it on one")
        name, colon, _ = line.partition(b":")
        if not colon:
            raise malformed("a header line has no colon")
        if name.endswith((b" ", b"\t")):
            raise malformed("a header has white space before its colon")
        raise malformed("a header name is not a token")
    return match[1].lower(), match[2].strip(b" \t")


@attrs.define
class _Fields:
    """The header fields as received, before any are merged."""

    items: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """The value of every field line called ``name``."""
        return [value for key, value in self.items if key == name]

    def tokens(self, name: bytes) -> list[bytes]:
        """The members, lower-case, of the list that all lines called ``name`` make together."""
        members = b",".join(self.values(name)).split(b",")
        return [member.strip(b" \t").lower() for member in members]


def _check_host(values: list[bytes], version: bytes) -> None:
    """Require exactly one valid Host (RFC 9112, section 3.2), which HTTP/1.0 may leave out.

    An empty Host is allowed only for a target without an authority, and http targets have one
    (RFC 9110, section 4.2.1).
    """
    if not values:
        if version == b"1.1":
            raise malformed("the request has no Host header; HTTP/1.1 requires one")
        return
    if len(values) > 1:
        raise malformed("the request has more than one Host header; send one")
    if not _is_authority(values[0]):
        raise malformed("the Host header is malformed; send a host name and, at most, a port")


def _is_authority(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match["port"] or b"0") > 65535:
        return False
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"].decode("ascii"))
        except ValueError:
            return False
    return True


def _body_framing(fields: _Fields, version: bytes, max_body: int) -> tuple[int | None, bool]:
    """The declared length in bytes, if any, and whether the body is chunked (RFC 9112, section
    6.3).

    Where the RFC lets a recipient choose, the request is refused: wherever two recipients may
    disagree about the end of a body, requests can be smuggled.
    """
    lengths = fields.values(b"content-length")
    codings = fields.values(b"transfer-encoding")
    if codings:
        if lengths:
            raise malformed("the request has both Content-Length and Transfer-Encoding; send one")
        if version != b"1.1":
            raise malformed("Transfer-Encoding does not exist in HTTP/1.0; send Content-Length")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise malformed("Transfer-Encoding must be chunked and nothing else")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) > 1:
        raise malformed("the request has more than one Content-Length; send one")
    digits = lengths[0]
    if not digits.isdigit():  # of bytes: ASCII digits only
        raise malformed("Content-Length must be decimal digits and nothing else")
    significant = digits.lstrip(b"0") or b"0"
    # Checked before int(), which takes quadratic time and raises for thousands of digits.
    if len(significant) > _MAX_LENGTH_DIGITS or int(significant) > max_body:
        raise body_too_large(max_body)
    return int(significant), False


def check_framing(fields: list[tuple[bytes, bytes]]) -> int | None:
    """The declared length, in bytes, of the body of a request that another program has parsed; None
    if there is none. ``fields``: its header, with names in lower case.

    Raises:
        RefusedError: two programs may disagree about the end of the body.
    """
    length, _ = _body_framing(_Fields(fields), b"1.1", ANY_LENGTH)
    return length


def parse_head(raw: bytes, line: RequestLine, max_body: int) -> tuple[RequestHead, bool]:
    """The head in ``raw``, which ``scan_head`` accepted, and whether its connection must close.

    ``line``: its request line. ``max_body``: bytes; a larger Content-Length is refused.

    Raises:
        RefusedError: the head is malformed, has too many fields, or declares too large a body.
    """
    method, version = line.method, line.version
    field_lines = raw[:-4].split(b"\r\n")[1:]
    path, query = _split_target(method, line.target)
    if len(field_lines) > _MAX_FIELDS:
        raise _head_too_large(f"the request has more than {_MAX_FIELDS} header fields; send fewer")
    fields = _Fields([_split_field(one) for one in field_lines])
    _check_host(fields.values(b"host"), version)
    length, chunked = _body_framing(fields, version, max_body)

    parser = h11.Connection(h11.SERVER)
    parser.receive_data(raw)
    try:
        request = parser.next_event()
    except h11.RemoteProtocolError:
        request = None
    if not isinstance(request, h11.Request):
        raise malformed("the request head is not valid HTTP/1.1")

    head = RequestHead(
        method=method,
        path=path,
        query=query,
        headers=list(request.headers),
        content_length=length,
        chunked=chunked,
        expects_continue=(
            version == b"1.1"  # RFC 9110, section 10.1.1: ignored in HTTP/1.0
            and (chunked or bool(length))
            and b"100-continue" in fields.tokens(b"expect")
        ),
    )
    # HTTP/1.0 connections end after one answer: keeping them open is optional (RFC 9112,
    # section 9.3) and needs a header that old proxies forward by mistake.
    return head, version == b"1.0" or b"close" in fields.tokens(b"connection")


# ---------------------------------------------------------------------- heads that are read again

# A client sends the same head with each request, except for a few values: the length of the body,
# its credential, and ids. Parsing a head takes 60 us, so the *outline* of a head is parsed instead,
# once: the head with these values replaced by "0". A head whose outline is known is the parsed
# outline with its own values put back.
#
# This gives what parsing the head gives, because
# * an outline has all bytes of its head but those values and the white space around them, so heads
#   with the same outline are equal apart from that;
# * a value is all that stands between the first ``name:`` at the start of a line and the CRLF. So
#   it is the value of the first field of that name, in the head as in the outline;
# * ``scan_head`` has checked the bytes of the head itself, and its size. Any value of such bytes
#   is valid in a field, for the guard and for h11, which both strip white space around it. A value
#   cannot contain a CRLF; one that continues on the next line makes the outline malformed;
# * only the length among the values has an effect on parsing. It must be at most 20 digits and
#   within the limit, which h11 accepts, too; a second Content-Length makes the outline malformed.
# In all other cases the head is parsed as a whole, and refused with its own error: without a
# Content-Length, if the outline is malformed or larger than ``_MAX_OUTLINE``, for HEAD, HTTP/1.0, a
# connection that must close, and Expect, whose meaning depends on the length.
#
# Outlines are shared by all connections of the process, because their clients are few programs in
# many instances. Nothing of one client can reach another: all that is shared is equal in both
# heads, and the usual credentials are values, so they are not kept. ``functools.lru_cache`` is safe
# if several threads have an event loop each; the least recently used outlines are dropped.
_VALUES = tuple(
    (name, b"\r\n" + name + b":")
    for name in (
        b"content-length",
        *(b"authorization", b"api-key"),
        # Different for each request, if a client or a proxy sends them.
        *(b"idempotency-key", b"traceparent", b"x-client-request-id", b"x-request-id"),
        # Of Codex: different for each turn, and for each conversation.
        *(b"x-codex-turn-metadata", b"x-codex-window-id", b"session-id", b"thread-id"),
    )
)
_MAX_OUTLINE = 4096  # bytes; heads of usual clients have less than 1,000
_MAX_OUTLINES = 128  # about 3 KB each; at most 5 MB, if a client sends the most fields it may


@attrs.frozen
class _Outline:
    """A parsed outline."""

    method: bytes
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    places: dict[bytes, int]  # index in ``headers`` by name, of ``_VALUES``


@functools.lru_cache(_MAX_OUTLINES)
def _parse_outline(raw: bytes) -> _Outline | None:
    """The outline in ``raw``; None if heads like this one are parsed afresh each time."""
    try:
        head, close = parse_head(raw, parse_request_line(raw), 0)
    except RefusedError:
        return None
    names = [name for name, _ in head.headers]
    if head.method == b"HEAD" or close or b"expect" in names:
        return None
    places = {name: names.index(name) for name, _ in _VALUES if name in names}
    return _Outline(head.method, head.path, head.query, head.headers, places)


def read_known_head(raw: bytes, max_body: int) -> RequestHead | None:
    """The head in ``raw``, which ``scan_head`` accepted, by its outline. None: parse it afresh."""
    lower = raw.lower()
    found = []
    for name, line in _VALUES:
        at = lower.find(line)
        if at >= 0:
            at += len(line)
            found.append((at, raw.index(b"\r\n", at), name))
    if not found or found[0][2] != b"content-length":
        return None
    start, end, _ = found[0]
    digits = raw[start:end].strip(b" \t")
    if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
        return None
    length = int(digits)
    if length > max_body:
        return None

    found.sort()
    pieces = []
    at = 0
    for start, end, _ in found:
        pieces.append(raw[at:start])
        at = end
    pieces.append(raw[at:])
    outline_bytes = b"0".join(pieces)
    if len(outline_bytes) > _MAX_OUTLINE:
        return None
    outline = _parse_outline(outline_bytes)
    if outline is None:
        return None
    headers = outline.headers.copy()
    for start, end, name in found:
        headers[outline.places[name]] = (name, raw[start:end].strip(b" \t"))
    return RequestHead(outline.method, outline.path, outline.query, headers, length, False, False)
