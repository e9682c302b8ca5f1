"""The API over HTTP, besides creating responses: stored responses, conversations, models, and what
is computed of a context without answering it.

What belongs here: the answers of these paths. How they come over a connection is in ``service``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote

import attrs

from bridgecore.testing import answers
from bridgecore.testing.answers import CreateFrame, Json
from bridgecore.testing.emulator import context, conversations, errors, resource
from bridgecore.testing.emulator.conversations import Conversation
from bridgecore.testing.emulator.jsontext import decode, encode
from bridgecore.testing.faults import Error
from bridgecore.wire.request_heads import RequestHead

MODELS: Final = ("emulator", "emulator-mini")
"""The models that are listed. Turns may name any other."""

_LISTED_AT_ONCE: Final = 20  # the default of ``limit`` in lists
_MOST_LISTED: Final = 100  # the largest ``limit``
_LIMIT = re.compile("[0-9]{1,3}")
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
                return _said(_model(name)) if found else refuse(resource.unknown("model", name))
            case "POST", ("v1", "responses", "compact"):
                return self._of_context(request, {}, self._compact)
            case "POST", ("v1", "responses", "input_tokens"):
                return self._of_context(request, {"model": "emulator"}, self._count)
            case _, ("v1", "responses", name, *rest):
                return self._of_response(request, name, rest)
            case "POST", ("v1", "conversations"):
                return self._create_conversation(request)
            case _, ("v1", "conversations", name, *rest):
                return self._of_conversation(request, name, rest)
            case _:
                message = f"Invalid URL ({request.method} {request.path})"
                return refuse(Error(404, None, "invalid_request_error", message))

    # ------------------------------------------------------------ stored responses

    def _of_response(self, request: HttpRequest, name: str, rest: list[str]) -> HttpAnswer:
        stored = self.storage.resource(request.authorization, name)
        if stored is None:
            return refuse(resource.unknown("Response", name))
        match request.method, rest:
            case "GET" | "HEAD", []:
                return _said(stored.response)
            case "DELETE", []:
                self.storage.delete(request.authorization, name)
                return _said({"id": name, "object": "response", "deleted": True})
            case "GET" | "HEAD", ["input_items"]:
                return _page(stored.given, request.parameters)
            case "POST", ["cancel"]:
                message = "Cannot cancel a synchronous response."
                return refuse(resource.bad(None, message))
            case _:
                return refuse(_not_allowed(request))

    # ------------------------------------------------------------ conversations

    def _create_conversation(self, request: HttpRequest) -> HttpAnswer:
        body = _read(request.body or b"{}")
        if isinstance(body, Error):
            return refuse(body)
        metadata, items = conversations.read_metadata(body), conversations.read_items(body)
        if isinstance(metadata, Error):
            return refuse(metadata)
        if isinstance(items, Error):
            return refuse(items)
        mark = self.mark()
        made = Conversation(f"conv_{mark}", self.wall_clock(), metadata)
        error = made.duplicate(items)
        if error is not None:
            return refuse(error)
        self.storage.add_conversation(request.authorization, made)
        self.storage.extend(request.authorization, made, items, mark)
        return _said(made.resource)

    def _of_conversation(self, request: HttpRequest, name: str, rest: list[str]) -> HttpAnswer:
        found = self.storage.conversation(request.authorization, name)
        if found is None:
            return refuse(conversations.unknown(name))
        match request.method, rest:
            case "GET" | "HEAD", []:
                return _said(found.resource)
            case "POST", []:
                return self._update(request, found)
            case "DELETE", []:
                self.storage.delete_conversation(request.authorization, name)
                return _said({"id": name, "object": "conversation.deleted", "deleted": True})
            case "GET" | "HEAD", ["items"]:
                return _page(found.items, request.parameters)
            case "POST", ["items"]:
                return self._add_items(request, found)
            case "GET" | "HEAD" | "DELETE", ["items", item_id]:
                item = found.item(item_id)
                if item is None:
                    return refuse(conversations.unknown_item(item_id))
                if request.method != "DELETE":
                    return _said(item)
                found.remove(item)
                return _said(found.resource)
            case _:
                return refuse(_not_allowed(request))

    def _update(self, request: HttpRequest, found: Conversation) -> HttpAnswer:
        body = _read(request.body)
        metadata = (
            body if isinstance(body, Error) else conversations.read_metadata(body, required=True)
        )
        if isinstance(metadata, Error):
            return refuse(metadata)
        found.metadata = metadata
        return _said(found.resource)

    def _add_items(self, request: HttpRequest, found: Conversation) -> HttpAnswer:
        body = _read(request.body)
        items = body if isinstance(body, Error) else conversations.read_items(body, required=True)
        if isinstance(items, Error):
            return refuse(items)
        error = found.duplicate(items)
        if error is not None:
            return refuse(error)
        return _list(self.storage.extend(request.authorization, found, items, self.mark()))

    # ------------------------------------------------------------ contexts

    def _of_context(
        self, request: HttpRequest, defaults: Json, compute: Callable[[CreateFrame], Json]
    ) -> HttpAnswer:
        """What ``compute`` says about the context that a request describes."""
        body = _read(request.body)
        if isinstance(body, Error):
            return refuse(body)
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
        if (name := resource.conversation_in(frame.body)) is not None:
            found = self.storage.conversation(request.authorization, name)
            if found is None:
                return refuse(conversations.unknown(name))
            parent = context.context_of(found)
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


def _read(body: bytes) -> Json | Error:
    """The object in the body of a request."""
    value = decode(body)
    if isinstance(value, dict):
        return value
    return resource.bad("invalid_json", "The body is not a JSON object.")


def _page(items: Sequence[Json], parameters: Mapping[str, str]) -> HttpAnswer:
    """A list of items, the latest first unless ``order`` is ``asc``, from ``after`` on."""
    order = parameters.get("order", "desc")
    if order not in ("asc", "desc"):
        message = f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'."
        return refuse(resource.bad("invalid_value", message, "order"))
    limit = parameters.get("limit", str(_LISTED_AT_ONCE))
    count = int(limit) if _LIMIT.fullmatch(limit) else 0
    if not 1 <= count <= _MOST_LISTED:
        message = f"Invalid 'limit': expected an integer from 1 to {_MOST_LISTED}."
        return refuse(resource.bad("invalid_value", message, "limit"))
    listed = list(items if order == "asc" else reversed(items))
    names = [item.get("id") for item in listed]
    after = parameters.get("after")
    if after is not None and after not in names:
        message = f"Invalid 'after': no item with id '{after}' is listed."
        return refuse(resource.bad("invalid_value", message, "after"))
    start = 0 if after is None else names.index(after) + 1
    return _list(listed[start : start + count], more=start + count < len(listed))


def _list(items: list[Json], *, more: bool = False) -> HttpAnswer:
    ends = {"first_id": items[0].get("id"), "last_id": items[-1].get("id")} if items else {}
    return _said({"object": "list", "data": items, **ends, "has_more": more})


def _said(body: Json) -> HttpAnswer:
    return HttpAnswer(200, encode(body))


def refuse(error: Error) -> HttpAnswer:
    """The answer that is an error."""
    return HttpAnswer(error.status, errors.http_answer(error).body)


def _not_allowed(request: HttpRequest) -> Error:
    message = f"Method {request.method} is not allowed for this path."
    return Error(405, None, "invalid_request_error", message)
