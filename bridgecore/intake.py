"""A turn's way in: received, resolved, routed, admitted, submitted.

What belongs here: turns that were received and have no conversation yet, and the first two steps of
their way, up to knowing what the turn depends on:

* **received**: whose the turn is (its scope) and what its upgrade request carries is read from its
  headers. Its whole budget begins: its deadline goes with it to the session.
* **resolved**: what is known about the response that it continues is looked up. This can take time,
  if it is known elsewhere, in a store or by another replica: see ``Resolver``.

The other steps are taken at once, in ``Bridge``:

* **routed**: which session it goes to (``bridgecore.admission.placement``);
* **admitted**: whether there is room, if it gets a session of its own; so this comes after the
  route (``bridgecore.admission.limits``);
* **submitted**: it is the conversation's from then on.

Between two events a turn is in one of two stages. ``RESOLVING``: an answer about it is awaited.
``RESOLVED``: it can be routed. That is also where a turn would wait for room, if there were a queue
for it: while it waits, sessions come and go, so it is routed when there is room, and not before.
"""

from __future__ import annotations

import enum

import attrs

from bridgecore.config import Config
from bridgecore.continuity.aliases import credential_scope, named_scope
from bridgecore.continuity.memory import Memory, TurnContext
from bridgecore.messages import ResolveTurn, TurnReceived, TurnResolved
from bridgecore.wire.headers import Headers, credential_names, lower_names, upgrade_headers
from bridgecore.wire.responses import CreateRequest


class Resolver(enum.Enum):
    """Who finds out what a turn depends on."""

    MEMORY = "memory"  # what this process remembers is all there is: at once
    DRIVER = "driver"  # the driver asks others: ``ResolveTurn``, then ``TurnResolved``


class Stage(enum.Enum):
    """Where a turn is on its way in, between two events."""

    RESOLVING = "resolving"  # what it depends on was asked for
    RESOLVED = "resolved"  # what it depends on is known


@attrs.define(eq=False)
class Arriving:
    """A turn on its way in.

    ``received``: its client's headers, names in lower case; ``headers``: those of its upgrade
    request. ``deadline``: ns, when its whole budget ends. ``query``: the number of the question
    about it, 0 if none was asked.
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


class Intake:
    """The turns on their way in. ``budget``: of a turn, in ns."""

    def __init__(self, config: Config, memory: Memory, budget: int, resolver: Resolver) -> None:
        # Everything else of a client's head stays here: hop-by-hop headers, cookies and whatever a
        # proxy put in must not leak to another host.
        self._forwarded = frozenset(name.encode("ascii") for name in config.forward_headers)
        self._credential = credential_names(config.forward_headers)
        self._memory = memory
        self._budget = budget
        self._resolver = resolver
        self._resolving: dict[int, Arriving] = {}  # by number
        self._asked: dict[int, Arriving] = {}  # the same, by the number of the question
        self._queries = 0

    def __len__(self) -> int:
        """How many turns rest here."""
        return len(self._resolving)

    def __contains__(self, turn: int) -> bool:
        return turn in self._resolving

    def was_asked(self, query: int) -> bool:
        """Whether ``ResolveTurn`` had this number."""
        return 0 < query <= self._queries

    def receive(self, event: TurnReceived, now: int) -> Arriving:
        """Take in a turn. If it has to be resolved first, it stays, and ``question`` is to be asked
        about it."""
        received = lower_names(event.headers)
        if event.scope is None:
            scope = credential_scope(received, self._credential)
        else:
            scope = named_scope(event.scope)
        turn = Arriving(
            event.turn,
            scope,
            event.request,
            received,
            upgrade_headers(received, self._forwarded),
            event.request_id or "-",
            now + self._budget,
        )
        if self._resolver is Resolver.DRIVER:
            self._queries += 1
            turn.query, turn.stage = self._queries, Stage.RESOLVING
            self._resolving[turn.id] = self._asked[turn.query] = turn
        return turn

    def question(self, turn: Arriving) -> ResolveTurn:
        """What to ask about a turn that is to be resolved."""
        return ResolveTurn(turn.query, turn.id, turn.scope, turn.request)

    def resolved(self, event: TurnResolved) -> Arriving | None:
        """Take in an answer; the turn that waited for it, which does not stay. None: there is none
        any more, because it has left, its budget was used up, or it was answered before."""
        turn = self._asked.get(event.query)
        if turn is None:
            return None
        self.leave(turn.id)
        named = turn.request.previous_response_id
        if event.known is not None and named:
            known = event.known
            self._memory.learn(turn.scope, named, known.response, stored=known.stored)
        turn.stage = Stage.RESOLVED
        return turn

    def leave(self, turn: int) -> Arriving | None:
        """Let a turn go; it, if it was here."""
        found = self._resolving.pop(turn, None)
        if found is not None:
            del self._asked[found.query]
        return found

    def recall(self, turn: Arriving, now: int) -> TurnContext:
        """What is known for a turn that is resolved. Looked up when it is needed, not before: by
        then other turns may have ended."""
        return self._memory.recall(turn.scope, turn.request, turn.received, now)
