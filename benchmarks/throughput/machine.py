"""The machine that is measured on: its cores, the clocks of processes, and whether it is quiet.

What belongs here: everything that reads or sets something of the operating system, and the build of
the two instruments that are written in C. Linux only: /proc, epoll and CPU clocks of processes.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

NATIVE = Path(__file__).parent / "native"
BUILD = Path(__file__).resolve().parent.parent.parent / "build" / "throughput"
_CPUCLOCK_SCHED = 2  # of a process id's clock: CPU time in nanoseconds, all threads together
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

# More than this, and figures are not reported: of what other processes took of a core that is
# used, and of how far a fixed piece of work deviates from its median.
MAX_OTHERS = 0.10
MAX_SCATTER = 0.15


def unavailable() -> str | None:
    """Why nothing can be measured on this machine, or None if it can."""
    if not sys.platform.startswith("linux"):
        return "the instruments need Linux (epoll, /proc)"
    if shutil.which("cc") is None:
        return "there is no C compiler (cc)"
    return None


def build(name: str) -> Path:
    """Compile one instrument, if its sources are newer than the program; the program's path."""
    program = BUILD / name
    sources = [NATIVE / f"{name}.c", NATIVE / "common.h"]
    newest = max(source.stat().st_mtime for source in sources)
    if program.exists() and program.stat().st_mtime > newest:
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    # Several test runs may build at once: each writes its own file, and the last one stays.
    fresh = BUILD / f"{name}.{os.getpid()}"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra"]
    subprocess.run(["cc", *flags, "-o", fresh, sources[0]], check=True)
    fresh.replace(program)
    return program


@dataclass(frozen=True)
class Cores:
    """The core of the bridge, and that of everything else. None: not pinned."""

    bridge: int | None
    others: int | None

    @classmethod
    def choose(cls) -> Cores:
        """Two different cores; with one core only, nothing is pinned."""
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            return cls(None, None)
        return cls(available[1], available[0])

    @property
    def used(self) -> list[int]:
        """The cores whose load matters."""
        if self.bridge is None or self.others is None:
            return sorted(os.sched_getaffinity(0))
        return sorted((self.bridge, self.others))


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Run this process on ``core``; processes that it starts meanwhile stay there."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def file_limit() -> int:
    """How many files a process may open at most, if it asks for as many as are permitted."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextmanager
def many_files() -> Iterator[None]:
    """Allow this process, and those that it starts meanwhile, as many open files as permitted."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def cpu_ns(pid: int) -> int:
    """CPU time of a process, of all its threads, in nanoseconds.

    Exact for a process that waits or is stopped; of one that runs, up to a tick (4 ms) is missing.
    """
    return time.clock_gettime_ns(~pid << 3 | _CPUCLOCK_SCHED)


def state(pid: int) -> str:
    """The state of a process, a letter as in proc(5): ``T`` if it is stopped."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0]


def resident_bytes(pid: int) -> int:
    """Memory that a process occupies."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def own_cpu_ns() -> int:
    """CPU time of this process and of its children that have ended."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return int(used * 1e9)


def _busy_ns(cores: list[int]) -> int:
    """CPU time that all processes, interrupts and other guests of the host took of ``cores``."""
    busy = 0
    names = {f"cpu{core}" for core in cores}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name in names:
            user, nice, system, _idle, _wait, *rest = map(int, ticks[:8])
            busy += user + nice + system + sum(rest)
    return busy * _TICK_NS


class Watch:
    """How much of the used cores other processes take, from its creation on."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores.used
        self._began = time.monotonic_ns()
        self._busy = _busy_ns(self._cores)
        self._own = own_cpu_ns()

    def others(self, running: int = 0) -> float:
        """In cores. ``running``: CPU time (ns) of own processes that have not ended."""
        took = _busy_ns(self._cores) - self._busy - (own_cpu_ns() - self._own) - running
        return max(0.0, took / (time.monotonic_ns() - self._began))


def scatter(core: int | None, repeats: int = 60) -> float:
    """How far the times of a fixed piece of work spread: the 9th decile over the median, less 1."""
    times = []
    with pinned(core):
        for _ in range(repeats):
            begin = time.perf_counter_ns()
            sum(range(100_000))
            times.append(time.perf_counter_ns() - begin)
    return quantiles(times, n=10)[8] / median(times) - 1


def describe() -> dict[str, str]:
    """The machine and the interpreter, for the report."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
