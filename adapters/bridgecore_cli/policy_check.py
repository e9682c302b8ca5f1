"""Checks a policy of one's own while the bridge serves: explores it and logs what it breaks.

What belongs here: both ends of that check. It takes some seconds of a core, so it runs in a process
of its own, with a lower priority, and serving does not wait for it. That process gets the policy on
its standard input, as the header of a decision log, and writes what it found as lines of JSON.

Log records: a warning ``policy.breaks`` for each property that the policy breaks, or
``policy.holds``, with the bounds, if there is none; a warning ``policy.unchecked`` if the check has
failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING, TypeAlias

from bridgecore.recovery.policy import Policy
from bridgecore.transport import Log, LogLevel
from bridgecore.wire.decisions import read_line, write_header

if TYPE_CHECKING:  # loading it takes time, which the process that serves should not spend
    from bridgecore.verify.environment import Bounds

Found: TypeAlias = dict[str, str | int]
"""What a line says: about a property, or the figures at the end."""

_BOUNDS = "quick"  # of bridgecore.verify
_NICE = 10  # as of the command nice
_TIME = 5.0  # seconds for a process that was killed to end


class PolicyCheck:
    """A check that runs in a process of its own.

    Args:
        policy: what is checked: the policy that sessions have.
        log: called in a thread of its own, with each record.
        without: names of properties that it may break, because a setting says so.
    """

    def __init__(
        self, policy: Policy, log: Callable[[Log], object], without: Sequence[str] = ()
    ) -> None:
        self._log = log
        self._name = policy.name
        self._process: subprocess.Popen[str] | None = None
        self._ended = False
        self._thread: threading.Thread | None = None
        try:
            self._process = _start(without)
        except (OSError, ValueError) as exc:
            self._tell(Log(LogLevel.WARNING, "policy.unchecked", self._unchecked(str(exc))))
            return
        self._thread = threading.Thread(
            target=self._read, args=(self._process, write_header(policy)), daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """End the check, finished or not."""
        self._ended = True
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TIME)
        if self._thread is not None:
            self._thread.join(_TIME)

    def _read(self, process: subprocess.Popen[str], header: str) -> None:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        done = False
        # The process reads its input to the end, and ends with it: so it does when this one is
        # killed.
        with stdout, contextlib.suppress(OSError):
            stdin.write(header + "\n")
            stdin.flush()
            for line in stdout:
                done = self._found(json.loads(line)) or done
        with contextlib.suppress(OSError):
            stdin.close()
        code = process.wait()
        if not done and not self._ended:
            reason = f"the process has ended with exit code {code}"
            self._tell(Log(LogLevel.WARNING, "policy.unchecked", self._unchecked(reason)))

    def _found(self, found: Found) -> bool:
        """Log what a line says; whether it is the last one."""
        if "property" in found:
            fields = {"policy": self._name, **found}
            self._tell(Log(LogLevel.WARNING, "policy.breaks", fields))
            return False
        complete, broken = found.pop("complete"), found.pop("broken")
        if not complete:
            reason = "there are more states than the bounds allow"
            self._tell(Log(LogLevel.WARNING, "policy.unchecked", self._unchecked(reason)))
        elif not broken:
            fields = {"policy": self._name, "bounds": _BOUNDS, **found}
            self._tell(Log(LogLevel.INFO, "policy.holds", fields))
        return True

    def _unchecked(self, reason: str) -> Found:
        hint = "bridgecore verify --policy checks it, too"
        return {"policy": self._name, "reason": reason, "detail": hint}

    def _tell(self, record: Log) -> None:
        # The loop may be over already: RuntimeError of asyncio's, RunFinishedError of trio's.
        with contextlib.suppress(RuntimeError):
            self._log(record)


def _start(without: Sequence[str]) -> subprocess.Popen[str]:
    """The process that checks, which waits for a policy.

    Modules are found where this process finds them, and not, as they were with ``-m`` alone, in the
    working directory first. A group of its own: CTRL+C on a terminal is for the bridge.
    """
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *without],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        process_group=0,
    )


# ------------------------------------------------------------------ the process that checks


def check(
    policy: Policy, parts: Iterable[Bounds], without: Iterable[str], emit: Callable[[Found], None]
) -> None:
    """Explore ``policy`` and ``emit`` what is found: for each broken property, at once, what is
    responsible, what it costs a user, and a shortest path to it; then the figures.

    Args:
        policy: what is checked.
        parts: how much of it is explored.
        without: names of properties that are not checked.
        emit: called with each finding.
    """
    from bridgecore.verify.blame import Blamer
    from bridgecore.verify.explore import Counterexample, explore
    from bridgecore.verify.properties import Property

    began, states, complete = time.monotonic(), 0, True
    left_out = frozenset(Property[name] for name in without)
    broken: list[str] = []
    for part in parts:

        def tell_at_once(found: Counterexample, part: Bounds = part) -> None:
            if found.prop.name in broken:
                return
            broken.append(found.prop.name)
            blame = Blamer(policy, effort=0).blame(part, found)
            responsible = (
                ("cell", str(blame.cell or "")),
                ("budget", blame.budget),
                ("rule", blame.rule),
            )
            emit(
                {
                    "property": found.prop.name,
                    **{name: text for name, text in responsible if text},
                    "detail": found.prop.value,
                    "cost": found.prop.cost,
                    "path": ", ".join(found.path),
                }
            )

        most = len(Property)
        report = explore(policy, part, most=most, without=left_out, found=tell_at_once)
        states += report.states
        complete = complete and report.complete
    figures = {"states": states, "seconds": round(time.monotonic() - began)}
    emit({**figures, "complete": complete, "broken": len(broken)})


def main(lines: IO[str], without: Sequence[str]) -> None:
    """Check the policy in the first of ``lines``, and write what is found to standard output, as
    lines of JSON. ``without``: names of properties that are not checked."""
    from bridgecore.verify.environment import BOUNDS

    policy = read_line(lines.readline().encode())
    assert isinstance(policy, Policy)
    threading.Thread(target=_end_with, args=(lines,), daemon=True).start()
    os.nice(_NICE)
    check(policy, BOUNDS[_BOUNDS], without, lambda found: print(json.dumps(found), flush=True))


def _end_with(lines: IO[str]) -> None:
    """End this process when its input ends: the bridge is no more, or wants no answer.

    Read without the object's lock, which the interpreter needs when it ends.
    """
    while os.read(lines.fileno(), 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.stdin, sys.argv[1:])
