"""The experiment on context growth: its settings, its client, its faults and its figures.

What belongs here: everything about the experiment that does not depend on how it is run. One
incremental client has one long conversation through a bridge with an emulated upstream that loses
connections. ``growth.py`` runs it in virtual time, ``bridgecore demo`` over real sockets, and both
get the same figures.

A turn with a fault goes wrong as logs of a real bridge show: its connection is lost between turns,
and the new one is lost after the create frame was sent, before ``response.created``.

The client (``Dialogue``) sends the id of the latest response and new items, and repeats the same
body when the error asks for a retry. After ``previous_response_not_found`` it considers its
conversation lost and sends all of it as new input: system prompt, history, new items. On the way to
the upstream, requests are mapped to conversations by a key (a session header, a prompt cache key),
and a layer that keeps the key still has the latest id and adds it to the request again. If the
upstream really lost the response, a second not-found follows and the client starts without an
anchor: its context is as large as before. If the not-found was wrong, the upstream still has the
context, and the whole history is appended to it, system prompt included. That is how a context of
50 K tokens grows by 70 K a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import msgspec

from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.simulate.contract import Json
from bridgecore.testing.answers import CreateFrame, Output, Text, count_tokens
from bridgecore.testing.emulator import Emulator
from bridgecore.testing.faults import CloseWith, Fault, FaultPlan, Point

_encode = msgspec.json.encode
_BYTES_PER_TOKEN = 4  # as the emulator counts
OUTPUT_TOKENS: Final = 300  # of the new tokens of a turn, those that the model generates
MAX_TRIES: Final = 50  # of one turn
NOT_FOUND: Final = "400 previous_response_not_found"
"""The error that makes the client send its whole history, as ``TurnFigures.errors`` has it."""
_LOOK_AHEAD = 100_000  # turns for which a projection is made


@attrs.frozen(kw_only=True)
class Experiment:
    """The settings of the experiment. Sizes are tokens as the emulator counts them: four bytes of
    text each.

    Of each ``fault_every`` turns, from turn 2 on, the first ``fault_run`` have a fault. With
    ``fault_every=None`` none has.

    Raises:
        ValueError: a number is out of its range.
    """

    policy: Policy = DEFAULT
    turns: int = 200
    fault_every: int | None = 1
    fault_run: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    seed: int = 0
    store: bool = True
    window: int = 876_000
    system_tokens: int = 50_000
    new_tokens: int = attrs.field(default=2_300, validator=attrs.validators.ge(500))

    def is_hit(self, turn: int) -> bool:
        """Whether ``turn`` has a fault."""
        every = self.fault_every
        return every is not None and turn >= 2 and (turn - 2) % every < self.fault_run

    @property
    def hits(self) -> int:
        """The number of turns that have a fault."""
        return sum(self.is_hit(turn) for turn in range(2, self.turns + 1))


@attrs.frozen
class TurnFigures:
    """One turn. ``sent``: tokens of the input items of the request that was answered; ``grown``:
    growth of the context since the turn before; ``context``: its size, answer included; ``errors``:
    the errors that the client got before the answer, as status and code; ``upstream``,
    ``upstream_tokens``: the bytes of all frames that the bridge sent for the turn, lost ones
    included, and the tokens of their input items; ``client``: the bytes of all bodies that the
    client sent to the bridge for it."""

    turn: int
    sent: int
    grown: int
    context: int
    errors: tuple[str, ...]
    upstream: int
    upstream_tokens: int
    client: int


@attrs.frozen
class Growth:
    """The result of the experiment. ``full``: the turn at which the context window was full;
    ``stuck``: the turn that did not succeed in ``MAX_TRIES`` tries; None if there was none.
    ``unanswered``: the errors of a turn that did not succeed."""

    experiment: Experiment
    rows: tuple[TurnFigures, ...]
    full: int | None
    stuck: int | None
    unanswered: tuple[str, ...] = ()

    @property
    def per_turn(self) -> float:
        """Mean growth of the context in a turn, in tokens, without the first turn."""
        return _mean([row.grown for row in self.rows[1:]])

    @property
    def sent_per_turn(self) -> float:
        """Mean tokens of the request that was answered, without the first turn."""
        return _mean([row.sent for row in self.rows[1:]])

    @property
    def client(self) -> int:
        """The bytes of all bodies that the client sent to the bridge."""
        return sum(row.client for row in self.rows)

    @property
    def upstream(self) -> int:
        """The bytes of all frames that the bridge sent upstream."""
        return sum(row.upstream for row in self.rows)

    @property
    def upstream_tokens(self) -> int:
        """The tokens of the input items of all frames that the bridge sent upstream."""
        return sum(row.upstream_tokens for row in self.rows)

    @property
    def not_found(self) -> tuple[TurnFigures, ...]:
        """The turns in which the bridge answered ``NOT_FOUND``, and the client sent its whole
        history."""
        return tuple(row for row in self.rows if NOT_FOUND in row.errors)

    @property
    def ended(self) -> tuple[int, str] | None:
        """The turn that was not answered, and ``full`` or ``stuck``; None if there is none."""
        if self.full is not None:
            return self.full, "full"
        return None if self.stuck is None else (self.stuck, "stuck")

    @property
    def answered_errors(self) -> list[str]:
        """The errors that the client got before its answers, without those of ``unanswered``."""
        return [error for row in self.rows for error in row.errors]

    @property
    def sound(self) -> bool:
        """Whether every turn succeeded, the context stayed within the window, and the bridge never
        answered ``NOT_FOUND``."""
        lost = self.not_found or NOT_FOUND in self.unanswered
        return self.full is None and self.stuck is None and not lost

    @property
    def full_at(self) -> int | None:
        """``full``, or, where the rows end before the window is full, the turn that they lead to.
        None if they are too few to tell, or that is far away.

        The growth of a turn is extrapolated from the turns at the same place in the two rounds of
        ``Experiment.fault_every`` before it, because a history that is appended is longer each
        time.
        """
        if self.full is not None or self.stuck is not None:
            return self.full
        rounds = self.experiment.fault_every or 1
        grown = [row.grown for row in self.rows[1:]]
        if len(grown) < 2 * rounds:
            return None
        context, turn = self.rows[-1].context, self.rows[-1].turn
        while turn < _LOOK_AHEAD:
            turn += 1
            step = 2 * grown[-rounds] - grown[-2 * rounds]
            if context + step - OUTPUT_TOKENS > self.experiment.window:
                return turn
            context += step
            grown.append(step)
        return None


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


# ------------------------------------------------------------------ the upstream


def upstream_of(experiment: Experiment) -> Emulator:
    """An upstream for the experiment, without its faults."""
    return Emulator(seed=experiment.seed, context_window=experiment.window, answer=_say, deltas=2)


def _say(request: CreateFrame) -> Sequence[Output]:
    return [Text("said ".ljust(OUTPUT_TOKENS * _BYTES_PER_TOKEN, "."))]


class LostBeforeCreated(FaultPlan):
    """The connection is lost at the first create frame of each turn with a fault."""

    def __init__(self, experiment: Experiment, emulator: Emulator) -> None:
        super().__init__()
        self._experiment = experiment
        self._emulator = emulator
        self._struck: set[object] = set()

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults of the ``nth`` turn at ``point``."""
        if point is not Point.BEFORE_CREATED:
            return []
        requests = [request for request in self._emulator.requests if request.number == nth]
        return self.of(requests[0])

    def of(self, request: CreateFrame, conversation: object = None) -> list[Fault]:
        """The faults before ``response.created`` of a create frame of ``conversation``."""
        turn = turn_of(request)
        if (conversation, turn) in self._struck or not self._experiment.is_hit(turn):
            return []
        self._struck.add((conversation, turn))
        return [Fault(Point.BEFORE_CREATED, CloseWith(1011))]


