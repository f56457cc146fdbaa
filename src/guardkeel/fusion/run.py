"""A fuse from its configuration: a damaged guard and its reference in, the repaired guard and the record of it out.

Run directory: run.json · config.toml · fused/ (the checkpoint or the adapter, with its guardkeel.json). While it runs
there are plan.json, .fused.unfinished/ or .fused.parts/, and diagnostics.jsonl too; from these it goes on after a kill.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guardkeel.fusion import stream
from guardkeel.fusion.config import HOW, FuseConfig, read_config
from guardkeel.fusion.diagnostics import HELD, UNDONE, Journal, measure, summarised
from guardkeel.fusion.inputs import Watch, digests, method_of, opened
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.pieces import Pieces
from guardkeel.fusion.plan import Item
from guardkeel.fusion.prepare import Prepared, prepare, stored
from guardkeel.fusion.results import AdapterFit, Diagnostics, FuseResults
from guardkeel.fusion.sources import Source, one_thread, open_source
from guardkeel.fusion.tensorfile import FLOATS
from guardkeel.guards.embedded import SETTINGS
from guardkeel.guards.load import guard_settings
from guardkeel.guards.registry import guess
from guardkeel.models.devices import peak_memory
from guardkeel.records import (
    RunRecord,
    claim,
    read_record,
    toml_text,
    value_digest,
    write_record,
    write_text,
)

VERB = "fuse"
FUSED = "fused"
_PARTS = ".fused.parts"
_LINES = "diagnostics.jsonl"
_BEGUN = "*fused*"


def fuse(
    candidates: str | Sequence[str], reference: str = "keel-135m", *, out: str | Path, **config: Any
) -> FuseResults:
    """Give damaged guards their safety back by weights alone.

    Args:
        candidates: what fine-tuning made of the reference: folders, adapters, GGUF files, run directories, references.
        reference: the guard as it was.
        out: the run directory. An unfinished run of the same configuration in it is resumed.
        config: any field of FuseConfig: method, options, output, dtype, …

    Returns:
        The results, which are also in out/run.json. The fused guard is in out/fused.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    named = [candidates] if isinstance(candidates, str) else list(candidates)
    return run(read_config(None, {"candidates": named, "reference": reference, **config}), Path(out))


