"""Policies: tables that say what to do when a turn meets a loss or a refusal.

A policy maps every pair of a ``Situation`` (what happened) and a ``Standing`` (what the bridge has
for the turn) to a ``Remedy`` (what to do, and the error that the client gets if that ends the
turn). To find or change what the bridge does about a loss, look up its cell: there is no other
place. The mechanics of connections, timers and queues are rules.py, and the same for every policy.

What belongs here: situations, actions, remedies, budgets, timeouts, and the three named policies.
They differ in cells and budgets only. ``TransitionBuilder`` alone reads the table; an embedder
overrides it cell by cell with ``Policy.with_cell``.
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
from bridgecore.recovery.meant import Meant
from bridgecore.recovery.timers import NS_PER_SECOND


# fmt: off
class Situation(enum.Enum):
    """What happened to a turn: the rows of a policy. The value is the row's name in print.

    Sources: RFC 6455 for connections; for refusals, the errors of the Responses API (failure.py).
    """
    __hash__ = object.__hash__  # by identity: looked up for every event
    SEND_SKIPPED = "socket is open but does not know the anchor"
    CONNECT_FAILED = "connect failed"
    UPGRADE_REJECTED = "upgrade rejected for a reason that concerns the client"
    NO_WEBSOCKET = "upgrade refused: no WebSocket is spoken there"
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

class Action(Meant):
    """What to do for a turn; with a failure reply (``answer``) it is a ``Remedy``. ``meaning`` says
    it in words, for ``bridgecore rules`` and the documentation."""
    SEND = "send", "send the turn as it is, its anchor included, on the open connection"
    REHYDRATE = "rehydrate", "send the full input from the transcript, without the anchor"
    SEND_OR_REHYDRATE = (
        "send, then rehydrate",
        "send the turn as it is, because the upstream stores the response and an id costs a few "
        "bytes; if that anchor was not found or met silence before, send the full input",
    )
    SEND_FULL = "send full", "send the client's own full input, without the injected anchor"
    RESEND = "resend", "connect again if necessary and start over, within the budget of replays"
    REFUSE = "refuse", "end the turn with a retriable status; the client retries"
    REFUSE_BOUNDED = (
        "refuse, then not-found",
        "end the turn with a retriable status; after the bounded number of refusals for one "
        "anchor, with `previous_response_not_found`",
    )
    REFUSE_THEN_REHYDRATE = (
        "refuse, next try rehydrates",
        "end the turn with a retriable status, and send the client's retry in full: the stored id "
        "is not tried again",
    )
    SURFACE = "surface", "relay the upstream's own error"
    FAIL = "fail", "end the turn with `response.failed`, because its answer had begun"
    FALL_BACK = (
        "fall back",
        "start over on a connection that speaks HTTP: where the upstream takes no WebSocket, or no "
        "message of that size on one; only with the setting `fallback`",
    )
    REBIND = (
        "rebind", "take the session over from another replica, if that has it, and start over"
    )

def name_of(part: Situation | Standing | Action) -> str:
    """The name of a row, a column or an action in log records and TOML files: ``lost_sent``."""
    return part.name.lower()

def cell_name(situation: Situation, standing: Standing) -> str:
    """The name of a cell in log records: ``lost_sent/held``."""
    return f"{name_of(situation)}/{name_of(standing)}"

# For which standings a bridge can do something: only a held context can be rehydrated, and the
# client's full input can be sent only if the client sent it.
_HELD = (Standing.HELD, Standing.HELD_STORED)
NEEDS: Mapping[Action, tuple[Standing, ...]] = {
    Action.REHYDRATE: _HELD,
    Action.SEND_OR_REHYDRATE: _HELD,
    Action.REFUSE_THEN_REHYDRATE: _HELD,
    Action.SEND_FULL: (Standing.INJECTED,),
}

def can_carry_out(action: Action, standing: Standing) -> bool:
    """Whether a bridge can do ``action`` for a turn with ``standing``. A ``Session`` by itself
    takes any table; what it then asks for may be impossible."""
    return standing in NEEDS.get(action, Standing)

@attrs.frozen
class Remedy:
    """The content of a cell: what to do for a turn, and how to end it if that fails.

    ``answer``: the failure reply if the action ends the turn, at once or because it cannot be
    carried out (a spent budget, the same form refused before).
    """
    action: Action
    answer: FailureReply

    def __str__(self) -> str:
        if self.action is Action.SURFACE:
            return "surface"
        return f"{self.action.value} ({self.answer.value})"

@attrs.frozen
class Cell:
    """One look-up in a policy's table: the cell, its remedy, and the id of the turn.

    ``str`` gives row, column and action for logs: ``lost_sent/held=refuse``. ``words`` gives the
    same in the words of ``bridgecore rules``, with the failure reply.
    """
    turn: int
    situation: Situation
    standing: Standing
    remedy: Remedy

    def __str__(self) -> str:
        return f"{cell_name(self.situation, self.standing)}={name_of(self.remedy.action)}"

    @property
    def words(self) -> str:
        return f"{self.situation.value} / {self.standing.value} = {self.remedy}"

def _at_least(low: int) -> Any:
    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or value < low:
            raise ConfigError(f"{field.name}={value!r:.100} must be an int of at least {low}")
    return check

_duration = partial(attrs.field, validator=_at_least(1))
_count = partial(attrs.field, validator=_at_least(0))

@attrs.frozen
class Timeouts:
    """Durations of a session's deadlines, in ns. See ``Timer`` for what each one bounds.

    These are the defaults of a ``Session`` that an embedder drives directly. A ``Gateway`` or
    ``Endpoint`` does not use them: ``Config`` replaces every one by its own setting
    (``connect_timeout``, ``created_timeout``, ...). One value differs. ``idle`` is 300 s here,
    because a session cannot tell a silent upstream from a dead one; ``Config.idle_timeout`` is
    1200 s, because its links also ping the upstream and detect a dead connection much earlier, so
    that silence there most often is a model that reasons for long.

    Raises:
        ConfigError: a duration is not an int of at least 1. A deadline of 0 ns would be due at the
            time at which it is set, and the caller's loop would spin.
    """
    connect: int = _duration(default=10 * NS_PER_SECOND)
    created: int = _duration(default=60 * NS_PER_SECOND)
    idle: int = _duration(default=300 * NS_PER_SECOND)  # Config.idle_timeout: 1200 s
    turn: int = _duration(default=3600 * NS_PER_SECOND)
    # Upstreams close a connection after 60 minutes; 5 minutes leave room for the running turn.
    lifetime: int = _duration(default=3300 * NS_PER_SECOND)
    expiry: int = _duration(default=900 * NS_PER_SECOND)

@attrs.frozen
class Budgets:
    """Bounds on what a policy may repeat, and three switches beside them.

    Raises:
        ConfigError: a number is not an int of at least 0.
    """
    # Resends of one turn after losses, over all paths together (REPLAYS_ARE_BOUNDED).
    replays: int = _count(default=1)
    # Refusals of one lost anchor before not-found. A client that retries three times gives a
    # temporary loss time to pass; more would only delay the answer that lets it go on.
    refusals: int = _count(default=3)
    waiting: int = _count(default=64)  # turns that may wait for one session; more are overloaded
    # A reconnect counts as a replay even if nothing was sent. Breaks RECONNECT_COSTS_NO_REPLAY; it
    # is how the older policies behave.
    reconnect_uses_replay: bool = False
    # Preload the connection that replaces one past its lifetime (``generate: false``), so that the
    # next turn finds its anchor there.
    warm: bool = False
    transcripts: bool = True  # False: never keep transcripts, whatever ``Config`` says
# fmt: on


@attrs.frozen(eq=False)
class Policy:
    """A named table from every (situation, standing) to a remedy, with budgets and timeouts.

    ``summary``: one sentence for ``bridgecore rules`` and the documentation.

    Raises:
        ConfigError: a cell is missing or is not a ``Remedy``; ``budgets`` is not a ``Budgets`` or
            ``timeouts`` not a ``Timeouts``. Checked here so that no look-up can fail later.
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
        """One line of at most 100 columns; ``bridgecore rules`` prints the whole table."""
        cells = sum(self.cells[key] != DEFAULT.cells[key] for key in DEFAULT.cells)
        budgets = _differing(self.budgets, DEFAULT.budgets)
        times = _differing(self.timeouts, DEFAULT.timeouts)
        name = self.name if len(self.name) <= 32 else self.name[:29] + "..."
        differs = f"{cells} cells, {budgets} budgets, {times} timeouts"
        return f"<Policy {name}: differs from default in {differs}>"

    def remedy(self, situation: Situation, standing: Standing) -> Remedy:
        """The remedy in the cell of ``situation`` and ``standing``."""
        return self.cells[situation, standing]

    def with_cell(self, situation: Situation, standing: Standing, remedy: Remedy) -> Policy:
        """A copy of the policy with one cell replaced.

        Raises:
            ConfigError: ``remedy`` is not a ``Remedy``.
        """
        return attrs.evolve(self, cells={**self.cells, (situation, standing): remedy})


