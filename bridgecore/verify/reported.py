"""Bugs of other bridges and clients that were reported in public, and the verdict on each.

What belongs here: one entry for each report, with its address, what the bridge did, and the
property, cell, rule or line that the verifier has to name. Each is a policy or a transition
function, found by exploration (``Bug`` of bugs.py), a replica, found by the exploration of
ownership, or a log, found by ``verify --trace``. The descriptions of what the bridge did are ours,
not the texts of the reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs

from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.ownership.holdings import Holdings, HoldingsEffect, Resolved, Settled
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.policy import DEFAULT, Action, Policy, Remedy, Situation
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import Timer
from bridgecore.verify.bugs import Bug
from bridgecore.verify.environment import BOUNDS, Bounds, due
from bridgecore.verify.explore_ownership import OwnershipCounterexample, explore_ownership
from bridgecore.verify.foreign import check_trace
from bridgecore.verify.ownership_world import OwnershipBounds, OwnershipProperty
from bridgecore.verify.properties import Property
from bridgecore.verify.story import Story, tell
from bridgecore.verify.trace import TraceReport

_P = Property
_Members: TypeAlias = Mapping[str, str | int | bool]
_Row: TypeAlias = tuple[int, str, _Members]  # at, event, its members


@attrs.frozen(eq=False)
class ReportedBug:
    """A bug as a policy or a transition function. ``report``: the address of the report.
    ``blamed``: the cell, as ``Cell`` is printed, or the rule that is to be named."""

    report: str
    bug: Bug
    blamed: str

    def story(self) -> Story | None:
        """A shortest history to the violation; None if it is not found."""
        found = self.bug.find()
        if found is None:
            return None
        return tell(self.bug.policy, self.bug.bounds, found, stepper=self.bug.stepper)


@attrs.frozen(eq=False)
class OwnershipBug:
    """A bug of several replicas, as what one of them does with its claims. ``make``: a replica with
    the bug; ``found_by``: the property that is judged."""

    report: str
    name: str
    users_saw: str
    found_by: OwnershipProperty
    make: type[Holdings]
    bounds: OwnershipBounds

    def find(self) -> OwnershipCounterexample | None:
        """A shortest path to the violation; None if there is none."""
        report = explore_ownership(self.bounds, make=self.make, judged={self.found_by})
        return next(iter(report.counterexamples), None)


@attrs.frozen(eq=False)
class LoggedBug:
    """A bug as the log of the bridge that had it. ``line``: the line that is to be named."""

    report: str
    name: str
    users_saw: str
    found_by: Property
    line: int
    rows: Sequence[_Row]

    @property
    def log(self) -> list[bytes]:
        """The log, as ``verify --trace`` reads it."""
        return [
            json.dumps({"at": at, "event": event, **_session(event), **fields}).encode() + b"\n"
            for at, event, fields in self.rows
        ]

    def check(self) -> TraceReport:
        """Check the log."""
        return check_trace(self.log)


def _session(event: str) -> _Members:
    return {} if event == "log_ended" else {"session": "s1"}


def blamed_in(story: Story) -> str:
    """What is responsible for a story: the last cell with another remedy than in ``default``, or
    the rule that was applied last."""
    cells = [
        str(cell)
        for one in story.seen
        for cell in one.transition.cells
        if DEFAULT.remedy(cell.situation, cell.standing) != cell.remedy
    ]
    return cells[-1] if cells else story.seen[-1].transition.rule


def _cell(situation: Situation, standing: Standing, action: Action, answer: FailureReply) -> Policy:
    return DEFAULT.with_cell(situation, standing, Remedy(action, answer))


def _patient(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """An answer that has begun may pause for ever."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.DeadlineReached) or after.rule != "idle-deadline":
        return after
    waits = due(state, Timer.IDLE, now + policy.timeouts.idle)
    return Transition(waits, (), after.rule)


def _only(standing: Standing) -> Bounds:
    """Bounds for a bug that shows with turns of one standing, on a connection of one's own."""
    small = BOUNDS["small"][0]
    return attrs.evolve(
        small, name=f"only {standing.value}", standings=(standing,), remote=False, max_states=500
    )


_INCOMPLETE, _ERROR = FailureReply.STREAM_INCOMPLETE, FailureReply.UPSTREAM_ERROR
_LB = "https://github.com/Soju06/codex-lb/issues"

