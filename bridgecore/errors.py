"""The exceptions that bridgecore raises to its caller.

What belongs here: nothing else, and every exception that a caller can get derives from
``BridgecoreError``. What a peer does wrong is never an exception but an outcome: an effect, an
error answer, a closed connection.
"""

from __future__ import annotations


class BridgecoreError(Exception):
    """The base of all exceptions of this package."""


class LocalProtocolError(BridgecoreError):
    """The caller did what it must not do: an event that cannot happen now, or a value of a wrong
    type. Nothing has changed: the object that raised it stands as it did before the call.

    Not to be confused with the exceptions of the same name in h11 and wsproto, which never leave
    this package.
    """


class ConfigError(BridgecoreError, ValueError):
    """A setting, a policy or a URL cannot be used. The text names it, its value and what to do.

    Also a ``ValueError``, which is what Python raises for values that cannot be.
    """


class InternalError(BridgecoreError):
    """bridgecore broke one of its own invariants: a bug. The text carries the rule and a trace."""
