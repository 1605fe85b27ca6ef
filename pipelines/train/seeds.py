"""Seeds of the random numbers of a training, step by step."""

from __future__ import annotations

_MASK = 2**64 - 1
_PRIMES = 11400714785074694791, 14029467366897019727, 2870177450012600261
"""The first, second and fifth prime of xxHash."""


def step_seed(seed: int, step: int) -> int:
    """The seed of everything that is drawn in a step: the same on every rank, and after a restart.

    It is the 64-bit mix of xxHash over (seed, step, 0), a signed number. Python 3.8 to 3.14 give the same value as the
    hash of a tuple of small integers, but do not promise it.
    """
    first, second, fifth = _PRIMES
    numbers = (seed, step, 0)
    mixed = fifth
    for number in numbers:
        mixed = (mixed + number * second) & _MASK
        mixed = (mixed << 31 | mixed >> 33) & _MASK
        mixed = mixed * first & _MASK
    # CPython's constant for the length of a tuple.
    mixed = (mixed + (len(numbers) ^ fifth ^ 3527539)) & _MASK
    # torch.manual_seed takes negative numbers, too.
    return mixed - 2**64 if mixed >> 63 else mixed
