"""Hypothesis strategies for everything that goes into a bridge: values, histories, bytes, faults.

What belongs here: what the tests of this project and of embedders draw from. Every strategy yields
plain values (an event, a policy, bytes), never an index into something else, so that a failing
example can be read, pasted and replayed. Needs the extra ``bridgecore[testing]``; this is the only
module that imports hypothesis. How to use it: docs, "Testing".

Three kinds of values are drawn:

* values of the decision core: ``evidence``, ``turns``, ``timeouts``, ``budgets``, ``policies``;
* *histories* of a session: what can happen to it, step by step. Each step is drawn from the state
  after the steps before it. Two of three times it is the step of an undisturbed turn, because
  otherwise few turns would ever be answered; events that end a session are rare. ``replay`` gives
  the transitions of a history;
* bytes and their treatment by a network: ``create_bodies``, ``http_requests``, ``splits``,
  ``fault_plans``.

Durations are integer nanoseconds, sizes bytes. Strategies without arguments are functions, too, so
that an argument can be added later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
from hypothesis import strategies as st

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply, SendTurn
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Evidence,
    Malformed,
    NotDispatched,
    TimedOut,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    Action,
    Budgets,
    Policy,
    Remedy,
    Situation,
    Timeouts,
    can_carry_out,
)
from bridgecore.recovery.rules import step
from bridgecore.recovery.state import Lifecycle, Phase, SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing.faults import (
    CATALOGUE,
    EVERY,
    Abort,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Point,
    Reject,
    SendEvents,
    Silence,
)

Json: TypeAlias = dict[str, Any]

# ------------------------------------------------------------------ evidence and turns

_CLOSE_CODES = (1000, 1001, 1002, 1005, 1006, 1008, 1009, 1011, 1012, 1013, 1015, 4000)
_STATUSES = (None, 200, 400, 401, 403, 404, 413, 429, 500, 502, 503)
_CODES = (
    None,
    "previous_response_not_found",
    "websocket_connection_limit_reached",
    "websocket_stream_limit_reached",
    "rate_limit_exceeded",
    "context_length_exceeded",
    "server_error",
    "a_code_of_tomorrow",
)
_MESSAGES = (
    None,
    "",
    "Invalid `previous_response_id`.",
    "Previous response with id 'resp_1' not found.",
    "The server had an error.",
)
_RETRY_AFTER = st.none() | st.integers(0, 3600)
_LOSSES: st.SearchStrategy[Evidence] = st.one_of(
    st.builds(Closed, st.sampled_from(_CLOSE_CODES)),
    st.builds(Malformed, st.sampled_from(("frame", "unreadable message"))),
    st.builds(Unreachable, st.sampled_from(("refused", "resolve", "tls", "other"))),
    st.builds(
        UpgradeRefused,
        st.sampled_from((200, 301, 401, 403, 404, 426, 429, 500, 503)),
        _RETRY_AFTER,
    ),
    st.builds(NotDispatched, st.just("not the owner")),
)
_ERROR_FRAMES = st.one_of(
    # The errors that recovery handles specially, each in the shapes that occur.
    st.sampled_from(
        (
            ErrorFrame(400, "previous_response_not_found"),
            ErrorFrame(type="previous_response_not_found"),
            ErrorFrame(400, type="invalid_request_error", message=_MESSAGES[2]),
            ErrorFrame(400, "websocket_connection_limit_reached"),
            ErrorFrame(type="websocket_connection_limit_reached"),
            ErrorFrame(413, "request_too_large"),
            ErrorFrame(400, "invalid_prompt"),
            ErrorFrame(429),
            ErrorFrame(500, "server_error"),
            ErrorFrame(),
        )
    ),
    st.builds(
        ErrorFrame,
        status=st.sampled_from(_STATUSES),
        code=st.sampled_from(_CODES),
        type=st.sampled_from((None, "invalid_request_error", *_CODES[1:3])),
        message=st.sampled_from(_MESSAGES),
        param=st.sampled_from((None, "previous_response_id", "model")),
        retry_after=_RETRY_AFTER,
    ),
)
_TIMED_OUT = st.builds(TimedOut, st.sampled_from(Timer))


def losses() -> st.SearchStrategy[Evidence]:
    """The causes of a lost or failed connection: those of ``ConnectionLost`` and ``LinkLost``."""
    return _LOSSES


def error_frames() -> st.SearchStrategy[ErrorFrame]:
    """In-band errors, in every shape that upstreams use; half of them of the kinds that recovery
    handles specially."""
    return _ERROR_FRAMES


def evidence() -> st.SearchStrategy[Evidence]:
    """All evidence of a failure, deadlines included."""
    return st.one_of(_LOSSES, _ERROR_FRAMES, _TIMED_OUT)


_ANCHORED = tuple(standing for standing in Standing if standing is not Standing.UNANCHORED)
_ANCHORS = ("resp_1", "resp_2", "resp_3")


def turns(
    ids: st.SearchStrategy[int] | None = None, anchors: Sequence[str] = _ANCHORS
) -> st.SearchStrategy[Turn]:
    """Turns, unanchored and of every other standing. ``ids``: their numbers, by default 1 to 6;
    ``anchors``: the response ids that they name."""
    numbers = st.integers(1, 6) if ids is None else ids
    anchored = st.builds(Turn, numbers, st.sampled_from(_ANCHORED), st.sampled_from(anchors))
    return st.builds(Turn, numbers) | anchored


# ------------------------------------------------------------------ policies


def timeouts() -> st.SearchStrategy[Timeouts]:
    """Durations of a session's deadlines: the defaults, or each from 1 ns to two hours."""
    duration = st.sampled_from((1, NS_PER_SECOND, 61 * NS_PER_SECOND)) | st.integers(
        1, 7200 * NS_PER_SECOND
    )
    any_ = st.builds(Timeouts, *[duration] * len(attrs.fields(Timeouts)))
    return st.just(Timeouts()) | any_


