"""A bridge between clients of the Responses API, over HTTP or WebSocket, and upstream sessions.

This package does no I/O: each call takes an event and its time, and returns effects to carry out.
There are three ways to use it, by how much you have already:

* ``Session``: only the decisions about one conversation. You bring an HTTP and a WebSocket stack.
  Events: ``bridgecore.recovery.events``; effects: ``bridgecore.recovery.effects``.
* ``Gateway``: requests in, answers out. You bring an HTTP stack and WebSocket connections. Events
  and effects: ``bridgecore.messages``.
* ``Endpoint``: bytes in, bytes out. You bring sockets and a clock. Events and effects:
  ``bridgecore.transport``. There are drivers for it: ``bridgecore_asyncio``, ``bridgecore_trio``;
  and it runs inside of others: ``bridgecore_asgi``, ``bridgecore_httpx``.

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

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridgecore.api_error import ApiError
    from bridgecore.config import (
        Config,
        Continuity,
        Fallback,
        HttpUrl,
        OnAmbiguousLoss,
        PeerUrl,
        Rotation,
        Store,
        UpstreamUrl,
    )
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
    from bridgecore.recovery.policy_table import policy_from, policy_table
    from bridgecore.recovery.rules import Transition, step
    from bridgecore.recovery.session import Session
    from bridgecore.recovery.state import SessionState
    from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer, Timers
    from bridgecore.tables import render_rules
    from bridgecore.wire.requests import CreateRequest
    from bridgecore.wire.responses import EventKind, UpstreamEvent

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
    "Fallback",
    "Gateway",
    "HttpUrl",
    "InternalError",
    "LocalProtocolError",
    "OnAmbiguousLoss",
    "PeerUrl",
    "Policy",
    "Remedy",
    "Resolver",
    "Rotation",
    "Session",
    "SessionState",
    "Situation",
    "Standing",
    "Store",
    "Timeouts",
    "Timer",
    "Timers",
    "Transition",
    "UpstreamEvent",
    "UpstreamUrl",
    "__version__",
    "policy_from",
    "policy_table",
    "render_rules",
    "step",
]

# The module of each public name. A name is loaded when it is first used, because all of them
# together take a quarter of a second: a program that needs ``Session`` only, or a command that
# prints its help, should not wait for HTTP and JSON. A type checker reads the imports above.
_HOMES = {
    "Action": "bridgecore.recovery.policy",
    "ApiError": "bridgecore.api_error",
    "BridgecoreError": "bridgecore.errors",
    "Budgets": "bridgecore.recovery.policy",
    "Cell": "bridgecore.recovery.policy",
    "Config": "bridgecore.config",
    "ConfigError": "bridgecore.errors",
    "Continuity": "bridgecore.config",
    "CreateRequest": "bridgecore.wire.requests",
    "DEFAULT": "bridgecore.recovery.policy",
    "Deadline": "bridgecore.recovery.timers",
    "Endpoint": "bridgecore.endpoint",
    "EventKind": "bridgecore.wire.responses",
    "FailureReply": "bridgecore.recovery.effects",
    "Fallback": "bridgecore.config",
    "Gateway": "bridgecore.gateway",
    "InternalError": "bridgecore.errors",
    "LocalProtocolError": "bridgecore.errors",
    "NS_PER_SECOND": "bridgecore.recovery.timers",
    "OnAmbiguousLoss": "bridgecore.config",
    "POLICIES": "bridgecore.recovery.policy",
    "PR397": "bridgecore.recovery.policy",
    "Policy": "bridgecore.recovery.policy",
    "Remedy": "bridgecore.recovery.policy",
    "Resolver": "bridgecore.intake",
    "Rotation": "bridgecore.config",
    "Session": "bridgecore.recovery.session",
    "SessionState": "bridgecore.recovery.state",
    "Situation": "bridgecore.recovery.policy",
    "Standing": "bridgecore.recovery.events",
    "Store": "bridgecore.config",
    "Timeouts": "bridgecore.recovery.policy",
    "Timer": "bridgecore.recovery.timers",
    "Timers": "bridgecore.recovery.timers",
    "Transition": "bridgecore.recovery.rules",
    "UpstreamEvent": "bridgecore.wire.responses",
    "HttpUrl": "bridgecore.config",
    "PeerUrl": "bridgecore.config",
    "UpstreamUrl": "bridgecore.config",
    "V1_12": "bridgecore.recovery.policy",
    "policy_from": "bridgecore.recovery.policy_table",
    "policy_table": "bridgecore.recovery.policy_table",
    "render_rules": "bridgecore.tables",
    "step": "bridgecore.recovery.rules",
}

if not TYPE_CHECKING:  # a type checker would take ``__getattr__`` to have every name

    def __getattr__(name: str) -> Any:
        """Load the public name ``name`` (PEP 562). Called for names that are not loaded yet."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value  # from now on it is found without this function
        return value

    def __dir__() -> list[str]:
        """The names of the module, those included that are not loaded yet."""
        return sorted({*globals(), *__all__})
