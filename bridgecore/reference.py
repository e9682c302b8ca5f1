"""A request that is about the context of a response, and no turn: to compact it, or to count it.

What belongs here: which response such a request names, and its body with the whole input in place
of that id. Where the input comes from is a matter of ``continuity.memory``; whether a store has to
be asked first, of ``replica``.
"""

from __future__ import annotations

import attrs

from bridgecore.api_error import api_error
from bridgecore.continuity.memory import Memory
from bridgecore.messages import ContextPrepared, ContextUnavailable
from bridgecore.tenancy import foreign_reference, unsupported_reference
from bridgecore.wire.headers import Headers
from bridgecore.wire.requests import CreateRequest, InvalidBodyError, parse_reference


@attrs.frozen
class Reference:
    """One such request.

    ``query``: its number, which is the driver's. ``scope``: its tenant. ``response``: the id that
    it names. ``request``: ``body``, parsed. ``headers``: the client's, names in lower case.
    ``shared``: the tenant shares its upstream credential with others.
    """

    query: int
    scope: str
    response: str
    request: CreateRequest
    body: bytes = attrs.field(repr=False)
    headers: Headers = attrs.field(repr=False)
    shared: bool

    @classmethod
    def read(
        cls, query: int, scope: str, body: bytes, headers: Headers, *, shared: bool
    ) -> Reference | ContextUnavailable | None:
        """Read ``body``; None if it names no response, or cannot be read: then the upstream will
        say what is wrong with it. Of a tenant with a shared credential it is refused then, as the
        upstream might read it."""
        try:
            request = parse_reference(body)
        except InvalidBodyError as exc:
            error = api_error(400, "invalid_request_body", exc.message, param=exc.param)
            return ContextUnavailable(query, error) if shared else None
        named = request.previous_response_id
        if named:
            return cls(query, scope, named, request, body, headers, shared)
        refused = unsupported_reference(request) if shared else None
        return None if refused is None else ContextUnavailable(query, refused)

    def prepare(self, memory: Memory, now: int) -> ContextPrepared | ContextUnavailable:
        """Its answer, from what ``memory`` has."""
        if self.shared:
            refused = foreign_reference(memory, self.scope, self.request, now)
            if refused is not None:
                return ContextUnavailable(self.query, refused)
        whole = memory.whole_request(self.scope, self.request, self.body, self.headers, now)
        return ContextPrepared(self.query, whole)
