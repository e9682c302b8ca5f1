"""The exceptions that bridgecore raises.

What belongs here: nothing else. What a peer does wrong is never an exception but an outcome.
"""

from __future__ import annotations


class BridgecoreError(Exception):
    """The base of all of them."""


class LocalProtocolError(BridgecoreError):
    """The caller did what it must not do. Nothing has changed."""


class InternalError(BridgecoreError):
    """bridgecore broke one of its own invariants: a bug. The text carries the rule and a trace."""
