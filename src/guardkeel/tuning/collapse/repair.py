"""A repair after the fact, on the adapter of a finished plain run: nothing is trained twice.

The result is a run directory like any other; its record says from which run the weights came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from guardkeel.guards.load import AnyGuard, guard_path, load_checkpoint
from guardkeel.models.adapters import attach_adapter
from guardkeel.models.loading import checkpoint_digest
from guardkeel.records import (
    claim,
    read_record,
    toml_text,
    value_digest,
    write_text,
)
from guardkeel.tuning.alignment import alignment
from guardkeel.tuning.check import check
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.gather import Gathered, Watch, encoded
from guardkeel.tuning.learned import measure
from guardkeel.tuning.learner import learner as learner_of
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.probes import trained_modules
from guardkeel.tuning.results import Learned, TuneResults
from guardkeel.tuning.run import TUNED, base_name, unaligned_path, write_run
from guardkeel.tuning.weights import save


def repair(
    config: TuneConfig,
    trained: Path,
    folder: Path,
    *,
    gathered: Gathered,
    source: str,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> TuneResults:
    """Apply the configuration's post-hoc method to what the run in `trained` made, and measure it as that was.

    `source` names that run in the record. Time, memory and loss before are the trained run's own.

    Raises:
        ModelError, ConfigError: the adapter cannot be repaired this way.
    """
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    part = check(config)
    assert isinstance(part, PostHoc)  # the grid's reader refuses others
    path = guard_path(config.guard, progress=watch, offline=config.offline)
    plain = TuneResults.model_validate(read_record(trained).results)
    inputs = {"guard": checkpoint_digest(path), "repaired": checkpoint_digest(trained / TUNED)}
    inputs |= gathered.digests
    claim(folder, value_digest([inputs, config.model_dump(exclude={"offline"})]), begun=TUNED)
    write_text(folder / "config.toml", toml_text(config.model_dump()))

    watch(f"repair ({config.method})", 0, 1)
    guard = load_checkpoint(
        config.guard,
        family=config.family,
        dtype=config.dtype,
        device=config.device,
        offline=config.offline,
        progress=watch,
    )
    guard.model = model = attach_adapter(guard.model, trained / TUNED)
    model.peft_config["default"].base_model_name_or_path = str(path)  # a name would be looked for on a hub
    if "unaligned" in part.needs:
        before = unaligned_path(config, watch)
        part.alignment = alignment(path, before, list(trained_modules(model)))  # type: ignore[attr-defined]
    done = part.apply(model)
    results = plain.model_copy(
        update={
            "method": config.method,
            "after": _measured(config, guard, gathered, plain.threshold_before),
            "offsets": dict(guard.offsets),
            "after_shipped": None,
            "threshold": plain.threshold_before,
            "monitor": [],
            "notes": [f"not trained: {source} repaired", f"{part.name}: {json.dumps(done)}"],
        }
    )
    save(
        model,
        folder / TUNED,
        base=base_name(config.guard, path),
        settings={
            "family": guard.family,
            "name": folder.parent.name,
            "threshold": results.threshold,
            **({"offsets": results.offsets} if results.offsets else {}),
            "provenance": {"guard": inputs["guard"], "method": config.method, "repaired": source},
        },
    )
    write_run(
        folder,
        config,
        inputs,
        gathered,
        results,
        started_at=started_at,
        timings={"total": time.perf_counter() - started},
        command=command,
    )
    (folder / "plan.json").unlink(missing_ok=True)
    watch(f"repair ({config.method})", 1, 1)
    return results


def _measured(config: TuneConfig, guard: AnyGuard, gathered: Gathered, threshold: float) -> Learned | None:
    """What the repaired guard knows of the task."""
    teacher = learner_of(
        guard,
        max_tokens=config.max_tokens,
        answer_weight=config.answer_weight,
        share=not config.checkpointing,
    )
    _, aside, _ = encoded(gathered, teacher, config.max_tokens)
    return measure(guard.model, teacher, aside, threshold, guard.offsets)
