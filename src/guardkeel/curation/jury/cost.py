"""What a jury will cost and how long it will take, before it is asked; what it did cost, while it is.

Tokens of a question are its bytes times the tokens a byte that this juror's answers have shown so far, or a guess of
one in four; answers likewise, or a guess of 16 tokens. Time is questions divided by the rate that the server's file
allows and by how many are under way at once, at the seconds an answer has taken so far, or a guess of one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from guardkeel.curation.config import Price
from guardkeel.curation.jury.cache import Usage
from guardkeel.curation.jury.jurors import Juror
from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.base import Judgement
from guardkeel.guards.remote import RemoteGuard

BYTES_PER_TOKEN = 4.0
ANSWER_TOKENS = 16.0
SECONDS = 1.0
ENOUGH = 20
"""Answers from which on a juror's own figures are taken."""


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Of one juror. `measured` says that tokens and seconds are those of its earlier answers; money is None if free."""

    juror: str
    items: int
    known: int
    to_ask: int
    input: float = 0.0
    output: float = 0.0
    money: float | None = None
    seconds: float | None = None
    measured: bool = False


def estimate(juror: Juror, items: int, to_ask: int, sent: int, before: Usage) -> CostEstimate:
    """What asking will take.

    Args:
        juror: the juror.
        items: questions in all.
        to_ask: those that are not answered yet.
        sent: bytes of these questions together.
        before: what its answers took so far.
    """
    known = items - to_ask
    if juror.kind != "server":
        return CostEstimate(juror.name, items, known, to_ask)
    measured = before.votes >= ENOUGH and before.bytes > 0
    rate = before.input / before.bytes if measured else 1 / BYTES_PER_TOKEN
    answer = before.output / before.votes if measured else ANSWER_TOKENS
    each = before.seconds / before.votes if measured else SECONDS
    guard = juror.guard()
    assert isinstance(guard, RemoteGuard)
    requests = math.ceil(to_ask / guard.config.inputs)
    allowed = 60 * requests / guard.config.requests_per_minute if guard.config.requests_per_minute else 0.0
    seconds = max(requests * guard.config.inputs * each / guard.config.concurrency, allowed)
    tokens = (sent * rate, to_ask * answer)
    money = None if juror.price.free else cost(juror.price, *tokens, requests)
    return CostEstimate(juror.name, items, known, to_ask, *tokens, money, seconds, measured)


def cost(price: Price, input: float, output: float, requests: float) -> float:
    """In the jury's currency."""
    return (price.input * input + price.output * output) / 1e6 + price.request * requests


class Meter:
    """Adds up what is spent in this run. Where a server counts no tokens, they are guessed from what was sent."""

    def __init__(self, budget: float | None = None, currency: str = "USD", *, of: str = "jury") -> None:
        self.budget, self.currency, self.of = budget, currency, of
        self.spent: dict[str, float] = {}
        self.requests: dict[str, int] = {}
        self.tokens: dict[str, tuple[int, int]] = {}

    @property
    def total(self) -> float:
        """Over all jurors."""
        return math.fsum(self.spent.values())

    def add(self, juror: Juror, sent: int, input: int | None, output: int) -> None:
        """Count one request that was answered; raises RunError when the budget is spent."""
        if not sent:
            return
        tokens = input if input is not None else round(sent / BYTES_PER_TOKEN)
        before = self.tokens.get(juror.name, (0, 0))
        self.tokens[juror.name] = (before[0] + tokens, before[1] + output)
        self.requests[juror.name] = self.requests.get(juror.name, 0) + 1
        self.spent[juror.name] = self.spent.get(juror.name, 0.0) + cost(juror.price, tokens, output, 1)
        if self.budget is not None and self.total > self.budget:
            raise RunError(
                f"the {self.of} has cost {self.total:.2f} {self.currency}, more than its budget of {self.budget:.2f}",
                remedy=f"raise {self.of}.budget and repeat the command: it goes on where it stopped",
            )


def question_bytes(body: dict[str, Any]) -> int:
    """The size of a request."""
    return len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def sent_bytes(juror: Juror, judgement: Judgement) -> int:
    """The size of the request for one item, without sending it; 0 where the juror would not ask."""
    guard = juror.guard()
    if not isinstance(guard, RemoteGuard):
        return 0
    try:
        return question_bytes(guard._api.body([guard._api.prepare(judgement)]))
    except ConfigError:
        return 0
