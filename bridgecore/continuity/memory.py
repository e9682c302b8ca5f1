"""Looks up what the bridge knows about a turn, and records what it learns from its answer.

What belongs here: aliases (which conversation a response id belongs to) and transcripts (what was
said), queried together. ``Memory.recall`` gives a turn its ``TurnContext``: its standing, its
anchor and the forms in which it can be sent. ``Memory.remember`` stores a response that can be
continued. Which form is sent is decided in ``recovery``; on which connection, in ``admission``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
import msgspec

from bridgecore.config import Config, Continuity, Store
from bridgecore.continuity.aliases import Alias, Aliases
from bridgecore.continuity.items import Prompt, calls, prove, read_heads
from bridgecore.continuity.nodes import Match, Node, expand, reduce, resolve
from bridgecore.continuity.prefixes import NEVER, SHORTEST
from bridgecore.continuity.stored import PURGE, deletion, is_deletion, pack, read_notice, unpack
from bridgecore.continuity.transcript import Transcripts
from bridgecore.errors import InternalError
from bridgecore.ownership.store import StoredResponse
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.events import Standing
from bridgecore.wire.jsontext import Text
from bridgecore.wire.requests import (
    CreateRequest,
    parse_create,
    replace_input,
)

NOWHERE = 0  # the conversation number of a response that belongs to no conversation of this bridge

# Headers by which clients name a conversation. Two requests with different values are never treated
# as one conversation; equal values prove nothing, so they never join two.
# Contexts of one history that a store is asked for. The last one is that of its latest response;
# those before it are for a client that has gone back and asks something else.
_MOST_CONTEXTS = 8
NARROWING_HEADERS = frozenset({b"thread-id", b"session-id"})


@attrs.frozen
class RequestTemplate:
    """A request without its items: model, instructions, tools and other settings.

    ``settings``: a digest, equal for requests whose contexts can be shared. ``frame``: the
    ``response.create`` to preload a connection with (``generate: false``, an empty input).
    """

    settings: bytes
    frame: bytes = attrs.field(repr=False)


@attrs.frozen
class Candidate:
    """A response at which the turn can be anchored in place of its history, and its alias."""

    match: Match
    alias: Alias | None


@attrs.frozen
class Family:
    """What a turn shares with other turns of its client, whether its history is known or not.

    ``key``: a digest, equal for turns with the same credential and thread headers that name the
    same ``conversation`` or, if they name none, the same ``prompt_cache_key``. ``repeats``: the
    turn has no anchor but goes on with something: it has items that a model made, or it names a
    conversation. Its client will not name the response that a connection can continue.
    """

    key: bytes
    repeats: bool


@attrs.define(eq=False)
class TurnContext:
    """One turn, and what the bridge knows about it.

    ``anchor``: the id (that of its terminal event) of the response that the turn depends on: the
    one that the client named, or one that ``inject`` put in place of history; then ``match`` is
    set. ``alias``: of the response that the turn continues, if known. ``named``: of the response
    that the client named, if known. ``base``: the transcript of the response that the client named,
    if it was held when the turn came; ``node``: the same, if the turn can be rebuilt from it.
    ``candidates``: the responses whose context the turn repeats.
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
    named: Alias | None = None
    base: Node | None = None

    @property
    def stored(self) -> bool:
        """Whether the upstream stored the anchor (``store=true``), so that any connection can
        continue it. It may be held, too."""
        return self.alias is not None and self.alias.standing is Standing.STORED

    def inject(self, candidate: Candidate) -> None:
        """Anchor the turn at ``candidate`` and drop the history that it repeats (reduction)."""
        self.match, self.alias = candidate.match, candidate.alias
        self.standing, self.anchor = Standing.INJECTED, candidate.match.node.response_id

    def template(self, known: RequestTemplate | None) -> RequestTemplate | None:
        """The turn's request without its items; None if the turn has no readable input.

        ``known``: of an earlier turn. It is returned if it has the same settings, because writing a
        new frame takes time in proportion to the length of the request.
        """
        if self.prompt is None:
            return None
        if known is not None and known.settings == self.prompt.settings:
            return known
        frame = self.request.frame_with(input=b"[]", previous_response_id=None, generate=b"false")
        return RequestTemplate(self.prompt.settings, frame)

    def frame(self, form: RequestForm, stand_in: str | None = None) -> bytes:
        """The ``response.create`` frame of the turn in ``form``.

        ``CLIENT_FULL`` is the form to fall back to when an injected anchor is dropped. If the
        client sent its whole history, that is its own request, unchanged. If it named a response,
        the connection does not know that one either, so the items of that response's context are
        put before the client's: the same context, without needing anything of the upstream.

        Args:
            stand_in: the id of a response with the anchor's context to name instead of the anchor,
                on a connection that was preloaded with it.

        Raises:
            InternalError: the form is not available for this turn; its standing said it was.
        """
        rebuilt = form is RequestForm.REHYDRATED or (
            form is RequestForm.CLIENT_FULL and self.request.previous_response_id is not None
        )
        if rebuilt:
            if self.node is None or self.prompt is None:
                raise InternalError("a turn without a transcript cannot be rehydrated")
            expansion = expand(self.node, self.prompt)
            # ``recall`` proved the rest: the turn has no opaque items.
            if expansion.proof.orphans:
                raise InternalError("a turn that is not self-contained cannot be rehydrated")
            return expansion.frame
        if form is RequestForm.AS_IS and self.match is not None and self.prompt is not None:
            return reduce(self.prompt, self.match, stand_in)
        if form is RequestForm.AS_IS and stand_in is not None:
            return self.request.frame_with(previous_response_id=msgspec.json.encode(stand_in))
        return self.request.frame


