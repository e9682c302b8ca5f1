"""The bridge for an existing HTTP stack: requests and upstream messages in, answers out.

What belongs here: joining the ``Bridge``, which routes turns, with an ``Exchange`` for each turn,
which forms its answer. An embedder with an HTTP stack (an ASGI server, aiohttp, another gateway)
and WebSocket connections to the upstream uses it by the events and effects of
``bridgecore.messages``. ``Endpoint`` adds both for an embedder that has only sockets.
"""

from __future__ import annotations

from typing import get_args

import attrs

from bridgecore.answers.exchange import Exchange
from bridgecore.answers.tally import Tally
from bridgecore.api_error import ApiError, api_error
from bridgecore.bridge import Bridge
from bridgecore.config import Config
from bridgecore.errors import LocalProtocolError
from bridgecore.intake import Resolver
from bridgecore.messages import (
    AnswerEffect,
    AnswerEvents,
    BridgeEffect,
    BridgeTimeout,
    CommonEvent,
    FailAnswer,
    GatewayEffect,
    GatewayEvent,
    KnownResponse,
    RequestReceived,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
)
from bridgecore.ownership.forwards import Forward
from bridgecore.ownership.store import Answer
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.failure import Evidence
from bridgecore.recovery.timers import Deadline
from bridgecore.relay import Relay
from bridgecore.telemetry.metrics import Readings
from bridgecore.timer_queue import TimerQueue
from bridgecore.wire.headers import Headers, check_headers
from bridgecore.wire.requests import InvalidBodyError, parse_create


@attrs.define(eq=False)
class StreamRelay:
    """The shortcut for a running stream: from messages of its link to events for its client.

    It is what ``Gateway.handle`` does about a ``MessagesReceived`` that brings only plain output,
    without the steps in between. ``turn``: the stream's.
    """

    turn: int
    _relay: Relay
    _exchange: Exchange

    def take(self, messages: list[bytes], now: int) -> AnswerEvents | None:
        """The events of one read for the client; None if the read has to be reported to the
        gateway, because it may bring anything else."""
        answer = self._relay.take(messages, now)
        if answer is not None:
            self._exchange.sent(answer.events[-1], now)
        return answer


