"""Structured logs on stderr: JSON lines for machines, aligned text for people.

`configure` is called once per process by `run.py`; a library only calls `get_logger`. Events are short constant
words; what varies goes into fields. Nothing on the per-request path logs.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Literal, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

    Logger = FilteringBoundLogger

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


def configure(log_format: LogFormat = "auto", level: LogLevel = "info") -> None:
    """Let structlog and the standard library's logging write one stream. `auto`: console on a terminal, else JSON."""
    shared, renderer = _configure_structlog(log_format, level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(getattr(logging, level.upper()), logging.WARNING))


def _configure_structlog(log_format: LogFormat, level: LogLevel) -> tuple[list[Processor], list[Processor]]:
    """The processors that every event passes, and those that print it."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[Processor]
    if log_format == "console" or (log_format == "auto" and sys.stderr.isatty()):
        # Plain tracebacks: pretty ones print local variables, and those hold tokens and other people's values.
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=36, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    else:
        renderer = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_stderr_logger,
        cache_logger_on_first_use=False,
    )
    return shared, renderer


def _stderr_logger(*_: object) -> structlog.WriteLogger:
    return structlog.WriteLogger(sys.stderr)


def get_logger(component: str, **fields: Any) -> Logger:
    """A logger with `component` and other fields (service=, node=, shard=) bound to all its events."""
    if not structlog.is_configured():  # a library used outside `run.py`: our format still, not structlog's default
        _configure_structlog("auto", "info")
    return cast("Logger", structlog.get_logger(component=component, **fields))
