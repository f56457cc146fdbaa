"""A fine-tune from its configuration: a guard and data in, a tuned guard and the record of how it kept up out.

Run directory: run.json · config.toml · log.jsonl (a line a step) · monitor.jsonl (a line a look) · tuned/ (the adapter
or checkpoint, with its threshold) · checkpoint-N/ · regulariser.safetensors (what was seen at θ₀).
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guardkeel.activations.blocks import blocks, monitored
from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.embedded import NAME
from guardkeel.guards.load import AnyGuard, base_path, guard_path, guard_settings, load_checkpoint
from guardkeel.guards.offsets import offsets_to
from guardkeel.models.adapters import is_adapter
from guardkeel.models.base import base_model_path
from guardkeel.models.devices import peak_memory, pick_device, pick_dtype
from guardkeel.models.loading import checkpoint_digest, local_checkpoint
from guardkeel.records import (
    RunRecord,
    claim,
    toml_text,
    value_digest,
    write_record,
    write_text,
)
from guardkeel.resources import resolve
from guardkeel.tuning import sharding
from guardkeel.tuning.alignment import alignment
from guardkeel.tuning.check import check
from guardkeel.tuning.config import WHERE, TuneConfig, read_config
from guardkeel.tuning.fitting import fitted
from guardkeel.tuning.gather import Gathered, encoded, gather
from guardkeel.tuning.keeper import FIXED, acts, ended, last_checkpoint, parts, step_of
from guardkeel.tuning.learned import measure
from guardkeel.tuning.learner import learner as learner_of
from guardkeel.tuning.log import LOG
from guardkeel.tuning.monitor import REFERENCE, SafetyMonitor
from guardkeel.tuning.points import POINTS, MonitorPoint
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.probes import GuardProbes, trained_modules
from guardkeel.tuning.ranks import ALONE, Ranks, here
from guardkeel.tuning.results import TuneResults
from guardkeel.tuning.trainer import GuardTrainer
from guardkeel.tuning.weights import save, trainable

TUNED = "tuned"
SHARDED_TOKENS = 16384
"""A batch that a sharded guard is looked at with on a GPU: every forward gathers all weights."""

Watch = Callable[[str, int, int | None], None]


def tune(
    guard: str = "keel-135m", data: str | Sequence[str] = (), *, out: str | Path, **config: Any
) -> TuneResults:
    """Fine-tune a guard on your own data without losing its safety.

    Args:
        guard: `keel-135m`, a folder, or a hub:, pypi: or path: reference.
        data: what it is to learn: labelled guard conversations or instructions (files, suites, references).
        out: the run directory. An unfinished run of the same configuration in it is resumed.
        config: any field of TuneConfig: method, options, steps, learning_rate, adapter, …

    Returns:
        The results, which are also in out/run.json. The tuned guard is in out/tuned.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    listed = [data] if isinstance(data, str) else list(data)
    return run(read_config(None, config | {"guard": guard, "data": listed}), Path(out))