def _differing(one: Budgets | Timeouts, other: Budgets | Timeouts) -> int:
    fields = (field.name for field in attrs.fields(type(one)))
    return sum(getattr(one, name) != getattr(other, name) for name in fields)


_Row: TypeAlias = Mapping[Standing, Remedy]


def _row(usual: Remedy, **exceptions: Remedy) -> _Row:
    """A row with ``usual`` in every column but the ones in ``exceptions``.

    A column is named by the value of its ``Standing``: ``held``, ``bound``, and so on. A name that
    is none raises ValueError when the module is imported.
    """
    named = {Standing(name): remedy for name, remedy in exceptions.items()}
    return {standing: named.get(standing, usual) for standing in Standing}


def _table(rows: Mapping[Situation, _Row]) -> dict[tuple[Situation, Standing], Remedy]:
    return {
        (situation, standing): row[standing]
        for situation, row in rows.items()
        for standing in Standing
    }


_refuse = partial(Remedy, Action.REFUSE)
_refuse_bounded = partial(Remedy, Action.REFUSE_BOUNDED)
_resend = partial(Remedy, Action.RESEND)
_rebind = partial(Remedy, Action.REBIND)

_UNAVAILABLE, _OWNER = FailureReply.UPSTREAM_UNAVAILABLE, FailureReply.OWNER_UNREACHABLE
_INCOMPLETE, _TIMEOUT = FailureReply.STREAM_INCOMPLETE, FailureReply.REQUEST_TIMEOUT
_SEND = Remedy(Action.SEND, _UNAVAILABLE)
_REHYDRATE = Remedy(Action.REHYDRATE, _UNAVAILABLE)
_SEND_OR_REHYDRATE = Remedy(Action.SEND_OR_REHYDRATE, _UNAVAILABLE)
_SEND_FULL = Remedy(Action.SEND_FULL, _UNAVAILABLE)
_SURFACE = Remedy(Action.SURFACE, FailureReply.UPSTREAM_ERROR)
_FAIL = Remedy(Action.FAIL, _INCOMPLETE)
# Only in `v1_12`: not-found for a loss that says nothing about the anchor. Its client then drops
# the anchor and resends its whole history, although a retry would have worked.
_WRONG_NOT_FOUND = _refuse(FailureReply.NOT_FOUND)
_WRONG_NOT_FOUND_LATE = Remedy(Action.FAIL, FailureReply.NOT_FOUND)

