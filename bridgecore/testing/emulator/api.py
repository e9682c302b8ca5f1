"""The API over HTTP, besides creating responses: stored responses, models, and what is computed of
a context without answering it.

What belongs here: the answers of these paths. How they come over a connection is in ``service``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote

import attrs

from bridgecore.testing import answers
from bridgecore.testing.answers import CreateFrame, Json
from bridgecore.testing.emulator import context, errors, resource
from bridgecore.testing.emulator.jsontext import decode, encode
from bridgecore.testing.faults import Error
from bridgecore.wire.request_heads import RequestHead

MODELS: Final = ("emulator", "emulator-mini")
"""The models that are listed. Turns may name any other."""

_LISTED_AT_ONCE: Final = 20  # the default of ``limit`` in lists
FindPrior: TypeAlias = Callable[[bytes | None, str], context.PriorResponse | None]


@attrs.frozen
class HttpRequest:
    """A request as the emulator received it over HTTP. ``path``: not decoded."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]  # names lower-case
    body: bytes = attrs.field(repr=False)

    @property
    def authorization(self) -> bytes | None:
        """The credential, whose responses are apart from those of others."""
        return dict(self.headers).get(b"authorization")

    @property
    def parameters(self) -> Mapping[str, str]:
        """The query, decoded."""
        return dict(parse_qsl(self.query))


@attrs.frozen
class HttpAnswer:
    """An answer over HTTP. ``body``: JSON."""

    status: int
    body: bytes


def request_of(head: RequestHead, body: bytes) -> HttpRequest:
    """The request with ``head`` and the complete ``body``."""
    return HttpRequest(
        head.method.decode("ascii"),
        head.path,
        head.query.decode("ascii"),
        head.headers,
        body,
    )


@attrs.frozen
class HttpApi:
    """Answers requests about what ``storage`` has. ``mark``: makes ids; ``wall_clock``: Unix
    seconds."""

    storage: context.Storage
    mark: Callable[[], str]
    wall_clock: Callable[[], int]

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """The answer; of a request that is not served here, an error."""
        segments = tuple(unquote(one) for one in request.path.split("/")[1:])
        match request.method, segments:
            case "GET" | "HEAD", ("v1", "models"):
                return _list([_model(name) for name in MODELS])
            case "GET" | "HEAD", ("v1", "models", name):
                found = name in MODELS
                return _said(_model(name)) if found else refuse(_unknown("model", name))
            case "POST", ("v1", "responses", "compact"):
                return self._of_context(request, {}, self._compact)
            case "POST", ("v1", "responses", "input_tokens"):
                return self._of_context(request, {"model": "emulator"}, self._count)
            case _, ("v1", "responses", name, *rest):
                return self._of_response(request, name, rest)
            case _:
                message = f"Invalid URL ({request.method} {request.path})"
                return refuse(Error(404, None, "invalid_request_error", message))

    # ------------------------------------------------------------ stored responses

    def _of_response(self, request: HttpRequest, name: str, rest: list[str]) -> HttpAnswer:
        stored = self.storage.resource(request.authorization, name)
        if stored is None:
            return refuse(_unknown("Response", name))
        match request.method, rest:
            case "GET" | "HEAD", []:
                return _said(stored.response)
            case "DELETE", []:
                self.storage.delete(request.authorization, name)
                return _said({"id": name, "object": "response", "deleted": True})
            case "GET" | "HEAD", ["input_items"]:
                return _page(list(stored.given), request.parameters)
            case "POST", ["cancel"]:
                message = "Cannot cancel a synchronous response."
                return refuse(resource.bad(None, message))
            case _:
                message = f"Method {request.method} is not allowed for this path."
                return refuse(Error(405, None, "invalid_request_error", message))

    # ------------------------------------------------------------ contexts

    def _of_context(
        self, request: HttpRequest, defaults: Json, compute: Callable[[CreateFrame], Json]
    ) -> HttpAnswer:
        """What ``compute`` says about the context that a request describes."""
        body = decode(request.body)
        if not isinstance(body, dict):
            return refuse(resource.bad("invalid_json", "The body is not a JSON object."))
        frame = CreateFrame(0, 0, request.headers, request.body, {**defaults, **body}, 0)
        error = resource.invalid(frame.body)
        if error is not None:
            return refuse(error)
        parent: context.PriorResponse | None = context.NO_RESPONSE
        if frame.anchor is not None:
            parent = self.storage.response(request.authorization, frame.anchor)
        if parent is None:
            message = f"Previous response with id '{frame.anchor}' not found."
            code = "previous_response_not_found"
            return refuse(resource.bad(code, message, "previous_response_id"))
        prepared = context.prepare(frame, parent, (), self.storage, request.authorization)
        return refuse(prepared) if isinstance(prepared, Error) else _said(compute(frame))

    def _count(self, frame: CreateFrame) -> Json:
        return {"object": "response.input_tokens", "input_tokens": frame.context_tokens}

    def _compact(self, frame: CreateFrame) -> Json:
        """What the user said, and one item for the rest."""
        said = [item for item in frame.context if item.get("role") == "user"]
        sealed = answers.seal({"users": answers.count_users(frame.context)})
        context, mark = frame.context_tokens, self.mark()
        return resource.compaction(said, sealed, context, mark, self.wall_clock())


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "emulator"}


def _page(items: list[Json], parameters: Mapping[str, str]) -> HttpAnswer:
    """A list of items, the latest first unless ``order`` is ``asc``, from ``after`` on."""
    if parameters.get("order") != "asc":
        items.reverse()
    names = [item.get("id") for item in items]
    after = parameters.get("after")
    start = names.index(after) + 1 if after is not None and after in names else 0
    limit = parameters.get("limit", "")
    count = int(limit) if limit.isdecimal() else _LISTED_AT_ONCE
    return _list(items[start : start + count], more=start + count < len(items))


def _list(items: list[Json], *, more: bool = False) -> HttpAnswer:
    ends = {"first_id": items[0].get("id"), "last_id": items[-1].get("id")} if items else {}
    return _said({"object": "list", "data": items, **ends, "has_more": more})


def _said(body: Json) -> HttpAnswer:
    return HttpAnswer(200, encode(body))


def refuse(error: Error) -> HttpAnswer:
    """The answer that is an error."""
    return HttpAnswer(error.status, errors.http_answer(error).body)


def _unknown(kind: str, name: str) -> Error:
    message = f"{kind} with id '{name}' not found."
    return Error(404, None, "invalid_request_error", message)
