"""Measures long conversations whose connections are lost, or whose clients repeat everything.

What belongs here: the figures that continuity promises for whole conversations, as ratios, measured
side by side in one run, each relative to the same conversation without losses or reduction:

* 200 turns with ``store=false``, the connection lost in every third turn at a random point before
  the output: no error reaches the application, and the context grows as without losses, within 1 %.
  With ``ambiguous = replay`` the bridge itself resends, and the client gets nothing but 200; by
  default a turn that may run twice gets a retriable error, and the client's library repeats it;
* 200 turns of a client that repeats its whole history: the bytes sent upstream stay constant, the
  last quarter of the turns within 1.1 times the first, while the client's bodies grow; and each
  turn's context upstream equals, item by item, the one of the unreduced run.

A real endpoint and a real emulator in virtual time; all figures are measured there. Run ``python
benchmarks/conversations.py [SEED [TURNS]]``; it exits with 1 if a figure is missed.
"""

from __future__ import annotations

import random
import sys
from statistics import mean
from typing import Any

import attrs
import msgspec

from bridgecore import Config, Endpoint, UpstreamUrl
from bridgecore.config import Continuity, OnAmbiguousLoss
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.contract import CheckedAnswer
from bridgecore.simulate.witness import said
from bridgecore.testing import Abort, CloseWith, Emulator, Error, Fault, Point, Silence
from bridgecore.testing.answers import count_tokens
from bridgecore.testing.client import HttpEnd, HttpHead, HttpReader
from bridgecore.testing.faults import Action
from bridgecore.testing.network import Network

Json = dict[str, Any]

TURNS = 200
TRIES = 3  # of an SDK: a request and two retries
MAX_GROWTH, MAX_FLAT = 0.01, 1.1
_LIMIT = "websocket_connection_limit_reached"
BEFORE_OUTPUT: list[tuple[Point, Action]] = [
    (Point.WHILE_RECEIVING, Abort()),
    *((Point.BEFORE_CREATED, CloseWith(code)) for code in (1001, 1006, 1011, 1012)),
    (Point.BEFORE_CREATED, Abort()),
    (Point.BEFORE_CREATED, Silence()),
    (Point.BEFORE_CREATED, Error(400, "previous_response_not_found")),
    (Point.BEFORE_CREATED, Error(400, _LIMIT)),
    (Point.AFTER_CREATED, CloseWith(1012)),
    (Point.AFTER_CREATED, Abort()),
    (Point.AFTER_TERMINAL, CloseWith(1001)),  # at the end of the turn before
]


@attrs.define
class Run:
    """A conversation: the answers to the client, and the context of each turn."""

    outcomes: list[str] = attrs.Factory(list)  # status of each request
    shown: int = 0  # errors that reached the application
    contexts: list[list[tuple[object, ...]]] = attrs.Factory(list)  # of each turn, at the upstream
    tokens: list[int] = attrs.Factory(list)  # of each turn's context
    asked: list[int] = attrs.Factory(list)  # bytes of each turn's body
    sent: list[int] = attrs.Factory(list)  # bytes of each turn's frame


class World:
    """A bridge, its upstream, and one client that retries as SDKs do."""

    def __init__(self, **settings: Any) -> None:
        self.network = Network()
        self.upstream = Emulator()
        self.network.add(self.upstream, "up", 80)
        url = UpstreamUrl.parse("ws://up/v1/responses")
        self.network.add(Endpoint(Config(upstream=url, **settings)), "bridge", 80)
        self.run = Run()

    def strike(self, rng: random.Random) -> None:
        """Plan one of the losses for the next frame."""
        self.upstream.faults.clear()
        point, action = rng.choice(BEFORE_OUTPUT)
        number = self.upstream.requests[-1].number + 1
        self.upstream.faults.add(number, Fault(point, action))

    def turn(self, body: Json) -> Json | None:
        """The response to ``body``; None: the application got an error."""
        data = msgspec.json.encode({"model": "m", "store": False, "stream": True, **body})
        for _ in range(TRIES):
            answer = self._ask(data)
            status = answer.head.status
            response = answer.final()
            self.run.outcomes.append(str(response.get("status")) if status == 200 else str(status))
            if status == 200 and response["status"] == "completed":
                self._note(response, len(data))
                return response
            wait = int(answer.head.headers.get("retry-after", "1"))
            self.network.advance(wait * NS_PER_SECOND)
            self.upstream.faults.clear()
        self.run.shown += 1
        return None

    def _ask(self, data: bytes) -> CheckedAnswer:
        client = self.network.connect("bridge", 80)
        head = b"POST /v1/responses HTTP/1.1\r\nHost: bridge\r\nContent-Length: %d\r\n\r\n"
        client.send(head % len(data) + data)
        self.network.advance(NS_PER_SECOND)
        answer: CheckedAnswer | None = None
        for part in HttpReader().feed(client.take()):
            if isinstance(part, HttpHead):
                answer = CheckedAnswer(part)
            elif answer is not None and not isinstance(part, HttpEnd):
                answer.feed(part)
        if answer is None:
            raise RuntimeError("no answer has come")
        client.half_close()
        return answer

    def _note(self, response: Json, size: int) -> None:
        turn = next(t for t in reversed(self.upstream.turns) if t.response_id == response["id"])
        request = turn.request
        self.run.contexts.append([said(item) for item in request.context])
        self.run.tokens.append(count_tokens(request.context))
        self.run.asked.append(size)
        self.run.sent.append(len(request.raw))


