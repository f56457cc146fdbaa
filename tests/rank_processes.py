"""Fine-tunes in several processes, as `torchrun` would start them, one configuration after another in one start."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from tune_processes import _context as context


def start(runs: dict[str, dict[str, Any]], home: Path, *, kill: dict[str, int] | None = None) -> list[int]:
    """Run these configurations in two processes, in home/NAME; gives the processes' exit codes.

    In the run and after the step that `kill` names the second process dies by SIGKILL. What each process knew of every
    step, and came to, is in home/RANK.json by the run's name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [context.Process(target=_run, args=(rank, port, runs, home, kill or {})) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=300)
    hanging = [child for child in children if child.is_alive()]
    for child in hanging:
        child.kill()
    if hanging:
        raise AssertionError(f"{len(hanging)} of 2 processes did not end")
    return [child.exitcode or 0 for child in children]


def known(home: Path) -> list[dict[str, Any]]:
    """What the processes knew, by rank."""
    return [json.loads((home / f"{rank}.json").read_text()) for rank in range(2)]


def _run(rank: int, port: int, runs: dict[str, dict[str, Any]], home: Path, kill: dict[str, int]) -> None:
    gc.freeze()  # see small_tunes.settle
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"}
    import torch

    from guardkeel.errors import GuardkeelError
    from guardkeel.tuning.config import read_config
    from guardkeel.tuning.run import run
    from guardkeel.tuning.trainer import GuardTrainer

    torch.set_num_threads(1)
    seen: dict[str, Any] = {}
    facts = GuardTrainer.facts
    for name, config in runs.items():
        steps: list[dict[str, float]] = []
        seen[name] = {"steps": steps}

        def told(
            trainer: Any, steps: list[dict[str, float]] = steps, last: int | None = kill.get(name)
        ) -> Any:
            steps.append(facts(trainer))
            if rank == 1 and len(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return steps[-1]

        GuardTrainer.facts = told  # type: ignore[method-assign]
        began = time.perf_counter()
        try:
            results = run(read_config(None, config), home / name)
            seen[name]["results"] = results.model_dump(mode="json")
        except GuardkeelError as e:
            seen[name]["error"] = str(e)
        seen[name]["seconds"] = time.perf_counter() - began
        (home / f"{rank}.json").write_text(json.dumps(seen))
