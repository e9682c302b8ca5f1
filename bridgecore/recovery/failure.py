"""Classifies failures: maps what was observed (``Evidence``) to a ``FailureKind``.

``classify`` is the only function that looks at a close code, an error frame or an upgrade status to
choose a recovery, on every path, so that equal causes have equal consequences. It covers every
evidence, and it never reads an error code that the bridge itself rendered for a client: those say
what a client should do, not what happened (ANSWER_TELLS_WHAT_HAPPENED).

What belongs here: the kinds of evidence and of failure, and the names and phrases by which
upstreams report errors.
"""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias, assert_never

import attrs

from bridgecore.recovery.timers import Timer


# fmt: off
@attrs.frozen
class Closed:
    """The connection closed. ``code``: RFC 6455, section 7.4; 1006 if no close frame came."""
    code: int

@attrs.frozen
class Malformed:
    """The upstream broke the protocol: a frame, upgrade or event that cannot be read."""
    reason: str

@attrs.frozen
class Unreachable:
    """TCP or TLS could not be set up. ``reason``: a short word such as ``refused``; ``local`` if
    this process or host has no descriptor, port or memory left for a connection."""
    reason: str

@attrs.frozen
class UpgradeRefused:
    """The WebSocket upgrade was answered with ``status``; ``retry_after`` in seconds, from the
    answer's head or body."""
    status: int
    retry_after: int | None = None

@attrs.frozen
class ErrorFrame:
    """An error frame, in any of the shapes that upstreams use. Every field can be missing.

    ``more``: the other members of the error (``plan_type``, ``resets_at``, ...) as the text of a
    JSON object, to be relayed to the client. It is not classified.
    """
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    param: str | None = None
    retry_after: int | None = None  # seconds
    more: str | None = None

@attrs.frozen
class TimedOut:
    """The deadline of ``timer`` passed. The timer, and not the order in which tasks woke up, tells
    what failed."""
    timer: Timer

@attrs.frozen
class NotDispatched:
    """The replica to which the turn was forwarded answered that it has not sent the turn upstream:
    it does not own the conversation, or is about to stop. ``reason``: a short phrase. ``rejected``:
    it takes no such forward, whatever it owns, because of its signature for example. ``by``: the
    name of the replica that has answered, if it says it."""
    reason: str
    rejected: bool = False
    by: str | None = None

Evidence: TypeAlias = (
    Closed | Malformed | Unreachable | UpgradeRefused | ErrorFrame | TimedOut | NotDispatched
)
"""How a connection was lost, or why a turn was refused."""

NO_REPLICA: Final = Malformed("the answer is not a replica's")
"""What answers at the address of another replica is something else: what it has done with the turn
is unknown."""

class FailureKind(enum.Enum):
    """The kinds of failure that recovery distinguishes."""

    __hash__ = object.__hash__  # by identity: looked up for every event

    LOST = "lost"  # the connection is closed or unusable
    TIMED_OUT = "timed_out"  # a deadline passed
    UNREACHABLE = "unreachable"  # the connect failed
    EXHAUSTED = "exhausted"  # the connect failed for want of descriptors, ports or memory here
    REJECTED = "rejected"  # the upgrade was refused for a reason that concerns the client
    NO_WEBSOCKET = "no_websocket"  # the upgrade was refused: no WebSocket is spoken there
    NOT_FOUND = "not_found"  # the upstream does not know the anchor
    CONNECTION_LIMIT = "connection_limit"  # the connection is past the upstream's lifetime limit
    RATE_LIMITED = "rate_limited"  # refused: too many requests or tokens
    INVALID = "invalid"  # refused: something is wrong with the request (a 4xx)
    # Refused for its size. The upstream processed nothing, so the refusal is not ambiguous, and the
    # same frame will never be accepted.
    TOO_LARGE = "too_large"
    SERVER_ERROR = "server_error"  # refused: an error of the upstream's own, or without a reason
    # The replica that the turn was forwarded to has not sent it upstream: not ambiguous either.
    NOT_DISPATCHED = "not_dispatched"

@attrs.frozen
class Failure:
    """A classified failure.

    ``detail``: a short phrase for logs ("close 1006", "created deadline"), never the upstream's
    text, which could contain user data. ``status``: the HTTP status that the upstream gave or,
    without one, the status that its ``code`` or ``type`` implies, if any. ``retry_after``: in
    seconds.
    """
    kind: FailureKind
    detail: str
    status: int | None = None
    retry_after: int | None = None

    @property
    def is_of_input(self) -> bool:
        """Whether it says that something is wrong with the input of the turn.

        A 4xx does, but not one about the credential or the account, which another try may find in
        order.
        """
        return self.kind is FailureKind.INVALID and self.status not in _ACCOUNT