def budgets() -> st.SearchStrategy[Budgets]:
    """Budgets of retries and refusals, zero included."""
    return st.builds(
        Budgets,
        replays=st.integers(0, 2),
        refusals=st.integers(0, 4),
        waiting=st.integers(0, 3),
        reconnect_uses_replay=st.booleans(),
        transcripts=st.booleans(),
    )


def remedies(standing: Standing | None = None) -> st.SearchStrategy[Remedy]:
    """Cells of a policy's table; with a ``standing``, those that a bridge can carry out for it.

    Only a held context can be rehydrated, and full input can be sent only if the client sent it: a
    bridge cannot carry out such a cell for another standing.
    """
    actions = [action for action in Action if standing is None or can_carry_out(action, standing)]
    return st.builds(Remedy, st.sampled_from(actions), st.sampled_from(FailureReply))


def policies(
    base: st.SearchStrategy[Policy] | None = None, *, feasible: bool = True
) -> st.SearchStrategy[Policy]:
    """Random tables: a policy ``base`` (by default any named one) with up to 12 cells, its budgets
    and its times replaced. Named policies without changes are frequent.

    Args:
        base: the policy to start from.
        feasible: only cells that a bridge can carry out (see ``remedies``); a ``Session`` by
            itself takes any.
    """
    named = st.sampled_from(list(POLICIES.values())) if base is None else base
    return named | _changed(named, feasible)


@st.composite
def _changed(draw: st.DrawFn, base: st.SearchStrategy[Policy], feasible: bool) -> Policy:
    policy = draw(base)
    keys = st.tuples(st.sampled_from(Situation), st.sampled_from(Standing))
    cells = {
        key: draw(_FEASIBLE[key[1]] if feasible else _ANY_REMEDY)
        for key in draw(st.lists(keys, max_size=12, unique=True))
    }
    return attrs.evolve(
        policy,
        name="drawn",
        summary=f"{policy.name}, changed at random.",
        cells={**policy.cells, **cells},
        budgets=draw(_BUDGETS),
        timeouts=draw(_TIMEOUTS),
    )


_ANY_REMEDY = remedies()
_FEASIBLE = {standing: remedies(standing) for standing in Standing}
_BUDGETS, _TIMEOUTS = budgets(), timeouts()