class Gateway:
    """Answers requests of clients over upstream WebSocket connections, which are called links.

    Report what happens to ``handle``, and carry out the effects that it returns, in order. Report
    ``BridgeTimeout`` when the time that ``next_timeout`` names has come. Events and effects are in
    ``bridgecore.messages``. Times are integer nanoseconds of one monotonic clock.

    Example: a turn is streamed over a new link. Log records are left out.

    >>> from bridgecore import Config, Gateway, UpstreamUrl
    >>> from bridgecore.messages import LinkOpened, MessagesReceived, RequestReceived
    >>> gateway = Gateway(Config(upstream=UpstreamUrl.parse("wss://api.openai.com/v1/responses")))
    >>> def handle(event, now):
    ...     return [each for each in gateway.handle(event, now) if type(each).__name__ != "Log"]
    >>> handle(RequestReceived(1, b'{"model": "m", "input": "Hi", "stream": true}', []), now=0)
    [OpenLink(link=2, headers=[])]
    >>> handle(LinkOpened(2), now=1)
    [SendFrame(link=2, data=b'{"type":"response.create","model":"m","input":"Hi"}')]
    >>> created = b'{"type":"response.created","response":{"id":"resp_1"}}'
    >>> [type(each).__name__ for each in handle(MessagesReceived(2, [created]), now=2)]
    ['BeginAnswer', 'AnswerEvents']
    """

    def __init__(
        self, config: Config, *, resolver: Resolver = Resolver.MEMORY, seed: bytes = b""
    ) -> None:
        """Start without turns and links.

        Args:
            config: the settings.
            resolver: where the response that a turn continues is looked up: only in the memory of
                this gateway, or also by the driver, which is asked by ``ResolveTurn`` for each
                turn and reports ``TurnResolved``.
            seed: random bytes, new for each process. Only for ``Store.DRIVER``: the names under
                which other replicas see this one's leases and conversations are digests of it.

        Raises:
            ConfigError: ``config`` is not a ``Config``.
        """
        self._bridge = Bridge(config, resolver=resolver, seed=seed)
        self._config = config
        self._exchanges: dict[int, Exchange] = {}
        self._schedule: TimerQueue[int] = TimerQueue()  # by turn
        self._now = 0
        counts = self._bridge.counts
        self._tally = None if counts is None else Tally(counts)

    @property
    def bridge(self) -> Bridge:
        """The bridge, for its counts. Not part of the public surface.

        :meta private:
        """
        return self._bridge

    def metrics(self) -> Readings:
        """What was counted, and how much there is at present; the metrics are in
        ``bridgecore.telemetry.metrics``. Empty without ``Config.metrics``."""
        return self._bridge.metrics()

    def has(self, response: str, headers: Headers, now: int, *, scope: str | None = None) -> bool:
        """Whether ``response`` is known here to be of the tenant that ``headers`` or ``scope``
        name, as in ``RequestReceived``.

        For an HTTP stack that passes on requests to paths of a response: with
        ``Config.shared_credential`` the upstream would answer them for any tenant's.
        """
        return self._bridge.has(response, headers, scope, now)

    def next_timeout(self) -> Deadline | None:
        """When to report ``BridgeTimeout`` (ns), and why; None if there is no deadline."""
        found = self._bridge.next_timeout()
        own = self._schedule.next()
        if own is not None and (found is None or own[0] < found.at):
            return Deadline(own[0], self._exchanges[own[1]].timer)
        return found

    def handle(self, event: GatewayEvent, now: int) -> list[GatewayEffect]:
        """Handle an event that happened at ``now`` (ns, monotonic); return the effects, in order.

        An event about a turn or a link that is over is ignored: it may have been queued in the
        driver when that ended.

        Raises:
            LocalProtocolError: ``event`` or ``now`` has a wrong type, or the event is impossible:
                the number of a turn is in use, a link was never asked for or is open already. The
                state is unchanged.
        """
        check_time(now)
        now = max(now, self._now)
        if type(event) not in _PASSED_ON:  # the bridge checks those, and they are the most frequent
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

    def relay_of(self, link: int) -> StreamRelay | None:
        """The shortcut for the stream that is running on ``link``; None if there is none now. Not
        part of the public surface.

        :meta private:
        """
        relay = self._bridge.relay_of(link)
        exchange = None if relay is None else self._exchanges.get(relay.turn)
        if relay is None or exchange is None or not exchange.goes_on:
            return None
        return StreamRelay(relay.turn, relay, exchange)

    def _request_received(self, event: RequestReceived, now: int) -> list[GatewayEffect]:
        if event.turn < 0 or event.turn in self._exchanges:
            what = "the number must be 0 or more and must not be in use"
            raise LocalProtocolError(f"turn {event.turn}: {what}")
        check_headers(event.headers, f"turn {event.turn}")
        try:
            request = parse_create(event.body, from_message=event.streamed)
        except InvalidBodyError as exc:
            error = api_error(400, "invalid_request_body", exc.message, param=exc.param)
            if self._tally is not None:
                self._tally.refused(error, forwarded=event.forward is not None)
            return [FailAnswer(event.turn, error)]
        if event.streamed or event.forward is not None:  # its sender answers its client
            request = attrs.evolve(request, stream=True)
        forwarded = event.forward is not None
        exchange = Exchange.of(event.turn, request, self._config, now, forwarded=forwarded)
        received = TurnReceived(
            event.turn,
            request,
            event.headers,
            scope=event.scope,
            request_id=event.request_id,
            forward=event.forward,
        )
        effects = self._bridge.handle(received, now)
        self._exchanges[event.turn] = exchange
        self._schedule.set(event.turn, exchange.deadline)
        return self._show(effects, now)

    def _turn_left(self, event: TurnLeft, now: int) -> list[GatewayEffect]:
        """End a turn whose client is gone, or fail it for its client, if the event has an error."""
        effects = self._bridge.handle(event, now)
        exchange = self._exchanges.pop(event.turn, None)
        self._schedule.set(event.turn, None)
        said: list[GatewayEffect] = []
        if exchange is not None and event.error is not None:
            said += self._fail(exchange, event.error, now)
        elif exchange is not None and self._tally is not None:
            self._tally.abandoned(exchange, now)
        return said + self._show(effects, now)

    def _fail(self, exchange: Exchange, error: ApiError, now: int) -> list[AnswerEffect]:
        if self._tally is not None:
            self._tally.failed(exchange, error, now)
        return exchange.fail(error)

    def _timeout(self, event: BridgeTimeout, now: int) -> list[GatewayEffect]:
        effects: list[GatewayEffect] = []
        for turn in self._schedule.due(now):
            exchange = self._exchanges[turn]
            effects += exchange.timeout(now)
            self._schedule.set(turn, exchange.deadline)
        return effects + self._show(self._bridge.handle(event, now), now)

    def _show(self, effects: list[BridgeEffect], now: int) -> list[GatewayEffect]:
        """Pass the bridge's answers through the exchanges of their turns; leave other effects."""
        shown: list[GatewayEffect] = []
        for effect in effects:
            if not isinstance(effect, (AnswerEvents, FailAnswer)):
                shown.append(effect)
                continue
            exchange = self._exchanges.get(effect.turn)
            if exchange is None:
                continue
            if isinstance(effect, AnswerEvents):
                began = exchange.goes_on
                shown += exchange.deliver(effect, now)
                if self._tally is not None:
                    self._tally.delivered(exchange, effect.events[-1], now, began=began)
            else:
                shown += self._fail(exchange, effect.error, now)
            if exchange.ended:
                del self._exchanges[effect.turn]
            self._schedule.set(effect.turn, exchange.deadline)
        return shown


# Events about which only the bridge has to do something.
_PASSED_ON = frozenset(get_args(CommonEvent)) - {TurnLeft, BridgeTimeout}
_check_event = EventCheck(
    GatewayEvent,
    "bridgecore.messages",
    KnownResponse,
    Forward,
    *get_args(Evidence),
    *get_args(Answer),
)
