"""A small random stream that is the same on every machine and Python version, and cheap to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1
_MULTIPLIER = 6364136223846793005
_INCREMENT = 1442695040888963407


def mix(seed: int, kind: int, patient: int, slot: int) -> int:
    """64 well-mixed bits that belong to one resource: the seed of its stream, its id and its fate."""
    bits = (
        seed * 0x9E3779B97F4A7C15
        + kind * 0xC2B2AE3D27D4EB4F
        + patient * 0x165667B19E3779F9
        + slot * 0xD6E8FEB86659FD93
    ) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


class Draws:
    """Numbers and choices from a 64 bit congruential stream; one per resource, so any can be made alone."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, bound: int) -> int:
        """An integer in 0 .. bound - 1; `bound` at most 2**31."""
        self._state = state = (self._state * _MULTIPLIER + _INCREMENT) & _MASK
        return ((state >> 33) * bound) >> 31

    def between(self, low: int, high: int) -> int:
        """An integer in low .. high, both included."""
        return low + self.below(high - low + 1)

    def one_in(self, count: int) -> bool:
        """True once in `count` draws on average."""
        return self.below(count) == 0

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`, each as likely."""
        return choices[self.below(len(choices))]
