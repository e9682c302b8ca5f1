"""Runs a decision log through the core again, to see whether the same is decided.

What belongs here: feeding the events of a log (``bridgecore.wire.decisions``) to ``step`` at their
times, and comparing the transitions with the recorded ones. The core is deterministic, so two
questions can be answered:

* Does this version of bridgecore decide as the one that wrote the log? Each run is replayed under
  the policy in its header, up to the first divergence: another rule, another cell of the table or
  another effect.
* What would another policy have decided? It is given the same events, with the recorded timeouts
  and queue length, so that only its cells and budgets make a difference. A cell with another remedy
  is no difference if the effects are the same. The other policy has a state of its own for as long
  as it decides the same. After a difference the events no longer follow from its decisions, so it
  continues from the recorded state. The standing of a turn is also the recorded one: whether the
  other policy would have kept a transcript is not considered.

A replay can have the reference model check every session (monitor.py). This is how the simulator
checks the sessions inside a bridge, whose transitions are visible only in the decision log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs

from bridgecore.errors import BridgecoreError
from bridgecore.recovery.effects import Effect, OpenConnection, RetireSession, SendTurn
from bridgecore.recovery.events import Event, TurnSubmitted
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import SessionState
from bridgecore.verify.monitor import Monitor
from bridgecore.verify.properties import Property
from bridgecore.wire.decisions import Decision, cell_names, read_line, show
from bridgecore.wire.jsontext import UnreadableError, read_value


class MalformedLog(BridgecoreError, ValueError):  # noqa: N818 (what it is about, not that it is an error)
    """The file is not a decision log. ``line``: the number of the line, from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line


