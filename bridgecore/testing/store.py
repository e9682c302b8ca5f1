"""A store in memory, for tests and simulations: the reference model, and a virtual store around it.

What belongs here: how a store is reached on a network in virtual time. What it answers is defined
by ``StoreModel``; its module is in ``bridgecore.verify``, because the explorers run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bridgecore.ownership import store as st
from bridgecore.verify.store_model import StoreModel

__all__ = ["Clock", "StoreModel", "VirtualStore"]


class VirtualStore:
    """A store on a virtual network: ``network`` passes it the questions of a machine.

    ``latency``: ns from a question until it is carried out, and again until its answer arrives.
    ``answers``: False: nothing is carried out from now on. ``silent``: what is carried out is not
    answered. ``fails``: why nothing is carried out, which is answered; empty: it is.
    """

    def __init__(self, network: Clock, model: StoreModel | None = None, latency: int = 0) -> None:
        self.model = StoreModel() if model is None else model
        self.latency = latency
        self.answers = True
        self.silent = False
        self.fails = ""
        self.asked: list[st.Question] = []
        self._network = network

    def __call__(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        """Carry out a question of a machine."""
        self.asked.append(question)
        if self.answers:
            at = self._network.now + self.latency
            self._network.at(at, lambda: self._carry_out(question, answered))

    def _carry_out(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        now = self._network.now
        answer = st.Failed(self.fails) if self.fails else self.model.handle(question, now)
        if not self.silent:
            self._network.at(now + self.latency, lambda: answered(answer))


class Clock(Protocol):
    """What a virtual store needs of a network: its time (ns), and to be called at a time."""

    now: int

    def at(self, when: int, do: Callable[[], None]) -> None:
        """Call ``do`` at ``when`` (ns)."""
