"""WebSocket (RFC 6455), client and server side: bytes to text messages and back, within limits.

What belongs here: the protocol up to complete text messages, whatever they contain. wsproto does
the framing and the opening handshake. The limits on heads, bodies, messages and fragments are
here, because wsproto has none.

Both sides share ``_Peer``: the client is used for upstream connections, the server by the emulator.
Their states:

    opening --Upgraded / accept()--> open --close()--> closing --CloseReceived--> closed
       |                              |                   |                          ^
       +--- UpgradeRejected, Failed --+-- Failed ---------+--------------------------+

* The results of ``receive`` and ``receive_eof`` do not depend on how the input was split, except
  that ``data_to_send`` may answer only the latest of many pings.
* A method changes the state at once. After a close or a failure, input is ignored and sending
  returns ``b""``: a peer that closes just before a message is sent is a race, not an error.
* Fragments of a message are joined, text is validated, extensions are never negotiated.
* A message is sent whole (``send_text``) or frame by frame, as fast as the transport takes it
  (``queue_text``, ``next_frame``). Pongs, pings and a close frame can be sent between two frames
  of a message (RFC 6455, section 5.4), so that the peer of a large message gets them in time.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeAlias

import attrs
import h11
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError as WsprotoLocalError
from wsproto.utilities import RemoteProtocolError

from bridgecore.errors import LocalProtocolError

MAX_HEAD: Final = 65_536  # bytes of an upgrade request or of its answer, up to the empty line
MAX_REJECT_BODY: Final = 65_536  # bytes kept of the body of a refused upgrade
MAX_FRAGMENTS: Final = 16_384  # frames of one message: empty ones take time, not bytes
MAX_INTERIM: Final = 8  # 1xx answers before the final one
MAX_PONGS: Final = 16  # pings kept until data_to_send(); RFC 6455, 5.5.3, allows to drop older ones
# Bytes of text in one frame of a queued message. A pong has to wait for at most one such frame.
# Smaller frames would cost more calls without use, because a socket takes about as much at once.
FRAGMENT: Final = 65_536

# Bytes passed to wsproto at once. It copies the rest of its buffer after each frame, so one large
# read of many small frames would take quadratic time.
_SLICE: Final = 65_536

_HEAD_END = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9][0-9][ \r\n]")
_UPGRADE = re.compile(rb"\nupgrade:[ \t]*websocket[ \t]*\r?\n", re.IGNORECASE)
_RESERVED = frozenset({b"host", b"connection", b"upgrade"})

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


# ------------------------------------------------------------------ events


@attrs.define
class Upgraded:
    """Client: a valid 101 answer. ``headers``: its fields, without those of the handshake."""

    headers: list[tuple[bytes, bytes]]


@attrs.define
class UpgradeRejected:
    """Client: an answer other than 101. ``body``: at most ``MAX_REJECT_BODY`` bytes of it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@attrs.define
class UpgradeRequested:
    """Server: a valid upgrade request; call ``accept`` or ``reject``. Header names in lower
    case."""

    target: str
    headers: list[tuple[bytes, bytes]]


@attrs.define
class MessageReceived:
    """One complete text message, as UTF-8."""

    data: bytes


@attrs.define
class PongReceived:
    """The peer has sent a pong: it is alive."""


@attrs.define
class CloseReceived:
    """The peer's close frame; code 1005 if it has none. The reply, if one is due, is queued."""

    code: int
    reason: str


@attrs.define
class Failed:
    """The connection has failed; send ``data_to_send`` and drop the socket.

    ``code`` is the error of the peer (RFC 6455, section 7.4.1): 1002 protocol error (frames or
    handshake), 1003 binary message, 1006 end of the stream without a close frame, 1007 text that
    is not UTF-8, 1009 message too large.
    """

    code: int
    reason: str


WebSocketEvent: TypeAlias = (
    Upgraded
    | UpgradeRejected
    | UpgradeRequested
    | MessageReceived
    | PongReceived
    | CloseReceived
    | Failed
)


# ------------------------------------------------------------------ both ends


class _Phase(enum.Enum):
    OPENING = enum.auto()  # until the upgrade is accepted or refused
    OPEN = enum.auto()
    CLOSING = enum.auto()  # our close frame is out, the peer's is awaited
    CLOSED = enum.auto()  # input is ignored and nothing is sent any more


