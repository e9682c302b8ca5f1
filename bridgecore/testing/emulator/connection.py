"""One connection of the emulator: what is to be written, its turns, how it ends, its deadlines.

What belongs here: the state of a connection and the changes of it that need nothing else. What a
create frame means is in ``service``.
"""

from __future__ import annotations

import enum

import attrs

from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing.answers import CreateFrame, Json
from bridgecore.testing.emulator import errors
from bridgecore.testing.emulator.context import PriorResponse
from bridgecore.testing.emulator.http import HttpTurns
from bridgecore.testing.emulator.jsontext import encode
from bridgecore.testing.emulator.turns import Outcome, RunningTurn
from bridgecore.testing.faults import Change, Error, ReadSlowly, Reject
from bridgecore.transport import (
    Abort,
    Close,
    PauseReading,
    ResumeReading,
    Send,
    TransportEffect,
)
from bridgecore.wire.websocket import WebSocketServer

CLOSE_GRACE = 2 * NS_PER_SECOND  # for the peer to read the last bytes and answer the close


class End(enum.Enum):
    """How far the end of a connection has come."""

    CLOSE = enum.auto()  # flush, then close
    ABORT = enum.auto()  # reset, but first write what is queued
    ABORTING = enum.auto()  # reset once the operating system has it
    CLOSED = enum.auto()  # the adapter is to close it, and reports when it has
    GONE = enum.auto()  # it no longer exists


@attrs.frozen
class EndedResponse:
    """Events of the latest response that ended on a connection, for late copies of it."""

    response_id: str
    terminal: bytes
    delta: bytes | None


@attrs.define
class SlowReading:
    """A create frame that is read slowly: see ``ReadSlowly``."""

    how: ReadSlowly
    due: int  # ns, when to read on
    pings: int = 0
    pongs: int = 0


