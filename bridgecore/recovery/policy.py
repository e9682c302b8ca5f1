"""What to do about a loss: a table that fits on one screen.

What belongs here: the situations in which a turn needs a remedy, the remedies, the total table from
(situation, standing) to a remedy, the budgets, and the three named policies. Policies differ in
cells and budgets only; the mechanics are rules.py, the same for everyone. The table is read by
``TransitionBuilder`` alone; an embedder overrides it cell by cell with ``Policy.with_cell``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import attrs

from bridgecore.errors import ConfigError
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.timers import NS_PER_SECOND


# fmt: off
class Situation(enum.Enum):
    """What a turn is in when the table is asked. The value is the row's name."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    SEND_SKIPPED = "socket is open but does not know the anchor"
    CONNECT_FAILED = "connect failed"
    UPGRADE_REJECTED = "upgrade rejected for a reason that concerns the client"
    LOST_SENDING = "lost while sending"
    LOST_SENT = "lost after sending, before response.created"
    SILENT = "no response.created until the deadline"
    NOT_FOUND = "refused by upstream: not found"
    CONNECTION_LIMIT = "refused by upstream: connection limit"
    TOO_LARGE = "refused by upstream: too large"
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
    SEND_OR_REHYDRATE = "send, then rehydrate"  # as it is; if that failed before, in full
    SEND_FULL = "send full"  # the client's own full input, no anchor
    RESEND = "resend"  # reconnect if need be and start over, within the budget
    REFUSE = "refuse"  # end the turn with ``answer``: retriable
    REFUSE_BOUNDED = "refuse, then not-found"  # the same a bounded number of times, then honestly
    REFUSE_THEN_REHYDRATE = "refuse, next try rehydrates"  # retriable; then without the anchor
    SURFACE = "surface"  # relay the upstream's own answer
    FAIL = "fail"  # end the turn with ``answer``: its answer had begun
    REBIND = "rebind"  # own the session here, and start over

@attrs.frozen
class Remedy:
    """A cell. ``answer``: what the client is told, at once or if the action cannot be done."""
    action: Action
    answer: FailureReply

    def __str__(self) -> str:
        if self.action is Action.SURFACE:
            return "surface"
        return f"{self.action.value} ({self.answer.value})"

@attrs.frozen
class Cell:
    """A cell of a policy's table, as it was read for the turn with id ``turn``.

    ``str`` is its name in logs, row, column and action: ``lost_sent/held=refuse``. ``words`` says
    the same as ``bridgecore rules`` does, with what the client is told.
    """
    turn: int
    situation: Situation
    standing: Standing
    remedy: Remedy

    def __str__(self) -> str:
        names = self.situation.name, self.standing.name, self.remedy.action.name
        return "{}/{}={}".format(*map(str.lower, names))

    @property
    def words(self) -> str:
        return f"{self.situation.value} / {self.standing.value} = {self.remedy}"

def _at_least(low: int) -> Any:
    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or value < low:
            raise ConfigError(f"{field.name}={value!r:.100} is no whole number of at least {low}")
    return check

_duration = partial(attrs.field, validator=_at_least(1))
_count = partial(attrs.field, validator=_at_least(0))

@attrs.frozen
class Timeouts:
    """Durations of a session's deadlines, ns; each more than 0, or ``ConfigError``."""
    connect: int = _duration(default=10 * NS_PER_SECOND)
    created: int = _duration(default=60 * NS_PER_SECOND)
    idle: int = _duration(default=300 * NS_PER_SECOND)
    turn: int = _duration(default=3600 * NS_PER_SECOND)
    lifetime: int = _duration(default=3300 * NS_PER_SECOND)
    expiry: int = _duration(default=900 * NS_PER_SECOND)

@attrs.frozen
class Budgets:
    """How often; none below 0, or ``ConfigError``."""
    replays: int = _count(default=1)  # resends of a turn after a loss, over all paths together
    refusals: int = _count(default=3)  # of one anchor, after its loss, before the honest not-found
    waiting: int = _count(default=64)  # turns that may wait for one session
    reconnect_uses_replay: bool = False  # a reconnect without send counts as a replay
    warm: bool = False  # what a socket knew is brought to its successor before it is asked for
    transcripts: bool = True  # False: a bridge of this policy holds nothing, whatever is configured
# fmt: on


