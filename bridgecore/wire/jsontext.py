"""Reads JSON from peers, and splits objects and arrays into slices of their text.

What belongs here: splitting JSON without writing it again, so that parts can be passed on byte for
byte; and the limits of reading, so that no other module has to know what a decoder raises.

The reader is msgspec. It refuses one thing that the JSON grammar allows and that real peers send:
an escape for half of a surrogate pair, such as ``\\ud83d`` alone, which is left when a string is
cut in the middle of an emoji (RFC 8259, section 8.2, calls the behaviour of receivers
unpredictable). Text that msgspec refuses and that has such an escape is read by the standard
library's scanner, which keeps the halves as they are. So the result for a text does not depend on
its white space or on which function reads it.

Every function raises ``UnreadableError``, and nothing else, for what is not JSON or not of the
expected shape, is nested too deeply, or has numbers too large to be read. Nesting has two limits:

* Decoders fail at CPython's recursion limit, also in values that they only skip (at about 850
  levels in CPython 3.11, several thousand in later versions). This limits the text that is passed
  on: it is refused where it is received, because that is where it is split first.
* Python values are later walked and written with a call for each level, deeper in the stack than
  where they were read. ``MAX_DEPTH`` leaves room for that, so that a value that could be read can
  also be written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from bridgecore.errors import BridgecoreError

T = TypeVar("T")
Text: TypeAlias = bytes | msgspec.Raw  # a Raw is a part of a text, a view of its bytes

# Levels of arrays and objects in a value. CPython 3.11 lets all calls together recurse 1,000 times:
# half of it is for JSON, the other half for the stack of those who read it. What clients send has
# some 20 levels; OpenAI takes schemas of 10.
MAX_DEPTH: Final = 512

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_any: Final = msgspec.json.Decoder().decode

# An escape that may be half of a surrogate pair.
SURROGATE: Final = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_FAILURES: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


class UnreadableError(BridgecoreError):
    """The text is not JSON that can be read, or not of the expected shape.

    The message says why, and contains nothing of the text except names that the caller asked for.
    """


class WrongShapeError(UnreadableError):
    """The text is JSON, as far as it was read, but not of the expected shape."""


class TooDeepError(UnreadableError):
    """The text is nested more deeply than can be read."""


def read_value(text: Text) -> Any:
    """``text`` as Python values of at most ``MAX_DEPTH`` levels. Half a surrogate pair is kept as
    it is (``"\\ud83d"``)."""
    value = _read(text, _any, _strict_value)
    nests = isinstance(value, dict | list) and len(text) >= _SHORTEST
    if nests and _depth(bytes(text)) > MAX_DEPTH:
        raise TooDeepError("it is nested too deeply")
    return value


def read_members(text: Text) -> dict[str, msgspec.Raw]:
    """The members of an object, each value byte for byte. Of equal names the last counts."""
    return _read(text, _members, _scanned_members)


def read_array(text: Text) -> list[msgspec.Raw]:
    """The elements of an array, each byte for byte."""
    return _read(text, _array, _scanned_array)


def reader(kind: type[T]) -> Callable[[Text], T]:
    """A function that reads ``kind``, a Struct or a list of them, and skips members that it does
    not have. Strings in it may have half a surrogate pair."""
    decode = msgspec.json.Decoder(kind).decode

    def read(text: Text) -> T:
        try:
            return decode(text)
        except _FAILURES as error:
            return _read_again(text, error, lambda found: _as_kind(found, kind))

    return read


def begins(text: Text, mark: bytes) -> bool:
    """Whether ``text`` begins with ``mark``: tells the kind of a value without copying it."""
    return bytes(memoryview(text)[: len(mark)]) == mark


NULL: Final = msgspec.Raw(b"null")  # in a member, the API treats it like an absent one

quoted: Final[Callable[[str], bytes]] = msgspec.json.Encoder().encode  # a name as JSON text


def value_of(raw: Text | None) -> Any:
    """``raw`` as a Python value; None if there is none, or it cannot be read."""
    try:
        return None if raw is None else read_value(raw)
    except UnreadableError:
        return None


def text_of(raw: Text | None) -> str:
    """``raw`` as a string; empty if it is none."""
    value = value_of(raw)
    return value if isinstance(value, str) else ""


def write_object(members: Mapping[str, Text]) -> bytes:
    """An object of ``members``, each value byte for byte."""
    parts: list[Text] = []
    for name, value in members.items():
        parts += (b",", quoted(name), b":", value)
    parts[:1] = [b"{"]
    parts.append(b"}")
    return b"".join(parts)


def _read(text: Text, fast: Callable[[Text], T], tolerant: Callable[[str], T]) -> T:
    try:
        return fast(text)
    except _FAILURES as error:
        return _read_again(text, error, tolerant)


def _read_again(text: Text, error: Exception, tolerant: Callable[[str], T]) -> T:
    """Read ``text`` with ``tolerant``, if the reason of ``error`` may be half a surrogate pair."""
    if isinstance(error, msgspec.ValidationError) or not SURROGATE.search(text):
        raise _unreadable(error) from None
    try:
        return tolerant(bytes(text).decode())
    except _FAILURES as failure:
        raise _unreadable(failure) from None


def _unreadable(error: Exception) -> UnreadableError:
    """The error to raise instead of ``error``, one of ``_FAILURES``."""
    if isinstance(error, RecursionError):
        return TooDeepError("it is nested too deeply")
    kind = WrongShapeError if isinstance(error, msgspec.ValidationError) else UnreadableError
    return kind(str(error).removeprefix("JSON is malformed: "))


def _strict_value(text: str) -> Any:
    return _strict.decode(text)


def _as_kind(text: str, kind: type[T]) -> T:
    return msgspec.convert(_strict.decode(text), kind)


def _scanned_members(text: str) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(raw.encode()) for name, raw in _each_member(text, _strict)}


def _scanned_array(text: str) -> list[msgspec.Raw]:
    return [msgspec.Raw(raw.encode()) for raw in _each_element(text, _strict)]


_SHORTEST: Final = 2 * MAX_DEPTH  # bytes: each level has a bracket at both ends
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # a level more; one less (-1)


def _depth(text: bytes) -> int:
    """How deeply ``text``, which is JSON, is nested. If it has at most ``MAX_DEPTH`` brackets, it
    is not measured and their number is returned, which is an upper bound."""
    brackets = text.count(b"[") + text.count(b"{")
    if brackets <= MAX_DEPTH:
        return brackets
    # Remove escaped backslashes first: after that, a backslash before a quote escapes the quote.
    bare = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE)
    steps = b"".join(bare.split(b'"')[::2]).translate(_STEPS)
    return max(accumulate(memoryview(steps).cast("b")))


# ------------------------------------------------------------------ the tolerant reader


def scan_members(text: str, decoder: json.JSONDecoder) -> dict[str, str]:
    """The members of an object, each value as it is written.

    ``decoder`` finds the end of each value and may accept more than JSON. So this is for text that
    is not passed on as it is, such as an error. The depth that it can read depends on the depth of
    the stack where it is called.
    """
    return _scan(lambda: dict(_each_member(text, decoder)))


def scan_array(text: str, decoder: json.JSONDecoder) -> list[str]:
    """The elements of an array, read like the members of ``scan_members``."""
    return _scan(lambda: list(_each_element(text, decoder)))


def scan_value(text: str, decoder: json.JSONDecoder) -> Any:
    """``text`` as the Python value that ``decoder`` reads."""
    return _scan(lambda: decoder.decode(text))


def _scan(scan: Callable[[], T]) -> T:
    try:
        return scan()
    except _FAILURES as error:
        raise _unreadable(error) from None


def _each_member(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, str]]:
    read = decoder.raw_decode
    at = _opened(text, "{")
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise ValueError(f"no member begins at character {at}")
        name, at = read(text, at)
        name.encode()  # refuse half a surrogate pair in a name, which could not be written again
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no value at character {at}")
        start = _skip(text, at + 1)
        _, end = read(text, start)
        yield name, text[start:end]
        at = _next(text, end, "}")
    _closed(text, at + 1)


def _each_element(text: str, decoder: json.JSONDecoder) -> Iterator[str]:
    read = decoder.raw_decode
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
    """The position of the next element, or of the closing bracket."""
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
