"""The exceptions that bridgecore raises to its caller.

What belongs here: the base class and the three kinds of exceptions. All exceptions that can reach a
caller derive from ``BridgecoreError``. An error of a peer is never an exception: it leads to an
effect, such as an error answer or a closed connection.
"""

from __future__ import annotations


class BridgecoreError(Exception):
    """The base of all exceptions of this package."""


class LocalProtocolError(BridgecoreError):
    """The caller made a mistake: an event that is impossible now, or a value of a wrong type.

    The object that raised it is unchanged and can be used further. h11 and wsproto have exceptions
    of the same name; those never leave this package.
    """


class ConfigError(BridgecoreError, ValueError):
    """A setting, a policy or a URL is invalid. The message has its name, its value and what to do.

    Also a ``ValueError``, because that is what Python raises for invalid values.
    """


class InternalError(BridgecoreError):
    """A bug: an invariant of bridgecore is broken. The message has the rule and the last steps."""
