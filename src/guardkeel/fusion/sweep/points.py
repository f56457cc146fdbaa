"""From what the points said to their numbers, the front, and notes for the reader of the choice; no model is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from guardkeel.evaluation.selection import meta
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.front import front
from guardkeel.fusion.sweep.material import Material
from guardkeel.fusion.sweep.measuring import TaskRows, Yardstick, gain, mean_gain
from guardkeel.fusion.sweep.results import Choice, Point, TaskGain
from guardkeel.fusion.sweep.scoring import Rows
from guardkeel.records import Estimate


def measured(config: SweepConfig, read: Material, said: Mapping[str, Rows], threshold: float) -> list[Point]:
    """The points with their numbers and the front; nothing is asked of a model."""
    known = [(a, a.identity(read.digests)) for a in read.asked]
    known = [(a, identity) for a, identity in known if identity in said]
    start = said[next(identity for a, identity in known if a.control == "reference")]
    ends = [said[identity] for a, identity in known if a.control == "candidate"]
    yardstick = yardstick_of(config, read, start, threshold)
    names = [c.name for c in read.candidates]
    found = []
    for asked, identity in known:
        rows = said[identity]
        gains, total = _gains(names, start.tasks, ends, rows.tasks, config)
        found.append(
            Point(
                id=identity,
                name=asked.name,
                method=asked.method,
                settings=asked.resolved,
                extras=dict(asked.extras),
                seed=asked.seed,
                control=asked.control,
                gains=gains,
                gain=total,
                weights=rows.weights.whole if rows.weights else None,
                seconds=rows.seconds,
                **yardstick(rows.scores, rows.threshold),
            )
        )
    values = [
        (p.recall_matched.value, p.gain.value, None if p.fpr.value is None else -p.fpr.value) for p in found
    ]
    beaten = front([[math.nan if v is None else v for v in row] for row in values])
    return [p.model_copy(update={"front": f}) for p, f in zip(found, beaten, strict=True)]


def yardstick_of(config: SweepConfig, read: Material, reference: Rows, threshold: float) -> Yardstick:
    """What points are measured with, by what the reference said."""
    return Yardstick([meta(i) for i in read.items], reference.scores, threshold, config.seed)


def _gains(
    names: Sequence[str],
    start: Sequence[TaskRows],
    ends: Sequence[Rows],
    now: Sequence[TaskRows],
    config: SweepConfig,
) -> tuple[list[TaskGain], Estimate]:
    """Gain on each candidate's task, and their mean in what the rule measures it in."""
    gains, estimates, drawn = [], [], []
    for k, (name, before, point) in enumerate(zip(names, start, now, strict=True)):
        end = ends[k].tasks[k]
        by_loss = gain(before.losses, end.losses, point.losses, more=False, seed=config.seed + k)
        by_accuracy = gain(before.right, end.right, point.right, more=True, seed=config.seed + k)
        gains.append(
            TaskGain(
                candidate=name,
                n=int(point.losses.size),
                loss=float(point.losses.mean()),
                accuracy=float(point.right.mean()),
                by_loss=by_loss[0],
                by_accuracy=by_accuracy[0],
            )
        )
        estimate, draws = by_loss if config.gain == "loss" else by_accuracy
        estimates.append(estimate)
        drawn.append(draws)
    return gains, mean_gain(estimates, drawn)


def compared(found: Sequence[Point], choice: Choice) -> list[str]:
    """What a reader of the choice must know: whether there was anything to repair, and whether a control was chosen."""
    notes = [
        f"{p.name}: no loss of recall at the reference’s FPR can be shown, so there may be nothing to repair"
        for p in found
        if p.control == "candidate" and p.change.high is not None and p.change.high >= 0
    ]
    chosen = next((p for p in found if p.id == choice.chosen), None)
    if chosen is not None and chosen.control:
        notes.append(f"the choice is a control ({chosen.control}): no method did better under the rule")
    return notes
