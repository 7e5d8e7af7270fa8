"""How many of a group's voters it takes."""

from __future__ import annotations


def quorum(size: int) -> int:
    """A majority of so many voters."""
    return size // 2 + 1


def has_quorum(living: int, size: int) -> bool:
    return living >= quorum(size)
