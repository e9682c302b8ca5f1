"""Tests of the addresses of names: look-ups, how long addresses are remembered, their order."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from bridgecore.transport.addresses import REMEMBERED, AddressBook, Name, by_turns, in_one

HERE = [(socket.AF_INET, 6, ("192.0.2.1", 443))]
THERE = [(socket.AF_INET, 6, ("192.0.2.2", 443))]
NAME = ("upstream.example", 443)


def find(book: AddressBook[object], addresses: list[Any], now: int, name: Name = NAME) -> None:
    """Look ``name`` up."""
    book.look_up(name, lambda _: object())
    book.ended(name, addresses, now)


def test_addresses_are_remembered_for_a_short_time() -> None:
    book = AddressBook[object]()
    assert book.get(NAME, 0) is None
    find(book, HERE, 5)
    assert book.get(NAME, 5) == book.get(NAME, 4 + REMEMBERED) == HERE
    assert book.get(("upstream.example", 80), 5) is None
    assert book.get(NAME, 5 + REMEMBERED) is None
    find(book, THERE, 5 + REMEMBERED)
    assert book.get(NAME, 6 + REMEMBERED) == THERE


def test_a_forgotten_name_has_no_address() -> None:
    book = AddressBook[object]()
    book.forget(NAME)
    find(book, HERE, 0)
    book.forget(NAME)
    assert book.get(NAME, 1) is None


def test_a_look_up_is_shared_until_it_ends() -> None:
    book, begun = AddressBook[int](), list[Name]()

    def begin(name: Name) -> int:
        begun.append(name)
        return len(begun)

    assert [book.look_up(NAME, begin) for _ in range(2)] == [1, 1]
    assert book.look_up(("other.example", 80), begin) == 2
    book.ended(NAME, [], 0)
    assert book.get(NAME, 0) is None
    assert book.look_up(NAME, begin) == 3


def test_a_look_up_that_cannot_begin_leaves_nothing() -> None:
    def begin(name: Name) -> object:
        raise OSError(errno.EMFILE, "no descriptor")

    book = AddressBook[object]()
    with pytest.raises(OSError, match="no descriptor"):
        book.look_up(NAME, begin)
    assert book.running == {}


def test_names_that_are_not_used_any_more_cost_no_memory() -> None:
    book = AddressBook[object]()
    for index in range(1000):
        find(book, HERE, index * REMEMBERED // 10, (f"{index}.example", 80))
    assert len(book._found) <= 11


def test_addresses_of_both_families_are_tried_alternately() -> None:
    four, six = socket.AF_INET, socket.AF_INET6

    def found(*families: socket.AddressFamily) -> list[Any]:
        return [(family, 1, 6, "", number) for number, family in enumerate(families)]

    def order(*families: socket.AddressFamily) -> list[int]:
        return [address for _, _, address in by_turns(found(*families))]

    assert order(four) == [0]
    assert order(six, six, four, four) == [0, 2, 1, 3]
    assert order(six, six, six, four) == [0, 3, 1, 2]


def test_the_failures_of_all_addresses_are_one() -> None:
    refused, unreachable = OSError(errno.ECONNREFUSED, "no"), OSError(errno.EHOSTUNREACH, "way")
    exhausted = OSError(errno.EMFILE, "descriptor")
    assert in_one([refused]) is refused
    assert in_one([refused, exhausted, unreachable]) is exhausted
    both = in_one([refused, unreachable])
    assert (both.errno, str(both)) == (None, f"{refused}; {unreachable}")
