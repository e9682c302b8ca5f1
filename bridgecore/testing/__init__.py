"""Tools for tests: an upstream that needs no key, and ways to make it misbehave.

What belongs here: what tests of embedders and of this project share. In ``bridgecore`` only the
simulator imports it.

Public are the names here, the modules ``client``, ``network``, ``strategies`` and ``virtual``, the
plugin ``pytest_plugin``, the package ``conformance`` and ``StoreModel`` in ``store``; the other
modules are internal. ``conformance`` is the only package of ``bridgecore`` that does I/O.
"""

from bridgecore.testing.answers import (
    Answer,
    CreateFrame,
    Output,
    Reasoning,
    Text,
    ToolCall,
    count_tokens,
    echo,
)
from bridgecore.testing.emulator import Emulator, Outcome, Turn
from bridgecore.testing.faults import (
    CATALOGUE,
    EVERY,
    Abort,
    Alter,
    Change,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Point,
    ReadSlowly,
    Reject,
    SendEvents,
    Silence,
    Stale,
    StaleEvent,
    When,
)
from bridgecore.testing.policies import PolicyError, assert_policy_holds

__all__ = [
    "CATALOGUE",
    "EVERY",
    "Abort",
    "Alter",
    "Answer",
    "Change",
    "CloseWith",
    "CreateFrame",
    "Emulator",
    "Error",
    "ErrorShape",
    "Fault",
    "FaultPlan",
    "Freeze",
    "Garbage",
    "Outcome",
    "Output",
    "Point",
    "PolicyError",
    "ReadSlowly",
    "Reasoning",
    "Reject",
    "SendEvents",
    "Silence",
    "Stale",
    "StaleEvent",
    "Text",
    "ToolCall",
    "Turn",
    "When",
    "assert_policy_holds",
    "count_tokens",
    "echo",
]
