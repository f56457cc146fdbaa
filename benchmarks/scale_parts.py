"""What the parts of scale.py share: a run in a process of its own, and tables in Markdown."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


def alone(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print it."""
    print(f"\n{title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


class Timed:
    """Seconds of a block."""

    seconds = 0.0


@contextmanager
def timed():
    """Time a block."""
    found, started = Timed(), time.perf_counter()
    yield found
    found.seconds = time.perf_counter() - started


def megabytes(count: float) -> str:
    """In MB."""
    return f"{count / 1e6:,.0f} MB"
