"""Jurors are asked what they have not been asked before, and every answer is kept as it arrives.

A server is asked `concurrency` questions at once, at the pace that its file allows, with the retries and the reasons to
stop of guards/remote/client.py. What a server did not answer (after all tries) is an abstention that is not kept, so
the next run asks again; what it answered is kept whatever the answer says, for it was paid for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from guardkeel.curation.jury.cache import Kept, VoteCache
from guardkeel.curation.jury.cost import Meter, question_bytes
from guardkeel.curation.jury.items import Item
from guardkeel.curation.jury.jurors import ABSENT, Juror
from guardkeel.engines.parts import judge, parts
from guardkeel.errors import GuardkeelError
from guardkeel.guards.base import Verdict
from guardkeel.guards.remote import RemoteGuard
from guardkeel.guards.remote.client import Client, Failed, Session


def verdicts(juror: Juror, items: Sequence[Item], cache: VoteCache) -> dict[str, Verdict]:
    """What a juror has said of some items, by key, without asking; a recorded file knows rows, not texts."""
    if juror.kind == "recorded":
        absent = Verdict(None, ABSENT)
        said = juror.recorded
        return {i.key: said.get((i.judgement.id.rpartition("#")[0], i.judgement.side), absent) for i in items}
    found = cache.get(juror.identity, list(dict.fromkeys(i.key for i in items)))
    juror.threshold = cache.threshold(juror.identity, juror.threshold)
    return found


def ask(
    jurors: Sequence[Juror],
    items: Sequence[Item],
    cache: VoteCache,
    meter: Meter,
    *,
    watch: Callable[[Juror, int], None] = lambda juror, done: None,
) -> dict[tuple[str, str], Verdict]:
    """Ask jurors for what is missing: servers all at once, then each guard whose weights are here.

    Args:
        jurors: the jurors; recorded ones have said what they have to say.
        items: equal ones are asked about once.
        cache: where votes are kept.
        meter: adds up what is spent, and stops at the budget.
        watch: called with a juror and the number of its new answers.

    Returns:
        What servers did not answer after all tries, by juror and item key: abstentions that are not kept.

    Raises:
        ConfigError, RunError: a server can be asked nothing (more), or the budget is spent; answers are kept.
    """
    servers: list[_Server] = []
    local: list[tuple[Juror, list[Item]]] = []
    for juror in jurors:
        if juror.kind == "recorded":
            continue
        known = verdicts(juror, items, cache)
        missing = list({i.key: i for i in items if i.key not in known}.values())
        if not missing:
            continue
        guard = juror.guard()
        cache.remember(juror.identity, juror.threshold)
        if juror.kind == "server" and isinstance(guard, RemoteGuard):
            servers.append(_Server(juror, guard, missing, cache, meter, watch))
        else:
            local.append((juror, missing))
    if servers:
        run_to_end(_together(servers))
    for juror, missing in local:
        _local(juror, missing, cache, watch)
    return {(s.juror.name, key): v for s in servers for key, v in s.unanswered.items()}


def _local(juror: Juror, missing: list[Item], cache: VoteCache, watch: Callable[[Juror, int], None]) -> None:
    done = 0
    for batch in judge(juror.guard(), parts([i.judgement for i in missing])):
        pairs = zip(batch.indices, batch.verdicts, strict=True)
        cache.put(juror.identity, [(missing[i].key, Kept(v)) for i, v in pairs])
        done += len(batch.indices)
        watch(juror, done)


async def _together(servers: Sequence[_Server]) -> None:
    """Where one has to stop, the others still take in what is on its way, and then stop too."""
    stopped = await asyncio.gather(*(s.run(servers) for s in servers))
    error = next((e for e in stopped if e is not None), None)
    if error is not None:
        raise error


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run to its end, also where an event loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


class Metered(Session):
    """A session that remembers what one question took."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.bytes, self.input, self.output, self.failures = 0, 0, 0, 0
        self.counted = True

    async def ask(self, body: dict[str, Any]) -> Any:
        """See Session; counts bytes, tokens and failures."""
        try:
            answer = await self._inner.ask(body)
        except Failed:
            self.failures += 1
            raise
        self.bytes += question_bytes(body)
        usage = answer.get("usage") if isinstance(answer, dict) else None
        counts = [
            usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")
        ]
        self.counted &= isinstance(counts[0], int)
        self.input += counts[0] if isinstance(counts[0], int) else 0
        self.output += counts[1] if isinstance(counts[1], int) else 0
        return answer

    def succeeded(self) -> None:
        """See Session."""
        self._inner.succeeded()

    def failed(self, failure: Failed) -> None:
        """See Session."""
        self._inner.failed(failure)


class _Server:
    """One server's questions in one round."""

    def __init__(
        self,
        juror: Juror,
        guard: RemoteGuard,
        missing: list[Item],
        cache: VoteCache,
        meter: Meter,
        watch: Callable[[Juror, int], None],
    ) -> None:
        self.juror, self._guard, self._cache, self._meter, self._watch = juror, guard, cache, meter, watch
        size = guard.config.inputs
        self._requests = iter([missing[at : at + size] for at in range(0, len(missing), size)])
        self.stop: GuardkeelError | None = None
        self.unanswered: dict[str, Verdict] = {}
        self._done = 0

    async def run(self, all: Sequence[_Server]) -> GuardkeelError | None:
        """Ask, and say why it had to stop, if it had to."""
        config = self._guard.config
        key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
        async with Client(config, key).session() as session:
            await asyncio.gather(*(self._work(session, all) for _ in range(config.concurrency)))
        return self.stop

    async def _work(self, session: Session, all: Sequence[_Server]) -> None:
        for some in self._requests:
            if any(s.stop is not None for s in all):
                return
            try:
                await self._one(session, some)
            except GuardkeelError as e:
                self.stop = self.stop or e
                return

    async def _one(self, session: Session, some: list[Item]) -> None:
        metered = Metered(session)
        begun = time.monotonic()
        found = await self._guard.judge(metered, [i.judgement for i in some])
        share, counted = len(some), metered.counted and metered.bytes > 0
        tokens = (metered.input // share, metered.output // share) if counted else (None, None)
        seconds = (time.monotonic() - begun) / share
        kept: list[tuple[str, Kept]] = []
        for item, verdict in zip(some, found, strict=True):
            if verdict.unsafe is not None or not metered.failures:
                kept.append((item.key, Kept(verdict, metered.bytes // share, tokens[0], tokens[1], seconds)))
            else:
                self.unanswered[item.key] = verdict
        self._cache.put(self.juror.identity, kept)
        self._done += len(some)
        self._watch(self.juror, self._done)
        self._meter.add(self.juror, metered.bytes, metered.input if counted else None, metered.output)
