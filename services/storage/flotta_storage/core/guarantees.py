"""Which promise a read asks for, and what this replica has to do to keep it.

STRONG: a read barrier. SESSION: the state must hold the session's revision; a barrier brings it. BOUNDED: the newest
completed barrier must have begun no longer ago than the bound, else one is done. EVENTUAL: the state as it is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

# The numbers of kvdb.gateway.Consistency and ReadMode.
STRONG_CONSISTENCY: Final = 1
EVENTUAL_CONSISTENCY: Final = 2
READ_YOUR_WRITES: Final = 1


class Guarantee(enum.IntEnum):
    """The promises, strongest first."""

    LINEARIZABLE = 1
    SESSION = 2
    BOUNDED = 3
    EVENTUAL = 4


@dataclass(frozen=True, slots=True)
class Demand:
    """What a read asks for. `max_staleness_ms` and `session_revision` 0: not asked."""

    guarantee: Guarantee
    session_revision: int = 0
    max_staleness_ms: int = 0

    def met_locally(self, applied_revision: int, fresh_ms: int | None, now_ms: int) -> bool:
        """Can the state as it is answer? `fresh_ms`: when the newest completed barrier began, on the same clock."""
        if self.guarantee is Guarantee.LINEARIZABLE or applied_revision < self.session_revision:
            return False
        return not self.max_staleness_ms or (fresh_ms is not None and now_ms - fresh_ms <= self.max_staleness_ms)


STRONG: Final = Demand(Guarantee.LINEARIZABLE)


def demand(consistency: int, read_mode: int, max_staleness_ms: int, session_revision: int) -> Demand:
    """The weakest promise that still keeps what was asked; unset means STRONG."""
    if consistency == STRONG_CONSISTENCY:
        return STRONG
    if read_mode == READ_YOUR_WRITES:
        if not session_revision:
            return STRONG
        return Demand(Guarantee.SESSION, session_revision, max_staleness_ms)
    if consistency != EVENTUAL_CONSISTENCY:
        return STRONG
    if max_staleness_ms:
        return Demand(Guarantee.BOUNDED, 0, max_staleness_ms)
    return Demand(Guarantee.EVENTUAL)
