"""The cases: what is done to a participant, which figures that gives, and what they should be.

What belongs here: one function for each thing that is measured, and the table of cases. A figure is
a number with its unit in its name. A goal limits the ratio of two figures of the same round, or one
figure. Times are CPU times of the participant's process unless a name says otherwise.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.throughput import machine
from benchmarks.throughput.history import first_upstream_byte
from benchmarks.throughput.participants import Bench, Command, MeasurementError, Participant

Figures = dict[str, float]
MIB = 1 << 20
# After which a participant has become idle. When the clients are ready it still writes its log, and
# frees and closes what it does not need any more; only then its memory is that of what it holds.
# And its CPU time is exact only while it waits (``machine.cpu_ns``). No process says that it has no
# more work, so it gets the time.
SETTLE_SECONDS = 0.3


@dataclass(frozen=True)
class Scale:
    """How much is done. What is measured stays the same, figures of small scales are coarse."""

    clients: int  # of the closed loops
    long_turns: int  # of each client, 300 deltas
    short_turns: int  # of each client, 5 deltas
    single_turns: int  # of one client alone
    streams: int
    window_ms: int
    idle: int
    held: int
    crowd: int  # conversations that begin, or are reset, at once
    grown: int  # turns before a conversation counts as long
    history_bytes: int
    repeats: int  # of measurements that take milliseconds


SCALES = {
    "full": Scale(16, 20, 200, 300, 200, 5000, 1000, 10_000, 1000, 1000, 1_500_000, 7),
    "small": Scale(16, 5, 40, 100, 200, 2000, 400, 2000, 400, 200, 1_500_000, 3),
    "tiny": Scale(2, 1, 2, 3, 4, 150, 10, 20, 10, 5, 100_000, 1),
}


@dataclass(frozen=True)
class Goal:
    """At most ``limit`` times ``base`` of participant ``over``, or ``limit`` itself."""

    title: str
    figure: str
    limit: float
    over: str | None = None
    base: str | None = None  # another figure than the one that is limited
    subject: str = "bridgecore"


Measure = Callable[[Bench, Participant, "Case", Scale], Figures]


@dataclass(frozen=True)
class Case:
    """One measurement of each of its participants in every round."""

    name: str
    title: str
    participants: Sequence[str]
    measure: Measure
    goals: Sequence[Goal] = ()
    floor: str = "null"  # the participant whose figures others are shown as multiples of
    deltas: int = 5
    batch: int = 1  # events that the upstream sends at once
    settings: Sequence[str] = ()  # of bridgecore


BRIDGES = ("bridgecore", "trio", "uvloop", "asgi", "before")
PYTHON = (*BRIDGES, "null", "relay")
ALL = (*PYTHON, "nginx")
OWN = ("bridgecore", "before")


def closed_loop(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """Chained turns, each sent when the one before has ended, by several clients."""
    turns = scale.long_turns if case.deltas > 100 else scale.short_turns
    shape = ("--deltas", case.deltas, "--batch", case.batch)
    with bench.serving(participant, case.settings) as process:
        result = bench.run(
            process, "--clients", scale.clients, "--turns", turns, "--warmup", max(1, turns // 10),
            "--chain", *shape,
        )  # fmt: skip
    return {
        "cpu_us_per_turn": result["cpu_ns"] / result["completed"] / 1e3,
        "cpu_us_per_event": result["cpu_ns"] / result["events"] / 1e3,
    }


def paced(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """Streams of 50 events a second each, as of a model: most reads have one event.

    The streams begin evenly spread over a second, and are measured while all of them run.
    """
    period_us = 20_000
    ramp_us = 1_000_000 // scale.streams + 100  # not a divisor of the period: phases are mixed
    deltas = (scale.window_ms * 1000 + 1_500_000) // period_us
    with bench.serving(participant, case.settings) as process:
        bench.run(process, "--clients", scale.streams, "--turns", 1, "--at-once", 8, "--deltas", 5)
        result = bench.run(
            process, "--streams", "--clients", scale.streams, "--deltas", deltas,
            "--pace-us", period_us, "--ramp-us", ramp_us, "--window-ms", scale.window_ms,
        )  # fmt: skip
    return {
        "cpu_us_per_event": result["cpu_ns"] / result["events"] / 1e3,
        "transit_p50_us": result["transit_p50_us"],
        "transit_p99_us": result["transit_p99_us"],
    }


def single(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """One client alone, chained short turns: the time from a request to its first event."""
    with bench.serving(participant, case.settings) as process:
        result = bench.run(
            process, "--clients", 1, "--turns", scale.single_turns,
            "--warmup", max(1, scale.single_turns // 10), "--chain", "--deltas", case.deltas,
        )  # fmt: skip
    return {
        "first_event_p50_us": result["first_p50_us"],
        "cpu_us_per_turn": result["cpu_ns"] / result["completed"] / 1e3,
    }


def idle(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """Memory of conversations that have had one turn, and of their connections."""
    hold = ("--turns", 1, "--at-once", 16, "--deltas", case.deltas, "--hold")
    with bench.serving(participant, case.settings) as process:
        # What the first conversations need once is not part of a conversation.
        bench.run(process, "--clients", 32, "--turns", 1, "--at-once", 16)
        before = machine.resident_bytes(process.pid)
        with bench.clients(process, "--clients", scale.idle, *hold) as clients:
            clients.successes()
            time.sleep(SETTLE_SECONDS)
            taken = machine.resident_bytes(process.pid) - before
    return {"mib_per_1000": taken / MIB / scale.idle * 1000}


def held(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """Turns of one client while there is nothing else, and while many conversations are held."""
    count = min(scale.held, (machine.file_limit() - 400) // 2)
    turns = scale.single_turns
    own = ("--clients", 1, "--turns", turns, "--warmup", max(1, turns // 10), "--chain")
    with bench.serving(participant, case.settings) as process:
        alone = bench.run(process, *own, "--deltas", case.deltas)
        hold = ("--turns", 1, "--at-once", 16, "--deltas", case.deltas, "--hold")
        with bench.clients(process, "--clients", count, *hold) as clients:
            clients.successes()
            among = bench.run(process, *own, "--deltas", case.deltas)
    return {
        "cpu_us_per_turn_alone": alone["cpu_ns"] / alone["completed"] / 1e3,
        "cpu_us_per_turn": among["cpu_ns"] / among["completed"] / 1e3,
        "held": count,
    }


def growth(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """The first turns of conversations, and turns of conversations with very many before."""
    few = max(2, scale.grown // 20)

    def turns_after(warmup: int) -> float:
        with bench.serving(participant, case.settings) as process:
            bench.run(process, "--clients", 4, "--turns", few, "--chain", "--deltas", case.deltas)
            result = bench.run(
                process, "--clients", 4, "--turns", few, "--warmup", warmup, "--chain",
                "--deltas", case.deltas,
            )  # fmt: skip
        return result["cpu_ns"] / result["completed"] / 1e3

    return {
        "cpu_us_per_turn_young": turns_after(1),
        "cpu_us_per_turn": turns_after(scale.grown),
    }


def crowd(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """Conversations that all begin at once, after a few others: a restart of a fleet of agents."""
    with bench.serving(participant, case.settings) as process:
        bench.run(process, "--clients", 8, "--turns", 5, "--deltas", case.deltas)
        result = bench.run(process, "--clients", scale.crowd, "--turns", 1, "--deltas", case.deltas)
    return {
        "cpu_us_per_turn": result["cpu_ns"] / result["completed"] / 1e3,
        "first_event_p50_us": result["first_p50_us"],
    }


def resets(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """Turns in the middle of their output whose upstream connections are all reset at once."""
    with bench.serving(participant, case.settings) as process:
        bench.run(process, "--clients", 8, "--turns", 5, "--deltas", case.deltas)
        flags = ("--streams", "--hold", "--deltas", 3, "--pace-us", 60_000_000)
        ramp = ("--clients", scale.crowd, "--ramp-us", 1_000_000 // scale.crowd)
        with bench.clients(process, *flags, *ramp) as clients:
            clients.wait_for_streams()
            time.sleep(SETTLE_SECONDS)
            before = machine.cpu_ns(process.pid)
            urllib.request.urlopen(
                urllib.request.Request(
                    f"http://127.0.0.1:{bench.upstream}/admin/reset", method="POST"
                )
            ).close()
            result = clients.result()
            time.sleep(SETTLE_SECONDS)
            took = machine.cpu_ns(process.pid) - before
    if result["failed"] != scale.crowd:
        raise MeasurementError(f"turns did not end by the reset: {result}")
    return {"cpu_ms_per_1000": took / 1e6 / scale.crowd * 1000}


def history(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """A whole history in one request: CPU time until its first byte is sent upstream."""
    return first_upstream_byte(bench, participant, scale.history_bytes, scale.repeats)


def start(bench: Bench, participant: Participant, case: Case, scale: Scale) -> Figures:
    """CPU time of a command that starts, prints, and ends; the least of a few, files are cached."""
    if not isinstance(participant, Command):
        raise MeasurementError(f"{participant.title} has no start to measure")
    times = []
    for _ in range(scale.repeats):
        with machine.pinned(bench.cores.bridge):
            process = subprocess.Popen(
                participant.help(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, **participant.environment},
            )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise MeasurementError(f"{participant.title} exited with {process.returncode}")
        times.append(usage.ru_utime + usage.ru_stime)
    return {"cpu_ms": min(times) * 1e3}


def _trio(figure: str = "cpu_us_per_turn") -> Goal:
    return Goal("trio / asyncio", figure, 1.3, "bridgecore", subject="trio")


def _asgi(figure: str = "cpu_us_per_turn") -> Goal:
    return Goal("uvicorn / asyncio", figure, 1.5, "bridgecore", subject="asgi")


PASSTHROUGH = ("--continuity", "passthrough")

CASES: Sequence[Case] = (
    Case(
        "delta300", "300 deltas a turn, closed loop", ALL, closed_loop,
        (
            Goal("CPU per turn / nginx", "cpu_us_per_turn", 0.8, "nginx"),
            Goal("CPU per turn / null bridge", "cpu_us_per_turn", 0.35, "null"),
            _trio(),
            _asgi(),
        ),
        deltas=300,
    ),
    Case(
        "delta300-batch8", "300 deltas a turn, 8 events a send, closed loop", ALL, closed_loop,
        (
            Goal("CPU per turn / nginx", "cpu_us_per_turn", 0.8, "nginx"),
            Goal("CPU per turn / null bridge", "cpu_us_per_turn", 0.35, "null"),
            _trio(),
            _asgi(),
        ),
        deltas=300, batch=8,
    ),
    Case(
        "delta5", "5 deltas a turn, closed loop", ALL, closed_loop,
        (Goal("CPU per turn / null bridge", "cpu_us_per_turn", 1.0, "null"), _trio(), _asgi()),
    ),
    Case(
        "delta5-batch8", "5 deltas a turn, 8 events a send, closed loop", ALL, closed_loop,
        (Goal("CPU per turn / null bridge", "cpu_us_per_turn", 1.0, "null"), _trio(), _asgi()),
        batch=8,
    ),
    Case(
        "paced", "200 streams of 50 events a second", ALL, paced,
        (
            Goal("CPU per event / null bridge", "cpu_us_per_event", 0.7, "null"),
            Goal("CPU per event / bare relay", "cpu_us_per_event", 1.7, "relay"),
            Goal("transit p99 / null bridge", "transit_p99_us", 1.0, "null"),
            _trio("cpu_us_per_event"),
            _asgi("cpu_us_per_event"),
        ),
    ),
    Case(
        "single", "one client, short turns, unloaded", ALL, single,
        (Goal("first event p50 / null bridge", "first_event_p50_us", 1.0, "null"),),
    ),
    Case(
        "idle", "1,000 idle conversations, without transcripts", PYTHON, idle,
        (Goal("MiB", "mib_per_1000", 12),),
        settings=PASSTHROUGH,
    ),
    Case("idle-transcripts", "1,000 idle conversations, with transcripts", PYTHON, idle),
    Case(
        "history", "full history of 1.5 MB, until the first upstream byte", OWN, history,
        (
            Goal("unknown history / one parse", "cpu_us_unknown", 2.0, "bridgecore", "parse_us"),
            Goal("known history / one parse", "cpu_us_known", 2.0, "bridgecore", "parse_us"),
        ),
    ),
    Case(
        "held", "one client among 10,000 held conversations", OWN, held,
        (
            Goal("CPU per turn / alone", "cpu_us_per_turn", 1.1, "bridgecore",
                 "cpu_us_per_turn_alone"),
        ),
    ),
    Case(
        "growth", "turn 1,000 of a conversation", OWN, growth,
        (
            Goal("CPU per turn / its first turns", "cpu_us_per_turn", 1.1, "bridgecore",
                 "cpu_us_per_turn_young"),
        ),
    ),
    Case(
        "crowd", "1,000 new conversations at once", PYTHON, crowd,
        (
            Goal("CPU us each", "cpu_us_per_turn", 1500),
            Goal("first event p50, us", "first_event_p50_us", 1_500_000),
        ),
    ),
    Case(
        "resets", "1,000 running turns reset at once", PYTHON, resets,
        (Goal("CPU ms in all", "cpu_ms_per_1000", 300),),
    ),
    Case(
        "start", "`bridgecore --help`", (*OWN, "python"), start,
        (Goal("CPU ms", "cpu_ms", 120),),
        floor="python",
    ),
)  # fmt: skip
