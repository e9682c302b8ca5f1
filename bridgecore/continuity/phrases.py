"""How items are written: a phrase, and the values that stand in it.

What belongs here: telling the words of an item that are always the same (names of members,
punctuation, bookkeeping) from its values; holding items so, the words once for all of them; and
finding held items again in a text whose writer puts the same values into other words.

A client sends an item back in words of its own: members in another order, without some of them,
with an id. Which words those are is learnt from the first item that digests (items.py) have shown
to be the same. From then on an item that is held is written in the client's words and compared as
bytes, which takes a small part of the time.

That is as sure as the digests are. The digest of an item depends on each of its values in one way,
whatever the value is, because a value here is a whole JSON string that a model reads, or an id that
it does not. So if one item says the same in two phrases, every item does that has the same values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import attrs
import msgspec

from bridgecore.continuity.items import (
    UNREADABLE,
    ignored,
    kind_of,
    read_array,
    read_members,
    read_value,
)

# What a phrasebook takes, in bytes; measured as the overheads in transcript.py are.
PHRASE_OVERHEAD: Final = 680
MANNER_OVERHEAD: Final = 460
SPARE: Final = 1800  # for what is learnt between two puts

_MAX_PHRASES: Final = 31  # of one credential; at most 255, for their numbers are bytes
_MAX_MANNERS: Final = 3  # that are learnt of one phrase
_MAX_WORDS: Final = 512  # bytes of a phrase
_MAX_WORD: Final = 32  # bytes of a member that is taken for always the same

_GAP: Final = b"\0"  # is in no JSON
_VALUES: Final = frozenset(
    {"arguments", "call_id", "encrypted_content", "input", "name", "output", "text"}
)
_CONTENT: Final = "encrypted_content"  # of a thought; if it is empty, there is none
_PARTS: Final = frozenset({"content", "summary"})  # lists of objects, whose text is a value
_ANY_ID: Final = re.compile(rb'"[^"\\]{,128}"')


@attrs.frozen(eq=False)
class Phrase:
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
            if not _is_text(value) or (name == _CONTENT and value == b'""'):
                return None
        return values


def _is_text(value: bytes) -> bool:
    """Whether ``value`` is one JSON string, and nothing else."""
    if not (value.startswith(b'"') and value.endswith(b'"')):
        return False
    try:
        read_value(value)
    except UNREADABLE:
        return False
    return True


PLAIN: Final = Phrase((b"", b""), ("",))


def split(item: bytes) -> tuple[Phrase, list[bytes]]:
    """``item`` as a phrase and its values; PLAIN if it is not of a kind that this pays for."""
    try:
        members = read_members(item)
        kind = kind_of(members)
        unread = ignored(kind)
        if not unread or (kind == "reasoning" and not _has_content(members)):
            return PLAIN, [item]
        reading = _Reading()
        for name, raw in members.items():
            value = bytes(raw)
            if name == "id" and name in unread and _ANY_ID.fullmatch(value):
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
    except UNREADABLE:
        return PLAIN, [item]
    phrase = Phrase(words, tuple(reading.names))
    # White space, escapes in names, and names that come twice are nothing to keep a phrase for.
    if (
        not reading.names
        or sum(map(len, words)) > _MAX_WORDS
        or _written(words, reading.values) != item
    ):
        return PLAIN, [item]
    return phrase, reading.values


def _has_content(thought: Mapping[str, msgspec.Raw]) -> bool:
    """Whether more is known of a thought than its id, which then is all there is of it."""
    content = bytes(thought.get(_CONTENT, b""))
    return content.startswith(b'"') and content != b'""'


class _Reading:
    """The words and values of an item, as they are come upon."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[bytes] = []
        self._words: list[bytes] = []
        self._open = bytearray(b"{")

    def word(self, name: str, value: bytes) -> None:
        if len(value) > _MAX_WORD:
            raise ValueError("not always the same")
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
    """One way of writing the values of a phrase: in those words, or in others.

    ``uses`` are the numbers of the values in the order in which they are written; if ``before_id``
    is set, some id that nobody reads stands after so many of them.
    """

    __slots__ = ("_after", "_before", "_uses", "_uses_after", "length")

    def __init__(self, words: Sequence[bytes], uses: Sequence[int], before_id: int | None) -> None:
        self.length = sum(map(len, words))
        cut = len(words) if before_id is None else before_id + 1
        self._before = _with_room(words[:cut])
        self._after = _with_room(words[cut:])  # empty if there is no id
        self._uses = tuple(uses[: cut - 1])
        self._uses_after = tuple(uses[cut - 1 :])

    def is_at(self, text: bytes, begin: int, end: int, values: Sequence[bytes]) -> bool:
        """Whether ``text`` from ``begin`` to ``end`` is ``values``, written in this way."""
        parts = self._before.copy()
        place = 1
        for number in self._uses:
            parts[place] = values[number]
            place += 2
        before = b"".join(parts)
        if not text.startswith(before, begin):
            return False
        if not self._after:
            return end - begin == len(before)
        parts = self._after.copy()
        place = 1
        for number in self._uses_after:
            parts[place] = values[number]
            place += 2
        after = b"".join(parts)
        start = end - len(after)
        return text.startswith(after, start) and bool(
            _ANY_ID.fullmatch(text, begin + len(before), start)
        )


