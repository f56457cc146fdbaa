"""Dynamic batching: one thread for each model in this process, which takes what is waiting as one batch.

While a batch runs, questions gather; the next batch takes them in their order, up to a number of items and a rough
count of tokens. A batch waits for company only where the one before had some: a lone client waits for nobody.
Questions that nobody waits for any more are skipped. What raises for a batch is asked again one by one, so that
one bad item does not cost the others their verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkeel.guards.base import Guard, Judgement, Verdict


class ExpertError(Exception):
    """An expert gave no verdict; the message is a reason that quotes nothing of what it was asked or said."""


@dataclass(slots=True)
class _Question:
    item: Judgement
    future: asyncio.Future[Verdict]
    loop: asyncio.AbstractEventLoop
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = max(1, len(self.item.conversation.text) // 4)

    @property
    def wanted(self) -> bool:
        return not self.future.done()

    def answer(self, verdict: Verdict | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self.loop.call_soon_threadsafe(_settle, self.future, verdict)


class BatchWorker:
    """Asks one guard, in a thread of its own.

    Args:
        guard: used by this thread alone.
        most: items in a batch.
        budget: tokens in a batch; one item may have more.
        wait: most seconds for company.
        retries: further tries where the guard raises.
        prepare: called first in the thread (the number of torch's threads is set there).
        seen: told the size of each batch.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        most: int = 32,
        budget: int = 16384,
        wait: float = 0.002,
        retries: int = 1,
        prepare: Callable[[], None] | None = None,
        seen: Callable[[int], None] | None = None,
    ) -> None:
        self.guard = guard
        self._most, self._budget, self._wait, self._retries = most, budget, wait, retries
        self._prepare, self._seen = prepare, seen
        self._queue: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._kept: _Question | None = None  # did not fit into the batch before
        self._company = False
        self._thread = threading.Thread(target=self._work, name=f"expert {guard.name}", daemon=True)

    async def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self, seconds: float) -> bool:
        """Let it finish what is waiting; False where it is still busy after so long."""
        if self._thread.ident is None:  # it was never started
            return True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, seconds)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Questions that are in no batch yet."""
        return self._queue.qsize() + (self._kept is not None)

    async def ask(self, item: Judgement) -> Verdict:
        """The guard's verdict; may be cancelled.

        Raises:
            ExpertError: the guard raised, or what it gave is no verdict.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Verdict] = loop.create_future()
        self._queue.put(_Question(item, future, loop))
        return await future

    def _work(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while True:
            batch, ended = self._gather()
            if batch:
                self._company = len(batch) > 1
                if self._seen is not None:
                    self._seen(len(batch))
                self._run(batch)
            if ended:
                return

    def _gather(self) -> tuple[list[_Question], bool]:
        """The next batch, and whether it is the last."""
        first, self._kept = self._kept, None
        if first is None:
            first = self._queue.get()
        if first is None:
            return [], True
        batch, tokens = [first], first.tokens
        until = time.monotonic() + (self._wait if self._company else 0.0)
        while len(batch) < self._most and tokens < self._budget:
            left = until - time.monotonic()
            try:
                one = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if one is None:
                return batch, True
            if tokens + one.tokens > self._budget:
                self._kept = one
                break
            batch.append(one)
            tokens += one.tokens
        return batch, False

    def _run(self, batch: Sequence[_Question]) -> None:
        batch = [q for q in batch if q.wanted]
        if not batch:
            return
        try:
            self._score(batch)
        except Exception as e:
            open_ones = [q for q in batch if q.wanted]
            if len(batch) == 1 and not self._retries:
                batch[0].answer(ExpertError(_raised(e)))
                return
            for question in open_ones:
                self._alone(question, self._retries if len(batch) == 1 else self._retries + 1)

    def _alone(self, question: _Question, tries: int) -> None:
        reason = "was not asked"
        for _ in range(max(1, tries)):
            if not question.wanted:
                return
            try:
                self._score([question])
                return
            except Exception as e:
                reason = _raised(e)
        question.answer(ExpertError(reason))

    def _score(self, batch: Sequence[_Question]) -> None:
        """Answer all questions of a batch, as soon as each part of it is known."""
        answered: set[int] = set()
        for part in self.guard.batches([q.item for q in batch]):
            for index, verdict in zip(part.indices, part.verdicts, strict=True):
                answered.add(index)
                batch[index].answer(sound(verdict))
        for index in set(range(len(batch))) - answered:
            batch[index].answer(ExpertError("gave no verdict"))


def sound(verdict: Any) -> Verdict | ExpertError:
    """A verdict as it is, and garbage as an error."""
    if not isinstance(verdict, Verdict):
        return ExpertError("gave something that is no verdict")
    p = verdict.unsafe
    if p is not None and not (isinstance(p, int | float) and 0.0 <= p <= 1.0):  # also NaN
        return ExpertError("gave a number that is no probability")
    return verdict


def _raised(error: Exception) -> str:
    """Which exception it was; never its message, which may quote what was judged."""
    return f"raised {type(error).__name__}"


def _settle(future: asyncio.Future[Verdict], found: Verdict | BaseException) -> None:
    if future.done():
        return
    if isinstance(found, BaseException):
        future.set_exception(found)
    else:
        future.set_result(found)
