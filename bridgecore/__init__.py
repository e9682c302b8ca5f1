"""A bridge between HTTP clients of the Responses API and upstream Responses WebSocket sessions.

This package does no I/O: each call takes an event and its time, and returns effects to carry out.
There are three ways to use it, by how much you have already:

* ``Session``: only the decisions about one conversation. You bring an HTTP and a WebSocket stack.
  Events: ``bridgecore.recovery.events``; effects: ``bridgecore.recovery.effects``.
* ``Gateway``: requests in, answers out. You bring an HTTP stack and WebSocket connections. Events
  and effects: ``bridgecore.messages``.
* ``Endpoint``: bytes in, bytes out. You bring sockets and a clock. Events and effects:
  ``bridgecore.transport``. There are drivers for it: ``bridgecore_asyncio``, ``bridgecore_trio``.

What is public: the names in ``__all__`` here, and the modules that the page "Reference" of the
documentation lists. All other modules are internal and may change with any release. Everything that
is raised to a caller derives from ``BridgecoreError``. Times are integer nanoseconds, sizes bytes.

Example: a conversation's first turn waits for a connection, and is sent when there is one.

>>> from bridgecore import Session
>>> from bridgecore.recovery.events import ConnectionOpened, Turn, TurnSubmitted
>>> session = Session()
>>> session.handle(TurnSubmitted(Turn(id=1)), now=0)
(OpenConnection(generation=1, remote=False),)
>>> session.handle(ConnectionOpened(generation=1), now=1)
(SendTurn(generation=1, turn=1, form=<RequestForm.AS_IS: 'as_is'>),)
"""

from bridgecore.api_error import ApiError
from bridgecore.config import Config, Continuity, OnAmbiguousLoss, Rotation, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.errors import BridgecoreError, ConfigError, InternalError, LocalProtocolError
from bridgecore.gateway import Gateway
from bridgecore.intake import Resolver
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    PR397,
    V1_12,
    Action,
    Budgets,
    Cell,
    Policy,
    Remedy,
    Situation,
    Timeouts,
)
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer, Timers
from bridgecore.tables import render_rules
from bridgecore.wire.responses import CreateRequest, EventKind, UpstreamEvent

# The one place that states the version: the build reads it from here, and reading it costs no look
# at the metadata of installed packages.
__version__ = "0.1.0.dev0"
"""The version of the distribution, as PEP 440 has it."""

__all__ = [
    "DEFAULT",
    "NS_PER_SECOND",
    "POLICIES",
    "PR397",
    "V1_12",
    "Action",
    "ApiError",
    "BridgecoreError",
    "Budgets",
    "Cell",
    "Config",
    "ConfigError",
    "Continuity",
    "CreateRequest",
    "Deadline",
    "Endpoint",
    "EventKind",
    "FailureReply",
    "Gateway",
    "InternalError",
    "LocalProtocolError",
    "OnAmbiguousLoss",
    "Policy",
    "Remedy",
    "Resolver",
    "Rotation",
    "Session",
    "SessionState",
    "Situation",
    "Standing",
    "Timeouts",
    "Timer",
    "Timers",
    "Transition",
    "UpstreamEvent",
    "UpstreamUrl",
    "__version__",
    "render_rules",
    "step",
]
