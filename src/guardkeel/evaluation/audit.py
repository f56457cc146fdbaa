"""The main job: judge the same labelled items with a reference and a candidate, and say what changed.

audit = select items → score both guards (geometry in the same forward) → behaviour → paired comparison →
gate → run directory. Everything after scoring reads numbers only and can be redone without the model.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel

from guardkeel.engines.parts import depth_of
from guardkeel.errors import ConfigError
from guardkeel.evaluation.behaviour import measure, slices
from guardkeel.evaluation.compare import compare
from guardkeel.evaluation.gate import decide
from guardkeel.evaluation.geometry_results import Summed, fold_and_label
from guardkeel.evaluation.items import ItemMeta, Pair, group_codes
from guardkeel.evaluation.policy import Policy, default_policy
from guardkeel.evaluation.scoring import Scored, score, verdict_row
from guardkeel.evaluation.selection import geometry_sample, meta, row, select, suite_infos
from guardkeel.evaluation.settings import AuditSettings
from guardkeel.evaluation.suites import Suite, SuiteItem
from guardkeel.guards.base import Guard
from guardkeel.records import (
    RunRecord,
    atomic_writer,
    claim,
    toml_text,
    value_digest,
    write_record,
    write_text,
)
from guardkeel.results import AuditResults, GuardInfo, GuardResult, LayerGeometry

Watch = Callable[[str, int, int | None], None]


class Source(BaseModel):
    """Where a guard came from and the digests of its files: its own and, for an adapter, its base's."""

    reference: str
    digest: str
    base: str = ""


@dataclass(frozen=True)
class Known:
    """A guard that was scored before; `layers` of its `depth` blocks were watched."""

    scored: Scored
    info: GuardInfo
    layers: tuple[int, ...] = ()
    depth: int = 0


