"""A circuit breaker: an expert that fails again and again is left alone for a while, then tried with one question.

    closed      all pass; `failures` in a row open it
    open        none pass for `rest` seconds
    half-open   one probe passes; it closes the breaker, or opens it for twice as long, at most `LONGEST` seconds

The clock is monotonic: what a wall clock does has no effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

LONGEST = 60.0

State = Literal["closed", "open", "half-open"]


class Breaker:
    """See above. Used by one thread."""

    def __init__(self, failures: int, rest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._first, self._clock = failures, rest, clock
        self._streak, self._rest, self._until = 0, rest, 0.0
        self._probing = False
        self.state: State = "closed"

    def admit(self) -> bool:
        """Whether a question may be asked now; its end must be told to `succeeded`, `failed` or `forgotten`."""
        if self.state == "open" and self._clock() >= self._until:
            self.state = "half-open"
        if self.state == "closed":
            return True
        if self.state == "half-open" and not self._probing:
            self._probing = True
            return True
        return False

    def succeeded(self) -> None:
        """A question was answered, whatever the answer."""
        self.state, self._streak, self._rest, self._probing = "closed", 0, self._first, False

    def failed(self) -> None:
        """A question was not answered."""
        self._streak += 1
        if self.state == "half-open":
            self._rest = min(LONGEST, 2 * self._rest)
        if self.state == "half-open" or (self.state == "closed" and self._streak >= self._most):
            self.state, self._until = "open", self._clock() + self._rest
        self._probing = False

    def forgotten(self) -> None:
        """A question was taken back before it could end: it says nothing."""
        self._probing = False
