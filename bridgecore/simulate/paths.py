"""The network of a run: slow, jittery paths from the seed, and a record of what happened on it.

What belongs here: how long bytes take, which connects fail, and what a run writes down of its
events. The connections, and what can be done to them, are ``bridgecore.testing.network``'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import attrs

from bridgecore import transport as tp
from bridgecore.simulate.chance import Rng
from bridgecore.testing.network import MILLISECOND, NOBODY, End, Fate, MachineError, Network


@attrs.define(eq=False)
class _Path:
    """A path with a latency of its own, and jitter on top. Now and then it cuts what was written
    into two pieces."""

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
    """``Conditions`` that follow from a seed. What is done to connects upstream can be set."""

    def __init__(self, seed: int) -> None:
        # (it is an upstream one, label) -> what is done to the next connection of that kind
        self.armed: dict[tuple[bool, int], list[Callable[[End], None]]] = {}
        self.refuse: dict[int, int] = {}  # label -> upstream connects to refuse
        self.swallow: dict[int, int] = {}  # label -> upstream connects to leave unanswered
        self._seed = seed
        self._counts: dict[int, int] = {}  # label -> how many connections there were

    def path(self, label: int) -> _Path:
        """It depends on the label and on how many there were for it, and on nothing else."""
        ordinal = self._counts[label] = self._counts.get(label, 0) + 1
        rng = Rng(self._seed, 1, label + 1, ordinal)
        return _Path(rng, rng.between(MILLISECOND, 80 * MILLISECOND))

    def connecting(self, end: End) -> Fate:
        """Refuse, or leave unanswered, as many as is set."""
        if end.owner_labelled:
            return Fate.ARRIVES
        for fate, counts in ((Fate.UNANSWERED, self.swallow), (Fate.REFUSED, self.refuse)):
            if counts.get(end.label, 0) > 0:
                counts[end.label] -= 1
                return fate
        return Fate.ARRIVES

    def connected(self, end: End) -> None:
        """Do what waits for such a connection."""
        for strike in self.armed.pop((not end.owner_labelled, end.label), ()):
            strike(end)

    def label_of(self, data: bytes) -> int | None:
        """The upgrade request carries the client's user agent."""
        start = data.find(b"user-agent: c")
        return int(data[start + 13 : data.find(b"\r\n", start)]) if start >= 0 else None


class Recorder:
    """A ``Watcher``: counts events, digests them, and notes them for people.

    ``note`` is called with lines for a timeline, ``logged`` with what machines log.
    """

    def __init__(
        self,
        note: Callable[[str], None] | None,
        logged: Callable[[tp.Log], None],
    ) -> None:
        self.events = 0  # that machines handled
        self._note = note
        self._logged = logged
        self._numbers: dict[int, int] = {}  # of machines, by their id
        self._clients: set[int] = set()  # the same, of clients
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        """Of everything that was handled so far: equal for equal histories."""
        return self._digest.hexdigest()

    def added(self, machine: tp.Machine, label: int) -> None:
        """Give ``machine`` the next number in the digest. Clients have labels."""
        self._numbers[id(machine)] = len(self._numbers)
        if label != NOBODY:
            self._clients.add(id(machine))

    def handles(self, machine: tp.Machine, event: tp.TransportEvent, network: Network) -> None:
        """Count and digest it."""
        self.events += 1
        data = event.data if isinstance(event, tp.DataReceived) else b""
        number = self._numbers[id(machine)]
        self._digest.update(
            b"%d %d %b %d\n" % (network.now, number, type(event).__name__.encode(), len(data))
        )
        if id(machine) in self._clients:
            # Only what clients receive: on the other side, keys and masks are never the same.
            self._digest.update(data)

    def raised(self, machine: tp.Machine, error: Exception, network: Network) -> None:
        """Say for whom it worked.

        Raises:
            MachineError: always.
        """
        text = f"{type(machine).__name__} raised {type(error).__name__}: {error}"
        raise MachineError(network.label, text) from error

    def logged(self, log: tp.Log) -> None:
        """Pass it on, and note what is more than a detail."""
        self._logged(log)
        if self._note is not None and log.level >= tp.LogLevel.INFO:
            fields = " ".join(f"{name}={value}" for name, value in log.fields.items())
            self._note(f"bridge: {log.event} {fields}")

    def breaks(self, end: End) -> None:
        """Note it."""
        if self._note is not None:
            self._note(f"network: a wire of client {end.label} breaks")
