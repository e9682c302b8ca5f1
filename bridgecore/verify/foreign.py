"""Checks the log of another bridge: is there a course of events in which it does nothing wrong?

What belongs here: the search for such a course. A log (observed.py) is silent about much: a loss
that was not logged, a deadline, the moment at which a frame was gone, and how late the bridge
noticed what had happened. So the reference model (model.py) is kept not in one state but in every
state that the lines so far allow, each with the fewest unlogged events that lead to it. The
properties judge events and effects alone; our rules and policies have no part in this.

A state (``_Guess``) is a model, the event that the bridge is handling with the effects that the log
has shown of it so far, and the logged events that it has not noticed yet. A line that says what the
bridge did is an effect of the event being handled, of one in the queue, or of an unlogged one; each
of these that breaks no property is another state. A log is wrong at the first line that leaves no
state. The violation that is then shown is that of the course with the fewest unlogged events.

Optional lines that a log never has are filled in where they are needed: see ``_Silence``. A turn
that does not end is not a matter of this search: it is stuck after ``Header.wedged_after``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply, RequestForm
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import (
    ACCOUNT_LIMITS,
    NOT_FOUND_CODE,
    Closed,
    ErrorFrame,
    FailureKind,
    Unreachable,
    classify,
    known_name,
)
from bridgecore.recovery.policy import Timeouts
from bridgecore.recovery.rules import Transition
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.evidence import evidence_of
from bridgecore.verify.explore_bridge import BridgeProperty
from bridgecore.verify.foreign_coverage import Course, Coverage
from bridgecore.verify.model import Model, Terms
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.observed import LINES, Header, Observed, Says, event_of, read_log
from bridgecore.verify.observed_ids import Broken, Ids
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.replay import LogLines
from bridgecore.verify.story import Seen
from bridgecore.verify.trace import TraceReport, Wrong
from bridgecore.wire.jsontext import UnreadableError, read_value

_P = Property
HIDDEN = frozenset({_P.DEADLINES_ARE_KEPT, _P.REFUSED_PLAN_ENDS, _P.IDLE_IS_RETIRED})
"""Properties that the model cannot judge from such a log: it has no timers, no end of a session,
and no effects that only concern the bridge's memory. That an anchor which was refused is not
injected again (REFUSED_PLAN_ENDS) is judged here."""
OF_LOGS: Sequence[CostedProperty] = (
    *_P,
    BridgeProperty.CONTEXT_IS_MEANT,
    BridgeProperty.CREDENTIALS_ARE_KEPT_APART,
)
"""The properties that a log can break: those of a session, and those of the bridge that show in the
response ids (observed_ids.py)."""

_BEHIND = 3  # logged events that the bridge may not have noticed yet
_FREE = 2  # unlogged events between two lines that cost nothing, because the log never has them
_COST, _FREE_COST = 100, 1  # of an unlogged event; of one that this log never has
_MOST = 512  # states kept; beyond them, those with the most unlogged events are dropped
_FOR_EVER = 10**18  # ns; a bridge that may react as late as it likes
_SHOWN = 60  # steps of the history that a diagram shows
# Deadlines that may have passed without a line. The lifetime is one of the connection's age.
_UNLOGGED = (Timer.CONNECT, Timer.CREATED, Timer.IDLE, Timer.TURN, Timer.LIFETIME)
_ASSUMED = " (not in the log)"


def is_decision_log(first: bytes) -> bool:
    """Whether a log that begins with the line ``first`` is a decision log of this project."""
    try:
        value = read_value(first)
    except UnreadableError:
        return False
    if not isinstance(value, dict):
        return False
    return "log" in value or {"rule", "effects"} <= value.keys()  # its header may be lost


def check_trace(
    lines: Iterable[bytes], without: frozenset[CostedProperty] = frozenset()
) -> TraceReport:
    """Check the log of another bridge up to its first wrong line. ``without``: properties that it
    breaks on purpose.

    Raises:
        MalformedLog: a line is not one of such a log; the error has its number.
    """
    read = LogLines(lines)
    header, observed = read_log(read)
    logged = {one.kind for one in observed} | header.logs
    silence = _Silence(*[name not in logged for name in _OPTIONAL])
    of_sessions = frozenset(prop for prop in without if isinstance(prop, Property))
    terms = _terms(header, of_sessions | HIDDEN)
    ids = Ids(observed)
    conversations: dict[str, _Conversation] = {}
    running: dict[tuple[str, str], Observed] = {}  # turns that have not ended, by submission
    steps = last = 0
    wrong: Wrong | None = None
    for one in observed:
        last = one.line
        steps += LINES[one.kind].says is not Says.ABOUT
        wrong = None if _P.TURNS_END in without else _stuck(running, conversations, header, one)
        if wrong is None and one.kind == "log_ended":
            wrong = _first(conversations.values(), one.at)
        elif wrong is None:
            conversation = conversations.get(one.session)
            if conversation is None:
                conversation = _Conversation(one.session, header, silence, terms, ids, without)
                conversations[one.session] = conversation
            conversation.take(one)
            wrong = conversation.wrong
            if one.kind == "turn_submitted":
                running[one.session, one.turn] = one
            elif one.kind in ("answered", "turn_abandoned"):
                running.pop((one.session, one.turn), None)
        if wrong is not None:
            break
    if wrong is None and observed:
        wrong = _first(conversations.values(), max(one.at for one in observed))
    if wrong is not None:
        hint = conversations[wrong.session].hint(wrong)
        wrong = attrs.evolve(wrong, text=wrong.text + hint)
    assumed = [one.assumed() for one in conversations.values()]
    lateness = [one.lateness() for one in conversations.values()]
    coverage = Coverage(terms.timeouts, frames=not silence.frame_sent)
    for conversation in conversations.values():
        coverage.add(conversation.course())
    return TraceReport(
        last,
        len(conversations),
        steps,
        wrong,
        rules=coverage.rules,
        cells=coverage.cells,
        incomplete=tuple(read.incomplete),
        losses=sum(losses for losses, _ in assumed),
        deadlines=sum(deadlines for _, deadlines in assumed),
        late=sum(count for count, _ in lateness),
        latest=max((latest for _, latest in lateness), default=0),
        to_come=sum(wrong is None and one.awaits_reaction() for one in conversations.values()),
        states=(
            max((one.most for one in conversations.values()), default=0),
            sum(one.total for one in conversations.values()),
        ),
    )


def _first(conversations: Iterable[_Conversation], now: int) -> Wrong | None:
    """The first line that is wrong because nothing that it requires was done by ``now``."""
    found = []
    for conversation in conversations:
        conversation.expire(now)
        if conversation.wrong is not None:
            found.append(conversation.wrong)
    return min(found, key=lambda wrong: wrong.line, default=None)


def _stuck(
    running: Mapping[tuple[str, str], Observed],
    conversations: Mapping[str, _Conversation],
    header: Header,
    now: Observed,
) -> Wrong | None:
    """The turn that has not ended in time, if there is one."""
    first = next(iter(running.values()), None)
    if first is None or now.at - first.at <= header.wedged_after:
        return None
    limit = header.wedged_after // NS_PER_SECOND
    text = f"turn {first.turn} of line {first.line} has not ended after {limit} s"
    return conversations[first.session].stuck(now.at, text)


# ---------------------------------------------------------------- what the log leaves open


class _Silence(NamedTuple):
    """Which optional lines the whole log never has. Then what they would say is filled in where a
    property needs it, at no cost."""

    connect: bool
    upstream_opened: bool
    upstream_closed: bool
    frame_sent: bool
    delivered: bool


_OPTIONAL = _Silence._fields


def _terms(header: Header, without: frozenset[Property]) -> Terms:
    """What the model knows of the bridge. A deadline that is not stated may pass at any time."""
    times = {timer.value: header.timeouts.get(timer, 1) for timer in _UNLOGGED}
    return Terms(
        Timeouts(**times, expiry=1),
        header.refusals,
        header.waiting,
        max(1, header.replays),  # with 0 any is NO_AMBIGUOUS_RESEND, see ``strict``
        strict=header.replays == 0,
        holds=header.replays > 0,
        without=without,
    )


# ---------------------------------------------------------------- the search


class _Step(NamedTuple):
    """One event of a course, with its effects; a list that leads back to the beginning.

    ``since``: the line of the event. ``line``, ``until``: the last line about it, and its time.
    """

    at: int
    event: Event
    effects: tuple[Effect, ...]
    assumed: bool
    before: _Step | None
    since: int
    line: int
    until: int


class _Logged(NamedTuple):
    """An event of the log that the bridge has not noticed yet."""

    line: int
    at: int
    event: Event


class _Guess(NamedTuple):
    """One state that the lines so far allow.

    ``line``, ``until``: the last one about what is being handled, and its time; ``since``: that of
    the event itself. ``model``: before ``event``, which is being
    handled with ``effects`` so far; None: nothing is. ``refused``: anchors that were refused when
    the bridge had injected them. ``cost``: of the unlogged events on the way here. ``past`` does
    not tell states apart.
    """

    model: Model
    line: int
    at: int
    event: Event | None
    effects: tuple[Effect, ...]
    queue: tuple[_Logged, ...]
    refused: frozenset[str]
    assumed: bool
    cost: int
    past: _Step | None
    since: int = 0
    until: int = 0

    def key(self, now: int) -> tuple[object, ...]:
        """Equal for states that allow the same future after ``now``. Deadlines that have passed are
        alike, whenever that was, and so are the numbers of connections."""
        base = self.model.generation
        return (
            self.model.key_after(now), self.at, _relative(self.event, base),
            tuple([_relative(effect, base) for effect in self.effects]), self.queue, self.refused,
        )  # fmt: skip

    @property
    def step(self) -> _Step | None:
        """The history, with the event that is being handled."""
        if self.event is None:
            return self.past
        return self.stepped(self.event, self.effects)

    def stepped(self, event: Event, effects: tuple[Effect, ...]) -> _Step:
        """The history with ``event`` and ``effects`` at its end."""
        return _Step(
            self.at, event, effects, self.assumed, self.past, self.since, self.line, self.until
        )


class _Failure(NamedTuple):
    """A course that breaks a property at ``line``.

    The least one is shown: one that explains the line (see ``_ODD``), with the fewest unlogged
    events, and of those the one in which the bridge has noticed the most, and which fails last.
    """

    odd: bool
    cost: int
    behind: int
    earliness: int  # the line, negative
    order: int
    line: int
    prop: CostedProperty
    text: str
    step: _Step | None


class _Conversation:
    """One conversation of the log: its lines, and the search for a course that explains them.

    The search first explains them without unlogged events, as most of any log can be. If that
    fails, it begins again and tries unlogged events, too.

    ``wrong``: the first wrong line. ``most``, ``total``: how many states there were, at a time and
    over all lines.
    """

    def __init__(
        self,
        name: str,
        header: Header,
        silence: _Silence,
        terms: Terms,
        ids: Ids,
        without: frozenset[CostedProperty],
    ) -> None:
        self._make = partial(_Search, name, silence, terms, ids, without)
        self._header = header
        self._search = self._make(header, 0)
        self._unlogged = header.unlogged
        self._silence = silence
        self._taken: list[Observed] = []
        self._open: set[str] = set()  # the turns that have not ended
        # Lines of a connection that was made before there was a turn for it. The model connects
        # only for a turn, so they are taken right after the next one.
        self._spare: list[Observed] = []
        self._earlier = (0, 0)

    @property
    def wrong(self) -> Wrong | None:
        """The first wrong line."""
        return self._search.wrong

    @property
    def most(self) -> int:
        """The most states at a time."""
        return max(self._earlier[0], self._search.most)

    @property
    def total(self) -> int:
        """The states over all lines."""
        return self._earlier[1] + self._search.total

    def assumed(self) -> tuple[int, int]:
        """How many losses, and how many deadlines, the log lacks in the course with the fewest."""
        return self._search.assumed()

    def lateness(self) -> tuple[int, int]:
        """How many events were noticed late in that course, and how late at most (ns)."""
        return self._search.lateness()

    def awaits_reaction(self) -> bool:
        """Whether a reaction is still to come in that course."""
        return self._search.awaits_reaction()

    def hint(self, wrong: Wrong) -> str:
        """What to change in the header if ``wrong`` is wrong only because the bridge reacts later
        than ``Header.late`` says; else nothing."""
        if wrong.prop is _P.TURNS_END:
            return ""  # late enough for any bridge
        search = self._make(attrs.evolve(self._header, late=_FOR_EVER), self._header.unlogged)
        for one in self._taken:
            search.feed(one)
        late, slowest = self._header.late, search.slowest()
        if search.wrong is not None or slowest > self._header.wedged_after:
            return ""
        if slowest <= late:
            text = f"nothing followed within {late // NS_PER_SECOND} s"
            return f"; {text}: if this bridge may take longer, state a larger `late` in the header"
        needed = -(-slowest // NS_PER_SECOND)
        return (
            f"; it would be right if this bridge may take {slowest / NS_PER_SECOND:g} s to react: "
            f"then state `late` as at least {needed} in the header, not {late // NS_PER_SECOND}"
        )

    def course(self) -> Course:
        """The course with the fewest unlogged events, up to the first wrong line."""
        return [(step.at, step.event, step.effects) for step in self._search.course()]

    def take(self, one: Observed) -> None:
        """Take the next line."""
        if not self._open and one.kind in ("connect", "upstream_opened"):
            self._spare.append(one)
            return
        if self._spare and one.kind in ("upstream_lost", "upstream_closed"):
            self._spare.clear()
            return
        self._feed(one)
        if one.kind == "turn_submitted":
            self._open.add(one.turn)
            spare, self._spare = self._spare, []
            if spare and spare[0].kind != "connect" and not self._silence.connect:
                spare.insert(0, attrs.evolve(spare[0], kind="connect", fields={}))
            for earlier in spare:
                self._feed(attrs.evolve(earlier, at=one.at))
        elif one.kind in ("answered", "turn_abandoned"):
            self._open.discard(one.turn)

    def _feed(self, one: Observed) -> None:
        self._taken.append(one)
        self._search.feed(one)
        if self._search.wrong is not None:
            self._search_again(one.at)

    def expire(self, now: int) -> None:
        """Require the reactions to all events that are longer ago than the bridge may take."""
        self._search.expire(now)
        if self._search.wrong is not None:
            self._search_again(now)

    def stuck(self, now: int, text: str) -> Wrong:
        """What is wrong if a turn has not ended by ``now``, as ``text`` says."""
        self.expire(now)
        return self._search.stuck(text)

    def _search_again(self, now: int) -> None:
        """Search with unlogged events, unless that was done already."""
        unlogged, self._unlogged = self._unlogged, 0
        if not unlogged:
            return
        self._earlier = self.most, self.total
        self._search = self._make(self._header, unlogged)
        for one in self._taken:
            self._search.feed(one)
        self._search.expire(now)


class _Search:
    """The states that the lines of one conversation allow, with ``unlogged`` events without a line
    between two lines at most."""

    def __init__(
        self,
        name: str,
        silence: _Silence,
        terms: Terms,
        ids: Ids,
        without: frozenset[CostedProperty],
        header: Header,
        unlogged: int,
    ) -> None:
        self.wrong: Wrong | None = None
        self.most = self.total = 0
        self._latest = 0  # the line that came last
        self._shown_step: _Step | None = None  # the end of the course that a wrong line is shown in
        self._name = name
        self._header = header
        self._silence = silence
        self._loses = "upstream_lost" not in header.logs  # a loss may be missing in the log
        self._ids = ids
        self._turns = {
            turn: value for (session, turn), value in ids.turns.items() if session == name
        }
        self._names = {turn.id: name for name, turn in self._turns.items()}
        self._without = without
        self._unlogged = unlogged
        self._guesses = [_Guess(Model(terms), 0, 0, None, (), (), frozenset(), False, 0, None)]
        self._failures: list[_Failure] = []
        self._strangers: dict[str | None, str] = {}  # by id: why its events are of another turn
        self._lacking: _Failure | None = None  # the latest course that was given up as too late

    def feed(self, one: Observed) -> None:
        """Take the next line."""
        self._latest = one.line
        if self.wrong is not None:
            return
        self.expire(one.at)
        if self.wrong is None:
            found = list(self._noticed(one) if one.kind in _EFFECTS else self._happened(one))
            if not found and not self._failures:
                self._uncaused(self._guesses[0], one)
            self._keep(found, one.at)

    def expire(self, now: int) -> None:
        """Require the reactions to all events that are longer ago than the bridge may take."""
        if self.wrong is not None:
            return
        late = now - self._header.late
        found = []
        for guess in self._guesses:
            current: list[_Guess] = [guess]
            while current:
                one = current.pop()
                if one.event is not None and one.at < late:
                    current += self._settled(one)
                elif one.event is None and one.queue and one.queue[0].at < late:
                    current += self._begun(one)
                else:
                    found.append(one)
        self._lacking = min(self._failures, default=self._lacking)
        self._keep(found, now)

    def _keep(self, found: Iterable[_Guess], now: int) -> None:
        """Go on with the states of ``found``. If there are none, the line is wrong."""
        best: dict[tuple[object, ...], _Guess] = {}
        for guess in found:
            key = guess.key(now)
            before = best.setdefault(key, guess)
            if guess.cost < before.cost:
                best[key] = guess
        kept = sorted(best.values(), key=lambda guess: (guess.cost, len(guess.queue)))[:_MOST]
        self.most = max(self.most, len(kept))
        self.total += len(kept)
        failures, self._failures = self._failures, []
        if kept:
            self._guesses = kept
            return
        if not failures:
            broken = Broken(_P.SPURIOUS_IS_NOTHING, "nothing explains the lines so far")
            self._fail(self._guesses[0], self._latest, broken)
            failures = self._failures
        self.wrong = self._shown(min(failures))

    def _shown(self, failure: _Failure) -> Wrong:
        self._shown_step = failure.step
        seen = self._seen(failure.step)
        return Wrong(failure.line, self._name, failure.prop, failure.text, (), seen)

    def assumed(self) -> tuple[int, int]:
        """How many losses, and how many deadlines, the log lacks in the course with the fewest."""
        assumed = [step.event for step in self.course() if step.assumed]
        losses = sum(isinstance(event, ev.ConnectionLost) for event in assumed)
        return losses, sum(isinstance(event, ev.DeadlineReached) for event in assumed)

    def lateness(self) -> tuple[int, int]:
        """How many events of that course were noticed late, and how late at most (ns): the bridge
        did something else after such an event, which it would not have done if it had known."""
        count = latest = line = until = 0
        for step in self.course():
            if step.since < line and not step.assumed:
                count += 1
                latest = max(latest, until - step.at)
            if step.line > max(line, step.since):
                line, until = step.line, step.until
        return count, latest

    def slowest(self) -> int:
        """How long after its event the bridge did the last thing about it, at most (ns)."""
        slowest = until = 0
        for step in self.course():
            until = max(until, step.until)
            slowest = max(slowest, until - step.at)
        return slowest

    def awaits_reaction(self) -> bool:
        """Whether something that has happened requires a reaction which the log does not have yet,
        in the course with the fewest unlogged events."""
        failures, self._failures = self._failures, []
        ahead, found = [self._guesses[0]], False
        while ahead and not found:
            one = ahead.pop()
            if one.event is not None:
                ahead += self._settled(one)
            elif one.queue:
                ahead += self._begun(one)
            else:
                found = True
        self._failures = failures
        return not found

    def course(self) -> list[_Step]:
        """The course with the fewest unlogged events; if a line is wrong, the one that is shown."""
        step, steps = self._shown_step or self._guesses[0].step, list[_Step]()
        while step is not None:
            steps.append(step)
            step = step.before
        return steps[::-1]

    def stuck(self, text: str) -> Wrong:
        """What is wrong if a turn has not ended in time, as ``text`` says: what the course with
        the fewest unlogged events lacks or, if it lacks nothing, the end of the turn."""
        if self.wrong is not None:
            return self.wrong
        guess = self._guesses[0]
        lacking = self._lacking
        if lacking is not None and lacking.cost < guess.cost:
            return self._shown(lacking)
        step = guess.step
        for logged in guess.queue:
            waits = (logged.line, logged.line, logged.at)
            step = _Step(logged.at, logged.event, (), False, step, *waits)
        self._shown_step = step
        text = f"{text}; line {self._latest} is the last of its session"
        return Wrong(self._latest, self._name, _P.TURNS_END, text, (), self._seen(step))

    def _seen(self, step: _Step | None) -> tuple[Seen, ...]:
        """The end of the history that leads to ``step``, as a diagram takes it."""
        steps: list[_Step] = []
        while step is not None and len(steps) < _SHOWN:
            steps.append(step)
            step = step.before
        return tuple(
            Seen(
                one.at,
                one.event,
                Phase.CLOSED,
                Transition(SessionState(), one.effects, ""),
                _ASSUMED if one.assumed else self._note(one.event),
            )
            for one in reversed(steps)
        )

    def _note(self, event: Event) -> str:
        """The name that the log has for a turn, which is a number in the diagram."""
        if not isinstance(event, ev.TurnSubmitted):
            return ""
        name = self._names[event.turn.id]
        return "" if name == str(event.turn.id) else f" ({name})"

    # ------------------------------------------------------------ events

    def _happened(self, one: Observed) -> Iterator[_Guess]:
        """The states after an event of the log: it waits to be noticed. Old ones are noticed if too
        many wait, and so is one that calls for no action that the log would show."""
        turn = self._turns.get(one.fields.get("turn", ""))
        for guess in self._guesses:
            connecting = _after(guess).socket == "connecting"
            event = event_of(one, turn, connecting)
            if one.line in self._ids.strangers and _P.DELIVERED_TO_ITS_TURN not in self._without:
                self._strangers[one.fields.get("response")] = self._ids.strangers[one.line]
                event = _of_connection(event, _ELSEWHERE)
            waits = guess._replace(queue=(*guess.queue, _Logged(one.line, one.at, event)))
            if isinstance(event, _PROGRESS) and (waits.event is None or self._is_quiet(waits)):
                yield from self._on(waits)
            elif len(waits.queue) > _BEHIND:
                yield from self._moved(waits, one.at, less=True)
            else:
                yield waits

    def _on(self, guess: _Guess) -> Iterator[_Guess]:
        """Notice waiting events as long as nothing else is being handled."""
        if guess.event is not None:
            if not (self._is_quiet(guess) and guess.queue):
                yield guess
                return
            for settled in self._settled(guess):
                yield from self._on(settled)
        elif guess.queue:
            for begun in self._begun(guess):
                yield from self._on(begun)
        else:
            yield guess

    def _is_quiet(self, guess: _Guess) -> bool:
        """Whether the event that is being handled has no further effects that the log could
        show."""
        if isinstance(guess.event, ev.FrameSent):
            return True
        return self._silence.delivered and isinstance(
            guess.event, ev.ResponseCreated | ev.OutputReceived
        )

    def _begun(self, guess: _Guess) -> Iterator[_Guess]:
        """Begin to handle the first event that waits."""
        logged, *others = guess.queue
        queue = tuple(others)
        yield from self._handle(guess._replace(queue=queue), logged, assumed=False)

    def _overtaken(self, guess: _Guess) -> Iterator[_Guess]:
        """Begin to handle an event before an earlier one that waits: what clients and what the
        upstream did may be noticed in another order."""
        first = isinstance(guess.queue[0].event, _OF_CLIENTS)
        for place, logged in enumerate(guess.queue):
            if isinstance(logged.event, _OF_CLIENTS) is not first:
                queue = (*guess.queue[:place], *guess.queue[place + 1 :])
                later = guess._replace(queue=queue, cost=guess.cost + _FREE_COST)
                yield from self._handle(later, logged, assumed=False)
                return

    def _handle(self, guess: _Guess, logged: _Logged, *, assumed: bool) -> Iterator[_Guess]:
        model, line, at, event = guess.model, logged.line, logged.at, logged.event
        unsent = isinstance(event, ev.ConnectionLost) and event.unsent
        if self._silence.frame_sent and not unsent and not isinstance(event, ev.FrameSent):
            frame = ev.FrameSent(model.generation)
            if guess.past is not None and model.requires_reaction(frame, at):
                model = check_step(model, frame, (), guess.past.at, None)  # when it was sent
        event = _of_connection(event, model.generation)
        begun = guess._replace(
            model=model, line=line, at=at, event=event, effects=(), assumed=assumed,
            since=line, until=at,
        )  # fmt: skip
        answers = isinstance(event, ev.ResponseCreated | ev.OutputReceived)
        if not answers or not self._silence.delivered or not model.requires_reaction(event, at):
            yield begun
            return
        assert model.carried is not None
        shown = fx.DeliverEvent(model.carried, held=model.in_doubt(event))
        yield begun._replace(effects=(shown,))
        bearing = isinstance(event, ev.OutputReceived) and event.bearing
        if model.terms.holds and not shown.held and not bearing:
            yield begun._replace(effects=(attrs.evolve(shown, held=True),))

    def _settled(self, guess: _Guess) -> Iterator[_Guess]:
        """The event was handled: nothing more of it will come."""
        event = guess.event
        assert event is not None
        if isinstance(event, ev.EvictionRequested) and not guess.effects:
            return  # assumed for nothing
        first: ViolationError | None = None
        for more in self._more(guess):
            effects = guess.effects + more
            try:
                model = check_step(guess.model, event, effects, guess.at, None)
            except ViolationError as violation:
                if first is None or (first.prop in _ODD and violation.prop not in _FILLED):
                    first = violation
                continue
            refused = guess.refused
            injected = guess.model.injected()
            if injected is not None and guess.model.refusal(event) in ("not_found", "other"):
                refused |= {injected}
            past = guess.stepped(event, effects)
            yield guess._replace(
                model=model, event=None, effects=(), refused=refused, past=past, assumed=False
            )
            return
        assert first is not None
        self._fail(guess, guess.line, Broken(first.prop, first.text))

    def _more(self, guess: _Guess) -> Iterator[tuple[Effect, ...]]:
        """Effects that the log does not show, but that may belong to what is being handled."""
        yield ()
        after = _after(guess)
        close = fx.CloseConnection(after.generation)
        opened = fx.OpenConnection(after.generation + 1)
        early = not after.turns and after.socket == "connecting"  # goes on without a turn
        if (self._silence.upstream_closed or early) and after.socket != "none":
            yield (close,)
            if self._silence.connect:
                yield (close, opened)
        if self._silence.connect and after.socket == "none":
            yield (opened,)

    def _moved(self, guess: _Guess, now: int, *, less: bool = False) -> Iterator[_Guess]:
        """The states that ``guess`` can go on to without a line, up to ``now``: it notices what
        waits, and events that the log does not have happen. ``less``: only those with a queue that
        is not too long."""
        frontier = [guess]
        for _ in range(_FREE + self._unlogged + len(guess.queue) + 1):
            after: list[_Guess] = []
            for one in frontier:
                if not less or len(one.queue) <= _BEHIND:
                    yield one
                    if less:
                        continue
                after += self._next(one, now, one.cost - guess.cost < self._unlogged * _COST)
            frontier = after

    def _next(self, guess: _Guess, now: int, assume: bool) -> Iterator[_Guess]:
        settled = [guess] if guess.event is None else list(self._settled(guess))
        for one in settled:
            if one.queue:
                yield from self._begun(one)
                yield from self._overtaken(one)
            if any(not isinstance(logged.event, _OF_CLIENTS) for logged in one.queue):
                continue  # what the upstream has sent already was there before
            for event, cost in self._assumable(one.model, now):
                if assume or cost == _FREE_COST:
                    logged = _Logged(self._latest, now, event)
                    for begun in self._handle(one, logged, assumed=True):
                        yield begun._replace(cost=one.cost + cost)

    def _assumable(self, model: Model, now: int) -> Iterator[tuple[Event, int]]:
        """The events that may have happened without a line, and what each costs."""
        generation = model.generation
        if model.socket == "connecting":
            if self._silence.upstream_opened:
                yield ev.ConnectionOpened(generation), _FREE_COST
            if self._loses:
                yield ev.ConnectionLost(generation, Unreachable("not logged")), _COST
        elif model.socket == "open":
            if self._loses:
                yield ev.ConnectionLost(generation, Closed(1006)), _COST
            frame = ev.FrameSent(generation)
            if not self._silence.frame_sent and model.requires_reaction(frame, now):
                yield frame, _FREE_COST
            if not model.turns:
                yield ev.EvictionRequested(), _FREE_COST  # idle connections are closed at some time
        for timer in () if "timed_out" in self._header.logs else _UNLOGGED:
            due = model.due(timer)
            if due is not None and due <= now:
                yield ev.DeadlineReached(timer), _COST

    # ------------------------------------------------------------ effects

    def _noticed(self, one: Observed) -> Iterator[_Guess]:
        """The states after a line that says what the bridge did."""
        for guess in self._guesses:
            reached = list(self._moved(guess, one.at))
            if guess.event is None:
                self._uncaused(guess, one)
            # The most usual first: a bridge that has noticed everything.
            for state in sorted(reached, key=lambda state: (state.cost, len(state.queue))):
                found = [] if state.event is None else list(self._attached(state, one))
                yield from found
                if found and not self._unlogged:
                    break  # if this leads nowhere, the search begins again

    def _uncaused(self, guess: _Guess, one: Observed) -> None:
        prop = _UNCAUSED.get(one.kind, _P.SPURIOUS_IS_NOTHING)
        text = f"{one.kind} follows from nothing that happened"
        name = one.fields.get("turn")
        if name is not None and name not in self._turns:
            text += (
                f"; turn {name} was not submitted in an earlier line: if the log does not begin "
                "with its session, put what came before in front of it, or leave out the session"
            )
        self._fail(guess, one.line, Broken(prop, text))

    def _attached(self, guess: _Guess, one: Observed) -> Iterator[_Guess]:
        """``guess`` with what the bridge did as an effect of the event that it is handling."""
        first: ViolationError | None = None
        tried: tuple[Effect, ...] = ()
        event = guess.event
        assert event is not None
        if self._is_misused(guess, one):
            return
        sent = self._ids.sent.get(one.line)
        if sent is not None:
            guess = _as_sent(guess, sent)
            event = guess.event
            assert event is not None
        for more in self._more(guess):
            earlier = guess.effects + more
            for effect in self._effects(guess, earlier, one):
                effects = (*earlier, effect)
                try:
                    self._check_injection(guess, effect, sent)
                    check_step(guess.model, event, effects, guess.at, None, whole=False)
                    self._check_tried(guess, effect)
                except ViolationError as violation:
                    first, tried = first or violation, tried or effects
                    continue
                yield guess._replace(effects=effects, line=one.line, until=one.at)
                return
        if first is not None:
            self._fail(guess._replace(effects=tried), one.line, Broken(first.prop, first.text))

    def _is_misused(self, guess: _Guess, one: Observed) -> bool:
        """Whether the line uses a response id for another response than its own. Then no course
        explains it."""
        broken = self._ids.broken.get(one.line)
        stranger = self._stranger_to(guess, one)
        if broken is None and stranger:
            text = f"the answer to another turn is passed on to turn {one.turn}: {stranger}"
            broken = Broken(_P.DELIVERED_TO_ITS_TURN, text)
        if broken is None or broken.prop in self._without:
            return False
        tried = guess
        if one.kind == "sent":
            effects = (*guess.effects, *self._effects(guess, guess.effects, one))
            tried = guess._replace(effects=effects)
        self._fail(tried, one.line, broken)
        return True

    def _stranger_to(self, guess: _Guess, one: Observed) -> str:
        """If the line passes on the event that is being handled, and that is of another turn: why;
        else nothing."""
        passed_on = one.kind == "delivered" or one.fields.get("status") in _OVER
        if not passed_on or getattr(guess.event, "generation", None) != _ELSEWHERE:
            return ""
        name = getattr(guess.event, "response", None)
        return self._strangers.get(name, "")

    def _check_injection(self, guess: _Guess, effect: Effect, turn: Turn | None) -> None:
        if not isinstance(effect, fx.SendTurn) or effect.form is not RequestForm.AS_IS:
            return
        if turn is None or turn.standing is not Standing.INJECTED:
            return
        if turn.anchor in guess.refused and _P.REFUSED_PLAN_ENDS not in self._without:
            text = f"{turn.anchor} is injected again, after the upstream refused it"
            raise ViolationError(_P.REFUSED_PLAN_ENDS, text)

    def _check_tried(self, guess: _Guess, effect: Effect) -> None:
        """Check that a turn is not given up when it is submitted, before a connect was tried for
        it. Our rules always try, so no property of the model says that."""
        event = guess.event
        if not isinstance(effect, fx.FailTurn) or effect.answer is FailureReply.OVERLOADED:
            return
        own = isinstance(event, ev.TurnSubmitted) and event.turn.id == effect.turn
        if own and guess.model.socket != "open" and _P.CONTINUED_AT_ONCE not in self._without:
            text = f"turn {effect.turn} was given up before anything was tried for it"
            raise ViolationError(_P.CONTINUED_AT_ONCE, text)

    def _effects(
        self, guess: _Guess, earlier: tuple[Effect, ...], one: Observed
    ) -> Iterator[Effect]:
        """The effects of ours that a line can be, the most usual first."""
        after = _after(guess, earlier)
        if one.kind == "connect":
            yield fx.OpenConnection(after.generation + 1)
            return
        if one.kind == "upstream_closed":
            yield fx.CloseConnection(after.generation)
            return
        turn = self._turns.get(one.turn) or Turn(0)
        if one.kind == "delivered":
            yield fx.DeliverEvent(turn.id, held=False)
        elif one.kind == "sent":
            full = one.fields.get("previous_response_id") is None
            form = RequestForm.AS_IS
            if full and turn.anchor is not None:
                injected = turn.standing is Standing.INJECTED
                form = RequestForm.CLIENT_FULL if injected else RequestForm.REHYDRATED
            yield fx.SendTurn(after.generation, turn.id, form)
        else:
            yield from _answers(guess, turn.id, one)

    def _fail(self, guess: _Guess, line: int, broken: Broken) -> None:
        order = len(self._failures)
        self._failures.append(
            _Failure(
                broken.prop in _ODD,
                guess.cost,
                len(guess.queue),
                -line,
                order,
                line,
                *broken,
                guess.step,
            )
        )


# What breaks first if a line is explained by an event that was not its cause. Anything else says
# more about the bridge.
_ODD = frozenset(
    {
        _P.SPURIOUS_IS_NOTHING,
        _P.LIVE_GENERATION,
        _P.ONE_END,
        _P.NOTHING_IS_STRANDED,
        _P.OPEN_IS_OPEN,
    }
)
# What may break because a filled in effect was not one of the bridge's.
_FILLED = _ODD | {_P.SOUND_SOCKETS_STAY}
# The property that an action without a cause breaks.
_UNCAUSED: Mapping[str, Property] = {
    "connect": _P.NOTHING_IS_STRANDED,
    "upstream_closed": _P.SOUND_SOCKETS_STAY,
    "sent": _P.OPEN_IS_OPEN,
    "delivered": _P.DELIVERED_TO_ITS_TURN,
    "answered": _P.ONE_END,
}
_OF_CLIENTS = (ev.TurnSubmitted, ev.TurnAbandoned)
# Events in whose place nothing else can have happened that a later action would need.
_PROGRESS = (ev.FrameSent, ev.ResponseCreated, ev.OutputReceived, ev.ResponseEnded)
_ELSEWHERE = -1  # the generation of an event that came for another turn
_EFFECTS = frozenset(name for name, kind in LINES.items() if kind.says is Says.DONE)


def _relative(value: Event | Effect | None, base: int) -> object:
    """``value`` with the number of its connection counted from ``base``."""
    generation = getattr(value, "generation", None)
    if value is None or generation is None:
        return value
    changed: Any = value
    return attrs.evolve(changed, generation=generation - base)


def _of_connection(event: Event, generation: int) -> Event:
    """``event``, of the connection of ``generation`` if it is of one."""
    if isinstance(event, ev.TurnSubmitted | ev.TurnAbandoned | ev.DeadlineReached):
        return event
    if isinstance(event, ev.RelayPaused | ev.EvictionRequested) or event.generation == _ELSEWHERE:
        return event
    return attrs.evolve(event, generation=generation)


def _as_sent(guess: _Guess, turn: Turn) -> _Guess:
    """``guess`` with the anchor that ``turn`` is sent with now, which may be another id for the
    response that its client named."""
    event, model = guess.event, guess.model
    if isinstance(event, ev.TurnSubmitted) and event.turn.id == turn.id and event.turn != turn:
        guess = guess._replace(event=attrs.evolve(event, turn=turn))
    turns = tuple(
        [
            one._replace(anchor=turn.anchor, standing=turn.standing) if one.id == turn.id else one
            for one in model.turns
        ]
    )
    if turns != model.turns:
        model = model.copy()
        model.turns = turns
        guess = guess._replace(model=model)
    return guess


def _after(guess: _Guess, effects: tuple[Effect, ...] | None = None) -> Model:
    """The model after what is being handled has had ``effects``, by default those so far."""
    if guess.event is None:
        return guess.model
    effects = guess.effects if effects is None else effects
    try:
        return check_step(guess.model, guess.event, effects, guess.at, None, whole=False)
    except ViolationError:
        return guess.model


# ---------------------------------------------------------------- answers

_OVER = (200, 499)  # the client got all of it, or was not there any more
_RETRIABLE = frozenset({408, 425, 429})
# Failures about the request itself, which no other try will cure.
_LASTING = frozenset({FailureKind.TOO_LARGE, FailureKind.INVALID, FailureKind.REJECTED})
# Failures that another try may cure.
_PASSING = frozenset({FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR})
_SERVER_ERROR = "server_error"  # the code of response.failed, which has no status
_TIMEOUTS = frozenset({408, 504})


def _answers(guess: _Guess, turn: int, one: Observed) -> Iterator[Effect]:
    """What an ``answered`` line can be: each bridge has codes of its own, so all answers of ours
    that tell the client the same."""
    status, code = one.fields["status"], one.fields.get("code")
    event, model = guess.event, guess.model
    if status in _OVER and code is None:
        names: tuple[str, ...] = ()
        if isinstance(event, ev.ResponseEnded):
            names = model.names_at_end(event)
        yield fx.CompleteTurn(turn, names)
        return
    sent = any(isinstance(effect, fx.SendTurn) for effect in guess.effects)
    if sent or isinstance(event, ev.FrameSent | ev.ResponseCreated | ev.OutputReceived):
        return  # no reason to fail a turn
    assert event is not None
    failed = (Outcome.FAILED,) if model.begun or status >= 400 else ()
    if isinstance(event, ev.ResponseEnded) and event.outcome in failed and _agrees(event, status):
        yield fx.CompleteTurn(turn, model.names_at_end(event))
    own = model.carried == turn
    kind = model.refusal(event) if own else None
    failure = evidence_of(event)
    if isinstance(event, ev.ResponseEnded) and kind is not None and event.cause is not None:
        failure = classify(event.cause)
    if code == NOT_FOUND_CODE:
        replies = [FailureReply.NOT_FOUND]
        if kind == "not_found":
            replies.insert(0, FailureReply.UPSTREAM_ERROR)
    else:
        replies = list(_replies(event, status, code, own=own))
    for reply in replies:
        yield fx.FailTurn(turn, reply, failure)
        if failure is not None:
            yield fx.FailTurn(turn, reply, None)


def _replies(event: Event, status: int, code: str | None, *, own: bool) -> Iterator[FailureReply]:
    """The replies that ``status`` and ``code`` can stand for. ``own``: ``event`` is about the turn
    that is answered."""
    whole = isinstance(event, ev.ResponseEnded) and event.outcome is not Outcome.FAILED
    passed_on = not whole and _agrees(event, status)
    if not _may_retry(status) and status not in _OVER:
        # It says that the turn was refused for good. What happened may have been something else:
        # then the reply is one that the model does not allow, so that the line is rejected.
        about = own or isinstance(event, ev.ConnectionLost)
        wrong = about and not passed_on
        yield FailureReply.STREAM_INCOMPLETE if wrong else FailureReply.UPSTREAM_ERROR
        return
    deadline = isinstance(event, ev.DeadlineReached)
    if status in _TIMEOUTS or (code is not None and "timeout" in code) or deadline:
        yield FailureReply.REQUEST_TIMEOUT
    yield FailureReply.UPSTREAM_UNAVAILABLE
    yield FailureReply.STREAM_INCOMPLETE
    if passed_on:
        yield FailureReply.UPSTREAM_ERROR
    yield FailureReply.OVERLOADED


def _may_retry(status: int) -> bool:
    """Whether ``status`` tells a client that the same request may succeed later."""
    return status >= 500 or status in _RETRIABLE


def _agrees(event: Event, status: int) -> bool:
    """Whether ``status`` tells a client about a retry what the failure in ``event`` says."""
    lasts = _lasts(event)
    return lasts is None or status in _OVER or lasts is not _may_retry(status)


def _lasts(event: Event) -> bool | None:
    """Whether no other try will cure the failure in ``event``; None: that is not said, or there
    is no failure."""
    cause = event.cause if isinstance(event, ev.ResponseEnded) else None
    failure = evidence_of(event) if cause is None else classify(cause)
    if failure is None:
        return None
    names = _names(event)
    # An error with neither a status nor a known code could be any.
    passes = _SERVER_ERROR in names if failure.status is None else _may_retry(failure.status)
    if failure.kind in _LASTING:
        return failure.kind is FailureKind.TOO_LARGE or not passes
    # A retry can help an account or not, so either answer is right.
    account = any(known_name(name) in ACCOUNT_LIMITS for name in names)
    return False if failure.kind in _PASSING and passes and not account else None


def _names(event: Event) -> list[str]:
    """The code and the type of the upstream's error in ``event``."""
    cause = event.cause if isinstance(event, ev.ResponseEnded | ev.UpstreamRefused) else None
    names = (cause.code, cause.type) if isinstance(cause, ErrorFrame) else ()
    return [name for name in names if name is not None]
