"""Any regulariser in any Hugging Face Trainer: a callback, ten lines of anyone's training script.

    probes = guard_probes(guard, model, examples)
    trainer = Trainer(model, args, train_dataset=data, callbacks=[Keeper(build("fwssr"), probes)])

Before each optimiser step the callback finds the task's gradient in `.grad`, adds the term's own, and lets the
regulariser change the sum. The term's gradient is not part of the Trainer's clipping, which has happened by then, so
the sum is clipped once more. `GuardTrainer` computes task and term in one graph instead, which shares the policy
prefix between them and costs less; the sum it steps along is the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from guardkeel.errors import ConfigError, RunError
from guardkeel.records import atomic_writer, write_json
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.regularisers.base import Gradients, Regulariser

FIXED, MOVING, DONE = "regulariser.safetensors", "regulariser-state.safetensors", "complete.json"


class Keeper(TrainerCallback):
    """Puts a regulariser into a Trainer, keeps its state with the checkpoints, and stops at what is not finite."""

    def __init__(self, regulariser: Regulariser, probes: GuardProbes | None, *, fused: bool = False) -> None:
        if probes is None and type(regulariser) is not Regulariser:
            raise ConfigError(
                f"method {regulariser.name!r} needs guard data", remedy="give some with --guard-data"
            )
        self.regulariser, self.probes, self.fused = regulariser, probes, fused
        self.norm = float("nan")
        """Norm of the last step's gradient as it was applied."""
        self.keep: Callable[[], int] = lambda: 0
        """The step whose checkpoint is needed beside the latest."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the reference, or take up what a checkpoint of the same run holds."""
        if args.fp16:
            raise ConfigError(
                "fp16 training scales gradients, which terms added to them do not know",
                remedy="train in bf16 or float32",
            )
        home = Path(args.output_dir)
        if state.global_step:
            self.regulariser.fixed = _load(home / FIXED)
            self.regulariser.moving = _load(home / f"checkpoint-{state.global_step}" / MOVING)
        elif self.probes is not None:
            with _evaluating(self.probes.model):
                self.regulariser.prepare(self.probes)
            if args.should_save:
                _save(home / FIXED, self.regulariser.fixed)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the term's gradient (unless fused), let the regulariser change the sum, refuse what is not finite."""
        named = self._named(kwargs["model"])
        gradients = {name: p.grad for name, p in named.items()}
        if self.probes is not None:
            for name, p in named.items():
                if p.grad is None:
                    gradients[name] = p.grad = torch.zeros_like(p)
            step = state.global_step
            if not self.fused:
                with self.probes.step():
                    self._add(step, gradients)
                    self.regulariser.edit(self.probes, step, gradients)
                if args.max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(list(named.values()), args.max_grad_norm)
            else:
                with self.probes.step():
                    self.regulariser.edit(self.probes, step, gradients)
        grads = [g for g in gradients.values() if g is not None]
        self.norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if not torch.isfinite(torch.tensor(self.norm)):
            raise not_finite(args, state, f"gradient norm {self.norm:g}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state beside the checkpoint, then the mark that it is whole."""
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _save(folder / MOVING, self.regulariser.moving)
            write_json(folder / DONE, {"step": state.global_step})
            for old in folder.parent.glob("checkpoint-*"):
                if old.name not in (folder.name, f"checkpoint-{self.keep()}"):
                    shutil.rmtree(old)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Add the regulariser's numbers to what the Trainer reports."""
        if logs is not None and "loss" in logs:
            logs.update(self.regulariser.log())

    def _add(self, step: int, gradients: Gradients) -> None:
        assert self.probes is not None
        term = self.regulariser.loss(self.probes, step)
        mine = self.probes.gradients(term) if term is not None else {}
        if self.regulariser.wants(step):
            self.regulariser.observe(self.probes, step, gradients)
        for name, gradient in mine.items():
            gradients[name] += gradient

    def _named(self, model: Any) -> dict[str, torch.nn.Parameter]:
        if self.probes is not None:
            return self.probes.parameters()
        return {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}


def not_finite(args: Any, state: Any, what: str) -> RunError:
    """The error at the first number that is not finite; the optimiser step that would spread it is not made."""
    kept = last_checkpoint(Path(args.output_dir))
    where = (
        f"the last good checkpoint is {kept}"
        if kept
        else "no checkpoint was written yet; lower --checkpoint-every"
    )
    return RunError(
        f"step {state.global_step + 1}: {what}; {where}",
        remedy="lower the learning rate or the method's strength, or train in float32",
    )


def last_checkpoint(home: Path) -> Path | None:
    """The latest checkpoint of a run that was written whole."""
    whole = [p for p in home.glob("checkpoint-*") if (p / DONE).is_file()]
    return max(whole, key=lambda p: int(json.loads((p / DONE).read_bytes())["step"]), default=None)


class _evaluating:  # noqa: N801 - a context manager
    """Dropout off while the reference is looked at."""

    def __init__(self, model: Any) -> None:
        self.model, self.before = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.before)


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    with atomic_writer(path) as out:
        out.write(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
