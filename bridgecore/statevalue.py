"""The state of a bridge as one hashable value; equal values lead to equal decisions.

What belongs here: deriving that value from the objects that hold the state. Every field of every
object is included, unless it is listed here with the reason why no decision depends on it. So a new
field is included by default. A field that was left out by mistake would make the explorer of
bridges (``bridgecore.verify.explore_bridge``) take two different states for one and skip what
follows from the second.

Numbers that are only names, such as a link's, and times are marked (``Ref``, ``At``). To compare
bridges that reached a state in different ways, the explorer renames the first and takes the second
relative to now.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import attrs
import msgspec

from bridgecore.admission.families import Families
from bridgecore.continuity.aliases import Alias
from bridgecore.continuity.memory import Memory, TurnContext
from bridgecore.continuity.nodes import Node
from bridgecore.continuity.refused import RefusedFrames
from bridgecore.conversation import Conversation, ForwardTarget
from bridgecore.forwarding import Forwarding
from bridgecore.generation import Generation, HeldEvents
from bridgecore.intake import Arriving, Intake
from bridgecore.ownership.forwards import Forward
from bridgecore.ownership.holdings import Holdings
from bridgecore.ownership.lease import LeaseStage
from bridgecore.recovery.refusals import SocketRefusals
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.replica import Replica
from bridgecore.stragglers import Stragglers
from bridgecore.turns import RoutedTurn
from bridgecore.wire.requests import CreateRequest

Value: TypeAlias = Hashable

CONVERSATION: Final = "conversation"
LINK: Final = "link"
QUERY: Final = "query"
QUESTION: Final = "question"  # to the store


class Ref(NamedTuple):
    """The number of a conversation, a link, a query or a question: a name, whose value has no
    meaning."""

    kind: str
    number: int


class At(NamedTuple):
    """A time in ns, to be compared by its distance from now."""

    ns: int


@attrs.frozen
class Compared:
    """How the fields of a class become a value.

    ``names``: fields that hold a name, or a table whose keys are names, and what they name.
    ``times``: fields that hold a time. ``left_out``: fields that are not part of the value, with
    the reason why no decision depends on them.
    """

    names: Mapping[str, str] = attrs.Factory(dict)
    left_out: Mapping[str, str] = attrs.Factory(dict)
    times: frozenset[str] = frozenset()


COMPARED: Final[Mapping[type, Compared]] = {
    Conversation: Compared(
        names={"id": CONVERSATION},
        left_out={
            "shared": "compared as part of the bridge",
            "accounts": "sums for an observer",
            "unmatched": "a count for one log line",
            "_relay": "derived from the state of the session",
            "_out": "empty between two calls",
        },
    ),
    RoutedTurn: Compared(
        left_out={
            "request": "an id for the log",
            "sent": "a size for accounts",
            "cell": "for the log",
            "deadline": "part of the session once it is submitted",
            "sign": "bound to the turn that is forwarded, which is compared as part of the bridge",
        }
    ),
    TurnContext: Compared(
        left_out={
            "prompt": "the request, parsed",
            "candidates": "used to place the turn, which has been placed",
            "family": "used to place the turn, which has been placed",
            "named": "for accounts, and compared in the alias table",
            "base": "only for what a store is given",
        }
    ),
    Alias: Compared(names={"conversation": CONVERSATION}, left_out={"tokens": "for accounts"}),
    Generation: Compared(names={"number": LINK}),
    HeldEvents: Compared(left_out={"limit": "a setting", "size": "the sum of what is held"}),
    Stragglers: Compared(left_out={"_kept_size": "the sum of what is kept"}),
    Intake: Compared(
        left_out={
            "_forwarded": "never changes",
            "_credential": "never changes",
            "_memory": "compared as part of the bridge",
            "_budget": "never changes",
            "_resolver": "never changes",
            "_asked": "an index over _resolving",
            "_queries": "the next number is only a name",
        },
    ),
    Arriving: Compared(
        names={"query": QUERY},
        times=frozenset({"deadline"}),
        left_out={"request_id": "an id for the log"},
    ),
    Forward: Compared(
        left_out={
            "sender": "not looked at once its signature is checked",
            "sequence": "not looked at once its signature is checked",
            "conversation": "not looked at: the store says who owns what",
            "epoch": "not looked at: the store says who owns what",
            "budget": "part of the deadline of its turn",
            "digest": "not looked at once its signature is checked",
        }
    ),
    Replica: Compared(
        names={"_keys": CONVERSATION},
        times=frozenset({"_sweep_at"}),
        left_out={
            "_seed": "never changes",
            "_memory": "compared as part of the bridge",
            "_url": "never changes",
            "_numbers": "an index over _keys",
            "_drawn": "the next key is only a name",
            "_leases_lost": "a count for an observer",
            "_not_durable": "a count for an observer",
            "_age": "never changes",
        },
    ),
    Forwarding: Compared(
        left_out={
            "_signer": "the next number of a forward is only a name",
            "_wrong": "for the log",
        }
    ),
    ForwardTarget: Compared(
        left_out={
            "replica": "for the log; the lease names it, too",
            "remaining": "for the error of a turn that was sent to no replica",
        }
    ),
    Families: Compared(
        names={"_latest": CONVERSATION},
        left_out={"_members": "an index over _latest, in the same order"},
    ),
}


def _session(session: Session) -> Value:
    state, touched = session.snapshot()
    return state, None if touched is None else At(touched)


def _memory(memory: Memory) -> Value:
    known: Any = memory.snapshot()
    aliases, held = known
    return (
        tuple((key, Ref(CONVERSATION, number), *more) for key, number, *more in aliases),
        tuple((scope, response, At(used), flags) for scope, response, used, flags in held),
    )


def _holdings(holdings: Holdings) -> Value:
    lease, claims, seen, asked, of_lease, waiting, unreleased = holdings.snapshot()
    held = lease.stage in (LeaseStage.HELD, LeaseStage.RENEWING)
    asked_for = lease.stage in (LeaseStage.JOINING, LeaseStage.RENEWING)
    return (
        holdings.owner.incarnation,
        (lease.stage, lease.taken),
        At(lease.until) if held else None,
        # When the lease ends that was asked for last: its question counts, not its answer.
        At(lease.asked + holdings.times.usable) if asked_for else None,
        None if lease.wake is None else At(lease.wake),
        state_of(claims),
        seen,
        tuple(
            (
                Ref(QUESTION, query),
                query == of_lease,
                state_of(question),
                owner.incarnation,
                turn,
                None if turn is None else At(deadline),
                distrusted,
            )
            for query, question, owner, turn, deadline, distrusted in asked
        ),
        tuple((turn, state_of(question), At(deadline)) for turn, question, deadline in waiting),
        tuple(sorted(unreleased)),
    )


def _sockets(sockets: SocketRefusals) -> Value:
    *times, size = sockets.snapshot()
    return (*[At(time) if time else None for time in times], size)


# Classes that are not compared field by field, and how.
_WHOLE: Final[Mapping[type, Callable[[Any], Value]]] = {
    Session: _session,
    SessionState: lambda state: state,  # a value already, with absolute times
    Memory: _memory,
    Holdings: _holdings,
    RefusedFrames: RefusedFrames.snapshot,
    SocketRefusals: _sockets,
    CreateRequest: lambda request: (request.frame, request.stream),  # the rest is in the frame
    Node: lambda node: (node.response_id, node.injectable, node.rebuildable),  # else see Memory
}
_ATOMS: Final = (int, str, bytes, type(None), enum.Enum)


def state_of(value: object) -> Value:
    """``value`` as a hashable value.

    Raises:
        TypeError: it contains an object of a class for which no way to compare it is given here.
    """
    if isinstance(value, _ATOMS):
        return value
    kind = type(value)
    for base in kind.__mro__:
        if (whole := _WHOLE.get(base)) is not None:
            return whole(value)
    if issubclass(kind, msgspec.Struct):
        own = {name: getattr(value, name) for name in kind.__struct_fields__}
        return fields_of(own, _compared(kind))
    if attrs.has(kind):
        own = {field.name: getattr(value, field.name) for field in attrs.fields(kind)}
        return fields_of(own, _compared(kind))
    if not COMPARED.keys().isdisjoint(kind.__mro__):
        return fields_of(vars(value), _compared(kind))
    if isinstance(value, Mapping):
        return tuple((state_of(key), state_of(each)) for key, each in value.items())
    if isinstance(value, list | tuple | deque):
        return tuple(map(state_of, value))
    if isinstance(value, frozenset):
        return value
    if isinstance(value, set):
        return frozenset(value)
    raise TypeError(f"{kind.__qualname__}: say in bridgecore.statevalue how it is compared")


def fields_of(fields: Mapping[str, object], compared: Compared) -> Value:
    """The fields of an object, by name, as a value, without those that are left out."""
    return tuple(
        (name, _field(name, value, compared))
        for name, value in fields.items()
        if name not in compared.left_out
    )


def _field(name: str, value: Any, compared: Compared) -> Value:
    if name in compared.times:
        return At(value)
    if name not in compared.names:
        return state_of(value)
    kind = compared.names[name]
    if isinstance(value, Mapping):
        return tuple((Ref(kind, number), state_of(each)) for number, each in value.items())
    return Ref(kind, value)


def _compared(kind: type) -> Compared:
    return next((COMPARED[base] for base in kind.__mro__ if base in COMPARED), Compared())
