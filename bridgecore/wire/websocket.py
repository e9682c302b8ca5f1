"""WebSocket as bytes and messages: both ends of RFC 6455, with bounds that hold for any peer.

What belongs here: everything between a transport's bytes and one JSON text per message, and
nothing about what the texts say. wsproto does the framing and the opening handshake; the limits on
heads, bodies, messages and fragments are ours, because wsproto has none.

Two ends share one engine, ``_Peer``: the client's is the bridge's upstream side, the server's is
the emulator's. Their life:

    opening --Upgraded / accept()--> open --close()--> closing --CloseReceived--> closed
       |                              |                   |                          ^
       +--- UpgradeRejected, Failed --+-- Failed ---------+--------------------------+

* What ``receive`` and ``receive_eof`` return does not depend on how the input was split, except
  that ``data_to_send`` may answer only the latest of many pings.
* State changes at the call. After a close or a failure further input is ignored, and sending
  yields ``b""``: a peer that closes while its partner is about to send is a race, not an error.
* Fragments of one message are joined, text is validated, extensions are never negotiated.
* A message goes out whole (``send_text``), or frame by frame at the pace at which the transport
  takes it (``queue_text``, ``next_frame``). Between two frames of a message go pongs, pings and a
  close frame (RFC 6455, section 5.4): a peer that is sent megabytes still hears that we are alive.
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
MAX_FRAGMENTS: Final = 16_384  # frames of one message: empty ones cost time, not bytes
MAX_INTERIM: Final = 8  # 1xx answers before the one that counts
MAX_PONGS: Final = 16  # pings remembered until data_to_send(); RFC 6455, 5.5.3 lets older ones go
# Bytes of text in one frame of a queued message. A pong waits for at most one such frame; smaller
# ones would cost more calls for nothing, because sockets take about as much at once.
FRAGMENT: Final = 65_536

# Bytes given to wsproto at once. It takes frames off the front of one buffer, which is linear only
# while the interpreter shortens a bytearray in place; slices make the bound ours at no cost.
_SLICE: Final = 65_536

_HEAD_END = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9][0-9][ \r\n]")
_UPGRADE = re.compile(rb"\nupgrade:[ \t]*websocket[ \t]*\r?\n", re.IGNORECASE)
_RESERVED = frozenset({b"host", b"connection", b"upgrade"})

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


# ------------------------------------------------------------------ events


@attrs.define
class Upgraded:
    """Client: 101 came and is verified. ``headers`` are the answer's, handshake fields left out."""

    headers: list[tuple[bytes, bytes]]


@attrs.define
class UpgradeRejected:
    """Client: the server answered, but not with 101. ``body`` is cut at ``MAX_REJECT_BODY``."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@attrs.define
class UpgradeRequested:
    """Server: a valid upgrade request came; owed is ``accept`` or ``reject``. Names lower-case."""

    target: str
    headers: list[tuple[bytes, bytes]]


@attrs.define
class MessageReceived:
    """One whole text message, as the UTF-8 bytes it came in."""

    data: bytes


@attrs.define
class PongReceived:
    """The peer is alive."""


@attrs.define
class CloseReceived:
    """The peer's close frame; 1005 if it gave no code. If a reply is owed it is queued."""

    code: int
    reason: str


