"""Fuses in processes of their own: killed by SIGKILL after some tensors, or measured for the memory they take."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["guardkeel.fusion.stream", "guardkeel.fusion.methods.registry"])


def kill(folders: list[Path], out: Path, method: str, after: int, **planned: Any) -> None:
    """Fuse (reference, candidate) in a new process that dies when so many more tensors are finished.

    `after` 0 is when the output has been published under no name yet: all is written and nothing is renamed.
    """
    child = _context.Process(target=_until, args=(folders, out, method, after, planned))
    child.start()
    child.join(timeout=120)
    if child.exitcode != -signal.SIGKILL:
        child.kill()
        raise AssertionError(f"the process was to be killed, but ended with {child.exitcode}")


def growth(folders: list[Path], out: Path, method: str, **planned: Any) -> tuple[int, int]:
    """By how many bytes the process grew while it fused, and what the plan had said that it would."""
    ours, theirs = _context.Pipe()
    child = _context.Process(target=_measured, args=(theirs, folders, out, method, planned))
    child.start()
    found = ours.recv() if ours.poll(120) else (-1, -1)
    child.join()
    return found


def fuse(folders: list[Path], out: Path, method: str, planned: dict[str, Any], **options: Any) -> Any:
    """Plan and run in this process."""
    from guardkeel.fusion.methods.registry import methods
    from guardkeel.fusion.plan import make_plan
    from guardkeel.fusion.sources import Sources, open_source
    from guardkeel.fusion.stream import run

    sources = Sources(open_source(folders[0]), tuple(map(open_source, folders[1:])))
    chosen = methods()[method]()
    plan = make_plan(sources, chosen, **planned)
    try:
        return plan, run(plan, chosen, out, **options)
    finally:
        sources.close()


def _until(folders: list[Path], out: Path, method: str, after: int, planned: dict[str, Any]) -> None:
    from guardkeel.fusion import writer

    gc.freeze()
    seen = 0

    def count(what: str, done: int, total: int | None) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            _die()

    if not after:
        writer._sync = _die
    fuse(folders, out, method, planned, progress=count)


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # no handler, no finally, no flush


def _measured(answer: Any, folders: list[Path], out: Path, method: str, planned: dict[str, Any]) -> None:
    import torch

    torch.ones(2).sum()
    before = _memory("VmRSS")
    plan, _ = fuse(folders, out, method, planned)
    answer.send((_memory("VmHWM") - before, plan.tensor_bytes))


def _memory(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024