REPORTED: Sequence[ReportedBug] = (
    ReportedBug(
        f"{_LB}/1534",
        Bug(
            "a silent anchor that is tried again",
            "The bridge put a stored anchor in place of the history, and the upstream was silent. "
            "Each retry was sent in the same form, and met the same silence for minutes.",
            _P.REFUSED_IS_NOT_REPEATED,
            _cell(
                Situation.SILENT,
                Standing.HELD_STORED,
                Action.REFUSE,
                FailureReply.REQUEST_TIMEOUT,
            ),
            bounds=_only(Standing.HELD_STORED),
        ),
        "silent/held_stored=refuse",
    ),
    ReportedBug(
        f"{_LB}/1529",
        Bug(
            "a not-found with a code that no client knows",
            "The upstream did not know the id. The bridge passed that on with a code of its own, "
            "which no client recognises, and the conversation stopped.",
            _P.ANSWER_TELLS_WHAT_HAPPENED,
            _cell(Situation.NOT_FOUND, Standing.UNKNOWN, Action.REFUSE, _INCOMPLETE),
            bounds=_only(Standing.UNKNOWN),
        ),
        "not_found/unknown=refuse",
    ),
    ReportedBug(
        f"{_LB}/1830",
        Bug(
            "a refusal taken for a broken stream",
            "The upstream refused the turn with an error. The bridge reported a broken stream to "
            "its client, which retried and was refused again, until the session was blocked.",
            _P.ANSWER_TELLS_WHAT_HAPPENED,
            _cell(Situation.REFUSED, Standing.UNANCHORED, Action.REFUSE, _INCOMPLETE),
            bounds=_only(Standing.UNANCHORED),
        ),
        "refused/unanchored=refuse",
    ),
    ReportedBug(
        "https://github.com/earendil-works/pi/issues/8031",
        Bug(
            "an answer that begins again after half of it",
            "The connection broke in mid-answer. The whole turn was sent again: the half that the "
            "user had seen stayed, and the answer followed once more from its beginning.",
            _P.RECOVERY_DESCENDS,
            _cell(Situation.LOST_OUTPUT, Standing.UNANCHORED, Action.RESEND, _INCOMPLETE),
            bounds=_only(Standing.UNANCHORED),
        ),
        "lost_output/unanchored=resend",
    ),
    ReportedBug(
        f"{_LB}/395",
        Bug(
            "an anchor that the upstream does not store",
            "Every turn was sent with store=false, and continued by its id all the same: after a "
            "reconnect the upstream had never heard of it.",
            _P.ANCHOR_IS_KNOWN,
            _cell(
                Situation.SEND_SKIPPED,
                Standing.BOUND,
                Action.SEND,
                FailureReply.UPSTREAM_UNAVAILABLE,
            ),
            bounds=_only(Standing.BOUND),
        ),
        "send_skipped/bound=send",
    ),
    ReportedBug(
        "https://github.com/bolna-ai/bolna/pull/979",
        Bug(
            "an invalid request that is sent once more in full",
            "The upstream refused a turn for its content. It was sent again without the anchor, "
            "larger than before, and refused again: a pause in the middle of a call.",
            _P.RECOVERY_DESCENDS,
            _cell(Situation.REFUSED, Standing.HELD, Action.REHYDRATE, _ERROR),
            bounds=_only(Standing.HELD),
        ),
        "refused/held=rehydrate",
    ),
    ReportedBug(
        f"{_LB}/735",
        Bug(
            "keepalives in place of an answer",
            "After response.created the upstream fell silent. The bridge sent keepalives to its "
            "client without end, and never an end of the turn.",
            _P.SILENCE_DROPS_THE_SOCKET,
            stepper=_patient,
            bounds=_only(Standing.UNANCHORED),
        ),
        "idle-deadline",
    ),
)


class _SoftFirst(Holdings):
    """Keeps a turn that names the response of a live owner's conversation, because a softer key of
    the turn leads here."""

    def answered(self, query: int, answer: st.Answer, now: int) -> list[HoldingsEffect]:
        return [
            Resolved(effect.turn, st.NotStored())
            if isinstance(effect, Resolved) and isinstance(effect.answer, st.OwnedElsewhere)
            else effect
            for effect in super().answered(query, answer, now)
        ]


