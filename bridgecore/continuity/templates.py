"""How items are written: a phrase, and the values that stand in it.

What belongs here: telling the words of an item that are always the same (names of members,
punctuation, bookkeeping) from its values; holding items so, the words once for all of them; and
finding held items again in a text whose writer puts the same values into other words.

A client sends an item back in words of its own: members in another order, without some of them,
with an id. Which words those are is learnt from the first item that digests (items.py) have shown
to be the same. From then on an item that is held is written in the client's words and compared as
bytes, which takes a small part of the time. Items that were found one after another are from then
on looked for at once.

That is as sure as the digests are. The digest of an item depends on each of its values in one way,
whatever the value is, because a value here is a whole JSON string that a model reads, or an id that
it does not. So if one item says the same in two phrases, every item does that has the same values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import attrs

from bridgecore.continuity.items import (
    CLIENT_MEMBERS,
    ignored,
    is_bare_thought,
    kind_of,
)
from bridgecore.wire.jsontext import (
    Text,
    UnreadableError,
    read_array,
    read_members,
    read_value,
)

# What a phrasebook takes, in bytes; measured as the overheads in transcript.py are.
PHRASE_OVERHEAD: Final = 760
MANNER_OVERHEAD: Final = 560
SEQUENCE_OVERHEAD: Final = 380
SPARE: Final = 6000  # for what is learnt between two puts

_MAX_PHRASES: Final = 31  # of one credential; at most 255, for their numbers are bytes
_MAX_MANNERS: Final = 3  # that are learnt of one phrase, or sequence of phrases
_MAX_SEQUENCE: Final = 8  # phrases
_MAX_SEQUENCES: Final = 16
_MAX_WORDS: Final = 512  # bytes of a phrase
_MAX_WORD: Final = 32  # bytes of a member that is taken for always the same

_GAP: Final = b"\0"  # is in no JSON
_VALUES: Final = frozenset(
    {"arguments", "call_id", "encrypted_content", "input", "name", "output", "text"}
)
_CONTENT: Final = "encrypted_content"  # of a thought; if it is empty, there is none
_PARTS: Final = frozenset({"content", "summary"})  # lists of objects, whose text is a value
_ANY_ID: Final = re.compile(rb'"[^"\\]{,128}"')
# What no model reads: an id, or what a client adds, a flat object.
_FLAT: Final = rb'\{[^{}"\\]{,64}(?:"[^"\\]{,128}"[^{}"\\]{,64}){,32}\}'
_UNREAD: Final = re.compile(_ANY_ID.pattern + rb"|" + _FLAT)
_UNREAD_NAMES: Final = CLIENT_MEMBERS | {"id"}


@attrs.frozen(eq=False)
class ItemTemplate:
    """The words of an item: ``words`` are what stands before, between and after its values, which
    are called ``names``. With no words and one value, the value is the whole item."""

    words: tuple[bytes, ...]
    names: tuple[str, ...]

    def values(self, item: bytes) -> list[bytes] | None:
        """The values of ``item``; None if it is not this phrase."""
        first, *others, last = self.words
        if not (item.startswith(first) and item.endswith(last)):
            return None
        values = []
        here = len(first)
        for word in others:
            there = item.find(word, here)
            if there < 0:
                return None
            values.append(item[here:there])
            here = there + len(word)
        values.append(item[here : len(item) - len(last)])
        for name, value in zip(self.names, values, strict=True):
            if name in CLIENT_MEMBERS:
                if not _UNREAD.fullmatch(value):
                    return None
            elif not _is_text(value) or (name == _CONTENT and value == b'""'):
                return None
        return values


def _is_text(value: bytes) -> bool:
    """Whether ``value`` is one JSON string, and nothing else."""
    if not (value.startswith(b'"') and value.endswith(b'"')):
        return False
    try:
        read_value(value)
    except UnreadableError:
        return False
    return True


PLAIN: Final = ItemTemplate((b"", b""), ("",))


def split(item: bytes) -> tuple[ItemTemplate, list[bytes]]:
    """``item`` as a phrase and its values; PLAIN if it is not of a kind that this pays for."""
    try:
        members = read_members(item)
        kind = kind_of(members)
        unread = ignored(kind)
        if not unread or is_bare_thought(kind, members):
            return PLAIN, [item]
        reading = _Reading()
        for name, raw in members.items():
            value = bytes(raw)
            is_id = name == "id" and name in unread and _ANY_ID.fullmatch(value)
            if is_id or (name in CLIENT_MEMBERS and _UNREAD.fullmatch(value)):
                reading.value(name, name, value)
            elif name in _PARTS and value.startswith(b"["):
                reading.parts(name, value)
            elif name == "content" and value.startswith(b'"'):
                reading.value(name, "content.0.text", value)
            elif name in _VALUES and value.startswith(b'"'):
                reading.value(name, name, value)
            else:
                reading.word(name, value)
        words = reading.end()
    except (UnreadableError, _LongWordError):
        return PLAIN, [item]
    template = ItemTemplate(words, tuple(reading.names))
    # White space, escapes in names, and names that come twice are nothing to keep a phrase for.
    if (
        not reading.names
        or sum(map(len, words)) > _MAX_WORDS
        or _written(words, reading.values) != item
    ):
        return PLAIN, [item]
    return template, reading.values


class _LongWordError(Exception):
    """A member is too long to be taken for always the same."""


class _Reading:
    """The words and values of an item, as they are come upon."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[bytes] = []
        self._words: list[bytes] = []
        self._open = bytearray(b"{")

    def word(self, name: str, value: bytes) -> None:
        if len(value) > _MAX_WORD:
            raise _LongWordError
        self._open += b'"%b":%b,' % (name.encode(), value)

    def value(self, member: str, name: str, value: bytes) -> None:
        self._open += b'"%b":' % member.encode()
        self._words.append(bytes(self._open))
        self.names.append(name)
        self.values.append(value)
        self._open = bytearray(b",")

    def parts(self, name: str, value: bytes) -> None:
        self._open += b'"%b":[' % name.encode()
        for number, part in enumerate(read_array(value)):
            self._open += b"{"
            for member, raw in read_members(part).items():
                inner = bytes(raw)
                if member == "text" and inner.startswith(b'"'):
                    self.value(member, f"{name}.{number}.{member}", inner)
                else:
                    self.word(member, inner)
            self._close(b"},")
        self._close(b"],")

    def _close(self, mark: bytes) -> None:
        if self._open.endswith(b","):
            del self._open[-1]
        self._open += mark

    def end(self) -> tuple[bytes, ...]:
        self._close(b"}")
        return (*self._words, bytes(self._open))


