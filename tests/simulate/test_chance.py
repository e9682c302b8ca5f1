"""Tests of simulate/chance.py: the published numbers, and keys that give unrelated ones."""

from __future__ import annotations

from bridgecore.simulate.chance import Rng


def test_the_generator_is_splitmix64() -> None:
    """The numbers that the published reference code gives for the seed 0."""
    rng = Rng()
    assert [rng.bits() for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_keys_give_unrelated_numbers() -> None:
    numbers = {Rng(a, b).bits() for a in range(30) for b in range(30)}
    assert len(numbers) == 900
    rolls = [Rng(5, n).between(1, 6) for n in range(6000)]
    assert all(850 < rolls.count(side) < 1150 for side in range(1, 7))
