"""Pieces of the sentences that decisions carry."""

from __future__ import annotations

from collections.abc import Sequence

NAMED_MAX = 5


def seconds(ms: int) -> str:
    """A duration for people: `0.5 s`, `312 s`, `2 h`."""
    if ms >= 7_200_000:
        return f"{ms // 3_600_000} h"
    if ms >= 600_000:
        return f"{ms // 60_000} min"
    return f"{ms // 1000} s" if ms % 1000 == 0 or ms >= 10_000 else f"{ms / 1000:.1f} s"


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    left = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {left} more" if left > 0 else "")


def count(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
