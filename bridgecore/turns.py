"""A turn that was routed to a conversation.

What belongs here: what the bridge has to remember of a turn from its routing to its end, and the
one event that it writes into an answer itself, a ``response.created`` that the upstream left out.
"""

from __future__ import annotations

import attrs

from bridgecore.continuity.memory import TurnContext
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.responses import (
    ITEM_DONE,
    EventKind,
    Terminal,
    UpstreamEvent,
    created_event,
)


@attrs.define(eq=False)
class RoutedTurn:
    """A turn of a conversation.

    ``warms``: it is the bridge's own, and only preloads a new connection with the context
    (``generate: false``); no client is told of it. ``request``: what log lines call its request.
    ``deadline``: ns, when its whole budget ends; None: the policy's begins when it is submitted.
    """

    id: int
    recall: TurnContext
    request: str = "-"
    deadline: int | None = None
    warms: bool = False
    # Of the latest attempt to send it.
    form: RequestForm = RequestForm.AS_IS
    sent: int = 0  # bytes of the frame
    frame: bytes = b""  # kept until the upstream has accepted it
    error: ErrorFrame | None = None  # the upstream's latest words about it
    stored: bool | None = None  # whether the response is stored, as far as response.created said
    items: list[bytes] = attrs.Factory(list)  # its response.output_item.done events
    # Of the answer, as its client was told.
    opened: bool = False  # a response.created was delivered
    names: list[str] = attrs.Factory(list)  # response ids that only the bridge gave it

    def begin_attempt(self) -> None:
        """Forget what the attempt before this one was told: its errors are not this one's."""
        self.error = None
        self.stored = None
        self.items.clear()

    def deliver(self, events: list[UpstreamEvent], conversation: int) -> list[UpstreamEvent]:
        """Take ``events`` in; those to pass on to the client, ``response.created`` first.

        ``conversation``: its number, of which a response id is made where the upstream gave none.
        """
        for event in events:
            if event.type == ITEM_DONE:
                self.items.append(event.data)
        if self.warms:
            return []
        if not self.opened:
            self.opened = True
            if events[0].kind is not EventKind.CREATED:
                return [self._missing_created(events, conversation), *events]
        return events

    def _missing_created(self, events: list[UpstreamEvent], conversation: int) -> UpstreamEvent:
        """The ``response.created`` that the upstream left out. Its client may continue from the id
        in it, whatever the upstream calls the response at the end."""
        told = next((each for each in events if each.response is not None), events[0])
        # The number before the first of the upstream's, which may be 0: a client that takes numbers
        # which do not rise for repetitions must drop neither event.
        first = events[0].sequence_number
        event = created_event(
            told,
            f"resp_{conversation}_{self.id}",
            self.recall.request.model,
            sequence=first - 1 if first >= 0 else 0,
        )
        if event.response is not None:
            self.names.append(event.response)
        return event

    def response_ids(self, terminal: Terminal, responses: tuple[str, ...]) -> list[str]:
        """The ids of its response: that of the terminal event first, then any other that a client
        was told and may name. ``responses``: those by which the upstream called it."""
        others = [name for name in (*self.names, *responses) if name != terminal.response_id]
        return others if terminal.response_id is None else [terminal.response_id, *others]
