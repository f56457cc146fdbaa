"""What every step did, a JSON line each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from guardkeel.records import atomic_writer

LOG = "log.jsonl"


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Writes log.jsonl. A resumed run drops the lines of steps that it makes again. Asks for a checkpoint
    every `every` steps and at the end. Of several processes one `writes`."""

    def __init__(
        self,
        folder: Path,
        facts: Callable[[], dict[str, float]],
        on_step: Callable[[int], None],
        *,
        every: int,
        writes: bool = True,
    ) -> None:
        self.path, self.facts, self.on_step, self.every = folder / LOG, facts, on_step, every
        self.writes = writes
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step that the run resumes from."""
        kept = [row for row in read_log(self.path.parent) if row["step"] <= state.global_step]
        self.seconds = [row["seconds"] for row in kept]
        if self.writes:
            with atomic_writer(self.path) as out:
                out.writelines(json.dumps(row).encode() + b"\n" for row in kept)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, before anyone looks at the guard."""
        self.seconds.append(time.perf_counter() - self._started)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the line of this step."""
        row = {"step": state.global_step, "seconds": self.seconds[-1]} | self.facts()
        if self.writes:
            with self.path.open("a") as out:
                out.write(json.dumps(row) + "\n")
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            control.should_save = True
        self.on_step(state.global_step)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line that a kill cut short is left out."""
    try:
        lines = (folder / LOG).read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
