"""Writes the values that a violation is about as text: events, effects, and what they carry.

What belongs here: the one form that they have in every output: terminal, pictures, JSON and JUnit.
It is shorter than ``repr``, which also gives each default, and of an enumeration class, name and
value.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import attrs


def shown(value: object) -> str:
    """``value`` as text: enumerations by their value, and without the fields of an object that have
    their default.

    >>> from bridgecore.recovery.effects import RequestForm, SendTurn
    >>> shown(SendTurn(1, 2, RequestForm.AS_IS))
    'SendTurn(generation=1, turn=2, form=as_is)'
    """
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        parts = [shown(each) for each in value]
        return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    fields = [f"{name}={shown(each)}" for name, each in _said(value)]
    if fields or attrs.has(type(value)) or hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(fields)})"
    return repr(value)


def _said(value: Any) -> Iterator[tuple[str, object]]:
    """The fields of ``value``, an attrs object or a named tuple, that do not have their default."""
    if attrs.has(type(value)):
        defaults = {field.name: field.default for field in attrs.fields(type(value))}
    elif hasattr(value, "_fields"):
        defaults = dict.fromkeys(value._fields, attrs.NOTHING) | value._field_defaults
    else:
        return
    for name, default in defaults.items():
        if (found := getattr(value, name)) != default:
            yield name, found
