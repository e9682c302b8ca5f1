"""Writes server-sent events (WHATWG HTML standard, section 9.2).

What belongs here: the framing of an event and of a keepalive comment.
"""

from __future__ import annotations

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
