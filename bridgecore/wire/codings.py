"""Content codings of a request body: compressed bytes in, plain bytes out (RFC 9110, section 8.4).

What belongs here: which codings are accepted, and decoding them within bounds. A few hundred bytes
can decode to gigabytes, so three things are limited:

* *The output*, of each coding: nothing is decoded beyond ``max_size`` and one byte.
* *The work*: it is proportional to the bytes received and decoded. The start of a gzip member or a
  zstd frame costs more than its bytes, so there may be at most ``MAX_MEMBERS``.
* *The memory* before there is output: zstd's window is at most 8 MiB, as HTTP requires (RFC 9659).

A body is decoded while it is received, so that a large one does not delay other connections when
its last byte arrives. It is decoded in blocks of ``_BLOCK`` bytes, whatever the size of the reads:
the result cannot depend on how the body was split, and single bytes do not cost a call each.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import attrs

from bridgecore.errors import BridgecoreError

if sys.version_info >= (3, 14):
    import compression.zstd as zstd
else:
    import backports.zstd as zstd

__all__ = [
    "ACCEPTED",
    "MAX_CODINGS",
    "MAX_MEMBERS",
    "BodyDecoder",
    "BodyTooLargeError",
    "UndecodableBodyError",
    "UnsupportedCodingError",
    "parse_codings",
]

ACCEPTED = ("gzip", "deflate", "zstd")  # as an Accept-Encoding header lists them
# One by the client and one by an intermediary. Each multiplies the size that a body can decode to.
MAX_CODINGS = 2
# Tools that compress in parallel write several members. Each costs as much as about 10 KB of data.
MAX_MEMBERS = 64

_BLOCK = 64 * 1024  # bytes
_WINDOW_LOG = 23  # 8 MiB, as the power of two
_HEADER = 18  # bytes of the longest zstd header
_ALIASES = {"x-gzip": "gzip"}  # RFC 9110, section 8.4.1.3


class UnsupportedCodingError(BridgecoreError):
    """A ``Content-Encoding`` that is not accepted, or a variant of one: 415. The message is for
    the client."""


class UndecodableBodyError(BridgecoreError):
    """A body that is not what its ``Content-Encoding`` says: 400. The message is for the client."""


class BodyTooLargeError(BridgecoreError):
    """A body that decodes to more than ``max_size`` bytes: 413."""


def parse_codings(values: Iterable[bytes]) -> list[str]:
    """The codings of a body in the order in which they were applied; none for ``identity``.

    Args:
        values: the values of all ``Content-Encoding`` header fields, in order.

    Raises:
        UnsupportedCodingError: a coding is unknown, or there are more than ``MAX_CODINGS``.
    """
    members = b",".join(values).decode("latin-1").split(",")
    names = [member.strip(" \t").lower() for member in members]
    codings = [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    if any(name not in _CODINGS for name in codings):
        raise UnsupportedCodingError(
            f"The Content-Encoding of the request body must be one of {', '.join(ACCEPTED)},"
            " or be left out."
        )
    if len(codings) > MAX_CODINGS:
        raise UnsupportedCodingError(
            f"The request body has more than {MAX_CODINGS} content codings. Use one of"
            f" {', '.join(ACCEPTED)}."
        )
    return codings


class BodyDecoder:
    """Decodes one body: call ``receive`` with its bytes, then ``finish``. Unusable after an error.

    Args:
        codings: as ``parse_codings`` returns them, at least one.
        max_size: bytes that the body may decode to.
    """

    def __init__(self, codings: Sequence[str], max_size: int) -> None:
        # The coding that was applied last is decoded first.
        self._layers = [_Layer(_CODINGS[name], max_size) for name in reversed(codings)]
        self._block = bytearray()
        self._body = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes in memory, decoded and still encoded."""
        return len(self._block) + len(self._body)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Decode the next bytes of the encoded body.

        Raises:
            UndecodableBodyError: they are not valid in the coding.
            UnsupportedCodingError: they use a feature of the coding that is not supported.
            BodyTooLargeError: they decode to more than ``max_size``.
        """
        with memoryview(data) as view:
            at = 0
            while len(self._block) + len(view) - at >= _BLOCK:
                end = at + _BLOCK - len(self._block)
                self._block += view[at:end]
                self._decode_block()
                at = end
            self._block += view[at:]

    def finish(self) -> bytes:
        """The decoded body, all of it having been received.

        Raises:
            UndecodableBodyError: it is incomplete, or followed by other data.
            UnsupportedCodingError: it uses a feature of the coding that is not supported.
            BodyTooLargeError: it decodes to more than ``max_size``.
        """
        self._decode_block()
        for layer in self._layers:
            layer.finish()
        return bytes(self._body)

    def _decode_block(self) -> None:
        data = bytes(self._block)
        self._block.clear()
        for layer in self._layers:
            data = layer.decode(data)
        self._body += data


# ---------------------------------------------------------------------- one coding


class _Decompressor(Protocol):
    """What zlib's and zstd's decompressors have in common. It decodes one member or frame."""

    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


@attrs.frozen
class _Coding:
    """``looks_right``: whether a member can begin with these bytes, at least ``lookahead``;
    ``unsupported``: what is not accepted of it, if anything, judging by up to ``_HEADER`` bytes."""

    name: str
    error: type[Exception]
    start: Callable[[bytes], _Decompressor]
    looks_right: Callable[[bytes], bool]
    lookahead: int
    members: int = MAX_MEMBERS
    unsupported: Callable[[bytes], str | None] = lambda _: None


class _Layer:
    """Decodes one coding. A body is one or more members (zstd: frames) and nothing else."""

    def __init__(self, coding: _Coding, max_size: int) -> None:
        self._coding = coding
        self._room = max_size  # bytes that may still come out
        self._member: _Decompressor | None = None
        self._members = 0  # begun so far
        self._held = b""  # too few bytes to tell what they begin
        self._header = b""  # the first bytes of the member

    def decode(self, data: bytes) -> bytes:
        """What ``data``, the next bytes of the encoded body, decodes to."""
        data = self._held + data
        self._held = b""
        pieces = []
        while data:
            if self._member is None and len(data) < self._coding.lookahead:
                self._held = data
                break
            member = self._member or self._begin(data)
            self._header += data[: _HEADER - len(self._header)]
            try:
                # Ask for one byte more than allowed, to notice a body that is too large.
                piece = member.decompress(data, max_length=self._room + 1)
            except self._coding.error:
                raise self._refusal() from None
            self._room -= len(piece)
            if self._room < 0:
                raise BodyTooLargeError
            pieces.append(piece)
            # All of ``data`` was used, or the member is complete.
            data = member.unused_data if member.eof else b""
            self._member = None if member.eof else member
        return b"".join(pieces)

    def finish(self) -> None:
        """Check that the encoded body ends with a complete member."""
        name = self._coding.name
        if self._members and self._held:
            raise self._trailing()
        if self._member is not None or not self._members:
            raise UndecodableBodyError(
                f"The {name} data of the request body is incomplete. Send all of it."
            )

    def _begin(self, data: bytes) -> _Decompressor:
        if not self._coding.looks_right(data):
            raise self._trailing() if self._members else self._undecodable()
        if self._members == self._coding.members:
            if self._members == 1:
                raise self._trailing()
            raise UndecodableBodyError(
                f"The request body consists of more than {self._members} {self._coding.name}"
                " members or frames. Compress it as one."
            )
        self._members += 1
        self._header = b""
        return self._coding.start(data)

    def _refusal(self) -> UnsupportedCodingError | UndecodableBodyError:
        """The error for a member that could not be decoded: an unsupported feature, or not
        valid."""
        unsupported = self._coding.unsupported(self._header)
        if unsupported is None:
            return self._undecodable()
        return UnsupportedCodingError(
            f"The {self._coding.name} data of the request body needs {unsupported}, which is not"
            f" supported. Compress it without, as {' or '.join(ACCEPTED)}."
        )

    def _trailing(self) -> UndecodableBodyError:
        return UndecodableBodyError(
            f"The {self._coding.name} data of the request body is followed by something else."
            " Send it alone."
        )

    def _undecodable(self) -> UndecodableBodyError:
        return UndecodableBodyError(
            f"The request body is not valid {self._coding.name}, which its Content-Encoding says"
            " it is."
        )


def _is_zlib(data: bytes) -> bool:
    """Whether the data has a zlib header (RFC 1950, section 2.2) and is not raw deflate.

    A raw stream that looks like one would begin with a stored block and have padding that is not
    zero, which no encoder writes.
    """
    return data[0] & 0x0F == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0


def _start_deflate(data: bytes) -> _Decompressor:
    """HTTP's ``deflate`` is the zlib format; some clients send raw deflate, so both are read
    (RFC 9110, section 8.4.1.2)."""
    return zlib.decompressobj(zlib.MAX_WBITS if _is_zlib(data) else -zlib.MAX_WBITS)


def _start_zstd(_: bytes) -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def _is_zstd(data: bytes) -> bool:
    """A frame, or one to be skipped (RFC 8878, sections 3.1.1 and 3.1.2)."""
    return data.startswith(b"\x28\xb5\x2f\xfd") or (
        data[0] & 0xF0 == 0x50 and data.startswith(b"\x2a\x4d\x18", 1)
    )


def _unsupported_zstd(header: bytes) -> str | None:
    """What a decoder without dictionaries, and with a bounded window, cannot decode of a frame
    (RFC 8878, section 3.1.1.1)."""
    descriptor, window = header[4], 0
    if descriptor & 0x08:
        return "a later version of zstd"
    at = 5
    if not descriptor & 0x20:
        base = 1 << (10 + (header[at] >> 3))
        window = base + (base >> 3) * (header[at] & 7)
        at += 1
    size = (0, 1, 2, 4)[descriptor & 3]
    if any(header[at : at + size]):
        return "a dictionary"
    if descriptor & 0x20:  # a single segment: the window is the content
        at += size
        size = 1 << (descriptor >> 6)
        window = int.from_bytes(header[at : at + size], "little") + (256 if size == 2 else 0)
    if window > 1 << _WINDOW_LOG:
        return f"a window of more than {(1 << _WINDOW_LOG) >> 20} MiB"
    return None


_CODINGS = {
    coding.name: coding
    for coding in (
        _Coding(
            name="gzip",
            error=zlib.error,
            start=lambda _: zlib.decompressobj(16 + zlib.MAX_WBITS),
            looks_right=lambda data: data.startswith(b"\x1f\x8b"),
            lookahead=2,
        ),
        _Coding(
            name="deflate",
            error=zlib.error,
            start=_start_deflate,
            looks_right=lambda _: True,
            lookahead=2,
            members=1,
        ),
        _Coding(
            name="zstd",
            error=zstd.ZstdError,
            start=_start_zstd,
            looks_right=_is_zstd,
            lookahead=6,  # less than the smallest frame has
            unsupported=_unsupported_zstd,
        ),
    )
}
