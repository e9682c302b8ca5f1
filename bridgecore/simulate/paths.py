"""The network conditions of a run, and a recorder of what happens on the network.

What belongs here: latencies, failing connects, and what is recorded of the events of a run. The
connections themselves and the faults that can be done to them are in
``bridgecore.testing.network``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import attrs

from bridgecore import transport as tp
from bridgecore.simulate.chance import Rng
from bridgecore.testing.network import MILLISECOND, NO_CLIENT, End, Fate, MachineError, Network


@attrs.define(eq=False)
class _Path:
    """A path with a latency of its own and jitter. Now and then it delivers what was written in two
    pieces."""

    rng: Rng
    latency: int

    def pieces(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """One piece, or two."""
        rng = self.rng
        late = rng.between(0, self.latency)
        if len(data) > 1 and rng.one_in(6):
            edge = rng.between(1, len(data) - 1)
            yield late, data[:edge]
            late = rng.between(0, self.latency)
            data = data[edge:]
        yield late, data


class Paths:
    """``Conditions`` derived from a seed. The fate of the next connects upstream can be set."""

    def __init__(self, seed: int) -> None:
        # (is upstream, label) -> what to do to the next connection of that kind
        self.armed: dict[tuple[bool, int], list[Callable[[End], None]]] = {}
        self.refuse: dict[int, int] = {}  # label -> upstream connects to refuse
        self.swallow: dict[int, int] = {}  # label -> upstream connects to leave unanswered
        # (machine, host) -> what becomes of the machine's connects to that host
        self.barred: dict[tuple[tp.Machine, str], Fate] = {}
        self._seed = seed
        self._counts: dict[int, int] = {}  # label -> connections so far

    def path(self, label: int) -> _Path:
        """The path of a new connection. It depends only on the label and the count of its
        connections."""
        ordinal = self._counts[label] = self._counts.get(label, 0) + 1
        rng = Rng(self._seed, 1, label + 1, ordinal)
        return _Path(rng, rng.between(MILLISECOND, 80 * MILLISECOND))

    def connecting(self, end: End) -> Fate:
        """Refuse the connect, or leave it unanswered, if that was set."""
        if end.owner_labelled:
            return Fate.ARRIVES
        if end.place is not None and (fate := self.barred.get((end.owner, end.place[0]))):
            return fate
        for fate, counts in ((Fate.UNANSWERED, self.swallow), (Fate.REFUSED, self.refuse)):
            if counts.get(end.label, 0) > 0:
                counts[end.label] -= 1
                return fate
        return Fate.ARRIVES

    def connected(self, end: End) -> None:
        """Do to the connection what was set."""
        for strike in self.armed.pop((not end.owner_labelled, end.label), ()):
            strike(end)

    def label_of(self, data: bytes) -> int | None:
        """The label in the upgrade request, which carries the client's user agent."""
        start = data.find(b"user-agent: c")
        return int(data[start + 13 : data.find(b"\r\n", start)]) if start >= 0 else None


class Recorder:
    """A ``Watcher`` that counts events, computes a digest of them, and writes the timeline.

    ``note`` is called with lines for a timeline, ``logged`` with the log records of machines and
    the name of the machine (``names``).
    """

    def __init__(
        self,
        note: Callable[[str], None] | None,
        logged: Callable[[tp.Log, str], None],
    ) -> None:
        self.names: dict[int, str] = {}  # of machines that are no clients, by ``id``
        self._source = ""  # the machine that handles an event, or was the last to do so
        self.events = 0  # handled by machines
        self._note = note
        self._logged = logged
        self._numbers: dict[int, int] = {}  # of machines, by ``id``
        self._added = 0
        self._clients: set[int] = set()  # those of clients
        self._listeners: list[Callable[[tp.Log], None]] = []
        self._digest = hashlib.blake2b(digest_size=16)

    def listen(self, listener: Callable[[tp.Log], None]) -> None:
        """Pass log records on to ``listener``, too."""
        self._listeners.append(listener)

    @property
    def digest(self) -> str:
        """A digest of everything handled so far: equal for equal histories."""
        return self._digest.hexdigest()

    def added(self, machine: tp.Machine, label: int) -> None:
        """Give ``machine`` its number in the digest. Clients have labels."""
        # Not the length of the table: the address of a machine that is gone can be used again.
        self._numbers[id(machine)] = self._added
        self._added += 1
        if label != NO_CLIENT:
            self._clients.add(id(machine))

    def handles(self, machine: tp.Machine, event: tp.TransportEvent, network: Network) -> None:
        """Count the event and add it to the digest."""
        self.events += 1
        data = event.data if isinstance(event, tp.DataReceived) else b""
        self._source = self.names.get(id(machine), "bridge")
        number = self._numbers[id(machine)]
        self._digest.update(
            b"%d %d %b %d\n" % (network.now, number, type(event).__name__.encode(), len(data))
        )
        if id(machine) in self._clients:
            # Only what clients receive: WebSocket keys and masks differ in every run.
            self._digest.update(data)

    def raised(self, machine: tp.Machine, error: Exception, network: Network) -> None:
        """Raise the error with the label of the client for which the machine worked.

        Raises:
            MachineError: always.
        """
        name = self.names.get(id(machine), type(machine).__name__)
        text = f"{name} raised {type(error).__name__}: {error}"
        raise MachineError(network.label, text) from error

    def logged(self, log: tp.Log) -> None:
        """Pass the record on, and add it to the timeline unless it is a detail."""
        self._logged(log, self._source)
        for listener in self._listeners:
            listener(log)
        if self._note is not None and log.level >= tp.LogLevel.INFO:
            fields = " ".join(f"{name}={value}" for name, value in log.fields.items())
            self._note(f"{self._source}: {log.event} {fields}")

    def breaks(self, end: End) -> None:
        """Add the break to the timeline."""
        if self._note is not None:
            self._note(f"network: a wire of client {end.label} breaks")
