"""The chosen point as files: the numbers that were scored, as a checkpoint or as an adapter on the reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardkeel.fusion.adapter_output import Parts, assemble, places
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.plan import make_plan
from guardkeel.fusion.sources import Sources
from guardkeel.fusion.stream import fused, run
from guardkeel.guards.embedded import SETTINGS
from guardkeel.models.loading import task_of
from guardkeel.records import value_digest
from guardkeel.resources import Progress
from guardkeel.tuning.run import base_name

_TOLERANCE = 0.01


def write(
    sources: Sources,
    method: Method,
    out: Path,
    *,
    seed: int,
    settings: Mapping[str, Any],
    adapter: bool,
    dtype: str | None,
    reference: str,
    progress: Progress,
) -> None:
    """Write `out`, which must not be there; it appears whole, and a killed one is gone on with.

    Args:
        sources: what is read.
        method: with its settings.
        out: the folder.
        seed: of the point.
        settings: guardkeel.json.
        adapter: a LoRA, with the rank that each module's change takes, instead of whole weights.
        dtype: of whole weights; by default the reference's.
        reference: what an adapter says that it is on.
        progress: called with (what, done, total).
    """
    if not adapter:
        text = json.dumps(dict(settings), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        run(
            make_plan(sources, method, dtype=dtype),
            method,
            out,
            seed=seed,
            files={SETTINGS: text.encode()},
            progress=progress,
        )
        return
    before = sources.reference
    kept = out.parent / f".{out.name}.{value_digest(dict(settings))[:8]}.parts"
    candidates = [c.folder for c in sources.candidates]
    parts = Parts(kept, places(before.checkpoint), candidates, rank=None, tolerance=_TOLERANCE, seed=seed)
    names = [name for name, spec in before.specs.items() if spec.floating]
    linear = set(parts.order(names))
    # What is kept whole is known before the factors of its module are made.
    for later in (False, True):
        chosen = [n for n in linear if parts.where.takes_factors(n) is later]
        for name, tensor in fused(sources, method, chosen, seed):
            parts.add(name, before.read(name), tensor)
            progress("write the adapter", len(parts.done), len(names))
    assemble(
        parts,
        out,
        before.read,
        base=base_name(reference, before.folder),
        task=task_of(before.config, before.folder),
        settings=settings,
    )
    shutil.rmtree(kept, ignore_errors=True)
