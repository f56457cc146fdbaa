"""The Hugging Face Trainer, taught to teach guards: shared policy prefix, regulariser beside the task, exact resume.

Data order, schedule and draws of probes are functions of the seed and the step, so a resumed run sees what it would
have seen. AdamW without weight decay, linear warm-up, then constant or cosine to a tenth.

In several processes (see `ranks`) the model stays what it is: no wrapper is put around it. Where each process holds all
weights, gradients are averaged once, before the step, so that the term's, which is in `.grad` before the task's
backward begins, and what went through the prefix are part of it like anything else. A sharded model averages them in
each backward, so term and task have one each, and share no prefix.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from guardkeel.errors import ConfigError
from guardkeel.guards.prefix import KeyValues
from guardkeel.models.quiet import quiet
from guardkeel.tuning import sharding
from guardkeel.tuning.keeper import Keeper, not_finite
from guardkeel.tuning.learner import Learner, training
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.order import batches
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.ranks import ALONE, Ranks
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
        ranks: the processes of the run; `args` then has the rows of one of them a forward.
    """

    lr_scheduler: Any
    optimizer: Any

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
        ranks: Ranks = ALONE,
    ) -> None:
        self.learner, self.probes, self.ranks = learner, probes, ranks
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
        if ranks.launched:
            self.accelerator.prepare_model = lambda model, *args, **kwargs: model

    def get_train_dataloader(self) -> Any:
        """All batches of the run in one pass, so that a resumed run skips what it has seen."""
        args = self.args
        lengths = [len(lesson.prompt_ids) + len(lesson.answer_ids) for lesson in self.train_dataset]
        count = args.max_steps * args.gradient_accumulation_steps
        size = args.per_device_train_batch_size * self.ranks.size
        order = batches(lengths, size=size, count=count, seed=args.data_seed)
        if not self.ranks.launched:
            loader = DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)
        from accelerate.data_loader import prepare_data_loader

        mine: Any = [self.ranks.parts(batch) for batch in order]
        rows: Any = _Weighed(self.train_dataset)
        loader = DataLoader(rows, batch_sampler=mine, collate_fn=self.data_collator)
        return prepare_data_loader(loader, args.device, num_processes=1, process_index=0, put_on_device=True)

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
        [loss] = self.ranks.mean([loss])
        if not torch.isfinite(loss):
            raise not_finite(self.args, self.state, f"loss {loss.item():g}")
        if self.ranks.size > 1 and not self.ranks.sharded and self.accelerator.sync_gradients:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
            for p, mean in zip(trained, self.ranks.mean(found), strict=True):
                p.grad = mean
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
        [said] = self.ranks.mean([task.detach()])
        self._losses.append(float(said))
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
            if self.ranks.sharded:
                self._put(named, list(probes.gradients(term).values()))
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
            term = dict(zip(self._term, self.ranks.mean(list(self._term.values())), strict=True))
            task = {
                name: torch.zeros_like(p) if p.grad is None else p.grad - term.get(name, 0)
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
        self.ranks.wait()  # for the first process may be writing it
        self._load_from_checkpoint(str(Path(self.args.output_dir) / f"checkpoint-{step}"))
        self.state.global_step = step

    # --- checkpoints of a sharded model are written whole

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See Trainer.save_model."""
        if not self.ranks.sharded:
            super().save_model(output_dir, _internal_call)
            return
        held = sharding.weights(self.model, self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=held)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.ranks.sharded:
            sharding.put_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.ranks.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        held = sharding.optimiser_state(self.optimizer, self.args.should_save)
        if self.args.should_save:
            torch.save(held, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.ranks.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimiser, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        sharding.put_optimiser_state(self.optimizer, optimiser)
        self.lr_scheduler.load_state_dict(scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        if (
            self.args.should_save
        ):  # nothing is drawn while training; a file of each process might be cut short
            super()._save_rng_state(output_dir)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not self.ranks.sharded:
            super()._move_model_to_device(model, device)


class _Weighed(Dataset[Lesson]):
    """Lessons by (place, weight): what a process has of a batch may count for more or less than its mean would."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self.lessons = lessons

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, at: tuple[int, float]) -> Lesson:
        lesson = self.lessons[at[0]]
        return lesson if at[1] == 1.0 else replace(lesson, weight=lesson.weight * at[1])


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
