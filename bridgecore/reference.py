"""A request that is about the context of a response, and no turn: to compact it, or to count it.

What belongs here: which response such a request names, and its body with the whole input in place
of that id. Where the input comes from is a matter of ``continuity.memory``; whether a store has to
be asked first, of ``replica``.
"""

from __future__ import annotations

import attrs

from bridgecore.continuity.memory import Memory
from bridgecore.messages import ContextPrepared
from bridgecore.wire.headers import Headers
from bridgecore.wire.requests import CreateRequest, InvalidBodyError, parse_reference


@attrs.frozen
class Reference:
    """One such request.

    ``query``: its number, which is the driver's. ``scope``: its tenant. ``response``: the id that
    it names. ``request``: ``body``, parsed. ``headers``: the client's, names in lower case.
    """

    query: int
    scope: str
    response: str
    request: CreateRequest
    body: bytes = attrs.field(repr=False)
    headers: Headers = attrs.field(repr=False)

    @classmethod
    def read(cls, query: int, scope: str, body: bytes, headers: Headers) -> Reference | None:
        """Read ``body``; None if it names no response, or cannot be read: then the upstream will
        say what is wrong with it."""
        try:
            request = parse_reference(body)
        except InvalidBodyError:
            return None
        named = request.previous_response_id
        return cls(query, scope, named, request, body, headers) if named else None

    def prepare(self, memory: Memory, now: int) -> ContextPrepared:
        """Its answer, from what ``memory`` has."""
        whole = memory.whole_request(self.scope, self.request, self.body, self.headers, now)
        return ContextPrepared(self.query, whole)
