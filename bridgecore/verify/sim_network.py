"""A network in virtual time that does everything to a connection that a real one does.

What belongs here: the source of chance, the wires, the clock and the loop. ``SimNetwork`` drives
machines (``Endpoint``, ``Emulator``, the clients of ``sim_clients``) as an adapter would, so that
whatever speaks ``wire/transport.py`` can be put into it. What happens to whom is decided by
``simulate``; what must hold is checked there and in the clients.

A wire has a latency for each direction and jitter on top, keeps the order of its bytes, and cuts
what was written into pieces now and then; wires know nothing of each other, so what two of them
carry is reordered freely. On top of that a wire can be made to

* break at any byte: what came before arrives, then both ends hear of a reset;
* stall: nothing arrives in one direction for a while;
* go half-open: bytes vanish in both directions, and nobody is told, until TCP gives up.

Every wire has a *label*: the number of the client for whose sake it exists, so that what is done to
one conversation does not depend on which others there are. A wire that the endpoint opens is
labelled by what made the endpoint open it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, TypeVar, assert_never

import attrs

from bridgecore import transport as tp
from bridgecore.recovery.timers import NS_PER_SECOND

T = TypeVar("T")

NOBODY: Final = -1  # the label of a wire of which nobody knows yet for whom it is
MILLISECOND: Final = 1_000_000  # ns
WINDOW: Final = 65_536  # bytes that wait for a receiver that does not read, before writing blocks
_TCP_GIVES_UP: Final = 900 * NS_PER_SECOND  # after which the ends of a half-open wire are told

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Rng:
    """Chance from a key: SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
    Generators", 2014). The same key gives the same numbers on every machine and version; different
    keys, even neighbouring ones, give unrelated numbers, so each thing that happens can have a
    generator of its own and taking one away does not disturb the others.
    """

    __slots__ = ("_state",)

    def __init__(self, *key: int) -> None:
        self._state = 0
        for part in key:
            self._state = (self.bits() ^ part) & _MASK

    def bits(self) -> int:
        """64 random bits."""
        self._state = z = (self._state + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.bits() % (high - low + 1)

    def one_in(self, n: int) -> bool:
        """True once in ``n`` times."""
        return self.bits() % n == 0

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``, each as likely as the others."""
        return options[self.bits() % len(options)]


class MachineError(Exception):
    """A machine raised an exception or broke its duty. ``label``: for whose wire it worked."""

    def __init__(self, label: int, message: str) -> None:
        super().__init__(message)
        self.label = label


@attrs.define(eq=False)
class End:
    """One end of a wire; what it writes travels to ``peer``. Not for use outside this package."""

    driver: _Driver
    conn: int
    label: int
    rng: Rng
    latency: int  # ns, of what this end writes
    peer: End | None = None
    open: bool = True
    vanishing: bool = False  # what it writes from now on goes nowhere
    harmed: bool = False  # something was done to the wire that explains its loss
    arrival: int = 0  # ns: when the latest that it wrote arrives; nothing overtakes
    stalled: int = 0  # ns: nothing that it writes arrives before
    sent: int = 0  # bytes
    cut_at: int | None = None  # of ``sent``: where the wire breaks
    paused: bool = False
    held: deque[tp.TransportEvent] = attrs.Factory(deque)  # what came while reading was paused
    unread: int = 0  # bytes of ``held``
    window: int = WINDOW  # bytes of ``held`` from which on the peer's writing blocks
    blocked: bool = False
    waiting: list[tp.TransportEvent] = attrs.Factory(list)  # the owner's, once its data is out


@attrs.define(eq=False)
class _Driver:
    """A machine and what the network knows of it."""

    machine: tp.Machine
    number: int
    label: int  # of the wires that it opens; NOBODY: of what made it open them
    after: Callable[[], None] | None
    ends: dict[int, End] = attrs.Factory(dict)
    timer: int | None = None  # ns, as it is in the queue
    accepted: list[End] = attrs.Factory(list)


