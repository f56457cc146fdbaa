"""Tasks shared out to worker processes, each of which prepares itself once and then does one task after the other.

Workers are started anew (spawn), so they inherit no locks and no half-made state, and a device may be used in each.
A worker ends with the process that started it, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from guardkeel.errors import RunError

START = "spawn"

Task = TypeVar("Task")
Result = TypeVar("Result")


class LostWorkerError(RunError):
    """A worker process ended without a word; what was finished before is good."""


def shared_out(
    prepare: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], processes: int
) -> Iterator[Result]:
    """The results of all tasks, as they are finished.

    Args:
        prepare: makes what does the tasks, once in every worker; it is pickled, as tasks and results are.
        tasks: begun in this order, each by whichever worker is free.
        processes: most workers.

    Raises:
        LostWorkerError: a worker was killed or could not start. The others are ended.
        Exception: what a task raised first. Tasks that have not begun are dropped; those under way are waited for.
    """
    context: Any = multiprocessing.get_context(START)
    pool = ProcessPoolExecutor(min(processes, len(tasks)), context, _begin, (prepare,))
    try:
        for future in as_completed([pool.submit(_do, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as e:
        raise LostWorkerError(
            "a worker process was killed, or could not start",
            remedy="repeat the command, it goes on from here; fewer processes take less memory. A script that calls "
            "guardkeel must do so under `if __name__ == '__main__':`",
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


_prepare: Callable[[], Callable[[Any], Any]] | None = None
_work: Callable[[Any], Any] | None = None


def _begin(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """In a worker, before its first task; errors of `prepare` are the first task's, so that they are handed back."""
    global _prepare  # noqa: PLW0603 - a worker process does the work of one pool
    _prepare = prepare
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do(task: Any) -> Any:
    global _work  # noqa: PLW0603
    if _work is None:
        assert _prepare is not None
        _work = _prepare()
    return _work(task)


def _end_with_parent() -> None:
    """A parent that was killed cannot tell its workers, which would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
