"""Learning a mask from its configuration: guards and data in, mask.safetensors and the record of what it does out.

Run directory: run.json · config.toml · mask.safetensors · masks.jsonl (a line a tensor) · log.jsonl (a line a step) ·
fused/ (of space `factors`: the adapter, masked). While it is under way also reference.safetensors (what θ_safe said of
the rows) and state.safetensors.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from guardkeel.errors import ModelError
from guardkeel.fusion.diagnostics import UNDONE
from guardkeel.fusion.methods.merging import Merging
from guardkeel.fusion.somf.changes import Change, dense_changes, factor_changes
from guardkeel.fusion.somf.config import MaskConfig, read_config
from guardkeel.fusion.somf.export import MASK, describe, distances, masked_adapter, options, write_mask
from guardkeel.fusion.somf.files import read_tensors, write_tensors
from guardkeel.fusion.somf.fused import Fused, Logits
from guardkeel.fusion.somf.learn import STATE, Learning, Term, learn, value
from guardkeel.fusion.somf.mask import drawn, exported
from guardkeel.fusion.somf.plan import MaskPlan, planned
from guardkeel.fusion.somf.results import MaskResults, Spread, Values
from guardkeel.fusion.somf.rows import Rows
from guardkeel.fusion.sources import Source, open_source
from guardkeel.guards.load import AnyGuard, load_checkpoint
from guardkeel.models.devices import peak_memory
from guardkeel.records import (
    RunRecord,
    claim,
    toml_text,
    value_digest,
    write_record,
    write_text,
)

REFERENCE, MASKS, FUSED = "reference.safetensors", "masks.jsonl", "fused"

Watch = Callable[[str, int, int | None], None]


def mask(candidates: str | Sequence[str], *, out: str | Path, **config: Any) -> MaskResults:
    """Learn a safety mask over what fine-tuning changed (SOMF).

    Args:
        candidates: the damaged guards: checkpoints, LoRA adapters, GGUF files.
        out: the run directory; an unfinished run of the same configuration in it is resumed.
        config: any field of MaskConfig: reference, objective, granularity, steps, …

    Returns:
        The results, which are also in out/run.json. The mask is out/mask.safetensors.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    listed = [candidates] if isinstance(candidates, str) else list(candidates)
    return run(read_config(None, config | {"candidates": listed}), Path(out))


def plan(config: MaskConfig, watch: Watch = lambda what, done, total: None) -> MaskPlan:
    """What learning will hold in memory; reads headers alone."""
    with _opened(config, watch) as (reference, candidates):
        return planned(config, reference, candidates)