def _with_room(words: Sequence[bytes]) -> list[bytes]:
    parts = [b""] * max(0, 2 * len(words) - 1)
    parts[::2] = words
    return parts


class Phrasebook:
    """The phrases of one credential, and how its clients put them.

    Items are noted as bytes of one piece: the numbers of their phrases, then their values.
    ``size`` is what the book takes, in bytes, with some room to learn more.
    """

    __slots__ = ("_manners", "_phrases", "_spare", "_wanting", "size")

    def __init__(self) -> None:
        self._phrases = [PLAIN]
        self._manners: list[list[_Manner]] = [[_as_it_is(PLAIN)]]
        self._spare = self.size = SPARE
        self._wanting = False

    def note(self, items: Iterable[bytes]) -> bytes:
        """``items`` as this book keeps them. The book may grow.

        Raises:
            ValueError: an item is not JSON.
        """
        numbers = bytearray()
        noted = [b""]
        for item in items:
            number, values = self._noted(item)
            numbers.append(number)
            noted += values
        noted[0] = bytes(numbers)
        notes = _GAP.join(noted)
        if notes.count(_GAP) != len(noted) - 1:
            raise ValueError("an item is not JSON")
        return notes

    def grow(self) -> None:
        """Have room again for what there was no room to learn."""
        if self._wanting:
            self._wanting = False
            self._spare += SPARE
            self.size += SPARE

    def items(self, notes: bytes) -> list[bytes]:
        """The items of ``notes``, byte for byte."""
        return [
            _written(self._phrases[number - 1].words, values)
            for number, values in self._read(notes)
        ]

    def is_at(self, notes: bytes, text: bytes, bounds: Sequence[int], start: int) -> int:
        """How many items of ``notes``, beginning with the first, are in ``text`` one after another,
        in words that are known. Item n of the text is from ``bounds[n]`` up to the byte before
        ``bounds[n + 1]``; the first one to look at is item ``start``."""
        numbers, *values = notes.split(_GAP)
        phrases, manners = self._phrases, self._manners
        here = 0
        at = start
        for number in numbers[: len(bounds) - 1 - start]:
            there = here + len(phrases[number - 1].names)
            said = values[here:there]
            begin, end = bounds[at], bounds[at + 1] - 1
            for manner in manners[number - 1]:
                if manner.is_at(text, begin, end, said):
                    break
            else:
                break
            here = there
            at += 1
        return at - start

    def learn(self, notes: bytes, items: Iterable[msgspec.Raw | bytes]) -> None:
        """Learn from ``items``, which say what the items of ``notes`` say, in the same order."""
        for (number, values), raw in zip(self._read(notes), items, strict=True):
            item = bytes(raw)
            manners = self._manners[number - 1]
            if any(manner.is_at(item, 0, len(item), values) for manner in manners):
                continue
            manner = _manner(self._phrases[number - 1], item)
            if manner is None or len(manners) > _MAX_MANNERS:
                continue
            cost = MANNER_OVERHEAD + manner.length
            if self._spare < cost:
                self._wanting = True
                return
            self._spare -= cost
            manners.insert(0, manner)

    def _noted(self, item: bytes) -> tuple[int, list[bytes]]:
        """The number of the item's phrase, and its values; those of PLAIN if the book is full."""
        for number, known in enumerate(self._phrases[1:], start=2):
            if (found := known.values(item)) is not None:
                return number, found
        phrase, values = split(item)
        if phrase is not PLAIN and len(self._phrases) < _MAX_PHRASES:
            self._phrases.append(phrase)
            self._manners.append([_as_it_is(phrase)])
            self.size += PHRASE_OVERHEAD + sum(map(len, phrase.words))
            return len(self._phrases), values
        return 1, [item]

    def _read(self, notes: bytes) -> Iterator[tuple[int, list[bytes]]]:
        numbers, *values = notes.split(_GAP)
        here = 0
        for number in numbers:
            there = here + len(self._phrases[number - 1].names)
            yield number, values[here:there]
            here = there


def _as_it_is(phrase: Phrase) -> _Manner:
    return _Manner(phrase.words, range(len(phrase.names)), None)


def _manner(phrase: Phrase, item: bytes) -> _Manner | None:
    """How ``item`` puts the values of ``phrase``; None if it has others."""
    other, _ = split(item)
    if PLAIN in (phrase, other) or {*phrase.names} - {"id"} != {*other.names} - {"id"}:
        return None
    uses = [phrase.names.index(name) for name in other.names if name != "id"]
    return _Manner(other.words, uses, other.names.index("id") if "id" in other.names else None)
