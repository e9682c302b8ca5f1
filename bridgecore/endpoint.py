"""A complete bridge without I/O: bytes of client and upstream connections in, effects out.

What belongs here: owning the connections, of clients (``fronts``) and to the upstream (``links``),
passing messages between them and the ``Gateway``, and having ``Passages`` join a client with the
upstream's HTTP API for a request that is no turn. This is what the adapters drive. It decides which
connections to close when descriptors run out and when the process has drained, and nothing about
lost turns.

Call structure: an adapter reports a ``TransportEvent``; a front parses the bytes of a client into
requests, a link parses those of the upstream into messages; the gateway handles both, and its
effects become ``TransportEffect``s here.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never, get_args

import attrs

from bridgecore import messages as msg
from bridgecore import transport as tp
from bridgecore.api_error import SHUTTING_DOWN, ApiError
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Store
from bridgecore.errors import ConfigError, InternalError, LocalProtocolError
from bridgecore.fronts import ClientConnection
from bridgecore.fronts.http import HttpConnection
from bridgecore.fronts.peer import PeerConnection
from bridgecore.fronts.request import MessagesOnRequest, RequestConnection
from bridgecore.fronts.websocket import MessageConnection
from bridgecore.gateway import Gateway, StreamRelay
from bridgecore.links import ReadResult, Stage, UpstreamConnection
from bridgecore.links.forward import ForwardConnection
from bridgecore.links.sse import SseConnection
from bridgecore.links.websocket import WebSocketConnection
from bridgecore.ownership.forwards import ForwardVerifier
from bridgecore.ownership.store import Answer
from bridgecore.passages import Passage, Passages
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.failure import Closed, ErrorFrame, Evidence, TimedOut, Unreachable
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.telemetry.metrics import CLIENT_CONNECTIONS, PASSAGES, Readings, exposition
from bridgecore.tenancy import response_not_found
from bridgecore.timer_queue import TimerQueue
from bridgecore.wire.http import RequestBody
from bridgecore.wire.passing import PassedRequest, named_response

_ANSWERS = frozenset(get_args(msg.AnswerEffect))
_check_event = EventCheck(tp.TransportEvent, "bridgecore.transport", *get_args(Answer))
_OF_NO_CONNECTION = (
    tp.Started,
    tp.TimeoutReached,
    tp.DrainRequested,
    tp.AcceptFailed,
    tp.StoreAnswered,
    tp.ResponseDeleted,
)


@attrs.define(eq=False)
class _Client:
    """A client connection, and the state of its closing."""

    connection: ClientConnection
    blocked: bool = False  # its client reads too slowly: WriteBlocked
    ended: bool = False  # its client sends no more
    sent: bool = False  # the OS has taken all that a closing connection had to send
    closing: tp.EndSending | tp.Close | None = None  # the effect that began to close it
    deadline: int | None = None  # ns, when a closing connection is aborted (CLOSE_HANDSHAKE)
    linger_until: int = 0  # ns, the latest value of ``deadline`` while the client still sends
    idle_since: int | None = None  # ns, when its last turn was answered; None while one runs


@attrs.define(eq=False)
class _RelayedLink:
    """An upstream connection that brings the output of a stream, and the client that gets it."""

    stream: StreamRelay
    client: int  # its connection
    connection: ClientConnection


# At most one ``sockets.exhausted`` record in this many ns. There would be one for each connection
# that waits, and writing them would take time when there is least of it.
_EXHAUSTED_LOG = NS_PER_SECOND


def check_store(config: Config, store: object | None) -> None:
    """Check that a driver that runs ``config`` has a ``store`` if, and only if, it is to be used.

    Raises:
        ConfigError: it is not so. Without a store each commit would fail; one that is not used
            would be a conversation lost at the next restart.
    """
    if config.store is Store.DRIVER and store is None:
        raise ConfigError("store=Store.DRIVER needs a store: pass one to serve, see open_store")
    if config.store is Store.MEMORY and store is not None:
        raise ConfigError("a store was passed, but Config has store=Store.MEMORY")


class Endpoint:
    """A complete bridge without I/O. It is a ``Machine``: see ``bridgecore.transport``.

    Args:
        config: the settings.
        request_seed: random bytes, new for each process. The ids of requests without an
            ``x-request-id`` are digests of it and a count, so they are not repeated by the next
            process and do not reveal how many requests there were. So are the names under which
            other replicas see this one's leases and conversations.
    """

    def __init__(self, config: Config, request_seed: bytes = b"") -> None:
        self._config = config
        self._request_seed = request_seed
        self._gateway = Gateway(config, seed=request_seed)
        self._verifier = ForwardVerifier(config.cluster_secrets)
        # One bound method for all connections, of which there may be thousands.
        self._exposition = self._write_metrics if config.metrics else None
        self._clients: dict[int, _Client] = {}
        self._upstreams: dict[int, UpstreamConnection] = {}
        self._passages = Passages(config)
        self._of_turn: dict[int, int] = {}  # turn -> client connection
        self._of_link: dict[int, int] = {}  # link -> upstream connection
        self._relayed: dict[int, _RelayedLink] = {}  # by upstream connection
        self._schedule: TimerQueue[int] = TimerQueue()
        self._serial = 0
        self._numbered: set[int] = set()  # from new_connection(), not reported as accepted yet
        self._turn_serial = 0
        self._now = 0
        self._drain_deadline: int | None = None  # ns; None: no drain was requested
        self._leaving = False  # all turns are answered, connections are being closed
        self._stopped = False
        # The earliest deadline, if ``_next_known``: it is asked for after every event.
        self._next: Deadline | None = None
        self._next_known = False
        self._out: list[tp.TransportEffect] = []
        self._pending: deque[msg.GatewayEvent] = deque()
        self._driving = False
        self._answered: dict[
            int, int
        ] = {}  # turn -> connection, of turns with output that is not sent yet
        # Out of descriptors: connections that are being closed to free one, and upstream
        # connections that wait to be opened then.
        self._giving_way: set[int] = set()
        self._unconnected: deque[int] = deque()
        self._exhausted_log = 0  # ns, the earliest time of the next ``sockets.exhausted`` record
        self._exhausted = 0  # failures since the last such record

    # ------------------------------------------------------------ counts, for an observer

    @property
    def bridge(self) -> Bridge:
        """The bridge, for its counts. Not part of the public surface.

        :meta private:
        """
        return self._gateway.bridge

    @property
    def turns(self) -> int:
        """How many turns are not answered to their end yet."""
        return len(self._of_turn)

    @property
    def clients(self) -> int:
        """How many client connections are open or closing."""
        return len(self._clients)

    @property
    def upstreams(self) -> int:
        """How many upstream connections are being opened, open or closing."""
        return len(self._upstreams) + len(self._passages.connections)

    def metrics(self) -> Readings:
        """What was counted, and how much there is at present; the metrics are in
        ``bridgecore.telemetry.metrics``. Empty without ``Config.metrics``."""
        read = self._gateway.metrics()
        if not self._config.metrics:
            return read
        passages = len(self._passages.connections)
        return {**read, CLIENT_CONNECTIONS: {(): self.clients}, PASSAGES: {(): passages}}

    def _write_metrics(self) -> bytes:
        return exposition(self.metrics())

    def new_connection(self) -> int:
        """A number for a connection that was just accepted; report it with ``Accepted``."""
        self._numbered.add(conn := self._next_number())
        return conn

    def _next_number(self) -> int:
        self._serial += 1
        return self._serial

    def next_timeout(self) -> Deadline | None:
        """When to report ``TimeoutReached`` (ns), and why; None if there is no deadline."""
        if not self._next_known:
            self._next, self._next_known = self._find_next(), True
        return self._next

    def _find_next(self) -> Deadline | None:
        if self._stopped:
            return None
        found = self._gateway.next_timeout()
        own = self._schedule.next()
        if own is not None and (found is None or own[0] < found.at):
            found = Deadline(own[0], self._reason(own[1]))
        drain = self._drain_deadline
        if drain is not None and (found is None or drain < found.at):
            found = Deadline(drain, Timer.DRAIN)
        return found

    def _reason(self, conn: int) -> Timer:
        if conn in self._passages:
            return self._passages.timer(conn)
        client = self._clients.get(conn)
        if client is None:
            return self._upstreams[conn].timer
        if client.deadline is not None:
            return Timer.CLOSE_HANDSHAKE
        return client.connection.timer

    # ------------------------------------------------------------ events

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Handle an event that happened at ``now`` (ns, monotonic); return the effects, in order.

        Raises:
            LocalProtocolError: ``event`` or ``now`` has a wrong type, or the event is impossible
                (see ``bridgecore.transport``). The state is unchanged.
        """
        _check_event(event)
        check_time(now)
        self._refuse_impossible(event)
        now = self._now = max(now, self._now)
        if isinstance(event, tp.DataReceived):
            if (upstream := self._upstreams.get(event.conn)) is not None:
                read = upstream.receive(event.data, now)
                if self._relay(event.conn, read):
                    out, self._out = self._out, []
                    return out
                self._read(event.conn, upstream, read)
            elif (client := self._clients.get(event.conn)) is not None:
                self._client_data(event.conn, client, event.data)
            elif (passage := self._passages.get(event.conn)) is not None:
                self._out += self._passages.receive(passage, event.data, now)
                self._after(passage)
        elif isinstance(event, tp.Accepted):
            self._accepted(event)
        elif isinstance(event, tp.RequestBegun):
            self._request_begun(event)
        elif isinstance(event, tp.RequestEnded):
            client = self._clients.get(event.conn)
            if client is not None and isinstance(client.connection, RequestConnection):
                client.connection.end()
                self._serve(event.conn, client)
        elif isinstance(event, tp.WebSocketMessageReceived):
            client = self._clients.get(event.conn)
            if client is not None and isinstance(client.connection, MessagesOnRequest):
                client.connection.receive_message(event.data, binary=event.binary)
                self._serve(event.conn, client)
        elif isinstance(event, tp.AcceptFailed):
            self._log_exhausted("accept", event.detail)
            self._free_a_socket()
        elif isinstance(event, tp.Connected):
            if (upstream := self._upstreams.get(event.conn)) is not None:
                self._read(event.conn, upstream, upstream.connected())
            elif (passage := self._passages.get(event.conn)) is not None:
                self._out += self._passages.connected(passage, now)
                self._after(passage)
        elif isinstance(event, tp.ConnectFailed):
            self._connect_failed(event)
        elif isinstance(event, tp.EofReceived):
            self._eof(event.conn)
        elif isinstance(event, tp.Disconnected):
            if event.conn in self._clients:
                self._forget_client(event.conn)
            elif event.conn in self._passages:
                self._passage_lost(event.conn, "connection lost")
            else:
                self._connection_lost(event.conn, Closed(1006))
        elif isinstance(event, tp.DataSent):
            self._data_sent(event.conn)
        elif isinstance(event, tp.WriteBlocked | tp.WriteUnblocked):
            self._write_blocked(event.conn, isinstance(event, tp.WriteBlocked))
        elif isinstance(event, tp.TimeoutReached):
            self._timeout(now)
        elif isinstance(event, tp.DrainRequested):
            if self._drain_deadline is None:
                self._begin_drain(event.by)
        elif isinstance(event, tp.StoreAnswered | tp.ResponseDeleted):
            self._drive(event)
        elif isinstance(event, tp.Started):
            self._started(event)
        else:
            assert_never(event)
        if self._drain_deadline is not None and not self._stopped:
            self._drain(self._drain_deadline)
        if self._unconnected:
            self._connect_again(event)
        self._next_known = False
        out, self._out = self._out, []
        return out

    def _refuse_impossible(self, event: tp.TransportEvent) -> None:
        """Raise LocalProtocolError for an event that a correct adapter cannot report. Called before
        any change, so that the state stays as it was."""
        if isinstance(event, _OF_NO_CONNECTION):
            return
        conn, name = event.conn, type(event).__name__
        if isinstance(event, tp.Accepted | tp.RequestBegun):
            if conn not in self._numbered:
                what = "needs a number of new_connection() that was not used before"
                raise LocalProtocolError(f"{name}({conn}) {what}")
            return
        if not 0 < conn <= self._serial or conn in self._numbered:
            raise LocalProtocolError(f"{name}({conn}): it was neither accepted nor asked for")
        upstream, client = self._upstreams.get(conn), self._clients.get(conn)
        connecting = upstream is not None and upstream.stage is Stage.CONNECTING
        connecting = connecting or self._passages.connecting(conn)
        if isinstance(event, tp.Connected | tp.ConnectFailed):
            known = upstream is not None or conn in self._passages
            if client is not None or (known and not connecting):
                raise LocalProtocolError(f"{name}({conn}), but no connect is under way")
        elif connecting and not isinstance(event, tp.Disconnected):
            raise LocalProtocolError(f"{name}({conn}) before Connected({conn})")
        elif isinstance(event, tp.DataReceived):
            if not event.data:
                what = "without data: the end of a stream is EofReceived"
                raise LocalProtocolError(f"{name}({conn}) {what}")
            if client is not None and isinstance(client.connection, MessagesOnRequest):
                what = "after an upgrade: a message is WebSocketMessageReceived"
                raise LocalProtocolError(f"{name}({conn}) {what}")
        elif isinstance(event, tp.WebSocketMessageReceived):
            # Of a handshake that was refused, a message may have been on its way.
            around = client is not None and isinstance(
                client.connection, RequestConnection | MessagesOnRequest
            )
            known = client is not None or upstream is not None or conn in self._passages
            if known and not around:
                what = "is only for a RequestBegun that was upgraded"
                raise LocalProtocolError(f"{name}({conn}) {what}")
        elif isinstance(event, tp.DataSent) and (
            (upstream is not None and upstream.stage is Stage.UPGRADING)
            or (client is not None and client.closing is None)
            or conn in self._passages
        ):
            raise LocalProtocolError(f"DataSent({conn}), but no Send had notify")

    @property
    def _draining(self) -> bool:
        return self._drain_deadline is not None

    # ------------------------------------------------------------ clients

    def _accepted(self, event: tp.Accepted) -> None:
        conn = event.conn
        self._numbered.remove(conn)
        if self._leaving:
            self._out.append(tp.Abort(conn))  # accepted while the listener was being closed
            return
        seed = b"%d/%b" % (conn, self._request_seed)
        connection: ClientConnection
        if event.peer:
            connection = PeerConnection(self._config, self._now, seed, self._verifier)
        else:
            connection = HttpConnection(self._config, self._now, seed, self._exposition)
        client = self._clients[conn] = _Client(connection)
        self._flush(conn, client)

    def _request_begun(self, event: tp.RequestBegun) -> None:
        conn = event.conn
        self._numbered.remove(conn)
        seed = b"%d/%b" % (conn, self._request_seed)
        connection = RequestConnection(self._config, self._now, seed, event, self._exposition)
        client = self._clients[conn] = _Client(connection)
        self._serve(conn, client)

    def _client_data(self, conn: int, client: _Client, data: bytes) -> None:
        if client.closing is None:
            client.connection.receive(data)
            self._serve(conn, client)
        elif isinstance(client.closing, tp.EndSending):
            # It still sends, so it has not read the answer yet: closing now would send a reset,
            # which may destroy the answer on its way. What it sends is dropped.
            client.deadline = min(self._now + self._config.close_timeout, client.linger_until)
            self._schedule.set(conn, client.deadline)

    def _serve(self, conn: int, client: _Client) -> None:
        """Read the next request of a client, if one is complete, and send pending output."""
        while True:
            received = self._next_request(conn, client)
            front = client.connection
            if not isinstance(front, HttpConnection) or not self._pass(conn, client, front):
                break
        if conn not in self._clients:
            return
        self._flush(conn, client)
        if received is not None:
            self._drive(received)

    def _next_request(self, conn: int, client: _Client) -> msg.RequestReceived | None:
        """The next turn of a client, if its request is complete."""
        turn = self._turn_serial + 1
        received = client.connection.next_request(turn, self._now, draining=self._draining)
        if received is None and (successor := client.connection.successor) is not None:
            client.connection = successor
            received = successor.next_request(turn, self._now, draining=self._draining)
        if received is not None:
            self._turn_serial = turn
            self._of_turn[turn] = conn
            client.idle_since = None
        return received

    def _flush(self, conn: int, client: _Client) -> None:
        """Send the connection's output, and set its deadline in the timer queue."""
        connection = client.connection
        closes = connection.closing and client.closing is None
        sends = bool(connection.out)
        self._out += connection.write(conn, notify=closes and sends)
        if closes:
            lingers = connection.lingering or self._may_be_unread(client)
            client.closing = tp.EndSending(conn) if lingers else tp.Close(conn)
            self._out.append(client.closing)
            if sends or client.blocked:
                self._still_sends(conn, client)
            else:
                self._all_sent(conn, client)
            client.linger_until = self._now + self._config.body_timeout
        at = client.deadline
        self._schedule.set(conn, connection.deadline if at is None else at)

    def _may_be_unread(self, client: _Client) -> bool:
        """Whether the client's close has to be awaited, because the process is about to end and an
        answer of the last moments may not have arrived.

        The OS goes on delivering what it has taken after a close, and after the end of the process,
        too, but not where that end takes the network with it, as in a container.
        """
        since = client.idle_since
        if not self._draining or client.ended or since is None:
            return False
        return self._now - since <= self._config.close_timeout

    def _data_sent(self, conn: int) -> None:
        if (upstream := self._upstreams.get(conn)) is not None:
            frame = upstream.frame_sent(self._now)
            if frame:
                self._out.append(tp.Send(conn, frame, notify=True))
            self._drive(msg.LinkFrameSent(upstream.link, upstream.whole))
        elif (client := self._clients.get(conn)) is not None:
            self._all_sent(conn, client)

    def _still_sends(self, conn: int, client: _Client) -> None:
        """A closing connection has more to send than the OS takes: its client's reading takes
        time."""
        client.sent = False
        client.deadline = self._now + self._config.client_idle
        self._schedule.set(conn, client.deadline)

    def _all_sent(self, conn: int, client: _Client) -> None:
        """The OS has taken all that a closing connection had to send: only the client's close is
        awaited."""
        client.sent = True
        client.deadline = self._now + self._config.close_timeout
        self._schedule.set(conn, client.deadline)

    def _give_up(self, conn: int, client: _Client) -> None:
        """End a closing connection whose client does not close. What the OS has taken is left to
        it: a reset would drop what has not arrived yet."""
        if client.sent and isinstance(client.closing, tp.EndSending):
            client.closing = tp.Close(conn)
            self._out.append(client.closing)
            self._all_sent(conn, client)
        else:
            self._out.append(tp.Abort(conn))
            self._forget_client(conn)

    def _forget_client(self, conn: int) -> None:
        """Forget a client that is gone, and end its turns."""
        client = self._clients.pop(conn, None)
        self._giving_way.discard(conn)
        if (passage := self._passages.of_client(conn)) is not None:
            self._end_passage(passage, self._passages.leave(passage, self._now, gone=True))
        self._schedule.set(conn, None)
        if client is not None:
            for turn in client.connection.turns:
                self._of_turn.pop(turn, None)
                self._drive(msg.TurnLeft(turn))

    def _client_eof(self, conn: int, client: _Client) -> None:
        """Treat the end of a client's input as its departure.

        A half-close cannot be distinguished from a close, and a turn whose answer is not read costs
        tokens.
        """
        if client.connection.turns or self._passages.of_client(conn) is not None:
            self._out.append(tp.Abort(conn))
            self._forget_client(conn)
        elif not isinstance(client.closing, tp.Close):
            # The last answer may still be in the send buffer, so the close is not an abort.
            client.ended = client.connection.closing = True
            client.connection.lingering = False
            client.closing = None
            self._flush(conn, client)

    def _write_blocked(self, conn: int, blocked: bool) -> None:
        client = self._clients.get(conn)
        if client is not None:
            client.blocked = blocked
            if client.closing is not None:
                if blocked:
                    self._still_sends(conn, client)
                else:
                    self._all_sent(conn, client)
            for turn in client.connection.turns:
                self._drive(msg.TurnBlocked(turn, blocked))
            if (passage := self._passages.of_client(conn)) is not None:
                self._out += self._passages.block_client(passage, blocked, self._now)
        elif (passage := self._passages.get(conn)) is not None:
            self._out += self._passages.block_upstream(passage, blocked, self._now)
            self._after(passage)

    # ------------------------------------------------------------ requests that are passed through

    def _pass(self, conn: int, client: _Client, front: HttpConnection) -> bool:
        """Pass on what a client's connection has read of a request that is passed through. Whether
        it was refused instead: then the next request may be complete."""
        passed, front.passed = front.passed, []
        if not passed and not front.broken and self._passages.of_client(conn) is None:
            return False
        for each in passed:
            passage = self._passages.of_client(conn)
            if isinstance(each, PassedRequest) and (refused := self._foreign(each)) is not None:
                front.refuse_passed(refused)
                return True
            if isinstance(each, PassedRequest):
                number = self._next_number()
                self._out += self._passages.begin(
                    number, conn, front, each, self._now, blocked=client.blocked
                )
                self._schedule.set(number, self._passages.deadline(number))
                client.idle_since = None
            elif passage is None:
                pass  # it was given up
            elif passage.request.whole:
                about, scope = each.data, passage.request.scope
                headers = passage.request.headers
                self._drive(msg.ContextRequested(passage.number, about, headers, scope=scope))
            else:
                self._out += self._passages.pass_part(passage, each, self._now)
        passage = self._passages.of_client(conn)
        if passage is not None and front.passing is not passage.request:
            # It was refused while it was read: it is malformed, or too slow.
            self._end_passage(passage, self._passages.leave(passage, self._now, gone=False))
        elif passage is not None and passed and not isinstance(passed[-1], RequestBody):
            self._out += self._passages.await_more(passage, self._now)
        if front.broken:
            self._out.append(tp.Abort(conn))
            self._forget_client(conn)
        return False

    def _foreign(self, request: PassedRequest) -> ApiError | None:
        """The error for a request to the path of a response that may be another tenant's."""
        named = named_response(request.method, request.segments)
        if named is None or not self._config.shared_credential:
            return None
        known = self._gateway.has(named, request.headers, self._now, scope=request.scope)
        return None if known else response_not_found(named)

    def _after(self, passage: Passage) -> None:
        """Send what a passage has written for its client; after a complete answer, serve the next
        request."""
        if passage.deleted is not None:
            request = passage.request
            self._drive(msg.ResponseDeleted(passage.deleted, request.headers, scope=request.scope))
            passage.deleted = None
        if not passage.over:
            client = self._clients[passage.client]
            self._flush(passage.client, client)
            self._schedule.set(passage.number, self._passages.deadline(passage.number))
            return
        self._end_passage(passage, [])
        client = self._clients[passage.client]
        if passage.front.broken:
            self._out.append(tp.Abort(passage.client))
            self._forget_client(passage.client)
        else:
            client.idle_since = self._now
            self._serve(passage.client, client)

    def _end_passage(self, passage: Passage, effects: list[tp.TransportEffect]) -> None:
        """Carry out the effects of the end of a passage; set the time for its connection to
        close."""
        self._out += effects
        self._schedule.set(passage.number, self._passages.deadline(passage.number))

    def _passage_lost(self, number: int, cause: str) -> None:
        """A connection to the upstream's HTTP API is gone."""
        passage = self._passages.get(number)
        if passage is not None:
            self._out += self._passages.lose(passage, cause, self._now, gone=True)
            self._after(passage)
        self._passages.forget(number)
        self._schedule.set(number, None)

    # ------------------------------------------------------------ both kinds of connections

    def _eof(self, conn: int) -> None:
        if (client := self._clients.get(conn)) is not None:
            self._client_eof(conn, client)
        elif (upstream := self._upstreams.get(conn)) is not None:
            self._read(conn, upstream, upstream.receive_eof(self._now))
        elif (passage := self._passages.get(conn)) is not None:
            self._out += self._passages.receive(passage, b"", self._now)
            self._after(passage)

    def _started(self, event: tp.Started) -> None:
        if self._config.store is Store.DRIVER:
            self._drive(msg.ProcessStarted(event.peer_port))

    def _timeout(self, now: int) -> None:
        for conn in list(self._schedule.due(now)):
            if (client := self._clients.get(conn)) is not None:
                if client.deadline is not None:
                    self._give_up(conn, client)
                else:
                    client.connection.timeout(now)
                    self._serve(conn, client)
            elif (upstream := self._upstreams.get(conn)) is not None:
                said = upstream.timeout(now)
                if isinstance(said, TimedOut):
                    self._out.append(tp.Abort(conn))
                    self._connection_lost(conn, said)
                    continue
                if said:
                    self._out.append(tp.Send(conn, said))
                self._schedule.set(conn, upstream.deadline)
            elif conn in self._passages:
                passage = self._passages.get(conn)
                self._out += self._passages.timeout(conn, now)
                if passage is not None:
                    self._after(passage)
        self._drive(msg.BridgeTimeout())

    # ------------------------------------------------------------ upstreams

    def _read(self, conn: int, upstream: UpstreamConnection, read: ReadResult) -> None:
        """Pass on the result of one read: all of its messages in one event, with the loss, if
        any."""
        was_open = upstream.stage is not Stage.CLOSING
        self._schedule.set(conn, upstream.deadline)
        if read.reply:
            self._out.append(tp.Send(conn, read.reply, notify=read.sends))
        loss = read.loss
        lost = None
        if loss is not None:
            lost = msg.LinkLost(upstream.link, loss.cause, loss.error, upstream.unsent)
        if loss is not None:
            if loss.goodbye:
                # Our last frame says why the link ends and is still to be sent: close, not abort.
                self._out.append(tp.Close(conn))
                self._detach_link(conn, upstream)
            else:
                self._out.append(tp.Abort(conn))
                self._forget_upstream(conn)
        if not was_open:
            return  # the bridge has closed the link and expects no more of it
        if read.progress:
            self._drive(msg.LinkFrameSent(upstream.link, upstream.whole))
        if read.opened and lost is None:
            self._drive(msg.LinkOpened(upstream.link, read.messages))
        elif read.messages and not read.opened:
            self._drive(msg.MessagesReceived(upstream.link, read.messages, lost))
            self._note_relay(conn, upstream.link)
        elif lost is not None:
            self._drive(lost)

    def _relay(self, conn: int, read: ReadResult) -> bool:
        """Pass on a read that brings only plain output of a running stream; False if it has to be
        handled like any other.

        Nothing is decided about such a read, and no deadline changes: it does not pass through the
        gateway. See ``bridgecore.relay``; the result is the same.
        """
        relayed = self._relayed.get(conn)
        if relayed is None:
            return False
        plain = read.loss is None and not read.opened and self._drain_deadline is None
        plain = plain and not read.progress and not read.sends
        answer = relayed.stream.take(read.messages, self._now) if plain else None
        if answer is None:
            del self._relayed[conn]
            return False
        if read.reply:
            self._out.append(tp.Send(conn, read.reply))
        connection = relayed.connection
        connection.answer(answer)
        self._out += connection.write(relayed.client, notify=False)
        return True

    def _note_relay(self, conn: int, link: int) -> None:
        """Note whether the next read of ``link`` may be of the kind that ``_relay`` passes on."""
        stream = self._gateway.relay_of(link)
        client = None if stream is None else self._of_turn.get(stream.turn)
        if stream is not None and client is not None and conn in self._upstreams:
            self._relayed[conn] = _RelayedLink(stream, client, self._clients[client].connection)

    def _detach_link(self, conn: int, upstream: UpstreamConnection) -> None:
        """Stop reporting the link: its close frame is sent, only the peer's is awaited."""
        self._of_link.pop(upstream.link, None)
        self._relayed.pop(conn, None)
        if upstream.paused:
            self._out.append(tp.ResumeReading(conn))
        upstream.part(self._now)
        self._schedule.set(conn, upstream.deadline)

    def _connection_lost(self, conn: int, cause: Evidence, error: ErrorFrame | None = None) -> None:
        """Forget an upstream connection, and report the loss unless the bridge closed the link."""
        upstream = self._forget_upstream(conn)
        if upstream is not None and upstream.stage is not Stage.CLOSING:
            self._drive(msg.LinkLost(upstream.link, cause, error, upstream.unsent))

    def _forget_upstream(self, conn: int) -> UpstreamConnection | None:
        upstream = self._upstreams.pop(conn, None)
        self._relayed.pop(conn, None)
        self._giving_way.discard(conn)
        self._schedule.set(conn, None)
        if upstream is not None:
            self._of_link.pop(upstream.link, None)
        return upstream

    def _connect_failed(self, event: tp.ConnectFailed) -> None:
        conn = event.conn
        upstream = self._upstreams.get(conn)
        passage = self._passages.get(conn)
        if upstream is None and passage is None:
            return
        if event.error is not tp.ConnectError.LOCAL:
            fields: dict[str, str | int] = {"error": event.error.value, "detail": event.detail}
            self._out.append(tp.Log(tp.LogLevel.WARNING, "upstream.connect_failed", fields))
        else:
            self._log_exhausted("connect", event.detail)
            if passage is not None:
                self._free_a_socket()
                self._out += self._passages.without_socket(passage, self._now)
                self._after(passage)
                return
            assert upstream is not None
            if not self._leaving and self._free_a_socket():
                self._forget_upstream(conn)
                again = self._next_number()
                self._upstreams[again] = upstream
                self._of_link[upstream.link] = again
                self._unconnected.append(again)
                return
        if passage is not None:
            self._passage_lost(conn, event.error.value)
            return
        self._connection_lost(conn, Unreachable(event.error.value))

    # ------------------------------------------------------------ out of sockets

    def _free_a_socket(self) -> bool:
        """Close one connection to free its descriptor, the least harmful first; False if none can
        be.

        1. An upstream connection that only awaits the peer's close frame.
        2. The upstream connection of the conversation idle longest: its next turn opens another.
        3. The client connection idle longest. Last, because a request may be on its way, which the
           client would have to retry (RFC 9112, section 9.5).
        """
        if self._hang_up():
            return True
        upstreams = len(self._upstreams)
        self._drive(msg.SocketsExhausted())
        if len(self._upstreams) < upstreams:
            return True  # it was still being opened, so it was aborted at once
        if self._hang_up():
            return True
        idle = [
            (client.idle_since, conn)
            for conn, client in self._clients.items()
            if client.idle_since is not None and client.closing is None and client.connection.idle
        ]
        if not idle:
            return False
        _, conn = min(idle)
        self._giving_way.add(conn)
        self._clients[conn].connection.shut()
        self._flush(conn, self._clients[conn])
        return True

    def _hang_up(self) -> bool:
        """Close an upstream connection on which we have sent our close frame, without waiting for
        the peer's; False if there is none."""
        for conn, upstream in self._upstreams.items():
            if upstream.stage is Stage.CLOSING and conn not in self._giving_way:
                self._giving_way.add(conn)
                self._out.append(tp.Close(conn))
                return True
        return False

    def _connect_again(self, event: tp.TransportEvent) -> None:
        """Open waiting upstream connections, one for each descriptor that ``event`` has freed."""
        ended = isinstance(event, tp.Disconnected) or (
            isinstance(event, tp.ConnectFailed) and event.error is not tp.ConnectError.LOCAL
        )
        closed = ended + sum(isinstance(effect, tp.Abort) for effect in self._out)
        while closed and self._unconnected:
            conn = self._unconnected.popleft()
            if conn in self._upstreams:  # otherwise its link was closed meanwhile
                self._connect(conn)
                closed -= 1

    def _connect(self, conn: int) -> None:
        url = self._upstreams[conn].url
        self._out.append(tp.Connect(conn, url.host, url.port, url.tls))

    def _log_exhausted(self, what: str, detail: str) -> None:
        """Log that ``what`` failed for lack of descriptors, at most once in ``_EXHAUSTED_LOG``."""
        self._exhausted += 1
        if self._now < self._exhausted_log:
            return
        self._exhausted_log = self._now + _EXHAUSTED_LOG
        fields: dict[str, str | int] = {
            "failed": what,
            "detail": detail,
            "count": self._exhausted,  # failures since the last record
            "clients": len(self._clients),
            "upstreams": len(self._upstreams),
        }
        self._exhausted = 0
        self._out.append(tp.Log(tp.LogLevel.WARNING, "sockets.exhausted", fields))

    # ------------------------------------------------------------ the gateway

    def _drive(self, event: msg.GatewayEvent) -> None:
        """Have the gateway handle ``event`` and carry out its effects.

        Carrying out may report further events; they are queued, so that the effects of one event
        are complete before the next one is handled.
        """
        self._pending.append(event)
        if self._driving:
            return
        self._driving = True
        try:
            while self._pending:
                for effect in self._gateway.handle(self._pending.popleft(), self._now):
                    if self._answered and type(effect) not in _ANSWERS:
                        self._flush_answers()
                    self._carry_out(effect)
                if self._answered:
                    self._flush_answers()
        finally:
            self._driving = False

    def _carry_out(self, effect: msg.GatewayEffect) -> None:
        if isinstance(effect, msg.SendFrame):
            conn = self._of_link.get(effect.link)
            if conn is not None:  # otherwise it was lost, and LinkLost is queued
                upstream = self._upstreams[conn]
                frame = upstream.send(effect, self._now)
                self._schedule.set(conn, upstream.deadline)
                if frame:  # otherwise it waits for frames that the transport has yet to take
                    self._out.append(tp.Send(conn, frame, notify=True))
        elif isinstance(effect, msg.PauseLink):
            conn = self._of_link.get(effect.link)
            if conn is not None:
                self._upstreams[conn].paused = effect.paused
                self._out.append(tp.PauseReading(conn) if effect.paused else tp.ResumeReading(conn))
        elif isinstance(effect, msg.OpenLink):
            conn = self._next_number()
            self._upstreams[conn] = self._new_link(effect)
            self._of_link[effect.link] = conn
            self._connect(conn)
        elif isinstance(effect, msg.CloseLink):
            self._close(effect.link)
        elif isinstance(effect, msg.ContextPrepared):
            passage = self._passages.get(effect.query)
            if passage is not None:  # otherwise its client has left
                self._out += self._passages.replace_body(passage, effect.body)
        elif isinstance(effect, msg.ContextUnavailable):
            passage = self._passages.get(effect.query)
            if passage is not None:
                self._out += self._passages.refuse(passage, effect.error, self._now)
                self._after(passage)
        elif isinstance(effect, msg.ResolveTurn):
            raise InternalError("ResolveTurn, but the bridge of an endpoint resolves from memory")
        elif isinstance(effect, tp.Log | tp.AskStore):
            self._out.append(effect)
        else:
            self._answer(effect)

    def _new_link(self, effect: msg.OpenLink) -> UpstreamConnection:
        if effect.owner is not None:
            return ForwardConnection(self._config, effect.link, effect.owner)
        if effect.http:
            return SseConnection(self._config, effect.link)
        return WebSocketConnection(self._config, effect.link, effect.headers, self._now)

    def _answer(self, effect: msg.AnswerEffect) -> None:
        conn = self._of_turn.get(effect.turn)
        if conn is not None:  # otherwise its client has just left
            self._clients[conn].connection.answer(effect)
            self._answered[effect.turn] = conn

    def _flush_answers(self) -> None:
        """Send the output of answers; after a complete one, serve the next request.

        Called once for all effects of an event, so that one read leads to one write.
        """
        answered, self._answered = self._answered, {}
        for turn, conn in answered.items():
            client = self._clients[conn]
            if turn in client.connection.turns:
                self._flush(conn, client)
                if client.blocked:
                    # The connection was blocked before this turn began: the gateway must know.
                    self._drive(msg.TurnBlocked(turn, True))
            else:
                del self._of_turn[turn]
                client.idle_since = self._now
                self._serve(conn, client)

    def _close(self, link: int) -> None:
        conn = self._of_link.get(link)
        if conn is None:
            return
        goodbye = self._upstreams[conn].close()
        if goodbye:
            self._out.append(tp.Send(conn, goodbye))
            self._detach_link(conn, self._upstreams[conn])
        else:
            self._out.append(tp.Abort(conn))
            self._forget_upstream(conn)

    # ------------------------------------------------------------ the end

    def _begin_drain(self, by: str) -> None:
        left = self._config.drain_timeout
        self._drain_deadline = self._now + left
        # ``seconds``: how long running turns may still take before they are ended.
        fields: dict[str, str | int] = {
            "by": by or "-",
            "turns": len(self._of_turn),
            "seconds": f"{left / NS_PER_SECOND:g}",
        }
        if self._passages:
            fields["passages"] = len(self._passages)
        self._out.append(tp.Log(tp.LogLevel.INFO, "drain.started", fields))
        # Conversations without a turn are given up at once, so that other replicas can take them.
        self._drive(msg.DrainStarted())
        # So are WebSockets: their clients connect again, and not in the moment of their next turn.
        # Clients of HTTP expect that a connection may be gone, and probes still come on theirs.
        for conn, client in list(self._clients.items()):
            if isinstance(client.connection, MessageConnection):
                self._serve(conn, client)

    def _drain(self, deadline: int) -> None:
        """Let running turns finish, then close all connections; at the deadline, end what is
        left."""
        due = deadline <= self._now
        if due and not self._leaving:
            # Latest first: otherwise the end of one turn would start another that waits for it.
            for turn, conn in reversed(list(self._of_turn.items())):
                self._clients[conn].connection.close_after_answers()
                self._drive(msg.TurnLeft(turn, SHUTTING_DOWN))
            for conn in self._passages.clients:
                if (passage := self._passages.of_client(conn)) is not None:
                    self._out += self._passages.cut(passage, self._now)
                    self._after(passage)
        if not self._of_turn and not self._passages and not self._leaving:
            self._leaving = True
            # A client that reads slowly has the rest of the time to read its answer.
            self._drain_deadline = max(deadline, self._now + self._config.close_timeout)
            self._out.append(tp.StopListening())
            for conn, client in self._clients.items():
                client.connection.shut()
                self._flush(conn, client)
        elif self._leaving and due:
            for conn, client in list(self._clients.items()):
                # As in ``_give_up``; what the OS has not taken now is lost with the process.
                lingers = isinstance(client.closing, tp.EndSending)
                self._out.append(tp.Close(conn) if lingers else tp.Abort(conn))
                self._forget_client(conn)
            for conn in list(self._upstreams):
                self._out.append(tp.Abort(conn))
                self._forget_upstream(conn)
            for conn in list(self._passages.connections):
                self._out.append(tp.Abort(conn))
                self._schedule.set(conn, None)
                self._passages.forget(conn)
        over = due or self.bridge.finished  # a store that does not answer delays nothing further
        if self._leaving and over and not self._clients and not self.upstreams:
            self._stopped = True
            self._out.append(tp.Stop())
