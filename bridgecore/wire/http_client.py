"""The client's side of an HTTP/1.1 connection: requests to bytes, and bytes to answers.

What belongs here: one exchange after the other on one connection, with answers of any framing. h11
does the work; this module keeps its exceptions and its classes from the rest.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs
import h11

from bridgecore.errors import BridgecoreError
from bridgecore.wire.headers import Headers


class BadAnswerError(BridgecoreError):
    """The server broke the protocol. The text is a short phrase without data of the answer."""


@attrs.frozen
class AnswerHead:
    """The head of an answer. ``headers``: names in lower case."""

    status: int
    headers: Headers


@attrs.frozen
class AnswerDone:
    """The answer is complete. ``reusable``: the connection can carry another request."""

    reusable: bool


AnswerPart: TypeAlias = AnswerHead | bytes | AnswerDone
"""A part of an answer: its head, bytes of its body, its end."""


class HttpClient:
    """One connection to an HTTP server. ``max_head``: bytes of an answer's head."""

    def __init__(self, max_head: int) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_head)

    def request(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> bytes:
        """The bytes of a request. ``headers``: with ``host``, without those that frame the body."""
        framed = [*headers, (b"content-length", b"%d" % len(body))]
        http = self._http
        head = http.send(h11.Request(method=method, target=target, headers=framed)) or b""
        sent = http.send(h11.Data(data=body)) or b""
        end = http.send(h11.EndOfMessage()) or b""
        return b"".join((head, sent, end))

    def receive(self, data: bytes) -> list[AnswerPart]:
        """The parts of the answer that ``data`` completes; ``data`` is empty at the end of the
        stream.

        Raises:
            BadAnswerError: the server broke the protocol, or closed in mid-answer.
        """
        http = self._http
        parts: list[AnswerPart] = []
        try:
            http.receive_data(data)
            while True:
                event = http.next_event()
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.Response):
                    parts.append(AnswerHead(event.status_code, list(event.headers)))
                elif isinstance(event, h11.EndOfMessage):
                    parts.append(AnswerDone(bool(data) and self._start_next()))
                elif not isinstance(event, h11.InformationalResponse):
                    return parts  # more is needed, or nothing more can come
        except h11.RemoteProtocolError:
            raise BadAnswerError("unreadable answer") from None

    def _start_next(self) -> bool:
        """Get ready for another request; whether the server allows one on this connection."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True