# ------------------------------------------------------------------ histories of a session


@attrs.frozen
class Step:
    """A step of a history: ``after`` ns without events other than deadlines, ``event`` happens."""

    after: int
    event: Event


History: TypeAlias = list[Step]
"""What happens to one session, in order."""


@attrs.frozen
class Record:
    """A transition of a session: from ``before``, by ``event`` at ``now`` (ns)."""

    before: SessionState
    event: Event
    now: int
    after: SessionState
    effects: tuple[Effect, ...]
    rule: str


def replay(
    policy: Policy, history: Sequence[Step], state: SessionState | None = None
) -> Iterator[Record]:
    """The transitions of ``history`` under ``policy``, those of deadlines included.

    Raises:
        LocalProtocolError: an event cannot happen in its state: the history was drawn for
            another policy, or another initial state.
    """
    session = _Walk(policy, SessionState() if state is None else state)
    for item in history:
        yield from session.wait(item.after)
        yield session.take(item.event)


@attrs.define
class _Walk:
    """A session while a history is drawn for it."""

    policy: Policy
    state: SessionState
    now: int = 0

    def take(self, event: Event) -> Record:
        before = self.state
        done = step(self.policy, before, event, self.now)
        self.state = done.state
        return Record(before, event, self.now, done.state, done.effects, done.rule)

    def wait(self, duration: int) -> Iterator[Record]:
        end = self.now + duration
        while (deadline := self.state.timers.next()) is not None and deadline.at <= end:
            self.now = max(self.now, deadline.at)
            yield self.take(ev.DeadlineReached(deadline.reason))
        self.now = end


# The cause of a failed response whose terminal event is unreadable.
_UNREADABLE = Malformed("a terminal event without a response that can be read")


def events(generation: int = 1) -> st.SearchStrategy[Event]:
    """Any event of any connection up to ``generation``, possible or not: what a faulty driver could
    report. Deadlines and turns included."""
    generations = st.integers(0, generation)
    ids = st.integers(1, 6)
    names = st.none() | st.sampled_from(_ANCHORS)
    return st.one_of(
        st.builds(ev.TurnSubmitted, turns()),
        st.builds(ev.TurnAbandoned, ids),
        st.builds(ev.ConnectionOpened, generations),
        st.builds(ev.ConnectionLost, generations, _LOSSES, st.booleans()),
        st.builds(ev.FrameSent, generations),
        st.builds(ev.ResponseCreated, generations, names),
        st.builds(ev.OutputReceived, generations, st.booleans(), st.booleans(), names),
        st.builds(ev.ResponseEnded, generations, st.sampled_from(Outcome), names),
        st.builds(
            ev.ResponseEnded,
            generations,
            st.just(Outcome.FAILED),
            names,
            _ERROR_FRAMES | st.just(_UNREADABLE),
        ),
        st.builds(ev.UpstreamRefused, generations, _ERROR_FRAMES, st.booleans()),
        st.builds(ev.RelayPaused, ids, st.booleans()),
        st.just(ev.EvictionRequested()),
        st.builds(ev.DeadlineReached, st.sampled_from(Timer)),
    )


@st.composite
def histories(
    draw: st.DrawFn,
    policy: Policy = DEFAULT,
    *,
    min_size: int = 0,
    max_size: int = 30,
    state: SessionState | None = None,
) -> History:
    """What can happen to a session of ``policy``, from ``state`` (by default a new one).

    Benign races are included: events of old connections, deadlines that are not due, clients that
    leave when their turn has ended. Times are chosen at the edges: just before, at and just after
    the next deadline, or long after all of them. Turns are numbered from 1 in the order in which
    they come. The response to turn N, if it has an id, is ``resp_N``; rarely it is ``resp_N_b`` in
    some of its events. Late copies of events of ended responses occur, too, and some upstreams use
    the id of an ended response again. A loss or a refusal is ``unsent`` only where a bridge can
    know that: in the same read as the event that a send answers. Evictions, which end a session,
    are rare; a turn may follow one, as in a bridge that starts the session anew.

    Args:
        min_size: least number of steps.
        max_size: largest number of steps.
    """
    walk = _Walk(policy, SessionState() if state is None else state)
    taken = [running.turn.id for running in (walk.state.running,) if running is not None]
    serial = max([*taken, *(waiting.turn.id for waiting in walk.state.waiting)], default=0)
    history: History = []
    last: Record | None = None
    for _ in range(draw(st.integers(min_size, max_size))):
        after = _pause(draw(_PAUSES), walk)
        for _record in walk.wait(after):
            pass
        event = _lawful(draw, walk.state, walk.now, serial + 1, last if after == 0 else None)
        if isinstance(event, ev.TurnSubmitted):
            serial = event.turn.id
        last = walk.take(event)
        history.append(Step(after, event))
    return history


