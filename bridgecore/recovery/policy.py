"""What to do about a loss: a table that fits on one screen.

What belongs here: the situations in which a turn needs a remedy, the remedies, the total table from
(situation, standing) to a remedy, the budgets, and the three named policies. Policies differ in
cells and budgets only; the mechanics (sockets, generations, timers, queues) are rules.py and the
same for everyone.

The table is consulted in one place, ``rules.recover``. An embedder overrides it cell by cell with
``Policy.with_cell``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from bridgecore.recovery.effects import Answer
from bridgecore.recovery.events import Standing
from bridgecore.recovery.timers import NS_PER_SECOND


class Situation(enum.Enum):
    """What a turn is in when the table is asked. The value is the row's name."""

    SEND_SKIPPED = "socket is open but does not know the anchor"
    CONNECT_FAILED = "connect failed"
    UPGRADE_REJECTED = "upgrade rejected (401, 403, 429)"
    LOST_SENDING = "lost while sending"
    LOST_SENT = "lost after sending, before response.created"
    SILENT = "no response.created until the deadline"
    NOT_FOUND = "refused by upstream: not found"
    CONNECTION_LIMIT = "refused by upstream: connection limit"
    REFUSED = "refused by upstream: anything else"
    LOST_CREATED = "lost after response.created, no output yet"
    LOST_OUTPUT = "lost after output"
    OWNER_LOST = "owner unreachable, turn not dispatched"
    OWNER_LOST_DISPATCHED = "owner unreachable, turn dispatched, nothing delivered"
    OWNER_LOST_OUTPUT = "owner failed after the answer began"


class Action(enum.Enum):
    """What is done for the turn."""

    SEND = "send"  # as it is, its anchor included, on the socket at hand
    REHYDRATE = "rehydrate"  # the full input from the transcript, no anchor
    SEND_FULL = "send full"  # the client's own full input, no anchor
    RESEND = "resend"  # reconnect if need be and start over, within the budget
    REFUSE = "refuse"  # end the turn with ``answer``: retriable
    REFUSE_BOUNDED = "refuse, then not-found"  # the same a bounded number of times, then honestly
    SURFACE = "surface"  # relay the upstream's own answer
    FAIL = "fail"  # end the turn with ``answer``: its answer had begun
    REBIND = "rebind"  # own the session here, and start over


@attrs.frozen
class Remedy:
    """A cell. ``answer``: what the client is told, at once or if the action cannot be done."""

    action: Action
    answer: Answer

    def __str__(self) -> str:
        if self.action is Action.SURFACE:
            return "surface"
        return f"{self.action.value} ({self.answer.value})"


@attrs.frozen
class Timeouts:
    """Durations of a session's deadlines, ns."""

    connect: int = 10 * NS_PER_SECOND
    created: int = 60 * NS_PER_SECOND
    idle: int = 300 * NS_PER_SECOND
    turn: int = 3600 * NS_PER_SECOND
    lifetime: int = 3300 * NS_PER_SECOND
    expiry: int = 900 * NS_PER_SECOND


@attrs.frozen
class Budgets:
    """How often."""

    replays: int = 1  # resends of one turn after a loss, over all paths together
    refusals: int = 4  # bounded refusals of one anchor before the honest not-found
    waiting: int = 64  # turns that may wait for one session
    reconnect_uses_replay: bool = False  # a reconnect without send counts as a replay


@attrs.frozen(eq=False)
class Policy:
    """A named, total table from (situation, standing) to a remedy, with its budgets and times."""

    name: str
    summary: str
    cells: Mapping[tuple[Situation, Standing], Remedy]
    budgets: Budgets = Budgets()
    timeouts: Timeouts = Timeouts()

    def __attrs_post_init__(self) -> None:
        missing = [
            f"{situation.name}/{standing.name}"
            for situation in Situation
            for standing in Standing
            if (situation, standing) not in self.cells
        ]
        if missing:
            raise ValueError(f"policy {self.name!r} has no remedy for {', '.join(missing)}")

    def remedy(self, situation: Situation, standing: Standing) -> Remedy:
        """The cell for ``situation`` and ``standing``."""
        return self.cells[situation, standing]

    def with_cell(self, situation: Situation, standing: Standing, remedy: Remedy) -> Policy:
        """The same policy with one cell replaced."""
        return attrs.evolve(self, cells={**self.cells, (situation, standing): remedy})


_UNAVAILABLE = Answer.UPSTREAM_UNAVAILABLE
_OWNER = Answer.OWNER_UNREACHABLE
_INCOMPLETE = Answer.STREAM_INCOMPLETE
_TIMEOUT = Answer.REQUEST_TIMEOUT
_NOT_FOUND = Answer.NOT_FOUND

_Row = tuple[Remedy, Remedy, Remedy, Remedy, Remedy, Remedy]


def _refuse(answer: Answer) -> Remedy:
    return Remedy(Action.REFUSE, answer)


def _bounded(answer: Answer) -> Remedy:
    return Remedy(Action.REFUSE_BOUNDED, answer)


def _all(action: Action, answer: Answer) -> _Row:
    cell = Remedy(action, answer)
    return (cell, cell, cell, cell, cell, cell)


def _anchored(unanchored: Remedy, anchored: Remedy) -> _Row:
    return (unanchored, anchored, anchored, anchored, anchored, anchored)


