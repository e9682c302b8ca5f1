"""WebSocket (RFC 6455), client and server side: bytes to text messages and back, within limits.

What belongs here: the protocol up to complete text messages, whatever they contain. wsproto does
the opening handshake, reads every frame that needs care, and writes control frames. The limits on
heads, bodies, messages and fragments are here, because wsproto has none.

Both sides share ``_Peer``: the client is used for upstream connections, the server for clients that
speak WebSocket mode, and by the emulator.
Their states:

    opening --Upgraded / accept()--> open --close()--> closing --CloseReceived--> closed
       |                              |                   |                          ^
       +--- UpgradeRejected, Failed --+-- Failed ---------+--------------------------+

* The results of ``receive`` and ``receive_eof`` do not depend on how the input was split, except
  that ``data_to_send`` may answer only the latest of many pings.
* A method changes the state at once. After a close or a failure, input is ignored and sending
  returns ``b""``: a peer that closes just before a message is sent is a race, not an error.
* Fragments of a message are joined, text is validated, extensions are never negotiated.
* The client reads plain frames without wsproto: an unmasked, unfragmented text frame with the
  shortest length encoding, within ``max_message``, that is valid UTF-8. *A frame that is not whole
  in one read is wsproto's until it ends*, and so are all frames of a fragmented message, the
  control frames within it, and every frame that is not plain. Only speed depends on the rule: with
  ``shortcuts=False`` wsproto reads everything, with the same results after every read.
* A message is sent whole (``send_text``) or frame by frame, as fast as the transport takes it
  (``queue_text``, ``next_frame``). Pongs, pings and a close frame can be sent between two frames
  of a message (RFC 6455, section 5.4), so that the peer of a large message gets them in time.
"""

from __future__ import annotations

import enum
import re
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final, TypeAlias

import attrs
import h11
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed, XorMaskerSimple
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError as WsprotoLocalError
from wsproto.utilities import RemoteProtocolError

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.headers import VALUE

MAX_HEAD: Final = 65_536  # bytes of an upgrade request or of its answer, up to the empty line
MAX_REJECT_BODY: Final = 65_536  # bytes kept of the body of a refused upgrade
MAX_FRAGMENTS: Final = 16_384  # frames of one message: empty ones take time, not bytes
MAX_INTERIM: Final = 8  # 1xx answers before the final one
MAX_PONGS: Final = 16  # pings kept until data_to_send(); RFC 6455, 5.5.3, allows to drop older ones
# Bytes of text in one frame of a queued message. A pong has to wait for at most one such frame.
# Smaller frames would cost more calls without use, because a socket takes about as much at once.
FRAGMENT: Final = 65_536

# Bytes passed to wsproto at once. It copies the rest of its buffer after each frame, so one large
# read of many small frames would take quadratic time. And it masks a block four times over, each
# fourth byte in one pass: that takes twice as long where the block is larger than the CPU's cache.
_SLICE: Final = 65_536

# Codes of close frames (RFC 6455, section 7.4.1), and the reason of the first.
UNSUPPORTED_DATA: Final = 1003
NO_BINARY: Final = "binary messages are not understood"
TOO_LARGE: Final = 1009

_LONGEST_HEAD: Final = 10  # bytes before the payload of an unmasked frame (RFC 6455, 5.2)
_PLAIN_TEXT: Final = 0x81  # the first byte of an unfragmented text frame: FIN, no RSV bit, opcode 1

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


# Everything but messages
ConnectionEvent: TypeAlias = (
    Upgraded | UpgradeRejected | UpgradeRequested | PongReceived | CloseReceived | Failed
)
WebSocketEvent: TypeAlias = MessageReceived | ConnectionEvent
Received: TypeAlias = bytes | ConnectionEvent  # a text message is its UTF-8 bytes


# ------------------------------------------------------------------ both ends


class _Phase(enum.Enum):
    OPENING = enum.auto()  # until the upgrade is accepted or refused
    OPEN = enum.auto()
    CLOSING = enum.auto()  # our close frame is out, the peer's is awaited
    CLOSED = enum.auto()  # input is ignored and nothing is sent any more