_Do: TypeAlias = Callable[[], None]
_TIMEOUT: Final = tp.TimeoutReached()
_OnConnection: TypeAlias = (
    tp.Send | tp.EndSending | tp.Close | tp.Abort | tp.PauseReading | tp.ResumeReading
)


class SimNetwork:
    """Virtual wires and a virtual clock: ``now``, ns. Everything follows from ``seed``."""

    def __init__(self, seed: int) -> None:
        self.now = NS_PER_SECOND
        self.events = 0  # that machines handled
        self.stopped: list[tp.Machine] = []
        self.record: Callable[[str], None] | None = None
        self.windows: dict[int, int] = {}  # label -> window of that client's own ends
        # (it is an upstream one, label) -> what is done to the next wire of that kind
        self.armed: dict[tuple[bool, int], list[Callable[[End], None]]] = {}
        self.refuse: dict[int, int] = {}  # label -> upstream connects to refuse
        self.swallow: dict[int, int] = {}  # label -> upstream connects to leave unanswered
        self.disturbed: dict[int, int] = {}  # label -> ns: how long what was done to a wire shows
        self.told: Callable[[tp.Log], None] | None = None  # what machines log
        self._seed = seed
        self._queue: list[tuple[int, int, End | _Driver | _Do, tp.TransportEvent]] = []
        self._serial = 0
        self._drivers: dict[int, _Driver] = {}
        self._listeners: dict[str, _Driver] = {}
        self._wires: dict[int, int] = {}  # label -> how many there were
        self._label = NOBODY  # for whose sake things happen right now
        self._digest = hashlib.blake2b(digest_size=16)

    # ------------------------------------------------------------ for who builds a world

    def add(
        self,
        machine: tp.Machine,
        *,
        host: str = "",
        label: int = NOBODY,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Drive ``machine``; with ``host``, it listens there. ``after`` is called when it handled
        something."""
        driver = _Driver(machine, len(self._drivers), label, after)
        self._drivers[id(machine)] = driver
        if host:
            self._listeners[host] = driver
        self._set_timer(driver)

    def at(self, when: int, do: _Do) -> None:
        """Call ``do`` at ``when`` (ns)."""
        self._push(when, do)

    def tell(self, machine: tp.Machine, event: tp.TransportEvent) -> None:
        """Let ``machine`` handle an event that is not of a connection."""
        self._handle(self._drivers[id(machine)], event, NOBODY)

    def run(self, until: int, stop: Callable[[], bool]) -> None:
        """Let time pass to ``until`` (ns), or until ``stop()`` or until nothing is left to happen.

        Raises:
            MachineError: a machine raised, or a deadline that it handled is due again.
        """
        queue = self._queue
        while queue and queue[0][0] <= until and not stop():
            at, _, target, event = heapq.heappop(queue)
            if isinstance(target, End):
                if target.open:
                    self.now = at
                    self._deliver(target, event)
            elif isinstance(target, _Driver):
                if target.timer == at:
                    self.now = at
                    target.timer = None
                    self._due(target)
            else:
                self.now = at
                target()

    @property
    def digest(self) -> str:
        """Of everything that was handled so far: equal for equal histories."""
        return self._digest.hexdigest()

    def ends(self, machine: tp.Machine, label: int | None = None) -> list[End]:
        """The ends that ``machine`` has, of ``label`` if it is given."""
        found = self._drivers[id(machine)].ends.values()
        return [end for end in found if label is None or end.label == label]

    def accepted(self, machine: tp.Machine, ordinal: int) -> End:
        """The ``ordinal``-th wire (from 1) that ``machine`` accepted, gone or not."""
        return self._drivers[id(machine)].accepted[ordinal - 1]

    def shut(self, host: str) -> None:
        """Nobody listens at ``host`` any more, and every wire of its machine is reset."""
        driver = self._listeners.pop(host)
        for end in list(driver.ends.values()):
            self.reset(end)

    def listen(self, host: str, machine: tp.Machine) -> None:
        """``machine`` listens at ``host`` again."""
        self._listeners[host] = self._drivers[id(machine)]

    # ------------------------------------------------------------ what can be done to a wire

    def reset(self, end: End) -> None:
        """Break the wire now: both ends hear of it as soon as the news can reach them."""
        for side, other in ((end, end.peer), (end.peer, end)):
            if side is not None and side.open:
                side.harmed = side.vanishing = True
                self._disturb(side, self.now)
                # What the other side wrote before is on its way, and comes first.
                at = self.now + side.latency
                if other is not None:
                    at = max(at, other.arrival)
                self._push(at, side, tp.Disconnected(side.conn))

    def finish(self, end: End) -> None:
        """What the far side of ``end`` does: it closes the connection, without a word before it."""
        if end.peer is not None and end.peer.open:
            end.harmed = end.peer.harmed = True
            self._disturb(end, self.now)
            self._on_connection(end.peer, tp.Close(end.peer.conn))

    def vanish(self, end: End) -> None:
        """Make the wire half-open: nothing arrives any more, and nobody is told for long."""
        for side in (end, end.peer):
            if side is not None and side.open:
                side.harmed = side.vanishing = True
                self._disturb(side, self.now + _TCP_GIVES_UP)
                self._push(self.now + _TCP_GIVES_UP, side, tp.Disconnected(side.conn))

    def stall(self, end: End, until: int) -> None:
        """Nothing that ``end`` writes arrives before ``until`` (ns)."""
        end.stalled = max(end.stalled, until)
        self._disturb(end, until)

    def cut_after(self, end: End, count: int) -> None:
        """Break the wire when ``end`` has written ``count`` more bytes."""
        end.cut_at = end.sent + count

    def _disturb(self, end: End, until: int) -> None:
        self.disturbed[end.label] = max(self.disturbed.get(end.label, 0), until)

    # ------------------------------------------------------------ the loop

    def _push(
        self, at: int, target: End | _Driver | _Do, event: tp.TransportEvent = _TIMEOUT
    ) -> None:
        """Let ``event`` happen to an end, a timer be due, or something be done, at ``at`` (ns)."""
        self._serial += 1
        heapq.heappush(self._queue, (at, self._serial, target, event))

    def _set_timer(self, driver: _Driver) -> None:
        deadline = driver.machine.next_timeout()
        if deadline is None:
            driver.timer = None
        elif deadline.at != driver.timer:
            driver.timer = max(deadline.at, self.now)
            self._push(driver.timer, driver)

    def _due(self, driver: _Driver) -> None:
        self._handle(driver, _TIMEOUT, driver.label)
        left = driver.machine.next_timeout()
        if left is not None and left.at <= self.now:
            text = f"{left.reason.value} was handled at {self.now} and is due again (invariant 29)"
            raise MachineError(driver.label, text)

    def _deliver(self, end: End, event: tp.TransportEvent) -> None:
        if isinstance(event, tp.Disconnected):
            self._forget(end)
        elif (end.paused or end.held) and isinstance(event, tp.DataReceived | tp.EofReceived):
            end.held.append(event)
            if isinstance(event, tp.DataReceived):
                end.unread += len(event.data)
                peer = end.peer
                if end.unread > end.window and peer is not None and not peer.blocked:
                    peer.blocked = True
                    self._push(self.now, peer, tp.WriteBlocked(peer.conn))
            return
        self._handle(end.driver, event, end.label)

    def _handle(self, driver: _Driver, event: tp.TransportEvent, label: int) -> None:
        self.events += 1
        self._label = label
        data = event.data if isinstance(event, tp.DataReceived) else b""
        number = driver.number
        line = b"%d %d %b %d\n" % (self.now, number, _NAMES[type(event)], len(data))
        self._digest.update(line)
        if driver.label != NOBODY:
            # Only what clients receive: on the other side, keys and masks are never the same.
            self._digest.update(data)
        try:
            effects = driver.machine.handle(event, self.now)
        except Exception as exc:
            text = f"{type(driver.machine).__name__} raised {type(exc).__name__}: {exc}"
            raise MachineError(label, text) from exc
        for effect in effects:
            self._carry_out(driver, effect)
        self._set_timer(driver)
        if driver.after is not None:
            driver.after()

    def _carry_out(self, driver: _Driver, effect: tp.TransportEffect) -> None:
        if isinstance(effect, tp.Log):
            if self.told is not None:
                self.told(effect)
            if self.record is not None and effect.level >= tp.LogLevel.INFO:
                fields = " ".join(f"{name}={value}" for name, value in effect.fields.items())
                self.record(f"bridge: {effect.event} {fields}")
        elif isinstance(effect, tp.Connect):
            self._connect(driver, effect)
        elif isinstance(effect, tp.StopListening):
            for host in [host for host, found in self._listeners.items() if found is driver]:
                del self._listeners[host]
        elif isinstance(effect, tp.Stop):
            self.stopped.append(driver.machine)
        else:
            end = driver.ends.get(effect.conn)
            if end is not None:
                self._on_connection(end, effect)

    # ------------------------------------------------------------ wires

    def _connect(self, driver: _Driver, effect: tp.Connect) -> None:
        label = driver.label if driver.label != NOBODY else self._label
        ordinal = self._wires[label] = self._wires.get(label, 0) + 1
        rng = Rng(self._seed, 1, label + 1, ordinal)
        latency = rng.between(MILLISECOND, 80 * MILLISECOND)
        end = End(driver, effect.conn, label, rng, latency)
        if driver.label != NOBODY:
            end.window = self.windows.get(label, WINDOW)
        driver.ends[effect.conn] = end
        upstream = driver.label == NOBODY
        if upstream and self.swallow.get(label, 0):
            self.swallow[label] -= 1
            return
        refused = upstream and self.refuse.get(label, 0) > 0
        if refused:
            self.refuse[label] -= 1
        at = self.now + latency
        self._push(at, lambda: self._arrive(end, effect.host, refused, upstream))

    def _arrive(self, end: End, host: str, refused: bool, upstream: bool) -> None:
        """The connect of ``end`` has come to its destination."""
        if not end.open:
            return
        back = self.now + end.latency
        driver = self._listeners.get(host)
        if driver is None or refused:
            # The loop drops what is for an end that is gone, so this one goes when it hears.
            failed = tp.ConnectFailed(end.conn, tp.ConnectError.REFUSED, "nobody listens")
            self._push(back, end, failed)
            self._push(back, lambda: self._forget(end))
            return
        number = driver.machine.new_connection()
        end.peer = peer = End(driver, number, end.label, end.rng, end.latency, end)
        peer.arrival = back
        driver.ends[number] = peer
        driver.accepted.append(peer)
        self._push(back, end, tp.Connected(end.conn))
        for strike in self.armed.pop((upstream, end.label), ()):
            strike(end)
        self._handle(driver, tp.Accepted(number), end.label)

    def _on_connection(self, end: End, effect: _OnConnection) -> None:
        peer = end.peer
        if isinstance(effect, tp.Send):
            if effect.data:
                self._write(end, effect.data)
            if effect.notify:
                self._when_flushed(end, tp.DataSent(end.conn))
        elif isinstance(effect, tp.EndSending):
            self._say(end, tp.EofReceived(peer.conn if peer is not None else 0))
        elif isinstance(effect, tp.Close):
            self._say(end, tp.EofReceived(peer.conn if peer is not None else 0))
            self._when_flushed(end, tp.Disconnected(end.conn))
        elif isinstance(effect, tp.Abort):
            self._forget(end)
            if peer is not None:
                peer.held.clear()
            self._say(end, tp.Disconnected(peer.conn if peer is not None else 0))
        elif isinstance(effect, tp.PauseReading):
            end.paused = True
        elif isinstance(effect, tp.ResumeReading):
            self._resume(end)
        else:
            assert_never(effect)

    def _say(self, end: End, event: tp.TransportEvent) -> None:
        """Let ``event`` happen at the other side, behind all that was written."""
        peer = end.peer
        if peer is not None and peer.open and not end.vanishing:
            end.arrival = max(self.now + end.latency, end.arrival, end.stalled)
            self._push(end.arrival, peer, event)

    def _write(self, end: End, data: bytes) -> None:
        if end.label == NOBODY:
            self._adopt(end, data)
        if end.vanishing:
            return
        peer = end.peer
        if peer is None or not peer.open:
            # Its answer is a reset.
            self._push(self.now + end.latency, end, tp.Disconnected(end.conn))
            return
        cut = end.cut_at is not None and end.sent + len(data) >= end.cut_at
        if cut and end.cut_at is not None:
            data = data[: end.cut_at - end.sent]
        end.sent += len(data)
        rng = end.rng
        jitter = rng.between(0, end.latency)
        end.arrival = at = max(self.now + end.latency + jitter, end.arrival, end.stalled)
        if len(data) > 1 and rng.one_in(6):
            edge = rng.between(1, len(data) - 1)
            self._push(at, peer, tp.DataReceived(peer.conn, data[:edge]))
            end.arrival = at = at + rng.between(0, end.latency)
            data = data[edge:]
        if data:
            self._push(at, peer, tp.DataReceived(peer.conn, data))
        if cut:
            if self.record is not None:
                self.record(f"network: a wire of client {end.label} breaks")
            self.reset(end)

    def _adopt(self, end: End, data: bytes) -> None:
        """Find out for whom the wire is: the upgrade request carries the client's user agent."""
        start = data.find(b"user-agent: c")
        if start >= 0:
            found = data[start + 13 : data.find(b"\r\n", start)]
            end.label = int(found)
            if end.peer is not None:
                end.peer.label = end.label

    def _when_flushed(self, end: End, event: tp.TransportEvent) -> None:
        if end.blocked and not end.vanishing:
            end.waiting.append(event)
        else:
            self._push(self.now, end, event)

    def _resume(self, end: End) -> None:
        if not end.paused:
            return
        end.paused = False
        self._push(self.now, lambda: self._catch_up(end))

    def _catch_up(self, end: End) -> None:
        """The owner of ``end`` reads what has come."""
        while end.held and not end.paused and end.open:
            event = end.held.popleft()
            if isinstance(event, tp.DataReceived):
                end.unread -= len(event.data)
            self._handle(end.driver, event, end.label)
        if end.held:
            return
        sender = end.peer
        if sender is not None and sender.blocked:
            sender.blocked = False
            self._push(self.now, sender, tp.WriteUnblocked(sender.conn))
            for event in sender.waiting:
                self._push(self.now, sender, event)
            sender.waiting.clear()

    def _forget(self, end: End) -> None:
        end.open = False
        end.driver.ends.pop(end.conn, None)
        peer = end.peer
        if peer is not None and peer.open and peer.blocked:
            # What the peer still wants to write meets a connection that is gone.
            peer.blocked = False
            self._push(self.now + end.latency, peer, tp.Disconnected(peer.conn))


_NAMES: dict[type[tp.TransportEvent], bytes] = {
    kind: kind.__name__.encode()
    for kind in (
        tp.Accepted,
        tp.Connected,
        tp.ConnectFailed,
        tp.DataReceived,
        tp.EofReceived,
        tp.Disconnected,
        tp.DataSent,
        tp.WriteBlocked,
        tp.WriteUnblocked,
        tp.TimeoutReached,
        tp.DrainRequested,
    )
}
