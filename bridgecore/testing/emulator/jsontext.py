"""JSON as text: what the emulator reads from frames and writes into them.

What belongs here: encoding and decoding, with the limits that follow from both.
"""

from __future__ import annotations

import json

import msgspec


def encode(value: object) -> bytes:
    """``value`` as JSON, without white space."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half a surrogate pair, which needs an escape
        return json.dumps(value, separators=(",", ":")).encode()


def decode(raw: bytes) -> object:
    """The value of ``raw``; None if it is not JSON, or nested too deeply.

    Nesting is checked with eight levels to spare: the value is echoed inside of an event later, and
    has to be encodable there.
    """
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        try:
            body = json.loads(raw)  # half a surrogate pair, which msgspec rejects
        except (ValueError, RecursionError):
            return None
    except RecursionError:
        return None
    try:
        encode([[[[[[[[body]]]]]]]])
    except RecursionError:
        return None
    return body


def event_type(event: bytes) -> str | None:
    """The ``type`` of an event; None if it is not an object with one."""
    try:
        value = msgspec.json.decode(event)
    except (msgspec.DecodeError, RecursionError):
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None
