"""Bytes in, effects out: the bridge and the wire together. What an adapter drives.

What belongs here: the third door for embedders. An ``Endpoint`` owns every connection, a client's
(``Front``) or an upstream's (``_Upstream``), and carries bytes between them and the ``Bridge``. It
decides nothing about a loss; what it decides is when the process has drained.

Who calls whom: an adapter reports a ``TransportEvent``; a front turns client bytes into turns, an
upstream turns socket bytes into messages; both go to the bridge, whose effects come back here and
become ``TransportEffect``s.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import assert_never

import attrs

from bridgecore import bridge as br
from bridgecore.config import Config
from bridgecore.front import Front
from bridgecore.recovery.failure import Closed, ErrorFrame, Evidence, TimedOut, Unreachable
from bridgecore.recovery.failure import Malformed as MalformedEvidence
from bridgecore.recovery.failure import UpgradeRefused
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.rendering import http_error
from bridgecore.schedule import Schedule
from bridgecore.wire import transport as tp
from bridgecore.wire import websocket as ws
from bridgecore.wire.responses import read_error_body


class _Stage(enum.Enum):
    CONNECTING = "connecting"
    UPGRADING = "upgrading"
    OPEN = "open"
    CLOSING = "closing"  # we closed; the peer's close or the deadline comes next


@attrs.define(eq=False)
class _Upstream:
    """An upstream connection: the socket of one link."""

    link: int
    socket: ws.WebSocketClient
    stage: _Stage = _Stage.CONNECTING
    seen: int = 0  # ns: when bytes came last
    pinged: int | None = None  # ns: when the ping that is not answered yet was sent
    paused: bool = False
    deadline: int | None = None  # ns: of PING, or of CLOSE_HANDSHAKE when closing


@attrs.define(eq=False)
class _Client:
    """A client connection, and the deadline for its end once the answer said close."""

    front: Front
    deadline: int | None = None  # ns: of CLOSE_HANDSHAKE


class Endpoint:
    """A complete bridge without I/O. A ``Machine``: see ``bridgecore.wire.transport``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._bridge = br.Bridge(config)
        self._clients: dict[int, _Client] = {}
        self._upstreams: dict[int, _Upstream] = {}
        self._of_turn: dict[int, int] = {}  # turn -> client connection
        self._of_link: dict[int, int] = {}  # link -> upstream connection
        self._schedule: Schedule[int] = Schedule()
        self._serial = 0
        self._turn_serial = 0
        self._now = 0
        self._draining = False
        self._drain_deadline: int | None = None
        self._leaving = False  # drained: only goodbyes are left
        self._stopped = False
        self._out: list[tp.TransportEffect] = []
        self._pending: deque[br.BridgeEvent] = deque()
        self._driving = False

    # ------------------------------------------------------------ what an observer may ask

    @property
    def bridge(self) -> br.Bridge:
        """The bridge inside, for its counts."""
        return self._bridge

    @property
    def clients(self) -> int:
        """How many client connections there are."""
        return len(self._clients)

    @property
    def upstreams(self) -> int:
        """How many upstream connections there are, closing ones included."""
        return len(self._upstreams)

    def new_connection(self) -> int:
        """A number for a connection that was just accepted."""
        self._serial += 1
        return self._serial

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
        found = self._bridge.next_timeout()
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
            closing = self._upstreams[conn].stage is _Stage.CLOSING
            return Timer.CLOSE_HANDSHAKE if closing else Timer.PING
        if client.deadline is not None:
            return Timer.CLOSE_HANDSHAKE
        return min(client.front.deadlines.items(), key=lambda item: item[1])[0]

    # ------------------------------------------------------------ events

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Take in what happened at ``now`` (ns, monotonic); what to do about it, in order."""
        now = self._now = max(now, self._now)
        if isinstance(event, tp.DataReceived):
            if (upstream := self._upstreams.get(event.conn)) is not None:
                self._upstream_data(event.conn, upstream, event.data)
            elif (client := self._clients.get(event.conn)) is not None:
                client.front.receive(event.data)
                self._serve(event.conn, client)
        elif isinstance(event, tp.Accepted):
            self._clients[event.conn] = _Client(Front(self._config, now))
            self._serve(event.conn, self._clients[event.conn])
        elif isinstance(event, tp.Connected):
            self._connected(event.conn)
        elif isinstance(event, tp.ConnectFailed):
            self._log_connect_failed(event)
            self._lose(event.conn, Unreachable(event.error.value))
        elif isinstance(event, tp.EofReceived):
            self._eof(event.conn)
        elif isinstance(event, tp.Disconnected):
            self._disconnected(event.conn)
        elif isinstance(event, tp.DataSent):
            if (upstream := self._upstreams.get(event.conn)) is not None:
                self._drive(br.LinkFrameSent(upstream.link))
        elif isinstance(event, tp.WriteBlocked | tp.WriteUnblocked):
            self._write_blocked(event.conn, isinstance(event, tp.WriteBlocked))
        elif isinstance(event, tp.TimeoutReached):
            self._timeout(now)
        elif isinstance(event, tp.DrainRequested):
            if not self._draining:
                self._draining = True
                self._drain_deadline = now + self._config.drain_timeout
        else:
            assert_never(event)
        if self._draining:
            self._drain()
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------ clients

    def _serve(self, conn: int, client: _Client) -> None:
        """Take the next turn of a client, if there is one, and send what is to be sent."""
        front = client.front
        turn = self._turn_serial + 1
        received = front.next_turn(turn, self._now, draining=self._draining)
        if received is not None:
            self._turn_serial = turn
            self._of_turn[turn] = conn
        self._tell(conn, client)
        if received is not None:
            self._drive(received)

    def _tell(self, conn: int, client: _Client) -> None:
        """Send what the front has to say, and keep its deadlines."""
        front = client.front
        if front.out:
            self._out.append(tp.Send(conn, b"".join(front.out)))
            front.out.clear()
        if front.closing and client.deadline is None:
            self._out.append(tp.EndSending(conn) if front.lingering else tp.Close(conn))
            client.deadline = self._now + self._config.close_timeout
        at = client.deadline
        if at is None and front.deadlines:
            at = min(front.deadlines.values())
        self._schedule.set(conn, at)

    def _answered(self, turn: int, conn: int, client: _Client) -> None:
        """After something was said about ``turn``: if that was the end, the next one's turn."""
        answer = client.front.answer
        if answer is None or answer.turn != turn:
            self._of_turn.pop(turn, None)
            self._serve(conn, client)
        else:
            self._tell(conn, client)
            if client.front.blocked:
                self._drive(br.TurnBlocked(turn, True))

    def _forget_client(self, conn: int) -> None:
        """The client is gone; a turn of its own has nobody to be answered to."""
        client = self._clients.pop(conn, None)
        self._schedule.set(conn, None)
        if client is not None and client.front.answer is not None:
            turn = client.front.answer.turn
            self._of_turn.pop(turn, None)
            self._drive(br.TurnLeft(turn))

    def _write_blocked(self, conn: int, blocked: bool) -> None:
        client = self._clients.get(conn)
        if client is not None:
            client.front.blocked = blocked
            if client.front.answer is not None:
                self._drive(br.TurnBlocked(client.front.answer.turn, blocked))

    # ------------------------------------------------------------ either

    def _eof(self, conn: int) -> None:
        if (client := self._clients.get(conn)) is not None:
            # A client that has said goodbye does not wait for an answer: nobody could tell one
            # that half-closed from one that left, and a turn that nobody reads costs money.
            self._out.append(tp.Close(conn) if client.front.answer is None else tp.Abort(conn))
            self._forget_client(conn)
        elif (upstream := self._upstreams.get(conn)) is not None:
            if upstream.stage is not _Stage.CLOSING:
                self._upstream_events(conn, upstream, upstream.socket.receive_eof())
            if conn in self._upstreams:
                self._out.append(tp.Abort(conn))
                self._lose(conn, Closed(1006))

    def _disconnected(self, conn: int) -> None:
        if conn in self._clients:
            self._forget_client(conn)
        else:
            self._lose(conn, Closed(1006))

    def _timeout(self, now: int) -> None:
        for conn in list(self._schedule.due(now)):
            client = self._clients.get(conn)
            upstream = self._upstreams.get(conn)
            if client is not None and client.deadline is not None:
                self._out.append(tp.Abort(conn))
                self._forget_client(conn)
            elif client is not None:
                client.front.timeout(now)
                self._serve(conn, client)
            elif upstream is not None:
                self._upstream_deadline(conn, upstream)
        self._drive(br.BridgeTimeout())

    # ------------------------------------------------------------ upstreams

    def _connected(self, conn: int) -> None:
        upstream = self._upstreams.get(conn)
        if upstream is not None:
            upstream.stage = _Stage.UPGRADING
            self._out.append(tp.Send(conn, upstream.socket.connect()))

    def _upstream_data(self, conn: int, upstream: _Upstream, data: bytes) -> None:
        upstream.seen = self._now
        upstream.pinged = None
        self._upstream_events(conn, upstream, upstream.socket.receive(data))

    def _upstream_events(
        self, conn: int, upstream: _Upstream, events: list[ws.WebSocketEvent]
    ) -> None:
        """Everything that one read brought: its messages go to the bridge together."""
        messages: list[bytes] = []
        end: tuple[Evidence, ErrorFrame | None] | None = None
        closed = False
        for event in events:
            if isinstance(event, ws.MessageReceived):
                messages.append(event.data)
            elif isinstance(event, ws.Upgraded):
                upstream.stage = _Stage.OPEN
                self._set_deadline(conn, upstream, self._now + self._config.ping_interval)
                self._drive(br.LinkOpened(upstream.link))
            elif isinstance(event, ws.UpgradeRejected):
                evidence = UpgradeRefused(event.status, _retry_after(event.headers))
                end = evidence, read_error_body(event.body)
            elif isinstance(event, ws.CloseReceived):
                end, closed = (Closed(event.code), None), True
            elif isinstance(event, ws.Failed):
                end = MalformedEvidence(f"protocol error {event.code}"), None
            elif isinstance(event, ws.PongReceived):
                pass  # any byte proves life, see _upstream_data
            elif isinstance(event, ws.UpgradeRequested):
                raise AssertionError("a server cannot ask for an upgrade")
            else:
                assert_never(event)
        reply = upstream.socket.data_to_send()
        if reply:
            self._out.append(tp.Send(conn, reply))
        if messages and upstream.stage is _Stage.OPEN:
            self._drive(br.MessagesReceived(upstream.link, messages))
        if end is None or conn not in self._upstreams:
            return
        if closed or reply:
            # Both sides have said close, or we told why we cannot go on: the TCP close is next.
            self._out.append(tp.Close(conn))
            self._part(conn, upstream)
            self._drive(br.LinkLost(upstream.link, *end))
        else:
            self._out.append(tp.Abort(conn))
            self._lose(conn, *end)

    def _upstream_deadline(self, conn: int, upstream: _Upstream) -> None:
        now, config = self._now, self._config
        if upstream.stage is _Stage.CLOSING:
            self._out.append(tp.Abort(conn))
            self._forget_upstream(conn)
        elif upstream.paused:
            # Nothing is read, so nothing can be missed.
            self._set_deadline(conn, upstream, now + config.ping_interval)
        elif upstream.pinged is not None:
            self._out.append(tp.Abort(conn))
            self._lose(conn, TimedOut(Timer.PING))
        elif upstream.seen + config.ping_interval > now:
            self._set_deadline(conn, upstream, upstream.seen + config.ping_interval)
        else:
            upstream.pinged = now
            self._out.append(tp.Send(conn, upstream.socket.ping()))
            self._set_deadline(conn, upstream, now + config.ping_timeout)

    def _set_deadline(self, conn: int, upstream: _Upstream, at: int) -> None:
        upstream.deadline = at
        self._schedule.set(conn, at)

    def _part(self, conn: int, upstream: _Upstream) -> None:
        """Our side is closed: give the peer its time, and hear nothing more of the link."""
        upstream.stage = _Stage.CLOSING
        self._of_link.pop(upstream.link, None)
        if upstream.paused:
            upstream.paused = False
            self._out.append(tp.ResumeReading(conn))
        self._set_deadline(conn, upstream, self._now + self._config.close_timeout)

    def _forget_upstream(self, conn: int) -> None:
        upstream = self._upstreams.pop(conn, None)
        self._schedule.set(conn, None)
        if upstream is not None:
            self._of_link.pop(upstream.link, None)

    def _lose(self, conn: int, cause: Evidence, error: ErrorFrame | None = None) -> None:
        """The socket is gone; tell the bridge, unless the bridge had closed the link before."""
        upstream = self._upstreams.get(conn)
        if upstream is not None:
            self._forget_upstream(conn)
            if upstream.stage is not _Stage.CLOSING:
                self._drive(br.LinkLost(upstream.link, cause, error))

    def _log_connect_failed(self, event: tp.ConnectFailed) -> None:
        fields: dict[str, str | int] = {"error": event.error.value, "detail": event.detail}
        self._out.append(tp.Log(tp.LogLevel.WARNING, "upstream.connect_failed", fields))

    # ------------------------------------------------------------ the bridge

    def _drive(self, event: br.BridgeEvent) -> None:
        """Let the bridge handle ``event``; what comes of it is carried out before the next."""
        self._pending.append(event)
        if self._driving:
            return
        self._driving = True
        try:
            while self._pending:
                for effect in self._bridge.handle(self._pending.popleft(), self._now):
                    self._carry_out(effect)
        finally:
            self._driving = False

    def _carry_out(self, effect: br.BridgeEffect) -> None:
        if isinstance(effect, br.AnswerEvents):
            conn = self._of_turn.get(effect.turn)
            if conn is not None:
                client = self._clients[conn]
                client.front.events(effect.events, self._now)
                self._answered(effect.turn, conn, client)
        elif isinstance(effect, br.AnswerError):
            conn = self._of_turn.get(effect.turn)
            if conn is not None:
                client = self._clients[conn]
                client.front.error(effect.error)
                self._answered(effect.turn, conn, client)
        elif isinstance(effect, br.SendFrame):
            conn = self._of_link.get(effect.link)
            data = self._upstreams[conn].socket.send_text(effect.data) if conn is not None else b""
            if conn is not None and data:  # else the link is closing: its loss is on its way
                self._out.append(tp.Send(conn, data, notify=True))
        elif isinstance(effect, br.PauseLink):
            self._pause(effect)
        elif isinstance(effect, br.OpenLink):
            self._open(effect)
        elif isinstance(effect, br.CloseLink):
            self._close(effect.link)
        elif isinstance(effect, tp.Log):
            self._out.append(effect)
        else:
            assert_never(effect)

    def _open(self, effect: br.OpenLink) -> None:
        url = self._config.upstream
        conn = self.new_connection()
        socket = ws.WebSocketClient(
            authority=url.authority,
            target=url.target,
            headers=effect.headers,
            max_message=self._config.max_message,
        )
        self._upstreams[conn] = _Upstream(effect.link, socket, seen=self._now)
        self._of_link[effect.link] = conn
        self._out.append(tp.Connect(conn, url.host, url.port, url.tls))

    def _close(self, link: int) -> None:
        conn = self._of_link.get(link)
        if conn is None:
            return
        upstream = self._upstreams[conn]
        if upstream.stage is _Stage.OPEN:
            self._out.append(tp.Send(conn, upstream.socket.close(1000)))
            self._part(conn, upstream)
        else:
            self._out.append(tp.Abort(conn))
            self._forget_upstream(conn)

    def _pause(self, effect: br.PauseLink) -> None:
        conn = self._of_link.get(effect.link)
        if conn is None:
            return
        self._upstreams[conn].paused = effect.paused
        self._out.append(tp.PauseReading(conn) if effect.paused else tp.ResumeReading(conn))

    # ------------------------------------------------------------ the end

    def _drain(self) -> None:
        """First signal: what runs may finish, idle connections go; at the deadline all does."""
        if self._stopped:
            return
        due = self._drain_deadline is not None and self._drain_deadline <= self._now
        if due and not self._leaving:
            for turn, conn in list(self._of_turn.items()):
                self._of_turn.pop(turn)
                client = self._clients[conn]
                message = "The server is shutting down."
                client.front.error(http_error(503, "server_shutting_down", message), close=True)
                self._tell(conn, client)
                self._drive(br.TurnLeft(turn))
        if not self._of_turn and not self._leaving:
            self._leaving = True
            self._drain_deadline = self._now + self._config.close_timeout
            self._out.append(tp.StopListening())
            for conn, client in self._clients.items():
                client.front.closing = True
                self._tell(conn, client)
            self._drive(br.LinksEvicted())
        elif self._leaving and due:
            for conn in [*self._clients, *self._upstreams]:
                self._out.append(tp.Abort(conn))
            self._clients.clear()
            self._upstreams.clear()
        if self._leaving and not self._clients and not self._upstreams:
            self._stopped = True
            self._drain_deadline = None
            self._out.append(tp.Stop())


def _retry_after(headers: list[tuple[bytes, bytes]]) -> int | None:
    """The seconds of a ``Retry-After`` header; a date, which no clock here could read, is none."""
    for name, value in headers:
        if name.lower() == b"retry-after" and value.strip().isdigit():
            return int(value)
    return None
