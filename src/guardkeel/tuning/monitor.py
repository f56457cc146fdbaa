"""The safety monitor: looks at a guard while it is trained, and stops the run when its safety falls.

At θ₀, every few optimiser steps and at the last one it scores labelled items with the live model and compares them,
item by item, with what the reference said of them. The tripwire stops the run when recall has fallen by more than a
margin and the paired test says that this is no chance; the run then goes back to checkpoint-{last_good}.

    monitor = SafetyMonitor(guard, suite.items("calibrate"), folder, every=10)
    trainer = Trainer(guard.model, args, train_dataset=data, callbacks=[monitor])
    monitor.trainer = trainer  # so that the numbers reach TensorBoard, trackio, W&B

Looking changes nothing: the forwards run in evaluation mode without gradients, every module gets its own mode back and
every random generator its own state, so that a run is the same bits with and without a monitor. All that the monitor
knows is in the run directory: `monitor.jsonl`, a line a point, and `monitor-reference.safetensors`, what the reference
showed.
In a distributed run every process looks (the answers are the same) and the first one writes. Given `ranks`, each scores
its share of the items; a sharded model, which all run together, is shown all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from guardkeel.errors import ConfigError, DataError, ModelError
from guardkeel.evaluation.selection import geometry_sample, meta
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.load import AnyGuard
from guardkeel.records import atomic_writer, value_digest
from guardkeel.tuning.points import (
    POINTS,
    LayerPoint,
    Look,
    MonitorPoint,
    Watched,
    line,
    numbers,
    read_points,
)
from guardkeel.tuning.ranks import ALONE, Ranks

__all__ = ["LayerPoint", "MonitorPoint", "SafetyMonitor", "line", "numbers", "read_points"]

REFERENCE = "monitor-reference.safetensors"
GEOMETRY_ITEMS = 256  # a look must be cheap; CKA and drift do not need more


@contextlib.contextmanager
def _undrawn() -> Iterator[None]:
    """Random numbers drawn in the block are as if never drawn: some libraries draw where they are first imported."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class SafetyMonitor(TrainerCallback):  # type: ignore[misc]
    """Watches a guard's safety while a Trainer trains it.

    Args:
        guard: its `.model` is the model that the Trainer trains (not a distributed wrapper of it).
        items: labelled items of the `calibrate` split, which the report is not measured on.
        folder: the run directory, which is the Trainer's output_dir too.
        every: optimiser steps from look to look. At each one the Trainer is asked for a checkpoint.
        layers: blocks whose geometry is measured, counted from 1; none for no geometry.
        margin: the fall in recall, as a fraction, at which the tripwire may stop the run; None for no tripwire.
        recalibrate: whether the tripwire compares recall at the reference's FPR (a moved threshold is then no harm)
            or at the shipped threshold.
        rank: directions of the safety subspace.
        seed: of the cross-fit and of bootstraps.
        on_point: gets each new point, the reference's (step 0) first.
        on_progress: gets (items scored, items) while a look runs.
        ranks: the processes of the run, where they are to share the items.

    Attributes:
        points: all points so far, the reference's first.
        trainer: set it after the Trainer was made, or nothing is written to its log.

    Raises:
        ConfigError: `every`, `margin` or `layers` make no sense.
        DataError: no unsafe items, or none that are safe where a threshold is to be recalibrated.
    """

    def __init__(
        self,
        guard: AnyGuard,
        items: Sequence[SuiteItem],
        folder: Path,
        *,
        every: int,
        layers: Sequence[int] = (),
        margin: float | None = 0.05,
        recalibrate: bool = True,
        rank: int = 32,
        seed: int = 0,
        on_point: Callable[[MonitorPoint], None] = lambda point: None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        ranks: Ranks = ALONE,
    ) -> None:
        if every < 1:
            raise ConfigError(f"the monitor looks every {every} steps", remedy="give a number from 1 on")
        if margin is not None and not 0 <= margin < 1:
            raise ConfigError(
                f"the tripwire's margin is {margin}", remedy="give a fraction from 0 to below 1"
            )
        if layers:
            _check_layers(guard.model, layers)
        unsafe = sum(i.label == "unsafe" for i in items)
        if not unsafe or (recalibrate and unsafe == len(items)):
            raise DataError(
                f"the monitor needs items of both labels, got {unsafe} unsafe of {len(items)}",
                remedy="give it suites that hold both" + (", or switch recalibration off" if unsafe else ""),
            )
        # geometry_sample picks among test items; which split these are of does not matter to it otherwise
        sample = geometry_sample([replace(i, split="test") for i in items], GEOMETRY_ITEMS) if layers else []
        self.guard, self.folder, self.every, self.margin = guard, Path(folder), every, margin
        self.on_point, self.on_progress = on_point, on_progress
        self.trainer: Any = None
        self.points: list[MonitorPoint] = []
        self._judgements = [i.judgement for i in items]
        self._watched = Watched(
            [meta(i) for i in items], guard.threshold, tuple(layers), sample, recalibrate, rank, seed
        )
        self._reference: Look | None = None
        self._begun: int | None = None
        self.ranks, self._writes = ranks, ranks.first

    @property
    def reference(self) -> MonitorPoint:
        """The point of step 0."""
        return self.points[0]

    @property
    def tripped(self) -> MonitorPoint | None:
        """The point at which the tripwire stopped the run, if it did."""
        if self.margin is None:
            return None
        return next((p for p in self.points if p.trips(self.margin)), None)

    @property
    def good(self) -> MonitorPoint:
        """The last point inside the margin (the last of all, without a tripwire); at least the reference's."""
        return next(
            (p for p in reversed(self.points) if self.margin is None or p.inside(self.margin)), self.reference
        )

    @property
    def last_good(self) -> int:
        """The step of `good`, 0 for θ₀. The Trainer's save_total_limit, if set, must leave its checkpoint alone."""
        return self.good.step if self.points else 0

    @_undrawn()
    def begin(self, step: int = 0) -> None:
        """Look at θ₀, or, for a run that resumes at a later step, take up what is stored. Called by the Trainer.

        Call it before training with the checkpoint's step to see whether a run that is to be resumed had `tripped`,
        and which checkpoint is `last_good`. At step 0 leave it to the Trainer: in mixed precision the reference must be
        scored in it too.

        Raises:
            ModelError: the reference gives no verdict at all, so that no fall could be seen.
            DataError: nothing is stored to resume from.
            ConfigError: what is stored is of other items, layers or another threshold.
        """
        if self._begun == step:
            return
        if step:
            self._reference = self._stored()
            kept = read_points(self.folder)
            self.points = [p for p in kept if p.step <= step]
            if not self.points or self.points[0].step != 0:
                raise DataError(
                    f"{self.folder / POINTS}: the reference's point is missing, the run cannot be resumed",
                    remedy="restore the file, or begin the run anew",
                )
            self._rewrite()
        else:
            started = time.perf_counter()
            self._reference = self._score()
            self._check_reference(self._reference)
            if self._writes:
                self._store(self._reference)
            self.points = []
            self._rewrite()
            self._add(self._measure(0, self._reference, started))
        self._begun = step

    @_undrawn()
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `begin`. A run that had tripped when it is resumed stops again."""
        self._writes = state.is_world_process_zero
        self.begin(state.global_step)
        if not state.global_step:
            self._log(self.reference, control)
        if self.tripped:
            control.should_training_stop = True

    @_undrawn()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time; ask for a checkpoint; stop the run when the tripwire says so."""
        if self.tripped is None:
            step, ending = state.global_step, control.should_training_stop
            if step % self.every and step < state.max_steps and not ending:
                return
            point = self.look(step)
            self._add(point)
            self._log(point, control)
            control.should_save = True
        if self.tripped is not None:
            control.should_training_stop = True

    @_undrawn()
    def look(self, step: int) -> MonitorPoint:
        """The model as it is now against the reference; nothing is written or told. Only after `begin`."""
        started = time.perf_counter()
        return self._measure(step, self._score(), started)

    def _score(self) -> Look:
        """Score all items."""
        layers, sample = self._watched.layers, {i: k for k, i in enumerate(self._watched.sample)}
        scores = np.full(len(self._judgements), np.nan)
        hidden: np.ndarray[Any, np.dtype[np.float32]] | None = None
        for indices, found, states in self._seen(layers):
            scores[indices] = found
            if states is not None:
                if hidden is None:
                    hidden = np.empty((len(layers), len(sample), states.shape[2]), np.float32)
                picked = [k for k, i in enumerate(indices) if i in sample]
                hidden[:, [sample[indices[k]] for k in picked]] = states[:, picked]
        return Look(scores, hidden)

    def _seen(self, layers: Sequence[int]) -> Iterator[tuple[list[int], list[float], Any]]:
        """(which items, their scores, their hidden states) of all batches, whoever ran them."""
        shared = self.ranks.size > 1 and not self.ranks.sharded
        mine = list(range(len(self._judgements)))[self.ranks.rank :: self.ranks.size] if shared else None
        asked = self._judgements if mine is None else [self._judgements[i] for i in mine]
        kept, done = [], 0
        with _looking(self.guard.model):
            for batch in self.guard.batches(asked, layers=layers, categories=False):
                indices = batch.indices if mine is None else [mine[i] for i in batch.indices]
                scores = [np.nan if v.unsafe is None else v.unsafe for v in batch.verdicts]
                done += len(indices)
                self.on_progress(done, len(asked))
                if mine is None:
                    yield indices, scores, batch.hidden
                else:
                    kept.append((indices, scores, batch.hidden))
        if mine is not None:
            yield from (look for looks in self.ranks.every(kept) for look in looks)

    def _check_reference(self, look: Look) -> None:
        if self.margin is None:
            return
        for label in ("unsafe", "safe") if self._watched.recalibrate else ("unsafe",):
            mine = look.scores[[i.label == label for i in self._watched.items]]
            if np.isnan(mine).all():
                raise ModelError(
                    f"{self.guard.name}: no verdict on any of the {mine.size} {label} items, so the tripwire is blind",
                    remedy="check the guard and its family with an audit, or train without a tripwire",
                )

    def _measure(self, step: int, look: Look, started: float) -> MonitorPoint:
        if self._reference is None:
            raise RuntimeError("the monitor has not seen the reference: call begin first")
        point = self._watched.point(step, self._reference, look)
        return self.ranks.same(point.model_copy(update={"seconds": time.perf_counter() - started}))

    def _add(self, point: MonitorPoint) -> None:
        """Write a point's line and tell of it."""
        self.points.append(point)
        if self._writes:
            with (self.folder / POINTS).open("ab") as out:
                out.write(point.model_dump_json().encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            self.on_point(point)

    def _log(self, point: MonitorPoint, control: Any) -> None:
        """Numbers into the Trainer's log, which every report_to reads.

        Changing `logs` in `on_log` would come too late: reporting callbacks stand before ours. And a log of ours
        would use up the Trainer's own of the same step, which it has marked but not written yet.
        """
        if self.trainer is not None:
            due = control.should_log
            self.trainer.log(numbers(point))
            control.should_log = due

    def _rewrite(self) -> None:
        """The file with the points that count: those of steps that are made again are dropped."""
        if self._writes:
            with atomic_writer(self.folder / POINTS) as out:
                out.writelines(p.model_dump_json().encode() + b"\n" for p in self.points)

    def _facts(self) -> dict[str, Any]:
        """What the stored reference follows from, besides θ₀."""
        w = self._watched
        return {
            "items": value_digest([[i.id, i.label] for i in w.items]),
            "layers": list(w.layers),
            "threshold": w.threshold,
        }

    def _store(self, look: Look) -> None:
        from safetensors.numpy import save

        tensors: dict[str, Any] = {"scores": look.scores}
        if look.hidden is not None:
            tensors["hidden"] = look.hidden
        with atomic_writer(self.folder / REFERENCE) as out:
            out.write(save(tensors, metadata={"of": json.dumps(self._facts())}))

    def _stored(self) -> Look:
        from safetensors import SafetensorError, safe_open

        path = self.folder / REFERENCE
        try:
            with safe_open(path, "numpy") as held:
                facts = json.loads(held.metadata()["of"])
                tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - it is no dict
            look = Look(tensors["scores"], tensors.get("hidden"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
            raise DataError(
                f"{path}: what the reference showed cannot be read ({e}), the run cannot be resumed",
                remedy="restore the file, or begin the run anew",
            ) from e
        for key, value in self._facts().items():
            if facts.get(key) != value:
                raise ConfigError(
                    f"{path}: made with {key} {facts.get(key)}, this run has {value}",
                    remedy="resume the run with the settings that it was begun with",
                )
        return look


@contextlib.contextmanager
def _looking(model: Any) -> Iterator[None]:
    """Evaluation mode in the block, and denormals as in a fresh process; then every module as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    flushed = bool(torch.tensor(1e-38) * 1e-3 == 0)
    model.eval()
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        for module, mode in modes:
            module.training = mode


def _check_layers(model: Any, layers: Sequence[int]) -> None:
    from guardkeel.activations.blocks import blocks

    depth = len(blocks(model))
    for layer in layers:
        if not 1 <= layer <= depth:
            raise ConfigError(f"layer {layer} of a model with {depth} blocks", remedy=f"choose 1 to {depth}")
