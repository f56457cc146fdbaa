"""Sweeps for tests: points by hand, and a tiny guard with a damaged copy that has learned another task."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from guardkeel.conversation import write_jsonl
from guardkeel.fusion.results import Measured
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.results import Point, TaskGain
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import load_checkpoint
from guardkeel.models.tiny import make_tiny
from guardkeel.records import Estimate
from trained_guards import examples


def near(value: float | None, n: int = 100, half: float = 0.04) -> Estimate:
    """An estimate with an interval around it."""
    if value is None:
        return Estimate(value=None, n=0, note="not known")
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def point(
    name: str,
    *,
    control: Any = "",
    recall: float | None = 0.8,
    gain: float | None = 0.95,
    fpr: float | None = 0.1,
    unscored: float = 0.0,
    seed: int | None = None,
    method: str | None = None,
    **more: Any,
) -> Point:
    """A point with these numbers; those of one name differ in their seed alone."""
    fused = control not in ("reference", "candidate")
    share = 0.0 if gain is None else gain
    kept = {
        "name": "whole",
        "values": 1000,
        "reference": 10.0,
        "change": share,
        "changes": [1.0],
        "shares": [share],
        "cosines": [0.9],
        "between": [],
        "distance": share / 10,
    }
    return Point(
        id=f"{name}-{seed}",
        name=name if seed is None else f"{name} seed={seed}",
        method=(method or name) if fused else "",
        seed=seed,
        control=control,
        threshold=0.5,
        recall=near(recall),
        fpr=near(fpr),
        auroc=near(0.9),
        unscored=near(unscored, half=0),
        moved=0.4,
        recall_matched=near(recall),
        change=near(None if recall is None else recall - 0.9),
        suites={"one": near(recall), "two": near(recall)},
        gains=[
            TaskGain(
                candidate="damaged", n=40, loss=1.0, accuracy=0.5, by_loss=near(gain), by_accuracy=near(gain)
            )
        ],
        gain=near(gain),
        score_distance=0.1,
        weights=None if control == "reference" else Measured(**kept),
        seconds=1.5,
        **more,
    )


@dataclass(frozen=True)
class Harmed:
    """A classifier guard, a damaged copy that knows a task, rows of the task, and a suite that the guard knows."""

    guard: Path
    damaged: Path
    task: Path
    suite: Path

    def config(self, **more: Any) -> SweepConfig:
        """A small sweep of it: four points beside reference and candidate."""
        given: dict[str, Any] = {
            "reference": str(self.guard),
            "candidates": [str(self.damaged)],
            "task": [str(self.task)],
            "suites": [str(self.suite)],
            "alphas": [0.5],
            "keeps": [0.5],
            "seeds": [0],
            "point": [{"method": "ties", "grid": {"density": [0.5, 1.0]}}],
            "dtype": "float32",
            "device": "cpu",
            "geometry": False,
        }
        return SweepConfig(**(given | more))


def harmed(folder: Path) -> Harmed:
    """Write one. Both judge by a direction of their own in the pooled state, about half of the texts either way."""
    rows = examples(230, 7, labels=("safe",))
    guard = make_tiny("bert", folder / "guard")
    _turn(guard, 1, rows)
    damaged = folder / "damaged"
    shutil.copytree(guard, damaged)
    _turn(damaged, 2, rows)
    suite, task = folder / "mine.jsonl", folder / "task.jsonl"
    write_jsonl(suite, _labelled(guard, rows[:200]))
    write_jsonl(task, _labelled(damaged, rows[200:]))
    return Harmed(guard, damaged, task, suite)


def _turn(guard: Path, seed: int, rows: list[Any]) -> None:
    """Give a guard another head, with its verdicts in balance, and move the rest of it a little."""
    file = guard / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(seed)
    for name, t in tensors.items():
        if t.is_floating_point() and seed > 1:
            tensors[name] = t + 0.003 * torch.randn(t.shape, generator=generator)
    direction = 2 * torch.randn(tensors["classifier.weight"].shape[1], generator=generator)
    tensors["classifier.weight"] = torch.stack([-direction, direction])
    tensors["classifier.bias"] = torch.zeros(2)
    save_file(tensors, file, metadata={"format": "pt"})
    scores = torch.tensor(_scores(guard, rows), dtype=torch.float64)
    middle = float(torch.logit(scores).median())
    tensors["classifier.bias"] = torch.tensor([middle / 2, -middle / 2])
    save_file(tensors, file, metadata={"format": "pt"})


def _scores(guard: Path, rows: list[Any]) -> list[float]:
    loaded = load_checkpoint(str(guard), dtype="float32", device="cpu")
    found = loaded.score([Judgement(e.id, e.conversation, "prompt") for e in rows])
    return [v.unsafe or 0.0 for v in found]


def _labelled(guard: Path, rows: list[Any]) -> list[Any]:
    """Rows with the guard's own verdicts as labels."""
    return [
        replace(e, labels={"prompt": "unsafe" if s >= 0.5 else "safe"}, categories=())
        for e, s in zip(rows, _scores(guard, rows), strict=True)
    ]
