"""An upstream connection that speaks HTTP: each turn is a ``POST`` request, answered by a stream of
server-sent events.

What belongs here: sending turns as requests, one after the other on one connection, and turning
each kind of answer into the events that a WebSocket would have brought. The connection remembers
nothing from one request to the next; what follows from that is decided in ``bridgecore.recovery``.
"""

from __future__ import annotations

import re
from typing import Final

from bridgecore.config import Config
from bridgecore.links import Loss, ReadResult, Stage
from bridgecore.messages import SendFrame
from bridgecore.recovery.failure import Closed, Malformed, TimedOut
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.wire.headers import Headers
from bridgecore.wire.http_client import (
    AnswerDone,
    AnswerHead,
    AnswerPart,
    BadAnswerError,
    HttpClient,
    InterimHead,
)
from bridgecore.wire.responses import answer_error, ends_answer, events_of_response
from bridgecore.wire.sse import EventTooLongError, SseReader, data_of, is_error

# Bytes written at a time. While a body of megabytes is written, each part that the transport takes
# shows progress, as the frames of a WebSocket message do.
PART: Final = 65_536
# How long a connection is kept for the next turn. Many servers close one that is idle for 5 s
# (Node.js and uvicorn by default) without announcing it; a request that crosses with that close is
# an ambiguous loss, which costs the client a retry, while a new connection costs one round trip.
REUSE: Final = 4 * NS_PER_SECOND
# How much earlier than announced (``keep-alive: timeout=N``): for a request on its way.
_MARGIN: Final = NS_PER_SECOND
# How long the next turn waits for the end of an answer whose terminal event has come. Servers end
# it at once; after one that does not, the turn gets a new connection.
_END_TIMEOUT: Final = NS_PER_SECOND


class SseConnection:
    """The connection that carries ``link`` over HTTP; an ``UpstreamConnection``.

    There are no pings: while an answer is awaited, only the deadlines of its turn apply. An answer
    that was begun is not cancelled by a message, so a turn is given up by closing the connection.
    """

    __slots__ = (
        *("_answering", "_body", "_config", "_head", "_http", "_json", "_last", "_part", "_rest"),
        *("_sse", "_waiting", "deadline", "link", "paused", "stage", "url"),
    )

    def __init__(self, config: Config, link: int) -> None:
        self._config = config
        self._http = HttpClient(config.max_header)
        self._sse = SseReader(config.max_message)
        self._head: AnswerHead | None = None  # of the answer that is being read
        self._json = False  # its body is collected in ``_body``, not read as a stream
        self._body = bytearray()
        self._answering = False  # a request was sent, and its answer is not complete
        self._last = b""  # its latest event
        self._rest: memoryview = memoryview(b"")  # of the request that is being sent
        self._part = 0  # bytes of it that the transport is taking now
        self._waiting: SendFrame | None = None  # to be sent when the answer before it is complete
        self.link = link
        self.url = config.upstream
        self.stage = Stage.CONNECTING
        self.paused = False
        self.deadline: int | None = None

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return Timer.REUSE

    @property
    def whole(self) -> bool:
        """Whether the transport has taken all of the request."""
        return self._waiting is None and not self._part

    @property
    def unsent(self) -> bool:
        """Whether no byte of the latest message was handed to the transport."""
        return self._waiting is not None

    def connected(self) -> ReadResult:
        """The transport is connected: a turn can be sent at once."""
        self.stage = Stage.OPEN
        return ReadResult(opened=True)

    # ------------------------------------------------------------ input

    def receive(self, data: bytes, now: int) -> ReadResult:
        """Parse received bytes."""
        read = ReadResult()
        parts: list[AnswerPart] = []
        broken: str | None = None
        try:
            self._http.receive_into(parts, data)
        except BadAnswerError as exc:
            broken = str(exc)  # what came before it counts
        try:
            for part in parts:
                if isinstance(part, AnswerHead):
                    self._begin(part)
                elif isinstance(part, AnswerDone):
                    self._complete(part, read, now)
                elif isinstance(part, InterimHead):
                    pass  # a sign of life, as all that is received
                elif self._json:
                    self._collect(part)
                else:
                    self._read_events(part, read)
        except (EventTooLongError, BadAnswerError) as exc:
            broken = str(exc)
        if broken is not None:
            read.loss = read.loss or Loss(Malformed(broken))
        return read

    def receive_eof(self, now: int) -> ReadResult:
        """The upstream has ended its sending side: that is the end of an answer without a length;
        between two turns it loses nothing."""
        read = ReadResult()
        if not self._answering:
            read.loss = Loss(Closed(1000))
            return read
        try:
            for part in self._http.receive(b""):
                if isinstance(part, AnswerDone):
                    self._complete(part, read, now)
        except BadAnswerError:
            read.loss = Loss(Closed(1000 if ends_answer(self._last) else 1006))
        return read

    def _begin(self, head: AnswerHead) -> None:
        coding = dict(head.headers).get(b"content-encoding", b"identity").strip().lower()
        if head.status < 300 and coding not in (b"identity", b""):
            raise BadAnswerError("an answer that is compressed, although only a plain one is taken")
        self._head = head
        self._json = head.status >= 300 or not _is_stream(head)

    def _collect(self, part: bytes) -> None:
        self._body += part
        if len(self._body) > self._config.max_message:
            raise EventTooLongError(f"an answer of more than {self._config.max_message:,} bytes")

    def _read_events(self, part: bytes, read: ReadResult) -> None:
        """Read a part of a stream. Comments have no data: they show that the upstream is alive, and
        keepalives extend no deadline. Once the next turn waits, what still comes is of a response
        that has ended."""
        for event in self._sse.receive_raw(part):
            data = data_of(event)
            if not data or data == b"[DONE]" or self._waiting is not None:
                continue
            if is_error(event):
                data = answer_error(None, [], data)
            read.messages.append(data)
            self._last = data

    def _complete(self, done: AnswerDone, read: ReadResult, now: int) -> None:
        """The answer is complete: turn a body that is no stream into events."""
        head, body = self._head, bytes(self._body)
        assert head is not None, "an answer ends after its head"
        cut = bool(self._rest)  # it came before the whole request was sent
        broken = self._read_body(head, body, read) if self._json else None
        unended = not self._json and not ends_answer(self._last)
        self._head, self._json, self._answering, self._last = None, False, False, b""
        self._body.clear()
        self._sse = SseReader(self._config.max_message)
        if broken is not None:
            read.loss = Loss(Malformed(broken))
        elif unended:
            read.loss = Loss(Closed(1006))
        elif cut or not done.reusable:
            read.loss = Loss(Closed(1000))
        else:
            self._go_on(head, read, now)

    def _read_body(self, head: AnswerHead, body: bytes, read: ReadResult) -> str | None:
        """Add the events of an answer that is no stream; what is wrong with it, if they cannot be
        made."""
        if head.status >= 400:
            read.messages.append(answer_error(head.status, head.headers, body))
        elif head.status >= 300:
            words = b"The upstream redirects requests (%d). Configure its final URL." % head.status
            read.messages.append(answer_error(502, [], words))
        elif (events := events_of_response(body)) is not None:
            read.messages += events
        else:
            return "the answer is neither a stream of events nor a response"
        return None

    def _go_on(self, head: AnswerHead, read: ReadResult, now: int) -> None:
        """Keep the connection for the next turn, or send the one that waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            read.reply, read.sends = self._request(waiting), True
            self.deadline = None
            return
        announced = _TIMEOUT.search(dict(head.headers).get(b"keep-alive", b""))
        kept = REUSE if announced is None else int(announced[1]) * NS_PER_SECOND - _MARGIN
        self.deadline = now + max(1, kept)

    # ------------------------------------------------------------ output

    def send(self, message: SendFrame, now: int) -> bytes:
        """The first part of the request that carries a turn; empty if an answer is not complete."""
        if self._answering:
            self._waiting = message
            self.deadline = now + _END_TIMEOUT
            return b""
        self.deadline = None
        return self._request(message)

    def _request(self, message: SendFrame) -> bytes:
        self._answering = True
        headers: Headers = [
            (b"host", self.url.authority.encode("ascii")),
            *[header for header in message.headers if header[0] not in _OURS],
            (b"accept", b"text/event-stream"),
            # Without it any coding is as good (RFC 9110, section 12.5.3), and events that are
            # compressed come late: an encoder collects some before it gives any out.
            (b"accept-encoding", b"identity"),
            (b"content-type", b"application/json"),
        ]
        target = self.url.target.encode("ascii")
        request = self._http.request(b"POST", target, headers, message.post_body)
        self._rest = memoryview(request)
        return self._next_part()

    def _next_part(self) -> bytes:
        part = bytes(self._rest[:PART])
        self._rest = self._rest[PART:]
        self._part = len(part)
        return part

    def frame_sent(self, now: int) -> bytes:
        """The transport has taken the last part; return the next one, if any."""
        return self._next_part()

    def close(self) -> bytes:
        """Nothing: a connection that is closed in mid-answer cancels the turn."""
        return b""

    def part(self, now: int) -> None:
        """Never called: ``close`` sends nothing, so there is no answer to it to wait for."""
        raise AssertionError("HTTP has no closing handshake")

    def timeout(self, now: int) -> bytes | TimedOut:
        """``deadline`` has passed: the connection is not kept any longer."""
        return TimedOut(Timer.REUSE) if self.deadline is not None else b""


_OURS: Final = frozenset({b"host", b"accept", b"accept-encoding", b"content-type"})
_TIMEOUT: Final = re.compile(rb"(?:^|[,\s])timeout=([0-9]{1,6})(?:$|[,\s])")


def _is_stream(head: AnswerHead) -> bool:
    """Whether the body is a stream of events. One without a type is taken for the stream that was
    asked for."""
    kind = dict(head.headers).get(b"content-type", b"text/event-stream")
    return kind.partition(b";")[0].strip().lower() == b"text/event-stream"