class LogLines:
    """The lines of a log with their numbers, without blank ones and without those that were cut off
    because the process that wrote them was killed.

    A line is cut off if it is not JSON, and is the last one and has no line break, or the header of
    the next run follows. ``incomplete``: the numbers of those met so far.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.incomplete: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        before: tuple[int, bytes] | None = None
        count = 0
        for number, line in enumerate(self._lines, 1):
            if not line.strip():
                continue
            if before is not None:
                if count and line.startswith(_HEADER) and not _is_json(before[1]):
                    self.incomplete.append(before[0])
                else:
                    yield before
                    count += 1
            before = number, line
        if before is None:
            return
        if count and not before[1].endswith(b"\n") and not _is_json(before[1]):
            self.incomplete.append(before[0])
        else:
            yield before


_HEADER = b'{"log"'


def _is_json(line: bytes) -> bool:
    try:
        line.decode()
        read_value(line)
    except (UnicodeDecodeError, UnreadableError):
        return False
    return True


BEGUN = (
    "the session had begun before its first line here. Put the files of a rotated log together, "
    "the oldest first, so that it begins where the bridge began to write; or leave out the lines "
    "of this session"
)
"""The explanation of a divergence that is ``begun``, for its message."""


@attrs.frozen
class Decided:
    """What was decided. ``cells``: the names of the cells of the table that decided, in order.
    ``error``: if not empty, why the event could not be handled."""

    rule: str
    cells: tuple[str, ...]
    effects: tuple[Effect, ...]
    error: str = ""

    def __str__(self) -> str:
        effects = ", ".join(show(effect) for effect in self.effects)
        because = f", because {', then '.join(self.cells)}" if self.cells else ""
        return self.error or f"{self.rule}: {effects or 'nothing to do'}{because}"

    def does_as(self, other: Decided) -> bool:
        """Whether the same rule had the same effects, whichever remedy led to it."""
        return (self.rule, self.effects) == (other.rule, other.effects)


@attrs.frozen
class Divergence:
    """A line whose decision is not the recorded one. ``run`` counts from 1, ``at`` is in ns.
    ``begun``: it is the first line of its session, which cannot begin like that."""

    line: int
    run: int
    session: int
    at: int
    event: Event
    expected: Decided  # as recorded
    actual: Decided
    begun: bool = False


@attrs.frozen
class Taken:
    """A decision of the log, and the ``transition`` that the core makes for it from the state
    ``before``; None if the core cannot handle the event. ``run`` counts from 1."""

    run: int
    decision: Decision
    before: SessionState
    transition: Transition | None


@attrs.frozen
class Report:
    """The result of a replay. ``divergence``: the first one, where the replay ended.
    ``differences``: where the other policy, if given, would have decided otherwise."""

    runs: int
    sessions: int
    transitions: int
    policies: tuple[str, ...]  # of the runs, in order, each once
    divergence: Divergence | None
    differences: tuple[Divergence, ...]
    incomplete: tuple[int, ...] = ()  # lines that were cut off

    @property
    def same(self) -> bool:
        """Whether nothing was decided otherwise."""
        return self.divergence is None and not self.differences


@attrs.define(eq=False)
class _Session:
    """One session of a run: its recorded state, and its state under the other policy."""

    monitor: Monitor | None
    at: int = 0
    state: SessionState = attrs.Factory(SessionState)
    other: SessionState = attrs.Factory(SessionState)


def replay(lines: Iterable[bytes], other: Policy | None = None) -> Report:
    """Run the log in ``lines`` through the core again. ``other``: a policy to compare with.

    Raises:
        MalformedLog: a line is not one of a decision log; the error has its number.
    """
    replayed = Replay(other)
    read = LogLines(lines)
    for number, line in read:
        if replayed.take(line, number) is not None:
            break
    if replayed.lines == 0:
        raise MalformedLog(1, "the log is empty")
    return attrs.evolve(replayed.report(), incomplete=tuple(read.incomplete))


class Replay:
    """A replay that takes a log line by line, for example while it is written.

    ``other``: a policy to compare with. ``watched``: the reference model checks each session,
    whatever its policy: violations by a policy that is known to be unsafe are reported, too.
    ``without``: properties that the model does not check. ``told`` is called with each decision,
    before it is judged. ``lines``: the number of the latest line.
    """

    def __init__(
        self,
        other: Policy | None = None,
        *,
        watched: bool = False,
        without: frozenset[Property] = frozenset(),
        told: Callable[[Taken], None] | None = None,
    ) -> None:
        self.lines = 0
        self._without = without
        self._told = told
        self._divergence: Divergence | None = None
        self._watched = watched
        self._wanted = other
        self._policy: Policy | None = None  # of this run
        self._other: Policy | None = None  # ``other`` with the timeouts of this run
        self._sessions: dict[int, _Session] = {}  # of this run, those that were not retired
        self._runs = 0
        self._count = 0
        self._transitions = 0
        self._names: dict[str, None] = {}
        self._differences: list[Divergence] = []

    def take(self, line: bytes, number: int | None = None) -> Divergence | None:
        """Replay one more line, which has this number; None: the next one. The result is the
        divergence at the first line that has one: later lines are not replayed, because they may
        follow from it.

        Raises:
            MalformedLog: the line is not one of a decision log, or not possible at this place.
            ViolationError: the decision breaks a property. The rest of its session is replayed
                without checks.
        """
        if self._divergence is not None:
            return None
        self.lines = self.lines + 1 if number is None else number
        try:
            found = read_line(line)
            if isinstance(found, Policy):
                self._begin(found)
            else:
                self._decided(self.lines, found)
        except ValueError as exc:
            raise MalformedLog(self.lines, str(exc)) from None
        return self._divergence

    def report(self) -> Report:
        """The result so far."""
        return Report(
            self._runs,
            self._count,
            self._transitions,
            tuple(self._names),
            self._divergence,
            tuple(self._differences),
        )

    def _begin(self, policy: Policy) -> None:
        self._runs += 1
        self._policy = policy
        self._names[policy.name] = None
        self._sessions.clear()
        if self._wanted is not None:
            budgets = attrs.evolve(self._wanted.budgets, waiting=policy.budgets.waiting)
            self._other = attrs.evolve(self._wanted, timeouts=policy.timeouts, budgets=budgets)

    def _decided(self, line: int, decision: Decision) -> None:
        if self._policy is None:
            raise ValueError(
                "a decision, but no header came before it: the log does not begin with its run. "
                "Put the files of a rotated log together, the oldest first"
            )
        session = self._sessions.get(decision.session)
        first = session is None
        if session is None:
            remote = _leads_to_a_replica(decision)
            monitor = self._monitor(self._policy, remote) if self._watched else None
            state = SessionState(remote=remote)
            session = self._sessions[decision.session] = _Session(monitor, 0, state, state)
            self._count += 1
        if decision.at < session.at:
            raise ValueError(f"at {decision.at}, but session {decision.session} is further already")
        session.at = decision.at
        self._transitions += 1
        expected = Decided(decision.rule, decision.cells, decision.effects)
        actual, transition = _decide(self._policy, session.state, decision)
        if self._told is not None:
            self._told(Taken(self._runs, decision, session.state, transition))
        if transition is None or actual != expected:
            found = self._differing(line, decision, expected, actual)
            self._divergence = attrs.evolve(found, begun=first and _has_begun(decision))
            return
        before, session.state = session.state, transition.state
        if self._other is not None:
            actual, others = _decide(self._other, session.other, decision)
            if others is None or not actual.does_as(expected):
                self._differences.append(self._differing(line, decision, expected, actual))
                session.other = session.state
            else:
                session.other = others.state
        if any(isinstance(effect, RetireSession) for effect in decision.effects):
            del self._sessions[decision.session]  # session numbers are not reused
        if session.monitor is not None:
            session.monitor.watch(before, decision.event, transition, decision.at)

    def _monitor(self, policy: Policy, remote: bool) -> Monitor:
        return Monitor(policy, remote=remote, without=self._without)

    def _differing(
        self, line: int, decision: Decision, expected: Decided, actual: Decided
    ) -> Divergence:
        at, event = decision.at, decision.event
        return Divergence(line, self._runs, decision.session, at, event, expected, actual)


def _has_begun(first: Decision) -> bool:
    """Whether the ``first`` decision of a session in a log shows that there were earlier ones: a
    session begins with a turn, for which it connects."""
    sends = any(isinstance(effect, SendTurn) for effect in first.effects)
    return sends or not isinstance(first.event, TurnSubmitted)


def _leads_to_a_replica(first: Decision) -> bool:
    """Whether another replica owns the session whose ``first`` decision this is. That is known when
    a session begins and never changes, so the log has it only in the effect that connects."""
    return any(isinstance(effect, OpenConnection) and effect.remote for effect in first.effects)


def _decide(
    policy: Policy, state: SessionState, decision: Decision
) -> tuple[Decided, Transition | None]:
    try:
        transition = step(policy, state, decision.event, decision.at)
    except BridgecoreError as exc:  # the recorded session had no error: it is a finding
        return Decided("", (), (), f"{type(exc).__name__}: {exc}"), None
    return Decided(transition.rule, cell_names(transition), transition.effects), transition