class _Opening:
    """The state of an opening handshake. It is dropped with the end of the handshake: most of the
    memory of a connection is here, and an idle connection lives long."""

    __slots__ = ("_scanned", "handshake", "head")

    def __init__(self, kind: ConnectionType) -> None:
        self.handshake = H11Handshake(kind)
        self.head = bytearray()  # the received part of the head
        self._scanned = 0  # bytes of head in which there is no end of a head

    def take_head(self) -> bytes | None:
        """The head at the front of ``head``, with its empty line; None while it is incomplete.

        The head is passed to h11 in one piece: h11's own limit applies only to incomplete heads,
        and would make the result depend on how the input was split.

        Raises:
            RemoteProtocolError: the head is too large.
        """
        match = _HEAD_END.search(self.head, self._scanned)
        if match is None:
            self._scanned = max(0, len(self.head) - 2)
        if (len(self.head) if match is None else match.end()) > MAX_HEAD:
            raise RemoteProtocolError(f"the head is larger than {MAX_HEAD} bytes")
        if match is None:
            return None
        head = bytes(self.head[: match.end()])
        del self.head[: match.end()]
        self._scanned = 0
        return head


class _Peer(ABC):
    """The common part of both sides: everything after the handshake."""

    __slots__ = (
        "_due",
        "_fragments",
        "_head_part",
        "_max_message",
        "_offset",
        "_opening",
        "_partial",
        "_phase",
        "_pongs",
        "_queued",
        "_reader",
        "_shortcuts",
        "_texts",
        "fragments",
        "pings",
    )

    # Writes control frames and draws the keys of masked frames. Control frames need no state, so
    # one writer serves all connections of a side.
    _writer: ClassVar[FrameProtocol]

    def __init__(self, opening: _Opening, max_message: int, shortcuts: bool) -> None:
        self._max_message = max_message
        self._shortcuts = shortcuts
        self._phase = _Phase.OPENING
        self._opening: _Opening | None = opening  # None: _phase is not OPENING any more
        # wsproto's reader. With shortcuts it exists only while a frame or a message is incomplete,
        # so it never has to know of the frames that were read without it.
        self._reader: FrameProtocol | None = None
        self._due = 0  # bytes that the reader needs to the end of its frame, if it has the head
        self._head_part = b""  # the received part of an incomplete frame head
        self._partial: bytearray | None = None  # the received part of an incomplete message
        self._fragments = 0
        # Queued messages; of the first, the part from _offset. None: there are none. Nearly always
        # there are none, so no empty container is kept.
        self._texts: deque[bytes] | None = None
        self._offset = 0
        self._pongs: tuple[bytes, ...] = ()  # payloads; at most MAX_PONGS
        # Frames received so far that are no result of ``receive``, for whoever limits the rate of
        # frames: they take as much time as others.
        self.pings = 0
        self.fragments = 0  # frames of messages, except the last one of each
        self._queued = b""

    # -- input

    def receive(self, data: bytes | bytearray) -> list[WebSocketEvent]:
        """Take in bytes; what they amount to, in order."""
        return [
            MessageReceived(item) if isinstance(item, bytes) else item
            for item in self.receive_raw(data)
        ]

    def receive_raw(self, data: bytes | bytearray) -> list[Received]:
        """As ``receive``, but a message is its bytes.

        For readers of many small messages: a ``MessageReceived`` costs as much as the slice.
        """
        data = bytes(data)  # so that no message is a bytearray; costs nothing for bytes
        found: list[Received] = []
        if not data:
            pass
        elif self._phase is _Phase.OPENING:
            self._receive_opening(data, found)
        else:
            self._receive_frames(data, found)
        return found

    def receive_eof(self) -> list[ConnectionEvent]:
        """The peer sends no more. ``Failed(1006)`` unless the connection had ended in order."""
        if self._phase is _Phase.CLOSED:
            return []
        opening = self._phase is _Phase.OPENING
        self._end()
        missing = "before the upgrade was complete" if opening else "without a close frame"
        return [Failed(1006, f"the stream ended {missing}")]

    @abstractmethod
    def _receive_opening(self, data: bytes, found: list[Received]) -> None:
        """Take in bytes before the end of the handshake, which differs between the two sides."""

    def data_to_send(self) -> bytes:
        """The replies to send after ``receive``: pongs in order, then a close frame; or ``b""``."""
        if not self._pongs and not self._queued:
            return b""
        data = b"".join(bytes(self._writer.pong(payload)) for payload in self._pongs)
        data += self._queued
        self._pongs = ()
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
        _require_utf8(data)
        if self._texts is not None:
            raise LocalProtocolError("a queued message is still being sent: queue this one, too")
        if self._phase is not _Phase.OPEN:
            return b""
        return self._text_frame(_PLAIN_TEXT, data)

    def queue_text(self, data: bytes, *, checked: bool = False) -> None:
        """Queue ``data`` as one message; ``next_frame`` returns its frames.

        Nothing is queued if the connection is closing or closed. ``checked``: the caller knows that
        ``data`` is UTF-8; decoding megabytes again would take a millisecond.

        Raises:
            LocalProtocolError: the upgrade is not complete, or ``data`` is not UTF-8.
        """
        self._require_upgrade()
        if not checked:
            _require_utf8(data)
        if self._phase is not _Phase.OPEN:
            return
        if self._texts is None:
            self._texts = deque()
        self._texts.append(data)

    def next_frame(self) -> bytes:
        """The next frame of the queued messages; ``b""`` if there is none.

        A message of up to ``FRAGMENT`` bytes is one frame. Call it when the transport has taken the
        frame before. The queue is dropped when either side closes or fails.
        """
        if self._texts is None:
            return b""
        text, start = self._texts[0], self._offset
        self._offset = end = _fragment_end(text, start)
        last = end == len(text)
        if last:
            self._texts.popleft()
            self._texts = self._texts or None
            self._offset = 0
        # FIN in the last frame; opcode 1, text, in the first, and 0, continuation, after it
        return self._text_frame((0x80 if last else 0) | (not start), text[start:end])

    def ping(self) -> bytes:
        """A ping frame without payload; ``b""`` if the connection is closing or closed.

        Raises:
            LocalProtocolError: the upgrade is not complete.
        """
        self._require_upgrade()
        return bytes(self._writer.ping()) if self._phase is _Phase.OPEN else b""

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
        self._texts = None
        return data

    def _require_upgrade(self) -> None:
        if self._phase is _Phase.OPENING:
            raise LocalProtocolError("the WebSocket upgrade is not complete")

    def _close_frame(self, code: int, reason: str) -> bytes:
        if code == 1005:
            return bytes(self._writer.close())
        return bytes(self._writer.close(code, reason))

    @abstractmethod
    def _text_frame(self, first: int, text: bytes) -> bytes:
        """A data frame with the first byte ``first``, masked by the client."""

    # -- frames

    def _receive_frames(self, data: bytes, found: list[Received]) -> None:
        try:
            if self._shortcuts:
                self._receive_frame_by_frame(data, found)
            else:
                self._receive_slices(data, found)
        except ParseFailed as exc:
            self._parse_failed(exc, found)

    def _receive_slices(self, data: bytes, found: list[Received]) -> None:
        """Pass everything to wsproto."""
        if self._reader is None:
            self._reader = self._new_reader()
        for start in range(0, len(data), _SLICE):
            if self._phase is _Phase.CLOSED:
                return
            self._reader.receive_bytes(data[start : start + _SLICE])
            self._read_frames(self._reader, found)

    def _receive_frame_by_frame(self, data: bytes, found: list[Received]) -> None:
        """Read plain frames directly, and pass the others to wsproto, each up to its end.

        Nothing after the end is passed on, so that the next frame can be read directly again: in a
        backlog every read ends, and the next one begins, within a frame.
        """
        at = 0
        while at < len(data) and self._phase is not _Phase.CLOSED:
            if self._reader is None:
                at = self._take_plain_frames(data, at, found)
                if at == len(data):
                    return
                self._reader = self._new_reader()
            end = self._end_of_frame(data, at)
            self._reader.receive_bytes(data[at:end])
            self._read_frames(self._reader, found)
            at = end
            if not self._due and not self._head_part and self._partial is None:
                self._reader = None

    def _new_reader(self) -> FrameProtocol:
        return FrameProtocol(self._writer.client, [])

    def _take_plain_frames(self, data: bytes, at: int, found: list[Received]) -> int:
        """Read plain frames from offset ``at``; the offset of the first frame that is not plain.

        Nearly all that an upstream sends is one short event per frame, of which only the payload
        is wanted. For a frame of 200 bytes wsproto takes 5 us, mostly for objects that describe it,
        and this loop 0.3 us. What makes a frame plain is in the rule at the top of this module.
        Whatever wsproto may have to reject or to remember is left to it.
        """
        size, limit = len(data), self._max_message
        while at + 2 <= size and data[at] == _PLAIN_TEXT:
            length = data[at + 1]  # with the mask bit, which makes it more than 127
            if length < 126:
                start = at + 2
            elif length == 126:
                start = at + 4
                length = int.from_bytes(data[at + 2 : start], "big")
                if length < 126:
                    break
            elif length == 127:
                start = at + 10
                length = int.from_bytes(data[at + 2 : start], "big")
                if length < 65_536:
                    break
            else:
                break
            end = start + length
            if end > size or length > limit:  # also if the length itself is not complete
                break
            text = data[start:end]
            if not (text.isascii() or _is_utf8(text)):  # the first is much faster
                break
            found.append(text)
            at = end
        return at

    def _end_of_frame(self, data: bytes, at: int) -> int:
        """The offset where wsproto's present or next frame ends, or its received part does."""
        if not self._due:
            head = self._head_part + data[at : at + _LONGEST_HEAD]
            size = _frame_size(head)
            if size is None:
                self._head_part = head
                return len(data)
            self._due = size - len(self._head_part)
            self._head_part = b""
        end = min(at + self._due, len(data))
        self._due -= end - at
        return end

    def _read_frames(self, reader: FrameProtocol, found: list[Received]) -> None:
        # wsproto returns the parts of a data frame as they are received, so max_message also limits
        # a frame that declares 2^62 bytes.
        for frame in reader.received_frames():
            payload = frame.payload
            if isinstance(payload, str):
                self._text(payload.encode(), frame.frame_finished, frame.message_finished, found)
            elif isinstance(payload, tuple):
                self._close_received(int(payload[0]), payload[1], found)
            elif frame.opcode is Opcode.PING:
                self.pings += 1
                if self._phase is _Phase.OPEN:  # nothing may follow our close frame
                    self._pongs = (*self._pongs, bytes(payload))[-MAX_PONGS:]
            elif frame.opcode is Opcode.PONG:
                found.append(PongReceived())
            else:
                self._fail(found, UNSUPPORTED_DATA, NO_BINARY)
            if self._phase is _Phase.CLOSED:
                return

    def _parse_failed(self, exc: ParseFailed, found: list[Received]) -> None:
        """Fail as wsproto says, except where its answer depends on how the input was split.

        It decodes the part of a frame that it has. So its message counts from the start of that
        part, and text that is both too large and not UTF-8 is one or the other. Here such text is
        too large if the part before the first invalid byte is.
        """
        cause = exc.__context__
        if not isinstance(cause, UnicodeDecodeError):
            self._fail(found, int(exc.code), str(exc))
        elif str(exc) != str(cause):
            self._fail(found, 1007, "the reason of a close frame is not UTF-8")
        elif self._is_too_large(cause.start):
            self._fail_too_large(found)
        else:
            self._fail(found, 1007, "a text message is not UTF-8")

    def _text(
        self, part: bytes, frame_done: bool, message_done: bool, found: list[Received]
    ) -> None:
        partial = self._partial
        if self._is_too_large(len(part)):
            self._fail_too_large(found)
        elif message_done:
            if partial is None:
                found.append(part)
            else:
                partial += part
                found.append(bytes(partial))
                self._partial = None
                self._fragments = 0
        else:
            if partial is None:
                self._partial = bytearray(part)
            else:
                partial += part
            self._fragments += frame_done
            self.fragments += frame_done
            if self._fragments >= MAX_FRAGMENTS:
                self._fail(found, TOO_LARGE, f"a message has more than {MAX_FRAGMENTS} fragments")

    def _is_too_large(self, more: int) -> bool:
        """Whether ``more`` bytes would make the message in progress too large."""
        return more + (0 if self._partial is None else len(self._partial)) > self._max_message

    def _fail_too_large(self, found: list[Received]) -> None:
        self._fail(found, TOO_LARGE, f"a message is larger than {self._max_message} bytes")

    def _close_received(self, code: int, reason: str, found: list[Received]) -> None:
        if self._phase is _Phase.OPEN:
            self._queued = self._close_frame(code, reason)
        self._end()
        found.append(CloseReceived(code, reason))

    def _fail(self, found: list[Received], code: int, reason: str) -> None:
        if self._phase is _Phase.OPEN:
            self._queued = self._close_frame(code, reason)
        self._end()
        found.append(Failed(code, reason))

    def _end(self) -> None:
        """Nothing is sent any more, and what is received is ignored."""
        self._phase = _Phase.CLOSED
        self._opening = None
        self._reader = None
        self._partial = None
        self._texts = None


