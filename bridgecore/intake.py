"""The intake of a turn: received, resolved, routed, admitted, submitted.

What belongs here: turns that have no conversation yet, and the first two steps of their intake.

* **received**: the scope (tenant) of the turn and the headers of its upgrade request are read from
  the client's headers. The turn's deadline is fixed here and passed on to the session, so that all
  steps share one budget of time.
* **resolved**: what is known about the response that it continues has been looked up. This can take
  time: a driver may have to ask elsewhere (``Resolver``), or this replica has to claim the
  conversation in the store first (``bridgecore.replica``).

The other steps follow at once, in ``Bridge``:

* **routed**: a session was chosen for it (``bridgecore.admission.placement``);
* **admitted**: there is room for a new session, if it needs one. This depends on the route, so it
  comes after it (``bridgecore.admission.limits``);
* **submitted**: the conversation has taken it over.

Between two events a turn is in one of two stages: ``RESOLVING``, waiting for the result of a
look-up, or ``RESOLVED``, ready to be routed. A queue for admission would hold turns that are
``RESOLVED``: sessions change while a turn waits, so it has to be routed when there is room, and not
before.
"""

from __future__ import annotations

import enum

import attrs

from bridgecore.config import Config
from bridgecore.continuity.aliases import credential_scope, named_scope
from bridgecore.continuity.memory import NARROWING_HEADERS, Memory, TurnContext
from bridgecore.messages import ResolveTurn, TurnReceived, TurnResolved
from bridgecore.ownership.forwards import Forward
from bridgecore.wire.headers import Headers, credential_names, lower_names, upgrade_headers
from bridgecore.wire.requests import CreateRequest


class Resolver(enum.Enum):
    """Where the response that a turn continues is looked up."""

    MEMORY = "memory"  # in the memory of this process, at once
    DRIVER = "driver"  # by the driver, elsewhere: ``ResolveTurn``, answered by ``TurnResolved``


class Stage(enum.Enum):
    """The stage of a turn in intake, between two events."""

    RESOLVING = "resolving"  # the look-up is running
    RESOLVED = "resolved"  # the look-up is complete


@attrs.define(eq=False)
class Arriving:
    """A turn in intake.

    ``scope``: its tenant. ``received``: its client's headers, names in lower case; ``headers``:
    those of them that its upgrade request carries. ``deadline``: ns, when its whole budget of time
    ends. ``query``: the number of its look-up by a driver, 0 if there was none. ``forward``: what
    the replica that has forwarded it says about it. ``tried``: the leases of the owners to which it
    was forwarded from here; ``declined``: the latest of them has answered that it has not sent it.
    """

    id: int
    scope: str
    request: CreateRequest
    received: Headers
    headers: Headers
    request_id: str
    deadline: int
    query: int = 0
    stage: Stage = Stage.RESOLVED
    forward: Forward | None = None
    tried: tuple[str, ...] = ()
    declined: bool = False

    @property
    def forwarded_headers(self) -> Headers:
        """The headers that a forward of it needs: those that go upstream or tell conversations of
        one client apart, as the client sent them."""
        names = {name for name, _ in self.headers} | NARROWING_HEADERS
        return [header for header in self.received if header[0] in names]


class Intake:
    """The turns in intake. ``budget``: ns that a turn may take from here to its end."""

    def __init__(self, config: Config, memory: Memory, budget: int, resolver: Resolver) -> None:
        # No other header of a client is sent upstream: hop-by-hop headers, cookies, and what a
        # proxy has added must not leak to another host.
        self._forwarded = frozenset(name.encode("ascii") for name in config.forward_headers)
        self._credential = credential_names(config.forward_headers)
        self._memory = memory
        self._budget = budget
        self._resolver = resolver
        self._resolving: dict[int, Arriving] = {}  # by the number of the turn
        self._asked: dict[int, Arriving] = {}  # the same, by the number of the query
        self._queries = 0

    def __len__(self) -> int:
        """How many turns are being resolved."""
        return len(self._resolving)

    def __contains__(self, turn: int) -> bool:
        return turn in self._resolving

    def was_asked(self, query: int) -> bool:
        """Whether there was a ``ResolveTurn`` with this number."""
        return 0 < query <= self._queries

    def receive(self, event: TurnReceived, now: int) -> Arriving:
        """Take in a turn. If it is ``RESOLVING`` then, it is kept, and ``question`` is the effect
        to return for it."""
        scope, received = self.identify(event.headers, event.scope)
        budget = self._budget
        if event.forward is not None:
            # The sender may be of an embedder that names tenants, so it says which one this is.
            scope, budget = event.forward.scope, min(budget, event.forward.budget)
        turn = Arriving(
            event.turn,
            scope,
            event.request,
            received,
            upgrade_headers(received, self._forwarded),
            event.request_id or "-",
            now + budget,
            forward=event.forward,
        )
        if self._resolver is Resolver.DRIVER:
            self._queries += 1
            turn.query = self._queries
            self._asked[turn.query] = turn
            self.hold(turn)
        return turn

    def identify(self, headers: Headers, scope: str | None) -> tuple[str, Headers]:
        """The scope of a request, and its headers with names in lower case. ``scope``: the tenant,
        if the driver names it."""
        received = lower_names(headers)
        if scope is None:
            return credential_scope(received, self._credential), received
        return named_scope(scope), received

    def hold(self, turn: Arriving) -> None:
        """Keep a turn until what it needs is looked up."""
        turn.stage = Stage.RESOLVING
        self._resolving[turn.id] = turn

    def question(self, turn: Arriving) -> ResolveTurn:
        """The effect that has the driver resolve ``turn``."""
        return ResolveTurn(turn.query, turn.id, turn.scope, turn.request)

    def resolved(self, event: TurnResolved) -> Arriving | None:
        """Store the result of a look-up and return its turn, which leaves intake.

        None if the turn is gone: abandoned, refused for its deadline, or resolved before.
        """
        turn = self._asked.get(event.query)
        if turn is None:
            return None
        self.leave(turn.id)
        named = turn.request.previous_response_id
        if event.known is not None and named:
            known = event.known
            self._memory.learn(turn.scope, named, known.response, stored=known.stored)
        return turn

    def leave(self, turn: int) -> Arriving | None:
        """Remove a turn and return it; None if it is not here."""
        found = self._resolving.pop(turn, None)
        if found is not None:
            self._asked.pop(found.query, None)
            found.stage = Stage.RESOLVED
        return found

    def foreign(self, turn: Arriving) -> TurnContext:
        """The context of a turn that another replica answers: nothing is known about it here."""
        return self._memory.foreign(turn.scope, turn.request)

    def recall(self, turn: Arriving, now: int) -> TurnContext:
        """What is known about the context of a resolved turn. Called when the turn is routed and no
        earlier, because other turns may have ended in the meantime."""
        return self._memory.recall(turn.scope, turn.request, turn.received, now)
