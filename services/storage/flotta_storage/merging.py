"""What the leader of a shard does so that shards grow together: of one that goes, it lets changes be noted and seals
it; of one that takes over, it copies page by page until only the newest changes are to come, says so, and takes the
keys once the sources are sealed and whole.

Every step is an entry that the records of the shard itself check (`core/follows.py`, `core/absorptions.py`), so a step
that is taken twice, or by a leader that is none any more, does nothing. Invariant: rounds are bounded; what is missing
is looked for again in the next one, here or at another leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from flotta_consensus.api import Committed, Outcome
from flotta_embedded.registry import raise_revisions
from flotta_runtime.clock import Clock
from flotta_runtime.logging import get_logger

from flotta_storage.core.absorptions import (
    Absorption,
    MergeKind,
    Source,
    absorb_payload,
    copy_payload,
    let_go_payload,
    merge_payload,
)
from flotta_storage.core.follows import Followed, Phase, follow_payload, seal_payload, unfollow_payload
from flotta_storage.core.merge_steps import Step, next_step, wanted
from flotta_storage.map_model import MapModel
from flotta_storage.replica_table import Replica
from flotta_storage.stamping import NO_STAMP, StampSource

STEP_TIMEOUT_MS: Final = 10_000
ROUND_MS: Final = 1_000
PAGES_MAX: Final = 4  # of one shard's sources, on their way together

AskPage = Callable[[Source], Awaitable[Followed | None]]


class Groups(Protocol):
    """What is asked of the Raft host."""

    async def propose(self, group: int, payload: bytes, timeout_ms: int) -> Outcome: ...


class Merging:
    """For the leader's round: `is_due` is cheap, `work` does what is to be done. `on_change`: there is news to tell."""

    def __init__(
        self,
        groups: Groups,
        model: MapModel,
        clock: Clock,
        stamp_ms: StampSource,
        page: AskPage,
        on_change: Callable[[], None],
    ) -> None:
        self._groups = groups
        self._model = model
        self._clock = clock
        self._stamp_ms = stamp_ms
        self._page = page
        self._on_change = on_change
        self._caught_up: dict[int, int] = {}  # the order, by group
        self._log = get_logger("storage.merges")

    def is_due(self, replica: Replica) -> bool:
        return self._step(replica) is not Step.WAIT

    def caught_up(self, replica: Replica) -> int:
        """The order for which a shard that is led here has all but the newest changes; 0: none."""
        order = self._caught_up.get(replica.group, 0)
        absorption = replica.absorption() if order else None
        return order if absorption is not None and absorption.order == order else 0

    async def work(self, replica: Replica) -> None:
        """One round for one shard that is led here."""
        step = self._step(replica)
        state, absorption = replica.state(), replica.absorption()
        if step is Step.FOLLOW:
            await self._propose(replica, follow_payload(self._stamp_ms()), "changes are noted")
        elif step is Step.SEAL:
            await self._propose(replica, seal_payload(self._stamp_ms()), "shard sealed")
            self._on_change()
        elif step is Step.UNFOLLOW:
            await self._unfollow(replica)
        elif step is Step.ABSORB and state is not None:
            asked = wanted(state, self._model.shard(replica.shard_id), self._model.sources(replica.shard_id))
            if asked is not None:
                await self._propose(replica, absorb_payload(self._stamp_ms(), asked), "other shards are taken over")
        elif step is Step.LET_GO and absorption is not None:
            await self._let_go(replica, absorption)
        elif step is Step.COPY and absorption is not None:
            await self._copy(replica, absorption.order)
        elif step is Step.MERGE and absorption is not None:
            await self._merge(replica, absorption)

    def _step(self, replica: Replica) -> Step:
        shard, sources = self._model.shard(replica.shard_id), self._model.sources(replica.shard_id)
        absorption, noted = replica.absorption(), replica.is_noted()
        if shard is None or not (shard.into or sources or absorption is not None or noted):
            return Step.WAIT  # nearly always, and asked many times a second: before the record is decoded
        state = replica.state()
        if state is None or shard.group != replica.group:
            return Step.WAIT
        divided = replica.division() is not None
        return next_step(state, shard, sources, absorption, noted=noted, divided=divided)

    async def _propose(self, replica: Replica, payload: bytes, said: str = "") -> Any:
        """What came of it, and `said` in the log if it came true; None: not committed."""
        outcome = await self._groups.propose(replica.group, payload, STEP_TIMEOUT_MS)
        if not isinstance(outcome, Committed):
            return None
        if said and outcome.result is True:
            self._log.info(said, shard=replica.shard_id, index=outcome.index)
        return outcome.result

    async def _unfollow(self, replica: Replica) -> None:
        done: bool | None = False
        while done is False and (state := replica.state()) is not None and not state.sealed:
            done = await self._propose(replica, unfollow_payload(NO_STAMP))

    async def _let_go(self, replica: Replica, absorption: Absorption) -> None:
        self._caught_up.pop(replica.group, None)
        payload = let_go_payload(self._stamp_ms(), absorption.order)
        await self._propose(replica, payload, "other shards are not taken over after all")

    async def _copy(self, replica: Replica, order: int) -> None:
        """Pages of all sources, for a round, or until there is no more to be had for now."""
        end_ms = self._clock.monotonic_ms() + ROUND_MS
        slots = asyncio.Semaphore(PAGES_MAX)
        while (absorption := replica.absorption()) is not None and absorption.order == order:
            if absorption.whole:
                await self._merge(replica, absorption)
                return
            open_sources = [source for source in absorption.sources if not source.whole]
            found = await asyncio.gather(*(self._one_page(replica, order, source, slots) for source in open_sources))
            absorption = replica.absorption()
            if absorption is None or any(page is None for page in found):
                return  # something is not to be had, or not the same any more: the next round looks
            pages = [page for page in found if page is not None]
            if all(page.phase is not Phase.ROWS and not page.more for page in pages):
                self._is_caught_up(replica, order)
                if not all(source.whole for source in absorption.sources):
                    return
            elif self._clock.monotonic_ms() >= end_ms:
                return

    async def _one_page(
        self, replica: Replica, order: int, source: Source, slots: asyncio.Semaphore
    ) -> Followed | None:
        """Ask for the next page of a source and put it into the log. None: that came to nothing."""
        async with slots:
            page = await self._page(source)
            if page is None:
                return None
            if source.token not in (0, page.token):
                # Changes went unnoted in between, so what has been copied may be anything.
                absorption = replica.absorption()
                if absorption is not None:
                    await self._let_go(replica, absorption)
                return None
            if not page.rows and (page.phase, page.cursor) == (source.phase, source.cursor):
                return page
            landed = await self._propose(replica, copy_payload(self._stamp_ms(), order, source, page))
            return page if landed is True else None

    def _is_caught_up(self, replica: Replica, order: int) -> None:
        if self._caught_up.get(replica.group) != order:
            self._caught_up[replica.group] = order
            self._on_change()

    async def _merge(self, replica: Replica, absorption: Absorption) -> None:
        gap = absorption.revision - replica.applied_revision()
        if gap >= 0:
            await self._propose(replica, raise_revisions(gap + 1))
        result = await self._propose(replica, merge_payload(self._stamp_ms(), absorption.order))
        if result is MergeKind.MERGED:
            self._caught_up.pop(replica.group, None)
            self._log.info("other shards taken over", shard=replica.shard_id, shard_count=absorption.shard_count)
            self._on_change()
