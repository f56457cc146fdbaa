"""Any regulariser in any Hugging Face Trainer: a callback, ten lines of anyone's training script.

    probes = guard_probes(guard, targets)
    trainer = Trainer(guard.model, args, train_dataset=data, callbacks=[Keeper(build("fwssr"), probes)])

Before each optimiser step the callback finds the task's gradient in `.grad`, adds the term's own, and lets the
regulariser change the sum. The term's gradient is not part of the Trainer's clipping, which has happened by then, so
the sum is clipped once more. `GuardTrainer` shares the policy prefix between task and term instead, which costs less;
the sum it steps along is the same.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from guardkeel.errors import ConfigError, RunError
from guardkeel.records import atomic_writer, write_json
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.ranks import ALONE
from guardkeel.tuning.regularisers.base import Gradients, Regulariser
from guardkeel.tuning.regularisers.factors import whole
from guardkeel.tuning.regularisers.several import Several

FIXED, MOVING, DONE = "regulariser.safetensors", "regulariser-state.safetensors", "complete.json"


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Puts a regulariser into a Trainer, keeps its state with the checkpoints, and stops at what is not finite."""

    def __init__(self, regulariser: Regulariser, probes: GuardProbes | None, *, fused: bool = False) -> None:
        if probes is None and acts(regulariser):
            raise ConfigError(
                f"method {regulariser.name!r} needs guard data", remedy="give some with --guard-data"
            )
        self.regulariser, self.probes, self.fused = regulariser, probes, fused
        self.ranks = probes.ranks if probes is not None else ALONE
        if probes is not None:
            probes.looks = regulariser.looks
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
        if self.probes is None:
            return
        home = Path(args.output_dir)
        if state.global_step:
            self.regulariser.fixed = _load(home / FIXED)
            self.regulariser.moving = _load(home / f"checkpoint-{state.global_step}" / MOVING)
        else:
            with _evaluating(self.probes.model):
                self.regulariser.prepare(self.probes)
            self.regulariser.fixed = self.ranks.same_tensors(self.regulariser.fixed)
            if args.should_save:
                _save(home / FIXED, self.regulariser.fixed)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the term's gradient (unless fused), let the regulariser change the sum, refuse what is not finite."""
        named = self._named(kwargs["model"])
        if self.probes is not None:
            gradients = {}
            for name, p in named.items():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                gradients[name] = p.grad
            with self.probes.step():
                if not self.fused:
                    self._add(state.global_step, gradients)
                self.regulariser.edit(self.probes, state.global_step, gradients)
            edits = any(type(part).edit is not Regulariser.edit for part in parts(self.regulariser))
            if args.max_grad_norm > 0 and (edits or not self.fused):  # that has not been clipped yet
                torch.nn.utils.clip_grad_norm_(list(named.values()), args.max_grad_norm)
        # Nothing is above infinity: this measures, and changes no bit.
        self.norm = float(whole(torch.nn.utils.clip_grad_norm_(list(named.values()), math.inf)))
        if not math.isfinite(self.norm):
            raise not_finite(args, state, f"gradient norm {self.norm:g}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state beside the checkpoint, then the mark that it is whole."""
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _save(folder / MOVING, self.regulariser.moving)
            write_json(folder / DONE, {"step": state.global_step})
            if not self.fused:
                return  # in others' Trainers save_total_limit says which are kept
            for old in folder.parent.glob("checkpoint-*"):
                if old.name not in (folder.name, f"checkpoint-{self.keep()}"):
                    shutil.rmtree(old)

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


def parts(regulariser: Regulariser) -> list[Regulariser]:
    """The parts of a joined method, or the one that it is."""
    return list(regulariser.parts.values()) if isinstance(regulariser, Several) else [regulariser]


def acts(regulariser: Regulariser) -> bool:
    """Whether a method does anything while training."""
    return any(type(p) is not Regulariser and not isinstance(p, PostHoc) for p in parts(regulariser))


def not_finite(args: Any, state: Any, what: str) -> RunError:
    """The error at the first number that is not finite; the optimiser step that would spread it is not made."""
    kept = last_checkpoint(Path(args.output_dir))
    where = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet; lower --every"
    return RunError(
        f"step {state.global_step + 1}: {what}; {where}",
        remedy="lower the learning rate or the method's strength, or train in float32",
    )


def last_checkpoint(home: Path) -> Path | None:
    """The latest checkpoint of a run that was written whole."""
    whole = [p for p in home.glob("checkpoint-*") if (p / DONE).is_file()]
    return max(whole, key=step_of, default=None)


def resumed(home: Path) -> str | None:
    """The checkpoint that a run goes on from; those that were not written whole are dropped."""
    last = last_checkpoint(home)
    for broken in set(home.glob("checkpoint-*")) - {last}:
        shutil.rmtree(broken)
    return str(last) if last else None


def ended(home: Path, *, keep: bool = False) -> None:
    """Drop what only an unfinished run needs; with `keep` its checkpoints stay."""
    for leftover in () if keep else home.glob("checkpoint-*"):
        shutil.rmtree(leftover)
    (home / "plan.json").unlink(missing_ok=True)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


class _evaluating:
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

    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors
