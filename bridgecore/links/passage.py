"""A connection to the upstream's HTTP API that carries one request and its answer.

What belongs here: writing the head and the body of a request that is passed through, reading its
answer, and giving up an upstream that does not respond. How it is joined with the connection of the
client is in ``bridgecore.passages``.
"""

from __future__ import annotations

from bridgecore.config import Config, HttpUrl
from bridgecore.recovery.timers import Timer
from bridgecore.wire.headers import Headers
from bridgecore.wire.http_client import AnswerPart, HttpClient
from bridgecore.wire.passing import PassedRequest, passed_headers, target_of

# What describes the body of a request as its client sent it. If another body goes upstream in its
# place, decoded and with other members, they would be wrong.
_OF_THE_BODY = frozenset({b"content-digest", b"content-encoding", b"content-md5", b"digest"})


class PassageConnection:
    """The connection that carries ``request``. Nothing is sent before it is connected and, if the
    whole body is needed first, ``replace_body`` was called.

    ``deadline``: when to call ``timeout``, ns; None: never.
    """

    __slots__ = (
        *("_begun", "_body", "_config", "_connected", "_http", "_known", "_request", "_seen"),
        *("_whole_sent", "deadline", "url"),
    )

    def __init__(self, config: Config, request: PassedRequest, now: int) -> None:
        self._config = config
        self._request = request
        self._http = HttpClient(config.max_header)
        self._connected = False
        self._known = not request.whole  # the head can be written
        self._begun = False  # the head was written
        self._body: list[tuple[bytes, bool]] = []  # parts that wait, and whether each is the last
        self._whole_sent = False
        self._seen = now  # ns, when something was last passed on in either direction
        self.url: HttpUrl = config.http_base
        self.deadline: int | None = now + config.connect_timeout

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return Timer.IDLE if self._connected else Timer.CONNECT

    @property
    def connected(self) -> bool:
        """Whether the transport is connected."""
        return self._connected

    @property
    def sent(self) -> bool:
        """Whether the whole request was written."""
        return self._whole_sent

    @property
    def begun(self) -> bool:
        """Whether anything of the request was written."""
        return self._begun

    # ------------------------------------------------------------ output

    def connect(self, now: int) -> bytes:
        """The transport is connected; return what can be sent."""
        self._connected = True
        self.alive(now)
        self.deadline = now + self._config.idle_timeout
        return self._write()

    def replace_body(self, body: bytes) -> bytes:
        """The request goes with ``body``; return what can be sent."""
        self._known = True
        self._body = [(body, True)]
        return self._write()

    def send(self, data: bytes, now: int, *, last: bool) -> bytes:
        """Take the next part of the body; return what can be sent. Parts wait until the connection
        is open: the caller reads no more from the client until then."""
        self.alive(now)
        self._body.append((data, last))
        return self._write()

    def _write(self) -> bytes:
        if not (self._connected and self._known):
            return b""
        parts = []
        if not self._begun:
            parts.append(self._head())
            self._begun = True
        waiting, self._body = self._body, []
        for data, last in waiting:
            parts.append(self._http.body(data, last=last))
            self._whole_sent = last
        return b"".join(parts)

    def _head(self) -> bytes:
        request, url = self._request, self.url
        target = target_of(request.segments, request.query, url.path, url.query)
        forwarded = frozenset(name.encode("ascii") for name in self._config.forward_headers)
        headers: Headers = [(b"host", url.authority.encode("ascii"))]
        headers += passed_headers(request.headers, forwarded)
        length = request.length
        if request.whole:
            headers = [field for field in headers if field[0] not in _OF_THE_BODY]
            length = len(self._body[0][0])
        headers.append((b"connection", b"close"))
        return self._http.begin(request.method, target, headers, length, chunked=request.chunked)

    # ------------------------------------------------------------ input

    def receive(self, data: bytes, now: int) -> list[AnswerPart]:
        """The parts of the answer that ``data`` completes; ``data`` is empty at the end of the
        stream.

        Raises:
            BadAnswerError: the upstream broke the protocol, or closed before the answer was
                complete.
        """
        self.alive(now)
        return self._http.receive(data)

    # ------------------------------------------------------------ time

    def alive(self, now: int) -> None:
        """Something was passed on. No deadline moves: ``timeout`` looks at this time when due."""
        self._seen = now

    def timeout(self, now: int) -> bool:
        """``deadline`` has passed: whether the passage is to be given up.

        After the connect, it is if nothing was passed on in either direction for ``idle_timeout``,
        whichever side is waited for. (A client that is waited for has ``body_timeout`` besides.)
        """
        if not self._connected:
            return True
        due = self._seen + self._config.idle_timeout
        self.deadline = due
        return due <= now