@attrs.frozen(eq=False)
class Policy:
    """A named, total table from (situation, standing) to a remedy, with its budgets and times.

    Raises:
        ConfigError: a cell is missing or holds no ``Remedy``; budgets or timeouts are of another
            type.
    """

    name: str
    summary: str
    cells: Mapping[tuple[Situation, Standing], Remedy]
    budgets: Budgets = Budgets()
    timeouts: Timeouts = Timeouts()

    def __attrs_post_init__(self) -> None:
        wanted = {(situation, standing) for situation in Situation for standing in Standing}
        if missing := sorted(f"{row.name}/{cell.name}" for row, cell in wanted - set(self.cells)):
            raise ConfigError(f"policy {self.name!r} has no remedy for {', '.join(missing)}")
        for (row, column), remedy in self.cells.items():
            self._require(f"{row.name}/{column.name}", remedy, Remedy)
        self._require("budgets", self.budgets, Budgets)
        self._require("timeouts", self.timeouts, Timeouts)

    def _require(self, what: str, value: object, kind: type) -> None:
        if not isinstance(value, kind):
            must = f"{what} must be a {kind.__name__}, not {value!r:.100}"
            raise ConfigError(f"policy {self.name!r}: {must}")

    def __repr__(self) -> str:
        """One line of at most 100 columns: a table of cells is for ``bridgecore rules``."""
        cells = sum(self.cells[key] != DEFAULT.cells[key] for key in DEFAULT.cells)
        budgets = _differing(self.budgets, DEFAULT.budgets)
        times = _differing(self.timeouts, DEFAULT.timeouts)
        name = self.name if len(self.name) <= 32 else self.name[:29] + "..."
        differs = f"{cells} cells, {budgets} budgets, {times} timeouts"
        return f"<Policy {name}: differs from default in {differs}>"

    def remedy(self, situation: Situation, standing: Standing) -> Remedy:
        """The cell for ``situation`` and ``standing``."""
        return self.cells[situation, standing]

    def with_cell(self, situation: Situation, standing: Standing, remedy: Remedy) -> Policy:
        """The same policy with one cell replaced."""
        return attrs.evolve(self, cells={**self.cells, (situation, standing): remedy})


def _differing(one: Budgets | Timeouts, other: Budgets | Timeouts) -> int:
    fields = (field.name for field in attrs.fields(type(one)))
    return sum(getattr(one, name) != getattr(other, name) for name in fields)


_Row: TypeAlias = tuple[Remedy, ...]  # a remedy for each Standing, in their order


def _row(unanchored: Remedy, anchored: Remedy | None = None) -> _Row:
    """A row with the same remedy in every column, or in every column but the first."""
    return (unanchored, *[anchored or unanchored] * (len(Standing) - 1))


def _table(rows: Mapping[Situation, _Row]) -> dict[tuple[Situation, Standing], Remedy]:
    return {
        (situation, standing): remedy
        for situation, row in rows.items()
        for standing, remedy in zip(Standing, row, strict=True)
    }


_refuse = partial(Remedy, Action.REFUSE)
_bounded = partial(Remedy, Action.REFUSE_BOUNDED)
_resend = partial(Remedy, Action.RESEND)

_UNAVAILABLE, _OWNER = FailureReply.UPSTREAM_UNAVAILABLE, FailureReply.OWNER_UNREACHABLE
_INCOMPLETE, _TIMEOUT = FailureReply.STREAM_INCOMPLETE, FailureReply.REQUEST_TIMEOUT
_SEND = Remedy(Action.SEND, _UNAVAILABLE)
_REHYDRATE = Remedy(Action.REHYDRATE, _UNAVAILABLE)
# What was put in place of the client's history is the bridge's own doing: whatever is wrong with
# it, the client's input goes as it came, and only what is said about that reaches the client.
_FULL = Remedy(Action.SEND_FULL, _UNAVAILABLE)
_SURFACE = Remedy(Action.SURFACE, FailureReply.UPSTREAM_ERROR)
_FAIL = Remedy(Action.FAIL, _INCOMPLETE)
_LOST = _bounded(_UNAVAILABLE)
_TOO_LATE, _SILENT = _refuse(_TIMEOUT), _bounded(_TIMEOUT)
# The id that the upstream stores costs a few bytes, the whole chain many thousand. So the id goes
# first; where the upstream does not know it or falls silent over it, the chain is at hand.
_STORED_FIRST = Remedy(Action.SEND_OR_REHYDRATE, _UNAVAILABLE)
_SILENT_STORED = Remedy(Action.REFUSE_THEN_REHYDRATE, _TIMEOUT)
_LIE, _LATE_LIE = _refuse(FailureReply.NOT_FOUND), Remedy(Action.FAIL, FailureReply.NOT_FOUND)

