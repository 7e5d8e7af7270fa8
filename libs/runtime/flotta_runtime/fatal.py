"""Ending the process on purpose, when carrying on could do harm.

No cleanup runs: what must survive is already on disk, and what is in memory can no longer be trusted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from flotta_runtime.logging import get_logger

EXIT_INVARIANT = 70

OnFatal = Callable[[BaseException], object]


def die(reason: BaseException) -> NoReturn:
    """Log `reason` with its traceback and end the process with exit code 70, at once."""
    try:
        get_logger("fatal").critical(
            "the process ends: " + (str(reason) or type(reason).__name__),
            exception="".join(traceback.format_exception(reason)),
        )
        sys.stderr.flush()
    finally:
        os._exit(EXIT_INVARIANT)