@attrs.define(eq=False)
class Connection:
    """An accepted TCP connection and, after the upgrade, the WebSocket on it; or, with ``http``,
    the requests on it."""

    number: int
    ordinal: int  # from 1, by order of acceptance
    opened_at: int  # ns
    ws: WebSocketServer
    # What was received while it is not known whether a request asks for an upgrade; None from then
    # on, until the next request.
    opening: bytearray | None = attrs.Factory(bytearray)
    http: HttpTurns | None = None
    headers: list[tuple[bytes, bytes]] = attrs.Factory(list)
    authorization: bytes | None = None
    rejected: bool = False  # the upgrade was answered with another status than 101
    lanes: set[str] = attrs.Factory(set)  # names used so far
    cache: dict[str | None, PriorResponse] = attrs.Factory(dict)  # each lane's latest response
    waiting: list[CreateFrame] = attrs.Factory(list)
    running: dict[str | None, RunningTurn] = attrs.Factory(dict)
    out: bytearray = attrs.Factory(bytearray)
    end: End | None = None
    pause: bool = False  # PauseReading is to be sent
    resume: bool = False  # ResumeReading is to be sent
    mute: bool = False  # frozen, or in its closing handshake: turns send nothing
    deaf: bool = False  # input is dropped
    blocked: bool = False  # the peer does not read
    ended: EndedResponse | None = None
    delta: bytes | None = None  # the latest one that was sent
    slow: SlowReading | None = None
    close_at: int | None = None  # ns, the deadline of the closing handshake
    retire_at: int | None = None  # ns, when a connection past its lifetime is closed

    # ------------------------------------------------------------ sending

    def send(self, data: bytes) -> None:
        """Send a text frame, or an event of an HTTP answer."""
        self.out += self.ws.send_text(data) if self.http is None else self.http.send(data)

    def send_error(
        self, error: Error, lane: str | None, anchor: str | None = None, response_id: str = ""
    ) -> None:
        """Send ``error`` as a frame; as the answer to a request, if that has not begun. The other
        arguments are those of ``errors.frame``."""
        answer = None if self.http is None else self.http.refuse(error)
        if answer is None:
            names = {"response_id": response_id} if response_id else {}
            self.send(errors.frame(error, lane, anchor=anchor, **names))
        else:
            self.out += answer

    def send_event(self, running: RunningTurn, event: Json) -> None:
        """Send an event of a turn, numbered and with the name of its lane."""
        if Change.NO_SEQUENCE not in running.changes:
            event["sequence_number"] = running.sequence
        running.sequence += 1
        if running.request.lane is not None:
            event["stream_id"] = running.request.lane
        data = encode(event)
        if event["type"].endswith(".delta"):
            self.delta = data
        self.send(data)

    def refuse(self, running: RunningTurn, error: Error, now: int) -> None:
        """End the turn with an error frame. A failed continuation evicts its anchor from
        the cache."""
        turn = running.turn
        self.send_error(error, turn.request.lane, turn.request.anchor, turn.response_id)
        if running.end(Outcome.FAILED) and error.status >= 400:
            self.evict(turn.request)
        if error.close is not None:
            self.close(error.close, "", now)

    def evict(self, request: CreateFrame) -> None:
        """Remove the anchor of ``request`` from its lane's cache."""
        cached = self.cache.get(request.lane)
        if cached is not None and request.anchor in cached.ids:
            del self.cache[request.lane]

    # ------------------------------------------------------------ the end

    def reject(self, answer: Reject) -> None:
        """Answer the upgrade with another status than 101, then close."""
        self.rejected = True
        self.out += self.ws.reject(answer.status, answer.headers, answer.body)
        self.end = End.CLOSE

    def close(self, code: int, reason: str, now: int) -> None:
        """Begin the closing handshake; running turns end. 1006 sends no close frame, and HTTP has
        none."""
        if code == 1006 or self.http is not None:
            self.finish(End.CLOSE)
            return
        self.out += self.ws.close(code, reason)
        self._end_turns(Outcome.LOST)
        self.close_at = now + CLOSE_GRACE

    def finish(self, end: End) -> None:
        """End the connection as ``end`` says; running turns are lost."""
        self._end_turns(Outcome.LOST)
        self.end = end

    def freeze(self) -> None:
        """Send and read nothing more, without an end."""
        self.deaf = True
        self._end_turns(Outcome.SILENT)

    def _end_turns(self, outcome: Outcome) -> None:
        self.mute = True
        self.retire_at = None
        for running in self.running.values():
            running.end(outcome)

    # ------------------------------------------------------------ slow reading

    def read_slowly(self, slow: SlowReading, now: int) -> None:
        """A piece of the frame arrived: pause reading until the next one is due."""
        self.pause = True
        if slow.due <= now:
            slow.due = now + slow.how.interval

    def read_on(self, slow: SlowReading, now: int) -> None:
        """The next piece is due: ping and read it, or give up on a peer that does not answer."""
        if slow.pings - slow.pongs >= slow.how.patience:
            self.close(1011, "keepalive ping timeout", now)
            return
        if slow.pings < slow.how.pings and self.http is None:
            self.out += self.ws.ping()
            slow.pings += 1
        slow.due = now + slow.how.interval
        self.resume = True

    # ------------------------------------------------------------ effects and deadlines

    def flush(self, now: int) -> list[TransportEffect]:
        """What the adapter has to do: all bytes in one ``Send``, then the rest."""
        effects: list[TransportEffect] = []
        if self.end is not End.GONE:
            if self.out:
                abort = self.end is End.ABORT
                effects.append(Send(self.number, bytes(self.out), notify=abort))
                if abort:  # the reset has to wait: it would discard what is not written yet
                    self.end = End.ABORTING
                    self.close_at = now + CLOSE_GRACE
            if self.pause:
                effects.append(PauseReading(self.number))
            if self.resume:
                effects.append(ResumeReading(self.number))
            if self.end is End.CLOSE:
                effects.append(Close(self.number))
                self.end = End.CLOSED
            elif self.end is End.ABORT:
                effects.append(Abort(self.number))
                self.end = End.GONE
        self.out.clear()
        self.pause = self.resume = False
        return effects

    def deadline(self) -> Deadline | None:
        """When the connection needs to be looked at next, if nothing happens on it first."""
        if self.end not in (None, End.ABORTING):
            return None
        if self.close_at is not None:
            return Deadline(self.close_at, Timer.CLOSE_HANDSHAKE)
        due = []
        if self.retire_at is not None:
            due.append(Deadline(self.retire_at, Timer.LIFETIME))
        if self.slow is not None:
            due.append(Deadline(self.slow.due, Timer.PING))
        if not self.blocked and not self.mute:
            due += (
                Deadline(running.due, Timer.KEEPALIVE)
                for running in self.running.values()
                if running.steps
            )
        return min(due, key=lambda one: one.at, default=None)
