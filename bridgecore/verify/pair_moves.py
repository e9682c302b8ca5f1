"""What can happen in a world of two bridges at a moment, in which order, and what can go wrong.

What belongs here: the choice of moves. It reads a ``World`` and changes it only by letting moves
happen; what they do is in pair_world.py.

As long as nothing goes wrong, whatever is on its way to the store or to the other replica arrives
at once, before anything else happens. The upstream answers at any moment. What goes wrong is a
*fault*, and their number is bounded:

* ``slow``: a question, or what a forward carries, takes any time from now on, or for ever;
* ``fail``: a question is reported as ``Failed``; it is carried out at any time, or never;
* ``cut``: a replica cannot ask the store, until that is mended;
* ``pause``: a replica handles nothing, while time passes, until it goes on;
* ``crash``: a replica loses its memory and its connections; it may be started again;
* ``drain``: a replica ends as soon as it has no turn left;
* ``evict``: a replica gives up a conversation that is idle;
* ``lose``: a connection between the replicas is lost, with all that it carries;
* ``break``: a connection to the upstream is lost;
* ``leave``: a client does not wait for the end of its turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

from bridgecore.bridge import Bridge
from bridgecore.verify.pair_properties import ALL, PairProperty
from bridgecore.verify.pair_records import REPLICAS, LinkKey, Move, PairBounds, Passing, Upstream
from bridgecore.verify.pair_world import World


def started(
    bounds: PairBounds,
    make: Callable[..., Bridge] = Bridge,
    judged: Collection[PairProperty] = ALL,
    checked: Counter[PairProperty] | None = None,
) -> World:
    """The world in which an exploration begins: both replicas have started, and nothing is on its
    way. The arguments are those of ``World``."""
    world = World(bounds, make, judged, checked)
    while (move := urgent_move(world)) is not None:
        world.happens(move)
    world.trail = []
    return world


def moves(world: World) -> Iterator[Move]:
    """Everything that can happen now."""
    kinds, urgent = _kinds(world), urgent_move(world)
    if urgent is not None:
        yield urgent
        yield from _faults_of(world, urgent, kinds)
        return
    yield from _late(world)
    for key, link in world.upstream.items():
        yield from _moves_of_upstream(world, key, link, kinds)
    for key, one in world.passing.items():
        if "lose" in kinds and not one.closed and not one.dead:
            yield Move("lose", key)
    for replica in REPLICAS:
        yield from _moves_of_process(world, replica, kinds)
    if "leave" in kinds:
        yield from _leaving(world)
    yield from _moves_of_clients(world)
    if may_tick(world):
        yield Move("tick")


def _kinds(world: World) -> frozenset[str]:
    """The kinds of faults that can still happen."""
    if len(world.faults) == world.bounds.faults:
        return frozenset()
    return world.bounds.kinds - world.faults


def settle(world: World) -> None:
    """Let everything happen to which there is no alternative."""
    while (urgent := urgent_move(world)) is not None:
        if next(_faults_of(world, urgent, _kinds(world)), None) is not None:
            return
        world.happens(urgent)


def urgent_move(world: World) -> Move | None:
    """What happens before anything else, because nothing is wrong."""
    for query, asked in world.asked.items():
        if not asked.slow and not world.is_paused(query[0]):
            return Move("answer", query)
    for key, one in world.passing.items():
        if (what := _next_of(world, key, one)) is not None and not one.slow:
            return Move(what, key)
    for key, link in world.upstream.items():
        if link.attempt is not None and link.context is None and not world.is_paused(key[0]):
            return Move("not found", key)
    for replica, process in enumerate(world.processes):
        if not process.woken and world.is_due(replica):
            return Move("timeout", (replica,))
    return None


def _next_of(world: World, key: LinkKey, one: Passing) -> str | None:
    """What happens next on a connection between replicas; None: nothing, as far as that is
    known, or its end is paused."""
    sender, receiver = world.is_paused(key[0]), world.is_paused(one.to)
    if one.closed:
        if one.sent is not None and not one.dead:
            return None if receiver else "arrives"
        return None if receiver else "cancelled"
    if sender:
        return None
    if not one.open:
        return "connected"
    if one.back:
        return "heard"
    if one.dead:
        return "ended"
    if one.sent is not None and not receiver:
        return "arrives"
    return None


def _faults_of(world: World, urgent: Move, kinds: frozenset[str]) -> Iterator[Move]:
    """What goes wrong with something that is on its way."""
    what, about = urgent
    ends: tuple[int, ...] = about[:1]
    if what == "answer":
        for kind in ("slow", "fail"):
            if kind in kinds:
                yield Move(kind, about)
    elif what == "timeout":
        yield from _late(world, about[0])
    elif what in ("connected", "arrives", "heard", "ended", "cancelled"):
        one = world.passing[about[0], about[1]]
        ends = (about[0], one.to)
        if "lose" in kinds and not one.closed and not one.dead:
            yield Move("lose", about)
        if "slow" in kinds and what in ("arrives", "heard"):
            yield Move("delay", about)
    if "crash" in kinds:
        for replica in ends:
            if world.processes[replica].state is not None:
                yield Move("crash", (replica,))
    if "leave" in kinds:
        yield from _leaving(world)


def _late(world: World, replica: int | None = None) -> Iterator[Move]:
    """What is slow, and may come now or later. ``replica``: only what comes to it."""
    for query, asked in world.asked.items():
        if asked.slow and replica in (None, query[0]):
            if asked.answer is None:
                yield Move("carry out", query)
            elif not world.is_paused(query[0]):
                yield Move("deliver", query)
    for key, one in world.passing.items():
        what = _next_of(world, key, one)
        if one.slow and what is not None and replica is None:
            yield Move(what, key)
        running = one.open and one.attempt is not None and not one.closed and not one.dead
        stuck = one.slow or (world.is_paused(one.to) and not one.back)
        if running and stuck and not world.is_paused(key[0]) and replica is None:
            yield Move("give up", key)


def _moves_of_upstream(
    world: World, key: LinkKey, link: Upstream, kinds: frozenset[str]
) -> Iterator[Move]:
    if world.is_paused(key[0]):
        return
    if not link.open:
        yield Move("opened", key)
    elif link.attempt is not None:
        if link.shown < 1:
            yield Move("created", key)
        if link.shown < 2:
            yield Move("output", key)
        yield Move("completed", key)
    if "break" in kinds:
        yield Move("break", key)


def _moves_of_process(world: World, replica: int, kinds: frozenset[str]) -> Iterator[Move]:
    process = world.processes[replica]
    if process.state is None:
        yield Move("start", (replica,))
        return
    if process.paused:
        yield Move("go on", (replica,))
    elif world.is_due(replica):
        yield Move("timeout", (replica,))
    if process.cut:
        yield Move("mend", (replica,))
    if "crash" in kinds:
        yield Move("crash", (replica,))
    if process.paused:
        return
    if "pause" in kinds and may_tick(world):
        yield Move("pause", (replica,))
    if "cut" in kinds and not process.cut:
        yield Move("cut", (replica,))
    if "drain" in kinds and not process.draining:
        yield Move("drain", (replica,))
    if "evict" in kinds and any(key[0] == replica for key in (*world.upstream, *world.passing)):
        yield Move("evict", (replica,))


def _leaving(world: World) -> Iterator[Move]:
    for number, client in enumerate(world.clients):
        attempt = world.attempts.get(client.attempt or 0)
        if attempt is not None and not world.is_paused(attempt.replica):
            yield Move("leave", (number,))


def _moves_of_clients(world: World) -> Iterator[Move]:
    if len(world.attempts) == world.bounds.attempts:
        return
    for number, client in enumerate(world.clients):
        if client.attempt is None and not client.over and client.turns < world.bounds.turns:
            for replica in REPLICAS if world.attempts else (0,):  # they are alike at first
                if world.takes_turns(replica):
                    yield Move("ask", (number, replica))


def may_tick(world: World) -> bool:
    """Whether nothing has to happen before time passes."""
    return urgent_move(world) is None and not any(map(world.is_due, REPLICAS))


def at_rest(world: World) -> bool:
    """Whether, without faults, clients and time, nothing more happens. A question that was
    reported as failed may never be carried out."""
    return (
        may_tick(world)
        and not any(each.paused or each.cut for each in world.processes)
        and not any(asked.slow and not asked.failed for asked in world.asked.values())
        and not any(one.slow for one in world.passing.values())
        and all(link.open and link.attempt is None for link in world.upstream.values())
    )
