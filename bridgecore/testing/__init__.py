"""Tools to test against: an upstream that needs no key, and ways to make it misbehave.

What belongs here: what embedders' tests and the project's own share. Nothing in the rest of
``bridgecore`` imports it.
"""

from bridgecore.testing.emulator import (
    Answer,
    CreateRequest,
    Emulator,
    Outcome,
    Text,
    ToolCall,
    Turn,
    echo,
)
from bridgecore.testing.faults import (
    EVERY,
    Abort,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Point,
    Reject,
    SendEvents,
    Silence,
)

__all__ = [
    "EVERY",
    "Abort",
    "Answer",
    "CloseWith",
    "CreateRequest",
    "Emulator",
    "Error",
    "ErrorShape",
    "Fault",
    "FaultPlan",
    "Freeze",
    "Garbage",
    "Outcome",
    "Point",
    "Reject",
    "SendEvents",
    "Silence",
    "Text",
    "ToolCall",
    "Turn",
    "echo",
]
