"""The state of a turn, from its routing to its end.

What belongs here: that state, and the one event that the bridge may add to an answer: a
``response.created`` that the upstream has left out.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from bridgecore.continuity.memory import TurnContext
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.headers import Headers
from bridgecore.wire.responses import ITEM_DONE, EventKind, UpstreamEvent, created_event
from bridgecore.wire.terminal import Terminal


@attrs.define(eq=False)
class RoutedTurn:
    """A turn of a conversation.

    ``warms``: it is not a client's but the bridge's own, and only preloads a new connection with
    the context (``generate: false``). ``request``: the id of its request in log records.
    ``deadline``: ns, when its budget of time ends; None: the policy's, counted from submission.
    ``sign``: for a turn that is forwarded to another replica: the headers of the forward, for its
    frame and the time (ns).
    """

    id: int
    recall: TurnContext
    request: str = "-"
    deadline: int | None = None
    warms: bool = False
    sign: Callable[[bytes, int], Headers] | None = None
    # State of the latest attempt to send it.
    form: RequestForm = RequestForm.AS_IS
    sent: int = 0  # bytes of the frame
    cell: dict[str, str] = attrs.Factory(dict)  # the log field of the cell that decided to send it
    frame: bytes = b""  # the frame, kept until the first event is delivered
    error: ErrorFrame | None = None  # the upstream's latest error about it
    stored: bool | None = None  # ``store`` in its response.created
    items: list[bytes] = attrs.Factory(list)  # its response.output_item.done events
    # State of its answer.
    opened: bool = False  # response.created was delivered
    names: list[str] = attrs.Factory(list)  # response ids in events that the bridge has added

    def begin_attempt(self) -> None:
        """Reset what was received for an earlier attempt: its error must not be taken for this
        one's."""
        self.error = None
        self.stored = None
        self.items.clear()

    def deliver(self, events: list[UpstreamEvent], conversation: int) -> list[UpstreamEvent]:
        """Record ``events``; return those to send to the client, with ``response.created`` first.

        ``conversation``: its number, from which a response id is made if the upstream gave none.
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
        """A ``response.created`` in place of one that the upstream has left out. The client may
        continue from the id in it, even if the terminal event has another one."""
        named = next((each for each in events if each.response is not None), events[0])
        # One less than the first number of the upstream's, which may be 0. Clients may drop an
        # event whose number is not higher than the one before.
        first = events[0].sequence_number
        event = created_event(
            named,
            f"resp_{conversation}_{self.id}",
            self.recall.request.model,
            sequence=first - 1 if first >= 0 else 0,
        )
        if event.response is not None:
            self.names.append(event.response)
        return event

    def response_ids(self, terminal: Terminal, responses: tuple[str, ...]) -> list[str]:
        """The ids of its response: first that of the terminal event, then all others that its
        client has seen and may continue from. ``responses``: the ids in the upstream's events."""
        others = [name for name in (*self.names, *responses) if name != terminal.response_id]
        return others if terminal.response_id is None else [terminal.response_id, *others]
