"""Fine-tunes in processes of their own, which are killed by SIGKILL at a chosen moment."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "guardkeel.tuning.run",
        "peft",
        "transformers.trainer",
        "sklearn.metrics",
        "datasketch",
        "statsmodels.api",
    ]
)


def kill(config: dict[str, Any], folder: Path, moment: str, step: int) -> None:
    """Run a fine-tune in a new process that dies at a moment of a step; see `_until`."""
    child = _context.Process(target=_until, args=(config, folder, moment, step))
    child.start()
    child.join(timeout=300)
    if child.exitcode != -signal.SIGKILL:
        child.kill()
        raise AssertionError(
            f"the process was to be killed at {moment} of step {step}, but ended with {child.exitcode}"
        )


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # no handler, no finally, no flush


def _until(config: dict[str, Any], folder: Path, moment: str, step: int) -> None:
    """Moments: "step" is done; its "checkpoint" is half written; the monitor's "point" of it is written and its
    checkpoint is not begun; at the "end" all is trained and nothing recorded; the "return" to an earlier checkpoint.
    """
    gc.freeze()  # see small_tunes.settle
    import torch

    from guardkeel.tuning import keeper, run
    from guardkeel.tuning.config import read_config
    from guardkeel.tuning.trainer import GuardTrainer

    torch.set_num_threads(1)
    write = keeper.write_json

    def marked(path: Path, value: Any) -> None:
        if moment == "checkpoint" and value == {"step": step}:
            _die()
        write(path, value)

    keeper.write_json = marked
    if moment == "end":
        run.write_record = _die
    if moment == "return":
        GuardTrainer.roll_back = _die
    run.run(
        read_config(None, config),
        folder,
        watch=lambda what, done, total: (
            _die() if moment == "step" and what.startswith("fine-tune") and done == step else None
        ),
        on_point=lambda point, reference: _die() if moment == "point" and point.step == step else None,
    )