def message(number: int) -> Json:
    """A user's message of 2,000 tokens, the size of an agent's turn."""
    text = f"text {number:04} ".ljust(8000, ".")
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def incremental(rng: random.Random | None, ambiguous: OnAmbiguousLoss, turns: int = TURNS) -> Run:
    """A client that sends ids and new items; with ``rng``, every third turn has a loss."""
    created = NS_PER_SECOND // 2  # shorter than the client's timeout here
    world = World(ambiguous=ambiguous, created_timeout=created)
    last: str | None = None
    for number in range(turns):
        world.upstream.faults.clear()
        if rng is not None and number % 3 == 2:
            world.strike(rng)
        body: Json = {"input": [message(number)]}
        if last is not None:
            body["previous_response_id"] = last
        response = world.turn(body)
        last = last if response is None else response["id"]
    return world.run


def repeating(continuity: Continuity, turns: int = TURNS) -> Run:
    """A client that sends the whole history each time, in its own encoding."""
    world = World(continuity=continuity)
    history: list[Json] = []
    for number in range(turns):
        history.append(message(number))
        body = {"input": history, "prompt_cache_key": "one", "instructions": "i" * 1000}
        response = world.turn(body)
        for item in response["output"] if response is not None else ():
            parts = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
            history.append({"type": "message", "role": "assistant", "content": parts})
    return world.run


def growth(run: Run) -> float:
    """Mean growth of the context in a turn, in tokens."""
    return (run.tokens[-1] - run.tokens[0]) / (len(run.tokens) - 1)


def flat(values: list[int]) -> float:
    """The mean of the last quarter relative to that of the first, without the first turn."""
    quarter = len(values) // 4
    return mean(values[-quarter:]) / mean(values[1 : quarter + 1])


def main(seed: int = 1, turns: int = TURNS) -> int:
    """Measure everything; 1 if a promise is not kept."""
    calm = incremental(None, OnAmbiguousLoss.REFUSE, turns)
    kept = calm.outcomes == ["completed"] * turns
    print(f"{turns} turns, store=false, the socket lost in every third before its output")
    for ambiguous in OnAmbiguousLoss:
        lost = incremental(random.Random(seed), ambiguous, turns)
        ratio = growth(lost) / growth(calm)
        others = len(lost.outcomes) - lost.outcomes.count("completed")
        print(
            f"  ambiguous = {ambiguous.value:8} {lost.shown} errors shown to the application, "
            f"{others} of {len(lost.outcomes)} requests to be retried, growth {growth(lost):,.1f} "
            f"tokens a turn, {ratio:.4f} x the calm run's"
        )
        same = lost.contexts == calm.contexts
        kept = kept and same and lost.shown == 0 and abs(ratio - 1) <= MAX_GROWTH
        if ambiguous is OnAmbiguousLoss.REPLAY:
            kept = kept and others == 0
    print(f"{turns} turns of a client that repeats its history")
    reduced, whole = (
        repeating(Continuity.TRANSCRIPT, turns),
        repeating(Continuity.PASSTHROUGH, turns),
    )
    for name, run in (("reduced", reduced), ("unreduced", whole)):
        print(
            f"  {name:20} bodies {flat(run.asked):.2f} x, frames {flat(run.sent):.4f} x, last "
            f"quarter against first; {sum(run.sent):,} bytes upstream in all"
        )
    same = reduced.contexts == whole.contexts
    print(f"  contexts upstream, turn by turn: {'equal' if same else 'DIFFERENT'}")
    kept = kept and same and flat(reduced.sent) <= MAX_FLAT < flat(reduced.asked)
    kept = kept and reduced.outcomes == whole.outcomes == ["completed"] * turns
    print("kept" if kept else "MISSED")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
