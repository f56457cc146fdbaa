"""The Hugging Face Trainer, taught to teach guards: shared policy prefix, regulariser beside the task, exact resume.

Data order, schedule and draws of probes are functions of the seed and the step, so a resumed run sees what it would
have seen. AdamW without weight decay, linear warm-up, then constant or cosine to a tenth.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from guardkeel.errors import ConfigError
from guardkeel.guards.prefix import KeyValues
from guardkeel.models.quiet import quiet
from guardkeel.tuning.keeper import Keeper, not_finite
from guardkeel.tuning.learner import Learner, training
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.order import batches
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.regularisers.base import Gradients, Regulariser


class GuardTrainer(Trainer):  # type: ignore[misc]
    """Trains a guard on lessons with a regulariser.

    Args:
        model: the model with its trainable weights (LoRA, DoRA or all).
        learner: of the guard's kind.
        lessons: what is to be learned.
        regulariser: `Regulariser()` for none.
        probes: guard data, for every regulariser but none.
        args: TrainingArguments; see `arguments`.
        schedule: learning-rate factor at each optimiser step.
        callbacks: more callbacks.
    """

    lr_scheduler: Any

    def __init__(
        self,
        model: Any,
        learner: Learner,
        lessons: Sequence[Lesson],
        *,
        args: TrainingArguments,
        regulariser: Regulariser | None = None,
        probes: GuardProbes | None = None,
        schedule: Callable[[int], float] = lambda step: 1.0,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.learner, self.probes = learner, probes
        self.regulariser = regulariser or Regulariser()
        self.keeper = Keeper(self.regulariser, probes, fused=True)
        self._schedule = schedule
        self._losses: deque[float] = deque(maxlen=args.gradient_accumulation_steps)
        super().__init__(
            model,
            args,
            train_dataset=list(lessons),
            data_collator=learner.collate,
            callbacks=[self.keeper, *callbacks],
        )
        self.model_accepts_loss_kwargs = (
            False  # the loss is a mean: the Trainer divides it by the accumulation
        )
        from transformers.trainer_callback import PrinterCallback

        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        """All batches of the run in one pass, so that a resumed run skips what it has seen."""
        args = self.args
        lengths = [len(lesson.prompt_ids) + len(lesson.answer_ids) for lesson in self.train_dataset]
        count = args.max_steps * args.gradient_accumulation_steps
        order = batches(lengths, size=args.per_device_train_batch_size, count=count, seed=args.data_seed)
        loader = DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """See the module's docstring."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self._schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See Trainer.train; without dropout, denormals flushed and nothing said meanwhile."""
        with training(self.model), quiet():
            return super().train(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward; RunError at the first loss that is not finite."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise not_finite(self.args, self.state, f"loss {loss.item():g}")
        if self.probes is not None and self.accelerator.sync_gradients:
            self._observe(self.probes, self.state.global_step)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The task's loss; once an optimiser step the regulariser's gradient is put beside it.

        The term runs first and its graph is gone before the task's is built, so memory holds the larger of the two.
        It reads a copy of the shared prefix P; the gradient G that it leaves there goes on through the task's
        backward, which gets the surrogate ⟨P, G⟩ of value zero.
        """
        prefix = self.learner.prefix(model) if inputs["shared"] else None
        through = None
        if self.probes is not None and self.accelerator.sync_gradients:
            through = self._add_term(self.probes, prefix)
        task = self.learner.loss(model, inputs, prefix)
        self._losses.append(float(task.detach()))
        return task if through is None else task + (through - through.detach())

    def _add_term(self, probes: GuardProbes, prefix: KeyValues | None) -> Tensor | None:
        """Add the term's gradient to the parameters'; returns what carries it on through the prefix."""
        step, named = self.state.global_step, probes.parameters()
        self._term: Gradients = {}
        whole = [t for pair in prefix or () for t in pair]
        copies = [t.detach().requires_grad_(t.requires_grad) for t in whole]
        with probes.step([(k, v) for k, v in zip(copies[::2], copies[1::2], strict=True)] or None):
            term = self.regulariser.loss(probes, step)
            if term is None:
                return None
            reached = [(t, c) for t, c in zip(whole, copies, strict=True) if c.requires_grad]
            wanted = [*named.values(), *(c for _, c in reached)]
            found = torch.autograd.grad(term, wanted, allow_unused=True)
        self._put(named, found[: len(named)])
        left = zip(reached, found[len(named) :], strict=True)
        carried = [(t.float() * g.float()).sum() for (t, _), g in left if g is not None]
        if not carried:
            return None
        through = torch.stack(carried).sum()
        if self.regulariser.wants(step):  # it is to see the task's gradient alone, so this goes another way
            self._put(
                named,
                torch.autograd.grad(through, list(named.values()), retain_graph=True, allow_unused=True),
            )
            return None
        parts: int = self.current_gradient_accumulation_steps  # by which the Trainer will divide it
        return through * parts

    def _put(self, named: Mapping[str, torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        """Add a gradient of the term to the parameters'."""
        for (name, p), gradient in zip(named.items(), gradients, strict=True):
            if gradient is not None:
                self._term[name] = self._term[name] + gradient if name in self._term else gradient
                p.grad = gradient.clone() if p.grad is None else p.grad + gradient

    def _observe(self, probes: GuardProbes, step: int) -> None:
        """Let the regulariser see the task's gradient, before the sum is clipped."""
        if self.regulariser.wants(step):
            task = {
                name: torch.zeros_like(p) if p.grad is None else p.grad - self._term.get(name, 0)
                for name, p in probes.parameters().items()
            }
            with probes.step():
                self.regulariser.observe(probes, step, task)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See Trainer.log; the regulariser's numbers go with the loss, to every report_to."""
        super().log(logs | self.regulariser.log() if "loss" in logs else logs, start_time)

    def facts(self) -> dict[str, float]:
        """Numbers of the last step for the log."""
        return {
            "loss": sum(self._losses) / len(self._losses),
            "norm": self.keeper.norm,
            "rate": self.args.learning_rate * self._schedule(self.state.global_step - 1),
        } | self.regulariser.log()

    def roll_back(self, step: int) -> None:
        """Put the weights of a checkpoint back into the model."""
        self._load_from_checkpoint(str(Path(self.args.output_dir) / f"checkpoint-{step}"))
        self.state.global_step = step


def check_reports(names: Sequence[str]) -> None:
    """ConfigError for a tracker that the Trainer does not know or that is not installed."""
    from transformers.integrations import get_reporting_integration_callbacks

    for name in names:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (RuntimeError, ValueError, ImportError) as e:
            raise ConfigError(f"report_to names {name!r}: {e}", remedy="install it, or leave it out") from e


def arguments(
    folder: Path,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    accumulation: int = 1,
    seed: int = 0,
    max_norm: float = 1.0,
    report_to: Sequence[str] = (),
    cpu: bool = True,
    checkpointing: bool = False,
    run_name: str | None = None,
) -> TrainingArguments:
    """TrainingArguments for GuardTrainer: checkpoints are asked for by callbacks, bars are the command's own."""
    os.environ.setdefault("WANDB_SILENT", "true")
    # Newer transformers warn of these names; before 5, adapters had no gradient without the second one.
    names = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    recomputing: dict[str, Any] = names if checkpointing else {}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=max_norm,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(report_to) or "none",
        run_name=run_name,
        seed=seed,
        data_seed=seed,
        use_cpu=cpu,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **recomputing,
    )
