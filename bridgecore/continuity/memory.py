"""What the bridge knows for a turn: where its anchor lives, and how else the turn can be said.

What belongs here: the two books of continuity, aliases (which conversation an id belongs to) and
transcripts (what was said), opened together: what a turn stands on before it goes, what is written
down when it is over. What is done with it is decided in ``recovery``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import msgspec

from bridgecore.config import Config, Continuity
from bridgecore.continuity.aliases import Alias, Aliases
from bridgecore.continuity.items import Prompt, calls, changed, prove
from bridgecore.continuity.transcript import Match, Node, Transcripts, expand, reduce
from bridgecore.errors import InternalError
from bridgecore.recovery.effects import Form
from bridgecore.recovery.events import Standing
from bridgecore.wire.responses import CreateRequest, parse_create

# What clients call their conversations by. It keeps siblings apart and never brings them together.
_NARROWING_HEADERS = frozenset({b"thread-id", b"session-id"})


@attrs.frozen
class Manner:
    """What a turn says besides its items: model, instructions, tools and the like. ``settings`` are
    equal if what a context depends on is; ``frame`` is a ``response.create`` without items."""

    settings: bytes
    frame: bytes = attrs.field(repr=False)


@attrs.define(eq=False)
class Recall:
    """One turn, and what is known for it.

    ``anchor``: the response it depends on, the client's word or ours (then ``match`` is set).
    ``alias``: what is known about the response that it continues, if anything is.
    """

    scope: str
    request: CreateRequest
    standing: Standing
    anchor: str | None
    alias: Alias | None
    prompt: Prompt | None = None
    node: Node | None = None
    match: Match | None = None

    def manner(self, known: Manner | None) -> Manner | None:
        """The manner of this turn; ``known``, of an earlier one, if it is the same, because to read
        a long frame again takes its time. None if nothing could be held of the turn."""
        if self.prompt is None:
            return None
        if known is not None and known.settings == self.prompt.settings:
            return known
        frame = changed(self.request.frame, input=b"[]", previous_response_id=None)
        return Manner(self.prompt.settings, frame)

    def forgo_anchor(self) -> None:
        """Let the client's full input stand as it came: no socket has the anchor at hand."""
        self.standing, self.anchor, self.match = Standing.UNANCHORED, None, None

    def frame(self, form: Form, stand_in: str | None = None) -> bytes:
        """The ``response.create`` frame of the turn in ``form``; ``stand_in``: the response that
        has to be named where the anchor is meant."""
        if form is Form.REHYDRATED:
            if self.node is None or self.prompt is None:
                raise InternalError("a turn is to be rehydrated from nothing")
            expansion = expand(self.node, self.prompt)
            # That everything in it can be read was seen when it was recalled, higher in the stack.
            if expansion.proof.orphans:
                raise InternalError("a turn that is to be rehydrated is not self-contained")
            return expansion.frame
        if form is Form.AS_IS and self.match is not None and self.prompt is not None:
            return reduce(self.prompt, self.match, stand_in)
        if form is Form.AS_IS and stand_in is not None:
            return changed(self.request.frame, previous_response_id=msgspec.json.encode(stand_in))
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
    ) -> Recall:
        """What is known for a turn with these ``headers`` (names in lower case)."""
        anchor = request.previous_response_id or None  # clients send "" for none
        narrow = [value for name, value in headers if name in _NARROWING_HEADERS]
        prompt = self._prompt(request, narrow)
        recall = Recall(scope, request, Standing.UNANCHORED, anchor, None, prompt)
        if anchor is not None:
            recall.alias = self._aliases.get(scope, anchor)
            recall.standing = recall.alias.standing if recall.alias else Standing.UNKNOWN
            recall.node = self._held(scope, anchor, prompt, now)
            if recall.node is not None:
                stored = recall.standing is Standing.STORED
                recall.standing = Standing.HELD_STORED if stored else Standing.HELD
        elif prompt is not None and self._transcripts is not None:
            recall.match = self._transcripts.recognise(scope, prompt, now)
            if recall.match is not None:
                recall.standing = Standing.INJECTED
                recall.anchor = recall.match.node.response_id
                recall.alias = self._aliases.get(scope, recall.anchor)
        return recall

    def _prompt(self, request: CreateRequest, narrow: list[bytes]) -> Prompt | None:
        if self._transcripts is None:
            return None
        try:
            return Prompt(request, narrow)
        except ValueError:
            return None  # no input that anybody could hold: the upstream will say so

    def _held(self, scope: str, anchor: str, prompt: Prompt | None, now: int) -> Node | None:
        """The response of that id, if the turn with it is self-contained (invariant 7).

        It is not if the request brings context besides its items: in full, that would no longer
        stand where it stands after an anchor.
        """
        if self._transcripts is None or prompt is None or not prompt.whole:
            return None
        node = self._transcripts.get(scope, anchor, now)
        if node is None or not node.readable:
            return None
        proof = prove(prompt.text)
        unanswered = set(proof.orphans)
        before: Node | None = node
        while unanswered and before is not None:
            unanswered -= calls(before.own_text())
            before = before.parent
        return None if unanswered or proof.opaque else node

    def warm_up(self, scope: str, anchor: str, manner: Manner, now: int) -> Recall | None:
        """A turn that has a socket learn what ``anchor`` stands for, and answers nothing; None if
        that cannot be said. ``manner``: of the conversation's latest turn.

        What ends in a call that waits for its output cannot be said without it (invariant 8).
        """
        node = None if self._transcripts is None else self._transcripts.peek(scope, anchor, now)
        if node is None or not node.readable or prove(node.text()).pending:
            return None
        request = parse_create(changed(manner.frame, generate=b"false"))
        alias = self._aliases.get(scope, anchor)
        return Recall(scope, request, Standing.HELD, anchor, alias, Prompt(request), node)

    def belongs(self, recall: Recall, conversation: int) -> None:
        """Remember that the turn's anchor is asked for in ``conversation``."""
        request = recall.request
        if request.previous_response_id:
            alias = recall.alias or Alias(conversation, Standing.UNKNOWN)
            moved = attrs.evolve(alias, conversation=conversation)
            self._aliases.put(recall.scope, request.previous_response_id, moved)

    def remember(
        self,
        recall: Recall,
        response: str,
        output: Sequence[msgspec.Raw] | None,
        conversation: int,
        tokens: int,
        now: int,
    ) -> None:
        """Write down a completed response (invariant 9: no other). ``output``: its items, None
        when they are not known; ``tokens``: of its context and output, as the upstream counted."""
        standing = Standing.STORED if recall.request.store else Standing.BOUND
        self._aliases.put(recall.scope, response, Alias(conversation, standing, tokens))
        if self._transcripts is not None and recall.prompt is not None and output is not None:
            self._transcripts.put(recall.scope, response, recall.prompt, output, now)