def run(
    config: TuneConfig,
    folder: Path,
    *,
    gathered: Gathered | None = None,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
    on_point: Callable[[MonitorPoint, MonitorPoint], None] = lambda point, reference: None,
) -> TuneResults:
    """Run, or resume, the fine-tune of a configuration in a folder.

    `gathered` are data already read and split, where the caller has them. `on_point` gets each look of the monitor
    and the reference's.
    """
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    regulariser = check(config)
    ranks = here(config.sharding, config.offload, config.device)
    ranks.join()
    path = guard_path(config.guard, progress=watch, offline=config.offline)
    if is_adapter(path):
        raise ConfigError(
            f"{path}: is an adapter on {base_path(path)}, not a whole checkpoint",
            remedy="merge it into its base first (peft's merge_and_unload), and tune the result",
        )
    repairs = [p for p in parts(regulariser) if isinstance(p, PostHoc)]
    unaligned = unaligned_path(config, watch) if getattr(regulariser, "needs", ()) else None
    gathered = gathered or gather(config, watch)
    inputs = {"guard": checkpoint_digest(path)} | gathered.digests
    if ranks.first:
        claim(folder, value_digest([inputs, config.model_dump(exclude=WHERE)]), begun="checkpoint-*")
        write_text(folder / "config.toml", toml_text(config.model_dump()))
        if last_checkpoint(folder) is None:  # what another run began here is not this one's
            for begun in (LOG, POINTS, REFERENCE, FIXED):
                (folder / begun).unlink(missing_ok=True)
    ranks.wait()

    guard = _opened(config, ranks, watch)
    shipped, model = guard.threshold, guard.model
    teacher = learner_of(
        guard,
        max_tokens=config.max_tokens,
        answer_weight=config.answer_weight,
        share=not (config.checkpointing or ranks.sharded),
    )
    lessons, aside, anchors = encoded(gathered, teacher, config.max_tokens)
    probes = (
        GuardProbes(model, teacher, anchors, batch=config.guard_batch, seed=config.seed, ranks=ranks)
        if acts(regulariser)
        else None
    )
    if unaligned is not None:
        regulariser.alignment = alignment(path, unaligned, list(trained_modules(model)))  # type: ignore[attr-defined]
    # before a resumed run takes up its weights: the Trainer does that
    before = measure(model, teacher, aside, shipped, guard.offsets, ranks)
    steps = config.steps or max(1, round(config.epochs * len(lessons) / (config.batch * config.accumulation)))
    monitor = _monitor(config, folder, guard, gathered, on_point, ranks)
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
        on_step=lambda step: watch(f"fine-tune ({config.method})", step, steps),
        ranks=ranks,
    )
    stopped, notes = train(trainer, monitor, folder), list[str]()
    if len(anchors) < len(gathered.guard):
        notes.append(
            f"{len(gathered.guard) - len(anchors)} guard conversations did not fit and were left out"
        )
    for part in repairs:
        notes.append(f"{part.name}: {json.dumps(part.apply(model))}")
    threshold, offsets = shipped, dict(guard.offsets)
    if monitor is not None and config.recalibrate:
        step = trainer.state.global_step
        point = monitor.look(step) if repairs else next(p for p in monitor.points if p.step == step)
        if point.threshold is not None:
            threshold = point.threshold
            for side, more in offsets_to(threshold, point.sides).items():
                offsets[side] = offsets.get(side, 0.0) + more
    elif config.recalibrate:
        notes.append("the threshold was not moved: there are no monitor items")
    moved = (threshold, offsets) != (shipped, guard.offsets)
    results = TuneResults(
        method=config.method,
        steps=trainer.state.global_step,
        stopped=stopped,
        before=before,
        after=measure(model, teacher, aside, threshold, offsets, ranks),
        after_shipped=measure(model, teacher, aside, shipped, guard.offsets, ranks) if moved else None,
        threshold=threshold,
        offsets=offsets,
        threshold_before=shipped,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        step_seconds=statistics.median(log.seconds) if log.seconds else 0.0,
        peak_memory=peak_memory(str(model.device)),
        monitor=[p.model_dump(mode="json") for p in monitor.points] if monitor else [],
        notes=notes,
    )
    held = sharding.weights(model, ranks.first) if ranks.sharded else None
    if not ranks.first:
        return results
    policy = guard_settings(path, path).policy
    save(
        model,
        folder / TUNED,
        base=base_name(config.guard, path),
        beside=path,
        settings={
            "family": guard.family,
            "name": folder.name,
            "threshold": threshold,
            **({"offsets": offsets} if offsets else {}),
            **({"policy": policy.model_dump(mode="json")} if policy else {}),
            **(
                {"unsafe_labels": [guard.labels[i] for i in guard.unsafe]}
                if isinstance(guard, ClassifierGuard)
                else {}
            ),
            "provenance": {"guard": inputs["guard"], "method": config.method, "rows": inputs["rows"]},
        },
        state=held,
    )
    write_run(
        folder,
        config,
        inputs,
        gathered,
        results,
        started_at=started_at,
        timings={"total": time.perf_counter() - started, "steps": sum(log.seconds)},
        command=command,
        ranks=ranks,
    )
    ended(folder, keep=config.keep_checkpoints)
    return results


