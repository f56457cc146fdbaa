"""Forgetting: texts, and whole verdicts, that are older than the configuration lets them be.

Weights follow from feedback, and each piece of it holds what the learner needs, so they do not change. What was deleted
is still counted as served. Ages go by the wall clock, which may jump: one that has moved against the steady clock since
the start is believed no more, and nothing is deleted until the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from guardkeel.moderation.config import StoreConfig
from guardkeel.moderation.store import Store, StoreDownError

log = logging.getLogger("guardkeel.serve")
EVERY = 3600.0
"""Seconds between two looks at what is old."""
DAY = 86_400.0
DRIFT = 600.0
"""Seconds by which the two clocks may part."""
CHUNK = 1000
"""Rows in one transaction, so that nobody waits long for it."""


class Retention:
    """See above.

    Args:
        store: that forgets.
        config: says after how many days.
        clock: seconds since 1970.
        steady: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        store: Store,
        config: StoreConfig,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._config, self._clock, self._steady = store, config, clock, steady
        self._apart = clock() - steady()

    @property
    def wanted(self) -> bool:
        """Whether anything is ever deleted."""
        return self._config.texts_days is not None or self._config.verdicts_days is not None

    async def follow(self) -> None:
        """Delete what is old, now and every hour."""
        while True:
            try:
                await self.sweep()
            except StoreDownError as e:
                log.warning("nothing could be deleted: %s", e.problem)
            await asyncio.sleep(EVERY)

    async def sweep(self) -> tuple[int, int]:
        """Delete all that is old now; returns how many texts and verdicts went. Raises StoreDownError."""
        now = self._clock()
        moved = now - self._steady() - self._apart
        if abs(moved) > DRIFT:
            log.error("the clock has jumped by %.0f s: nothing is deleted until the next start", moved)
            return 0, 0
        texts = verdicts = 0
        while True:
            some = await asyncio.to_thread(
                self._store.forget,
                texts_before=_before(now, self._config.texts_days),
                verdicts_before=_before(now, self._config.verdicts_days),
                most=CHUNK,
            )
            texts, verdicts = texts + some[0], verdicts + some[1]
            if max(some) < CHUNK:
                break
        if texts or verdicts:
            log.info("deleted for their age", extra={"fields": {"texts": texts, "verdicts": verdicts}})
        return texts, verdicts


def _before(now: float, days: float | None) -> float | None:
    return None if days is None else now - days * DAY
