"""Type checks of the events and times that callers pass to the public entry points.

Python does not check types at run time. Without this, a wrong type would surface much later, far
from the mistake, or corrupt state. Whether an event may happen *now* is checked by its handler.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from bridgecore.errors import LocalProtocolError


def check_time(now: object) -> None:
    """Check that ``now`` is a time of a monotonic clock in integer nanoseconds.

    A float has too few digits for nanoseconds, and would stay in deadlines that are compared later.

    Raises:
        LocalProtocolError: ``now`` is not an ``int``, or is negative.
    """
    if type(now) is not int or now < 0:
        what = "must be integer nanoseconds of a monotonic clock, such as time.monotonic_ns()"
        raise LocalProtocolError(f"now {what}, not {now!r:.100}")


class EventCheck:
    """Checks that a value is an event of one closed union, with fields of the annotated types.

    Args:
        union: the union of event classes.
        where: the name of the module that defines them, for messages.
        parts: classes of field values whose own fields are checked, too.
    """

    def __init__(self, union: Any, where: str, *parts: type) -> None:
        self._events = frozenset(get_args(union))
        self._where = where
        # For each class, its fields and the classes that each field allows. Fields whose annotation
        # cannot be checked are left out.
        self._fields = {
            kind: [
                (name, kinds) for name, hint in get_type_hints(kind).items() if (kinds := _of(hint))
            ]
            for kind in (*self._events, *parts)
        }
        # The classes of the checked fields decide. So those that were right once are remembered,
        # with the names of the fields that have fields of their own: it makes the check three times
        # as fast.
        self._classes = {kind: _classes_of(names) for kind, names in self._fields.items()}
        self._right: dict[type, dict[tuple[type, ...], tuple[str, ...]]] = {
            kind: {} for kind in self._fields
        }

    def __call__(self, event: object) -> None:
        """Check ``event``.

        Raises:
            LocalProtocolError: ``event`` is not of the union (an effect, for example), or a field
                has a wrong type.
        """
        kind = type(event)
        if kind not in self._events:
            raise LocalProtocolError(f"{event!r:.200} is not an event: see {self._where}")
        if self._right[kind].get(self._classes[kind](event)) != ():
            self._check(event, event)

    def _check(self, value: object, event: object) -> None:
        right = self._right[type(value)]
        classes = self._classes[type(value)](value)
        parts = right.get(classes)
        if parts is None:
            parts = right[classes] = self._compare(value, event)
        for name in parts:
            self._check(getattr(value, name), event)

    def _compare(self, value: object, event: object) -> tuple[str, ...]:
        """Check the fields of ``value``; the names of those that have fields of their own."""
        parts = []
        for name, kinds in self._fields[type(value)]:
            found = getattr(value, name)
            kind = type(found)
            # bool is a subclass of int, but True is not a valid id, generation or number.
            if kind not in kinds and (kind is bool or not isinstance(found, kinds)):
                names = " or ".join("None" if k is NoneType else k.__name__ for k in kinds)
                what = f"{name} must be {names}, not {found!r:.100}"
                raise LocalProtocolError(f"{type(event).__name__}: {what}")
            if kind in self._fields:
                parts.append(name)
        return tuple(parts)


def _classes_of(fields: list[tuple[str, tuple[type, ...]]]) -> Callable[[object], tuple[type, ...]]:
    """A function that returns the classes of the values that an object has in ``fields``."""
    names = [name for name, _ in fields]
    if len(names) < 2:  # attrgetter then returns no tuple
        return lambda value: tuple([type(getattr(value, name)) for name in names])
    get = attrgetter(*names)
    return lambda value: tuple(map(type, get(value)))


def _of(hint: Any) -> tuple[type, ...]:
    """The classes that an annotation allows, for ``list[bytes]`` just ``list``; empty if it allows
    something else than instances of classes."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(get_origin(member) or member for member in members)
    return kinds if all(isinstance(kind, type) for kind in kinds) else ()
