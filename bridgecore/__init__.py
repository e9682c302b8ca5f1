"""A sans-IO core for bridges between HTTP clients and Responses WebSocket sessions.

There are three ways to use it, by how much an embedder has already:

* ``Session``: only the decisions about one conversation. Its events and effects are in
  ``bridgecore.recovery.events`` and ``bridgecore.recovery.effects``.
* ``Gateway``: requests and upstream messages in, answers out, for an HTTP stack that exists. Its
  events and effects are in ``bridgecore.messages``.
* ``Endpoint``: bytes in, bytes out. Its events and effects are in ``bridgecore.transport``.
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
