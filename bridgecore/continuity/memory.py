"""What the bridge knows for a turn: where its anchor lives, and how else the turn can be said.

What belongs here: the two books of continuity, aliases (which conversation an id belongs to) and
transcripts (what was said), opened together: what a turn stands on before it goes, what is written
down when it is over. What is done with it is decided in ``recovery``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import attrs
import msgspec

from bridgecore.config import Config, Continuity
from bridgecore.continuity.aliases import Alias, Aliases
from bridgecore.continuity.items import Prompt, calls, prove, read_heads, repeats_answers
from bridgecore.continuity.transcript import Match, Node, Transcripts, expand, reduce, resolve
from bridgecore.errors import InternalError
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.events import Standing
from bridgecore.wire.responses import CreateRequest, parse_create

NOWHERE = 0  # the conversation of a response that no conversation here has made or asked for

# What clients call their conversations by. It keeps siblings apart and never brings them together.
_NARROWING_HEADERS = frozenset({b"thread-id", b"session-id"})


@attrs.frozen
class RequestTemplate:
    """What a turn says besides its items: model, instructions, tools and the like. ``settings`` are
    equal if what a context depends on is; ``frame`` is a ``response.create`` without items that
    asks for no answer."""

    settings: bytes
    frame: bytes = attrs.field(repr=False)


@attrs.frozen
class Candidate:
    """A response that the turn can be anchored at, and what is known about it."""

    match: Match
    alias: Alias | None


@attrs.frozen
class Family:
    """What a turn has in common with others of its client, whether its history is known or not.

    ``key`` is equal for turns of one credential with one ``prompt_cache_key`` and the same thread
    headers. ``repeats``: the turn names no response but has items that a model made, so that it
    goes on with something and its client keeps histories, not ids.
    """

    key: bytes
    repeats: bool


@attrs.define(eq=False)
class TurnContext:
    """One turn, and what is known for it.

    ``anchor``: the response it depends on, by its terminal event's id: the one that the client
    named, or one that is put in place of history (then ``match`` is set, by ``inject``).
    ``alias``: what is known about the response that it continues, if anything is.
    ``node``: the response that the client named, if the turn can be rebuilt from it.
    ``candidates``: the responses at which it could be anchored, because it repeats what was said.
    """

    scope: str
    request: CreateRequest
    standing: Standing
    anchor: str | None
    alias: Alias | None
    prompt: Prompt | None = None
    node: Node | None = None
    match: Match | None = None
    candidates: Sequence[Candidate] = ()
    family: Family | None = None
    named: Alias | None = None  # what is known about the response that the client named

    @property
    def stored(self) -> bool:
        """Whether the upstream has stored the response that the turn is anchored at, so that any
        socket can continue it; whether the bridge holds it, too, does not matter."""
        return self.alias is not None and self.alias.standing is Standing.STORED

    def inject(self, candidate: Candidate) -> None:
        """Anchor the turn at ``candidate`` in place of the history that it repeats."""
        self.match, self.alias = candidate.match, candidate.alias
        self.standing, self.anchor = Standing.INJECTED, candidate.match.node.response_id

    def template(self, known: RequestTemplate | None) -> RequestTemplate | None:
        """The manner of this turn; ``known``, of an earlier one, if it is the same, because to read
        a long frame again takes its time. None if nothing could be held of the turn."""
        if self.prompt is None:
            return None
        if known is not None and known.settings == self.prompt.settings:
            return known
        frame = self.request.frame_with(input=b"[]", previous_response_id=None, generate=b"false")
        return RequestTemplate(self.prompt.settings, frame)

    def frame(self, form: RequestForm, stand_in: str | None = None) -> bytes:
        """The ``response.create`` frame of the turn in ``form``; ``stand_in``: the response that
        has to be named where the anchor is meant.

        ``CLIENT_FULL`` is what a turn with an injected anchor goes back to. If the client sent its
        whole history, that is its own request, unchanged. If it named a response of its own, that
        response is not at hand on the socket either, so its items follow what was said up to it:
        the same context, needing nothing of the upstream, as the client's request asks for.
        """
        rebuilt = form is RequestForm.REHYDRATED or (
            form is RequestForm.CLIENT_FULL and self.request.previous_response_id is not None
        )
        if rebuilt:
            if self.node is None or self.prompt is None:
                raise InternalError("a turn is to be rehydrated from nothing")
            expansion = expand(self.node, self.prompt)
            # Whether all of it can be read was settled when the turn was recalled.
            if expansion.proof.orphans:
                raise InternalError("a turn that is to be rehydrated is not self-contained")
            return expansion.frame
        if form is RequestForm.AS_IS and self.match is not None and self.prompt is not None:
            return reduce(self.prompt, self.match, stand_in)
        if form is RequestForm.AS_IS and stand_in is not None:
            return self.request.frame_with(previous_response_id=msgspec.json.encode(stand_in))
        return self.request.frame


class Memory:
    """Aliases and transcripts, bounded as ``config`` says."""

    def __init__(self, config: Config) -> None:
        self._aliases = Aliases(config.alias_bytes)
        self._transcripts: Transcripts | None = None
        wanted = config.continuity is Continuity.TRANSCRIPT
        if wanted and config.policy.budgets.transcripts:
            self._transcripts = Transcripts(
                config.transcript_bytes, config.transcript_age, config.transcript_scope_bytes
            )

    @property
    def size(self) -> int:
        """The bytes that transcripts take, overhead included."""
        return 0 if self._transcripts is None else self._transcripts.size

    def snapshot(self) -> tuple[object, ...]:
        """What is known, as a value: the aliases, the one used longest ago first; and what is held,
        with when it was used."""
        held = () if self._transcripts is None else self._transcripts.snapshot()
        return self._aliases.snapshot(), held

    def next_expiry(self) -> int | None:
        """When ``expire`` has something to do, in ns."""
        return None if self._transcripts is None else self._transcripts.next_expiry()

    def expire(self, now: int) -> None:
        """Forget what was not used for too long."""
        if self._transcripts is not None:
            self._transcripts.expire(now)

    def recall(
        self,
        scope: str,
        request: CreateRequest,
        headers: Iterable[tuple[bytes, bytes]],
        now: int,
    ) -> TurnContext:
        """What is known for a turn with these ``headers`` (names in lower case). It is not anchored
        at a candidate yet: which one a socket has at hand, the caller knows."""
        narrow = [value for name, value in headers if name in _NARROWING_HEADERS]
        prompt = self._prompt(request, narrow)
        recall = TurnContext(scope, request, Standing.UNANCHORED, None, None)
        if prompt is not None:
            recall.family = _family(scope, prompt, narrow)
        if self._transcripts is None:
            prompt = None
        recall.prompt = prompt
        named = request.previous_response_id or None  # clients send "" for none
        if named is not None:
            recall.named = recall.alias = self._aliases.get(scope, named)
            recall.standing = recall.alias.standing if recall.alias else Standing.UNKNOWN
            recall.anchor = (recall.alias and recall.alias.response) or named
        if self._transcripts is None or prompt is None:
            return recall
        node = None
        if recall.anchor is not None:
            prompt.anchor = recall.anchor
            node = self._transcripts.get(scope, recall.anchor, now)
            if node is not None:
                resolve(node, prompt)
        matches = self._transcripts.recognise(scope, prompt, now)
        if node is not None and _can_rebuild(node, prompt):
            stored = recall.standing is Standing.STORED
            recall.node = node
            recall.standing = Standing.HELD_STORED if stored else Standing.HELD
        # A turn that cannot be rebuilt after its own anchor could not go back to it.
        if named is None or recall.node is not None:
            recall.candidates = [
                Candidate(match, self._aliases.get(scope, match.node.response_id))
                for match in matches
            ]
        if named is None and recall.candidates:
            recall.alias = recall.candidates[0].alias  # it belongs to that conversation
        return recall

    def _prompt(self, request: CreateRequest, narrow: list[bytes]) -> Prompt | None:
        if self._transcripts is None and "prompt_cache_key" not in request.members:
            return None
        try:
            return Prompt(request, narrow)
        except ValueError:
            return None  # no input that anybody could hold: the upstream will say so

    def keeps(self, scope: str, response: str, now: int) -> bool:
        """Whether ``response`` can be continued without the socket that made it, as far as is
        known: it is held, or stored by the upstream."""
        alias = self._aliases.get(scope, response)
        if alias is not None and alias.standing is Standing.STORED:
            return True
        node = None if self._transcripts is None else self._transcripts.peek(scope, response, now)
        return node is not None and node.readable and node.rebuildable

    def warm_up(
        self, scope: str, anchor: str, template: RequestTemplate, now: int
    ) -> TurnContext | None:
        """A turn that has a socket learn what ``anchor`` stands for, and answers nothing; None if
        that cannot be said. ``template``: of the conversation's latest turn.

        What ends in a call that waits for its output cannot be said without it (invariant 8).
        """
        node = None if self._transcripts is None else self._transcripts.peek(scope, anchor, now)
        if node is None or not node.readable or not node.rebuildable:
            return None
        if prove(read_heads(node.text())).pending:
            return None
        request = parse_create(template.frame)
        alias = self._aliases.get(scope, anchor)
        return TurnContext(scope, request, Standing.HELD, anchor, alias, Prompt(request), node)

    def belongs(self, recall: TurnContext, conversation: int) -> None:
        """Remember that what the client named is asked for in ``conversation``."""
        named = recall.request.previous_response_id
        if named:
            alias = recall.named or Alias(conversation, Standing.UNKNOWN)
            alias.conversation = conversation  # under all its ids
            self._aliases.put(recall.scope, named, alias)

    def learn(self, scope: str, named: str, response: str, *, stored: bool) -> None:
        """Remember what others know about the response that clients call ``named``, unless it is
        known here. ``response``: the id that its terminal event gave it."""
        alias = self._aliases.get(scope, named)
        if alias is None or alias.standing is Standing.UNKNOWN:
            standing = Standing.STORED if stored else Standing.BOUND
            conversation = NOWHERE if alias is None else alias.conversation
            known = Alias(conversation, standing, response=response)
            self._aliases.put(scope, named, known)

    def injection_refused(self, recall: TurnContext) -> None:
        """The upstream refused the anchor that was put in place of the turn's history, for whatever
        reason: it is never put in place of any history again, as long as it is held."""
        if recall.match is not None:
            recall.match.node.injectable = False

    def rebuild_refused(self, recall: TurnContext) -> None:
        """The upstream refused the rebuilt input of the response that the turn's client named: from
        the next turn on, that response is not rebuilt any more, under none of its ids."""
        if recall.node is not None:
            recall.node.rebuildable = False

    def remember(
        self,
        recall: TurnContext,
        ids: Sequence[str],
        output: Sequence[msgspec.Raw] | None,
        conversation: int,
        tokens: int,
        now: int,
        *,
        stored: bool | None = None,
    ) -> None:
        """Write down a response that can be continued: completed, or incomplete, but no failed one.

        Args:
            ids: of the response, that of its terminal event first; some upstreams give it another
                one in ``response.created``, and clients name either.
            output: its items; None when they are not known.
            tokens: of its context and output, as the upstream counted.
            stored: whether the upstream says that it stored it; None: it does not say, so what the
                request asked for counts.
        """
        if stored is None:
            stored = recall.request.store
        standing = Standing.STORED if stored else Standing.BOUND
        alias = Alias(conversation, standing, tokens, ids[0])
        for name in ids:
            self._aliases.put(recall.scope, name, alias)
        if self._transcripts is not None and recall.prompt is not None and output is not None:
            self._transcripts.put(
                recall.scope, ids[0], recall.prompt, output, now, match=recall.match, stored=stored
            )


def _can_rebuild(node: Node, prompt: Prompt) -> bool:
    """Whether the turn of ``prompt``, anchored at ``node``, can be said in full: it is proven to be
    self-contained, and the upstream did not refuse it so before.

    It is not if the request brings context besides its items: in full, that would no longer stand
    where it stands after an anchor.
    """
    if not (prompt.whole and node.readable and node.rebuildable):
        return False
    proof = prove(prompt.meant_heads())
    if proof.opaque:
        return False
    unanswered = set(proof.orphans)
    before: Node | None = node
    while unanswered and before is not None:
        if before.cut >= 0:
            # What stands before a compaction is sent again only for a call that it has.
            return expand(node, prompt).proof.self_contained
        unanswered -= calls(read_heads(before.own_text()))
        before = before.parent
    return not unanswered


def _family(scope: str, prompt: Prompt, narrow: Iterable[bytes]) -> Family | None:
    """The family of a turn; None if it has no ``prompt_cache_key``."""
    if prompt.cache_key is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in (scope.encode(), bytes(prompt.cache_key), *narrow):
        digest.update(b"%d:%b" % (len(part), part))
    anchored = prompt.request.previous_response_id is not None
    return Family(digest.digest(), not anchored and repeats_answers(prompt.heads()))