class _OpenWhileDraining(Holdings):
    """Is no owner to the store from the beginning of its drain, and goes on under its lease."""

    @staticmethod
    def lease_step(
        lease: ls.Lease, event: ls.LeaseEvent, times: ls.LeaseTimes, now: int
    ) -> ls.LeaseTransition:
        done = ls.step(lease, event, times, now)
        if isinstance(event, ls.LeaveRequested) and lease.valid(now):
            return attrs.evolve(done, state=lease)
        return done


class _ShownFirst(Holdings):
    """Takes a response for known to all replicas while it is being committed."""

    def commit(
        self, turn: int, conversation: bytes, responses: tuple[st.StoredResponse, ...], now: int
    ) -> list[HoldingsEffect]:
        asked = super().commit(turn, conversation, responses, now)
        return [Settled(turn, durable=True), *(e for e in asked if not isinstance(e, Settled))]


_PULLS = "https://github.com/Soju06/codex-lb/pull"
_SOUND = OwnershipBounds("two replicas, no fault", 1, 2, 0, frozenset())

OWNED: Sequence[OwnershipBug] = (
    OwnershipBug(
        f"{_LB}/2035",
        "a soft key that beat hard evidence",
        "A turn named a response of one replica and came to another, where its cache key counted "
        "more than the id: the conversation was to begin there again, its live owner was not "
        "asked, and the turn failed.",
        OwnershipProperty.LIVENESS,
        _SoftFirst,
        _SOUND,
    ),
    OwnershipBug(
        f"{_PULLS}/1722",
        "a live lease that was stolen from a draining owner",
        "A replica that was about to stop marked its conversations as draining and finished the "
        "turn that ran. Another replica took the mark for a release, although the lease was valid, "
        "and claimed the conversation of that turn.",
        OwnershipProperty.ONE_LIVE_OWNER,
        _OpenWhileDraining,
        OwnershipBounds("a replica drains", 1, 2, 1, frozenset({"drain"})),
    ),
    OwnershipBug(
        f"{_PULLS}/1900",
        "an id that was shown and that no other replica knows",
        "The id of a response was published in the memory of one replica and shown to the client, "
        "although the store had not taken it: every other replica called it unknown.",
        OwnershipProperty.DURABLE_IS_STORED,
        _ShownFirst,
        _SOUND,
    ),
)

_T1: _Members = {"turn": "t1"}
_T2: _Members = {"turn": "t2"}
_SENT: tuple[_Row, ...] = (
    (0, "turn_submitted", _T1),
    (1, "connect", {}),
    (200, "upstream_opened", {}),
    (201, "sent", _T1),
)

LOGGED: Sequence[LoggedBug] = (
    LoggedBug(
        "https://github.com/anomalyco/opencode/issues/42572",
        "a message too big that is sent five times",
        "The upstream closed with 1009, message too big. The same message was sent again on new "
        "connections, with growing pauses; for a minute nothing seemed to happen.",
        _P.RECOVERY_DESCENDS,
        6,
        (
            *_SENT,
            (900, "upstream_lost", {"code": 1009}),
            (2900, "connect", {}),
            (3100, "upstream_opened", {}),
            (3101, "sent", _T1),
            (3800, "upstream_lost", {"code": 1009}),
        ),
    ),
    LoggedBug(
        f"{_LB}/857",
        "a session that stays busy after a loss",
        "A connection closed in mid-answer and the turn failed, but it still counted as running. "
        "The turns behind it waited, until the bridge answered that it is overloaded.",
        _P.NOTHING_IS_STRANDED,
        9,
        (
            *_SENT,
            (700, "response_created", {"response": "resp_1"}),
            (900, "output", {}),
            (5000, "upstream_lost", {"code": 1006}),
            (5001, "answered", {**_T1, "status": 200, "code": "stream_incomplete"}),
            (6000, "turn_submitted", _T2),
            (36000, "answered", {**_T2, "status": 429, "code": "proxy_overloaded"}),
        ),
    ),
    LoggedBug(
        "https://github.com/duolahypercho/codex-router/issues/814",
        "a whole answer that is called broken",
        "The upstream gave response.created and response.completed different ids. The bridge did "
        "not take the second for the end of the first, and told the client that the stream broke.",
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        8,
        (
            *_SENT,
            (700, "response_created", {"response": "resp_1"}),
            (900, "output", {}),
            (2000, "response_ended", {"response": "resp_2"}),
            (2001, "answered", {**_T1, "status": 200, "code": "stream_incomplete"}),
            (60000, "log_ended", {}),
        ),
    ),
)
