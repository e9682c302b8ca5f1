"""Server-sent events, as the WHATWG HTML standard (section 9.2) frames them.

What belongs here: bytes in, bytes out.
"""

from __future__ import annotations

from bridgecore.wire.responses import UpstreamEvent

COMMENT = b": keepalive\n\n"
"""A comment, which readers skip: shows a client that its stream is alive."""


def encode_event(event: UpstreamEvent) -> bytes:
    """``event`` as one server-sent event. JSON that contains line ends becomes several ``data``
    lines, which a reader joins with newlines again: the same JSON."""
    data = event.data
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.splitlines())
    return b"event: %b\ndata: %b\n\n" % (event.type, data)
