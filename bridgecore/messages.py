"""The events and effects of a ``Gateway``, and of the ``Bridge`` inside it.

What belongs here: these classes. Events are in the past tense and are reported by the driver (the
code of the embedder); effects are imperative and are carried out by it. The driver numbers turns;
links are numbered by ``OpenLink``. Nothing here depends on the bytes of HTTP or WebSocket.

A turn begins with ``RequestReceived``. Its answer has one of three forms:

* a stream: ``BeginAnswer``, then ``AnswerEvents`` and ``AnswerKeepalive``, then ``EndAnswer``;
* one JSON body: ``AnswerBody``;
* an error before any other part of an answer: ``FailAnswer``.

These classes are built for every read, so they are plain slotted ones, not frozen.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from bridgecore.api_error import ApiError
from bridgecore.config import PeerUrl
from bridgecore.ownership.forwards import Forward
from bridgecore.ownership.store import AskStore as AskStore
from bridgecore.ownership.store import StoreAnswered as StoreAnswered
from bridgecore.recovery.failure import ErrorFrame, Evidence
from bridgecore.telemetry import Log
from bridgecore.wire.requests import CreateRequest, post_body
from bridgecore.wire.responses import UpstreamEvent

# ---------------------------------------------------------------- events


@attrs.define
class RequestReceived:
    """A client has sent a request to create a response.

    Args:
        turn: a number for it, at least 0, that no turn in progress has.
        body: the JSON text, decoded if it had a content coding.
        headers: the client's, names in any case.
        scope: the tenant. Turns of one scope can continue each other's responses and may share a
            connection; turns of different scopes cannot. None: it follows from the credential
            headers. Name it if your own authentication knows the tenant better.
        request_id: the id of the request in log records.
        streamed: it came as a message in WebSocket mode: the answer is a stream, whatever the body
            says, and a ``stream_id`` is refused.
        forward: what another replica says about the turn, if it was forwarded by one and its
            signature was checked; it names the tenant then. The answer is always a stream.
    """

    turn: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    scope: str | None = attrs.field(default=None, kw_only=True)
    request_id: str | None = attrs.field(default=None, kw_only=True)
    streamed: bool = attrs.field(default=False, kw_only=True)
    forward: Forward | None = attrs.field(default=None, kw_only=True)


@attrs.define
class TurnReceived:
    """``RequestReceived`` with its body parsed: what the gateway reports to the bridge."""

    turn: int
    request: CreateRequest
    headers: list[tuple[bytes, bytes]]
    scope: str | None = attrs.field(default=None, kw_only=True)
    request_id: str | None = attrs.field(default=None, kw_only=True)
    forward: Forward | None = attrs.field(default=None, kw_only=True)


@attrs.define
class KnownResponse:
    """What a look-up has found about a response. ``response``: its id, from its terminal event.
    ``stored``: whether the upstream stores it; then any connection can continue it, otherwise only
    the one that it was made on."""

    response: str
    stored: bool


@attrs.define
class TurnResolved:
    """The look-up of ``ResolveTurn`` with the same ``query`` is complete. ``known``: its result;
    None if nothing was found. What the bridge remembers itself takes precedence."""

    query: int
    known: KnownResponse | None = None


@attrs.define
class ProcessStarted:
    """The process is ready, and this gateway is a replica: it asks the store for its lease.

    Reported once, before any turn. Only with ``Store.DRIVER``. ``peer_port``: the port at which
    forwards are taken, if the system chose it; None: that of ``Config.advertise``.
    """

    peer_port: int | None = None


@attrs.define
class TurnLeft:
    """``turn`` ends before its answer is complete: its client is gone, or, with ``error``, the
    driver ends it, and the gateway answers its client with that error."""

    turn: int
    error: ApiError | None = None


@attrs.define
class TurnBlocked:
    """The client of ``turn`` reads too slowly, or, if ``blocked`` is False, has caught up."""

    turn: int
    blocked: bool


@attrs.define
class LinkOpened:
    """The upgrade is complete and the link can be used. ``messages``: complete text messages that
    were read together with the answer to the upgrade, so before anything was sent."""

    link: int
    messages: list[bytes] = attrs.Factory(list)


@attrs.define
class LinkLost:
    """The link was lost, or could not be opened. ``error``: the upstream's error, if it sent one.
    ``unsent``: no byte of the message of the last ``SendFrame`` was written."""

    link: int
    cause: Evidence
    error: ErrorFrame | None = None
    unsent: bool = False


@attrs.define
class LinkFrameSent:
    """The operating system has taken the message of the last ``SendFrame``; or, if ``whole`` is
    False, another part of it. Each part extends the deadline for ``response.created``."""

    link: int
    whole: bool = True


@attrs.define
class MessagesReceived:
    """One read of the link brought complete text messages, in order.

    ``lost``: the loss of the link, if the same read brought it; there is no ``LinkLost`` then. With
    both in one event, a frame to which one of the messages leads is not sent on a link that has
    ended already.
    """

    link: int
    messages: list[bytes]
    lost: LinkLost | None = None


@attrs.define
class ResponseDeleted:
    """The upstream has deleted ``response`` for a client: it is forgotten here, too.

    ``headers``, ``scope``: of the client's request, as for ``RequestReceived``. Only the client
    whose scope it is in loses it.
    """

    response: str
    headers: list[tuple[bytes, bytes]]
    scope: str | None = attrs.field(default=None, kw_only=True)


@attrs.define
class ContextRequested:
    """A request other than a turn may name a response that only this gateway knows: it is about
    the response's context (``POST /v1/responses/compact`` and ``.../input_tokens``).

    Answered by ``ContextPrepared`` or ``ContextUnavailable`` with the same ``query``, a number of
    the driver: at once, or, with a store, once that has said what it knows of the response.
    ``body``, ``headers``, ``scope``: of the client's request, as for ``RequestReceived``.
    """

    query: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    scope: str | None = attrs.field(default=None, kw_only=True)


@attrs.define
class DrainStarted:
    """The process is stopping and no new turn will come: idle conversations close their links."""


@attrs.define
class SocketsExhausted:
    """The process is out of descriptors: the conversation that has been idle longest closes its
    link, if any is idle."""


@attrs.define
class BridgeTimeout:
    """The time of ``next_timeout`` has come."""


CommonEvent: TypeAlias = (
    ProcessStarted
    | StoreAnswered
    | TurnResolved
    | TurnLeft
    | TurnBlocked
    | LinkOpened
    | LinkLost
    | LinkFrameSent
    | MessagesReceived
    | ResponseDeleted
    | ContextRequested
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
    """Look up the response that ``turn`` continues, in a store or at other replicas, and report
    ``TurnResolved`` with this ``query``, however late. The turn waits for it, until its deadline.

    Returned for each turn if the resolver is ``Resolver.DRIVER``, and never otherwise.

    Args:
        query: the number of this question, which no other one has.
        turn: the number of the turn.
        scope: the tenant, as a hexadecimal digest of the credential headers or of the scope that
            ``RequestReceived`` names; equal in every process. A response that belongs to another
            tenant must not be found.
        request: the turn; ``request.previous_response_id`` is the response that it continues, None
            if it continues none.
    """

    query: int
    turn: int
    scope: str
    request: CreateRequest


@attrs.define
class ContextPrepared:
    """The ``body`` with which the request of the ``ContextRequested`` with this ``query`` is to be
    sent: with the whole input in place of ``previous_response_id``, if that names a response that
    is held here and that the upstream does not store; else as it came."""

    query: int
    body: bytes


@attrs.define
class ContextUnavailable:
    """The request of the ``ContextRequested`` with this ``query`` is to be answered with ``error``,
    and not sent: the store that may know the response did not answer in time, or, with
    ``Config.shared_credential``, the response is not known to be of the tenant."""

    query: int
    error: ApiError


@attrs.define
class OpenLink:
    """Open a WebSocket to the upstream, with ``headers`` in the upgrade request.

    With ``http``, which only happens if the URL of the upstream has such a scheme or with
    ``Fallback.HTTP``: open a connection that speaks HTTP. Each message is carried by a ``POST``
    request (``SendFrame.post_body``), and the events of its answer, a stream of server-sent events,
    are the messages of the link. With ``owner``, which only happens if ``Config.cluster_secrets``
    is set: open a connection to the replica there instead. Each message to it is an HTTP request of
    its own.
    """

    link: int
    headers: list[tuple[bytes, bytes]]
    owner: PeerUrl | None = None
    http: bool = False


@attrs.define
class CloseLink:
    """Close the link, or stop opening it. Events of it are ignored from now on."""

    link: int


@attrs.define
class SendFrame:
    """Send ``data`` as one text message, then report ``LinkFrameSent``. ``headers``: of the request
    that carries it, on a link over HTTP or to another replica."""

    link: int
    data: bytes
    headers: list[tuple[bytes, bytes]] = attrs.Factory(list)

    @property
    def post_body(self) -> bytes:
        """The body of the ``POST`` request that carries the message over HTTP."""
        return post_body(self.data)


@attrs.define
class PauseLink:
    """Stop reading from the link, or, if ``paused`` is False, go on reading."""

    link: int
    paused: bool


@attrs.define
class BeginAnswer:
    """Begin the answer of ``turn``, a stream of events: send a head with status 200."""

    turn: int


@attrs.define
class AnswerEvents:
    """Send ``events`` (at least one) to the client of ``turn``. A terminal event is the last."""

    turn: int
    events: list[UpstreamEvent]


@attrs.define
class AnswerKeepalive:
    """Show the client of ``turn`` that its stream is alive: send ``event`` or, if that is None,
    something that its protocol does not count as an event, such as an SSE comment."""

    turn: int
    event: UpstreamEvent | None = None


@attrs.define
class EndAnswer:
    """End the stream of ``turn``: it is complete."""

    turn: int


@attrs.define
class AnswerBody:
    """Answer ``turn`` with ``body``, the JSON text of a response object, and a status of 200."""

    turn: int
    body: bytes


@attrs.define
class FailAnswer:
    """Answer ``turn`` with ``error``: its status and its JSON body. A gateway returns it only if no
    part of the answer was sent yet; later errors are ``response.failed`` events."""

    turn: int
    error: ApiError


LinkEffect: TypeAlias = OpenLink | CloseLink | SendFrame | PauseLink
"""What is to be done with a link to the upstream."""
AnswerEffect: TypeAlias = (
    BeginAnswer | AnswerEvents | AnswerKeepalive | EndAnswer | AnswerBody | FailAnswer
)
"""What is to be sent to a client."""
GatewayEffect: TypeAlias = (
    ResolveTurn | ContextPrepared | ContextUnavailable | AskStore | LinkEffect | AnswerEffect | Log
)
"""What ``Gateway.handle`` returns."""
BridgeEffect: TypeAlias = (
    ResolveTurn
    | ContextPrepared
    | ContextUnavailable
    | AskStore
    | LinkEffect
    | AnswerEvents
    | FailAnswer
    | Log
)