def turn_of(request: CreateFrame) -> int:
    """The turn for which a create frame was sent."""
    text: str = request.input[-1]["content"][0]["text"]
    return int(text.split()[1])


# ------------------------------------------------------------------ the client


class Dialogue:
    """The conversation as its client has it: what to send next, and what an answer means.

    To run it: ``begin_turn`` if ``between_turns``, then ``begin_try``, send ``body``, and report
    what came of it (``answered``, ``connection_lost``), until it is ``done``.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.rows: list[TurnFigures] = []
        self.full: int | None = None
        self.stuck: int | None = None
        self.turn = 0  # the running or latest turn
        self.errors: list[str] = []  # of that turn
        self.body = b""
        self.whole = False  # whether the body contains the whole history
        self.anchored = False  # whether it names a response
        self._upstream = self._upstream_tokens = self._sent_bytes = 0  # in this turn
        self._tries = 0
        self._anchor: str | None = None
        self._misses = 0  # not-founds in this turn
        self._history: list[Json] = []
        self._new: list[Json] = []
        self._input: list[Json] = []
        self._system = _message("developer", "system prompt ", experiment.system_tokens)

    @property
    def between_turns(self) -> bool:
        """Whether no turn is running."""
        return self.turn == len(self.rows)

    @property
    def done(self) -> bool:
        """Whether the conversation has ended."""
        ended = self.full is not None or self.stuck is not None
        return ended or len(self.rows) == self.experiment.turns

    def growth(self) -> Growth:
        """The figures of the turns so far."""
        failed = tuple(self.errors) if self.done and not self.between_turns else ()
        return Growth(self.experiment, tuple(self.rows), self.full, self.stuck, failed)

    def begin_turn(self) -> None:
        """Begin the next turn."""
        self.turn += 1
        self._tries = self._misses = 0
        self.errors = []
        tokens = self.experiment.new_tokens - OUTPUT_TOKENS
        self._new = [_message("user", f"turn {self.turn} ", tokens)]
        self._write()

    def begin_try(self) -> bool:
        """Count a try of the turn; False, and the conversation is done, if it had too many."""
        self._tries += 1
        if self._tries > MAX_TRIES:
            self.stuck = self.turn
            return False
        self._sent_bytes += len(self.body)
        return True

    def reached(self, request: CreateFrame) -> None:
        """A create frame for the turn has reached the upstream."""
        self._upstream += len(request.raw)
        self._upstream_tokens += count_tokens(request.input)

    def connection_lost(self) -> int:
        """The connection to the bridge was lost; the seconds to wait before the next try."""
        self.errors.append("lost connection")
        return 1

    def answered(self, status: int, response: Json, retry_after: str | None) -> int:
        """An answer is complete; the seconds to wait before the next try of the same turn.

        ``response``: the response object, or the body of an error; ``retry_after``: that header.
        """
        if status == 200 and response["status"] == "completed":
            self._succeed(response)
            return 0
        error = response.get("error")
        code = error["code"] if isinstance(error, dict) else None
        self.errors.append(f"{status} {code}")
        if self.errors[-1] == NOT_FOUND:
            self._misses += 1
            self._write()
            return 0
        if status == 400 and code == "context_length_exceeded":
            self.full = self.turn
            return 0
        return int(retry_after or "1")

    def _write(self) -> None:
        """Write the body: the anchor and new items, or, after a not-found, the whole history."""
        self.whole = self._anchor is None or self._misses > 0
        self.anchored = self._anchor is not None and self._misses < 2
        self._input = [self._system, *self._history, *self._new] if self.whole else self._new
        body: Json = {"model": "sim", "stream": True, "store": self.experiment.store}
        if self.anchored:
            body["previous_response_id"] = self._anchor
        body["input"] = self._input
        self.body = _encode(body)

    def _succeed(self, response: Json) -> None:
        before = self.rows[-1].context if self.rows else 0
        context: int = response["usage"]["total_tokens"]
        figures = TurnFigures(
            turn=self.turn,
            sent=count_tokens(self._input),
            grown=context - before,
            context=context,
            errors=tuple(self.errors),
            upstream=self._upstream,
            upstream_tokens=self._upstream_tokens,
            client=self._sent_bytes,
        )
        self.rows.append(figures)
        self._upstream = self._upstream_tokens = self._sent_bytes = 0
        self._history += [*self._new, *response["output"]]
        self._anchor = response["id"]


def _message(role: str, text: str, tokens: int) -> Json:
    """A message of that many tokens."""
    text = text.ljust(tokens * _BYTES_PER_TOKEN, ".")
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}
