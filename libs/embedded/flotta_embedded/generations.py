"""Which engine space holds a replica: `<name>@<generation>`.

A restore builds the next generation beside the current one and makes it current by the flush of its machine row,
which is written last. So the current generation is the highest one that has a machine row; lower ones and ones
without a machine row are left-overs of a crash.

Invariant: generations are dropped from the lowest up, so no crash between two drops brings an old state back.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import keys
from .api import Engine

SEPARATOR = "@"


def space_of(name: str, generation: int) -> str:
    return f"{name}{SEPARATOR}{generation}"


def check_name(name: str) -> None:
    if not name or SEPARATOR in name:
        raise ValueError(f"machine name {name!r} must not be empty or contain {SEPARATOR!r}")


def generations(engine: Engine, name: str) -> list[int]:
    """Every generation of one machine, whole or not, ascending."""
    return _by_name(engine.spaces()).get(name, [])


def current(engine: Engine, name: str) -> int | None:
    """The generation that holds the machine's state; None if there is no such machine."""
    return _current(engine, name, generations(engine, name))


def machines(engine: Engine) -> list[str]:
    """The machines that an engine holds, sorted."""
    found = _by_name(engine.spaces())
    return sorted(name for name, numbers in found.items() if _current(engine, name, numbers) is not None)


def sweep(engine: Engine, name: str) -> int:
    """Drop what a crash left over of one machine; returns how many spaces. Not while it is being restored."""
    numbers = generations(engine, name)
    keep = _current(engine, name, numbers)
    leftovers = [number for number in numbers if number != keep]
    drop(engine, name, leftovers)
    return len(leftovers)


def sweep_all(engine: Engine) -> int:
    """Drop every left-over; for a start, before any machine opens."""
    return sum(sweep(engine, name) for name in sorted(_by_name(engine.spaces())))


def drop(engine: Engine, name: str, numbers: Iterable[int]) -> None:
    for number in sorted(numbers):
        engine.drop(space_of(name, number))


def _current(engine: Engine, name: str, numbers: list[int]) -> int | None:
    for number in reversed(numbers):
        if engine.view(space_of(name, number)).get(keys.META_STATE) is not None:
            return number
    return None


def _by_name(spaces: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for space in spaces:
        name, separator, number = space.rpartition(SEPARATOR)
        if separator and number.isdecimal():
            found.setdefault(name, []).append(int(number))
    for numbers in found.values():
        numbers.sort()
    return found
