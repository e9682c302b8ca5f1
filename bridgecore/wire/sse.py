"""Writes and reads server-sent events (WHATWG HTML standard, section 9.2).

What belongs here: the framing of an event and of a keepalive comment, and reading events from a
stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridgecore.errors import BridgecoreError
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


class EventTooLongError(BridgecoreError):
    """An event is longer than ``SseReader`` was allowed to keep."""


class SseReader:
    """Reads the data of events from a stream, piece by piece. ``longest``: bytes of one event.

    Names of events are not read: each event of the Responses API names itself in its data. An error
    may not, see ``is_error``.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        # Of an event that is not complete, as it came. It is joined once, when the event may end:
        # to search all of a large event at each read would take quadratic time.
        self._pieces: list[bytes] = []
        self._size = 0  # bytes in them
        self._after_cr = False  # the stream so far ends with CR: an LF after it ends no other line
        self._start: bytes | None = (
            b""  # the first bytes, while they may be a byte order mark; else None
        )

    def receive(self, data: bytes) -> list[bytes]:
        """The data of the events that ``data`` completes, in order. Comments have none.

        Raises:
            EventTooLongError: an event is longer than ``longest``.
        """
        return [found for event in self.receive_raw(data) if (found := data_of(event))]

    def receive_raw(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes as they came, comments included: see ``data_of``.

        Raises:
            EventTooLongError: an event is longer than ``longest``.
        """
        if self._start is not None:
            data = self._without_mark(data)
        if self._after_cr or b"\r" in data:
            data = self._with_line_feeds(data)
        pieces = self._pieces
        across = data.startswith(b"\n") and bool(pieces) and pieces[-1].endswith(b"\n")
        whole: list[bytes] = []
        if across or b"\n\n" in data:
            if pieces:
                data = b"".join([*pieces, data])
            *whole, data = data.split(b"\n\n")
            pieces.clear()
            self._size = 0
        if data:
            pieces.append(data)
            self._size += len(data)
        if self._size > self._longest:
            raise EventTooLongError(f"an event of more than {self._longest:,} bytes")
        return whole

    def _without_mark(self, data: bytes) -> bytes:
        """``data``, from the start of the stream, without the byte order mark that may be there."""
        data = (self._start or b"") + data
        if len(data) < len(_MARK) and _MARK.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(_MARK)

    def _with_line_feeds(self, data: bytes) -> bytes:
        """``data`` with its line breaks, which may be CR, LF or both, as LF."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return _LINE_BREAK.sub(b"\n", data)


_LINE_BREAK = re.compile(rb"\r\n?")
_MARK = "\ufeff".encode()
_ERROR = frozenset({b"event: error", b"event:error"})


def is_error(event: bytes) -> bool:
    """Whether ``event``, as ``receive_raw`` returns it, is named ``error``. Its data may not say
    so."""
    # Nearly no event has the words. In those that have, they may be in the data.
    return (b"event: error" in event or b"event:error" in event) and not _ERROR.isdisjoint(
        event.split(b"\n")
    )


def data_of(event: bytes) -> bytes:
    """The data of one event, as ``receive_raw`` returns it; empty if it has none."""
    head, colon, rest = event.partition(b"\ndata: ")
    if colon and b"\n" not in rest and b"\n" not in head and not head.startswith(b"data"):
        return rest  # as written here: a name and one line of data
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines)
