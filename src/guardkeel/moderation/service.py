"""The service without HTTP: experts, learner, policy and store, tied together.

    served = await service.judge(items)              verdicts, logged
    acks = await service.take_feedback(rows)         committed, then learnt by reading the log

The log is the only way into the weights: what this process has committed comes back to it like what other replicas
have committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError

from guardkeel.conversation import Conversation, Side
from guardkeel.guards.base import Judgement
from guardkeel.moderation.aggregation import Context, Mixture
from guardkeel.moderation.aggregation.rule import Array
from guardkeel.moderation.config import ServeConfig, store_url
from guardkeel.moderation.contexts import context_of
from guardkeel.moderation.dispatch import Panel
from guardkeel.moderation.experts import Expert, Opinion
from guardkeel.moderation.ids import new_id, uniform
from guardkeel.moderation.learning import Learner
from guardkeel.moderation.limits import Pending, Rates
from guardkeel.moderation.metrics import Metrics
from guardkeel.moderation.policies import CategoryScore, Decision, Policy, Said, decide
from guardkeel.moderation.retention import Retention
from guardkeel.moderation.served import InForce, Item, Served
from guardkeel.moderation.store import Ack, Row, Store, StoreDownError
from guardkeel.moderation.windows import windows
from guardkeel.moderation.writer import Writer

log = logging.getLogger("guardkeel.serve")
UNREAD = "part of the text was read by no expert"
SMALLEST = 100
"""Characters of a window that is not made smaller."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One window of an item, judged."""

    opinions: Sequence[Opinion]
    context: Context
    mixture: Mixture
    decision: Decision
    unscored: str

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The worst has the highest: flagged, then unscored, then by P(unsafe)."""
        return self.decision.flagged, bool(self.unscored), self.mixture.unsafe or 0.0


class Service:
    """See above. Everything but the store runs in one event loop.

    Args:
        config: as read.
        experts: loaded.
        metrics: told of everything; the one that the experts were loaded with.
    """

    def __init__(self, config: ServeConfig, experts: Sequence[Expert], metrics: Metrics) -> None:
        self.config, self.experts, self.metrics = config, list(experts), metrics
        self.learner = Learner([e.name for e in experts], config.learner)
        self.panel = Panel(
            self.experts,
            self.learner.costs,
            self.learner.cascade([e.config.cost for e in experts]),
            metrics.opinion,
        )
        self.in_force = InForce(config.policy)
        self.pending = Pending(config.server.max_pending)
        self.rates = Rates()
        self.store = Store(store_url(config.store, config.folder))
        self.retention = Retention(self.store, config.store)
        self.writer = Writer(self.store, buffer=config.store.buffer, committed=self._committed)
        self.ready = self.draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start experts, bring the store up to date, replay the log, and be ready.

        Raises:
            StoreDownError: the database cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.store.migrate)
        body = self.config.policy.model_dump(mode="json")
        self._enforce(await asyncio.to_thread(self.store.put_policy, body, origin="file", key=""))
        await self.catch_up()
        for expert in self.experts:
            await expert.runner.start()
        self.writer.start()
        self._tasks.append(asyncio.create_task(self._follow()))
        if self.retention.wanted:
            self._tasks.append(asyncio.create_task(self.retention.follow()))
        self.ready = True
        log.info(
            "ready",
            extra={
                "fields": {
                    "experts": [e.name for e in self.experts],
                    "weights_version": self.learner.sequence,
                }
            },
        )

    async def stop(self) -> None:
        """Finish what is under way, write what waits, let go."""
        self.draining, self.ready = True, False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        seconds = float(self.config.server.shutdown_seconds)
        ended = await asyncio.gather(*(e.runner.stop(seconds) for e in self.experts))
        if not all(ended):
            late = [e.name for e, done in zip(self.experts, ended, strict=True) if not done]
            log.warning("experts that did not end: %s", ", ".join(late))
        await self.writer.stop(seconds)
        self.store.close()
        log.info("stopped")

    async def judge(self, items: Sequence[Item], *, request: str = "", key: str = "") -> list[Served]:
        """One verdict for each item, logged.

        Raises:
            OverloadedError: too many items are under way.
            StoreDownError: verdicts are to be logged before they are given, and cannot be.
        """
        pieces = [windows(i.conversation, i.side, self.config.server.window_chars) for i in items]
        with self.pending.hold(sum(map(len, pieces))):
            jobs = (self._judge(item, parts) for item, parts in zip(items, pieces, strict=True))
            served = await asyncio.gather(*jobs)
        rows = [self._row(one, request, key) for one in served]
        for one in served:
            self.metrics.verdict(one)
        if self.config.store.verdicts == "before":
            await self.writer.commit(rows)
        else:
            self.writer.log(rows)
        return list(served)

    async def take_feedback(self, given: Sequence[Row]) -> list[Ack]:
        """What became of each piece, after the commit; raises StoreDownError."""
        acks = await self.writer.commit((), given)
        for one, ack in zip(given, acks, strict=True):
            self.metrics.feedback(one["source"], ack.status)
        return acks

    async def put_policy(self, policy: Policy, key: str) -> InForce:
        """Put a policy in force, here at once and in other replicas when they next look; raises StoreDownError."""
        body = policy.model_dump(mode="json")
        row = await asyncio.to_thread(self.store.put_policy, body, origin="api", key=key)
        self._enforce(row)
        return self.in_force

    async def look_at_policy(self) -> None:
        """Put the store's latest policy in force; raises StoreDownError."""
        latest = await asyncio.to_thread(self.store.policy)
        if latest is not None:
            self._enforce(latest)

    async def catch_up(self) -> None:
        """Learn all that the log has and the weights do not know yet; raises StoreDownError."""
        while rows := await asyncio.to_thread(self.store.feedback_after, self.learner.sequence):
            self.learner.apply(rows)
            await asyncio.sleep(0)

    async def _judge(self, item: Item, parts: Sequence[Conversation]) -> Served:
        begun, policy = time.monotonic(), self.in_force
        before = context_of(self.config.learner.contexts, item.side, item.language)
        # only the cascade looks at them, before anyone was asked
        weights = self.learner.aggregator.weights(before) if self.panel.cascade else np.empty(0)
        size = self.config.server.window_chars
        asked = await asyncio.gather(*(self._opinions(part, item.side, weights, size) for part in parts))
        opinions = [one for some in asked for one in some]
        matched = policy.policy.matched(item.conversation, item.side)
        worst = max((self._piece(item, policy.policy, o, matched) for o in opinions), key=lambda p: p.rank)
        flagged = worst.decision.flagged or (bool(worst.unscored) and policy.policy.unscored != "open")
        decided = None if worst.unscored else flagged
        propensity = self.learner.audit.propensity(replace(worst.mixture, flagged=decided))
        by_name = dict(zip(self.learner.experts, worst.opinions, strict=True))
        return Served(
            id=new_id("v_"),
            item=item,
            unsafe=None if worst.unscored else worst.mixture.unsafe,
            flagged=flagged,
            unscored=worst.unscored,
            categories=worst.decision.categories,
            opinions=by_name,
            digests={e.name: e.digest for e in self.experts},
            weights=dict(zip(self.learner.experts, worst.mixture.weights.tolist(), strict=True)),
            context=worst.context,
            disagreement=worst.mixture.disagreement,
            vote=worst.mixture.vote,
            threshold=worst.decision.threshold,
            propensity=propensity,
            audited=self.learner.audit.drawn(propensity, uniform()),
            weights_version=self.learner.sequence,
            policy=policy,
            windows=len(opinions),
            created=time.time(),
            seconds=time.monotonic() - begun,
        )

    async def _opinions(
        self, part: Conversation, side: Side, weights: Array, size: int
    ) -> list[list[Opinion]]:
        """What the experts say of a window; of smaller ones instead where all of them left a part of it out.

        How many characters fit is known to each guard's tokenizer alone.
        """
        found = await self.panel.ask(Judgement("", part, side), weights)
        smaller = [part]
        while _unread(found) and smaller == [part] and size >= 2 * SMALLEST:
            size //= 2
            smaller = windows(part, side, size)
        if smaller == [part]:
            return [found]
        again = await asyncio.gather(*(self._opinions(p, side, weights, size) for p in smaller))
        return [one for some in again for one in some]

    def _piece(
        self, item: Item, policy: Policy, opinions: Sequence[Opinion], matched: Sequence[str]
    ) -> _Piece:
        context = context_of(self.config.learner.contexts, item.side, item.language, opinions)
        mixture = self.learner.aggregator.predict([o.unsafe for o in opinions], context)
        by_costs = self.learner.costs.threshold
        if mixture.unsafe is None:
            decision = _by_words(policy.threshold_at(by_costs), matched)
            return _Piece(opinions, context, mixture, decision, "" if decision.flagged else _why(opinions))
        said = [
            Said(w, o.unsafe >= by_costs, o.categories)
            for w, o in zip(mixture.weights.tolist(), opinions, strict=True)
            if o.unsafe is not None
        ]
        decision = decide(policy, mixture.unsafe, said, by_costs, matched)
        unread = UNREAD if _unread(opinions) and not decision.flagged else ""
        return _Piece(opinions, context, mixture, decision, unread)

    def _row(self, served: Served, request: str, key: str) -> Row:
        conversation = served.item.conversation
        digest = hashlib.sha256(conversation.text.encode("utf-8", "surrogatepass")).hexdigest()
        text = json.dumps(conversation.to_messages()) if self.config.store.texts else None
        return served.row(request=request, key=key, digest=digest, text=text)

    def _enforce(self, row: Row) -> None:
        """Take over a policy of the store; one that this version cannot read leaves the old one in force."""
        if row["version"] == self.in_force.version:
            return
        try:
            self.in_force = InForce(Policy.model_validate(row["body"]), row["version"])
        except ValidationError:
            log.error("policy version %d cannot be read; the one before stays in force", row["version"])
            return
        policy = self.in_force.policy
        fields = {"policy": policy.name, "version": row["version"], "strictness": policy.strictness}
        log.info("policy in force", extra={"fields": fields})

    def _committed(self) -> None:
        """Called in the writer's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def _follow(self) -> None:
        """Read on in the log: at once after commits of our own, and every `poll` seconds for those of others."""
        up = True
        while True:
            try:
                async with asyncio.timeout(self.config.store.poll):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            try:
                await self.catch_up()
                await self.look_at_policy()
                up = True
            except StoreDownError as e:
                if up:
                    log.error("the log cannot be read: %s", e.problem)
                up = False


def _unread(opinions: Sequence[Opinion]) -> bool:
    """Whether some were heard, and each of them has left a part of the text out."""
    heard = [o for o in opinions if o.unsafe is not None]
    return bool(heard) and all(o.dropped for o in heard)


def _by_words(threshold: float, matched: Sequence[str]) -> Decision:
    """The decision where no expert was heard: the policy's own words alone."""
    return Decision(bool(matched), threshold, tuple(CategoryScore(name, 1.0, True) for name in matched))


def _why(opinions: Sequence[Opinion]) -> str:
    """Why nobody was heard, each reason once."""
    return "; ".join(dict.fromkeys(o.reason or o.outcome for o in opinions))[:500]
