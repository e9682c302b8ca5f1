"""The upstream of a run: an emulator with faults by client and turn, and restarts.

What belongs here: how the emulator is set up from the random seed, when it restarts, which client
and turn each of its frames belongs to, and which fault each of them meets. What the frames should
contain is checked in ``checks.py``.
"""

from __future__ import annotations

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.clients import Client, answer, marks
from bridgecore.simulate.report import Journal
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.strikes import Strikes
from bridgecore.simulate.witness import encode
from bridgecore.testing.answers import CreateFrame
from bridgecore.testing.emulator import Emulator, is_met
from bridgecore.testing.faults import Fault, FaultPlan, Point, ReadSlowly, When
from bridgecore.testing.network import MILLISECOND, NO_CLIENT, Network

HOST, PORT = "upstream", 80
_OF_CONNECTIONS = frozenset({Point.ON_CONNECT, Point.ON_UPGRADE})
_SLOWLY = Fault(Point.WHILE_RECEIVING, ReadSlowly())


def emulator_of(seed: int) -> Emulator:
    """The emulator of a run, with its pace and the lifetime of its connections drawn."""
    rng = Rng(seed, 0)
    interval = rng.pick((0, 0, 150)) * MILLISECOND
    lifetime = rng.pick((None, 1500, 3600))
    grace = rng.pick((None, 5))
    return Emulator(
        seed=seed,
        answer=answer,
        deltas=2,
        delta_interval=interval,
        lifetime=None if lifetime is None else lifetime * NS_PER_SECOND,
        lifetime_grace=None if grace is None else grace * NS_PER_SECOND,
    )


class Upstream:
    """Drives the faults and restarts of ``emulator``, and attributes the frames that it
    received."""

    def __init__(
        self,
        scenario: Scenario,
        network: Network,
        emulator: Emulator,
        strikes: Strikes,
        clients: dict[int, Client],
        journal: Journal,
    ) -> None:
        self.emulator = emulator
        self.away = 0  # ns, until when it is or was away
        self.faulted: dict[int, Fault] = {}  # create frame -> its fault
        self.reads_slowly = scenario.odd and Rng(scenario.seed, 8).one_in(4)
        self._scenario = scenario
        self._network = network
        self._strikes = strikes
        self._clients = clients
        self._journal = journal
        self._struck: dict[int, set[int]] = {}  # client -> turns whose fault has occurred
        self._of_create: dict[int, tuple[int, int]] = {}  # create frame -> (client, turn)
        # create frame -> the ``When`` of faults that can strike it
        self._whens: dict[int, set[When]] = {}
        emulator.faults = _Faults(self)

    # ------------------------------------------------------------ restarts

    def schedule_restart(self, nth: int = 0) -> None:
        """Plan the ``nth`` restart, and from there the next one, until the run ends."""
        rng = Rng(self._scenario.seed, 5, nth)
        pause = rng.between(1800, 9000) * NS_PER_SECOND // self._scenario.haste
        when = self._network.now + pause
        if (NO_CLIENT, nth) not in self._scenario.spared:
            self._network.at(when, lambda: self._restart(rng))
        self._network.at(when, lambda: None if self._over() else self.schedule_restart(nth + 1))

    def _restart(self, rng: Rng) -> None:
        if self._over():
            return
        seconds = rng.pick((0, 2, 20, 90))
        self._journal.note(f"the upstream restarts and is away for {seconds} s")
        self._journal.report.restarts += 1
        self.away = self._network.now + seconds * NS_PER_SECOND
        self._network.remove_listener(HOST, PORT)
        for end in self._network.ends(self.emulator):
            self._network.reset(end)
        self._network.at(self.away, lambda: self._network.add(self.emulator, HOST, PORT))

    def _over(self) -> bool:
        return self._journal.full or all(client.done for client in self._clients.values())

    # ------------------------------------------------------------ faults

    def owner_of(self, nth: int) -> tuple[int, int] | None:
        """The client and turn for which the ``nth`` create frame was sent, if they are known."""
        if nth not in self._of_create:
            for request in self.emulator.requests:
                self._of_create.setdefault(request.number, _owner_of(request))
                self._whens[request.number] = {one for one in When if is_met(request, one)}
        return self._of_create.get(nth)

    def fault(self, nth: int, point: Point) -> Fault | None:
        """The fault of the ``nth`` connection or turn at ``point``."""
        whens = set(When)
        if point in _OF_CONNECTIONS:
            client = self._network.accepted(self.emulator, nth).label
        else:
            found = self.owner_of(nth)
            if found is None:
                return None
            client = found[0]
            if found[1] != self._turn_of(client):
                return None  # a late frame of a turn that has ended
            whens = self._whens[nth]
        met = self._strikes.trouble_of(client)
        if met is None or not isinstance(met.what, Fault) or met.what.point is not point:
            return None
        if met.what.when not in whens:
            return None
        turn = self._turn_of(client)
        struck = self._struck.setdefault(client, set())
        if turn in struck:
            return None  # each fault strikes once
        struck.add(turn)
        if point not in _OF_CONNECTIONS:
            self.faulted[nth] = met.what
        self._journal.note(f"client {client} turn {turn}: {met}")
        return met.what

    def _turn_of(self, client: int) -> int:
        found = self._clients.get(client)
        return 0 if found is None else found.turn


class _Faults(FaultPlan):
    """Faults by client and turn; a ``FaultPlan`` has them by number."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__()
        self._upstream = upstream

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults of the ``nth`` connection or turn at ``point``."""
        if point is Point.WHILE_RECEIVING:  # frames are broken by the network instead
            return [_SLOWLY] if self._upstream.reads_slowly else []
        fault = self._upstream.fault(nth, point)
        return [] if fault is None else [fault]


def _owner_of(request: CreateFrame) -> tuple[int, int]:
    """The client and turn of a create frame: the last mark in it. Earlier marks are in
    its history."""
    for item in reversed(request.input):
        found = marks(encode(item))
        if found:
            return found.pop() if len(found) == 1 else (NO_CLIENT, 0)
    return NO_CLIENT, 0