# The pause before a step: mostly none, so that deadlines do not end most turns. A word is a time
# relative to the next deadline.
_PAUSES: st.SearchStrategy[int | str] = st.sampled_from(
    (
        *[0] * 40,
        1,
        NS_PER_SECOND,
        9 * NS_PER_SECOND,
        250 * NS_PER_SECOND,
        "just before",
        "at",
        "just after",
        86_400 * NS_PER_SECOND,
    )
)


def _pause(drawn: int | str, walk: _Walk) -> int:
    if isinstance(drawn, int):
        return drawn
    deadline = walk.state.timers.next()
    left = deadline.at - walk.now if deadline is not None else 0
    return max(left + {"just before": -1, "at": 0, "just after": 1}[drawn], 0)


# The next event of an undisturbed turn.
_GOOD: dict[Phase, str] = {
    Phase.CLOSED: "submit",
    Phase.OPEN: "submit",
    Phase.SEND_SKIPPED: "submit",
    Phase.RECONNECTING: "opened",
    Phase.SENDING: "sent",
    Phase.SENT: "created",
    Phase.CREATED: "output",
    Phase.OUTPUT: "ended",
}
_OTHER = (
    *["submit", "lost", "refused"] * 3,
    *["created", "output", "ended", "sent", "abandoned", "paused", "old"] * 2,
    "spurious",
    "opened",
    "evicted",
)
_WHAT: dict[Phase, st.SearchStrategy[str]] = {
    phase: st.sampled_from((*[good] * 2 * len(_OTHER), *_OTHER)) for phase, good in _GOOD.items()
}
_BOOLEANS = st.booleans()
_RARELY = st.sampled_from((*[False] * 7, True))
_LEFT = st.sampled_from((*[None] * 12, 1, 30, 200))  # s left of a turn's budget
_MS = NS_PER_SECOND // 1000
# What is unusual about the id of a response, if anything.
_ODDITIES = st.sampled_from((*["nothing"] * 6, "ended", "ended", "other", "none"))
_STANDINGS = st.sampled_from((*[Standing.UNANCHORED] * 3, *_ANCHORED, Standing.INJECTED))
_OUTCOMES = st.sampled_from((*[Outcome.COMPLETED] * 3, *Outcome))
_OLD = st.sampled_from(("opened", "lost", "sent", "created", "output", "ended", "refused"))


def _lawful(
    draw: st.DrawFn, state: SessionState, now: int, turn: int, last: Record | None
) -> Event:
    """An event that can happen in ``state`` at ``now``; a new turn gets the id ``turn``. ``last``:
    the transition right before, if no time has passed since."""
    what = draw(_WHAT[state.phase])
    if last is not None and (unsent := _unsent(draw, last)) is not None:
        return unsent
    if what == "submit":
        return ev.TurnSubmitted(_new_turn(draw, state, turn), _deadline(draw, now))
    if what in ("abandoned", "paused"):
        here = [waiting.turn.id for waiting in state.waiting]
        here += [state.running.turn.id] * 3 if state.running is not None else []
        number = draw(st.sampled_from([*here, max(turn - 1, 1)]))
        if what == "abandoned":
            return ev.TurnAbandoned(number)
        return ev.RelayPaused(number, draw(_BOOLEANS))
    if what == "evicted":
        return ev.EvictionRequested()
    if what == "spurious":
        return ev.DeadlineReached(draw(st.sampled_from(_not_due(state, now))))
    generation = state.generation
    if what == "old":
        if generation == 0:
            return ev.TurnSubmitted(_new_turn(draw, state, turn))
        what, generation = draw(_OLD), draw(st.integers(0, generation - 1))
    elif what == "opened" and state.phase not in (Phase.RECONNECTING, Phase.CLOSED):
        what = "lost"  # a connection opens only once
    return _of_connection(draw, what, generation, state)


