"""Turns of the emulator: what was asked, what is still to be sent for it, and the result.

What belongs here: the state of one turn. It is written by ``events``, and sent by ``service``.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TypeAlias

import attrs

from bridgecore.testing.answers import CreateFrame, Json
from bridgecore.testing.emulator.context import PriorResponse
from bridgecore.testing.emulator.conversations import Conversation
from bridgecore.testing.faults import Change, Fault


class Outcome(enum.Enum):
    """The result of a turn."""

    RUNNING = "running"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"  # cut off by max_output_tokens; can be continued
    FAILED = "failed"  # ended with an error frame, or with a scripted terminal event
    SILENT = "silent"  # nothing more will be sent for it
    LOST = "lost"  # its connection ended first


@attrs.frozen
class Finish:
    """The last step of a turn: the terminal event, and the response to continue."""

    output: list[Json]
    usage: Json
    prior: PriorResponse  # as later turns see it
    response: Json  # the response object of response.created
    incomplete: bool


Step: TypeAlias = Json | Fault | Finish
"""What is sent, or done, next for a turn: an event, a fault, or the end."""


@attrs.define(eq=False)
class Turn:
    """A create frame that was started in its lane, and its result."""

    request: CreateFrame
    response_id: str
    outcome: Outcome = Outcome.RUNNING
    usage: Json | None = None  # as in its terminal event
    created_id: str = ""  # the id in response.created, if it is not response_id
    _steps: deque[Step] = attrs.field(factory=deque, init=False)

    @property
    def unsent(self) -> int:
        """How many events, and faults between them, are still to come."""
        return len(self._steps)


@attrs.define(eq=False)
class RunningTurn:
    """A turn in its lane, with what is needed to send its events."""

    turn: Turn
    due: int  # ns, when the next delta may be sent
    changes: set[Change] = attrs.field(factory=set, init=False)
    sequence: int = attrs.field(default=0, init=False)  # the next sequence_number
    stuck: bool = attrs.field(default=False, init=False)  # holds its lane for ever
    # To which the input and the output are added at the end.
    conversation: Conversation | None = attrs.field(default=None, init=False)
    given: tuple[Json, ...] = attrs.field(default=(), init=False)  # the input

    @property
    def request(self) -> CreateFrame:
        """The create frame of the turn."""
        return self.turn.request

    @property
    def steps(self) -> deque[Step]:
        """What is still to be sent or done, in order."""
        return self.turn._steps

    def end(self, outcome: Outcome) -> bool:
        """Send nothing more. The first outcome of a turn stands: one that has completed is not lost
        with its connection.

        Returns:
            Whether the turn was still running.
        """
        self.steps.clear()
        if self.turn.outcome is not Outcome.RUNNING:
            return False
        self.turn.outcome = outcome
        return True

    def silence(self) -> None:
        """Send nothing more, and let no other turn into the lane."""
        self.stuck = True
        self.end(Outcome.SILENT)
