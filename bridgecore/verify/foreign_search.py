"""Searches for a course of events that explains the log of another bridge, line by line.

What belongs here: how a line leads from each state that the lines before allow to the next ones. A
log (observed.py) is silent about much: a loss that was not logged, a deadline, the moment at which
a frame was gone, and how late the bridge noticed what had happened. So the reference model
(model.py) is kept not in one state but in every state that the lines so far allow, each with the
fewest unlogged events that lead to it. The properties judge events and effects alone; our rules and
policies have no part in this.

A state (``Guess``, foreign_courses.py) is a model, the event that the bridge is handling with the
effects that the log has shown of it so far, and the logged events that it has not noticed yet. A
line that says what the bridge did is an effect of the event being handled, of one in the queue, or
of an unlogged one; each of these that breaks no property is another state. A log is wrong at the
first line that leaves no state. The violation that is then shown is that of the course with the
fewest unlogged events.

Optional lines that a log never has are filled in where they are needed: see ``Silence``. A turn
that does not end is not a matter of this search: it is stuck after ``Header.wedged_after``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply, RequestForm
from bridgecore.recovery.events import Event, Standing, Turn
from bridgecore.recovery.failure import Closed, Unreachable
from bridgecore.recovery.rules import Transition
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import Timer
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.foreign_answers import OVER, answers_of
from bridgecore.verify.foreign_courses import (
    ELSEWHERE,
    Failure,
    Guess,
    Logged,
    Step,
    after_effects,
    as_sent,
    of_connection,
)
from bridgecore.verify.model import Model, Terms
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.observed import LINES, Header, Observed, Says, event_of
from bridgecore.verify.observed_ids import Broken, Ids
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.story import Seen
from bridgecore.verify.trace import Wrong

_P = Property
_BEHIND = 3  # logged events that the bridge may not have noticed yet
_FREE = 2  # unlogged events between two lines that cost nothing, because the log never has them
_COST, _FREE_COST = 100, 1  # of an unlogged event; of one that this log never has
_MOST = 512  # states kept; beyond them, those with the most unlogged events are dropped
_SHOWN = 60  # steps of the history that a diagram shows
UNLOGGED = (Timer.CONNECT, Timer.CREATED, Timer.IDLE, Timer.TURN, Timer.LIFETIME)
"""Deadlines that may have passed without a line. The lifetime is one of the connection's age."""
_ASSUMED = " (not in the log)"


class Silence(NamedTuple):
    """Which optional lines the whole log never has. Then what they would say is filled in where a
    property needs it, at no cost."""

    connect: bool
    upstream_opened: bool
    upstream_closed: bool
    frame_sent: bool
    delivered: bool


