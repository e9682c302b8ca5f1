"""The byte door: connections of clients and of the upstream around a ``Gateway``.

What belongs here: the third door for embedders, and what the adapters drive. An ``Endpoint`` owns
every connection, a client's (``fronts``) or an upstream's (``links``), and carries messages between
them and the gateway. It decides nothing about a loss; what it decides is which connections end when
sockets are scarce, and when the process has drained.

Who calls whom: an adapter reports a ``TransportEvent``; a front reads requests from the bytes of a
client, a link reads messages from those of the upstream; both go to the gateway, whose effects come
back here and become ``TransportEffect``s.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never, get_args

import attrs

from bridgecore import messages as msg
from bridgecore import transport as tp
from bridgecore.api_error import SHUTTING_DOWN
from bridgecore.bridge import Bridge
from bridgecore.config import Config
from bridgecore.errors import InternalError, LocalProtocolError
from bridgecore.fronts import ClientConnection
from bridgecore.fronts.http import HttpConnection
from bridgecore.gateway import Gateway
from bridgecore.links import ReadResult, Stage, UpstreamConnection
from bridgecore.links.websocket import WebSocketConnection
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.failure import Closed, ErrorFrame, Evidence, TimedOut, Unreachable
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.transport.timer_queue import TimerQueue

_ANSWERS = frozenset(get_args(msg.AnswerEffect))
_check_event = EventCheck(tp.TransportEvent, "bridgecore.transport")


@attrs.define(eq=False)
class _Client:
    """A client connection, and how far its end is."""

    connection: ClientConnection
    blocked: bool = False  # its client reads too slowly
    closing: tp.EndSending | tp.Close | None = None  # what was told to the adapter
    deadline: int | None = None  # ns: of CLOSE_HANDSHAKE; when to stop being polite
    linger_until: int = 0  # ns: when to stop listening to a client that still sends
    idle_since: int | None = None  # ns: its last turn was answered, and there is no other


# At most one log record in this many ns says that descriptors ran out: each connection that waits
# would be worth one, and writing them makes it worse.
_EXHAUSTED_LOG = NS_PER_SECOND


class Endpoint:
    """A complete bridge without I/O. A ``Machine``: see ``bridgecore.transport``.

    ``request_seed``: what the ids of requests that bring none (``x-request-id``) are made of,
    together with a count. Random bytes, drawn anew for each process, keep them from being repeated
    by the next process and from telling how many requests there were.
    """

    def __init__(self, config: Config, request_seed: bytes = b"") -> None:
        self._config = config
        self._request_seed = request_seed
        self._gateway = Gateway(config)
        self._clients: dict[int, _Client] = {}
        self._upstreams: dict[int, UpstreamConnection] = {}
        self._of_turn: dict[int, int] = {}  # turn -> client connection
        self._of_link: dict[int, int] = {}  # link -> upstream connection
        self._schedule: TimerQueue[int] = TimerQueue()
        self._serial = 0
        self._numbered: set[int] = set()  # numbers that were given out, and not accepted yet
        self._turn_serial = 0
        self._now = 0
        self._drain_deadline: int | None = None  # ns; also: a drain was asked for
        self._leaving = False  # drained: only goodbyes are left
        self._stopped = False
        self._out: list[tp.TransportEffect] = []
        self._pending: deque[msg.GatewayEvent] = deque()
        self._driving = False
        self._answered: dict[int, int] = {}  # turns with something to send, and their connections
        self._giving_way: set[int] = set()  # connections closed so that others can be opened
        self._unconnected: deque[int] = (
            deque()
        )  # upstream connections that wait for one of them to end
        self._exhausted_log = 0  # ns: when the next log record may say so
        self._exhausted = 0  # how often since the last one did

    # ------------------------------------------------------------ what an observer may ask

    @property
    def bridge(self) -> Bridge:
        """The bridge inside, for its counts. Not part of the public surface.

        :meta private:
        """
        return self._gateway.bridge

    @property
    def clients(self) -> int:
        """How many client connections there are, closing ones included."""
        return len(self._clients)

    @property
    def upstreams(self) -> int:
        """How many upstream connections there are, closing ones included."""
        return len(self._upstreams)

    def new_connection(self) -> int:
        """A number for a connection that was just accepted, to be reported with ``Accepted``."""
        self._numbered.add(conn := self._next_number())
        return conn

    def _next_number(self) -> int:
        self._serial += 1
        return self._serial

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
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
        client = self._clients.get(conn)
        if client is None:
            return self._upstreams[conn].timer
        if client.deadline is not None:
            return Timer.CLOSE_HANDSHAKE
        return client.connection.timer

    # ------------------------------------------------------------ events

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Take in what happened at ``now`` (ns, monotonic); what to do about it, in order.

        Raises:
            LocalProtocolError: ``event`` is none, a field of it or ``now`` has a wrong type, or no
                lawful adapter reports it (see ``bridgecore.transport``). Nothing has changed.
        """
        _check_event(event)
        check_time(now)
        self._refuse_impossible(event)
        now = self._now = max(now, self._now)
        if isinstance(event, tp.DataReceived):
            if (upstream := self._upstreams.get(event.conn)) is not None:
                self._read(event.conn, upstream, upstream.receive(event.data, now))
            elif (client := self._clients.get(event.conn)) is not None:
                self._client_data(event.conn, client, event.data)
        elif isinstance(event, tp.Accepted):
            self._accepted(event.conn)
        elif isinstance(event, tp.AcceptFailed):
            self._log_exhausted("accept", event.detail)
            self._free_a_socket()
        elif isinstance(event, tp.Connected):
            if (upstream := self._upstreams.get(event.conn)) is not None:
                self._out.append(tp.Send(event.conn, upstream.connected()))
        elif isinstance(event, tp.ConnectFailed):
            self._connect_failed(event)
        elif isinstance(event, tp.EofReceived):
            self._eof(event.conn)
        elif isinstance(event, tp.Disconnected):
            if event.conn in self._clients:
                self._forget_client(event.conn)
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
        else:
            assert_never(event)
        if self._drain_deadline is not None and not self._stopped:
            self._drain(self._drain_deadline)
        if self._unconnected:
            self._connect_again(event)
        out, self._out = self._out, []
        return out

    def _refuse_impossible(self, event: tp.TransportEvent) -> None:
        """Raise LocalProtocolError for what no lawful adapter reports, before anything changes."""
        if isinstance(event, tp.TimeoutReached | tp.DrainRequested | tp.AcceptFailed):
            return
        conn, name = event.conn, type(event).__name__
        if isinstance(event, tp.Accepted):
            if conn not in self._numbered:
                what = "needs a number of new_connection() that was not used before"
                raise LocalProtocolError(f"Accepted({conn}) {what}")
            return
        if not 0 < conn <= self._serial or conn in self._numbered:
            raise LocalProtocolError(f"{name}({conn}): it was neither accepted nor asked for")
        upstream, client = self._upstreams.get(conn), self._clients.get(conn)
        connecting = upstream is not None and upstream.stage is Stage.CONNECTING
        if isinstance(event, tp.Connected | tp.ConnectFailed):
            if client is not None or (upstream is not None and not connecting):
                raise LocalProtocolError(f"{name}({conn}), but no connect is under way")
        elif connecting and not isinstance(event, tp.Disconnected):
            raise LocalProtocolError(f"{name}({conn}) before Connected({conn})")
        elif isinstance(event, tp.DataReceived):
            if not event.data:
                what = "without data: the end of a stream is EofReceived"
                raise LocalProtocolError(f"{name}({conn}) {what}")
        elif isinstance(event, tp.DataSent) and (
            (upstream is not None and upstream.stage is Stage.UPGRADING)
            or (client is not None and client.closing is None)
        ):
            raise LocalProtocolError(f"DataSent({conn}), but no Send had notify")

    @property
    def _draining(self) -> bool:
        return self._drain_deadline is not None

    # ------------------------------------------------------------ clients

    def _accepted(self, conn: int) -> None:
        self._numbered.remove(conn)
        if self._leaving:
            self._out.append(tp.Abort(conn))  # it came while the listener was being closed
            return
        seed = b"%d/%b" % (conn, self._request_seed)
        client = self._clients[conn] = _Client(HttpConnection(self._config, self._now, seed))
        self._flush(conn, client)

    def _client_data(self, conn: int, client: _Client, data: bytes) -> None:
        if client.closing is None:
            client.connection.receive(data)
            self._serve(conn, client)
        elif isinstance(client.closing, tp.EndSending):
            # It still sends what nobody reads; as long as it does, it has not seen the answer.
            client.deadline = min(self._now + self._config.close_timeout, client.linger_until)
            self._schedule.set(conn, client.deadline)

    def _serve(self, conn: int, client: _Client) -> None:
        """Take the next turn of a client, if there is one, and send what is to be sent."""
        turn = self._turn_serial + 1
        received = client.connection.next_request(turn, self._now, draining=self._draining)
        if received is not None:
            self._turn_serial = turn
            self._of_turn[turn] = conn
            client.idle_since = None
        self._flush(conn, client)
        if received is not None:
            self._drive(received)

    def _flush(self, conn: int, client: _Client) -> None:
        """Send what the connection has to send, and keep its deadline."""
        connection = client.connection
        closes = connection.closing and client.closing is None
        if connection.out:
            self._out.append(tp.Send(conn, b"".join(connection.out), notify=closes))
        if closes:
            client.closing = tp.EndSending(conn) if connection.lingering else tp.Close(conn)
            self._out.append(client.closing)
            # Until the last answer is out, it is the client's reading that takes its time.
            unread = bool(connection.out) or client.blocked
            patience = self._config.client_idle if unread else self._config.close_timeout
            client.deadline = self._now + patience
            client.linger_until = self._now + self._config.body_timeout
        connection.out.clear()
        at = client.deadline
        self._schedule.set(conn, connection.deadline if at is None else at)

    def _data_sent(self, conn: int) -> None:
        if (upstream := self._upstreams.get(conn)) is not None:
            frame = upstream.frame_sent(self._now)
            if frame:
                self._out.append(tp.Send(conn, frame, notify=True))
            self._drive(msg.LinkFrameSent(upstream.link, whole=not frame))
        elif (client := self._clients.get(conn)) is not None:
            client.deadline = self._now + self._config.close_timeout
            self._schedule.set(conn, client.deadline)

    def _forget_client(self, conn: int) -> None:
        """The client is gone, and does not wait for answers any more."""
        client = self._clients.pop(conn, None)
        self._giving_way.discard(conn)
        self._schedule.set(conn, None)
        if client is not None:
            for turn in client.connection.turns:
                self._of_turn.pop(turn, None)
                self._drive(msg.TurnLeft(turn))

    def _client_eof(self, conn: int, client: _Client) -> None:
        """A client that has said goodbye does not wait for an answer: nobody could tell one that
        half-closed from one that left, and a turn that nobody reads costs money."""
        if client.connection.turns:
            self._out.append(tp.Abort(conn))
            self._forget_client(conn)
        elif not isinstance(client.closing, tp.Close):
            # What was answered may still be on its way, so it is not dropped.
            client.connection.closing = True
            client.connection.lingering = False
            client.closing = None
            self._flush(conn, client)

    def _write_blocked(self, conn: int, blocked: bool) -> None:
        client = self._clients.get(conn)
        if client is not None:
            client.blocked = blocked
            for turn in client.connection.turns:
                self._drive(msg.TurnBlocked(turn, blocked))

    # ------------------------------------------------------------ either

    def _eof(self, conn: int) -> None:
        if (client := self._clients.get(conn)) is not None:
            self._client_eof(conn, client)
        elif (upstream := self._upstreams.get(conn)) is not None:
            self._read(conn, upstream, upstream.receive_eof(self._now))

    def _timeout(self, now: int) -> None:
        for conn in list(self._schedule.due(now)):
            if (client := self._clients.get(conn)) is not None:
                if client.deadline is not None:
                    self._out.append(tp.Abort(conn))
                    self._forget_client(conn)
                else:
                    client.connection.timeout()
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
        self._drive(msg.BridgeTimeout())

    # ------------------------------------------------------------ upstreams

    def _read(self, conn: int, upstream: UpstreamConnection, read: ReadResult) -> None:
        """Everything that one read brought: its messages go to the bridge together."""
        was_open = upstream.stage is not Stage.CLOSING
        if read.opened:
            self._schedule.set(conn, upstream.deadline)
        if read.reply:
            self._out.append(tp.Send(conn, read.reply))
        loss = read.loss
        lost = None if loss is None else msg.LinkLost(upstream.link, loss.cause, loss.error)
        if loss is not None:
            if loss.goodbye:
                # Both sides have said close, or we told why we cannot go on: TCP's close is next.
                self._out.append(tp.Close(conn))
                self._detach_link(conn, upstream)
            else:
                self._out.append(tp.Abort(conn))
                self._forget_upstream(conn)
        if not was_open:
            return  # the bridge has closed the link before
        if read.opened and lost is None:
            self._drive(msg.LinkOpened(upstream.link, read.messages))
        elif read.messages and not read.opened:
            self._drive(msg.MessagesReceived(upstream.link, read.messages, lost))
        elif lost is not None:
            self._drive(lost)

    def _detach_link(self, conn: int, upstream: UpstreamConnection) -> None:
        """Our side is closed: hear nothing more of the link."""
        self._of_link.pop(upstream.link, None)
        if upstream.paused:
            self._out.append(tp.ResumeReading(conn))
        upstream.part(self._now)
        self._schedule.set(conn, upstream.deadline)

    def _connection_lost(self, conn: int, cause: Evidence, error: ErrorFrame | None = None) -> None:
        """The socket is gone; tell the bridge, unless the bridge had closed the link before."""
        upstream = self._forget_upstream(conn)
        if upstream is not None and upstream.stage is not Stage.CLOSING:
            self._drive(msg.LinkLost(upstream.link, cause, error))

    def _forget_upstream(self, conn: int) -> UpstreamConnection | None:
        upstream = self._upstreams.pop(conn, None)
        self._giving_way.discard(conn)
        self._schedule.set(conn, None)
        if upstream is not None:
            self._of_link.pop(upstream.link, None)
        return upstream

    def _connect_failed(self, event: tp.ConnectFailed) -> None:
        conn = event.conn
        upstream = self._upstreams.get(conn)
        if upstream is None:
            return
        if event.error is not tp.ConnectError.LOCAL:
            fields: dict[str, str | int] = {"error": event.error.value, "detail": event.detail}
            self._out.append(tp.Log(tp.LogLevel.WARNING, "upstream.connect_failed", fields))
        else:
            self._log_exhausted("connect", event.detail)
            if not self._leaving and self._free_a_socket():
                self._forget_upstream(conn)
                again = self._next_number()
                self._upstreams[again] = upstream
                self._of_link[upstream.link] = again
                self._unconnected.append(again)
                return
        self._connection_lost(conn, Unreachable(event.error.value))

    # ------------------------------------------------------------ out of sockets

    def _free_a_socket(self) -> bool:
        """Have one more socket closed, of those that are missed least; whether there was one.

        First those on which only the peer's goodbye is awaited; then that of the conversation
        that has been idle longest, which can be rebuilt; then the connection of the client that
        has been idle longest: last, because its next request may be on the way (RFC 9112, 9.5).
        """
        if self._hang_up():
            return True
        upstreams = len(self._upstreams)
        self._drive(msg.SocketsExhausted())
        if len(self._upstreams) < upstreams:
            return True  # it was not open yet, and was aborted
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
        """Close an upstream connection that we have said goodbye on, without waiting for its."""
        for conn, upstream in self._upstreams.items():
            if upstream.stage is Stage.CLOSING and conn not in self._giving_way:
                self._giving_way.add(conn)
                self._out.append(tp.Close(conn))
                return True
        return False

    def _connect_again(self, event: tp.TransportEvent) -> None:
        """Connect those that wait for a socket, as many as ``event`` has had closed."""
        ended = isinstance(event, tp.Disconnected) or (
            isinstance(event, tp.ConnectFailed) and event.error is not tp.ConnectError.LOCAL
        )
        closed = ended + sum(isinstance(effect, tp.Abort) for effect in self._out)
        while closed and self._unconnected:
            conn = self._unconnected.popleft()
            if conn in self._upstreams:  # else it was given up
                self._connect(conn)
                closed -= 1

    def _connect(self, conn: int) -> None:
        url = self._config.upstream
        self._out.append(tp.Connect(conn, url.host, url.port, url.tls))

    def _log_exhausted(self, what: str, detail: str) -> None:
        """Say that ``what`` failed for want of sockets, unless that was said a moment ago."""
        self._exhausted += 1
        if self._now < self._exhausted_log:
            return
        self._exhausted_log = self._now + _EXHAUSTED_LOG
        fields: dict[str, str | int] = {
            "failed": what,
            "detail": detail,
            "count": self._exhausted,  # since the last record
            "clients": len(self._clients),
            "upstreams": len(self._upstreams),
        }
        self._exhausted = 0
        self._out.append(tp.Log(tp.LogLevel.WARNING, "sockets.exhausted", fields))

    # ------------------------------------------------------------ the gateway

    def _drive(self, event: msg.GatewayEvent) -> None:
        """Let the gateway handle ``event``; what comes of it is carried out before the next."""
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
            if conn is not None:  # else the link is closing: its loss is on its way
                frame = self._upstreams[conn].send(effect.data, self._now)
                if frame:  # else it follows the frames that the transport has yet to take
                    self._out.append(tp.Send(conn, frame, notify=True))
        elif isinstance(effect, msg.PauseLink):
            conn = self._of_link.get(effect.link)
            if conn is not None:
                self._upstreams[conn].paused = effect.paused
                self._out.append(tp.PauseReading(conn) if effect.paused else tp.ResumeReading(conn))
        elif isinstance(effect, msg.OpenLink):
            conn = self._next_number()
            self._upstreams[conn] = WebSocketConnection(
                self._config, effect.link, effect.headers, self._now
            )
            self._of_link[effect.link] = conn
            self._connect(conn)
        elif isinstance(effect, msg.CloseLink):
            self._close(effect.link)
        elif isinstance(effect, msg.ResolveTurn):
            raise InternalError("an endpoint's bridge resolves turns by itself")
        elif isinstance(effect, tp.Log):
            self._out.append(effect)
        else:
            self._answer(effect)

    def _answer(self, effect: msg.AnswerEffect) -> None:
        conn = self._of_turn.get(effect.turn)
        if conn is not None:  # else its client left a moment ago
            self._clients[conn].connection.answer(effect)
            self._answered[effect.turn] = conn

    def _flush_answers(self) -> None:
        """Send what was written of answers; where one is complete, serve the next request.

        All that came of one read is written before any of it is sent: one write for it.
        """
        answered, self._answered = self._answered, {}
        for turn, conn in answered.items():
            client = self._clients[conn]
            if turn in client.connection.turns:
                self._flush(conn, client)
                if client.blocked:
                    # It was blocked before this turn had anything to say.
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
        # Turns that run have so many seconds; those that then still run are cut off.
        fields: dict[str, str | int] = {
            "by": by or "-",
            "turns": len(self._of_turn),
            "seconds": f"{left / NS_PER_SECOND:g}",
        }
        self._out.append(tp.Log(tp.LogLevel.INFO, "drain.started", fields))

    def _drain(self, deadline: int) -> None:
        """First signal: what runs may finish, idle connections go; at the deadline all does."""
        due = deadline <= self._now
        if due and not self._leaving:
            # The latest first: a turn that waits must not be started by the end of another.
            for turn, conn in reversed(list(self._of_turn.items())):
                self._clients[conn].connection.close_after_answers()
                self._drive(msg.TurnLeft(turn, SHUTTING_DOWN))
        if not self._of_turn and not self._leaving:
            self._leaving = True
            # A client that reads slowly has what is left of the time to take its answer.
            self._drain_deadline = max(deadline, self._now + self._config.close_timeout)
            self._out.append(tp.StopListening())
            for conn, client in self._clients.items():
                client.connection.shut()
                self._flush(conn, client)
            self._drive(msg.DrainStarted())
        elif self._leaving and due:
            for conn in [*self._clients, *self._upstreams]:
                self._out.append(tp.Abort(conn))
                self._schedule.set(conn, None)
            self._clients.clear()
            self._upstreams.clear()
        if self._leaving and not self._clients and not self._upstreams:
            self._stopped = True
            self._out.append(tp.Stop())
