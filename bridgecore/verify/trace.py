"""Checks a log from production step by step, and finds its first wrong line.

What belongs here: the result of a check, and the check of a decision log (``wire/decisions.py``).
There each decision must be the one that the rules make under the policy in the header of its run,
and the reference model checks every session, so that a policy whose cells break a property is found
at the first line that does. Which rules and cells the log has met is counted. A log of another
bridge is checked by foreign.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import attrs

from bridgecore.recovery.effects import RetireSession
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import Situation
from bridgecore.recovery.rules import RULES, Handling, Transition
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.replay import BEGUN, Divergence, LogLines, MalformedLog, Replay, Taken
from bridgecore.verify.scenario import command_of, describe
from bridgecore.verify.story import Seen

CELLS = len(Situation) * len(Standing)
"""The number of cells of a policy's table."""
RULE_IDS = frozenset(rule.id for rule in RULES.values() if rule.handling is not Handling.ILLEGAL)
"""The rules of the table that an event can meet."""

LATE = "the log does not begin with this session"
_SHOWN = 60  # transitions of the session before the wrong line that its diagram shows


@attrs.frozen
class Wrong:
    """The first wrong line of a log.

    ``prop``: the property that does not hold; None: the decision is not one that the rules make.
    ``text``: what is wrong. ``blamed``: the cells of the table that decided, else the rule; empty
    for another bridge. ``seen``: the history of the session, up to and with this line. ``other``:
    the short name if there is no property.
    """

    line: int
    session: str
    prop: CostedProperty | None
    text: str
    blamed: tuple[str, ...]
    seen: tuple[Seen, ...]
    other: str = "not the decision of the rules"

    @property
    def title(self) -> str:
        """A short name of what is wrong."""
        return self.other if self.prop is None else self.prop.name


@attrs.frozen
class TraceReport:
    """The result of a check. ``steps``: events that were checked. ``rules``, ``cells``: how often
    each was met, by name; for another bridge those that ``default`` would meet there. ``losses``,
    ``deadlines``: how many the log of another bridge lacks at least, if it does nothing wrong.
    ``late``: how many events that bridge has noticed late then, and ``latest``: how late at most
    (ns). ``to_come``: in how many sessions a reaction is still to come at the end.
    ``incomplete``: lines that were cut off. ``states``: how many states of the model a log that is
    silent about something was found to allow, at most at a time and in total."""

    lines: int
    sessions: int
    steps: int
    wrong: Wrong | None
    policies: tuple[str, ...] = ()
    rules: Counter[str] = attrs.Factory(Counter)
    cells: Counter[str] = attrs.Factory(Counter)
    losses: int = 0
    deadlines: int = 0
    late: int = 0
    latest: int = 0
    to_come: int = 0
    incomplete: tuple[int, ...] = ()
    states: tuple[int, int] = (0, 0)

    def as_data(self) -> dict[str, Any]:
        """The result as plain data, for JSON. Times are in seconds."""
        wrong = None
        if self.wrong is not None:
            prop = self.wrong.prop
            wrong = {
                "line": self.wrong.line,
                "session": self.wrong.session,
                "title": self.wrong.title,
                "property": None if prop is None else prop.name,
                "requires": None if prop is None else prop.value,
                "text": self.wrong.text,
                "blamed": [*self.wrong.blamed],
                "history": [
                    {
                        "at": one.at / NS_PER_SECOND,
                        "event": command_of(one.event) + one.note,
                        "effects": [describe(effect) for effect in one.transition.effects],
                    }
                    for one in self.wrong.seen
                ],
            }
        return {
            "accepted": self.wrong is None,
            "lines": self.lines,
            "sessions": self.sessions,
            "events": self.steps,
            "policies": [*self.policies],
            "rules": dict(self.rules.most_common()),
            "cells": dict(self.cells.most_common()),
            "not_logged": {"losses": self.losses, "deadlines": self.deadlines},
            "late": {
                "reactions": self.late,
                "seconds": self.latest / NS_PER_SECOND,
                "to_come": self.to_come,
            },
            "incomplete": [*self.incomplete],
            "wrong": wrong,
        }


def check_decisions(
    lines: Iterable[bytes], without: frozenset[Property] = frozenset()
) -> TraceReport:
    """Check the decision log in ``lines`` up to its first wrong line. ``without``: properties that
    its policy is known to break.

    Raises:
        MalformedLog: a line is not one of a decision log; the error has its number.
    """
    histories = _Histories()
    replayed = Replay(watched=True, without=without, told=histories.add)
    wrong: Wrong | None = None
    read = LogLines(lines)
    for number, line in read:
        try:
            divergence = replayed.take(line, number)
        except ViolationError as violation:
            wrong = histories.violated(replayed.lines, violation)
        else:
            wrong = None if divergence is None else histories.diverged(divergence)
        if wrong is not None:
            break
    if replayed.lines == 0:
        raise MalformedLog(1, "the log is empty")
    report = replayed.report()
    return TraceReport(
        replayed.lines,
        report.sessions,
        report.transitions,
        wrong,
        report.policies,
        histories.rules,
        histories.cells,
        incomplete=tuple(read.incomplete),
    )


class _Histories:
    """The latest transitions of each session that has not ended, and which rules and cells there
    were."""

    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self.cells: Counter[str] = Counter()
        self._run = 0
        self._latest: Taken | None = None
        self._seen: dict[int, deque[Seen]] = {}

    def add(self, taken: Taken) -> None:
        """Take the next decision of the log."""
        self._forget()
        if taken.run != self._run:
            self._run = taken.run
            self._seen.clear()
        decision, after = taken.decision, taken.transition
        self._latest = taken
        shown = after or Transition(taken.before, decision.effects, decision.rule)
        seen = Seen(decision.at, decision.event, taken.before.phase, shown)
        self._seen.setdefault(decision.session, deque(maxlen=_SHOWN)).append(seen)
        self.rules[decision.rule] += 1
        self.cells.update(name.partition("=")[0] for name in decision.cells)

    def _forget(self) -> None:
        """Forget the session of the latest decision if it has ended there."""
        if self._latest is None:
            return
        decision = self._latest.decision
        if any(isinstance(effect, RetireSession) for effect in decision.effects):
            self._seen.pop(decision.session, None)

    def _history(self) -> tuple[int, tuple[Seen, ...]]:
        assert self._latest is not None
        session = self._latest.decision.session
        return session, tuple(self._seen[session])

    def violated(self, line: int, violation: ViolationError) -> Wrong:
        """The latest decision broke a property."""
        session, seen = self._history()
        blamed = blamed_of(seen[-1].transition)
        return Wrong(line, str(session), violation.prop, violation.text, blamed, seen)

    def diverged(self, found: Divergence) -> Wrong:
        """The latest decision is not the one that the rules make. The history ends with the
        recorded one."""
        session, seen = self._history()
        last = seen[-1]
        recorded = Transition(last.transition.state, found.expected.effects, found.expected.rule)
        seen = (*seen[:-1], attrs.evolve(last, transition=recorded))
        if found.begun:
            return Wrong(found.line, str(session), None, BEGUN, (), seen, LATE)
        text = f"recorded {found.expected}; the rules decide {found.actual}"
        blamed = found.actual.cells or tuple(filter(None, [found.actual.rule]))
        return Wrong(found.line, str(session), None, text, blamed, seen)


def blamed_of(transition: Transition) -> tuple[str, ...]:
    """What decided: the cells of the table, with their remedies, or the rule if it read none."""
    return tuple(map(str, transition.cells)) or (transition.rule,)
