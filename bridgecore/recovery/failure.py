"""What went wrong, told by evidence: one total function for every path (invariant 10).

What belongs here: the evidence that sockets, frames and timers give, the kinds of failure that
recovery tells apart, and ``classify``, which maps the first onto the second. Nothing else looks at
a close code, an error frame or an upgrade status to choose a recovery, and nothing that the bridge
renders for its clients is evidence.
"""

from __future__ import annotations

import enum
import re
from typing import TypeAlias, assert_never

import attrs

from bridgecore.recovery.timers import Timer


# fmt: off
@attrs.frozen
class Closed:
    """The socket is gone. ``code``: RFC 6455, section 7.4; 1006 when no close frame came."""
    code: int

@attrs.frozen
class Malformed:
    """The upstream broke the protocol: a frame, an upgrade or an event that nobody can read."""
    reason: str

@attrs.frozen
class Unreachable:
    """TCP or TLS could not be set up. ``reason``: a short word such as ``refused``; ``local`` if
    this process or host has no descriptor, port or memory left for a socket."""
    reason: str

@attrs.frozen
class UpgradeRefused:
    """The WebSocket upgrade was answered with ``status``; ``retry_after`` in seconds."""
    status: int
    retry_after: int | None = None

@attrs.frozen
class ErrorFrame:
    """An in-band error, in any of the shapes that upstreams use; every field can be missing."""
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    param: str | None = None
    retry_after: int | None = None  # seconds

@attrs.frozen
class TimedOut:
    """A deadline passed. What failed is told by which one (invariant 31)."""
    timer: Timer

Evidence: TypeAlias = Closed | Malformed | Unreachable | UpgradeRefused | ErrorFrame | TimedOut

class FailureKind(enum.Enum):
    """The kinds of failure that recovery tells apart."""
    LOST = "lost"  # the socket is gone or useless
    TIMED_OUT = "timed_out"  # a deadline passed
    UNREACHABLE = "unreachable"  # no socket could be had
    EXHAUSTED = "exhausted"  # no socket could be had because none is left here
    REJECTED = "rejected"  # the upgrade was refused for a reason that concerns the client
    NOT_FOUND = "not_found"  # the upstream does not know the anchor
    CONNECTION_LIMIT = "connection_limit"  # the socket is too old for the upstream
    RATE_LIMITED = "rate_limited"  # the upstream refused: too much
    INVALID = "invalid"  # the upstream refused: the request (a 4xx)
    SERVER_ERROR = "server_error"  # the upstream refused: its own trouble, or no reason given

@attrs.frozen
class Failure:
    """A classified failure.

    ``detail`` is a short word for logs ("close 1006", "created deadline"), never upstream text.
    ``status`` is the HTTP status that the upstream gave, if any; ``retry_after`` its seconds.
    """
    kind: FailureKind
    detail: str
    status: int | None = None
    retry_after: int | None = None
# fmt: on


NOT_FOUND_CODE = "previous_response_not_found"
_LIMIT_CODE = "websocket_connection_limit_reached"
# fmt: off
_RATE_CODES = frozenset({
    "rate_limit_exceeded", "rate_limit_error", "rate_limit_reached", "usage_limit_reached",
    "usage_not_included", "insufficient_quota", "too_many_requests",
    "websocket_stream_limit_reached",
})
# fmt: on
# The two texts by which upstreams say not-found without a code (protocol.md, section 1).
_NOT_FOUND_TEXT = re.compile(
    r"\s*(?:Invalid `?previous_response_id`?|Previous response with id .{0,256} not found)\.?\s*",
    re.IGNORECASE | re.DOTALL,
)


def classify(evidence: Evidence) -> Failure:
    """Tell what kind of failure ``evidence`` shows. Total: every evidence has a kind."""
    if isinstance(evidence, Closed):
        return Failure(FailureKind.LOST, f"close {evidence.code}")
    if isinstance(evidence, Malformed):
        return Failure(FailureKind.LOST, evidence.reason)
    if isinstance(evidence, TimedOut):
        return Failure(FailureKind.TIMED_OUT, f"{evidence.timer.value} deadline")
    if isinstance(evidence, Unreachable):
        local = evidence.reason == "local"  # the upstream is not to blame
        kind = FailureKind.EXHAUSTED if local else FailureKind.UNREACHABLE
        return Failure(kind, evidence.reason)
    if isinstance(evidence, UpgradeRefused):
        # 401, 403 and 429 concern the client's credential or pace: it has to hear them. Anything
        # else (404 and 426 included) is a matter between the bridge and its upstream.
        rejected = evidence.status in (401, 403, 429)
        kind = FailureKind.REJECTED if rejected else FailureKind.UNREACHABLE
        return Failure(kind, f"upgrade {evidence.status}", evidence.status, evidence.retry_after)
    if isinstance(evidence, ErrorFrame):
        return _classify_error_frame(evidence)
    assert_never(evidence)


def _classify_error_frame(frame: ErrorFrame) -> Failure:
    names = {frame.code, frame.type}  # some upstreams put the code in ``type``
    status = frame.status
    if NOT_FOUND_CODE in names or (
        frame.code is None
        and frame.param in (None, "previous_response_id")
        and frame.message is not None
        and _NOT_FOUND_TEXT.fullmatch(frame.message)
    ):
        kind = FailureKind.NOT_FOUND
    elif _LIMIT_CODE in names:
        kind = FailureKind.CONNECTION_LIMIT
    elif status == 429 or names & _RATE_CODES:
        kind = FailureKind.RATE_LIMITED
    elif status is not None and 400 <= status < 500:
        kind = FailureKind.INVALID
    else:
        kind = FailureKind.SERVER_ERROR
    # The code is not repeated here: it is the upstream's text and could carry anything.
    detail = f"error frame {status if status is not None else 'without status'}: {kind.value}"
    return Failure(kind, detail, status, frame.retry_after)
