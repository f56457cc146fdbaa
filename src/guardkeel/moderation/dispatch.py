"""Asking the experts about one item: all at once, or cheap ones first (the cascade)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guardkeel.guards.base import Judgement
from guardkeel.moderation.aggregation import Cascade, Costs
from guardkeel.moderation.aggregation.rule import Array
from guardkeel.moderation.experts import NOT_ASKED, Expert, Opinion

Heard = Callable[[Expert, Opinion], None]


@dataclass(frozen=True, slots=True)
class Panel:
    """The experts and how they are asked.

    Args:
        experts: in the order of the learner's advice.
        costs: of the two errors, for the cascade.
        cascade: None: all are asked.
        heard: told of every opinion, also of those that the cascade saved.
    """

    experts: Sequence[Expert]
    costs: Costs
    cascade: Cascade | None = None
    heard: Heard | None = None

    async def ask(self, item: Judgement, weights: Array) -> list[Opinion]:
        """One opinion for each expert, in order.

        Args:
            item: what is judged.
            weights: of the experts in the item's context (n,); only the cascade looks at them.
        """
        if self.cascade is None:
            return list(await asyncio.gather(*(self._ask(expert, item) for expert in self.experts)))
        return await self._in_order(self.cascade, item, weights)

    async def _in_order(self, cascade: Cascade, item: Judgement, weights: Array) -> list[Opinion]:
        """Expert after expert, until those who answered will do."""
        opinions = [NOT_ASKED] * len(self.experts)
        asked = [False] * len(self.experts)
        while True:
            advice = [o.unsafe for o in opinions]
            chosen = cascade.next_expert(advice, asked, weights, self.costs)
            if chosen is None:
                for expert, was in zip(self.experts, asked, strict=True):
                    if not was:
                        self._told(expert, NOT_ASKED)
                return opinions
            asked[chosen] = True
            opinions[chosen] = await self._ask(self.experts[chosen], item)

    async def _ask(self, expert: Expert, item: Judgement) -> Opinion:
        opinion = await expert.ask(item)
        self._told(expert, opinion)
        return opinion

    def _told(self, expert: Expert, opinion: Opinion) -> None:
        if self.heard is not None:
            self.heard(expert, opinion)