class Memory:
    """The aliases and transcripts of a bridge, within the limits of ``config``."""

    def __init__(self, config: Config) -> None:
        self._aliases = Aliases(config.alias_bytes)
        # What a store deletes was not used there for ``transcript_age``. A quarter of that is for
        # clocks that differ, and for a commit on its way.
        self._stays = config.transcript_age // 4 * 3
        self._commits = config.store is Store.DRIVER  # responses are committed to a store, too
        self._transcripts: Transcripts | None = None
        wanted = config.continuity is Continuity.TRANSCRIPT
        if wanted and config.policy.budgets.transcripts:
            self._transcripts = Transcripts(
                config.transcript_bytes,
                config.transcript_age,
                config.transcript_scope_bytes,
                shortest_prefix=SHORTEST if config.shortcuts else NEVER,
            )

    @property
    def size(self) -> int:
        """The memory of the transcripts in bytes, overhead included."""
        return 0 if self._transcripts is None else self._transcripts.size

    @property
    def responses(self) -> int:
        """How many responses have a transcript here."""
        return 0 if self._transcripts is None else len(self._transcripts)

    def snapshot(self) -> tuple[object, ...]:
        """Aliases, least recently used first, and transcripts, as a value for the explorer."""
        held = () if self._transcripts is None else self._transcripts.snapshot()
        return self._aliases.snapshot(), held

    def next_expiry(self) -> int | None:
        """The time (ns) at which ``expire`` is next due; None if it is not."""
        return None if self._transcripts is None else self._transcripts.next_expiry()

    def expire(self, now: int) -> None:
        """Evict transcripts that were unused for longer than ``Config`` allows."""
        if self._transcripts is not None:
            self._transcripts.expire(now)

    def foreign(self, scope: str, request: CreateRequest) -> TurnContext:
        """The context of a turn about which this memory is not asked: only its request counts."""
        named = request.previous_response_id or None
        standing = Standing.UNANCHORED if named is None else Standing.UNKNOWN
        return TurnContext(scope, request, standing, named, None)

    def recall(
        self,
        scope: str,
        request: CreateRequest,
        headers: Iterable[tuple[bytes, bytes]],
        now: int,
    ) -> TurnContext:
        """Look up what is known about a turn.

        The turn is not anchored at a candidate yet: only the caller knows which of them an idle
        connection can continue.

        Args:
            scope: the digest of the turn's credential.
            headers: of the client's request, names in lower case.
            now: ns.
        """
        narrow = [value for name, value in headers if name in NARROWING_HEADERS]
        prompt = self._prompt(scope, request, narrow)
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
        if named is not None and self._aliases.is_deleted(scope, named):
            return recall  # it may be held all the same, as a part of what continues it
        node = None
        if recall.anchor is not None:
            prompt.anchor = recall.anchor
            node = self._transcripts.get(scope, recall.anchor, now)
            recall.base = node
            if node is not None:
                resolve(node, prompt)
        matches = self._transcripts.recognise(scope, prompt, now)
        if node is not None and _can_rebuild(node, prompt):
            stored = recall.standing is Standing.STORED
            recall.node = node
            recall.standing = Standing.HELD_STORED if stored else Standing.HELD
        # An injected anchor that is refused is replaced by the client's own input, and behind an
        # anchor of the client's that input has to be rebuilt: so only where it can be.
        if named is None or recall.node is not None:
            recall.candidates = [
                Candidate(match, self._aliases.get(scope, match.node.response_id))
                for match in matches
                if not self._aliases.is_deleted(scope, match.node.response_id)
            ]
        if named is None and recall.candidates:
            recall.alias = recall.candidates[0].alias  # the conversation it continues
        return recall

    def _prompt(self, scope: str, request: CreateRequest, narrow: list[bytes]) -> Prompt | None:
        if self._transcripts is None and request.members.keys().isdisjoint(_OF_FAMILIES):
            return None
        start = None if self._transcripts is None else self._transcripts.known_start(scope, request)
        try:
            return Prompt(request, narrow, start)
        except ValueError:
            return None  # the input cannot be read; the upstream will refuse it

    def has(self, scope: str, response: str, now: int) -> bool:
        """Whether ``response`` is known to be of ``scope``: a turn of that tenant has made it."""
        alias = self._aliases.peek(scope, response)
        if alias is not None and alias.standing is not Standing.UNKNOWN:
            return True
        held = self._transcripts
        return held is not None and held.peek(scope, response, now) is not None

    def keeps(self, scope: str, response: str, now: int) -> bool:
        """Whether ``response`` can be continued without the connection that made it: because it is
        held, or stored by the upstream."""
        alias = self._aliases.get(scope, response)
        if alias is not None and alias.standing is Standing.STORED:
            return True
        node = None if self._transcripts is None else self._transcripts.peek(scope, response, now)
        return node is not None and node.readable and node.rebuildable

    def warm_up(
        self, scope: str, anchor: str, template: RequestTemplate, now: int
    ) -> TurnContext | None:
        """A turn that preloads a connection with the context of ``anchor``, without generating.

        None if that is impossible: the context is not held, or it ends in a call whose output has
        not come yet, and upstreams refuse input with an unanswered call (OUTPUTS_HAVE_CALLS).
        ``template``: of the conversation's latest turn, for model and settings.
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
        """Record that the response which the client named is continued in ``conversation``, so that
        later turns that name it are routed there."""
        named = recall.request.previous_response_id
        if named and not self._aliases.is_deleted(recall.scope, named):
            alias = recall.named or Alias(conversation, Standing.UNKNOWN)
            alias.conversation = conversation  # one object for all ids of the response
            self._aliases.put(recall.scope, named, alias)

    def learn(self, scope: str, named: str, response: str, *, stored: bool) -> None:
        """Record what a resolver found out about a response, unless it is known here.

        Args:
            named: the id that clients use.
            response: the id in its terminal event.
            stored: whether the upstream stored it.
        """
        if self._aliases.is_deleted(scope, named):
            return
        alias = self._aliases.get(scope, named)
        if alias is None or alias.standing is Standing.UNKNOWN:
            standing = Standing.STORED if stored else Standing.BOUND
            conversation = NOWHERE if alias is None else alias.conversation
            known = Alias(conversation, standing, response=response)
            self._aliases.put(scope, named, known)

    def forget(self, scope: str, response: str, now: int) -> Unstored:
        """Let ``response`` be continued no more: a client has deleted it. Returns what is to be
        committed to a store, if there is one, so that it has no such response either."""
        name = self._aliases.delete(scope, response)
        if self._transcripts is not None:
            self._transcripts.forget(scope, name)
        ids = (response, name) if name != response else (response,)
        alias = Alias(NOWHERE, Standing.UNKNOWN, deleted=True)
        until = now + self._stays
        return Unstored((deletion(scope, ids),), (), alias, whole=False, until=until)

    def whole_request(
        self,
        scope: str,
        request: CreateRequest,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        now: int,
    ) -> bytes:
        """The body of a request about the context of a response, such as one to count its tokens:
        with the whole input in place of ``previous_response_id``, if only this bridge has that.

        Unchanged if the upstream stores that one (the id is shorter, and the upstream is the
        authority), or if it is not held. ``request``: ``body``, parsed; the other arguments as for
        ``recall``.
        """
        recall = self.recall(scope, request, headers, now)
        if recall.standing is not Standing.HELD or recall.node is None or recall.prompt is None:
            return body
        return replace_input(body, expand(recall.node, recall.prompt).text)

    def injection_refused(self, recall: TurnContext) -> None:
        """Never inject the turn's anchor again: it was refused (REJECTED_INJECTION_ENDS)."""
        if recall.match is not None:
            recall.match.node.injectable = False

    def rebuild_refused(self, recall: TurnContext) -> None:
        """Never rebuild from the response that the client named again: the upstream refused the
        rebuilt input. Applies to later turns, under each id of the response."""
        if recall.node is not None:
            recall.node.rebuildable = False

    def remember(
        self,
        recall: TurnContext,
        ids: Sequence[str],
        output: Sequence[Text] | None,
        conversation: int,
        tokens: int,
        now: int,
        *,
        stored: bool | None = None,
    ) -> Unstored | None:
        """Keep a response that can be continued: a completed or incomplete one, not a failed one.

        Args:
            recall: the turn.
            ids: of the response, that of its terminal event first. Some upstreams use another one
            in
                ``response.created``, and clients may name either.
            output: its items; None if they are not known. Then only the alias is stored.
            conversation: the number of its conversation.
            tokens: of its context and output, as the upstream counted.
            now: ns.
            stored: whether the upstream says that it stored the response; None: as requested.

        Returns:
            What is to be committed to the store; None if there is none.
        """
        if stored is None:
            stored = recall.request.store
        standing = Standing.STORED if stored else Standing.BOUND
        alias = Alias(conversation, standing, tokens, ids[0])
        for name in ids:
            self._aliases.put(recall.scope, name, alias)
        node = None
        if self._transcripts is not None and recall.prompt is not None and output is not None:
            node = self._transcripts.put(
                recall.scope, ids[0], recall.prompt, output, now, match=recall.match, stored=stored
            )
            base = recall.base
            if node is None and self._commits and base is not None and not base.held:
                node = self._transcripts.beside(ids[0], base, recall.prompt, output, stored=stored)
        if not self._commits:
            return None
        elsewhere = recall.request.conversation is not None
        return self._unstored(recall.scope, ids, alias, node, now, elsewhere=elsewhere)

    # ------------------------------------------------------------ responses in a store

    def alias(self, scope: str, response: str) -> Alias | None:
        """What is known about a response, without counting as a use."""
        return self._aliases.peek(scope, response)

    def contexts(
        self, scope: str, request: CreateRequest, headers: Iterable[tuple[bytes, bytes]], now: int
    ) -> tuple[bytes, ...]:
        """Digests of the contexts that a turn without an anchor may repeat and that are not held,
        the longest first: a store may know them. Empty if it begins a conversation, or repeats only
        what is held. Arguments as for ``recall``."""
        held = self._transcripts
        if held is None or request.previous_response_id or held.known_start(scope, request):
            return ()
        narrow = [value for name, value in headers if name in NARROWING_HEADERS]
        prompt = self._prompt(scope, request, narrow)
        if prompt is None or not prompt.whole or not prompt.repeats_answers():
            return ()
        matches = held.recognise(scope, prompt, now)
        return tuple(prompt.ends(matches[0].repeated if matches else 0)[:_MOST_CONTEXTS])

    def holds(self, scope: str, alias: Alias, now: int) -> bool:
        """Whether the transcript of a response is held, or cannot be had from a store either."""
        if self._transcripts is None or not alias.durable or alias.response is None:
            return True
        return self._transcripts.peek(scope, alias.response, now) is not None

    def unstored(self, scope: str, ids: Sequence[str], now: int) -> Unstored | None:
        """What a store has to be given of the response with these ids, which it did not get when
        its turn ended. None if it is not known any more."""
        alias = self._aliases.peek(scope, ids[0])
        if alias is None:
            return None
        node = None if self._transcripts is None else self._transcripts.peek(scope, ids[0], now)
        return self._unstored(scope, ids, alias, node, now, elsewhere=False)

    def _unstored(
        self,
        scope: str,
        ids: Sequence[str],
        alias: Alias,
        node: Node | None,
        now: int,
        *,
        elsewhere: bool,
    ) -> Unstored:
        """What a store has to be given so that a response can be continued after this process: the
        response, and those before it that no store has yet. ``node``: its transcript, if known."""
        nodes: list[Node] = []
        each = node
        while each is not None and each.durable <= now:
            nodes.append(each)
            each = each.parent
        nodes.reverse()
        earlier = [self._packed(scope, one) for one in nodes[:-1]]
        responses = (*earlier, pack(scope, ids, alias, node))
        return Unstored(
            responses,
            tuple(nodes),
            alias,
            whole=node is not None,
            until=now + self._stays,
            elsewhere=elsewhere,
        )

    def path_of(self, unstored: Unstored) -> Unstored | None:
        """The same response with all that it continues, for a store that has lost some of it; None
        if its transcript is not part of it."""
        if not unstored.nodes:
            return None
        path, last = unstored.nodes[-1].path(), unstored.responses[-1]
        earlier = [self._packed(last.scope, one) for one in path[:-1]]
        return attrs.evolve(unstored, responses=(*earlier, last), nodes=tuple(path))

    def _packed(self, scope: str, node: Node) -> StoredResponse:
        name = node.response_id
        alias = self._aliases.peek(scope, name) or Alias(NOWHERE, Standing.BOUND, response=name)
        packed = pack(scope, [name], alias, node)
        # Of one that was deleted, only what others continue is kept.
        return attrs.evolve(packed, ids=()) if self._aliases.is_deleted(scope, name) else packed

    def differs(self, scope: str, response: str, payload: bytes, now: int) -> bool:
        """Whether ``payload``, which a store has under the id of a response, is that of another one
        than the one that is held: some upstreams use one id for all responses of a chain, and
        another replica can have gone on with it."""
        alias = self._aliases.peek(scope, response)
        if self._transcripts is None or alias is None or not alias.durable or not alias.response:
            return False
        node = self._transcripts.peek(scope, alias.response, now)
        found = unpack(payload)
        if node is None or found is None or found.segment is None:
            return False
        return found.segment.end != node.end

    def forget_deleted(self, scope: str, response: str, payload: bytes, now: int) -> bool:
        """Whether ``payload``, which a store has under the id of a response, says that a client has
        deleted it, at another replica. Then it is forgotten here, too, unless no store has had it
        yet: the upstream has used the id again."""
        if not is_deletion(payload):
            return False
        alias = self._aliases.peek(scope, response)
        if alias is not None and alias.durable:
            self.forget(scope, response, now)
        return True

    def was_durable(self, scope: str, response: str) -> bool:
        """Whether a store has had the transcript of a response that is known here."""
        alias = self._aliases.peek(scope, response)
        return alias is not None and alias.durable

    def forget_purged(self, unstored: Unstored, now: int) -> None:
        """Forget a response that continues what was purged from the store, and drop what it
        continues: what the store has of that is read from there. Any other response may be purged,
        too."""
        scope, ids = unstored.responses[-1].scope, unstored.responses[-1].ids
        for response in ids:
            self.forget(scope, response, now)
        if self._transcripts is not None and unstored.nodes:
            for node in reversed(unstored.nodes[-1].path()):
                self._transcripts.forget(scope, node.response_id)
        self._aliases.doubt_all()

    def noticed(self, notice: bytes) -> None:
        """Handle the notice of a deletion, at this or another replica: the store is asked before
        the response is continued. It is not forgotten at once, because the upstream may have used
        its id again since. After a purge, the store is asked before any response is continued."""
        found = read_notice(notice)
        if found is not None and found.scope == PURGE:
            self._aliases.doubt_all()
        elif found is not None:
            for response in found.ids:
                self._aliases.doubt(found.scope, response)

    def missed_notices(self) -> None:
        """Have the store asked before any response is continued: without a lease there were no
        renewals, so notices may have been missed."""
        self._aliases.doubt_all()

    def is_doubted(self, scope: str, response: str) -> bool:
        """Whether the store has to be asked before ``response`` is continued, although all that can
        be known about it is here."""
        return self._aliases.is_doubted(scope, response)

    def trust(self, scope: str, response: str) -> None:
        """The store has been asked, and ``response`` was not deleted."""
        self._aliases.trust(scope, response)

    def restore(self, scope: str, path: Sequence[bytes], conversation: int, now: int) -> None:
        """Take back a response from a store. What cannot be read stays unknown.

        Args:
            path: the payloads of its transcript, its own last.
            conversation: the number of its conversation; ``NOWHERE`` if that has no session here.
        """
        unpacked = [unpack(payload) for payload in path]
        if not unpacked or (last := unpacked[-1]) is None:
            return
        if any(self._aliases.is_deleted(scope, name) for name in last.ids):
            return
        segments = [
            (one.ids[0], one.segment)
            for one in unpacked
            if one is not None and one.segment is not None
        ]
        whole = len(segments) == len(unpacked)
        if self._transcripts is not None and whole:
            self._transcripts.restore(scope, segments, now, now + self._stays)
        standing = Standing.STORED if last.stored else Standing.BOUND
        alias = Alias(
            conversation, standing, last.tokens, last.ids[0], durable=last.segment is not None
        )
        for name in last.ids:
            self._aliases.put(scope, name, alias)


