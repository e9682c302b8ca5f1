"""Writes server-sent events (WHATWG HTML standard, section 9.2).

What belongs here: the framing of an event and of a keepalive comment.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridgecore.wire.responses import UpstreamEvent

COMMENT = b": keepalive\n\n"
"""A comment, which readers skip: shows a client that its stream is alive."""


def encode_event(event: UpstreamEvent) -> bytes:
    """``event`` as one server-sent event. JSON with line breaks is written as several ``data``
    lines, because a line break would end the field; a reader joins them to the same JSON."""
    data = event.data
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.splitlines())
    return b"event: %b\ndata: %b\n\n" % (event.type, data)


def encode_events(events: Sequence[UpstreamEvent]) -> bytes:
    """The encodings of ``events``, joined."""
    if len(events) == 1:
        return encode_event(events[0])
    data = b"".join([b"event: %b\ndata: %b\n\n" % (event.type, event.data) for event in events])
    # One search of all for line breaks in the JSON: they are rare.
    if b"\r" not in data and data.count(b"\n") == 3 * len(events):
        return data
    return b"".join([encode_event(event) for event in events])
