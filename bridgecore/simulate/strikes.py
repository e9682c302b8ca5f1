"""Carries out the network faults of a run, turn by turn, and says what they explain.

What belongs here: which connection is struck, when, and which failures a client may see because of
it. Which faults there are is defined in ``troubles.py``, what they do to a connection in
``bridgecore.testing.network``.
"""

from __future__ import annotations

from bridgecore.simulate.clients import Client
from bridgecore.simulate.paths import Paths
from bridgecore.simulate.report import Journal
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.troubles import Strike, Trouble, name_of, trouble
from bridgecore.testing.faults import Alter, Change, CloseWith, Error, Fault, SendEvents, When
from bridgecore.testing.network import MILLISECOND, End, Network
from bridgecore.transport import Machine

_OF_CLIENT = frozenset({Strike.CLIENT_CUT_UP, Strike.CLIENT_CUT_DOWN, Strike.CLIENT_STALL})
_BETWEEN = frozenset(
    {
        Strike.IDLE_RESET,
        Strike.IDLE_CLOSED,
        Strike.IDLE_HALF_OPEN,
        Strike.REFUSED,
        Strike.SWALLOWED,
    }
)


class Strikes:
    """The faults of the running turns. ``upstream`` is the machine whose connections are struck."""

    def __init__(
        self,
        scenario: Scenario,
        network: Network,
        paths: Paths,
        upstream: Machine,
        journal: Journal,
    ) -> None:
        self._scenario = scenario
        self._network = network
        self._paths = paths
        self._upstream = upstream
        self._journal = journal
        self._troubles: dict[int, Trouble | None] = {}  # client -> fault of its turn
        self._began: dict[int, int] = {}  # client -> ns, start of its turn
        self._wires: dict[int, End] = {}  # client -> its connection, as of its latest attempt

    def trouble_of(self, client: int) -> Trouble | None:
        """The fault of the client's current turn, if there is one."""
        return self._troubles.get(client)

    # ------------------------------------------------------------ carrying out faults

    def before_turn(self, client: Client) -> None:
        """Strike the idle connections before the next turn of ``client``, if that is its fault."""
        met = self._draw(client.number, client.turn + 1)
        if met is None or met.what not in _BETWEEN:
            return
        network, number = self._network, client.number

        def strike() -> None:
            self._journal.note(f"client {number}, before turn {client.turn + 1}: {met}")
            for end in self._links(number):
                if met.what is Strike.IDLE_CLOSED:
                    network.finish(end)
                elif met.what is Strike.IDLE_HALF_OPEN:
                    network.vanish(end)
                else:
                    network.reset(end)

        network.at(network.now + 300 * MILLISECOND, strike)

    def turn_begins(self, client: Client) -> None:
        """Prepare the fault of the turn."""
        network, paths, number = self._network, self._paths, client.number
        for upstream in (False, True):
            paths.armed.pop((upstream, number), None)
        paths.refuse.pop(number, None)
        paths.swallow.pop(number, None)
        self._began[number] = network.now
        met = self._troubles[number] = self._draw(number, client.turn)
        if met is None:
            return
        what = met.what
        self._journal.report.troubles[name_of(what)] += 1
        if not isinstance(what, Strike):
            return
        self._journal.note(f"client {number} turn {client.turn}: {met}")
        if what is Strike.REFUSED:
            paths.refuse[number] = met.count
        elif what is Strike.SWALLOWED:
            paths.swallow[number] = 1
        elif what not in _BETWEEN:
            upstream = what not in _OF_CLIENT
            # An unanchored turn gets a new connection, so the next one is struck.
            fresh = upstream and client.anchor is None
            ends = self._links(number) if upstream else network.ends(client)
            if ends and not fresh:
                self._strike(ends[-1], what, met)
            else:
                strikes = paths.armed.setdefault((upstream, number), [])
                strikes.append(lambda end: self._strike(end, what, met))

    def attempt_begins(self, client: Client) -> None:
        """Remember the connection on which ``client`` sends its body."""
        self._wires[client.number] = self._network.ends(client)[-1]

    def server_of(self, client: Client) -> Machine | None:
        """The machine to which the latest attempt of ``client`` was sent."""
        peer = self._wires[client.number].peer
        return None if peer is None else peer.owner

    def _strike(self, end: End, what: Strike, met: Trouble) -> None:
        """Strike the connection that was opened by ``end``."""
        network, peer = self._network, end.peer
        if peer is None:
            return
        if what in (Strike.CLIENT_CUT_UP, Strike.LINK_CUT_UP):
            network.cut_after(end, met.count)
        elif what in (Strike.CLIENT_CUT_DOWN, Strike.LINK_CUT_DOWN):
            network.cut_after(peer, met.count)
        elif what is Strike.LINK_HALF_OPEN:
            network.vanish(end)
        else:
            side = peer if what is Strike.LINK_STALL_DOWN else end
            network.stall(side, network.now + met.duration)

    def _links(self, client: int) -> list[End]:
        """The endpoint's ends of the client's upstream connections, the oldest first."""
        ends = self._network.ends(self._upstream, client)
        return [end.peer for end in ends if end.peer is not None and end.peer.open]

    def _draw(self, client: int, turn: int) -> Trouble | None:
        scenario = self._scenario
        if (client, turn) in scenario.spared:
            return None
        return trouble(scenario.seed, client, turn, scenario.fault_every, odd=scenario.odd)

    # ------------------------------------------------------------ which failures a fault explains

    def disturbed(self, client: Client, away: int) -> bool:
        """Whether something may have gone wrong in the turn of ``client``: a fault of its own, the
        effect of an earlier one, or the upstream was ``away`` (ns, until when)."""
        until = max(away, self._network.disturbed.get(client.number, 0))
        return until >= self._began[client.number] or self.trouble_of(client.number) is not None

    def explained(self, client: Client, status: int | None) -> bool:
        """Whether the turn's fault explains ``status``; None: a lost connection."""
        if status is None and self._wires[client.number].harmed:
            return True
        met = self.trouble_of(client.number)
        if met is None:
            return False
        if isinstance(met.what, Strike):
            # The request arrives late: the bridge answers 408, or closes.
            return met.what is Strike.CLIENT_STALL and status in (None, 408)
        action = met.what.action
        match action:
            case Error():
                # The fault refuses anchors: without one it cannot have occurred.
                named = met.what.when is not When.ANCHORED or client.anchor is not None
                return named and action.status == status
            case CloseWith():
                return action.code == 1009 and status == 413
            case Alter(change):
                return change is Change.CANCELLED and status == 200
            case _:
                return isinstance(action, SendEvents) and status == 200

    def altered(self, client: Client) -> Change | None:
        """How the events of the client's turn are altered, if they are."""
        met = self.trouble_of(client.number)
        if met is None or not isinstance(met.what, Fault):
            return None
        action = met.what.action
        return action.change if isinstance(action, Alter) else None