_DEFAULT_ROWS: dict[Situation, _Row] = {
    # Nothing was sent, so any form may be. An id costs a few bytes where the upstream stores the
    # response, the whole chain many thousand tokens, so a stored id is tried first even if the
    # chain is held. Whether an unknown id exists, only the upstream can say, so it is sent. A bound
    # anchor was lost with its connection: refuse, so that the client keeps its id and does not
    # resend its history at once, and answer not-found after the budget. For an injected anchor the
    # client's own input is available.
    Situation.SEND_SKIPPED: _row(
        _SEND,
        held=_REHYDRATE,
        held_stored=_SEND_OR_REHYDRATE,
        bound=_refuse_bounded(_UNAVAILABLE),
        injected=_SEND_FULL,
    ),
    # No connection, no send: a retriable answer, so that the client keeps its id and tries again.
    Situation.CONNECT_FAILED: _row(_refuse(_UNAVAILABLE)),
    # The same, unless the operator lets the bridge speak HTTP instead: see ``falling_back``.
    Situation.NO_WEBSOCKET: _row(_refuse(_UNAVAILABLE)),
    # Credentials, payment or rate limits: the client has to read the upstream's own answer.
    Situation.UPGRADE_REJECTED: _row(_SURFACE),
    # From SENDING on the upstream may have accepted the turn: a resend could run it twice, tool
    # calls and costs included (NO_AMBIGUOUS_RESEND). The client decides whether to retry.
    Situation.LOST_SENDING: _row(_refuse(_INCOMPLETE)),
    Situation.LOST_SENT: _row(_refuse(_INCOMPLETE)),
    # Ambiguous, too. A silent upstream may stay silent for this request for ever. Where the
    # client's retry would be sent in the same form again, refuse a bounded number of times only
    # (REFUSALS_ARE_BOUNDED); where the chain is held beside a stored id, change the plan: the retry
    # is rehydrated (REFUSED_IS_NOT_REPEATED). The retry of a held or injected turn is sent in full
    # anyway, because the connection is dropped; an unanchored turn has no anchor to give up.
    Situation.SILENT: _row(
        _refuse(_TIMEOUT),
        held_stored=Remedy(Action.REFUSE_THEN_REHYDRATE, _TIMEOUT),
        stored=_refuse_bounded(_TIMEOUT),
        bound=_refuse_bounded(_TIMEOUT),
        unknown=_refuse_bounded(_TIMEOUT),
    ),
    # The upstream refused before generating, so another form may be sent at once. Without another
    # form: the upstream's word is final for an id that the bridge never saw. For one that it knows
    # the loss may be the upstream's and temporary, so refuse within the budget first
    # (NOT_FOUND_IS_EARNED). A not-found for no anchor, or an unknown one, is the client's to read.
    Situation.NOT_FOUND: _row(
        _refuse_bounded(_UNAVAILABLE),
        unanchored=_SURFACE,
        held=_REHYDRATE,
        held_stored=_REHYDRATE,
        unknown=_SURFACE,
        injected=_SEND_FULL,
    ),
    # Refused before generating, so a second send is safe. It needs a new connection, which does not
    # know the anchor: there the row SEND_SKIPPED decides.
    Situation.CONNECTION_LIMIT: _row(_resend(_UNAVAILABLE)),
    # The upstream did not process the frame and takes none of that size; any other form of the turn
    # is larger still. Over HTTP its limit may be another one: see ``falling_back``.
    Situation.TOO_LARGE: _row(_SURFACE),
    # The client has to read what is wrong with its request. But an injected anchor was the bridge's
    # choice: whatever the upstream says against it, the client's own input is sent, and only an
    # answer to that reaches the client (INJECTED_IS_INVISIBLE).
    Situation.REFUSED: _row(_SURFACE, injected=_SEND_FULL),
    # The upstream is running the turn, or has run it, and the client may have seen output: the only
    # honest answer is that the stream broke (NO_REPLAY_AFTER_ANSWER).
    Situation.LOST_CREATED: _row(_FAIL),
    Situation.LOST_OUTPUT: _row(_FAIL),
    # Another replica owns the session. If it provably did not dispatch the turn, taking over is
    # safe. If it may have, only the client may decide to retry. After output it is a broken stream.
    Situation.OWNER_LOST: _row(_rebind(_OWNER)),
    Situation.OWNER_LOST_DISPATCHED: _row(_refuse(_OWNER)),
    Situation.OWNER_LOST_OUTPUT: _row(_FAIL),
}
# The rules of an existing bridge, as published (tests/scenarios/row-*.txt has each as a scenario).
# Fixed points to measure `default` against: they resend an unanchored turn whose acceptance is
# ambiguous, because a turn without an anchor looked safe to repeat.
_PR397_ROWS: dict[Situation, _Row] = {
    **_DEFAULT_ROWS,
    # "Owner unreachable" lets another replica take the session over, ambiguous send or not.
    Situation.LOST_SENDING: _row(_refuse(_OWNER), unanchored=_resend(_OWNER)),
    Situation.LOST_SENT: _row(_refuse(_INCOMPLETE), unanchored=_resend(_INCOMPLETE)),
    Situation.SILENT: _row(
        _refuse(_TIMEOUT),
        unanchored=_resend(_TIMEOUT),
        held_stored=Remedy(Action.REFUSE_THEN_REHYDRATE, _TIMEOUT),
    ),
    # Takes over as long as the client has seen nothing, even if the owner may have sent the turn.
    Situation.OWNER_LOST_DISPATCHED: _row(_rebind(_OWNER)),
}
# The version of that bridge before those rules: every loss of an anchored turn is answered with
# not-found. Kept so that the verifier can show what that costs (NOT_FOUND_IS_EARNED fails).
_V1_12_ROWS: dict[Situation, _Row] = {
    **_PR397_ROWS,
    Situation.SEND_SKIPPED: _row(
        _SEND, held=_WRONG_NOT_FOUND, bound=_WRONG_NOT_FOUND, injected=_SEND_FULL
    ),
    Situation.CONNECT_FAILED: _row(_WRONG_NOT_FOUND, unanchored=_refuse(_UNAVAILABLE)),
    Situation.NO_WEBSOCKET: _row(_WRONG_NOT_FOUND, unanchored=_refuse(_UNAVAILABLE)),
    Situation.LOST_SENDING: _row(_WRONG_NOT_FOUND, unanchored=_resend(_OWNER)),
    Situation.LOST_SENT: _row(_WRONG_NOT_FOUND, unanchored=_resend(_INCOMPLETE)),
    Situation.SILENT: _row(_WRONG_NOT_FOUND, unanchored=_resend(_TIMEOUT)),
    Situation.NOT_FOUND: _row(_SURFACE),
    Situation.LOST_CREATED: _row(_WRONG_NOT_FOUND_LATE, unanchored=_FAIL),
    Situation.LOST_OUTPUT: _row(_WRONG_NOT_FOUND_LATE, unanchored=_FAIL),
}