# fmt: on


# ---------------------------------------------------------------- names of errors
#
# Upstreams use the same names in ``code`` or ``type``, and spell them differently:
# ``rate_limit_error``, ``RateLimitError``, ``unauthenticated:bad-credentials``. So names are
# compared by their letters and digits, up to a colon, without a final "error": see ``_key``.

NOT_FOUND_CODE = "previous_response_not_found"
_NOT_FOUND = (
    NOT_FOUND_CODE, "previous_response_id_not_found", "invalid_previous_response_id",
    "previous_response_expired", "response_not_found", "response_expired",
)  # fmt: skip
_LIMIT = ("websocket_connection_limit_reached",)
ACCOUNT_LIMITS = (
    "usage_limit_reached", "usage_limit_exceeded", "usage_not_included", "insufficient_quota",
    "quota_exceeded", "credit_balance_exhausted",
)  # fmt: skip
"""Names of errors that say that an account has reached a limit of its plan or is out of credit.
They come with the status 429, although waiting may not help."""
_RATE = (
    "rate_limit_exceeded", "rate_limit_error", "rate_limit_reached", *ACCOUNT_LIMITS,
    "too_many_requests", "resource_exhausted", "throttling_exception",
    "websocket_stream_limit_reached",
)  # fmt: skip
# The size of the message. Not the size of the context (``context_length_exceeded``): there the
# upstream has read the request, and the client can shorten it.
_TOO_LARGE = (
    "message_too_big", "message_too_large", "request_too_large", "request_entity_too_large",
    "payload_too_large", "content_too_large", "body_too_large", "frame_too_large",
)  # fmt: skip
# Names of a class of errors: they say no more than the status does, so the message text counts.
_CLASSES = {
    400: (
        "invalid_request_error", "bad_request_error", "invalid_argument", "invalid_value",
        "failed_precondition", "validation_error",
    ),
    404: ("not_found_error",),
    422: ("unprocessable_entity_error",),
}  # fmt: skip
# Names of one specific error: they take precedence over the message text. Sources: the Responses
# API reference (error codes of a response, of the stream and of HTTP) and, where marked, others.
_SPECIFIC = {
    400: (
        "context_length_exceeded", "string_above_max_length", "invalid_prompt", "invalid_type",
        "invalid_stream_id", "invalid_encrypted_content", "missing_required_parameter",
        "unknown_parameter", "unsupported_parameter", "unsupported_value", "model_not_supported",
        "content_policy_violation", "bio_policy", "cyber_policy", "data_residency_mismatch",
        "image_content_policy_violation", "image_file_not_found", "image_file_too_large",
        "image_parse_error", "image_too_large", "image_too_small", "invalid_base64_image",
        "invalid_image", "invalid_image_format", "invalid_image_mode", "invalid_image_url",
        "empty_image_file", "failed_to_download_image", "unsupported_image_media_type",
    ),
    401: (
        "authentication_error", "invalid_api_key", "invalid_token", "token_expired",
        "unauthenticated", "unauthorized",
    ),
    402: ("insufficient_balance", "payment_required", "billing_error"),  # Anthropic, DeepSeek
    403: (
        "permission_error", "permission_denied", "forbidden", "access_denied",
        "unsupported_country_region_territory",
    ),
    404: ("model_not_found", "item_not_found", "conversation_not_found"),
    409: ("conflict_error",),
}  # fmt: skip


def _key(word: str) -> str:
    """The part of a ``code`` or ``type`` that is compared; empty if nothing of it is."""
    plain = _PUNCTUATION.sub("", word[:_LONGEST_NAME].partition(":")[0].lower())
    return plain.removesuffix("exception").removesuffix("error")


_LONGEST_NAME = 128  # characters: bounds the work; no name above is nearly as long
_PUNCTUATION = re.compile(r"[^a-z0-9]")


def _keys(*words: str) -> frozenset[str]:
    return frozenset(map(_key, words))


