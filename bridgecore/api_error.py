"""Errors as a client sees them: status, code, message and the time to wait before a retry.

What belongs here: rendering a decision (``recovery.effects.FailureReply``) or an upstream's error
as an ``ApiError``. This is the only place that does. An ``ApiError`` is a value that each front
writes in its own protocol, and recovery never reads it: decisions depend on what happened and not
on the words that describe it.
"""

from __future__ import annotations

import re
from typing import assert_never

import attrs

from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    ErrorFrame,
    Failure,
    FailureKind,
    classify,
    known_name,
)
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.wire.responses import error_body

# Seconds of Retry-After where the upstream named none. Enough for the bridge to reconnect. Codex
# and the SDKs honour it if it is an integer.
_RETRY_AFTER = 1
_RETRIABLE = frozenset({429, 502, 503, 504})
_NAME = re.compile(r"[A-Za-z_.]{1,64}|[0-9]{1,6}")


@attrs.frozen
class ApiError:
    """An error in the shape that OpenAI's API gives its errors.

    ``status``: the HTTP status, also where the answer is not carried by HTTP. ``retry_after``:
    seconds; None if a retry would not help. ``more``: further members of an upstream's error, as
    the text of a JSON object.
    """

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None
    more: str | None = None

    @property
    def body(self) -> bytes:
        """The JSON body, in OpenAI's error shape."""
        return error_body(self.message, self.type, self.code, self.param, self.more)

    @property
    def wait_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of an HTTP answer that say when to try again; none if that would not help."""
        if self.retry_after is None:
            return []
        return [
            (b"retry-after", b"%d" % self.retry_after),
            (b"retry-after-ms", b"%d" % (self.retry_after * 1000)),  # OpenAI's SDKs read it first
        ]

    @property
    def log_code(self) -> str:
        """The code as log records show it, the same as in the answer if it looks like a name.

        An upstream can put any text into a code, a credential or a part of the request included,
        and those must not get into a log. Such a code is logged as the known code that
        classification takes it for, or as ``upstream_error``.
        """
        if _NAME.fullmatch(self.code):
            return self.code
        return known_name(self.code) or FailureReply.UPSTREAM_ERROR.value


def api_error(
    status: int,
    code: str,
    message: str,
    *,
    type_: str | None = None,
    param: str | None = None,
    retry_after: int | None = None,
) -> ApiError:
    """An ``ApiError`` with the type and the ``Retry-After`` that are usual for its status."""
    if type_ is None:
        type_ = _type_of(status)
    wait = max(retry_after or 0, _RETRY_AFTER) if status in _RETRIABLE else None
    return ApiError(status, type_, code, message, param, wait)


def _type_of(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


OWNERSHIP_LOST = api_error(
    502,
    FailureReply.OWNER_UNREACHABLE.value,
    "This replica does not own the conversation any more; the turn was not sent. Retry as is.",
)
STORE_UNAVAILABLE = api_error(
    503,
    "bridge_store_unavailable",
    "The store that knows this response did not answer, or has given this replica no lease yet; "
    "nothing was sent upstream. Retry as is.",
)
OWNER_LOST = api_error(
    502,
    FailureReply.OWNER_UNREACHABLE.value,
    "The replica that owns this conversation was lost after the turn was forwarded to it; whether "
    "it has run is not known. Retry as is.",
)
NOT_DISPATCHED = api_error(
    421,
    "bridge_not_dispatched",
    "This replica does not own the conversation; the turn was not sent.",
)
SHUTTING_DOWN = api_error(503, "server_shutting_down", "The server is shutting down.")


def owner_unreachable(remaining: int) -> ApiError:
    """The error of a turn whose conversation another replica owns, which cannot be reached.

    Args:
        remaining: ns until the owner's lease ends, if it is not renewed: then any replica can take
            over. One that is alive renews it.
    """
    seconds = -(-remaining // NS_PER_SECOND)
    message = (
        "The replica that owns this conversation cannot be reached; the turn was not sent. "
        f"If it has ended, another one can take over in {seconds} s at the latest. Retry as is."
    )
    code = FailureReply.OWNER_UNREACHABLE.value
    return api_error(502, code, message, retry_after=seconds)


def owner_misdirected(remaining: int) -> ApiError:
    """The error of a turn that was sent to the address of the replica that owns its conversation,
    where something answers that is no replica. ``remaining``: as for ``owner_unreachable``."""
    seconds = -(-remaining // NS_PER_SECOND)
    message = (
        "What answers at the address of the replica that owns this conversation is no replica; "
        "whether the turn has run is not known. "
        f"If the owner has ended, another one can take over in {seconds} s at the latest. "
        "Retry as is."
    )
    code = FailureReply.OWNER_UNREACHABLE.value
    return api_error(502, code, message, retry_after=seconds)


def render_answer(
    answer: FailureReply, failure: Failure | None, error: ErrorFrame | None, anchor: str | None
) -> ApiError:
    """The error with which a turn is refused or ended.

    Args:
        answer: the kind of reply that was decided.
        failure: the failure that led to it; None if there was none.
        error: the upstream's error, for a reply that passes it on.
        anchor: the turn's ``previous_response_id``.
    """
    happened = f" ({failure.detail})" if failure is not None else ""
    wait = failure.retry_after if failure is not None else None
    exhausted = failure is not None and failure.kind is FailureKind.EXHAUSTED
    if answer is FailureReply.UPSTREAM_UNAVAILABLE and exhausted:
        message = "The bridge has no socket left to reach the upstream with. Retry later."
        return api_error(503, FailureReply.OVERLOADED.value, message)
    if answer is FailureReply.UPSTREAM_UNAVAILABLE:
        message = f"The upstream connection could not carry this turn{happened}. Retry as is."
    elif answer is FailureReply.OWNER_UNREACHABLE:
        message = f"The connection was lost while the turn was being sent{happened}. Retry as is."
    elif answer is FailureReply.STREAM_INCOMPLETE:
        message = f"The upstream connection was lost before the answer was complete{happened}."
    elif answer is FailureReply.REQUEST_TIMEOUT:
        message = f"The upstream did not answer in time{happened}. Retry as is."
    elif answer is FailureReply.OVERLOADED:
        message = "Too many turns wait for this conversation. Retry later."
        return api_error(503, answer.value, message)
    elif answer is FailureReply.NOT_FOUND:
        message = f"Previous response with id '{anchor}' not found."
        return api_error(400, NOT_FOUND_CODE, message, param="previous_response_id")
    elif answer is FailureReply.UPSTREAM_ERROR:
        return _render_upstream_error(failure, error or ErrorFrame(), anchor)
    else:
        assert_never(answer)
    return api_error(502, answer.value, message, retry_after=wait)


def render_failed_response(error: ErrorFrame, anchor: str | None) -> ApiError:
    """The error for a client without a stream whose turn ended with ``response.failed``."""
    return _render_upstream_error(classify(error), error, anchor)


# The code of an error for which the upstream gave neither a code nor a type.
_CODES = {
    FailureKind.RATE_LIMITED: "rate_limit_exceeded",
    FailureKind.TOO_LARGE: "request_too_large",
}


def _render_upstream_error(
    failure: Failure | None, error: ErrorFrame, anchor: str | None
) -> ApiError:
    """The upstream's error with its message and members, and a status that clients know."""
    kind = failure.kind if failure is not None else FailureKind.SERVER_ERROR
    if kind is FailureKind.NOT_FOUND and anchor is None:
        # A not-found makes clients drop the id and resend all. This one named no id: the upstream
        # is at fault, and a retry may work.
        message = "The upstream did not find a response that the turn does not name. Retry as is."
        return api_error(502, FailureReply.UPSTREAM_ERROR.value, message)
    if kind is FailureKind.NOT_FOUND:
        # Upstreams report it in several shapes; clients recognize this one.
        return render_answer(FailureReply.NOT_FOUND, failure, None, anchor)
    if kind is FailureKind.REJECTED and classify(error).kind in _OF_A_SOCKET:
        # These codes in a refused upgrade are about the upstream connection, not about the turn:
        # the upgrade request named no response.
        return render_answer(FailureReply.UPSTREAM_UNAVAILABLE, failure, None, anchor)
    upstream = failure.status if failure is not None else None
    if kind is FailureKind.RATE_LIMITED:
        status = 429
    elif kind is FailureKind.TOO_LARGE:
        status = 413
    elif kind in (FailureKind.INVALID, FailureKind.REJECTED) and upstream is not None:
        status = upstream
    else:
        status = 502
    code = error.code or error.type or _CODES.get(kind, FailureReply.UPSTREAM_ERROR.value)
    words = error.message
    if words is None and kind is FailureKind.TOO_LARGE:
        happened = f" ({failure.detail})" if failure is not None else ""
        words = f"The request is larger than the upstream takes{happened}. Send less input."
    elif words is None:
        words = f"The upstream refused the turn ({code})."
    wait = failure.retry_after if failure is not None else None
    answer = api_error(status, code, words, type_=error.type, param=error.param, retry_after=wait)
    return attrs.evolve(answer, more=error.more)


# Failures that concern a connection, not a turn, when an upgrade is refused with them.
_OF_A_SOCKET = frozenset({FailureKind.NOT_FOUND, FailureKind.CONNECTION_LIMIT})
