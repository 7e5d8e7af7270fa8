"""Starting tasks in a group that may be ending.

A task group takes nothing more from the moment its last task has ended, a turn of the loop before whoever holds it
knows. Callbacks that come in that turn must not fail: what they wanted to start is closed, as if the group were gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def start_in(group: asyncio.TaskGroup, work: Coroutine[Any, Any, object]) -> asyncio.Task[object] | None:
    """Run `work` in `group`. None, and `work` is closed, if the group is ending: it takes nothing more then."""
    try:
        return group.create_task(work)
    except RuntimeError:
        work.close()
        return None
