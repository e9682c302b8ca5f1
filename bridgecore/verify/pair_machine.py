"""A bridge as a machine whose states can be kept: each step makes a new one.

What belongs here: copying a bridge, and comparing bridges. A ``MachineState`` never changes, so
many worlds share it, and what the same event does to it is computed once. How two of them are
connected is in ``pair_world``.
"""

from __future__ import annotations

import copy
import enum
import functools
import hashlib
import re
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import attrs
import msgspec

from bridgecore.bridge import Bridge
from bridgecore.messages import BridgeEffect, BridgeEvent
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, Timers
from bridgecore.statevalue import CONVERSATION, At, Ref
from bridgecore.wire.requests import CreateRequest

TICK: Final = NS_PER_SECOND
"""A tick in ns: a second, because ``Retry-After`` counts seconds."""
FAR: Final = 10**8 * TICK
"""The time of all deadlines but those of the store and the lease: years, so that none is met."""
# What is so far away counts as equally far. Explored are a few dozen ticks.
_AWAY: Final = 100 * TICK

Effects = tuple[BridgeEffect, ...]


class MachineState:
    """One state of a bridge. ``due``: the tick of its next deadline, None if that is far away."""

    __slots__ = ("_bridge", "_digests", "_steps", "due", "finished", "turns")

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._steps: dict[object, tuple[MachineState, Effects]] = {}
        self._digests: dict[int, Digest] = {}
        deadline = bridge.next_timeout()
        far = deadline is None or deadline.at >= FAR // 2
        self.due = None if deadline is None or far else -(-deadline.at // TICK)
        self.finished = bridge.finished
        self.turns = bridge.turns

    def step(self, event: BridgeEvent, now: int) -> tuple[MachineState, Effects]:
        """The state after ``event`` at ``now`` (ticks), and the effects, which must not be changed.

        Raises:
            Exception: whatever the bridge raises.
        """
        name = (now, *_name(event))
        known = self._steps.get(name)
        if known is None:
            bridge = _copy(self._bridge)
            effects = tuple(bridge.handle(event, now * TICK))
            known = self._steps[name] = MachineState(bridge), effects
        return known

    def digest(self, now: int) -> Digest:
        """The state at ``now`` (ticks) as a value. Times are relative to now."""
        known = self._digests.get(now)
        if known is None:
            snapshot: Any = self._bridge.snapshot()
            fold = _Fold(now * TICK, [each for each, _ in dict(snapshot)["_conversations"]])
            leases: dict[str, int] = {}
            text = INCARNATION.sub(
                lambda found: f"lease {leases.setdefault(found[0], len(leases))}",
                repr(fold.value(snapshot)),
            )
            digest = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
            known = self._digests[now] = Digest(digest, tuple(leases), fold.names)
        return known


class Digest(NamedTuple):
    """A state as a value. ``text``: equal for states with the same future, if their ``leases``, the
    names of owners that occur in them, are the same, in this order. ``names``: the numbers that
    links and questions have in it."""

    text: str
    leases: tuple[str, ...]
    names: dict[Ref, int]


INCARNATION: Final = re.compile(r"\b[0-9a-f]{32}\b")
"""The name of an owner of a lease, in the text of a state."""


def _name(event: BridgeEvent) -> tuple[object, ...]:
    """``event`` as a hashable value."""
    values = [getattr(event, field.name) for field in attrs.fields(type(event))]
    return (type(event), *map(_hashable, values))


def _hashable(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return value.frame if isinstance(value, CreateRequest) else value


def _copy(bridge: Bridge) -> Bridge:
    # Settings never change, and are large.
    shared = (bridge._config, bridge._policy)
    copied: Bridge = _copied(bridge, {id(each): each for each in shared})
    return copied


# Classes whose objects never change, nor anything in them: copies share them.
_CONSTANT: Final = (
    "bridgecore.api_error",
    "bridgecore.config",
    "bridgecore.ownership.",
    "bridgecore.recovery.",
    "bridgecore.wire.",
)
_ATOMS: Final = (int, str, bytes, type(None), enum.Enum, type, types.FunctionType)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` returns, several times faster: it shares what cannot change."""
    kind = type(value)
    if kind in _SHARED:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    how = _HOW.get(kind)
    if how is None:
        how = _how(kind)
        if how is None:
            _SHARED.add(kind)
            return value
        _HOW[kind] = how
    return how(value, memo)


def _how(kind: type) -> _How | None:
    """How objects of ``kind`` are copied; None: they can be shared."""
    if issubclass(kind, _ATOMS):
        return None
    frozen = attrs.has(kind) and kind.__setattr__ is not object.__setattr__
    if frozen and kind.__module__.startswith(_CONSTANT):
        return None
    ours = any(base.__module__.startswith("bridgecore.") for base in kind.__mro__)
    if not ours or issubclass(kind, tuple | msgspec.Struct):
        return copy.deepcopy
    slots = [
        name
        for base in kind.__mro__
        for name in getattr(base, "__slots__", ())
        if name not in ("__weakref__", "__dict__")
    ]

    def of_object(value: Any, memo: dict[int, Any]) -> Any:
        other = memo[id(value)] = kind.__new__(kind)
        for name in slots:
            each = getattr(value, name, _UNSET)
            if each is not _UNSET:
                part = each if type(each) in _SHARED else _copied(each, memo)
                object.__setattr__(other, name, part)
        fields = getattr(other, "__dict__", None)
        if fields is not None:
            for name, each in vars(value).items():
                fields[name] = each if type(each) in _SHARED else _copied(each, memo)
        return other

    return of_object


_UNSET: Final = object()


def _of_mapping(value: Any, memo: dict[int, Any]) -> Any:
    other = memo[id(value)] = type(value)()
    for key, each in value.items():
        other[key] = each if type(each) in _SHARED else _copied(each, memo)  # keys are constant
    return other


def _of_list(value: Any, memo: dict[int, Any]) -> Any:
    other = memo[id(value)] = []
    for each in value:
        other.append(each if type(each) in _SHARED else _copied(each, memo))
    return other


def _of_set(value: Any, memo: dict[int, Any]) -> Any:
    return value.copy()  # its members are constant


def _of_partial(value: Any, memo: dict[int, Any]) -> Any:
    return functools.partial(_copied(value.func, memo), *_of_tuple(value.args, memo))


def _of_tuple(value: Any, memo: dict[int, Any]) -> Any:
    for each in value:
        if type(each) not in _SHARED:
            return tuple([_copied(each, memo) for each in value])
    return value


def _of_method(value: Any, memo: dict[int, Any]) -> Any:
    return types.MethodType(value.__func__, _copied(value.__self__, memo))


_How: TypeAlias = Callable[[Any, dict[int, Any]], Any]
_HOW: Final[dict[type, _How]] = {
    dict: _of_mapping,
    OrderedDict: _of_mapping,
    list: _of_list,
    set: _of_set,
    frozenset: _of_set,
    tuple: _of_tuple,
    functools.partial: _of_partial,
    types.MethodType: _of_method,
}
_SHARED: Final[set[type]] = set()  # the classes found so far whose objects are shared


class _Fold:
    """Turns a snapshot into a value with times relative to ``now`` (ns) and names numbered in the
    order in which they are met."""

    def __init__(self, now: int, conversations: list[Ref]) -> None:
        self._now = now
        self.names = {each: place for place, each in enumerate(conversations)}

    def value(self, value: Any) -> Any:
        if isinstance(value, Ref):
            if value.kind == CONVERSATION and value not in self.names:
                return -1  # it has ended
            return self.names.setdefault(value, len(self.names))
        if isinstance(value, At):
            left = value.ns - self._now
            return "far" if left >= _AWAY else "past" if left <= 0 else left
        if isinstance(value, SessionState):
            return _timeless(value)
        if isinstance(value, frozenset):
            return sorted(map(repr, value))
        if isinstance(value, tuple):
            if len(value) == 2 and value[0] == "_memory":
                return self._memory(value[1])
            return tuple([self.value(each) for each in value])
        return value

    def _memory(self, memory: Any) -> Any:
        """Aliases and transcripts without their order and age: none is evicted here."""
        aliases, held = memory
        known = sorted(aliases, key=lambda alias: str(alias[0]))
        return self.value(tuple(known)), sorted((each[:2], each[3]) for each in held)


def _timeless(state: SessionState) -> SessionState:
    """``state`` without its times: the deadlines of sessions are years away. Which of them are set
    follows from the rest."""
    running = state.running
    return attrs.evolve(
        state,
        running=None if running is None else attrs.evolve(running, deadline=0),
        waiting=tuple([attrs.evolve(each, deadline=0) for each in state.waiting]),
        timers=Timers(),
    )
