"""The message door: requests in, answers out, links to the upstream as messages.

What belongs here: a ``Gateway`` is the ``Bridge``, which decides where turns go and what becomes of
them, and an ``Exchange`` for each turn, which decides what its client is shown. Whoever has an HTTP
stack already (an ASGI server, aiohttp, a gateway of its own) drives it in the vocabulary of
``bridgecore.messages``, and brings WebSocket connections to the upstream; ``Endpoint`` does both
for those who have sockets only.
"""

from __future__ import annotations

from typing import get_args

from bridgecore.answers.exchange import Exchange
from bridgecore.api_error import api_error
from bridgecore.bridge import Bridge
from bridgecore.config import Config
from bridgecore.errors import LocalProtocolError
from bridgecore.intake import Resolver
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeTimeout,
    FailAnswer,
    GatewayEffect,
    GatewayEvent,
    KnownResponse,
    MessagesReceived,
    RequestReceived,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
)
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.failure import Evidence
from bridgecore.recovery.timers import Deadline
from bridgecore.transport.timer_queue import TimerQueue
from bridgecore.wire.headers import check_headers
from bridgecore.wire.responses import InvalidBodyError, parse_create


class Gateway:
    """Answers requests of clients from upstream connections, both of them in messages.

    Report what happens to ``handle``, and carry out the effects that it returns, in order. Report
    ``BridgeTimeout`` when the time that ``next_timeout`` names has come. Events and effects are in
    ``bridgecore.messages``. Times are integer nanoseconds of one monotonic clock.

    Example: a turn that is streamed from a new upstream connection, without its log records.

    >>> from bridgecore import Config, Gateway, UpstreamUrl
    >>> from bridgecore.messages import LinkOpened, MessagesReceived, RequestReceived
    >>> gateway = Gateway(Config(upstream=UpstreamUrl.parse("wss://api.openai.com/v1/responses")))
    >>> def tell(event, now):
    ...     return [each for each in gateway.handle(event, now) if type(each).__name__ != "Log"]
    >>> tell(RequestReceived(1, b'{"model": "m", "input": "Hi", "stream": true}', []), now=0)
    [OpenLink(link=2, headers=[])]
    >>> tell(LinkOpened(2), now=1)
    [SendFrame(link=2, data=b'{"type":"response.create","model":"m","input":"Hi"}')]
    >>> created = b'{"type":"response.created","response":{"id":"resp_1"}}'
    >>> [type(each).__name__ for each in tell(MessagesReceived(2, [created]), now=2)]
    ['BeginAnswer', 'AnswerEvents']
    """

    def __init__(self, config: Config, *, resolver: Resolver = Resolver.MEMORY) -> None:
        """``resolver``: who finds out about responses that this process does not know: nobody, or
        the caller (``ResolveTurn``). Raises ConfigError if ``config`` is no Config."""
        self._bridge = Bridge(config, resolver=resolver)
        self._config = config
        self._exchanges: dict[int, Exchange] = {}
        self._schedule: TimerQueue[int] = TimerQueue()  # by turn
        self._now = 0

    @property
    def bridge(self) -> Bridge:
        """The bridge inside, for its counts. Not part of the public surface.

        :meta private:
        """
        return self._bridge

    def next_timeout(self) -> Deadline | None:
        """When ``BridgeTimeout`` is to be reported if nothing else happens first."""
        found = self._bridge.next_timeout()
        own = self._schedule.next()
        if own is not None and (found is None or own[0] < found.at):
            return Deadline(own[0], self._exchanges[own[1]].timer)
        return found

    def handle(self, event: GatewayEvent, now: int) -> list[GatewayEffect]:
        """Take in what happened at ``now`` (ns, monotonic); what to do about it, in order.

        Reports about a turn or a link that is over are ignored: they may have been on their way.

        Raises:
            LocalProtocolError: ``event`` is none, a field of it or ``now`` has a wrong type, or it
                cannot happen: a turn whose number is in use, a link that was never asked for, or
                opened before. Nothing has changed.
        """
        check_time(now)
        now = max(now, self._now)
        if isinstance(event, MessagesReceived):
            # By far the most frequent one; the bridge checks it.
            effects = self._show(self._bridge.handle(event, now), now)
        else:
            _check_event(event)
            if isinstance(event, RequestReceived):
                effects = self._request_received(event, now)
            elif isinstance(event, BridgeTimeout):
                effects = self._timeout(event, now)
            elif isinstance(event, TurnLeft):
                effects = self._turn_left(event, now)
            else:
                effects = self._show(self._bridge.handle(event, now), now)
                if isinstance(event, TurnBlocked) and event.turn in self._exchanges:
                    self._exchanges[event.turn].blocked = event.blocked
        self._now = now
        return effects

    def _request_received(self, event: RequestReceived, now: int) -> list[GatewayEffect]:
        if event.turn < 0 or event.turn in self._exchanges:
            what = "a turn's number is 0 or more, and of no turn that has not ended"
            raise LocalProtocolError(f"turn {event.turn}: {what}")
        check_headers(event.headers, f"turn {event.turn}")
        try:
            request = parse_create(event.body)
        except InvalidBodyError as exc:
            error = api_error(400, "invalid_request_body", exc.message, param=exc.param)
            return [FailAnswer(event.turn, error)]
        exchange = Exchange.of(event.turn, request, self._config, now)
        received = TurnReceived(
            event.turn, request, event.headers, scope=event.scope, request_id=event.request_id
        )
        effects = self._bridge.handle(received, now)
        self._exchanges[event.turn] = exchange
        self._schedule.set(event.turn, exchange.deadline)
        return self._show(effects, now)

    def _turn_left(self, event: TurnLeft, now: int) -> list[GatewayEffect]:
        """The client is gone; or, with an error, it is still there to be told so."""
        effects = self._bridge.handle(event, now)
        exchange = self._exchanges.pop(event.turn, None)
        self._schedule.set(event.turn, None)
        said: list[GatewayEffect] = []
        if exchange is not None and event.error is not None:
            said += exchange.fail(event.error)
        return said + self._show(effects, now)

    def _timeout(self, event: BridgeTimeout, now: int) -> list[GatewayEffect]:
        effects: list[GatewayEffect] = []
        for turn in self._schedule.due(now):
            exchange = self._exchanges[turn]
            effects += exchange.timeout(now)
            self._schedule.set(turn, exchange.deadline)
        return effects + self._show(self._bridge.handle(event, now), now)

    def _show(self, effects: list[BridgeEffect], now: int) -> list[GatewayEffect]:
        """What the bridge answers as the clients are shown it; all else as it is."""
        shown: list[GatewayEffect] = []
        for effect in effects:
            if not isinstance(effect, AnswerEvents | FailAnswer):
                shown.append(effect)
                continue
            exchange = self._exchanges.get(effect.turn)
            if exchange is None:
                continue
            if isinstance(effect, AnswerEvents):
                shown += exchange.deliver(effect, now)
            else:
                shown += exchange.fail(effect.error)
            if exchange.ended:
                del self._exchanges[effect.turn]
            self._schedule.set(effect.turn, exchange.deadline)
        return shown


_check_event = EventCheck(GatewayEvent, "bridgecore.messages", KnownResponse, *get_args(Evidence))
