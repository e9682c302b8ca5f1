"""A connection to the replica that owns a conversation: each turn is an HTTP request, answered by a
stream of events.

What belongs here: sending forwards, reading their answers, and giving up a replica that is silent.
How a forward is signed is in ``bridgecore.ownership.forwards``; what follows from the loss of an
owner is decided in ``bridgecore.recovery``.
"""

from __future__ import annotations

from bridgecore.config import Config, PeerUrl
from bridgecore.links import Loss, ReadResult, Stage
from bridgecore.messages import SendFrame
from bridgecore.ownership.forwards import PATH, REPLICA, SIGNATURE, Verdict, read_replica
from bridgecore.recovery.failure import NO_REPLICA, Closed, Malformed, NotDispatched, TimedOut
from bridgecore.recovery.timers import Timer
from bridgecore.wire.http_client import (
    AnswerDone,
    AnswerHead,
    BadAnswerError,
    HttpClient,
    InterimHead,
)
from bridgecore.wire.responses import answer_error, ends_answer
from bridgecore.wire.sse import EventTooLongError, SseReader


class ForwardConnection:
    """The connection that carries ``link`` to ``owner``; an ``UpstreamConnection``.

    A forward that its receiver has taken can wait there for another turn of its conversation, for
    as long as that takes. Until its answer begins, the message counts as taken in part only, and
    each sign of life as another part: the receiver keeps its own deadlines, so this end only has to
    notice when it is gone.
    """

    __slots__ = (
        *("_body", "_config", "_head", "_http", "_known", "_last", "_seen", "_sent", "_sse"),
        *("deadline", "link", "paused", "stage", "url", "whole"),
    )
    unsent = False  # a message is handed to the transport at once

    def __init__(self, config: Config, link: int, owner: PeerUrl) -> None:
        self._config = config
        self._http = HttpClient(config.max_header)
        self._sse = SseReader(config.max_message)
        self._head: AnswerHead | None = None  # of the answer that is being read
        self._known = False  # a replica has answered on this connection
        self._body = bytearray()  # of an answer that is no stream
        self._last = b""  # the latest event of the answer
        self._sent = False  # a forward was sent, and its answer is not complete
        self._seen = 0  # ns, the replica's last sign of life
        self.link = link
        self.url = owner
        self.stage = Stage.CONNECTING
        self.paused = False
        self.deadline: int | None = None
        self.whole = False

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return Timer.PING

    def connected(self) -> ReadResult:
        """The transport is connected: a turn can be sent at once."""
        self.stage = Stage.OPEN
        return ReadResult(opened=True)

    # ------------------------------------------------------------ input

    def receive(self, data: bytes, now: int) -> ReadResult:
        """Parse received bytes."""
        read = ReadResult()
        self._seen = now
        waits = self._sent and not self.whole
        try:
            for part in self._http.receive(data):
                if isinstance(part, AnswerHead):
                    self._head = part
                    if self._verdict is None:
                        read.loss = Loss(NO_REPLICA)
                        return read
                    self._known = True
                elif isinstance(part, AnswerDone):
                    self._answered(part, read)
                elif isinstance(part, InterimHead):
                    pass  # only given if asked for
                elif self._streams:
                    read.messages += self._sse.receive(part)
                else:
                    self._add(part)
        except (BadAnswerError, EventTooLongError) as exc:
            read.loss = Loss(Malformed(str(exc)) if self._known else NO_REPLICA)
        if read.messages:
            self.whole, self._last = True, read.messages[-1]
        # The first event, or a keepalive before it.
        read.progress = waits
        return read

    def receive_eof(self, now: int) -> ReadResult:
        """The replica has ended its sending side; the link is lost."""
        return ReadResult(loss=Loss(Closed(1006 if self._sent else 1000)))

    @property
    def _streams(self) -> bool:
        return self._head is not None and self._head.status == 200

    @property
    def _verdict(self) -> Verdict | None:
        said = self._header(SIGNATURE)
        return next((verdict for verdict in Verdict if verdict.value == said), None)

    def _header(self, name: bytes) -> bytes | None:
        return None if self._head is None else dict(self._head.headers).get(name)

    def _add(self, part: bytes) -> None:
        self._body += part
        if len(self._body) > self._config.max_message:
            raise EventTooLongError(f"an error of more than {self._config.max_message:,} bytes")

    def _answered(self, done: AnswerDone, read: ReadResult) -> None:
        """The answer is complete: end the turn if its stream has not ended it."""
        head, verdict, body = self._head, self._verdict, bytes(self._body)
        name = self._header(REPLICA)
        assert head is not None, "an answer ends after its head"
        messages = read.messages
        last = messages[-1] if messages else self._last
        self._head, self._last, self._sent = None, b"", False
        self._body.clear()
        if verdict is not Verdict.TAKEN:
            said = "rejected" if verdict is Verdict.REJECTED else "not dispatched"
            # One that drains rejects everything, too, and is about to give its conversations up.
            forbidden = verdict is Verdict.REJECTED and head.status == 403
            by = None if name is None else read_replica(name)
            read.loss = Loss(NotDispatched(f"forward {said} ({head.status})", forbidden, by))
        elif head.status != 200:
            messages.append(answer_error(head.status, head.headers, body))
        elif not ends_answer(last):
            read.loss = Loss(Closed(1006))
        if not done.reusable and read.loss is None:
            read.loss = Loss(Closed(1000))

    # ------------------------------------------------------------ output

    def send(self, message: SendFrame, now: int) -> bytes:
        """The request that carries a turn."""
        self._sent, self.whole, self._seen = True, False, now
        self.deadline = now + self._patience
        headers = [
            (b"host", self.url.authority.encode("ascii")),
            (b"content-type", b"application/json"),
            *message.headers,
        ]
        return self._http.request(b"POST", PATH.encode("ascii"), headers, message.data)

    def frame_sent(self, now: int) -> bytes:
        """The transport has taken the request; there is never more of it."""
        return b""

    def close(self) -> bytes:
        """Nothing: a connection that is closed in mid-answer cancels the turn."""
        return b""

    def part(self, now: int) -> None:
        """Never called: ``close`` sends nothing, so there is no answer to it to wait for."""
        raise AssertionError("a connection for forwards has no closing handshake")

    @property
    def _patience(self) -> int:
        """How long a replica that answers can be silent, ns: it sends the head, and keepalives,
        after fixed times; a second one may be lost in a busy moment."""
        config = self._config
        return 2 * max(config.head_timeout, config.keepalive) + config.ping_timeout

    def timeout(self, now: int) -> bytes | TimedOut:
        """``deadline`` has passed: the replica does not respond, unless it has been heard of since
        then, or is not read."""
        if self.paused:
            self._seen = now
        due = self._seen + self._patience
        if self._sent and due <= now:
            return TimedOut(Timer.PING)
        self.deadline = due if self._sent else None
        return b""
