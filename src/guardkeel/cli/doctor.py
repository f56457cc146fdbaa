"""guardkeel doctor: is this machine ready, and if not, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from guardkeel.cli.terminal import emit, hush, literal, say

Finding = tuple[str, bool, str, str]  # what, whether it is well, what was found, remedy


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False) -> None:
    """Check Python, libraries, memory, disk, cache and the embedded guard; say what to do about each problem.

    Exit code 0 when all is well, 2 when something must be mended.
    """
    hush()
    found: list[Finding] = []
    for check in (_python, _torch, _memory, _cache, _pip, _guard):
        try:
            found += check()
        except Exception as e:  # a check that breaks is a finding, never the end of the others
            found.append((check.__name__.strip("_"), False, f"{type(e).__name__}: {e}", "see the message"))
    if as_json:
        emit([{"check": w, "ok": ok, "found": f, "remedy": "" if ok else r} for w, ok, f, r in found])
    else:
        for what, ok, saw, remedy in found:
            say(
                f"[{'green' if ok else 'red'}]{'✓' if ok else '✗'}[/] {what:10} {literal(saw)}"
                + ("" if ok else f"\n             {literal(remedy)}")
            )
    if not all(ok for _, ok, _, _ in found):
        raise typer.Exit(2)


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield "python", ok, f"{platform.python_version()} on {platform.platform()}", "use Python 3.11 or newer"


def _torch() -> Iterator[Finding]:
    import peft
    import torch
    import transformers

    from guardkeel.models.devices import pick_device, pick_dtype

    device = pick_device("auto")
    yield (
        "torch",
        True,
        f"{torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}",
        "",
    )
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield (
        "compute",
        threads <= cores,
        f"{device}, {pick_dtype('auto', device)}, {threads} threads on {cores} cores",
        (f"more threads than cores crawl: set OMP_NUM_THREADS={cores}"),
    )


def _memory() -> Iterator[Finding]:
    from guardkeel.models.devices import free_memory

    free = free_memory("cpu")
    yield (
        "memory",
        free > 2e9,
        f"{free / 1e9:.1f} GB free",
        "keel-135m needs about 2 GB; close other programs",
    )


def _cache() -> Iterator[Finding]:
    from guardkeel.resources import cache_dir, is_offline

    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    state = "offline" if is_offline(None) else "online"
    yield (
        "cache",
        free > 1e9,
        f"{folder}, {free / 1e9:.0f} GB free, {state}",
        "free disk space or set GUARDKEEL_CACHE",
    )


def _pip() -> Iterator[Finding]:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    yield (
        "pip",
        done.returncode == 0,
        done.stdout.strip().split(" from ")[0] or done.stderr.strip()[-80:],
        "python -m ensurepip",
    )


def _guard() -> Iterator[Finding]:
    from guardkeel.conversation import Conversation
    from guardkeel.errors import OfflineError
    from guardkeel.guards.base import Judgement
    from guardkeel.guards.load import load_checkpoint

    try:
        guard = load_checkpoint(offline=True)
    except OfflineError:
        yield "keel-135m", True, "not in the cache yet; it is taken through pip on first use", ""
        return
    verdict = guard.score([Judgement("hello", Conversation.of("Hello, how are you?"), "prompt")])[0]
    ok = verdict.unsafe is not None and verdict.unsafe < guard.threshold
    yield (
        "keel-135m",
        ok,
        f"answers (P(unsafe) of a greeting: {verdict.unsafe})",
        "delete its folder in the cache and run again",
    )