def _deadline(draw: st.DrawFn, now: int) -> int | None:
    """The end of a new turn's budget, in whole ms. None (mostly): that of the policy."""
    left = draw(_LEFT)
    return None if left is None else (now // _MS + left * 1000) * _MS


def _of_connection(draw: st.DrawFn, what: str, generation: int, state: SessionState) -> Event:
    match what:
        case "opened":
            return ev.ConnectionOpened(generation)
        case "lost":
            return ev.ConnectionLost(generation, draw(_LOSSES))
        case "sent":
            return ev.FrameSent(generation)
        case "created":
            return ev.ResponseCreated(generation, _name(draw, state))
        case "output":
            room = not draw(_RARELY)
            return ev.OutputReceived(generation, draw(_BOOLEANS), room, _name(draw, state))
        case "refused":
            return ev.UpstreamRefused(generation, draw(_ERROR_FRAMES))
        case _:
            outcome = draw(_OUTCOMES)
            cause: Evidence | None = None
            if outcome is Outcome.FAILED:
                cause = _UNREADABLE if draw(_RARELY) else draw(_ERROR_FRAMES)
            return ev.ResponseEnded(generation, outcome, _name(draw, state), cause)


def _unsent(draw: st.DrawFn, last: Record) -> Event | None:
    """A loss or refusal by which the frame of the send in ``last`` was not sent. None if there was
    no send, and mostly: the rest of the history should be about the upstream."""
    if not any(isinstance(effect, SendTurn) for effect in last.effects):
        return None
    generation = last.after.generation
    upstreams = isinstance(last.event, ev.ResponseEnded | ev.UpstreamRefused)
    if upstreams and not getattr(last.event, "unsent", False) and draw(_BOOLEANS):
        # It was read together with the event that the send answers.
        if draw(_BOOLEANS):
            return ev.ConnectionLost(generation, draw(_LOSSES), unsent=True)
        limit = ErrorFrame(400, "websocket_connection_limit_reached")
        return ev.UpstreamRefused(generation, limit, unsent=True)
    if draw(_RARELY):
        large = ErrorFrame(413, "request_too_large")
        return ev.UpstreamRefused(generation, large, unsent=True)
    return None


def _name(draw: st.DrawFn, state: SessionState) -> str | None:
    """The id in an event of an answer: mostly that of the running response."""
    running = state.running
    own = f"resp_{running.turn.id}" if running is not None else None
    odd = draw(_ODDITIES)
    if odd == "ended" and state.ended:
        return draw(st.sampled_from(state.ended))
    if odd == "other" and own is not None:
        return f"{own}_b"
    return None if odd == "none" else own


def _new_turn(draw: st.DrawFn, state: SessionState, number: int) -> Turn:
    standing = draw(_STANDINGS)
    if standing is Standing.UNANCHORED:
        return Turn(number)
    anchors = list(_ANCHORS)
    if state.cached_response is not None and state.lifecycle is Lifecycle.OPEN:
        anchors = [state.cached_response] * len(anchors) + anchors
    return Turn(number, standing, draw(st.sampled_from(anchors)))


def _not_due(state: SessionState, now: int) -> list[Timer]:
    dues = dict(state.timers.entries)
    return [timer for timer in Timer if dues.get(timer, now + 1) > now]


# ------------------------------------------------------------------ create bodies

_TEXTS = st.text(max_size=20)
_SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), _TEXTS
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)
_MESSAGES_IN = st.builds(
    lambda role, content: {"type": "message", "role": role, "content": content},
    st.sampled_from(("user", "assistant", "system")),
    _TEXTS | _TEXTS.map(lambda text: [{"type": "input_text", "text": text}]),
)
_CALLS = st.builds(
    lambda number, output: [
        {"type": "function_call", "call_id": f"call_{number}", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": f"call_{number}", "output": output},
    ],
    st.integers(0, 99),
    _TEXTS,
)
_INPUTS: st.SearchStrategy[Any] = st.one_of(
    _TEXTS,
    st.lists(_MESSAGES_IN.map(lambda item: [item]) | _CALLS, max_size=3).map(
        lambda groups: [item for group in groups for item in group]
    ),
)
_OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "input": _INPUTS,
    "stream": st.none() | st.booleans(),
    "store": st.none() | st.booleans(),
    "previous_response_id": st.none() | st.sampled_from(_ANCHORS),
    "instructions": _TEXTS,
    "tools": st.lists(st.builds(lambda name: {"type": "function", "name": name}, _TEXTS)),
    "temperature": st.floats(0, 2),
    "metadata": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
    "a_field_of_tomorrow": _VALUES,
}
_SEPARATORS = st.sampled_from(((",", ":"), (", ", ": "), (" ,\n\t", " : ")))