_NOT_FOUND_KEYS, _LIMIT_KEYS, _RATE_KEYS = _keys(*_NOT_FOUND), _keys(*_LIMIT), _keys(*_RATE)
_TOO_LARGE_KEYS = _keys(*_TOO_LARGE)
_SPECIFIC_KEYS = frozenset(_key(word) for words in _SPECIFIC.values() for word in words)
_STATUS_OF_KEY = {
    _key(word): status
    for group in (_CLASSES, _SPECIFIC)
    for status, words in group.items()
    for word in words
}
_SPELLINGS = {
    _key(word): word
    for words in (_NOT_FOUND, _LIMIT, _RATE, _TOO_LARGE, *_CLASSES.values(), *_SPECIFIC.values())
    for word in words
}

# Many upstreams report not-found in the message text only. To count, the subject must be a
# response: "Item with id 'rs_1' not found", "Conversation not found" and "The model does not exist"
# are about something else. An id is quoted, follows the word "id", or looks like a response id:
# "Response format not found" has none.
_QUOTED = r"""(?:'[^']*'|"[^"]*"|`[^`]*`)"""
_ID = rf"(?:\bid ?[=:]? ?(?:{_QUOTED}|[^\s'\"`]+)|{_QUOTED}|resp[_-]\S+)"
_MISSING = (
    r"(?:(?:was|is|could|can|has|does) )?"
    r"(?:not (?:be )?found|cannot be found|not exist|(?:been )?expired|unknown)\b"
)
_PREVIOUS_ID = r"['\"`]?previous[_ ]response[_ ]id['\"`]?"
_NOT_FOUND_TEXT = re.compile(
    # OpenAI, vLLM, SGLang and xAI: "Response with id 'resp_1' not found."
    rf"(?:the )?(?:previous |referenced )?response(?: with)?(?: {_ID})? {_MISSING}"
    # OpenAI, the short form: "Invalid `previous_response_id`."
    rf"|(?:invalid|unknown) {_PREVIOUS_ID}"
    rf"|{_PREVIOUS_ID}(?: ?[=:]? ?{_ID})? {_MISSING}"
    rf"|(?:unknown|no such) response:? {_ID}"
    rf"|no response (?:was )?found (?:with|for) (?:previous_response_)?{_ID}"
    rf"|(?:could not|cannot) find (?:the )?(?:previous )?response(?: with)? {_ID}"
    # LM Studio, where each response is a node of a history.
    rf"|prediction history node (?:with )?{_ID} {_MISSING}",
    re.IGNORECASE,
)
# Prefixes that gateways put before the message of their upstream: "gRPC error: ", "rpc error: code
# = NotFound desc = ", "litellm.BadRequestError: OpenAIException - ", or the JSON of its answer up
# to the message. After any other prefix the phrase may be a quotation, for example of the request.
_WRAPPER = re.compile(
    r".*(?:error|exception|fail|invalid|bad request|desc|code|status|not ?found|\d{3})"
    r"[^:=]{0,40}[:=-] ?"
    r"|.*\{.*\\?[\"']message\\?[\"'] ?: ?\\?[\"']",
    re.IGNORECASE,
)
_WRAPPED_CODE = re.compile(rf"\{{.*\\?[\"']code\\?[\"'] ?: ?\\?[\"']{NOT_FOUND_CODE}\b")
# Characters of a message that are searched. An id can have 4,096 (requests with a longer one are
# refused), and the time of a search grows with the square of the length.
_LONGEST_TEXT = 5_000
# Parameters that name the anchor. OpenAI's says it by itself; ``response_id``, which vLLM takes
# from its path parameter, only together with a message about a response or a 404.
_ANCHOR_PARAM, _ID_PARAM = "previous_response_id", "response_id"
_PARAMS = {_key(name): name for name in (_ANCHOR_PARAM, _ID_PARAM)}
# Statuses about the account or the credential. They take precedence over the message text.
_ACCOUNT = frozenset({401, 402, 403, 407})
# Statuses of a refused upgrade that are about the client's credential, account or request, rather
# than about the way to the upstream: the client has to see them.
_REJECTIONS = frozenset({400, 401, 402, 403, 413, 422, 429, 451})
# Statuses with which servers and proxies that speak HTTP, but no WebSocket, answer an upgrade: no
# such path for GET (404), not with GET (405), what a bridge over HTTP tells clients to do (426,
# which clients such as Codex take for "use HTTP"), not implemented (501).
_NO_WEBSOCKET = frozenset({404, 405, 426, 501})


def known_name(word: str) -> str | None:
    """The standard spelling of ``word``, a ``code`` or ``type``; None if it is not a known name.

    For logs, which must not contain the upstream's own text.
    """
    return _SPELLINGS.get(_key(word))


