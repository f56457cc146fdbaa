"""One thread that writes for the whole process: what waits is one transaction, so many share a commit.

Feedback is answered when its transaction has been committed, or with an error; it is never answered before. Verdicts
go in behind their answers. While the database is away they wait, up to a number, and what does not fit is counted.
Within a process a verdict is always written before feedback on it that comes later: the queue has one order.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guardkeel.moderation.store import Ack, Row, Store, StoreDownError

log = logging.getLogger("guardkeel.serve")
MOST = 1024
"""Requests in one transaction, and verdicts behind their answers."""
LINGER = 0.05
"""Seconds that verdicts may wait for company."""


@dataclass(slots=True)
class _Job:
    verdicts: Sequence[Row]
    feedback: Sequence[Row]
    done: concurrent.futures.Future[list[Ack]]


class Writer:
    """See above.

    Args:
        store: written to by this thread alone.
        buffer: verdicts that wait while the database is away.
        pause: seconds between two tries then.
        committed: called in the thread after each commit that has new feedback.
    """

    def __init__(
        self,
        store: Store,
        *,
        buffer: int = 10_000,
        pause: float = 0.5,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self._store, self._buffer, self._pause, self._committed = store, buffer, pause, committed
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._behind: collections.deque[Row] = collections.deque()
        self._thread = threading.Thread(target=self._work, name="store writer", daemon=True)
        self.lost = 0
        """Verdicts that did not fit."""
        self.up = True
        """Whether the last transaction went through."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self, seconds: float) -> bool:
        """Write what waits; False where that did not end in time."""
        if self._thread.ident is None:  # it was never started
            return True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, seconds)
        return not self._thread.is_alive()

    def log(self, rows: Sequence[Row]) -> None:
        """Write verdicts soon; the thread is not woken for them."""
        room = max(0, self._buffer - len(self._behind))
        self._behind.extend(rows[:room])
        self.lost += len(rows[room:])

    async def commit(self, rows: Sequence[Row], given: Sequence[Row] = ()) -> list[Ack]:
        """Write, and return after the commit.

        Raises:
            StoreDownError: the database is away; write the same again.
        """
        done: concurrent.futures.Future[list[Ack]] = concurrent.futures.Future()
        self._queue.put(_Job(rows, given, done))
        return await asyncio.wrap_future(done)

    @property
    def waiting(self) -> int:
        """Verdicts and requests that are not written yet."""
        return len(self._behind) + self._queue.qsize()

    def _work(self) -> None:
        ended = False
        while not ended:
            jobs, ended = self._gather()
            # Jobs first, then verdicts: all that were there before a job are in its transaction.
            behind = self._take()
            try:
                self._write(behind, jobs)
                while ended and self.up and (behind := self._take()):
                    self._write(behind, ())
            except Exception:  # a fault of ours must not end the log
                log.exception("the log could not be written")
                for job in jobs:
                    _answer(job, StoreDownError("the log could not be written", remedy="see the log"))
        if self._behind:
            self.lost += len(self._behind)
            log.error("%d verdicts are not in the log: the database is away", len(self._behind))

    def _gather(self) -> tuple[list[_Job], bool]:
        """Requests that wait, and whether there will be no more; none after a while without any."""
        jobs: list[_Job] = []
        while len(jobs) < MOST:
            try:
                wait = LINGER if self.up else self._pause
                job = self._queue.get_nowait() if jobs else self._queue.get(timeout=wait)
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _take(self) -> list[Row]:
        return [self._behind.popleft() for _ in range(len(self._behind))]

    def _write(self, behind: Sequence[Row], jobs: Sequence[_Job]) -> None:
        if not behind and not jobs:
            return
        rows = [*behind, *(row for job in jobs for row in job.verdicts)]
        given = [one for job in jobs for one in job.feedback]
        try:
            acks = self._store.write(rows, given)
        except StoreDownError as e:
            if e.passing or len(behind) + len(jobs) == 1:
                self._failed(behind, jobs, e)
            else:  # one of them is to blame
                for row in behind:
                    self._write([row], ())
                for job in jobs:
                    self._write((), [job])
            return
        if not self.up:
            log.warning("the log is written again")
        self.up = True
        if any(a.status == "new" for a in acks) and self._committed is not None:
            self._committed()
        for job in jobs:
            own, acks = acks[: len(job.feedback)], acks[len(job.feedback) :]
            _answer(job, own)

    def _failed(self, behind: Sequence[Row], jobs: Sequence[_Job], error: StoreDownError) -> None:
        if self.up or not error.passing:
            log.error("the log cannot be written: %s", error.problem)
        if error.passing:
            self.up = False  # before anyone is told
            self._behind.extendleft(reversed(behind))
        else:
            self.lost += len(behind)
        for job in jobs:
            _answer(job, error)


def _answer(job: _Job, found: list[Ack] | Exception) -> None:
    if job.done.done() or not job.done.set_running_or_notify_cancel():
        return
    if isinstance(found, Exception):
        job.done.set_exception(found)
    else:
        job.done.set_result(found)