def run(
    config: FuseConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> FuseResults:
    """Run, or resume, the fuse of a configuration in a folder."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    method = method_of(config)
    with opened(config, method, watch) as sources:
        prepared = prepare(config, method, sources)
        inputs = digests(sources, watch)
        claim(folder, value_digest([inputs, config.model_dump(exclude=set(HOW))]), begun=_BEGUN)
        write_text(folder / "config.toml", toml_text(config.model_dump()))
        if not list(folder.glob(_BEGUN)):  # lines of a run that failed are not this one's
            (folder / _LINES).unlink(missing_ok=True)
        journal = Journal(folder / _LINES, _dtypes(prepared)) if config.diagnostics else None
        settings = _settings(prepared, inputs, folder)
        make = _adapter if config.output == "adapter" else _checkpoint
        made = make(prepared, folder, journal, settings, watch)
        results = _results(prepared, folder, journal, made, time.perf_counter() - started)
    _write(folder, config, inputs, results, started_at, command)
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    for leftover in (_LINES, "plan.json"):
        (folder / leftover).unlink(missing_ok=True)
    return results


@dataclass(frozen=True)
class _Made:
    """How well an adapter fits, and what worker processes took of memory at their peak."""

    fit: AdapterFit | None = None
    workers: int = 0


def _dtypes(p: Prepared) -> dict[str, Any]:
    """What each tensor of a checkpoint is stored in; an adapter keeps its change in factors of its own."""
    if p.config.output == "adapter":
        return {}
    return {i.name: FLOATS[i.spec.dtype] for i in p.plan.items if i.spec.floating}


def taken_up(config: FuseConfig, folder: Path, watch: Watch) -> FuseResults | None:
    """The results of a run of this configuration on these very models that is finished; None where there is none."""
    if not (folder / "run.json").is_file():
        return None
    record = read_record(folder)
    given = config.model_dump(mode="json")
    if record.verb != VERB or record.config | {key: given[key] for key in HOW} != given:
        return None
    with opened(config, method_of(config), watch) as sources:
        same = record.inputs == digests(sources, watch)
    return FuseResults.model_validate(record.results) if same else None


def _checkpoint(
    p: Prepared, folder: Path, journal: Journal | None, settings: Mapping[str, Any], watch: Watch
) -> _Made:
    """Write fused/ as a checkpoint, or go on with it; it may be there, where only the record is missing."""
    resumed, workers = True, 0
    if not (folder / FUSED).exists():
        streamed = stream.run(
            p.plan,
            p.method,
            folder / FUSED,
            seed=p.config.seed,
            device=p.device,
            observer=journal,
            files={SETTINGS: _json(settings)},
            progress=_megabytes(watch),
        )
        resumed, workers = streamed.resumed > 0, streamed.workers
    if journal is None:
        return _Made(workers=workers)
    journal.read()
    left = [i for i in p.plan.items if resumed or i.way != "fuse"]
    with open_source(folder / FUSED) as after:
        _measure_left(p, journal, left, lambda item, tensors: after.read(item.name).float())
    return _Made(workers=workers)


def _adapter(
    p: Prepared, folder: Path, journal: Journal | None, settings: Mapping[str, Any], watch: Watch
) -> _Made:
    """Write fused/ as an adapter, or go on with it."""
    import torch

    from guardkeel.fusion.adapter_output import Parts, assemble, places
    from guardkeel.models.loading import task_of
    from guardkeel.tuning.run import base_name

    reference, config = p.sources.reference, p.config
    parts = Parts(
        folder / _PARTS,
        places(reference.folder),
        [c.folder for c in p.sources.candidates],
        rank=config.rank,
        tolerance=config.tolerance,
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        seed=config.seed,
    )
    pieces = Pieces(p.sources, p.method, config.seed, p.device, journal)
    items = {i.name: i for i in p.plan.items if i.spec.floating}
    total = sum(i.spec.bytes for i in items.values())
    done = sum(items[name].spec.bytes for name in parts.done)
    for name in parts.order(items):
        item = items[name]
        if item.way == "reference" or (item.way == "fuse" and pieces.unchanged(name)):
            parts.same(name)
        else:
            parts.add(name, reference.read(name), _whole(p, pieces, item, journal))
        done += item.spec.bytes
        _megabytes(watch)("fuse", done, total)
    if journal is not None:
        taken = [i for i in items.values() if i.way != "fuse"]
        _measure_left(
            p, journal, taken, lambda i, t: t.reference if i.way == "reference" else t.candidates[0]
        )
    shutil.rmtree(folder / FUSED, ignore_errors=True)
    fit = assemble(
        parts,
        folder / FUSED,
        reference.read,
        base=base_name(config.reference, reference.folder),
        task=task_of(reference.config, reference.folder),
        settings=settings,
    )
    return _Made(fit)


def _whole(p: Prepared, pieces: Pieces, item: Item, journal: Journal | None) -> Any:
    """A tensor of the output in float32, the same numbers as a checkpoint's before they are rounded."""
    import torch

    if item.way == "candidate":
        return p.sources.candidates[0].read(item.name).float()
    rows, said = [], []
    with one_thread():  # as in the stream, so that sums are the same
        for first, last in item.pieces():
            piece, line = pieces.fused(item, first, last)
            rows.append(piece)
            said.append(line)
    if journal is not None:
        journal.tensor(item.name, said)
    return torch.cat(rows).view(item.spec.shape) if len(rows) > 1 else rows[0]


def _measure_left(
    p: Prepared, journal: Journal, items: Sequence[Item], after: Callable[[Item, Tensors], Any]
) -> None:
    """Measure tensors that the stream did not show: taken over as they are, or finished before a kill lost the line."""
    pieces = Pieces(p.sources, p.method, p.config.seed, p.device)
    for item in items:
        if item.name in journal.lines or not item.spec.floating or pieces.unchanged(item.name):
            continue
        before, *others = (s.read(item.name).float() for s in (p.sources.reference, *p.sources.candidates))
        tensors = Tensors(item.name, before, tuple(others))
        journal.add(measure(tensors, after(item, tensors)))


def _settings(p: Prepared, inputs: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """guardkeel.json: what the reference says of itself, and where these weights come from."""
    reference = p.sources.reference
    said = guard_settings(reference.folder, reference.checkpoint).model_dump(mode="json", exclude_none=True)
    family = p.config.family or said.get("family") or _guessed(reference)
    provenance = {
        "method": p.method.name,
        "settings": p.method.settings.model_dump(mode="json"),
        "seed": p.config.seed,
        "inputs": dict(inputs),
    }
    named = {"name": p.config.name or folder.resolve().name, "provenance": provenance}
    return said | ({"family": family} if family else {}) | named


def _guessed(reference: Source) -> str | None:
    if "SequenceClassification" in str(reference.config.get("architectures")):
        return None  # a classifier needs no family
    return guess(
        reference.reference, reference.checkpoint.name, str(reference.config.get("_name_or_path", ""))
    )


def _results(p: Prepared, folder: Path, journal: Journal | None, made: _Made, seconds: float) -> FuseResults:
    found = None
    if journal is not None:
        found = summarised(journal.lines.values(), len(p.sources.candidates), len(p.plan.items))
    return FuseResults(
        method=p.method.name,
        output=p.config.output,
        name=p.config.name or folder.resolve().name,
        tensors=len(p.plan.items),
        fused=len(p.plan.fused),
        copied=len(p.plan.items) - len(p.plan.fused),
        bytes_read=p.plan.bytes_read,
        bytes_written=sum(f.stat().st_size for f in (folder / FUSED).glob("*.safetensors")),
        peak_memory=peak_memory(p.device) + made.workers,
        seconds=seconds,
        diagnostics=found,
        adapter=made.fit,
        notes=[
            *p.warnings,
            *(_notes(p, found) if found else []),
            *(_misses(p, made.fit) if made.fit else []),
        ],
    )


def _notes(p: Prepared, found: Diagnostics) -> list[str]:
    """What a reader of the diagnostics must not overlook."""
    if found.whole.change == 0:
        return ["the result is the reference itself: nothing of the fine-tuning is left"]
    held = found.whole.rounded
    coarse = []
    if held is not None and held < HELD:
        coarse = [
            f"{stored(p)} holds {100 * held:.0f}% of the change, the rest is lost to rounding: write an adapter "
            "(--output adapter) or float32 (--dtype float32) to keep it"
        ]
    return coarse + [
        f"of the change of {reference} only {100 * share:.1f}% is left by length: the result is all but the reference"
        for reference, share in zip(p.config.candidates, found.whole.shares, strict=True)
        if share is not None and share < UNDONE
    ]


def _misses(p: Prepared, fit: AdapterFit) -> list[str]:
    if p.config.rank is not None and fit.error > p.config.tolerance:
        missed = f"at rank {p.config.rank} the adapter misses {100 * fit.error:.2g}% of the change"
        return [f"{missed}; leave out --rank to let --tolerance decide"]
    return []


def _write(
    folder: Path,
    config: FuseConfig,
    inputs: dict[str, str],
    results: FuseResults,
    started_at: str,
    command: Sequence[str],
) -> None:
    """run.json, which marks the fuse as finished."""
    write_record(
        folder,
        RunRecord.finished(
            verb=VERB,
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings={"total": results.seconds},
            counts={"candidates": len(config.candidates), "tensors": results.tensors, "fused": results.fused},
            results=results.model_dump(mode="json"),
            not_measured=[] if config.diagnostics else ["diagnostics: switched off"],
        ),
    )


def _megabytes(watch: Watch) -> Watch:
    """Progress in bytes, told in megabytes."""
    return lambda what, done, total: watch(
        f"{what}, MB", done // 10**6, None if total is None else total // 10**6
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
