"""The guard's trainer for a model that sees: two learning rates, and checkpoints of what is trained alone.

Weights are put back in place, so that whoever shares them (the language tower, the features that are kept) notices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from guardkeel.records import atomic_writer
from guardkeel.tuning.trainer import GuardTrainer

WEIGHTS = "trained.safetensors"


class SeeingTrainer(GuardTrainer):
    """Trains the vision part at `vision_rate`, the rest at the rate of its arguments."""

    optimizer: Any

    def __init__(self, *args: Any, vision: set[str], vision_rate: float, **options: Any) -> None:
        self._vision, self._vision_rate = vision, vision_rate
        super().__init__(*args, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW without weight decay, in two groups; the schedule scales both rates."""
        if self.optimizer is None:
            named = [(n, p) for n, p in sorted(self.model.named_parameters()) if p.requires_grad]
            groups = [
                {"params": [p for n, p in named if n in self._vision], "lr": self._vision_rate},
                {"params": [p for n, p in named if n not in self._vision], "lr": self.args.learning_rate},
            ]
            self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        return self.optimizer  # type: ignore[no-any-return]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save

        trained = {
            n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad
        }
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_writer(folder / WEIGHTS) as out:
            out.write(save(trained))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        found = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in found.items():
                named[name].copy_(value)


class Looking(TrainerCallback):  # type: ignore[misc]
    """Calls `look(step)` before the first step and at every checkpoint, also one that a kill left without its look."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The look at the step that training begins or goes on from."""
        self.look(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A look at what has just been saved; it is last of the callbacks, so the checkpoint is whole."""
        self.look(state.global_step)