class _Peer:
    """The common part of both sides: everything after the handshake, and finding the end of it."""

    def __init__(self, kind: ConnectionType, max_message: int) -> None:
        self._max_message = max_message
        self._phase = _Phase.OPENING
        self._handshake = H11Handshake(kind)
        self._frames = FrameProtocol(kind is ConnectionType.CLIENT, [])
        self._head = bytearray()
        self._scanned = 0  # bytes of _head in which there is no end of a head
        self._partial: bytearray | None = None  # the received part of an incomplete message
        self._fragments = 0
        self._texts: deque[bytes] = deque()  # queued messages; of the first, the part from _offset
        self._offset = 0
        self._pongs: deque[bytes] = deque(maxlen=MAX_PONGS)
        self._queued = b""

    # -- input; receive() and receive_eof() are in the subclasses, because the handshakes differ

    def data_to_send(self) -> bytes:
        """The replies to send after ``receive``: pongs in order, then a close frame; or ``b""``."""
        if not self._pongs and not self._queued:
            return b""
        data = b"".join(bytes(self._frames.pong(payload)) for payload in self._pongs)
        data += self._queued
        self._pongs.clear()
        self._queued = b""
        return data

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent: upgraded, and neither side has closed or failed."""
        return self._phase is _Phase.OPEN

    @property
    def mid_message(self) -> bool:
        """Whether a message was received in part."""
        return self._partial is not None

    # -- output

    def send_text(self, data: bytes) -> bytes:
        """The message ``data`` as one text frame; ``b""`` if the connection is closing or closed.

        Raises:
            LocalProtocolError: the upgrade is not complete, ``data`` is not UTF-8, or a queued
                message is still being sent (frames of two messages must not mix).
        """
        self._require_upgrade()
        text = _decode(data)
        if self._texts:
            raise LocalProtocolError("a queued message is still being sent: queue this one, too")
        if self._phase is not _Phase.OPEN:
            return b""
        return bytes(self._frames.send_data(text))

    def queue_text(self, data: bytes) -> None:
        """Queue ``data`` as one message; ``next_frame`` returns its frames.

        Nothing is queued if the connection is closing or closed.

        Raises:
            LocalProtocolError: the upgrade is not complete, or ``data`` is not UTF-8.
        """
        self._require_upgrade()
        _decode(data)
        if self._phase is _Phase.OPEN:
            self._texts.append(data)

    def next_frame(self) -> bytes:
        """The next frame of the queued messages; ``b""`` if there is none.

        A message of up to ``FRAGMENT`` bytes is one frame. Call it when the transport has taken the
        frame before. The queue is dropped when either side closes or fails.
        """
        if not self._texts:
            return b""
        text, start = self._texts[0], self._offset
        self._offset = end = _fragment_end(text, start)
        last = end == len(text)
        if last:
            self._texts.popleft()
            self._offset = 0
        return bytes(self._frames.send_data(text[start:end].decode(), fin=last))

    def ping(self) -> bytes:
        """A ping frame without payload; ``b""`` if the connection is closing or closed.

        Raises:
            LocalProtocolError: the upgrade is not complete.
        """
        self._require_upgrade()
        return bytes(self._frames.ping()) if self._phase is _Phase.OPEN else b""

    def close(self, code: int, reason: str = "") -> bytes:
        """Pending replies and a close frame; ``b""`` if already closing. No pong is sent after it.

        ``code`` 1005: a frame without a code. ``reason`` is cut at 123 bytes, which a frame can
        hold.

        Raises:
            LocalProtocolError: the upgrade is not complete, or ``code`` may not be sent.
        """
        self._require_upgrade()
        if not 1000 <= code <= 4999 or code in (1004, 1006, 1015) or 1016 <= code <= 2999:
            raise LocalProtocolError(f"{code} cannot be sent in a close frame (RFC 6455, 7.4)")
        if self._phase is not _Phase.OPEN:
            return b""
        data = self.data_to_send() + self._close_frame(code, reason)
        self._phase = _Phase.CLOSING
        self._texts.clear()
        return data

    def _require_upgrade(self) -> None:
        if self._phase is _Phase.OPENING:
            raise LocalProtocolError("the WebSocket upgrade is not complete")

    def _close_frame(self, code: int, reason: str) -> bytes:
        if code == 1005:
            return bytes(self._frames.close())
        return bytes(self._frames.close(code, reason))

    # -- the opening handshake

    def _take_head(self) -> bytes | None:
        """The head at the front of ``_head``, with its empty line; None while it is incomplete.

        The head is passed to h11 in one piece: h11's own limit applies only to incomplete heads,
        and would make the result depend on how the input was split.

        Raises:
            RemoteProtocolError: the head is too large.
        """
        match = _HEAD_END.search(self._head, self._scanned)
        if match is None:
            self._scanned = max(0, len(self._head) - 2)
        if (len(self._head) if match is None else match.end()) > MAX_HEAD:
            raise RemoteProtocolError(f"the head is larger than {MAX_HEAD} bytes")
        if match is None:
            return None
        head = bytes(self._head[: match.end()])
        del self._head[: match.end()]
        self._scanned = 0
        return head

    # -- frames

    def _eof(self, events: list[WebSocketEvent]) -> None:
        if self._phase is _Phase.OPENING:
            self._fail(events, 1006, "the stream ended before the upgrade was complete")
        elif self._phase is not _Phase.CLOSED:
            self._fail(events, 1006, "the stream ended without a close frame")

    def _receive_frames(self, data: bytes, events: list[WebSocketEvent]) -> None:
        try:
            for start in range(0, len(data), _SLICE):
                if self._phase is _Phase.CLOSED:
                    return
                self._frames.receive_bytes(data[start : start + _SLICE])
                self._read_frames(events)
        except ParseFailed as exc:
            self._parse_failed(exc, events)

    def _parse_failed(self, exc: ParseFailed, events: list[WebSocketEvent]) -> None:
        """Fail as wsproto says, except where its answer depends on how the input was split.

        It decodes the part of a frame that it has. So its message counts from the start of that
        part, and text that is both too large and not UTF-8 is one or the other. Here such text is
        too large if the part before the first invalid byte is.
        """
        cause = exc.__context__
        if not isinstance(cause, UnicodeDecodeError):
            self._fail(events, int(exc.code), str(exc))
        elif str(exc) != str(cause):
            self._fail(events, 1007, "the reason of a close frame is not UTF-8")
        elif self._is_too_large(cause.start):
            self._fail_too_large(events)
        else:
            self._fail(events, 1007, "a text message is not UTF-8")

    def _read_frames(self, events: list[WebSocketEvent]) -> None:
        # wsproto returns the parts of a data frame as they are received, so max_message also limits
        # a frame that declares 2^62 bytes.
        for frame in self._frames.received_frames():
            payload = frame.payload
            if isinstance(payload, str):
                self._text(payload.encode(), frame.frame_finished, frame.message_finished, events)
            elif isinstance(payload, tuple):
                self._close_received(int(payload[0]), payload[1], events)
            elif frame.opcode is Opcode.PING:
                if self._phase is _Phase.OPEN:  # nothing may follow our close frame
                    self._pongs.append(bytes(payload))
            elif frame.opcode is Opcode.PONG:
                events.append(PongReceived())
            else:
                self._fail(events, 1003, "binary messages are not understood")
            if self._phase is _Phase.CLOSED:
                return

    def _text(
        self, part: bytes, frame_done: bool, message_done: bool, events: list[WebSocketEvent]
    ) -> None:
        partial = self._partial
        if self._is_too_large(len(part)):
            self._fail_too_large(events)
        elif message_done:
            if partial is None:
                events.append(MessageReceived(part))
            else:
                partial += part
                events.append(MessageReceived(bytes(partial)))
                self._partial = None
                self._fragments = 0
        else:
            if partial is None:
                self._partial = bytearray(part)
            else:
                partial += part
            self._fragments += frame_done
            if self._fragments >= MAX_FRAGMENTS:
                self._fail(events, 1009, f"a message has more than {MAX_FRAGMENTS} fragments")

    def _is_too_large(self, more: int) -> bool:
        """Whether ``more`` bytes would make the message in progress too large."""
        return more + (0 if self._partial is None else len(self._partial)) > self._max_message

    def _fail_too_large(self, events: list[WebSocketEvent]) -> None:
        self._fail(events, 1009, f"a message is larger than {self._max_message} bytes")

    def _close_received(self, code: int, reason: str, events: list[WebSocketEvent]) -> None:
        if self._phase is _Phase.OPEN:
            self._queued = self._close_frame(code, reason)
        self._phase = _Phase.CLOSED
        self._partial = None
        self._texts.clear()
        events.append(CloseReceived(code, reason))

    def _fail(self, events: list[WebSocketEvent], code: int, reason: str) -> None:
        if self._phase is _Phase.OPEN and code != 1006:
            self._queued = self._close_frame(code, reason)
        self._phase = _Phase.CLOSED
        self._partial = None
        self._texts.clear()
        self._head.clear()
        events.append(Failed(code, reason))


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise LocalProtocolError(f"a text message must be UTF-8: {exc}") from None


def _fragment_end(text: bytes, start: int) -> int:
    """The end of the fragment that begins at ``start``. It is never inside a character, because
    wsproto takes text as ``str``."""
    end = start + FRAGMENT
    if end >= len(text):
        return len(text)
    while text[end] & 0xC0 == 0x80:  # a continuation byte (RFC 3629, section 3)
        end -= 1
    return end


# ------------------------------------------------------------------ the client


class WebSocketClient(_Peer):
    """The client side of one connection: it requests the upgrade.

    Args:
        authority: value of the Host field, ``host[:port]``.
        target: path and query of the request.
        headers: further request fields, such as ``authorization``.
        max_message: bytes of the largest text message to accept.
    """

    def __init__(self, *, authority: str, target: str, headers: Headers, max_message: int) -> None:
        super().__init__(ConnectionType.CLIENT, max_message)
        self._request = Request(host=authority, target=target, extra_headers=list(headers))
        self._rejection: UpgradeRejected | None = None  # received, except the end of its body
        self._interim = 0

    def connect(self) -> bytes:
        """The upgrade request. It offers no extensions, because compressed frames have no size
        limit.

        Raises:
            LocalProtocolError: authority, target or a field cannot be sent, or a field is the
                handshake's own.
        """
        for name, _ in self._request.extra_headers:
            if name.lower() in _RESERVED or name.lower().startswith(b"sec-websocket-"):
                raise LocalProtocolError(f"{name!r} belongs to the handshake")
        try:
            return self._handshake.send(self._request)
        except (h11.LocalProtocolError, WsprotoLocalError, UnicodeError) as exc:
            raise LocalProtocolError(f"the upgrade cannot be asked for: {exc}") from exc

    def receive(self, data: bytes) -> list[WebSocketEvent]:
        """Take in bytes; what they amount to, in order."""
        events: list[WebSocketEvent] = []
        if data and self._phase is _Phase.OPENING:
            self._receive_opening(data, events)
        else:
            self._receive_frames(data, events)
        return events

    def receive_eof(self) -> list[WebSocketEvent]:
        """The peer sends no more. ``Failed(1006)`` unless the connection had ended in order."""
        events: list[WebSocketEvent] = []
        if self._phase is _Phase.OPENING and self._rejection is not None:
            # A body without a length ends like this. One that is incomplete is used as far as it
            # is.
            self._phase = _Phase.CLOSED
            events.append(self._rejection)
        else:
            self._eof(events)
        return events

    def _receive_opening(self, data: bytes, events: list[WebSocketEvent]) -> None:
        if self._rejection is not None:
            self._receive_body(self._rejection, data, events)
            return
        self._head += data
        try:
            # wsproto takes any 1xx for the final answer, but only 101 is (RFC 9110, section 15.2).
            while (head := self._take_answer()) is not None and _INTERIM.match(head):
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise RemoteProtocolError("too many interim answers")
            if head is None:
                return
            self._handshake.receive_data(head)
            answer = next(self._handshake.events())
        except (RemoteProtocolError, UnicodeError) as exc:
            self._fail(events, 1002, f"the answer to the upgrade is not valid: {exc}")
            return
        rest = bytes(self._head)
        self._head.clear()
        if isinstance(answer, AcceptConnection):
            self._phase = _Phase.OPEN
            events.append(Upgraded(list(answer.extra_headers)))
            self._receive_frames(rest, events)
        elif isinstance(answer, RejectConnection):
            self._rejection = UpgradeRejected(answer.status_code, list(answer.headers), b"")
            self._receive_body(self._rejection, rest, events)
        else:
            raise AssertionError(f"not an answer to an upgrade: {answer!r}")

    def _take_answer(self) -> bytes | None:
        if not b"HTTP/1.".startswith(self._head[:7]):
            raise RemoteProtocolError("it is not HTTP/1.1")
        return self._take_head()

    def _receive_body(
        self, rejection: UpgradeRejected, data: bytes, events: list[WebSocketEvent]
    ) -> None:
        # The end of an empty body is already among the events of the handshake, so they are read
        # first. Passing empty data instead would mean the end of the stream.
        done = self._collect_body(rejection)
        for start in range(0, len(data), _SLICE):
            if done:
                break
            try:
                self._handshake.receive_data(data[start : start + _SLICE])
            except RemoteProtocolError:  # the status is known: do without the rest of the body
                done = True
            done = self._collect_body(rejection) or done
        if done:
            self._phase = _Phase.CLOSED
            events.append(rejection)

    def _collect_body(self, rejection: UpgradeRejected) -> bool:
        done = False
        for event in self._handshake.events():
            if isinstance(event, RejectData):
                rejection.body += event.data
                done = done or event.body_finished
        if len(rejection.body) >= MAX_REJECT_BODY:
            rejection.body = rejection.body[:MAX_REJECT_BODY]
            done = True
        return done


# ------------------------------------------------------------------ the server


class WebSocketServer(_Peer):
    """The server side of one connection: it answers an upgrade request.

    A request that is no valid upgrade is answered here, by ``data_to_send``, and reported as
    ``Failed(1002)``. The answer is 426 if it is valid HTTP without an upgrade, or with another
    version of the protocol, and 400 otherwise.

    Args:
        max_message: bytes of the largest text message to accept.
    """

    def __init__(self, *, max_message: int) -> None:
        super().__init__(ConnectionType.SERVER, max_message)
        self._asked = False

    def accept(self, headers: Headers = ()) -> bytes:
        """The 101 answer, with further fields.

        Raises:
            LocalProtocolError: no upgrade is waiting for an answer, or a field cannot be sent.
        """
        self._require_request()
        try:
            data = self._handshake.send(AcceptConnection(extra_headers=list(headers)))
        except h11.LocalProtocolError as exc:
            raise LocalProtocolError(f"the upgrade cannot be accepted: {exc}") from exc
        self._phase = _Phase.OPEN
        return data

    def reject(self, status: int, headers: Headers, body: bytes) -> bytes:
        """A complete answer other than 101; close the connection after sending it.

        Raises:
            LocalProtocolError: no upgrade is waiting for an answer, or it cannot be sent.
        """
        self._require_request()
        if not 200 <= status <= 599 or status in (204, 304):
            raise LocalProtocolError(f"{status} is not the status of a refusal with a body")
        data = self._rejection(status, headers, body)
        self._phase = _Phase.CLOSED
        return data

    def _require_request(self) -> None:
        if not self._asked or self._phase is not _Phase.OPENING:
            raise LocalProtocolError("no upgrade request is waiting for an answer")

    def _rejection(self, status: int, headers: Headers, body: bytes) -> bytes:
        fields = [
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        try:
            return self._handshake.send(
                RejectConnection(status_code=status, headers=fields, has_body=True)
            ) + self._handshake.send(RejectData(data=body, body_finished=True))
        except h11.LocalProtocolError as exc:
            raise LocalProtocolError(f"the upgrade cannot be rejected: {exc}") from exc

    def receive(self, data: bytes) -> list[WebSocketEvent]:
        """Take in bytes; what they amount to, in order."""
        events: list[WebSocketEvent] = []
        if data and self._phase is _Phase.OPENING:
            self._receive_opening(data, events)
        else:
            self._receive_frames(data, events)
        return events

    def receive_eof(self) -> list[WebSocketEvent]:
        """The peer sends no more. ``Failed(1006)`` unless the connection had ended in order."""
        events: list[WebSocketEvent] = []
        self._eof(events)
        return events

    def _receive_opening(self, data: bytes, events: list[WebSocketEvent]) -> None:
        self._head += data
        head = None
        try:
            if self._asked:
                raise RemoteProtocolError("data came before the upgrade was answered")
            if self._head[0] < 0x20 and self._head[0] not in b"\r\n":
                raise RemoteProtocolError("it is not HTTP/1.1")
            if (head := self._take_head()) is None:
                return
            self._handshake.receive_data(head)
            request = next(self._handshake.events(), None)
            if not isinstance(request, Request):
                raise RemoteProtocolError("it is not an HTTP request")
            if self._head:
                # RFC 6455, section 4.1: the client waits for the answer before it sends more.
                raise RemoteProtocolError("data came before the upgrade was answered")
        except (RemoteProtocolError, UnicodeError) as exc:
            self._refuse(head, exc)
            self._fail(events, 1002, f"the upgrade request is not valid: {exc}")
            return
        self._asked = True
        headers = [(b"host", request.host.encode("idna")), *request.extra_headers]
        events.append(UpgradeRequested(request.target, headers))

    def _refuse(self, head: bytes | None, exc: Exception) -> None:
        # wsproto suggests 426 for an unknown version of the protocol, and 400 for everything else.
        hint = exc.event_hint if isinstance(exc, RemoteProtocolError) else None
        version = isinstance(hint, RejectConnection) and hint.status_code == 426
        sound = head is not None and not isinstance(exc.__context__, h11.RemoteProtocolError)
        elsewhere = sound and head is not None and _UPGRADE.search(head) is None
        headers = [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
        self._queued = self._rejection(
            426 if version or elsewhere else 400, headers, f"{exc}\n".encode()
        )