def _table(rows: Mapping[Situation, _Row]) -> dict[tuple[Situation, Standing], Remedy]:
    return {
        (situation, standing): cell
        for situation, row in rows.items()
        for standing, cell in zip(Standing, row, strict=True)
    }


_SEND = Remedy(Action.SEND, _UNAVAILABLE)
_REHYDRATE = Remedy(Action.REHYDRATE, _UNAVAILABLE)
_FULL = Remedy(Action.SEND_FULL, _UNAVAILABLE)
_SURFACE = Remedy(Action.SURFACE, Answer.UPSTREAM_ERROR)
_LOST = _bounded(_UNAVAILABLE)
_TOO_LATE = _refuse(_TIMEOUT)
_SILENT = _bounded(_TIMEOUT)
_LIE = _refuse(_NOT_FOUND)

# The columns, in the order of Standing: unanchored, held, stored, bound, unknown, injected.
_DEFAULT_ROWS: dict[Situation, _Row] = {
    Situation.SEND_SKIPPED: (_SEND, _REHYDRATE, _SEND, _LOST, _SEND, _FULL),
    Situation.CONNECT_FAILED: _all(Action.REFUSE, _UNAVAILABLE),
    Situation.UPGRADE_REJECTED: _all(Action.SURFACE, Answer.UPSTREAM_ERROR),
    # From SENDING on the upstream may have the turn: a resend could run it twice (invariant 11).
    Situation.LOST_SENDING: _all(Action.REFUSE, _INCOMPLETE),
    Situation.LOST_SENT: _all(Action.REFUSE, _INCOMPLETE),
    # A silent upstream is the wedge that never ends by itself: what the next try would send just
    # so again is refused a bounded number of times only (invariant 5).
    Situation.SILENT: (_TOO_LATE, _TOO_LATE, _SILENT, _SILENT, _SILENT, _TOO_LATE),
    Situation.NOT_FOUND: (_SURFACE, _REHYDRATE, _LOST, _LOST, _SURFACE, _FULL),
    # The upstream refused before generating, so a second send is safe; on the fresh socket the
    # row SEND_SKIPPED decides.
    Situation.CONNECTION_LIMIT: _all(Action.RESEND, _UNAVAILABLE),
    Situation.REFUSED: _all(Action.SURFACE, Answer.UPSTREAM_ERROR),
    Situation.LOST_CREATED: _all(Action.FAIL, _INCOMPLETE),
    Situation.LOST_OUTPUT: _all(Action.FAIL, _INCOMPLETE),
    Situation.OWNER_LOST: _all(Action.REBIND, _OWNER),
    Situation.OWNER_LOST_DISPATCHED: _all(Action.REFUSE, _OWNER),
    Situation.OWNER_LOST_OUTPUT: _all(Action.FAIL, _INCOMPLETE),
}


def _replay_once(answer: Answer, anchored: Remedy) -> _Row:
    return _anchored(Remedy(Action.RESEND, answer), anchored)


# The seed's rows (docs: "Recovery"), fixed points that the safe policy is measured against.
_PR397_ROWS: dict[Situation, _Row] = {
    **_DEFAULT_ROWS,
    Situation.LOST_SENDING: _replay_once(_OWNER, _refuse(_OWNER)),
    Situation.LOST_SENT: _replay_once(_INCOMPLETE, _refuse(_INCOMPLETE)),
    Situation.SILENT: _replay_once(_TIMEOUT, _TOO_LATE),
    Situation.OWNER_LOST_DISPATCHED: _all(Action.REBIND, _OWNER),
}
_FAIL = Remedy(Action.FAIL, _INCOMPLETE)
_V1_12_ROWS: dict[Situation, _Row] = {
    **_PR397_ROWS,
    Situation.SEND_SKIPPED: (_SEND, _LIE, _SEND, _LIE, _SEND, _FULL),
    Situation.CONNECT_FAILED: _anchored(_refuse(_UNAVAILABLE), _LIE),
    Situation.LOST_SENDING: _replay_once(_OWNER, _LIE),
    Situation.LOST_SENT: _replay_once(_INCOMPLETE, _LIE),
    Situation.SILENT: _replay_once(_TIMEOUT, _LIE),
    Situation.NOT_FOUND: _all(Action.SURFACE, Answer.UPSTREAM_ERROR),
    Situation.LOST_CREATED: _anchored(_FAIL, Remedy(Action.FAIL, _NOT_FOUND)),
    Situation.LOST_OUTPUT: _anchored(_FAIL, Remedy(Action.FAIL, _NOT_FOUND)),
}

DEFAULT = Policy(
    "default",
    "The safe one: nothing ambiguous is sent twice, no chain is given up before its time.",
    _table(_DEFAULT_ROWS),
)
PR397 = Policy(
    "pr397",
    "The seed's rules as they were: an unanchored turn is replayed once.",
    _table(_PR397_ROWS),
    Budgets(reconnect_uses_replay=True),
)
V1_12 = Policy(
    "v1_12",
    "The broken one, to demonstrate: losses are answered with previous_response_not_found.",
    _table(_V1_12_ROWS),
    Budgets(reconnect_uses_replay=True),
)
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (DEFAULT, PR397, V1_12)}