_DEFAULT_SUMMARY = "Never resends an ambiguous turn; answers not-found only after the retry budget."
_PR397_SUMMARY = (
    "The rules of an existing bridge, for comparison: an unanchored turn is resent once, even if "
    "the upstream may have accepted it."
)
_V1_12_SUMMARY = (
    "Broken, to demonstrate the cost: losses are answered with previous_response_not_found."
)
_OLD_BUDGETS = Budgets(reconnect_uses_replay=True, transcripts=False)
DEFAULT = Policy("default", _DEFAULT_SUMMARY, _table(_DEFAULT_ROWS))
"""Never resends an ambiguous turn; answers not-found only after the retry budget."""
PR397 = Policy("pr397", _PR397_SUMMARY, _table(_PR397_ROWS), _OLD_BUDGETS)
"""Sends a turn without an anchor again after an ambiguous loss, once. For comparison."""
V1_12 = Policy("v1_12", _V1_12_SUMMARY, _table(_V1_12_ROWS), _OLD_BUDGETS)
"""Answers lost connections with previous_response_not_found. Broken; to demonstrate."""
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (DEFAULT, PR397, V1_12)}
"""The policies by name, as the setting ``policy`` has them."""


def is_named(policy: Policy) -> bool:
    """Whether it is one of ``POLICIES``, unchanged."""
    return policy is POLICIES.get(policy.name)