def _written(words: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    parts = [b""] * (len(words) + len(values))
    parts[::2] = words
    parts[1::2] = values
    return b"".join(parts)


class _Manner:
    """One way of writing values: ``words``, and between them the values whose numbers are ``uses``;
    None is a value that is not compared, such as an id."""

    __slots__ = ("_pieces", "uses", "words")

    def __init__(self, words: tuple[bytes, ...], uses: tuple[int | None, ...]) -> None:
        self.words = words
        self.uses = uses
        # What stands before the first id, between two, and after the last: words with room for
        # values between them, and the values.
        pieces: list[tuple[list[bytes], list[int]]] = [([words[0]], [])]
        for word, number in zip(words[1:], uses, strict=True):
            if number is None:
                pieces.append(([word], []))
            else:
                pieces[-1][0].extend((b"", word))
                pieces[-1][1].append(number)
        self._pieces = tuple((tuple(parts), tuple(numbers)) for parts, numbers in pieces)

    @property
    def size(self) -> int:
        """What it takes, in bytes."""
        return MANNER_OVERHEAD + sum(map(len, self.words))

    def same_as(self, other: _Manner) -> bool:
        """Whether the two write all values alike."""
        return self.words == other.words and self.uses == other.uses

    def is_at(self, text: bytes, begin: int, end: int, values: Sequence[bytes]) -> bool:
        """Whether ``text`` from ``begin`` to ``end`` is ``values``, written in this way."""
        at = begin
        for place, (words, numbers) in enumerate(self._pieces):
            if place > 0:
                unread = _UNREAD.match(text, at)
                if unread is None:
                    return False
                at = unread.end()
            parts = [*words]
            room = 1
            for number in numbers:
                parts[room] = values[number]
                room += 2
            piece = b"".join(parts)
            if not text.startswith(piece, at):
                return False
            at += len(piece)
        return at == end


def _joined(manners: Iterable[tuple[int, _Manner]]) -> _Manner:
    """How items are written one after another; with each manner, the number of its first value."""
    words: list[bytes] = []
    uses: list[int | None] = []
    for first, manner in manners:
        words[-1:] = [b"%b,%b" % (words[-1], manner.words[0]) if words else manner.words[0]]
        words += manner.words[1:]
        uses += [None if number is None else first + number for number in manner.uses]
    return _Manner(tuple(words), tuple(uses))


class TemplateTable:
    """The phrases of one credential, and how its clients put them.

    Items are noted as bytes of one piece: the numbers of their phrases, then their values.
    ``size`` is what the book takes, in bytes, with some room to learn more: ``spare`` at first, and
    so much more each time that it was too little.
    """

    __slots__ = ("_manners", "_phrases", "_sequences", "_spare", "_step", "_wanting", "size")

    def __init__(self, spare: int = SPARE) -> None:
        self._phrases = [PLAIN]
        self._manners: list[list[_Manner]] = [[_as_it_is(PLAIN)]]
        self._sequences: dict[bytes, list[_Manner]] = {}  # by the numbers of their phrases
        self._step = self._spare = self.size = spare
        self._wanting = False

    def note(self, items: Iterable[Text]) -> bytes:
        """``items`` as this book keeps them. The book may grow.

        Raises:
            ValueError: an item is not JSON.
        """
        numbers = bytearray()
        noted = [b""]
        for item in items:
            number, values = self._noted(bytes(item))
            numbers.append(number)
            noted += values
        noted[0] = bytes(numbers)
        encoded = _GAP.join(noted)
        if encoded.count(_GAP) != len(noted) - 1:
            raise ValueError("an item is not JSON")
        return encoded

    def grow(self) -> None:
        """Have room again for what there was no room to learn."""
        if self._wanting:
            self._wanting = False
            self._spare += self._step
            self.size += self._step

    def items(self, encoded: bytes) -> list[bytes]:
        """The items of ``encoded``, byte for byte."""
        return [
            _written(self._phrases[number - 1].words, values)
            for number, values in self._read(encoded)
        ]

    def is_at(self, encoded: bytes, text: bytes, bounds: Sequence[int], start: int) -> int:
        """How many items of ``encoded``, beginning with the first, are in ``text`` one after
        another, in words that are known. Item n of the text is from ``bounds[n]`` up to the byte
        before ``bounds[n + 1]``; the first one to look at is item ``start``."""
        numbers, *values = encoded.split(_GAP)
        stop = start + len(numbers)
        if stop < len(bounds):
            for manner in self._sequences.get(numbers, ()):
                if manner.is_at(text, bounds[start], bounds[stop] - 1, values):
                    return len(numbers)
        found: list[tuple[int, _Manner]] = []
        first = 0
        places = pairwise(bounds[start : stop + 1])
        for number, (begin, end) in zip(numbers, places, strict=False):
            after = first + len(self._phrases[number - 1].names)
            said = values[first:after]
            for manner in self._manners[number - 1]:
                if manner.is_at(text, begin, end - 1, said):
                    found.append((first, manner))
                    break
            else:
                break
            first = after
        if len(found) == len(numbers):
            self._remember(numbers, found)
        return len(found)

    def learn(self, encoded: bytes, items: Iterable[Text]) -> None:
        """Learn from ``items``, which say what the items of ``encoded`` say, in the same order."""
        for (number, values), raw in zip(self._read(encoded), items, strict=True):
            item = bytes(raw)
            manners = self._manners[number - 1]
            if any(manner.is_at(item, 0, len(item), values) for manner in manners):
                continue
            manner = _manner(self._phrases[number - 1], item)
            if manner is None or any(manner.same_as(known) for known in manners):
                continue  # its values are written otherwise: arguments with other white space
            if len(manners) <= _MAX_MANNERS and self._has_room(manner.size):
                manners.insert(0, manner)

    def _remember(self, numbers: bytes, found: Sequence[tuple[int, _Manner]]) -> None:
        """Items of such phrases were found, written so: next time they are looked for at once."""
        known = self._sequences.get(numbers, [])
        if not 1 < len(numbers) <= _MAX_SEQUENCE or len(known) == _MAX_MANNERS:
            return
        if not known and len(self._sequences) == _MAX_SEQUENCES:
            return
        manner = _joined(found)
        if self._has_room(SEQUENCE_OVERHEAD + manner.size):
            self._sequences[numbers] = [manner, *known]

    def _has_room(self, size: int) -> bool:
        """Take so much of what is spare; if there is too little, have more after the next put."""
        self._wanting |= size > self._spare
        if size > self._spare:
            return False
        self._spare -= size
        return True

    def _noted(self, item: bytes) -> tuple[int, list[bytes]]:
        """The number of the item's phrase, and its values; those of PLAIN if the book is full."""
        for number, known in enumerate(self._phrases[1:], start=2):
            if (found := known.values(item)) is not None:
                return number, found
        template, values = split(item)
        if template is not PLAIN and len(self._phrases) < _MAX_PHRASES:
            self._phrases.append(template)
            self._manners.append([_as_it_is(template)])
            self.size += PHRASE_OVERHEAD + sum(map(len, template.words))
            return len(self._phrases), values
        return 1, [item]

    def _read(self, encoded: bytes) -> Iterator[tuple[int, list[bytes]]]:
        numbers, *values = encoded.split(_GAP)
        first = 0
        for number in numbers:
            after = first + len(self._phrases[number - 1].names)
            yield number, values[first:after]
            first = after


def _as_it_is(template: ItemTemplate) -> _Manner:
    return _Manner(template.words, tuple(range(len(template.names))))


def _manner(template: ItemTemplate, item: bytes) -> _Manner | None:
    """How ``item`` puts the values of ``template``; None if it has others."""
    other, _ = split(item)
    if PLAIN in (template, other) or ({*template.names} ^ {*other.names}) - _UNREAD_NAMES:
        return None
    uses = (None if name in _UNREAD_NAMES else template.names.index(name) for name in other.names)
    return _Manner(other.words, tuple(uses))