def _require_utf8(text: bytes) -> None:
    if text.isascii():  # much faster than decoding it
        return
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        raise LocalProtocolError(f"a text message must be UTF-8: {exc}") from None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _frame_size(head: bytes) -> int | None:
    """The bytes of the unmasked frame that begins with ``head``; None if ``head`` ends before that
    is known. RFC 6455, section 5.2. What is masked is rejected before its end matters."""
    if len(head) < 2:
        return None
    length = head[1] & 0x7F
    if length < 126:
        return 2 + length
    end = 4 if length == 126 else 10
    if len(head) < end:
        return None
    return end + int.from_bytes(head[2:end], "big")


def _frame_head(first: int, mask: int, size: int) -> bytes:
    """The bytes of a frame before its masking key and payload; ``mask``: 0x80 or 0."""
    if size < 126:
        return bytes((first, mask | size))
    if size < 65_536:
        return struct.pack("!BBH", first, mask | 126, size)
    return struct.pack("!BBQ", first, mask | 127, size)


def _fragment_end(text: bytes, start: int) -> int:
    """The end of the fragment that begins at ``start``. It is never inside a character: RFC 6455
    allows that, but a peer may decode frame by frame."""
    end = start + FRAGMENT
    if end >= len(text):
        return len(text)
    while text[end] & 0xC0 == 0x80:  # a continuation byte (RFC 3629, section 3)
        end -= 1
    return end


