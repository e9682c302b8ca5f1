"""Checks the log of another bridge: is there a course of events in which it does nothing wrong?

What belongs here: the check of a whole log: its conversations, each with a search of its own
(foreign_search.py, which explains it), turns that do not end, and the report. The lines of such a
log are read by observed.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import attrs

from bridgecore.recovery.policy import Timeouts
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.explore_bridge import BridgeProperty
from bridgecore.verify.foreign_coverage import Course, Coverage
from bridgecore.verify.foreign_search import UNLOGGED, Search, Silence
from bridgecore.verify.model import Terms
from bridgecore.verify.observed import LINES, Header, Observed, Says, read_log
from bridgecore.verify.observed_ids import Ids
from bridgecore.verify.properties import Property
from bridgecore.verify.replay import LogLines
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

_FOR_EVER = 10**18  # ns; a bridge that may react as late as it likes


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
    silence = Silence(*[name not in logged for name in Silence._fields])
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


def _terms(header: Header, without: frozenset[Property]) -> Terms:
    """What the model knows of the bridge. A deadline that is not stated may pass at any time."""
    times = {timer.value: header.timeouts.get(timer, 1) for timer in UNLOGGED}
    return Terms(
        Timeouts(**times, expiry=1),
        header.refusals,
        header.waiting,
        max(1, header.replays),  # with 0 any is NO_AMBIGUOUS_RESEND, see ``strict``
        strict=header.replays == 0,
        holds=header.replays > 0,
        without=without,
    )


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
        silence: Silence,
        terms: Terms,
        ids: Ids,
        without: frozenset[CostedProperty],
    ) -> None:
        self._make = partial(Search, name, silence, terms, ids, without)
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
