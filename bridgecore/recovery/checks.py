"""Checks of what a caller gives to one of the doors: events and times.

What belongs here: whether a value *can* be what it is given for, by type. Whether an event can
happen *now* is the business of who handles it. Python does not check types, so that without this a
wrong one would be found out much later, or never, by something that it broke.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from bridgecore.errors import LocalProtocolError


def check_time(now: object) -> None:
    """Refuse a ``now`` that is no time of a monotonic clock in whole ns.

    A float would be rounded, and kept in deadlines that are compared for ever after.

    Raises:
        LocalProtocolError: ``now`` is no ``int``, or below 0.
    """
    if type(now) is not int or now < 0:
        what = "must be integer nanoseconds of a monotonic clock, such as time.monotonic_ns()"
        raise LocalProtocolError(f"now {what}, not {now!r:.100}")


class EventCheck:
    """Checks events of one closed union: its members only, and each field, to the bottom, of the
    type that its annotation says. ``parts``: the classes that are looked into, too."""

    def __init__(self, union: Any, where: str, *parts: type) -> None:
        self._events = frozenset(get_args(union))
        self._where = where
        # The fields of each class, and the classes that each may have; none of them: any.
        self._fields = {
            kind: [
                (name, kinds) for name, hint in get_type_hints(kind).items() if (kinds := _of(hint))
            ]
            for kind in (*self._events, *parts)
        }

    def __call__(self, event: object) -> None:
        """Refuse what is no event.

        Raises:
            LocalProtocolError: ``event`` is of another class (an effect, say), or one of its fields
                has a wrong type.
        """
        if type(event) not in self._events:
            raise LocalProtocolError(f"{event!r:.200} is no event: they are in {self._where}")
        self._check(event, event)

    def _check(self, value: object, event: object) -> None:
        for name, kinds in self._fields[type(value)]:
            found = getattr(value, name)
            kind = type(found)
            # bool is a subclass of int, and True is no number of anything.
            if kind not in kinds and (kind is bool or not isinstance(found, kinds)):
                names = " or ".join("None" if k is NoneType else k.__name__ for k in kinds)
                what = f"{name} must be {names}, not {found!r:.100}"
                raise LocalProtocolError(f"{type(event).__name__}: {what}")
            if kind in self._fields:
                self._check(found, event)


def _of(hint: Any) -> tuple[type, ...]:
    """The classes that an annotation allows; of ``list[bytes]`` it is ``list``."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(get_origin(member) or member for member in members)
    return kinds if all(isinstance(kind, type) for kind in kinds) else ()
