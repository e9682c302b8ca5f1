"""Enumerations whose members say what they mean.

What belongs here: the base class. The words stand beside each member, once, and are printed by
``bridgecore rules`` and in the documentation.
"""

from __future__ import annotations

import enum
from typing import Self


class Meant(enum.Enum):
    """An enumeration with members like ``SEND = "send", "send the turn as it is"``: the value, and
    what it means."""

    _value_: str
    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """A member. ``meaning`` is missing only where a member is looked up by its value."""
        member = object.__new__(cls)
        member._value_, member.meaning = value, meaning
        return member
