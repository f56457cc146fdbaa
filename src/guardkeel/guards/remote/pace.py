"""How fast a server is asked: a token bucket that all requests share, held back when the server asks for it."""

from __future__ import annotations

import asyncio
import random
import time
from email.utils import parsedate_to_datetime

LONGEST = 30.0
"""Most seconds between two tries, where the server names no time itself."""


class Pace:
    """A token bucket: `per_minute` requests a minute, at most one second's worth of them at once.

    Requests pass in the order in which they ask. Without `per_minute` they pass at once, unless held.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._most = max(1.0, self._rate or 1.0)
        self._left, self._at, self._until = self._most, time.monotonic(), 0.0
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        """Wait until one more request may be sent."""
        async with self._turn:
            while (wait := self._wait()) > 0:
                await asyncio.sleep(wait)
            self._left -= 1

    def hold(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    def _wait(self) -> float:
        now = time.monotonic()
        if self._rate is None:
            self._left = self._most
            return self._until - now
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(self._until - now, (1 - self._left) / self._rate)


def backoff(first: float, attempt: int) -> float:
    """Seconds before try number `attempt` + 2: doubled each time, half of it by chance, so that clients spread."""
    return float(min(LONGEST, first * 2.0**attempt) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None where it asks for nothing."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None  # also refuses NaN