def audit_guards(
    guards: Iterable[tuple[str, Guard]],
    suites: Sequence[Suite],
    folder: Path,
    *,
    sources: Mapping[str, Source],
    settings: AuditSettings | None = None,
    policy: Policy | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    known: Mapping[str, Known] = MappingProxyType({}),
    engine: Mapping[str, Any] = MappingProxyType({}),
    summed: Summed | None = None,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> AuditResults:
    """Run or resume an audit in `folder` and return its results, which are also in `folder/run.json`.

    `guards` yields ("reference", guard) and, where two are compared, ("candidate", guard), each when it is asked for
    (see guards.pair), so that two large models need not be in memory at once. `sources` names the same
    roles. `options` are those the guards were loaded with; they go into the record and, as all of it, must be the
    same for a run to be resumed. `known` are roles that `score_reference` has scored on the same suites under the
    same settings; `guards` then yields the others only. `engine` is recorded: results do not depend on it. `summed`
    sums up activations where more than `geometry_held` items are sampled; without it they are kept, however many.
    Raises ConfigError when the folder holds another run.
    """
    settings = settings or AuditSettings()
    policy = policy or default_policy()
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    items = select(suites, limit=settings.limit, calibrate="candidate" in sources)
    inputs = {f"suite {s.name}": s.digest for s in suites} | {
        f"guard {role}": s.digest for role, s in sources.items()
    }
    inputs |= {f"base of {role}": s.base for role, s in sources.items() if s.base}
    config = settings.model_dump() | dict(options) | {"policy": policy.model_dump(mode="json")}
    config |= {role: s.reference for role, s in sources.items()} | {"suites": [s.name for s in suites]}
    claim(folder, value_digest([inputs, config, [i.judgement.id for i in items]]), begun="progress/*.npz")
    write_text(folder / "config.toml", toml_text(config))
    with atomic_writer(folder / "items.jsonl") as out:
        for item in items:
            out.write(json.dumps(row(item)).encode() + b"\n")

    sample = geometry_sample(items, settings.geometry_items) if settings.geometry else []
    streamed = summed is not None and len(sample) > settings.geometry_held
    judgements = [i.judgement for i in items]
    for role, before in known.items():
        if len(before.scored.verdicts) != len(items):
            raise ConfigError(
                f"the {role} was scored on {len(before.scored.verdicts)} items, these are {len(items)}",
                remedy="score it on the same suites under the same settings",
            )
    scored = {role: before.scored for role, before in known.items()}
    infos = {role: before.info for role, before in known.items()}
    missing: list[str] = []
    layers: tuple[int, ...] = known["reference"].layers if "reference" in known else ()
    depth = known["reference"].depth if "reference" in known else 0
    shown: set[str] = set()

    def run(role: str, guard: Any) -> None:
        nonlocal layers, depth
        watched: tuple[int, ...] = ()
        if settings.geometry and role == "reference":
            depth = _depth(guard, missing)
            watched = layers = _layers(depth, settings)
        elif layers:
            watched = layers if _same_depth(guard, depth, missing) else ()
        if watched:
            shown.add(role)
        infos[role] = _info(guard, sources[role])
        scored[role] = score(
            guard,
            judgements,
            folder,
            role,
            layers=() if streamed else watched,
            sample=() if streamed else sample,
            watch=lambda d, t: watch(f"score {role}", d, t),
        )

    for role, guard in guards:
        run(role, guard)
        del guard  # or it would stay in memory while the next one is loaded

    results = _results(items, suites, scored, infos, settings, policy, watch)
    if summed is not None and streamed and layers:
        results.geometry = list(
            _summed_geometry(items, sample, layers, summed, "candidate" in shown, settings)
        )
        missing.append(f"geometry: intervals, permutation nulls and probes of {len(sample)} summed-up items")
    else:
        results.geometry = list(_geometry(items, scored, layers, sample, settings, watch))
    results.decision = decide(results, policy)
    if not settings.geometry:
        missing.append("geometry: switched off")
    for role, found in scored.items():
        with atomic_writer(folder / f"{role}.jsonl") as out:
            for judged, verdict in zip(judgements, found.verdicts, strict=True):
                out.write(json.dumps({"id": judged.id} | verdict_row(verdict)).encode() + b"\n")
    if results.geometry and not streamed:
        _save_states(folder / "geometry.safetensors", scored, layers, sample, items)
    record = RunRecord.finished(
        verb="audit",
        started_at=started_at,
        command=list(command),
        inputs=inputs,
        config=config | dict(engine),
        seeds={"seed": settings.seed},
        timings={"total": time.perf_counter() - started}
        | {f"score {role}": s.seconds for role, s in scored.items()},
        counts={"items": len(items), "geometry items": len(sample)},
        results=results.model_dump(mode="json"),
        not_measured=missing + _not_measured(results),
    )
    write_record(folder, record)
    shutil.rmtree(folder / "progress", ignore_errors=True)
    (folder / "plan.json").unlink(missing_ok=True)
    return results


def score_reference(
    guard: Guard,
    suites: Sequence[Suite],
    folder: Path,
    *,
    source: Source,
    settings: AuditSettings | None = None,
    watch: Watch = lambda what, done, total: None,
) -> Known:
    """Score a reference once, for many audits of candidates on the same suites; resumes what is in `folder`."""
    settings = settings or AuditSettings()
    items = select(suites, limit=settings.limit)
    depth = _depth(guard, []) if settings.geometry else 0
    layers = _layers(depth, settings)
    scored = score(
        guard,
        [i.judgement for i in items],
        folder,
        "reference",
        layers=layers,
        sample=geometry_sample(items, settings.geometry_items) if layers else [],
        watch=lambda d, t: watch("score reference", d, t),
    )
    return Known(scored, _info(guard, source), layers, depth)


def _depth(guard: Any, missing: list[str]) -> int:
    """How many blocks a guard's model has; 0, and a note, where none are found."""
    depth, why = depth_of(guard)
    if not depth:
        missing.append(f"geometry: {why}")
    return depth


def _same_depth(guard: Any, depth: int, missing: list[str]) -> bool:
    """Whether the candidate's blocks can be put beside the reference's, one by one."""
    found = _depth(guard, missing)
    if found not in (0, depth):
        missing.append(f"geometry of the candidate: it has {found} blocks, the reference {depth}")
    return found == depth


def _layers(count: int, settings: AuditSettings) -> tuple[int, ...]:
    """Which of `count` blocks are watched."""
    from guardkeel.activations.blocks import monitored

    if not count:
        return ()
    if settings.layers is None:
        return monitored(count)
    for layer in settings.layers:
        if not 1 <= layer <= count:
            raise ConfigError(f"layer {layer} of a model with {count} blocks", remedy=f"choose 1 to {count}")
    return tuple(sorted(set(settings.layers)))


def _info(guard: Guard, source: Source) -> GuardInfo:
    facts = guard.facts
    return GuardInfo(
        name=guard.name,
        reference=source.reference,
        family=guard.family,
        threshold=guard.threshold,
        digest=source.digest,
        parameters=facts["parameters"],
        dtype=facts["dtype"],
        device=facts["device"],
    )


def _results(
    items: Sequence[SuiteItem],
    suites: Sequence[Suite],
    scored: dict[str, Scored],
    infos: dict[str, GuardInfo],
    settings: AuditSettings,
    policy: Policy,
    watch: Watch,
) -> AuditResults:
    watch("statistics", 0, 1)
    test = [k for k, i in enumerate(items) if i.split == "test"]
    held = [k for k, i in enumerate(items) if i.split == "calibrate"]
    metas = [meta(i) for i in items]
    guards = {
        role: _guard_result([metas[k] for k in test], found.scores[test], infos[role], settings.seed)
        for role, found in scored.items()
    }
    comparison = None
    if "candidate" in scored:
        before, after = scored["reference"].scores, scored["candidate"].scores
        comparison = compare(
            [metas[k] for k in test],
            before[test],
            after[test],
            infos["reference"].threshold,
            infos["candidate"].threshold,
            margins=policy.non_inferiority.margins.model_dump(),
            alpha=policy.non_inferiority.alpha,
            calibrate=Pair([metas[k] for k in held], before[held], after[held]) if held else None,
            seed=settings.seed,
        )
    results = AuditResults(
        suites=suite_infos(suites, items),
        reference=guards["reference"],
        candidate=guards.get("candidate"),
        comparison=comparison,
        shortened=sum(any(s.verdicts[k].dropped for s in scored.values()) for k in range(len(items))),
    )
    watch("statistics", 1, 1)
    return results


def _guard_result(metas: list[ItemMeta], scores: Any, info: GuardInfo, seed: int) -> GuardResult:
    unsafe = np.array([m.unsafe for m in metas])
    return GuardResult(
        info=info,
        overall=measure(scores, unsafe, info.threshold, seed=seed, groups=group_codes(metas)),
        slices=slices(metas, scores, info.threshold, seed=seed),
    )


def _geometry(
    items: Sequence[SuiteItem],
    scored: dict[str, Scored],
    layers: Sequence[int],
    sample: Sequence[int],
    settings: AuditSettings,
    watch: Watch,
) -> Iterator[LayerGeometry]:
    before = scored["reference"].hidden
    if before is None or not layers:
        return
    from guardkeel.evaluation.geometry_results import to_result
    from guardkeel.geometry.layer import measure_layer

    after = scored["candidate"].hidden if "candidate" in scored else None
    unsafe, groups = np.array(_unsafe(items, sample)), _groups(items, sample)
    for index, layer in enumerate(layers):
        watch("geometry", index, len(layers))
        yield to_result(
            measure_layer(
                layer,
                before[index],
                after[index] if after is not None else None,
                unsafe,
                rank=settings.rank,
                seed=settings.seed,
                draws=settings.draws,
                groups=groups,
            )
        )
    watch("geometry", len(layers), len(layers))


def _summed_geometry(
    items: Sequence[SuiteItem],
    sample: Sequence[int],
    layers: Sequence[int],
    summed: Summed,
    paired: bool,
    settings: AuditSettings,
) -> Iterator[LayerGeometry]:
    """Geometry of more items than activations can be kept of."""
    from guardkeel.evaluation.geometry_results import to_result
    from guardkeel.geometry.streaming import measure_moments

    cells = fold_and_label(_unsafe(items, sample), _groups(items, sample), settings.seed)
    found = summed([items[k].judgement for k in sample], cells, layers, paired)
    for layer, moments in zip(layers, found, strict=True):
        yield to_result(
            measure_moments(
                layer, moments, paired=paired, rank=settings.rank, seed=settings.seed, draws=settings.draws
            )
        )


def _unsafe(items: Sequence[SuiteItem], sample: Sequence[int]) -> list[bool]:
    return [items[k].label == "unsafe" for k in sample]


def _groups(items: Sequence[SuiteItem], sample: Sequence[int]) -> list[tuple[str, str]]:
    """Suites name their groups and examples each for itself."""
    return [(items[k].suite, e.group or f"#{e.id}") for k in sample for e in (items[k].example,)]


def _save_states(
    path: Path,
    scored: dict[str, Scored],
    layers: Sequence[int],
    sample: Sequence[int],
    items: Sequence[SuiteItem],
) -> None:
    """Activations at the verdict position, (items, width) per guard and layer, and their labels."""
    from safetensors.numpy import save

    tensors = {
        f"{role}.{layer}": np.ascontiguousarray(found.hidden[k])
        for role, found in scored.items()
        if found.hidden is not None
        for k, layer in enumerate(layers)
    }
    tensors["unsafe"] = np.array([items[k].label == "unsafe" for k in sample], np.uint8)
    ids = json.dumps([items[k].judgement.id for k in sample])
    with atomic_writer(path) as out:
        out.write(save(tensors, metadata={"ids": ids}))  # one key: safetensors writes several in any order


def _not_measured(results: AuditResults) -> list[str]:
    """In words, what a reader could expect and will not find."""
    notes = []
    overall = (results.candidate or results.reference).overall
    for name in ("recall", "fpr", "auroc"):
        estimate = getattr(overall, name)
        if estimate.value is None:
            notes.append(f"{name}: {estimate.note}")
    sides = {s.value for s in results.reference.slices if s.by == "side"}
    notes += [
        f"{side} side: no suite has labels for it"
        for side in ("prompt", "response", "trajectory")
        if side not in sides
    ]
    languages = {s.value for s in results.reference.slices if s.by == "language"}
    if not languages - {"en"}:
        notes.append("languages other than English: no labelled items")
    if results.candidate is None:
        notes.append("change: no candidate was given")
    return notes