def known_param(param: str) -> str | None:
    """The standard spelling of ``param``; None if it is not a name of the anchor's parameter."""
    return _PARAMS.get(_key(param.rpartition(".")[2]))


# ---------------------------------------------------------------- classification


def classify(evidence: Evidence) -> Failure:
    """Classify ``evidence``. Total: every evidence has a kind."""
    if isinstance(evidence, Closed):
        # 1009, "message too big" (RFC 6455, 7.4.1): the upstream refused our frame. A message of
        # the upstream's that is too big for us is ``Malformed``.
        kind = FailureKind.TOO_LARGE if evidence.code == 1009 else FailureKind.LOST
        return Failure(kind, f"close {evidence.code}")
    if isinstance(evidence, Malformed):
        return Failure(FailureKind.LOST, evidence.reason)
    if isinstance(evidence, TimedOut):
        return Failure(FailureKind.TIMED_OUT, f"{evidence.timer.value} deadline")
    if isinstance(evidence, Unreachable):
        local = evidence.reason == "local"  # the upstream is not to blame
        kind = FailureKind.EXHAUSTED if local else FailureKind.UNREACHABLE
        return Failure(kind, evidence.reason)
    if isinstance(evidence, UpgradeRefused):
        # Other statuses are about the bridge's own configuration or the upstream's state. 413 is
        # about the upgrade's head: no frame was sent that could be too large.
        kind = FailureKind.UNREACHABLE
        if evidence.status in _REJECTIONS:
            kind = FailureKind.REJECTED
        elif evidence.status in _NO_WEBSOCKET:
            kind = FailureKind.NO_WEBSOCKET
        return Failure(kind, f"upgrade {evidence.status}", evidence.status, evidence.retry_after)
    if isinstance(evidence, ErrorFrame):
        return _classify_error_frame(evidence)
    if isinstance(evidence, NotDispatched):
        return Failure(FailureKind.NOT_DISPATCHED, evidence.reason)
    assert_never(evidence)


def _classify_error_frame(frame: ErrorFrame) -> Failure:
    names = [_key(word) for word in (frame.code, frame.type) if word is not None]
    status_of_code = next((_STATUS_OF_KEY[name] for name in names if name in _STATUS_OF_KEY), None)
    # A status below 400 belongs to the answer that carries the error, not to the error.
    status = status_of_code if frame.status is None or frame.status < 400 else frame.status
    if not _NOT_FOUND_KEYS.isdisjoint(names):
        kind = FailureKind.NOT_FOUND
    elif not _LIMIT_KEYS.isdisjoint(names):
        kind = FailureKind.CONNECTION_LIMIT
    elif status in _ACCOUNT:
        kind = FailureKind.INVALID
    elif status == 429 or not _RATE_KEYS.isdisjoint(names):
        kind = FailureKind.RATE_LIMITED
    elif not _TOO_LARGE_KEYS.isdisjoint(names) or (
        status == 413 and _SPECIFIC_KEYS.isdisjoint(names)
    ):
        kind = FailureKind.TOO_LARGE
    elif _says_not_found(frame, status):
        kind = FailureKind.NOT_FOUND
    elif status is not None and 400 <= status < 500:
        kind = FailureKind.INVALID
    else:
        kind = FailureKind.SERVER_ERROR
    # The code is left out: it is the upstream's text and could contain anything.
    given = frame.status if frame.status is not None else "without status"
    detail = f"error frame {given}: {kind.value}"
    return Failure(kind, detail, status, frame.retry_after)


def _says_not_found(frame: ErrorFrame, status: int | None) -> bool:
    """Whether the parameter or the message of ``frame`` says that the anchor is unknown."""
    param = None if frame.param is None else known_param(frame.param)
    if param == _ANCHOR_PARAM and status in (None, 400, 404, 410, 422):
        return True
    if frame.param is not None and param is None:
        return False  # the message is about another parameter
    code = _key(frame.code or "")
    if code in _SPECIFIC_KEYS:
        return False  # the code is about something else; the message may just mention a response
    message = " ".join((frame.message or "")[:_LONGEST_TEXT].split())
    found = _NOT_FOUND_TEXT.search(message)
    if found is not None and (
        found.start() == 0 or _WRAPPER.fullmatch(message, 0, found.start()) is not None
    ):
        return True
    if _WRAPPED_CODE.search(message) is not None:
        return True
    return param == _ID_PARAM and status in (404, 410)
