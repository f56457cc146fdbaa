"""What a sweep reads, found and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.audit import Watch
from guardkeel.evaluation.policy import load_policy
from guardkeel.evaluation.selection import select
from guardkeel.evaluation.suites import Suite, SuiteItem, load_suite
from guardkeel.fusion.sweep.candidates import Candidate, TaskData, candidates, task_data
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.engine import check_models
from guardkeel.fusion.sweep.grid import Asked, points
from guardkeel.fusion.sweep.results import Failed
from guardkeel.guards.load import guard_path
from guardkeel.models.adapters import is_adapter
from guardkeel.models.checks import check_checkpoint
from guardkeel.records import file_digest
from guardkeel.tuning.gather import Gathered


@dataclass(frozen=True)
class Material:
    """What a sweep reads, found and checked before anything is loaded."""

    path: Path
    candidates: Sequence[Candidate]
    tasks: Sequence[TaskData]
    suites: Sequence[Suite]
    items: Sequence[SuiteItem]
    asked: Sequence[Asked]
    skipped: Sequence[Failed]
    models: dict[str, str]
    """Digests of the models, by what they are."""
    digests: dict[str, str]
    """Of the files of extras, by their names."""
    bytes: int
    """What holding all models' tensors takes."""


def material(config: SweepConfig, watch: Watch, given: Mapping[str, Gathered] | None = None) -> Material:
    """Find and read what the configuration names; `given` are rows of candidates' tasks, by the candidates' names.

    Raises:
        ConfigError, DataError, ModelError, ResourceError: naming what cannot be used.
    """
    load_policy(config.policy)
    path = guard_path(config.reference, progress=watch, offline=config.offline)
    if is_adapter(path) or not path.is_dir():
        raise ConfigError(
            f"{config.reference}: not a whole checkpoint", remedy="merge it into its base first"
        )
    check_checkpoint(path, progress=watch)
    found = candidates(config, watch)
    asked, skipped = points(config, [c.name for c in found])
    held, models = check_models(config, path, found, watch, unaligned=any(a.unaligned for a in asked))
    names = sorted({file for a in asked for file in a.extras.values()})
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such file", remedy="give the file that was measured or learned")
    suites = [load_suite(s, data=config.data, offline=config.offline, progress=watch) for s in config.suites]
    items = [i for i in select(suites, limit=config.limit) if i.split == "calibrate"]
    for label in ("unsafe", "safe"):
        if not any(i.label == label for i in items):
            raise DataError(
                f"the suites have no {label} items in `calibrate`",
                remedy="give suites whose cards have that split",
            )
    tasks = task_data(config, found, watch, given)
    digests = {name: file_digest(name) for name in names}
    return Material(path, found, tasks, suites, items, asked, skipped, models, digests, held)