# ------------------------------------------------------------------ the client


class _ClientOpening(_Opening):
    """A handshake as the client sees it: the request, then the answer."""

    __slots__ = ("interim", "rejection", "request")

    def __init__(self, request: Request) -> None:
        super().__init__(ConnectionType.CLIENT)
        self.request = request
        self.interim = 0  # 1xx answers received
        self.rejection: UpgradeRejected | None = None  # received, except the end of its body

    def take_answer(self) -> bytes | None:
        """The next head, once it is complete.

        Raises:
            RemoteProtocolError: it is not HTTP/1, or too large.
        """
        if not b"HTTP/1.".startswith(self.head[:7]):
            raise RemoteProtocolError("it is not HTTP/1.1")
        return self.take_head()


class WebSocketClient(_Peer):
    """The client side of one connection: it requests the upgrade.

    Args:
        authority: value of the Host field, ``host[:port]``.
        target: path and query of the request.
        headers: further request fields, such as ``authorization``.
        max_message: bytes of the largest text message to accept.
        shortcuts: read plain frames without wsproto. Only speed depends on it.
    """

    __slots__ = ()

    _writer = FrameProtocol(True, [])
    _opening: _ClientOpening | None

    def __init__(
        self,
        *,
        authority: str,
        target: str,
        headers: Headers,
        max_message: int,
        shortcuts: bool = True,
    ) -> None:
        request = Request(host=authority, target=target, extra_headers=list(headers))
        super().__init__(_ClientOpening(request), max_message, shortcuts)

    def connect(self) -> bytes:
        """The upgrade request; ``b""`` if the connection has failed before. It offers no
        extensions, because compressed frames have no size limit.

        Raises:
            LocalProtocolError: authority, target or a field cannot be sent, or a field is the
                handshake's own, or the upgrade is complete.
        """
        opening = self._opening
        if self._phase is _Phase.CLOSED:
            return b""
        if opening is None:
            raise LocalProtocolError("the upgrade is complete")
        for name, value in opening.request.extra_headers:
            if name.lower() in _RESERVED or name.lower().startswith(b"sec-websocket-"):
                raise LocalProtocolError(f"{name!r} belongs to the handshake")
            if VALUE.fullmatch(value) is None:  # h11 would say so, and quote it: it may be a key
                raise LocalProtocolError(f"{name!r} has a value that cannot be sent")
        try:
            return opening.handshake.send(opening.request)
        except (h11.LocalProtocolError, WsprotoLocalError, UnicodeError) as exc:
            raise LocalProtocolError(f"the upgrade cannot be asked for: {exc}") from exc

    def receive_eof(self) -> list[ConnectionEvent]:
        """The peer sends no more. ``Failed(1006)`` unless the connection had ended in order."""
        if self._opening is not None and (rejection := self._opening.rejection) is not None:
            # A body without a length ends like this. One that is incomplete is used as far as it
            # is.
            self._end()
            return [rejection]
        return super().receive_eof()

    def _receive_opening(self, data: bytes, found: list[Received]) -> None:
        opening = self._opening
        assert opening is not None
        if opening.rejection is not None:
            self._receive_body(opening, opening.rejection, data, found)
            return
        opening.head += data
        try:
            # wsproto takes any 1xx for the final answer, but only 101 is (RFC 9110, section 15.2).
            while (head := opening.take_answer()) is not None and _INTERIM.match(head):
                opening.interim += 1
                if opening.interim > MAX_INTERIM:
                    raise RemoteProtocolError("too many interim answers")
            if head is None:
                return
            opening.handshake.receive_data(head)
            answer = next(opening.handshake.events())
        except (RemoteProtocolError, UnicodeError) as exc:
            self._fail(found, 1002, f"the answer to the upgrade is not valid: {exc}")
            return
        rest = bytes(opening.head)
        opening.head.clear()
        if isinstance(answer, AcceptConnection):
            self._phase = _Phase.OPEN
            self._opening = None
            found.append(Upgraded(list(answer.extra_headers)))
            self._receive_frames(rest, found)
        elif isinstance(answer, RejectConnection):
            opening.rejection = UpgradeRejected(answer.status_code, list(answer.headers), b"")
            self._receive_body(opening, opening.rejection, rest, found)
        else:
            raise AssertionError(f"not an answer to an upgrade: {answer!r}")

    def _receive_body(
        self,
        opening: _ClientOpening,
        rejection: UpgradeRejected,
        data: bytes,
        found: list[Received],
    ) -> None:
        # The end of an empty body is already among the events of the handshake, so they are read
        # first. Passing empty data instead would mean the end of the stream.
        done = _collect_body(opening.handshake, rejection)
        for start in range(0, len(data), _SLICE):
            if done:
                break
            try:
                opening.handshake.receive_data(data[start : start + _SLICE])
            except RemoteProtocolError:  # the status is known: do without the rest of the body
                done = True
            done = _collect_body(opening.handshake, rejection) or done
        if done:
            self._end()
            found.append(rejection)

    def _text_frame(self, first: int, text: bytes) -> bytes:
        key = bytes(self._writer.ping()[2:])  # after the two bytes of its head: a new masking key
        masker = XorMaskerSimple(key)
        blocks = [
            masker.process(bytearray(text[at : at + _SLICE])) for at in range(0, len(text), _SLICE)
        ]
        return b"".join((_frame_head(first, 0x80, len(text)), key, *blocks))