def write_run(
    folder: Path,
    config: TuneConfig,
    inputs: dict[str, str],
    gathered: Gathered,
    results: TuneResults,
    *,
    started_at: str,
    timings: dict[str, float],
    command: Sequence[str],
    ranks: Ranks = ALONE,
) -> None:
    """Write run.json, which marks a fine-tune as finished."""
    write_record(
        folder,
        RunRecord.finished(
            verb="tune",
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings=timings,
            counts=gathered.counts
            | {"steps": results.steps}
            | ({"processes": ranks.size} if ranks.size > 1 else {}),
            results=results.model_dump(mode="json"),
        ),
    )


def train(trainer: GuardTrainer, monitor: SafetyMonitor | None, folder: Path) -> str:
    """Train, from the last whole checkpoint where there is one, and roll back if the tripwire stopped it. Says why."""
    ranks = trainer.ranks
    resume = ranks.same(last_checkpoint(folder))
    if monitor is not None and resume is not None:
        monitor.begin(step_of(resume))
    kept = {resume, folder / f"checkpoint-{monitor.last_good}" if monitor is not None else None}
    for broken in set(folder.glob("checkpoint-*")) - kept if ranks.first else ():
        shutil.rmtree(broken)
    # A run that had tripped before it was killed is not trained on.
    if monitor is None or monitor.tripped is None:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if monitor is None or monitor.tripped is None:
        return ""
    tripped, good = monitor.tripped, monitor.last_good
    what = (
        f"tripwire at step {tripped.step}: recall fell by {100 * tripped.fall:.1f} points "
        f"(p = {tripped.harm_p:.2g})"
    )
    if not good:
        raise RunError(
            f"{what}, and no checkpoint before it was inside the margin: only the guard as it was is left",
            remedy="choose a method that keeps its safety, look more often (--every), or lower the learning rate",
        )
    trainer.roll_back(good)
    return f"{what}; back to step {good}"


def _opened(config: TuneConfig, ranks: Ranks, watch: Watch) -> AnyGuard:
    """The guard with its trainable weights; in shards, of which a machine's processes load one after another."""
    mesh = sharding.mesh_of(ranks) if ranks.sharded else None
    with ranks.in_turn() if mesh is not None else nullcontext():
        guard = load_checkpoint(
            config.guard,
            family=config.family,
            dtype="float32"
            if config.adapter == "full"
            else pick_dtype(config.dtype, pick_device(ranks.device)),
            device="cpu" if mesh is not None else ranks.device,
            offline=config.offline,
            progress=watch,
        )
        guard.model = trainable(
            guard.model,
            adapter=config.adapter,
            rank=config.rank,
            alpha=config.alpha,
            first_layer=config.first_layer,
            seed=config.seed,
            task="classifier" if isinstance(guard, ClassifierGuard) else "causal",
        )
        if mesh is not None:
            sharding.shard(guard.model, mesh, offload=ranks.offload)
    if mesh is not None:
        sharding.settle(guard.model)
        if guard.model.device.type != "cpu":
            guard.token_budget = SHARDED_TOKENS
    return guard


def _monitor(
    config: TuneConfig,
    folder: Path,
    guard: AnyGuard,
    gathered: Gathered,
    on_point: Callable[[MonitorPoint, MonitorPoint], None],
    ranks: Ranks,
) -> SafetyMonitor | None:
    if not gathered.monitor:
        return None
    monitor: SafetyMonitor

    def tell(point: MonitorPoint) -> None:
        on_point(point, monitor.points[0])

    monitor = SafetyMonitor(
        guard,
        gathered.monitor,
        folder,
        every=config.every,
        layers=monitored(len(blocks(guard.model)), 4),
        margin=config.margin if config.tripwire else None,
        recalibrate=config.recalibrate,
        seed=config.seed,
        on_point=tell,
        ranks=ranks,
    )
    return monitor


def unaligned_path(config: TuneConfig, watch: Watch) -> Path:
    """The checkpoint that the guard was made from; `check` has made sure that it is named or known."""
    if config.unaligned is None:
        return base_model_path(watch, config.offline)
    return local_checkpoint(resolve(config.unaligned, progress=watch, offline=config.offline), watch)


def base_name(reference: str, path: Path) -> str:
    """What an adapter says that it was made on, wherever it is read from."""
    if reference in (NAME, "keel"):
        return NAME
    return reference if reference.startswith(("hub:", "pypi:")) else str(path.resolve())