def create_objects(
    fields: Mapping[str, st.SearchStrategy[Any] | None] | None = None,
) -> st.SearchStrategy[Json]:
    """Bodies of ``POST /v1/responses`` as objects: valid ones, their members in any order,
    including an unknown one.

    Args:
        fields: members that every body has, by name, and the strategies for them; None leaves a
            member out of all of them.
    """
    own = {} if fields is None else fields
    required = {"model": st.sampled_from(("m", "gpt-5")) | _TEXTS, **own}
    optional = {name: values for name, values in _OPTIONAL.items() if name not in own}
    members = st.fixed_dictionaries(
        {name: values for name, values in required.items() if values is not None},
        optional=optional,
    )
    return members.flatmap(lambda body: st.permutations(list(body.items())).map(dict))


def create_bodies(
    fields: Mapping[str, st.SearchStrategy[Any] | None] | None = None,
) -> st.SearchStrategy[bytes]:
    """``create_objects`` as JSON text, with different escapes and white space."""
    return st.builds(_dump, create_objects(fields), _SEPARATORS, st.booleans())


def _dump(value: object, separators: tuple[str, str], ascii_only: bool) -> bytes:
    return json.dumps(value, separators=separators, ensure_ascii=ascii_only).encode()


def _is_no_object(text: bytes) -> bool:
    """Whether ``text`` is certainly not a valid create body."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return True
    return not isinstance(value, dict) or not isinstance(value.get("model"), str)


_WRONG: dict[str, st.SearchStrategy[Any]] = {
    "model": st.none() | st.integers() | st.just(["m"]),
    "stream": st.sampled_from(("true", 1, [], {})),
    "store": st.sampled_from(("false", 0, [], {})),
    "previous_response_id": st.sampled_from((7, True, ["resp_1"], {})),
}


@st.composite
def invalid_create_bodies(draw: st.DrawFn) -> bytes:
    """Bodies that get status 400: not JSON, not an object, without a model, a wrong type, not
    UTF-8, truncated, nested without end, or with a number that JSON does not have."""
    kind = draw(st.sampled_from(("wrong", "absent", "value", "garbage", "cut", "number", "deep")))
    body = draw(create_objects({"model": st.just("m")}))
    if kind == "wrong":
        name = draw(st.sampled_from(sorted(_WRONG)))
        return _dump({**body, name: draw(_WRONG[name])}, (",", ":"), True)
    if kind == "absent":
        return _dump({k: v for k, v in body.items() if k != "model"}, (",", ":"), True)
    if kind == "value":
        value = draw(_SCALARS | st.lists(_SCALARS, max_size=2))
        return _dump(value, (",", ":"), True)
    if kind == "garbage":
        return draw(st.binary(max_size=40).filter(_is_no_object))
    whole = _dump(body, (",", ":"), True)
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    inside = {"number": b"NaN", "deep": b"[" * 100_000}[kind]
    return whole[:-1] + b',"x":' + inside + b"}"


# ------------------------------------------------------------------ bytes of HTTP

_HEADERS = st.lists(
    st.sampled_from(
        (
            "Accept: */*",
            "accept-encoding:  gzip, br ",
            "USER-AGENT: tests",
            "Cookie: a=b",
            "x-empty:",
            "x-stainless-retry-count: 0",
            "Connection: keep-alive",
            "x-latin: caf\xe9",
        )
    ),
    unique=True,
    max_size=4,
)
_TARGETS = st.sampled_from(("/v1/responses", "/v1/responses?a=b", "/v1/responses?"))


@st.composite
def http_requests(
    draw: st.DrawFn, bodies: st.SearchStrategy[bytes] | None = None, *, key: str = "sk-test"
) -> bytes:
    """Valid ``POST /v1/responses`` requests (RFC 9112), with ``Content-Length`` or in chunks of any
    size, their headers in any case, order and number.

    Args:
        bodies: the bodies; by default ``create_bodies()``.
        key: the credential, as a bearer token.
    """
    body = draw(create_bodies() if bodies is None else bodies)
    lines = [
        draw(st.sampled_from(("Host: bridge", "host: bridge:8080", "HOST: 127.0.0.1"))),
        f"Authorization: Bearer {key}",
        *draw(_HEADERS),
    ]
    chunked = draw(st.booleans())
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    head = [f"POST {draw(_TARGETS)} HTTP/1.1", *draw(st.permutations(lines)), "", ""]
    if chunked:
        pieces = draw(splits(body)) if body else []
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        body += b"0\r\n\r\n"
    return "\r\n".join(head).encode("latin-1") + body


_BAD_HEADS = (
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: -2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
    b"POST /v1/responses HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
    b"POST /v1/responses HTTP/1.1\nHost: a\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nx: 1\r\n folded\r\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a b\r\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nHost: a\r\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nbad name: x\r\nContent-Length: 2",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nx: \x00\r\nContent-Length: 2",
    b"POST v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 2",
    b"POST  /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 2",
    b"POST /v1/responses\r\nHost: a",
    b"\xff\xfe\xfd",
)


def malformed_requests() -> st.SearchStrategy[bytes]:
    """Requests that get status 400 and the end of the connection: ambiguous framing, malformed
    lines, an invalid ``Host`` or target. Each is complete."""
    return st.sampled_from(_BAD_HEADS).map(lambda head: head + b"\r\n\r\n{}")


_MAX_CUTS = 8


def splits(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """``data``, cut into 1 to 9 pieces at any places, none of them empty; no piece if it
    is empty."""
    if not data:
        return st.just([])
    cuts = st.sets(st.integers(1, max(len(data) - 1, 1)), max_size=_MAX_CUTS)
    return cuts.map(lambda places: _cut(data, sorted(places)))


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [*(place for place in places if place < len(data)), len(data)]
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@attrs.frozen
class Cutter:
    """Cuts data into pieces of these ``sizes`` (bytes, each more than 0), in turn; what is left
    after ``limit`` pieces stays whole. For ``Network(split=...)``."""

    sizes: tuple[int, ...]
    limit: int = 100

    def __call__(self, data: bytes) -> list[bytes]:
        pieces = []
        for number in range(self.limit):
            size = self.sizes[number % len(self.sizes)]
            if len(data) <= size:
                break
            pieces.append(data[:size])
            data = data[size:]
        return [*pieces, data] if data else pieces


def cutters() -> st.SearchStrategy[Callable[[bytes], list[bytes]]]:
    """Cutters for a network: ways to cut what is written into the pieces in which it arrives."""
    size = st.sampled_from((1, 2, 3, 7, 30, 500, 5000, 70_000)) | st.integers(1, 2000)
    return st.lists(size, min_size=1, max_size=4).map(lambda sizes: Cutter(tuple(sizes)))


# ------------------------------------------------------------------ faults

# Messages that violate the protocol, and some that are merely rare.
_ODD_EVENTS = (
    b'{"type":"thing","x":[1,\n2]}',
    b'{"type":"error"}',
    b'{"type":"error","status":400,"error":{"code":"previous_response_not_found"}}',
    b'{"type":"error","error":{"code":"websocket_connection_limit_reached"}}',
    b'{"type":"response.created","response":{"id":"resp_x"}}',
    b'{"type":"response.created","response":7}',
    b'{"type":"response.completed"}',
    b'{"type":"response.completed","response":{"id":"%RESPONSE_ID%","output":[]}}',
    b'{"type":"response.failed","response":{"error":null}}',
    b'{"type":"response.failed"}',
    b'{"type":"response.incomplete","response":{"id":7}}',
    b'{"type":"response.output_item.done","item":nonsense}',
    b'{"type":"response.output_text.delta","sequence_number":1e400}',
    b'{"sequence_number":1,"type":"keepalive"}',
    b'{"type":"x","a":"\\ud800"}',
)
# Faults at these points are assigned to connections, all others to turns.
CONNECTION_POINTS = (Point.ON_CONNECT, Point.ON_UPGRADE)
_IN_TURNS = tuple(point for point in Point if point not in CONNECTION_POINTS)
_ENDS = st.sampled_from(
    (*map(CloseWith, (1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000)), Abort())
)
_ANYWHERE = st.one_of(
    _ENDS,
    st.sampled_from((Silence(), Freeze())),
    st.binary(min_size=1, max_size=40).map(lambda data: Garbage(data, raw=True)),
    st.text(max_size=30).map(lambda text: Garbage(text.encode())),
)
_ERRORS = st.builds(
    Error,
    status=st.sampled_from([status for status in _STATUSES if status is not None]),
    code=st.sampled_from(_CODES),
    shape=st.sampled_from(ErrorShape),
)
_FAULTS = st.one_of(
    st.builds(Fault, st.sampled_from(CONNECTION_POINTS), _ANYWHERE),
    st.builds(
        Fault,
        st.just(Point.ON_UPGRADE),
        st.builds(Reject, st.sampled_from((200, 301, 401, 403, 404, 426, 429, 500, 503))),
    ),
    # Most faults are of turns: a connection that is never opened shows little.
    *[
        st.builds(
            Fault,
            st.sampled_from(_IN_TURNS),
            st.one_of(
                _ANYWHERE, _ERRORS, st.sampled_from(_ODD_EVENTS).map(lambda e: SendEvents((e,)))
            ),
            st.integers(0, 3),
        )
    ]
    * 3,
)


_ODD_FAULTS = st.sampled_from([named.fault for named in CATALOGUE.values()])
_DRAWN_FAULTS = _FAULTS | _ODD_FAULTS


def faults() -> st.SearchStrategy[Fault]:
    """Faults of an upstream, at every point of a turn or a connection."""
    return _DRAWN_FAULTS


def odd_faults() -> st.SearchStrategy[Fault]:
    """The faults of real services in ``CATALOGUE``."""
    return _ODD_FAULTS


def fault_plans(turns: int = 6, max_size: int = 8) -> st.SearchStrategy[FaultPlan]:
    """Plans for an ``Emulator``: up to ``max_size`` faults, each for one of the first ``turns``
    turns or connections; few are for every one, because little happens after that."""
    number = st.sampled_from((*range(1, turns + 1), *range(1, turns + 1), EVERY))
    return st.lists(st.tuples(number, _DRAWN_FAULTS), max_size=max_size).map(_plan)


def _plan(entries: list[tuple[int, Fault]]) -> FaultPlan:
    plan = FaultPlan()
    for number, fault in entries:
        plan.add(number, fault)
    return plan


__all__ = [
    "CONNECTION_POINTS",
    "Cutter",
    "History",
    "Record",
    "Step",
    "budgets",
    "create_bodies",
    "create_objects",
    "cutters",
    "error_frames",
    "events",
    "evidence",
    "fault_plans",
    "faults",
    "histories",
    "http_requests",
    "invalid_create_bodies",
    "losses",
    "malformed_requests",
    "odd_faults",
    "policies",
    "remedies",
    "replay",
    "splits",
    "timeouts",
    "turns",
]
