"""Tests of the order of addresses and of how long they are remembered."""

from __future__ import annotations

import socket
from typing import Any

from bridgecore.transport.addresses import REMEMBERED, AddressBook, by_turns

HERE = [(socket.AF_INET, 6, ("192.0.2.1", 443))]
THERE = [(socket.AF_INET, 6, ("192.0.2.2", 443))]
NAME = ("upstream.example", 443)


def test_addresses_are_remembered_for_a_short_time() -> None:
    book = AddressBook()
    assert book.get(NAME, 0) is None
    book.keep(NAME, HERE, 5)
    assert book.get(NAME, 5) == book.get(NAME, 4 + REMEMBERED) == HERE
    assert book.get(("upstream.example", 80), 5) is None
    assert book.get(NAME, 5 + REMEMBERED) is None
    book.keep(NAME, THERE, 5 + REMEMBERED)
    assert book.get(NAME, 6 + REMEMBERED) == THERE


def test_a_forgotten_name_has_no_address() -> None:
    book = AddressBook()
    book.forget(NAME)
    book.keep(NAME, HERE, 0)
    book.forget(NAME)
    assert book.get(NAME, 1) is None


def test_names_that_are_not_used_any_more_cost_no_memory() -> None:
    book = AddressBook()
    for index in range(1000):
        book.keep((f"{index}.example", 80), HERE, index * REMEMBERED // 10)
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
