"""JSON text as slices of itself: one reader for everything that comes from outside.

What belongs here: taking JSON apart without writing it again, so that what is passed on is passed
on byte for byte. msgspec does the reading. It refuses one thing that the JSON grammar allows and
that real peers send: an escape for half of a surrogate pair, such as ``\\ud83d`` alone, which is
what is left when somebody cuts a string in the middle of an emoji (RFC 8259, section 8.2, says that
the behaviour of receivers is unpredictable). Text that msgspec refuses and that has such an escape
is read by the standard library's scanner, which keeps the halves as they are. So there is one
answer for a text, whatever its white space and whoever asks.

Every function raises ``UnreadableError``, and nothing else, for what is not JSON or not of the
expected shape, is nested too deeply to be read, or has numbers too large to be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from bridgecore.errors import BridgecoreError

T = TypeVar("T")

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_any: Final = msgspec.json.Decoder().decode

_SURROGATE: Final = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_FAILURES: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


class UnreadableError(BridgecoreError):
    """It is no JSON that can be read here, or not of the shape that was asked for."""


def read_value(data: bytes) -> Any:
    """``data`` as Python values; half a surrogate pair stays one (``"\\ud83d"``)."""
    return _read(data, _any, lambda text: _strict.decode(text))


def read_members(data: bytes) -> dict[str, bytes]:
    """The members of an object, each value byte for byte. Of equal names the last counts."""
    return _read(data, _raw_members, _scanned_members)


def read_array(data: bytes) -> list[bytes]:
    """The elements of an array, each byte for byte."""
    return _read(data, _raw_array, _scanned_array)


def write_object(members: dict[str, bytes]) -> bytes:
    """An object of ``members``, each value byte for byte."""
    parts = [msgspec.json.encode(name) + b":" + value for name, value in members.items()]
    return b"{" + b",".join(parts) + b"}"


def _read(data: bytes, fast: Callable[[bytes], T], tolerant: Callable[[str], T]) -> T:
    try:
        return fast(data)
    except _FAILURES as error:
        if isinstance(error, msgspec.ValidationError) or not _SURROGATE.search(data):
            raise UnreadableError(f"it cannot be read: {error}") from None
    try:
        return tolerant(data.decode())
    except _FAILURES as error:
        raise UnreadableError(f"it cannot be read: {error}") from None


def _raw_members(data: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in _members(data).items()}


def _scanned_members(text: str) -> dict[str, bytes]:
    return {name: raw.encode() for name, raw in scan_members(text)}


def _scanned_array(text: str) -> list[bytes]:
    return [raw.encode() for raw in scan_array(text)]


def _raw_array(data: bytes) -> list[bytes]:
    return [bytes(raw) for raw in _array(data)]


# ------------------------------------------------------------------ the tolerant reader


def scan_members(text: str, decoder: json.JSONDecoder | None = None) -> Iterator[tuple[str, str]]:
    """The members of the object that ``text`` is, each value as it is written.

    Args:
        decoder: what reads the values, to find where they end; by default a strict one.

    Raises:
        ValueError: ``text`` is no object; some members may have been given before.
        RecursionError: it is nested too deeply.
    """
    read = (decoder or _strict).raw_decode
    at = _opened(text, "{")
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise ValueError(f"no member begins at character {at}")
        name, at = read(text, at)
        name.encode()  # half a surrogate pair in a name: it could not be written again
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no value at character {at}")
        start = _skip(text, at + 1)
        _, end = read(text, start)
        yield name, text[start:end]
        at = _next(text, end, "}")
    _closed(text, at + 1)


def scan_array(text: str, decoder: json.JSONDecoder | None = None) -> Iterator[str]:
    """The elements of the array that ``text`` is, as ``scan_members`` gives members."""
    read = (decoder or _strict).raw_decode
    at = _opened(text, "[")
    while text[at : at + 1] != "]":
        _, end = read(text, at)
        yield text[at:end]
        at = _next(text, end, "]")
    _closed(text, at + 1)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_strict: Final = json.JSONDecoder(parse_constant=_no_constant)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _opened(text: str, bracket: str) -> int:
    at = _skip(text, 0)
    if text[at : at + 1] != bracket:
        raise ValueError(f"it does not begin with {bracket}")
    return _skip(text, at + 1)


def _next(text: str, at: int, bracket: str) -> int:
    """Where the next element begins, or the bracket that ends them stands."""
    at = _skip(text, at)
    if text[at : at + 1] == bracket:
        return at
    if text[at : at + 1] != ",":
        raise ValueError(f"neither a comma nor {bracket} at character {at}")
    at = _skip(text, at + 1)
    if text[at : at + 1] == bracket:
        raise ValueError(f"nothing after the comma before character {at}")
    return at


def _closed(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise ValueError(f"something follows at character {at}")
