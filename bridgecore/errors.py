"""The exceptions that bridgecore raises to its caller, and a question in many of their messages.

What belongs here: the base class and the three kinds of exceptions, and ``did_you_mean``. All
exceptions that can reach a caller derive from ``BridgecoreError``. An error of a peer is never an
exception: it leads to an effect, such as an error answer or a closed connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final


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


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """``; did you mean NAME?``, with the one of ``names`` most like ``word``, for the message that
    rejects ``word``; empty if none is like it.

    The dashes of flags are not compared: they would make any two short flags alike.
    """
    import difflib  # only for a message

    if not isinstance(word, str):
        return ""
    bare = {name.lstrip("-"): name for name in names}
    close = difflib.get_close_matches(word.lstrip("-")[:_COMPARED], bare, n=1, cutoff=_ALIKE)
    return f"; did you mean {bare[close[0]]}?" if close else ""


_ALIKE: Final = 0.65  # of 1; with 0.6 "bogus" is like "robust"
_COMPARED: Final = 60  # characters; no name is longer, and comparing takes quadratic time
