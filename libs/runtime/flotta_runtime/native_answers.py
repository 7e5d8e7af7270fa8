"""Answers of unary calls on their way to the native server: collected for a turn, handed over in one piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from flotta_runtime.logging import get_logger
from flotta_runtime.turns import Turns

Answer = tuple[int, bytes] | tuple[int, int, str, bytes | None, Any]
"""(call, payload) is OK; (call, code, message, payload, trailers) anything."""

CODE_NUMBERS: dict[str, int] = {code.name: int(code.value[0]) for code in grpc.StatusCode}
CODE_NAMES = {number: name for name, number in CODE_NUMBERS.items()}


class AnswerServer(Protocol):
    """The part of `flotta_native.RpcServer` that answers."""

    def reply_many(self, replies: Sequence[Answer]) -> None: ...


class Answers:
    """`put` an answer; it leaves at the end of the turn, and then `sent` is told of all that left."""

    def __init__(self, server: AnswerServer, turns: Turns, sent: Callable[[Sequence[Answer]], object]) -> None:
        self._server = server
        self._turns = turns
        self._sent = sent
        self._waiting: list[Answer] = []
        self._log = get_logger("grpc")

    def put(self, answer: Answer) -> None:
        """Queue it."""
        if not self._waiting:
            self._turns.at_end(self._send)
        self._waiting.append(answer)

    def waiting(self) -> set[int]:
        """The calls whose answers have not left yet."""
        return {answer[0] for answer in self._waiting}

    def _send(self) -> None:
        answers, self._waiting = self._waiting, []
        try:
            self._server.reply_many(answers)
        except (TypeError, ValueError):
            # None of them was taken. One is malformed, and the others are not to blame.
            for answer in answers:
                self._send_alone(answer)
        self._sent(answers)

    def _send_alone(self, answer: Answer) -> None:
        try:
            self._server.reply_many((answer,))
        except (TypeError, ValueError) as error:
            self._log.error("an answer could not be sent", reason=str(error), exc_info=error)
            text = "Internal error: the answer could not be sent"
            self._server.reply_many(((answer[0], CODE_NUMBERS["INTERNAL"], text, None, None),))