def run(
    config: MaskConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> MaskResults:
    """Learn, or go on learning, the mask of a configuration in a folder."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    with _opened(config, watch) as (reference, candidates):
        sizes = planned(config, reference, candidates)
        sizes.check(force=config.force)
        rows = Rows(config, watch)
        inputs = {"reference": reference.base_digest}
        for i, source in enumerate((reference, *candidates)):
            who = f"candidate {i}" if i else "reference"
            inputs |= {who: source.base_digest} | ({f"{who}’s adapter": source.digest} if source.base else {})
        inputs |= rows.digests
        digest = value_digest([inputs, config.model_dump(exclude={"offline", "force", "every"})])
        claim(folder, digest, begun=STATE)
        write_text(folder / "config.toml", toml_text(config.model_dump(mode="json")))
        guard = safe_guard(config, watch)
        if config.space == "factors":
            changes = factor_changes(reference, candidates[0])
        else:
            changes = dense_changes(reference, candidates)
        adapter = candidates[0].folder
    fused = fused_guard(config, guard, changes)
    terms = rows.terms(guard)
    _prepare(terms, fused, folder / REFERENCE, digest, watch)
    how = Learning(
        steps=config.steps,
        learning_rate=config.learning_rate,
        batch=config.batch,
        temperature=config.temperature,
        sample=config.sample,
        every=config.every,
        seed=config.seed,
    )
    begun = time.perf_counter()
    learn(fused, terms, how, folder, digest=digest, watch=lambda n: watch("learn masks", n, config.steps))
    ended = time.perf_counter()
    results = concluded(config, fused, terms, folder, inputs).model_copy(
        update={"peak_memory": peak_memory(str(guard.model.device)), "plan": sizes}
    )
    if config.space == "factors":
        shutil.rmtree(folder / FUSED, ignore_errors=True)
        masked_adapter(adapter, folder / MASK, folder / FUSED)
    record = RunRecord.finished(
        verb="fuse mask",
        started_at=started_at,
        command=list(command),
        inputs=inputs,
        config=config.model_dump(mode="json"),
        seeds={"seed": config.seed},
        timings={"total": time.perf_counter() - started, "steps": ended - begun},
        counts={t.name: len(t.objective) for t in terms} | {"steps": config.steps},
        results=results.model_dump(mode="json"),
    )
    write_record(folder, record)
    for leftover in (STATE, REFERENCE, "plan.json"):
        (folder / leftover).unlink(missing_ok=True)
    return results


def safe_guard(config: MaskConfig, watch: Watch = lambda what, done, total: None) -> AnyGuard:
    """θ_safe, loaded; an adapter is merged into its base, in the number format of the forward pass."""
    guard = load_checkpoint(
        config.reference,
        family=config.family,
        dtype=config.dtype,
        device=config.device,
        offline=config.offline,
        progress=watch,
    )
    if hasattr(guard.model, "merge_and_unload"):
        guard.model = guard.model.merge_and_unload(safe_merge=True).eval()
    return guard


def fused_guard(config: MaskConfig, guard: AnyGuard, changes: Mapping[str, Change]) -> Fused:
    """θ_safe with changes and masks as configured, the masks at their start."""
    device = guard.model.device
    logits = Logits(
        changes.values(),
        granularity=config.granularity,
        rescale=config.rescaled,
        init=config.init,
        device=device,
    )
    how = Merging(merge=config.merge, scale=config.scale, density=config.density, drop=config.drop)
    return Fused(guard.model, {n: c.to(device) for n, c in changes.items()}, logits, how, config.seed)


def concluded(
    config: MaskConfig, fused: Fused, terms: Sequence[Term], folder: Path, inputs: Mapping[str, str]
) -> MaskResults:
    """Write the learned masks, and measure what they do."""
    draw = exported(config.export, config.temperature, config.threshold)
    known = describe(fused, draw, config.temperature)
    said = config.model_dump(mode="json")
    shown = {k: said[k] for k in ("granularity", "space", "export", "temperature", "threshold", "seed")}
    write_mask(folder / MASK, fused, draw, known, shown | {"inputs": dict(inputs), "settings": said})
    write_text(folder / MASKS, "".join(t.model_dump_json() + "\n" for t in known))

    density = float(fused.logits.density(draw))
    at = partial(_value, terms, config.measured)
    drawn_values = [
        at(fused.at(drawn(config.seed, config.steps + i, config.temperature))) for i in range(config.draws)
    ]
    total = sum(t.values for t in known)
    return MaskResults(
        weights=len(fused.changes),
        values=total,
        masks=sum(t.masks for t in known),
        density=density,
        variance=sum(t.variance * t.values for t in known) / total,
        objective=Values(
            rows=min(config.measured, max(len(t.objective) for t in terms)),
            reference=at(fused.model),
            unmasked=at(fused.at(lambda name, logits: torch.ones_like(logits))),
            uniform=at(fused.at(lambda name, logits: torch.full_like(logits, density))),
            learned=at(fused.at(draw)),
            draws=_spread(drawn_values),
        ),
        options=options(fused, draw) if config.space == "delta" else {},
        diagnostics=(found := distances(fused, draw)),
        notes=[
            f"of candidate {i}’s change {share:.1%} is left: the fusion is all but the reference"
            for i, share in enumerate(found.whole.shares, 1)
            if share is not None and share < UNDONE
        ],
    )


@contextmanager
def _opened(config: MaskConfig, watch: Watch) -> Iterator[tuple[Source, list[Source]]]:
    with ExitStack() as stack:
        names = [config.reference, *config.candidates]
        reference, *candidates = (
            stack.enter_context(open_source(name, progress=watch, offline=config.offline)) for name in names
        )
        yield reference, candidates


def _prepare(terms: Sequence[Term], fused: Fused, path: Path, digest: str, watch: Watch) -> None:
    """What θ_safe says of the rows: kept with the run, and read where it is there."""
    if path.is_file():
        held, said = read_tensors(path)
        if said.get("digest") == digest:
            for i, term in enumerate(terms):
                term.objective.reference = {
                    name.partition("/")[2]: t for name, t in held.items() if name.startswith(f"{i}/")
                }
            return
    for term in terms:
        term.objective.prepare(fused.model, partial(_told, watch, len(term.objective)))
    held = {f"{i}/{name}": t for i, term in enumerate(terms) for name, t in term.objective.reference.items()}
    if held:
        write_tensors(path, held, {"digest": digest})


def _told(watch: Watch, rows: int, done: int) -> None:
    watch("ask the reference", done, rows)


def _value(terms: Sequence[Term], rows: int, model: Any) -> float:
    found = value(model, terms, rows)
    if found != found:  # noqa: PLR0124 - only NaN is not itself
        raise ModelError("the objective is not a number", remedy="use dtype float32")
    return found


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(
        draws=len(values),
        mean=statistics.fmean(values),
        sd=statistics.stdev(values) if len(values) > 1 else 0.0,
        low=min(values),
        high=max(values),
    )