def _collect_body(handshake: H11Handshake, rejection: UpgradeRejected) -> bool:
    """Add what was received of the body to ``rejection``; whether that is all that is kept."""
    done = False
    for event in handshake.events():
        if isinstance(event, RejectData):
            rejection.body += event.data
            done = done or event.body_finished
    if len(rejection.body) >= MAX_REJECT_BODY:
        rejection.body = rejection.body[:MAX_REJECT_BODY]
        done = True
    return done


# ------------------------------------------------------------------ the server


class _ServerOpening(_Opening):
    """A handshake as the server sees it: a request, then its own answer."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        super().__init__(ConnectionType.SERVER)
        self.asked = False  # a valid request was received, and is not answered yet

    def rejection(self, status: int, headers: Headers, body: bytes) -> bytes:
        """A complete answer other than 101, after which the connection is to be closed.

        Raises:
            LocalProtocolError: it cannot be sent.
        """
        fields = [
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        try:
            return self.handshake.send(
                RejectConnection(status_code=status, headers=fields, has_body=True)
            ) + self.handshake.send(RejectData(data=body, body_finished=True))
        except h11.LocalProtocolError as exc:
            raise LocalProtocolError(f"the upgrade cannot be rejected: {exc}") from exc


class WebSocketServer(_Peer):
    """The server side of one connection: it answers an upgrade request.

    A request that is no valid upgrade is answered here, by ``data_to_send``, and reported as
    ``Failed(1002)``. The answer is 426 if it is valid HTTP without an upgrade, or with another
    version of the protocol, and 400 otherwise.

    Args:
        max_message: bytes of the largest text message to accept.
    """

    __slots__ = ()

    _writer = FrameProtocol(False, [])
    _opening: _ServerOpening | None

    def __init__(self, *, max_message: int) -> None:
        # There are no plain frames for a server: all that it receives are masked.
        super().__init__(_ServerOpening(), max_message, shortcuts=False)

    @classmethod
    def upgraded(cls, *, max_message: int) -> WebSocketServer:
        """A connection whose upgrade request was read and accepted elsewhere."""
        server = cls(max_message=max_message)
        server._phase, server._opening = _Phase.OPEN, None
        return server

    def frames(self, texts: Sequence[bytes]) -> bytes:
        """Several messages that are known to be UTF-8, each as one frame; ``b""`` if the connection
        is closing or closed."""
        if self._phase is not _Phase.OPEN:
            return b""
        return b"".join([_frame_head(_PLAIN_TEXT, 0, len(text)) + text for text in texts])

    def accept(self, headers: Headers = ()) -> bytes:
        """The 101 answer, with further fields.

        Raises:
            LocalProtocolError: no upgrade is waiting for an answer, or a field cannot be sent.
        """
        opening = self._require_request()
        try:
            data = opening.handshake.send(AcceptConnection(extra_headers=list(headers)))
        except h11.LocalProtocolError as exc:
            raise LocalProtocolError(f"the upgrade cannot be accepted: {exc}") from exc
        self._phase = _Phase.OPEN
        self._opening = None
        return data

    def reject(self, status: int, headers: Headers, body: bytes) -> bytes:
        """A complete answer other than 101; close the connection after sending it.

        Raises:
            LocalProtocolError: no upgrade is waiting for an answer, or it cannot be sent.
        """
        opening = self._require_request()
        if not 200 <= status <= 599 or status in (204, 304):
            raise LocalProtocolError(f"{status} is not the status of a refusal with a body")
        data = opening.rejection(status, headers, body)
        self._end()
        return data

    def _require_request(self) -> _ServerOpening:
        if self._opening is None or not self._opening.asked:
            raise LocalProtocolError("no upgrade request is waiting for an answer")
        return self._opening

    def _receive_opening(self, data: bytes, found: list[Received]) -> None:
        opening = self._opening
        assert opening is not None
        opening.head += data
        head = None
        try:
            if opening.asked:
                raise RemoteProtocolError("data came before the upgrade was answered")
            if opening.head[0] < 0x20 and opening.head[0] not in b"\r\n":
                raise RemoteProtocolError("it is not HTTP/1.1")
            if (head := opening.take_head()) is None:
                return
            opening.handshake.receive_data(head)
            request = next(opening.handshake.events(), None)
            if not isinstance(request, Request):
                raise RemoteProtocolError("it is not an HTTP request")
            if opening.head:
                # RFC 6455, section 4.1: the client waits for the answer before it sends more.
                raise RemoteProtocolError("data came before the upgrade was answered")
        except (RemoteProtocolError, UnicodeError) as exc:
            self._queued = _refusal(opening, head, exc)
            self._fail(found, 1002, f"the upgrade request is not valid: {exc}")
            return
        opening.asked = True
        headers = [(b"host", request.host.encode("idna")), *request.extra_headers]
        found.append(UpgradeRequested(request.target, headers))

    def _text_frame(self, first: int, text: bytes) -> bytes:
        return _frame_head(first, 0, len(text)) + text


def _refusal(opening: _ServerOpening, head: bytes | None, exc: Exception) -> bytes:
    """The answer to a request that is no valid upgrade."""
    # wsproto suggests 426 for an unknown version of the protocol, and 400 for everything else.
    hint = exc.event_hint if isinstance(exc, RemoteProtocolError) else None
    version = isinstance(hint, RejectConnection) and hint.status_code == 426
    sound = head is not None and not isinstance(exc.__context__, h11.RemoteProtocolError)
    elsewhere = sound and head is not None and _UPGRADE.search(head) is None
    headers = [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
    return opening.rejection(426 if version or elsewhere else 400, headers, f"{exc}\n".encode())