@attrs.define
class Failed:
    """The connection cannot go on; the socket must be dropped once ``data_to_send`` is written.

    ``code`` tells what the peer did: 1002 broke the protocol (frames or handshake), 1003 sent a
    binary message, 1007 sent text that is not UTF-8, 1009 sent too much, 1006 ended the stream
    without a close frame (RFC 6455, section 7.4.1).
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
    OPENING = enum.auto()  # until the upgrade is decided
    OPEN = enum.auto()
    CLOSING = enum.auto()  # our close frame is out, the peer's is awaited
    CLOSED = enum.auto()  # nothing is read and nothing is sent any more


class _Peer:
    """What the two ends have in common: everything after the handshake, and finding its end."""

    def __init__(self, kind: ConnectionType, max_message: int) -> None:
        self._max_message = max_message
        self._phase = _Phase.OPENING
        self._handshake = H11Handshake(kind)
        self._frames = FrameProtocol(kind is ConnectionType.CLIENT, [])
        self._head = bytearray()
        self._scanned = 0  # bytes of _head that hold no end of a head
        self._partial: bytearray | None = None  # a message whose end has not come
        self._fragments = 0
        self._texts: deque[bytes] = deque()  # messages to be sent, the first from _offset on
        self._offset = 0
        self._pongs: deque[bytes] = deque(maxlen=MAX_PONGS)
        self._queued = b""

    # -- input; receive() and receive_eof() are each end's own, because openings differ

    def data_to_send(self) -> bytes:
        """Replies owed after ``receive``: pongs in order, then a close frame; ``b""`` if none."""
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
        """Whether the beginning of a message has come, but not its end."""
        return self._partial is not None

    # -- output

    def send_text(self, data: bytes) -> bytes:
        """One unfragmented text frame; ``b""`` if the connection is closing or closed.

        Raises:
            LocalProtocolError: the upgrade is not complete, ``data`` is not UTF-8, or a queued
                message is not out yet (frames of two messages must not mix).
        """
        self._require_upgrade()
        text = _decode(data)
        if self._texts:
            raise LocalProtocolError("a queued message is not out yet: queue this one, too")
        if self._phase is not _Phase.OPEN:
            return b""
        return bytes(self._frames.send_data(text))

    def queue_text(self, data: bytes) -> None:
        """Have ``next_frame`` send ``data`` as one message, after those queued before.

        Nothing is queued if the connection is closing or closed.

        Raises:
            LocalProtocolError: the upgrade is not complete, or ``data`` is not UTF-8.
        """
        self._require_upgrade()
        _decode(data)
        if self._phase is _Phase.OPEN:
            self._texts.append(data)

    def next_frame(self) -> bytes:
        """The next frame of the queued messages; ``b""`` if all are out.

        A message of up to ``FRAGMENT`` bytes is one frame. To be called when the transport has
        taken the frame before. What is queued is dropped when either side closes or fails.
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
        """What is owed and a close frame; ``b""`` if already closing. No pong follows it.

        ``code`` 1005 stands for a frame that gives no code. ``reason`` is cut at 123 bytes.

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

        The head goes to h11 in one piece, so that h11's own limit, which applies to incomplete
        heads only, cannot make the outcome depend on how the input was split.

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
            self._fail(events, int(exc.code), str(exc))

    def _read_frames(self, events: list[WebSocketEvent]) -> None:
        # A data frame comes in as many pieces as its bytes did, so a frame that declares 2^62 bytes
        # is held to max_message like any other.
        for frame in self._frames.received_frames():
            payload = frame.payload
            if isinstance(payload, str):
                self._text(payload.encode(), frame.frame_finished, frame.message_finished, events)
            elif isinstance(payload, tuple):
                self._close_received(int(payload[0]), payload[1], events)
            elif frame.opcode is Opcode.PING:
                if self._phase is _Phase.OPEN:  # after our close frame nothing may follow
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
        if len(part) + (0 if partial is None else len(partial)) > self._max_message:
            self._fail(events, 1009, f"a message is larger than {self._max_message} bytes")
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
    """Where the fragment that begins at ``start`` ends: never inside a character, because wsproto
    takes text as ``str``."""
    end = start + FRAGMENT
    if end >= len(text):
        return len(text)
    while text[end] & 0xC0 == 0x80:  # a continuation byte (RFC 3629, section 3)
        end -= 1
    return end


# ------------------------------------------------------------------ the client


class WebSocketClient(_Peer):
    """The side that asks for the upgrade. One object per connection.

    Args:
        authority: value of the Host field, ``host[:port]``.
        target: path and query of the request.
        headers: further request fields, such as ``authorization``.
        max_message: bytes of the largest text message that is accepted.
    """

    def __init__(self, *, authority: str, target: str, headers: Headers, max_message: int) -> None:
        super().__init__(ConnectionType.CLIENT, max_message)
        self._request = Request(host=authority, target=target, extra_headers=list(headers))
        self._rejection: UpgradeRejected | None = None  # its head came, its body's end did not
        self._interim = 0

    def connect(self) -> bytes:
        """The upgrade request. It offers no extensions: a compressed frame has no size bound.

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
            # A body without a length ends here in order; one that is cut short is a detail.
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
            # wsproto takes any 1xx for the answer; all but 101 announce one (RFC 9110, 15.2).
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
        # An empty body's end is already among the handshake's events, hence the call without data;
        # for H11Handshake empty data would mean the end of the stream.
        done = self._collect_body(rejection)
        for start in range(0, len(data), _SLICE):
            if done:
                break
            try:
                self._handshake.receive_data(data[start : start + _SLICE])
            except RemoteProtocolError:  # the status is known; a body that breaks off is a detail
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
    """The side that is asked. One object per connection.

    A request that is no upgrade is answered here, through ``data_to_send``, and reported as
    ``Failed(1002)``: 426 if it is sound HTTP that asks for something else, or for another version
    of the protocol, 400 otherwise.

    Args:
        max_message: bytes of the largest text message that is accepted.
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
        """A whole answer other than 101; the connection is to be closed after it.

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
        # wsproto hints at 426 for a version it does not speak, and at 400 for everything else.
        hint = exc.event_hint if isinstance(exc, RemoteProtocolError) else None
        version = isinstance(hint, RejectConnection) and hint.status_code == 426
        sound = head is not None and not isinstance(exc.__context__, h11.RemoteProtocolError)
        elsewhere = sound and head is not None and _UPGRADE.search(head) is None
        headers = [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
        self._queued = self._rejection(
            426 if version or elsewhere else 400, headers, f"{exc}\n".encode()
        )
