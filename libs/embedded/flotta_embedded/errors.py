"""The embedded core's errors: what a command may say no with, and what must end the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class InvariantError(RuntimeError):
    """Something that cannot happen did. Nothing may catch it and carry on: the process ends, and a replay from the
    durable state decides."""


class UnknownCommandError(InvariantError):
    """A committed entry names a command that this build does not have. Applying stops, so as not to diverge."""


class CommandError(Exception):
    """Raised by a command to be rolled back and to answer its caller with a `Rejection`, the same on every replica.

    `code`, `message` and `detail` must depend on the state and the arguments alone.
    """

    def __init__(self, code: str, message: str, detail: Any = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Rejection:
    """The result of a command that changed nothing because it said no."""

    code: str
    message: str
    detail: Any = None
