"""Door 1, the decisions: a ``Session`` beside a socket loop of your own.

The upstream here is a toy: it takes a line for a turn and answers with lines. It drops its first
connection right after the turn came. The policy is the default one with one cell replaced: a turn
without an anchor is sent again, because in this program a turn that runs twice does no harm.
"""

from __future__ import annotations

import socket
import threading
import time

from bridgecore import DEFAULT, Action, FailureReply, Remedy, Session, Situation, Standing
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import Closed, Unreachable

POLICY = DEFAULT.with_cell(
    Situation.LOST_SENT,
    Standing.UNANCHORED,
    Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE),
)


def toy_upstream(listener: socket.socket) -> None:
    """Lose the first turn, answer the second."""
    for answer in (b"", b"created\noutput Hello!\ncompleted\n"):
        connection, _ = listener.accept()
        with connection:
            connection.makefile("rb").readline()
            connection.sendall(answer)


class Driver:
    """Carries out what a session decides about one turn at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.session = Session(policy=POLICY)
        self.generation = 0
        self.socket = socket.socket()
        self.over = False
        self.lines: list[str] = []

    def handle(self, event: ev.Event) -> None:
        """Report an event, and carry out what it leads to."""
        effects = self.session.handle(event, time.monotonic_ns())
        for cell in self.session.cells:
            self.lines.append(f"decided by {cell}")
        self.carry_out(effects)

    def carry_out(self, effects: tuple[fx.Effect, ...]) -> None:
        """Do what the session says, in order; what follows is reported after that."""
        follow: list[ev.Event] = []
        for effect in effects:
            match effect:
                case fx.OpenConnection():
                    self.generation = effect.generation
                    self.socket.close()
                    try:
                        self.socket = socket.create_connection(self.address, timeout=5)
                        follow.append(ev.ConnectionOpened(effect.generation))
                    except OSError:
                        lost = ev.ConnectionLost(effect.generation, Unreachable("refused"))
                        follow.append(lost)
                case fx.SendTurn():
                    self.socket.sendall(b"turn\n")
                    follow.append(ev.FrameSent(effect.generation))
                case fx.CloseConnection():
                    self.socket.close()
                case fx.CompleteTurn():
                    self.over = True
                case fx.FailTurn():
                    self.lines.append(f"failed: {effect.answer.value}")
                    self.over = True
                case _:
                    pass  # this program holds nothing back, warms nothing, and has no replicas
        for event in follow:
            self.handle(event)

    def run(self, turn: int) -> None:
        """Bring one turn to its end."""
        self.over = False
        self.handle(ev.TurnSubmitted(ev.Turn(turn)))
        while not self.over:
            deadline = self.session.next_timeout()
            left = 1.0 if deadline is None else (deadline.at - time.monotonic_ns()) / 1e9
            self.socket.settimeout(max(left, 0.001))
            try:
                line = self.socket.makefile("rb", buffering=0).readline().decode()
            except TimeoutError:
                self.carry_out(self.session.handle_timeout(time.monotonic_ns()))
                continue
            except OSError:
                line = ""
            word, _, text = line.strip().partition(" ")
            if word == "created":
                self.handle(ev.ResponseCreated(self.generation))
            elif word == "output":
                self.lines.append(text)
                self.handle(ev.OutputReceived(self.generation))
            elif word == "completed":
                self.handle(ev.ResponseEnded(self.generation, ev.Outcome.COMPLETED))
            else:
                self.socket.close()
                self.handle(ev.ConnectionLost(self.generation, Closed(1006)))


def main() -> list[str]:
    """Run one turn; what happened, a line each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = threading.Thread(target=toy_upstream, args=[listener])
        upstream.start()
        driver = Driver(listener.getsockname())
        driver.run(turn=1)
        driver.socket.close()
        upstream.join()
    return driver.lines


if __name__ == "__main__":
    print("\n".join(main()))
