"""Errors as a client receives them: frames in every shape that services use, and HTTP answers.

What belongs here: how an ``Error`` is written. Which errors there are is decided where they are
found: ``resource``, ``context`` and ``service``.
"""

from __future__ import annotations

from typing import assert_never

from bridgecore.testing.answers import Json
from bridgecore.testing.emulator.jsontext import encode
from bridgecore.testing.faults import Error, ErrorShape, Reject


def frame(
    error: Error, lane: str | None, *, anchor: str | None = None, response_id: str = "resp_none"
) -> bytes:
    """The frame that carries ``error`` in its shape.

    Args:
        error: the error; its ``shape`` decides which members there are.
        lane: the ``stream_id`` of the lane; None in the default lane.
        anchor: the ``previous_response_id`` of the refused turn, for shapes that quote it.
        response_id: the id of the refused turn's response, for shapes that have one.
    """
    missed = error.code == "previous_response_not_found"
    members = {
        "type": error.type,
        "code": error.code,
        "message": error.message,
        "param": error.param,
        **dict(error.members),
    }
    body: Json = {"type": "error", "status": error.status}
    match error.shape:
        case ErrorShape.FULL:
            body["error"] = members
        case ErrorShape.NO_STATUS:
            body = {"type": "error", "error": members}
        case ErrorShape.TERSE:
            message = "Invalid `previous_response_id`." if missed else error.message
            body["error"] = {"type": error.type, "message": message}
        case ErrorShape.CODE_IN_TYPE:
            del members["code"]
            body["error"] = {**members, "type": error.code or error.type}
        case ErrorShape.FLAT:
            del members["type"]
            body |= members
        case ErrorShape.BARE:
            body = {"error": members}
        case ErrorShape.BARE_STATUS:
            body = {"status": error.status, "error": members}
        case ErrorShape.DETAIL:
            body = {"detail": error.message}
        case ErrorShape.BODY:
            body["body"] = {"error": members}
        case ErrorShape.STATUS_CODE:
            body = {"type": "error", "status_code": error.status, "error": members}
        case ErrorShape.STATUS_STRING:
            body["status"] = str(error.status)
            body["error"] = members
        case ErrorShape.INTEGER_CODE:
            status = 404 if missed else error.status
            message = f"Response with id '{anchor}' not found." if missed else error.message
            kind = "NotFoundError" if missed else error.type
            body = {"error": {**members, "message": message, "type": kind, "code": status}}
        case ErrorShape.GRPC:
            kind = "NotFound" if missed else "Unknown"
            message = f"rpc error: code = {kind} desc = {error.message}"
            body = {"error": {"message": message, "type": "api_error"}}
        case ErrorShape.RESPONSE_FAILED:
            code = error.code or error.type
            failed = {
                "id": response_id,
                "object": "response",
                "status": "failed",
                "output": [],
                "error": {"code": code, "message": error.message, **dict(error.members)},
            }
            body = {"type": "response.failed", "sequence_number": 0, "response": failed}
        case _:
            assert_never(error.shape)
    if lane is not None:
        body["stream_id"] = lane
    return encode(body)


def http_answer(error: Error) -> Reject:
    """The HTTP answer, in place of the 101 or of a response, that carries ``error``."""
    body = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            **dict(error.members),
        }
    }
    return Reject(error.status, ((b"content-type", b"application/json"),), encode(body))
