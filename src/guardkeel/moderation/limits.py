"""How much the service takes: requests a minute of a key, and items under way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from guardkeel.errors import GuardkeelError


class OverloadedError(GuardkeelError):
    """Too much at once; `after` says in how many seconds to come again."""

    def __init__(self, problem: str, after: float) -> None:
        super().__init__(problem, remedy=f"come again in {after:.0f} s")
        self.after = after


class Rates:
    """A token bucket for each key: `per_minute` requests a minute, at most ten seconds' worth of them at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, key: str, per_minute: float | None) -> None:
        """Count a request; raises OverloadedError where there were too many."""
        if per_minute is None:
            return
        rate, most = per_minute / 60, max(1.0, per_minute / 6)
        now = self._clock()
        left, at = self._left.get(key, (most, now))
        left = min(most, left + max(0.0, now - at) * rate)
        if left < 1:
            self._left[key] = (left, now)
            raise OverloadedError(f"more than {per_minute:g} requests a minute", (1 - left) / rate)
        self._left[key] = (left - 1, now)


class Pending:
    """Items under way, at most so many; how long they take says when to come again."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self._clock = most, clock
        self.now = 0
        self._seconds = 0.1  # of one request, smoothed

    @contextlib.contextmanager
    def hold(self, items: int) -> Iterator[None]:
        """Count items while the block runs; raises OverloadedError where there are too many.

        A request that is larger than all that may be pending passes where nothing else is.
        """
        if self.now and self.now + items > self.most:
            raise OverloadedError(f"{self.now} items are under way", max(1.0, 2 * self._seconds))
        self.now += items
        begun = self._clock()
        try:
            yield
        finally:
            self.now -= items
            self._seconds += 0.1 * (self._clock() - begun - self._seconds)
