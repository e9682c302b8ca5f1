"""What a driver reports about turns and links, and what it is told: the vocabulary of messages.

What belongs here: the events and effects of ``Gateway``, the second door for embedders, and of the
``Bridge`` inside it. Events are past tense and go in, effects are imperative and come out. A turn's
number is the driver's; a link's comes with ``OpenLink``. Nothing here knows bytes of HTTP or
WebSocket.

A turn comes in as ``RequestReceived``. Its answer goes out in one of three ways:

* a stream: ``BeginAnswer``, then ``AnswerEvents`` and ``AnswerKeepalive``, then ``EndAnswer``;
* one JSON body: ``AnswerBody``;
* a failure before anything else was answered: ``FailAnswer``.

These classes are built for every read, so they are plain slotted ones, not frozen.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from bridgecore.api_error import ApiError
from bridgecore.recovery.failure import ErrorFrame, Evidence
from bridgecore.transport import Log
from bridgecore.wire.responses import CreateRequest, UpstreamEvent

# ---------------------------------------------------------------- events


@attrs.define
class RequestReceived:
    """A client's request to create a response. ``turn``: a number for it, 0 or more, and of no turn
    that has not ended yet.

    ``body``: the JSON text, as it came, without content codings. ``headers``: the client's, names
    in any case. ``scope``: the tenant, where the embedder knows it better than the headers do:
    turns of equal scope can continue each other's responses and may share a socket, whatever their
    credentials, and no others can. None: the credential headers tell. ``request_id``: what log
    lines about the turn call its request.
    """

    turn: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    scope: str | None = attrs.field(default=None, kw_only=True)
    request_id: str | None = attrs.field(default=None, kw_only=True)


@attrs.define
class TurnReceived:
    """``RequestReceived`` as the gateway passes it on to the bridge: with its body read."""

    turn: int
    request: CreateRequest
    headers: list[tuple[bytes, bytes]]
    scope: str | None = attrs.field(default=None, kw_only=True)
    request_id: str | None = attrs.field(default=None, kw_only=True)


@attrs.define
class KnownResponse:
    """What others know about a response. ``response``: the id that its terminal event gave it.
    ``stored``: the upstream stores it, so that any connection can continue it; else only the one
    that made it can."""

    response: str
    stored: bool


@attrs.define
class TurnResolved:
    """The answer to ``ResolveTurn`` with the same ``query``. ``known``: about the response that the
    turn names; None if nothing could be found out. What the bridge knows by itself counts more."""

    query: int
    known: KnownResponse | None = None


@attrs.define
class TurnLeft:
    """The answer of ``turn`` ends before it is complete: its client is gone, or, with ``error``,
    the driver gave the turn up and told its client so."""

    turn: int
    error: ApiError | None = None


@attrs.define
class TurnBlocked:
    """The client of ``turn`` reads too slowly; or, ``blocked`` being False, it reads again."""

    turn: int
    blocked: bool


@attrs.define
class LinkOpened:
    """The link is upgraded and usable. ``messages``: complete text messages that were read together
    with the answer to the upgrade, so before anything was sent."""

    link: int
    messages: list[bytes] = attrs.Factory(list)


@attrs.define
class LinkLost:
    """The link is gone or never came to be. ``error``: the upstream's words, if it had any."""

    link: int
    cause: Evidence
    error: ErrorFrame | None = None


@attrs.define
class LinkFrameSent:
    """The message of the last ``SendFrame`` was handed to the operating system; or, ``whole`` being
    False, one more part of it, and others follow."""

    link: int
    whole: bool = True


@attrs.define
class MessagesReceived:
    """Complete text messages came on the link, in order.

    ``lost``: the loss of the link, if it was read together with them. No ``LinkLost`` is reported
    then. What one read brought is weighed before anything is sent: a frame that one of the
    messages leads to is not sent on a link whose end was read behind them.
    """

    link: int
    messages: list[bytes]
    lost: LinkLost | None = None


@attrs.define
class DrainStarted:
    """No new turn will come: conversations without a turn give up their links."""


@attrs.define
class SocketsExhausted:
    """No further link can be opened here, for want of descriptors: the conversation that has been
    idle longest gives up its link, if there is one."""


@attrs.define
class BridgeTimeout:
    """The time that ``next_timeout`` named has come."""


CommonEvent: TypeAlias = (
    TurnResolved
    | TurnLeft
    | TurnBlocked
    | LinkOpened
    | LinkLost
    | LinkFrameSent
    | MessagesReceived
    | DrainStarted
    | SocketsExhausted
    | BridgeTimeout
)
"""The events that a gateway passes on to its bridge as they are."""
GatewayEvent: TypeAlias = RequestReceived | CommonEvent
"""What ``Gateway.handle`` takes."""
BridgeEvent: TypeAlias = TurnReceived | CommonEvent

# ---------------------------------------------------------------- effects


@attrs.define
class ResolveTurn:
    """Find out what others know about the response that ``turn`` names, and report ``TurnResolved``
    with this ``query``, however late. Only a bridge whose resolver is the driver asks. Until then
    the turn waits, within its budget. ``scope``: whose it is; what was found out under another
    scope is none of its business."""

    query: int
    turn: int
    scope: str
    request: CreateRequest


@attrs.define
class OpenLink:
    """Connect and upgrade; the upgrade request carries ``headers``."""

    link: int
    headers: list[tuple[bytes, bytes]]


@attrs.define
class CloseLink:
    """Close the link, or stop opening it. Nothing more of it is to be reported."""

    link: int


@attrs.define
class SendFrame:
    """Send ``data`` as one text message; report ``LinkFrameSent``."""

    link: int
    data: bytes


@attrs.define
class PauseLink:
    """Stop reading from the link; or, ``paused`` being False, read again."""

    link: int
    paused: bool


@attrs.define
class BeginAnswer:
    """The answer of ``turn`` is a stream of events: send its head, a status of 200."""

    turn: int


@attrs.define
class AnswerEvents:
    """Pass ``events``, at least one, on to the client of ``turn``. A terminal one is the last."""

    turn: int
    events: list[UpstreamEvent]


@attrs.define
class AnswerKeepalive:
    """Show the client of ``turn`` that its stream is alive: by ``event`` or, if that is None,
    by what is no event in its protocol, such as a comment of server-sent events."""

    turn: int
    event: UpstreamEvent | None = None


@attrs.define
class EndAnswer:
    """The stream of ``turn`` is complete."""

    turn: int


@attrs.define
class AnswerBody:
    """Answer ``turn`` with ``body``, the JSON text of a response object, and a status of 200."""

    turn: int
    body: bytes


@attrs.define
class FailAnswer:
    """End the answer of ``turn`` with ``error``. From a gateway it comes before the head, so that
    it is all of the answer: ``error.status`` and ``error.body``."""

    turn: int
    error: ApiError


LinkEffect: TypeAlias = OpenLink | CloseLink | SendFrame | PauseLink
"""What is to be done with a link to the upstream."""
AnswerEffect: TypeAlias = (
    BeginAnswer | AnswerEvents | AnswerKeepalive | EndAnswer | AnswerBody | FailAnswer
)
"""What is to be sent to a client."""
GatewayEffect: TypeAlias = ResolveTurn | LinkEffect | AnswerEffect | Log
"""What ``Gateway.handle`` returns."""
BridgeEffect: TypeAlias = ResolveTurn | LinkEffect | AnswerEvents | FailAnswer | Log