# The columns, in the order of Standing: unanchored, held, held and stored, stored, bound, unknown,
# injected.
_DEFAULT_ROWS: dict[Situation, _Row] = {
    Situation.SEND_SKIPPED: (_SEND, _REHYDRATE, _STORED_FIRST, _SEND, _LOST, _SEND, _FULL),
    Situation.CONNECT_FAILED: _row(_refuse(_UNAVAILABLE)),
    Situation.UPGRADE_REJECTED: _row(_SURFACE),
    # From SENDING on the upstream may have the turn: a resend could run it twice (invariant 11).
    Situation.LOST_SENDING: _row(_refuse(_INCOMPLETE)),
    Situation.LOST_SENT: _row(_refuse(_INCOMPLETE)),
    # A silent upstream is the wedge that never ends by itself: what the next try would send just
    # so again is refused a bounded number of times only (invariant 5).
    Situation.SILENT: (_TOO_LATE, _TOO_LATE, _SILENT_STORED, _SILENT, _SILENT, _SILENT, _TOO_LATE),
    Situation.NOT_FOUND: (_SURFACE, _REHYDRATE, _REHYDRATE, _LOST, _LOST, _SURFACE, _FULL),
    # The upstream refused before generating, so a second send is safe; on the fresh socket the
    # row SEND_SKIPPED decides.
    Situation.CONNECTION_LIMIT: _row(_resend(_UNAVAILABLE)),
    # The frame was not processed and never will be; any other form of the turn is larger.
    Situation.TOO_LARGE: _row(_SURFACE),
    Situation.REFUSED: (*_row(_SURFACE)[:-1], _FULL),
    Situation.LOST_CREATED: _row(_FAIL),
    Situation.LOST_OUTPUT: _row(_FAIL),
    Situation.OWNER_LOST: _row(Remedy(Action.REBIND, _OWNER)),
    Situation.OWNER_LOST_DISPATCHED: _row(_refuse(_OWNER)),
    Situation.OWNER_LOST_OUTPUT: _row(_FAIL),
}
# The seed's rows (docs: "Recovery"), fixed points that the safe policy is measured against.
_PR397_ROWS: dict[Situation, _Row] = {
    **_DEFAULT_ROWS,
    Situation.LOST_SENDING: _row(_resend(_OWNER), _refuse(_OWNER)),
    Situation.LOST_SENT: _row(_resend(_INCOMPLETE), _refuse(_INCOMPLETE)),
    Situation.SILENT: (_resend(_TIMEOUT), _TOO_LATE, _SILENT_STORED, *[_TOO_LATE] * 4),
    Situation.OWNER_LOST_DISPATCHED: _row(Remedy(Action.REBIND, _OWNER)),
}
_V1_12_ROWS: dict[Situation, _Row] = {
    **_PR397_ROWS,
    Situation.SEND_SKIPPED: (_SEND, _LIE, _SEND, _SEND, _LIE, _SEND, _FULL),
    Situation.CONNECT_FAILED: _row(_refuse(_UNAVAILABLE), _LIE),
    Situation.LOST_SENDING: _row(_resend(_OWNER), _LIE),
    Situation.LOST_SENT: _row(_resend(_INCOMPLETE), _LIE),
    Situation.SILENT: _row(_resend(_TIMEOUT), _LIE),
    Situation.NOT_FOUND: _row(_SURFACE),
    Situation.LOST_CREATED: _row(_FAIL, _LATE_LIE),
    Situation.LOST_OUTPUT: _row(_FAIL, _LATE_LIE),
}

_SAFE = "The safe one: nothing ambiguous is sent twice, no chain is given up before its time."
_SEED = "The seed's rules as they were: an unanchored turn is replayed once."
_BROKEN = "The broken one, to demonstrate: losses are answered with previous_response_not_found."
_OLD_BUDGETS = Budgets(reconnect_uses_replay=True, transcripts=False)
DEFAULT = Policy("default", _SAFE, _table(_DEFAULT_ROWS))
"""The safe policy: no ambiguous turn is sent again. See the page "Recovery"."""
PR397 = Policy("pr397", _SEED, _table(_PR397_ROWS), _OLD_BUDGETS)
"""Sends a turn without an anchor again after an ambiguous loss, once. For comparison."""
V1_12 = Policy("v1_12", _BROKEN, _table(_V1_12_ROWS), _OLD_BUDGETS)
"""Answers lost sockets with previous_response_not_found. Broken; to demonstrate."""
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (DEFAULT, PR397, V1_12)}
"""The policies by name, as the setting ``policy`` has them."""


# The rows of an ambiguous loss: the upstream may have run the turn, and its client has seen nothing
# of the answer, so that a second send could go unnoticed, and could also do everything twice.
_AMBIGUOUS = (
    Situation.LOST_SENDING,
    Situation.LOST_SENT,
    Situation.SILENT,
    Situation.LOST_CREATED,
)


_COUNTING = (Action.REFUSE_BOUNDED, Action.REFUSE_THEN_REHYDRATE)


def replaying(policy: Policy) -> Policy:
    """``policy`` with an ambiguous turn sent again, within ``Budgets.replays``, not refused.

    For those to whom a turn that runs twice does no harm. When the budget is spent, the answer of
    the replaced cell applies. Two kinds of cells stay as they are: those of a turn that depends on
    the memory of the lost socket (``Standing.BOUND``), because no other socket can continue it, and
    those that count the refusal, because the same send would be lost the same way.
    """
    for situation in _AMBIGUOUS:
        for standing in Standing:
            remedy = policy.remedy(situation, standing)
            if standing is not Standing.BOUND and remedy.action not in _COUNTING:
                again = Remedy(Action.RESEND, remedy.answer)
                policy = policy.with_cell(situation, standing, again)
    return policy