class Search:
    """The states that the lines of one conversation allow, with ``unlogged`` events without a line
    between two lines at most."""

    def __init__(
        self,
        name: str,
        silence: Silence,
        terms: Terms,
        ids: Ids,
        without: frozenset[CostedProperty],
        header: Header,
        unlogged: int,
    ) -> None:
        self.wrong: Wrong | None = None
        self.most = self.total = 0
        self._latest = 0  # the line that came last
        self._shown_step: Step | None = None  # the end of the course that a wrong line is shown in
        self._name = name
        self._header = header
        self._silence = silence
        self._loses = "upstream_lost" not in header.logs  # a loss may be missing in the log
        self._ids = ids
        self._turns = {
            turn: value for (session, turn), value in ids.turns.items() if session == name
        }
        self._names = {turn.id: name for name, turn in self._turns.items()}
        self._submitted: set[str] = set()  # the turns of the lines so far
        self._without = without
        self._unlogged = unlogged
        self._guesses = [Guess(Model(terms), 0, 0, None, (), (), frozenset(), False, 0, None)]
        self._failures: list[Failure] = []
        self._strangers: dict[str | None, str] = {}  # by id: why its events are of another turn
        self._lacking: Failure | None = None  # the latest course that was given up as too late

    def feed(self, one: Observed) -> None:
        """Take the next line."""
        self._latest = one.line
        if self.wrong is not None:
            return
        self.expire(one.at)
        if one.kind == "turn_submitted":
            self._submitted.add(one.turn)
        if self.wrong is None:
            found: list[Guess] = []
            if not self._is_unknown(one):  # else no course explains it, and each would say why not
                found += self._noticed(one) if one.kind in _EFFECTS else self._happened(one)
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
            current: list[Guess] = [guess]
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

    def _keep(self, found: Iterable[Guess], now: int) -> None:
        """Go on with the states of ``found``. If there are none, the line is wrong."""
        best: dict[tuple[object, ...], Guess] = {}
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

    def _shown(self, failure: Failure) -> Wrong:
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

    def course(self) -> list[Step]:
        """The course with the fewest unlogged events; if a line is wrong, the one that is shown."""
        step, steps = self._shown_step or self._guesses[0].step, list[Step]()
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
            step = Step(logged.at, logged.event, (), False, step, *waits)
        self._shown_step = step
        text = f"{text}; line {self._latest} is the last of its session"
        return Wrong(self._latest, self._name, _P.TURNS_END, text, (), self._seen(step))

    def _seen(self, step: Step | None) -> tuple[Seen, ...]:
        """The end of the history that leads to ``step``, as a diagram takes it."""
        steps: list[Step] = []
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

    def _happened(self, one: Observed) -> Iterator[Guess]:
        """The states after an event of the log: it waits to be noticed. Old ones are noticed if too
        many wait, and so is one that calls for no action that the log would show."""
        turn = self._turns.get(one.fields.get("turn", ""))
        for guess in self._guesses:
            connecting = after_effects(guess).socket == "connecting"
            event = event_of(one, turn, connecting)
            if one.line in self._ids.strangers and _P.DELIVERED_TO_ITS_TURN not in self._without:
                self._strangers[one.fields.get("response")] = self._ids.strangers[one.line]
                event = of_connection(event, ELSEWHERE)
            waits = guess._replace(queue=(*guess.queue, Logged(one.line, one.at, event)))
            if isinstance(event, _PROGRESS) and (waits.event is None or self._is_quiet(waits)):
                yield from self._on(waits)
            elif len(waits.queue) > _BEHIND:
                yield from self._moved(waits, one.at, less=True)
            else:
                yield waits

    def _on(self, guess: Guess) -> Iterator[Guess]:
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

    def _is_quiet(self, guess: Guess) -> bool:
        """Whether the event that is being handled has no further effects that the log could
        show."""
        if isinstance(guess.event, ev.FrameSent):
            return True
        return self._silence.delivered and isinstance(
            guess.event, ev.ResponseCreated | ev.OutputReceived
        )

    def _begun(self, guess: Guess) -> Iterator[Guess]:
        """Begin to handle the first event that waits."""
        logged, *others = guess.queue
        queue = tuple(others)
        yield from self._handle(guess._replace(queue=queue), logged, assumed=False)

    def _overtaken(self, guess: Guess) -> Iterator[Guess]:
        """Begin to handle an event before an earlier one that waits: what clients and what the
        upstream did may be noticed in another order."""
        first = isinstance(guess.queue[0].event, _OF_CLIENTS)
        for place, logged in enumerate(guess.queue):
            if isinstance(logged.event, _OF_CLIENTS) is not first:
                queue = (*guess.queue[:place], *guess.queue[place + 1 :])
                later = guess._replace(queue=queue, cost=guess.cost + _FREE_COST)
                yield from self._handle(later, logged, assumed=False)
                return

    def _handle(self, guess: Guess, logged: Logged, *, assumed: bool) -> Iterator[Guess]:
        model, line, at, event = guess.model, logged.line, logged.at, logged.event
        unsent = isinstance(event, ev.ConnectionLost) and event.unsent
        if self._silence.frame_sent and not unsent and not isinstance(event, ev.FrameSent):
            frame = ev.FrameSent(model.generation)
            if guess.past is not None and model.requires_reaction(frame, at):
                model = check_step(model, frame, (), guess.past.at, None)  # when it was sent
        event = of_connection(event, model.generation)
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

    def _settled(self, guess: Guess) -> Iterator[Guess]:
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

    def _more(self, guess: Guess) -> Iterator[tuple[Effect, ...]]:
        """Effects that the log does not show, but that may belong to what is being handled."""
        yield ()
        after = after_effects(guess)
        close = fx.CloseConnection(after.generation)
        opened = fx.OpenConnection(after.generation + 1)
        early = not after.turns and after.socket == "connecting"  # goes on without a turn
        if (self._silence.upstream_closed or early) and after.socket != "none":
            yield (close,)
            if self._silence.connect:
                yield (close, opened)
        if self._silence.connect and after.socket == "none":
            yield (opened,)

    def _moved(self, guess: Guess, now: int, *, less: bool = False) -> Iterator[Guess]:
        """The states that ``guess`` can go on to without a line, up to ``now``: it notices what
        waits, and events that the log does not have happen. ``less``: only those with a queue that
        is not too long."""
        frontier = [guess]
        for _ in range(_FREE + self._unlogged + len(guess.queue) + 1):
            after: list[Guess] = []
            for one in frontier:
                if not less or len(one.queue) <= _BEHIND:
                    yield one
                    if less:
                        continue
                after += self._next(one, now, one.cost - guess.cost < self._unlogged * _COST)
            frontier = after

    def _next(self, guess: Guess, now: int, assume: bool) -> Iterator[Guess]:
        settled = [guess] if guess.event is None else list(self._settled(guess))
        for one in settled:
            if one.queue:
                yield from self._begun(one)
                yield from self._overtaken(one)
            if any(not isinstance(logged.event, _OF_CLIENTS) for logged in one.queue):
                continue  # what the upstream has sent already was there before
            for event, cost in self._assumable(one.model, now):
                if assume or cost == _FREE_COST:
                    logged = Logged(self._latest, now, event)
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
        for timer in () if "timed_out" in self._header.logs else UNLOGGED:
            due = model.due(timer)
            if due is not None and due <= now:
                yield ev.DeadlineReached(timer), _COST

    # ------------------------------------------------------------ effects

    def _noticed(self, one: Observed) -> Iterator[Guess]:
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

    def _is_unknown(self, one: Observed) -> bool:
        """Whether the line is about a turn that no earlier line has submitted."""
        return "turn" in one.fields and one.turn not in self._submitted

    def _uncaused(self, guess: Guess, one: Observed) -> None:
        prop = _UNCAUSED.get(one.kind, _P.SPURIOUS_IS_NOTHING)
        text = f"{one.kind} follows from nothing that happened"
        if self._is_unknown(one):
            text += (
                f"; turn {one.turn} was not submitted in an earlier line: if the log does not "
                "begin with its session, put what came before in front of it, or leave out the "
                "session"
            )
        self._fail(guess, one.line, Broken(prop, text))

    def _attached(self, guess: Guess, one: Observed) -> Iterator[Guess]:
        """``guess`` with what the bridge did as an effect of the event that it is handling."""
        first: ViolationError | None = None
        tried: tuple[Effect, ...] = ()
        event = guess.event
        assert event is not None
        if self._is_misused(guess, one):
            return
        sent = self._ids.sent.get(one.line)
        if sent is not None:
            guess = as_sent(guess, sent)
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

    def _is_misused(self, guess: Guess, one: Observed) -> bool:
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

    def _stranger_to(self, guess: Guess, one: Observed) -> str:
        """If the line passes on the event that is being handled, and that is of another turn: why;
        else nothing."""
        passed_on = one.kind == "delivered" or one.fields.get("status") in OVER
        if not passed_on or getattr(guess.event, "generation", None) != ELSEWHERE:
            return ""
        name = getattr(guess.event, "response", None)
        return self._strangers.get(name, "")

    def _check_injection(self, guess: Guess, effect: Effect, turn: Turn | None) -> None:
        if not isinstance(effect, fx.SendTurn) or effect.form is not RequestForm.AS_IS:
            return
        if turn is None or turn.standing is not Standing.INJECTED:
            return
        if turn.anchor in guess.refused and _P.REFUSED_PLAN_ENDS not in self._without:
            text = f"{turn.anchor} is injected again, after the upstream refused it"
            raise ViolationError(_P.REFUSED_PLAN_ENDS, text)

    def _check_tried(self, guess: Guess, effect: Effect) -> None:
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
        self, guess: Guess, earlier: tuple[Effect, ...], one: Observed
    ) -> Iterator[Effect]:
        """The effects of ours that a line can be, the most usual first."""
        after = after_effects(guess, earlier)
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
            yield from answers_of(guess, turn.id, one)

    def _fail(self, guess: Guess, line: int, broken: Broken) -> None:
        order = len(self._failures)
        self._failures.append(
            Failure(
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
_EFFECTS = frozenset(name for name, kind in LINES.items() if kind.says is Says.DONE)
