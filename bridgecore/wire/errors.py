r"""Parses the errors of upstreams, whatever shape they have. Never raises, whatever the input.

What belongs here: finding the error in a message or in the body of a refused upgrade, its code and
message, its other members, and how long the client has to wait. What kind of failure it is follows
in ``bridgecore.recovery.failure``; how it is rendered for clients in ``bridgecore.api_error``.

The shapes, and who sends them (``_PLACES`` has the order in which they are tried)::

    {"type":"error","status":400,"error":{..}}   OpenAI, WebSocket mode (API reference). Codex takes
                                                 "status_code" for "status", and "headers" beside it
    {"type":"error","code":..,"message":..}      OpenAI, the stream's "error" event (API reference)
    {"type":"response.failed","response":{..}}   OpenAI: response.error; in the Realtime API,
                                                 response.status_details.error
    {"error":{..}}, {"status":403,"error":{..}}  xAI; the HTTP body of all that are like OpenAI
                                                 (in vLLM and SGLang "code" is the status)
    {"code":"..","error":"words"}                xAI over HTTP
    {"type":"error","body":{"error":{..}}}       gateways that wrap an HTTP answer, as JSON or as
                                                 the text of it
    {"error":{"error":{..}}}                     gateways that wrap another gateway
    {"detail":"words"}, {"detail":[{..}]}        FastAPI; a list is a validation error, status 422,
                                                 each mistake with "loc" and "msg"
    {"detail":{"error":{..}}}                    gateways built on FastAPI
    {"error":"code","error_description":".."}    OAuth (RFC 6749, 5.2): gateways that check tokens
    {"code":5,"message":"..","details":[..]}     gRPC as JSON (google.rpc.Status, google.rpc.Code)
    {"error":{"code":429,"status":"NAME",..}}    Google APIs: "status" is the name of the code
    {"message":"..","connectionId":".."}         AWS API Gateway, WebSocket APIs

Each field can be missing, null or of another type: ``status`` a string, ``code`` a number. A
``code`` that is a number, or a string of one, is read as a status.

The wait is the longest of all that are given, since each is a time before which the upstream does
not accept requests: ``Retry-After`` in seconds and ``retry-after-ms`` (OpenAI's client libraries
read it), from the head of an HTTP answer or from ``headers`` in the message or in the error;
``resets_in_seconds`` (OpenAI, usage limits); ``retryDelay`` (google.rpc.RetryInfo); "try again in
6m0s" in the message; and, of a usage window that is used up,
``x-codex-primary-reset-after-seconds``.
A ``Retry-After`` that is a date counts from the ``Date`` of the same answer. Other times of day
(``resets_at``) are not read: the core has no clock to compare them with. Neither are headers such
as ``x-ratelimit-reset-requests``: they say when a limit is completely reset, and the next request
may be accepted long before that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.jsontext import UnreadableError, scan_array, scan_members, scan_value

_Members: TypeAlias = dict[str, str]  # of an object: each value as the text that it came as
# Where an error can be: names of members, outermost first. The first place with an error is used.
_PLACES: tuple[tuple[str, ...], ...] = (
    ("response", "error"),
    ("response", "status_details", "error"),
    ("body", "error"),
    ("body", "detail"),
    ("error", "error"),
    ("error",),
    ("detail", "error"),
    ("detail",),
    ("body",),
    (),
)
_STATUS = ("status", "status_code", "statusCode")
_WORDS = ("message", "error_description", "detail", "msg")
# Members next to an error that belong to the message around it, not to the error.
_ENVELOPE = frozenset(
    {
        *("type", "error", "body", "detail", "response", "headers", *_STATUS),
        *("event_id", "sequence_number", "stream_id", "response_id", "item_id", "connectionId"),
    }
)
# The members of an error in OpenAI's shape; all others are kept in ``ErrorFrame.more``.
_FIELDS = frozenset({"type", "code", "message", "param"})
# google.rpc.Code: the name of a number, and its HTTP status (from the comments of the enumeration).
_GRPC_CODES = {
    1: ("cancelled", 499),
    2: ("unknown", 500),
    3: ("invalid_argument", 400),
    4: ("deadline_exceeded", 504),
    5: ("not_found", 404),
    6: ("already_exists", 409),
    7: ("permission_denied", 403),
    8: ("resource_exhausted", 429),
    9: ("failed_precondition", 400),
    10: ("aborted", 409),
    11: ("out_of_range", 400),
    12: ("unimplemented", 501),
    13: ("internal", 500),
    14: ("unavailable", 503),
    15: ("data_loss", 500),
    16: ("unauthenticated", 401),
}
# Characters of a code. A longer text is not a code, and would be repeated in every log line.
_LONGEST_CODE = 128
# Characters of other members that are kept. Enough for all that clients use; bounded, because an
# error is copied several times.
_MOST_MORE = 16_384
# Validation errors that the message lists; all of them are in the other members.
_MOST_MISTAKES = 8
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HTTP_DATE = re.compile(
    rf"[A-Z][a-z]{{2}}, (0[1-9]|[12][0-9]|3[01]) ({'|'.join(_MONTHS)}) ([1-9][0-9]{{3}})"
    r" ([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60) GMT"
)
# A wait is never shortened, except one of more than a year: a number can have any length, and a
# longer one is not meant.
_LONGEST_WAIT = 366 * 86_400  # seconds

# ---------------------------------------------------------------- interface


def read_error(data: bytes) -> ErrorFrame:
    """The error in a message; an empty one if there is none in a known shape."""
    return find_error(data) or ErrorFrame()


def find_error(data: bytes) -> ErrorFrame | None:
    """The error in a message; None if there is none in a known shape."""
    members = _members(_decode(data))
    return None if members is None else _find(members)


def error_among(members: Mapping[str, bytes | msgspec.Raw]) -> ErrorFrame | None:
    """``find_error`` for a message that was parsed into members before."""
    return _find({name: _decode(bytes(raw)) for name, raw in members.items()})


def read_error_body(body: bytes) -> ErrorFrame:
    """The error in the body of an HTTP answer, JSON or plain text; empty if it has none.

    An HTML page is no error message, so it is ignored.
    """
    text = _decode(body).strip()
    if text.startswith("["):  # some services stream answers as a list
        text = next(iter(_elements(text)), "")
    members = _members(text)
    if members is not None:
        # In no known shape, but the answer is an error, so its members are those of one.
        return _find(members) or _read_object([members])
    words = _text(text) if text.startswith('"') else " ".join(text.split())
    if not words or words[0] in "<{[" or not words.isprintable():
        return ErrorFrame()
    return ErrorFrame(message=words, retry_after=_asked_wait(words))


def read_wait(headers: Iterable[tuple[str, str]]) -> int | None:
    """The seconds to wait according to HTTP header fields; None if there is no such field."""
    fields = {name.lower(): value for name, value in headers}
    waits = [
        read_seconds(fields.get("retry-after", "")),
        _seconds_until(fields.get("retry-after", ""), fields.get("date", "")),
        _seconds(_number(fields.get("retry-after-ms")), 1000),
    ]
    for window in ("primary", "secondary"):
        used = _number(fields.get(f"x-codex-{window}-used-percent"))
        if used is not None and used >= 100:
            waits.append(_seconds(_number(fields.get(f"x-codex-{window}-reset-after-seconds"))))
    return longest(*waits)


def read_seconds(text: str) -> int | None:
    """The delay in a ``Retry-After``, in seconds; None if it has none, for example because it is a
    date. RFC 9110, section 10.2.3, has whole seconds; clients read decimals, too.
    """
    number = _number(text)
    return 0 if number == 0 else _seconds(number)


def _seconds_until(date: str, now: str) -> int | None:
    """The seconds from one HTTP date to a later one; None if one of the texts is no such date."""
    until, since = _time_of(date), _time_of(now)
    return None if until is None or since is None else _seconds(until - since)


def _time_of(date: str) -> int | None:
    """An HTTP date in the form that servers have to send (RFC 9110, section 5.6.7), as seconds from
    a fixed day."""
    found = _HTTP_DATE.fullmatch(date)
    if found is None:
        return None
    day, year, hour, minute, second = map(int, found.group(1, 3, 4, 5, 6))
    # Years begin in March: so a leap day is their last, and months have 30.6 days but for rounding.
    month = (_MONTHS.index(found[2]) + 10) % 12
    year -= month >= 10
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def longest(*waits: int | None) -> int | None:
    """The longest of ``waits``; None if there is none."""
    return max((wait for wait in waits if wait is not None), default=None)


# ---------------------------------------------------------------- finding it


def _find(message: _Members) -> ErrorFrame | None:
    read = _Objects()
    for place in _PLACES:
        # The objects around the place, outermost first.
        around, raw = [message], ""
        for name in place:
            raw = around[-1].get(name, "")
            inner = (read[_text(raw)] if name == "body" else None) or read[raw]
            if inner is None:
                break
            around.append(inner)
        there = len(around) - len(place)  # 1: the place holds an object; 0: something else
        if there == 1 and _is_error(around, place):
            return _read_object(around)
        if there == 0 and place[-1] == "error" and _text(raw) is not None:
            return _read_words(around, raw)
        if there == 0 and place[-1] == "detail" and (_text(raw) or any(_mistakes(raw))):
            return _read_detail(around, raw)
    # The type of the message says that it is an error, even if it has no details.
    if _text(message.get("type")) == "error":
        return _read_object([message])
    if _text(message.get("type")) == "response.failed":
        return _read_object([message, {}])
    return None


def _is_error(around: list[_Members], place: tuple[str, ...]) -> bool:
    """Whether the last of ``around``, which is at ``place``, is an error."""
    members = around[-1]
    if place and place[-1] == "error":
        return True
    if _words(members) is None:
        return False
    # Not every object with a message is an error. An error has a code, a type or a status, too.
    status = _status_of(around)
    return (
        place == ("detail",)
        or (status is not None and status >= 400)
        or _code(members.get("code")) is not None
        or _text(members.get("type")) == "error"
        or "connectionId" in members
    )


# ---------------------------------------------------------------- reading it


def _read_object(around: list[_Members]) -> ErrorFrame:
    """The error that is the last of ``around``."""
    error = around[-1]
    code, type_ = _code(error.get("code")), _code(error.get("type"))
    if (grpc := _grpc(error)) is not None:
        code = grpc[0]
    elif code is None and _status(error.get("status")) is None:
        code = _code(error.get("status"))  # the name of a code, where the code is a number
    message = _words(error)
    return ErrorFrame(
        status=_status_of(around),
        code=code,
        type=None if type_ == "error" else type_,  # it is the event's, and the error is flat
        message=message,
        param=_text(error.get("param")),
        retry_after=longest(_wait_of(around), _asked_wait(message)),
        more=_more(around),
    )


def _read_words(around: list[_Members], raw: str) -> ErrorFrame:
    """The error that is a text, a member of the last of ``around``."""
    outer = around[-1]
    code, message, described = _code(outer.get("code")), _text(raw), _words(outer)
    if described is not None:  # then the text is the name of the error
        code, message = code or _code(raw), described
    return ErrorFrame(
        status=_status_of(around),
        code=code,
        message=message,
        retry_after=longest(_wait_of(around), _asked_wait(message)),
        more=_more([*around, {}]),
    )


def _read_detail(around: list[_Members], raw: str) -> ErrorFrame:
    """The error that is a FastAPI ``detail``: a text, or a list of what is wrong with the body."""
    mistakes = list(_mistakes(raw))
    words = [f"{param}: {said}" if param else said for said, param in mistakes]
    message = "; ".join(words[:_MOST_MISTAKES]) or _text(raw)
    return ErrorFrame(
        status=_status_of(around) or (422 if mistakes else None),
        code=_code(around[-1].get("code")),
        message=message,
        param=next((param for _, param in mistakes if param), None),
        retry_after=longest(_wait_of(around), _asked_wait(message)),
        more=_more([*around, {"detail": raw} if mistakes else {}]),
    )


def _mistakes(raw: str) -> Iterator[tuple[str, str | None]]:
    """The message and the path of the parameter of each error in a list of validation errors."""
    for item in _objects(raw):
        words = _words(item)
        if words is not None:
            path = [_value(part) for part in _elements(item.get("loc", ""))]
            names = [str(part) for part in path if isinstance(part, str | int) and part != "body"]
            yield words, _clean(".".join(names)) or None


def _words(members: _Members) -> str | None:
    return next((words for name in _WORDS if (words := _text(members.get(name)))), None)


def _status_of(around: list[_Members]) -> int | None:
    """The status, also from a number in ``code`` that is an HTTP status or a gRPC code."""
    for members in around:
        for name in _STATUS:
            if (status := _status(members.get(name))) is not None:
                return status
    for members in around:
        if (grpc := _grpc(members)) is not None:
            return grpc[1]
        if (status := _status(members.get("code"))) is not None:
            return status
    return None


def _grpc(members: _Members) -> tuple[str, int] | None:
    """The name and the HTTP status of a gRPC code; only next to ``details``, as in
    google.rpc.Status, because a small number alone can mean anything."""
    code = _value(members.get("code")) if "details" in members else None
    return _GRPC_CODES.get(code) if type(code) is int else None


def _status(raw: str | None) -> int | None:
    """An HTTP status: a number, or a string that begins with one ("403 Forbidden")."""
    value = _value(raw)
    text = value if isinstance(value, str) else str(value)
    found = _STATUS_TEXT.fullmatch(text)
    return int(found[1]) if found is not None else None


_STATUS_TEXT = re.compile(r"\s*([1-5][0-9][0-9])(?:\s.*|\.0)?", re.DOTALL)


def _code(raw: str | None) -> str | None:
    """A code or a type: a string, or a number that is not a status."""
    value = _value(raw)
    text = str(value) if type(value) is int else _text(raw)
    if text is None or len(text) > _LONGEST_CODE or _STATUS_TEXT.fullmatch(text):
        return None
    return text.strip() or None


def _more(around: list[_Members]) -> str | None:
    """The members of the error and next to it for which ``ErrorFrame`` has no field."""
    outer, error = around[0], around[-1]
    members: _Members = {}
    if "response" not in outer:  # members next to the response of an event belong to the event
        members = {name: raw for name, raw in outer.items() if name not in _ENVELOPE}
    if error is not outer:
        members |= error
    kept, room = [], _MOST_MORE
    for name, raw in members.items():
        member = f"{json.dumps(name)}:{raw}"
        if name not in _FIELDS and len(member) <= room and _is_strict(raw):
            kept.append(member)
            room -= len(member)
    return "{" + ",".join(kept) + "}" if kept else None


# ---------------------------------------------------------------- waits


def _wait_of(around: list[_Members]) -> int | None:
    """The wait in the members of an error, or in the header fields that came with it."""
    waits = []
    for members in around:
        waits += [_seconds(_number(members.get(name))) for name in _WAITS]
        waits.append(_seconds(_number(members.get("retry_after_ms")), 1000))
        waits.append(read_wait(_headers(members.get("headers"))))
        waits += [
            _wait_in(_text(item.get("retryDelay"))) for item in _objects(members.get("details"))
        ]
    return longest(*waits)


_WAITS = ("resets_in_seconds", "retry_after", "retry_after_seconds")


def _headers(raw: str | None) -> Iterator[tuple[str, str]]:
    for name, value in (_members(raw) or {}).items():
        for one in _elements(value) or [value]:
            yield name, _text(one) or one


def _asked_wait(message: str | None) -> int | None:
    """The wait that the message of an error asks for."""
    if message is None:
        return None
    return longest(*[_wait_in(found[1]) for found in _ASKED.finditer(message[:_LONGEST_TEXT])])


def _wait_in(text: str | None) -> int | None:
    """The seconds of a duration such as "6m0s", "350ms" or "1 hour 2 minutes"; None for others."""
    parts = _PART.findall((text or "")[:_LONGEST_TEXT])
    return _seconds(sum(float(number) * _UNITS[unit[:3].lower()] for number, unit in parts))


# A unit by its first three letters.
_UNITS = {
    **dict.fromkeys(("ms", "mil"), 0.001),
    **dict.fromkeys(("s", "sec"), 1.0),
    **dict.fromkeys(("m", "min"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hou"), 3600.0),
    **dict.fromkeys(("d", "day"), 86_400.0),
}
_UNIT = r"ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?"
_PART = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({_UNIT})(?![a-z])", re.IGNORECASE)
# "Please try again in 6m0s.", "retry after 20 seconds", "Please retry in 34.07s."
_ASKED = re.compile(
    r"(?:try|retry)(?: your request)?(?: again)? (?:in|after) "
    rf"((?:[0-9]+(?:\.[0-9]+)? ?(?:{_UNIT})(?![a-z])(?:,? (?:and )?)?)+)",
    re.IGNORECASE,
)
_LONGEST_TEXT = 5_000  # characters of a message that are searched


def _seconds(number: float | None, parts: int = 1) -> int | None:
    """``number / parts`` as whole seconds, rounded up, because waiting less would be too early."""
    if number is None or not number > 0:
        return None
    return math.ceil(min(number / parts, _LONGEST_WAIT))


def _number(raw: str | None) -> float | None:
    """A number, bare or in a JSON string; None if it is none or negative."""
    text = _text(raw) or raw or ""
    found = _NUMBER.fullmatch(text)
    return float(found[1]) if found is not None else None  # infinite if it has too many digits


_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,9})?)\s*")


# ---------------------------------------------------------------- JSON, as it came
#
# The members of an object are kept as they are written, because other members are passed on to the
# client unchanged. They are read with the standard library, which accepts lone surrogates and
# numbers of any size; msgspec does not.


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # int() raises for too many digits


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_int=_integer)
_strict_decoder = json.JSONDecoder(parse_int=_integer, parse_constant=_no_constant)


def _decode(data: bytes) -> str:
    return data.decode("utf-8-sig", "replace")


def _members(text: str | None) -> _Members | None:
    """The members of an object, each as it is written; None if ``text`` is no object."""
    try:
        return scan_members(text or "", _decoder)
    except UnreadableError:
        return None


class _Objects(dict[str | None, _Members | None]):
    """A cache of parsed objects by their text: several places for an error share an object."""

    def __missing__(self, text: str | None) -> _Members | None:
        found = self[text] = _members(text)
        return found


def _elements(text: str | None) -> list[str]:
    """The elements of an array, each as it is written; empty if ``text`` is no array."""
    try:
        return scan_array(text or "", _decoder)
    except UnreadableError:
        return []


def _objects(text: str | None) -> Iterator[_Members]:
    """The objects in an array."""
    for element in _elements(text):
        members = _members(element)
        if members is not None:
            yield members


def _value(raw: str | None) -> Any:
    """``raw`` as a Python value; None if it cannot be read."""
    try:
        return scan_value(raw or "", _decoder)
    except UnreadableError:
        return None


def _text(raw: str | None) -> str | None:
    """``raw`` as a string; None if it is another value, or empty."""
    value = _value(raw)
    return _clean(value) or None if isinstance(value, str) else None


def _clean(text: str) -> str:
    """``text`` with lone surrogates replaced, since they cannot be encoded in an answer."""
    return text.encode("utf-8", "replace").decode()


def _is_strict(raw: str) -> bool:
    """Whether ``raw`` is standard JSON: Python also accepts NaN and Infinity."""
    try:
        scan_value(raw, _strict_decoder)
    except UnreadableError:
        return False
    return True
