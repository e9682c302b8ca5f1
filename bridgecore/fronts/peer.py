"""A connection of another replica, which forwards turns of conversations that are owned here.

What belongs here: the one path of the port for replicas, refusing what is not a signed forward, and
saying in each answer what became of the turn. Everything else about requests and answers is that of
clients: see ``bridgecore.fronts.http``.
"""

from __future__ import annotations

from typing import ClassVar, Final

from bridgecore.api_error import NOT_DISPATCHED, ApiError, api_error
from bridgecore.config import Config
from bridgecore.fronts.http import HttpConnection
from bridgecore.messages import AnswerEffect, AnswerKeepalive, RequestReceived
from bridgecore.ownership.forwards import (
    PATH,
    REPLICA,
    SIGNATURE,
    Forward,
    ForwardVerifier,
    Rejection,
    Verdict,
    digest_of,
    named_replica,
    signed_headers,
)
from bridgecore.wire.headers import Headers
from bridgecore.wire.http import RequestBody
from bridgecore.wire.request_heads import RequestHead


class PeerConnection(HttpConnection):
    """One connection of another replica; a ``ClientConnection``. ``verifier``: checks signatures;
    ``request_seed``: see ``HttpConnection``."""

    __slots__ = ("_forward", "_verifier")

    ROUTES: ClassVar = {PATH: (b"POST",)}
    TURNS: ClassVar = PATH
    PASSES: ClassVar = False
    # A request as large as a client's may be has a signature in addition, and a type in its body.
    ROOM: ClassVar = 1024

    def __init__(
        self, config: Config, now: int, request_seed: bytes, verifier: ForwardVerifier
    ) -> None:
        super().__init__(config, now, request_seed)
        self._verifier = verifier
        self._forward: Forward | None = None  # of the current request

    @property
    def _idle_limit(self) -> int:
        # The sender closes a connection that its sessions do not use any more. If this end did, a
        # turn could be on its way.
        return 2 * max(self._config.session_idle, self._config.client_idle)

    def answer(self, effect: AnswerEffect) -> None:
        """Write an effect of the gateway to ``out``."""
        if isinstance(effect, AnswerKeepalive):
            # The sender shows its client keepalives of its own.
            effect = AnswerKeepalive(effect.turn)
        super().answer(effect)

    def _refusal(self, head: RequestHead, *, draining: bool) -> tuple[ApiError, Headers] | None:
        refused = super()._refusal(head, draining=draining)
        if refused is not None:
            return refused
        found = self._verifier.check(head.headers)
        if isinstance(found, Rejection):
            return _rejected(found), []
        self._forward = found
        return None

    def _received(self, head: RequestHead, body: RequestBody, turn: int) -> RequestReceived | None:
        forward, self._forward = self._forward, None
        assert forward is not None, "it was checked with the head"
        if digest_of(body.data) != forward.digest:
            self._respond(_rejected(Rejection.ALTERED))
            return None
        headers = signed_headers(head.headers)
        return RequestReceived(turn, body.data, headers, request_id=self._id(), forward=forward)

    def _extra_headers(self, error: ApiError | None) -> Headers:
        if not self.turns:
            verdict = Verdict.REJECTED  # the request was refused before it became a turn
        else:
            verdict = Verdict.NOT_DISPATCHED if error is NOT_DISPATCHED else Verdict.TAKEN
        headers = [(SIGNATURE, verdict.value)]
        if verdict is Verdict.NOT_DISPATCHED:
            headers.append((REPLICA, named_replica(self._config.replica)))
        return headers


_ADVICE: Final = {
    Rejection.FOREIGN: " All replicas need the same cluster_keys.",
    Rejection.UNSIGNED: " Clients use the port of the setting 'port'.",
}


def _rejected(why: Rejection) -> ApiError:
    message = f"This port takes forwards of other replicas, and this one {why.value}."
    return api_error(403, "bridge_forward_rejected", message + _ADVICE.get(why, ""))
