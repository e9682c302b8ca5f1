"""A sans-IO core for bridges between HTTP clients and Responses WebSocket sessions.

Three doors: ``Session`` (just the decisions), ``Gateway`` (messages) and ``Endpoint`` (bytes). The
events and effects of each are in ``bridgecore.recovery.events`` and ``.effects``, in
``bridgecore.messages`` and in ``bridgecore.transport``.
"""

from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.errors import BridgecoreError, ConfigError, InternalError, LocalProtocolError
from bridgecore.gateway import Gateway
from bridgecore.recovery.policy import DEFAULT, POLICIES, PR397, V1_12, Policy
from bridgecore.recovery.rules import RULES, Transition, step
from bridgecore.recovery.session import Session
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.tables import render_rules

__all__ = [
    "DEFAULT",
    "NS_PER_SECOND",
    "POLICIES",
    "PR397",
    "RULES",
    "V1_12",
    "BridgecoreError",
    "Config",
    "ConfigError",
    "Deadline",
    "Endpoint",
    "Gateway",
    "InternalError",
    "LocalProtocolError",
    "Policy",
    "Session",
    "Timer",
    "Transition",
    "UpstreamUrl",
    "render_rules",
    "step",
]
