"""What a bridge counts, and how that is written for Prometheus.

What belongs here: each metric with its meaning, the counts that are kept while a bridge runs
because nothing else remembers them, and the text format. No decision depends on a count, and
nothing is counted unless ``Config.metrics`` is set. No label has data of a request, such as an id
or a credential.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final, TypeAlias

import attrs


class Kind(enum.Enum):
    """Whether a metric only grows, goes up and down, or is a distribution of times."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@attrs.frozen(eq=False)
class Metric:
    """One metric. ``labels``: the names of its labels; ``help``: what its value means."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


BOUNDS: Final = tuple(
    ms * 1_000_000
    for ms in (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
)
"""Upper bounds of the buckets of a histogram, in ns: from a cached answer to a long research
task."""


@attrs.define
class Distribution:
    """How many times there were in each bucket, the last one without a bound, and their sum in
    ns."""

    buckets: list[int] = attrs.Factory(lambda: [0] * (len(BOUNDS) + 1))
    sum: int = 0

    def add(self, time: int) -> None:
        """Count ``time``, in ns."""
        self.buckets[bisect_left(BOUNDS, time)] += 1
        self.sum += time


Readings: TypeAlias = Mapping[Metric, Mapping[tuple[str, ...], "int | Distribution"]]
"""Values of metrics, by the values of their labels, which are in the order of ``Metric.labels``."""


_all: list[Metric] = []


def _metric(kind: Kind, name: str, text: str, *labels: str) -> Metric:
    metric = Metric(f"bridgecore_{name}", kind, text, labels)
    _all.append(metric)
    return metric


_counter, _gauge, _histogram = (partial(_metric, kind) for kind in Kind)

TURNS = _counter(
    "turns_total",
    "turns that were answered, by who asked (client, or replica: it was forwarded here) and by how "
    "the answer ended: completed, incomplete, failed (after its head), refused (an error status), "
    "abandoned (the client left)",
    "origin",
    "result",
)
ERRORS = _counter(
    "errors_total", "answers to turns that are errors, by their code as the log has it", "code"
)
FIRST_EVENT = _histogram(
    "first_event_seconds", "from a client's request for a stream to the first event of its answer"
)
DURATION = _histogram(
    "turn_seconds", "from a client's request to the end of its answer, whatever that is"
)
TURNS_RUNNING = _gauge("turns_running", "turns that run, wait, or are being committed")
CONVERSATIONS = _gauge("conversations", "conversations with a session")
DECISIONS = _counter("decisions_total", "events that sessions decided about, by the rule", "rule")
REMEDIES = _counter(
    "remedies_total",
    "decisions about turns by the policy's table: row, column, and what the cell says",
    "situation",
    "standing",
    "remedy",
)
CONNECTIONS = _counter(
    "upstream_connections_total",
    "connections for turns to the upstream or to a replica: opened, failed (they could not be), "
    "lost (after they were open)",
    "to",
    "result",
)
LINKS = _gauge("links", "upstream connections for turns that are open or being opened")
CLIENT_CONNECTIONS = _gauge("client_connections", "connections of clients and replicas, open")
PASSAGES = _gauge("passages", "upstream connections of requests that are passed through")
REDUCED = _counter(
    "turns_reduced_total", "completed turns whose repeated history was not sent upstream"
)
REHYDRATED = _counter(
    "turns_rehydrated_total", "completed turns whose context was rebuilt and sent"
)
WARMED = _counter("connections_warmed_total", "connections that were preloaded with a context")
TOKENS_SAVED = _counter("tokens_saved_total", "tokens of the history that was not sent")
TOKENS_SPENT = _counter("tokens_spent_total", "tokens of the contexts that were sent once more")
BYTES_SAVED = _counter("bytes_saved_total", "bytes of the history that was not sent")
BYTES_SPENT = _counter("bytes_spent_total", "bytes of the contexts that were sent once more")
TRANSCRIPT_BYTES = _gauge("transcript_bytes", "memory of all transcripts")
TRANSCRIPT_RESPONSES = _gauge("transcript_responses", "responses whose transcript is held")
STORE_ANSWERS = _gauge("store_answers", "1 if the store has answered the latest commit, else 0")
NOT_DURABLE = _counter(
    "turns_not_durable_total", "turns that were shown and that no store keeps for their clients"
)
OWNED = _gauge("conversations_owned", "conversations that this replica owns")
LEASES_LOST = _counter("leases_lost_total", "times that this replica has lost its lease")

METRICS: Final = tuple(_all)
"""All metrics, in the order in which they are written."""

# Sets of labels that one metric has at most. An upstream chooses the codes of its errors, and each
# set of labels costs memory here and in every system that stores the metrics.
_MOST_SETS: Final = 200
_OTHER: Final = "other"
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
"""The media type of ``exposition``."""


@attrs.define
class Counts:
    """Counters of one bridge, from its start on."""

    _of: dict[Metric, dict[tuple[str, ...], int]] = attrs.Factory(dict)
    _times: dict[Metric, Distribution] = attrs.Factory(dict)

    def add(self, metric: Metric, *labels: str) -> None:
        """Count one. Beyond ``_MOST_SETS`` sets of labels, new ones count as ``other``."""
        counted = self._of.setdefault(metric, {})
        if labels not in counted and len(counted) >= _MOST_SETS:
            labels = tuple([_OTHER] * len(labels))
        counted[labels] = counted.get(labels, 0) + 1

    def observe(self, metric: Metric, time: int) -> None:
        """Count ``time`` (ns) in a histogram."""
        self._times.setdefault(metric, Distribution()).add(time)

    def read(self) -> dict[Metric, Mapping[tuple[str, ...], int | Distribution]]:
        """A copy of all that was counted."""
        found: dict[Metric, Mapping[tuple[str, ...], int | Distribution]] = {}
        for metric, counted in self._of.items():
            found[metric] = counted.copy()
        for metric, times in self._times.items():
            found[metric] = {(): Distribution([*times.buckets], times.sum)}
        return found


def exposition(readings: Readings) -> bytes:
    """``readings`` in the text format of Prometheus, version 0.0.4, in the order of ``METRICS``."""
    lines = []
    for metric in METRICS:
        values = readings.get(metric)
        if values is None:
            continue
        lines += [
            f"# HELP {metric.name} {metric.help}",
            f"# TYPE {metric.name} {metric.kind.value}",
        ]
        for labels, value in values.items():
            if isinstance(value, Distribution):
                lines += _lines_of(metric, value)
            else:
                lines.append(f"{metric.name}{_set(metric, labels)} {value}")
    return "".join(f"{line}\n" for line in lines).encode()


def _lines_of(metric: Metric, times: Distribution) -> Iterator[str]:
    """The lines of a histogram: each bucket counts what those before it do, too."""
    total = 0
    for bound, count in zip([*map(_seconds, BOUNDS), "+Inf"], times.buckets, strict=True):
        total += count
        yield f'{metric.name}_bucket{{le="{bound}"}} {total}'
    yield f"{metric.name}_sum {_seconds(times.sum)}"
    yield f"{metric.name}_count {total}"


def _seconds(ns: int) -> str:
    return repr(ns / 1e9)


def _set(metric: Metric, labels: tuple[str, ...]) -> str:
    if not labels:
        return ""
    pairs = zip(metric.labels, labels, strict=True)
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