# The ambiguous losses: the upstream may have run the turn, and the client has seen no output. A
# resend is possible there without the client noticing, but it may run the turn twice.
_AMBIGUOUS = (
    Situation.LOST_SENDING,
    Situation.LOST_SENT,
    Situation.SILENT,
    Situation.LOST_CREATED,
)


# Actions that count the refusal of an anchor, in order to end or to change a plan that fails.
_COUNTING = (Action.REFUSE_BOUNDED, Action.REFUSE_THEN_REHYDRATE)


def replaying(policy: Policy) -> Policy:
    """A copy of ``policy`` that resends an ambiguous turn, within ``Budgets.replays``.

    For embedders to whom a turn that runs twice does no harm: it breaks NO_AMBIGUOUS_RESEND on
    purpose. When the budget is spent, the original answer applies. Two kinds of cells stay as they
    are: those of ``Standing.BOUND``, because only the lost connection could continue that anchor,
    and those that count refusals, because the same send would most likely be lost the same way.
    """
    for situation in _AMBIGUOUS:
        for standing in Standing:
            remedy = policy.remedy(situation, standing)
            if standing is not Standing.BOUND and remedy.action not in _COUNTING:
                again = Remedy(Action.RESEND, remedy.answer)
                policy = policy.with_cell(situation, standing, again)
    return policy


# What an upstream may refuse over WebSocket and take over HTTP. Neither is ambiguous: it has
# processed nothing.
_OF_THE_SOCKET = (Situation.NO_WEBSOCKET, Situation.TOO_LARGE)


def falling_back(policy: Policy) -> Policy:
    """A copy of ``policy`` that goes on over HTTP where the upstream takes no WebSocket connection,
    or no message of that size on one. Over HTTP, the original answer applies."""
    for situation in _OF_THE_SOCKET:
        for standing in Standing:
            answer = policy.remedy(situation, standing).answer
            policy = policy.with_cell(situation, standing, Remedy(Action.FALL_BACK, answer))
    return policy