@attrs.frozen
class Unstored:
    """What is to be committed to a store. ``nodes``, ``alias``: what is durable once it is.
    ``whole``: the transcript is part of it; ``elsewhere``: a conversation of the upstream's has it.
    ``until``: ns, how long it certainly stays."""

    responses: tuple[StoredResponse, ...]
    nodes: tuple[Node, ...]
    alias: Alias
    whole: bool
    until: int
    elsewhere: bool = False

    @property
    def continuable(self) -> bool:
        """Whether a client can continue the response from what is stored: by its transcript, or
        because the upstream has it. Or that it cannot is what is to be stored."""
        known = self.whole or self.elsewhere
        return known or self.alias.standing is Standing.STORED or self.alias.deleted

    def committed(self) -> None:
        """The store has it."""
        for node in self.nodes:
            node.durable = self.until
        self.alias.durable = self.whole


def _can_rebuild(node: Node, prompt: Prompt) -> bool:
    """Whether the turn of ``prompt``, anchored at ``node``, can be rehydrated: its full input is
    self-contained, and the upstream has not refused it before.

    A request with context besides its items (``prompt``, ``conversation``) cannot: in the full
    input, that context would come before the items of the anchor instead of after them.
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
            # ``expand`` sends items before a compaction only if that completes every output.
            return expand(node, prompt).proof.self_contained
        unanswered -= calls(read_heads(before.own_text()))
        before = before.parent
    return not unanswered


# The members of a request that decide which family it belongs to.
_OF_FAMILIES: Final = ("prompt_cache_key", "conversation")


def _family(scope: str, prompt: Prompt, narrow: Iterable[bytes]) -> Family | None:
    """The family of a turn; None if it has neither a ``conversation`` nor a ``prompt_cache_key``.

    The turns of a conversation that the upstream keeps have no anchor, so nothing else leads them
    to the connection of the turn before: each would open another one. They are a family of their
    own, also where many conversations share a cache key.
    """
    request = prompt.request
    kept = request.conversation
    if kept is not None:
        parts = [b"conversation", kept.encode(errors="surrogatepass")]
    elif prompt.cache_key is not None:
        parts = [bytes(prompt.cache_key)]
    else:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in (scope.encode(), *parts, *narrow):
        digest.update(b"%d:%b" % (len(part), part))
    anchored = request.previous_response_id is not None
    goes_on = kept is not None or prompt.repeats_answers()
    return Family(digest.digest(), not anchored and goes_on)
