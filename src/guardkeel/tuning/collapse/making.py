"""Making one cell: tune, then audit against what the reference said of the same items.

What a kill leaves is taken up: a fine-tune from its last checkpoint, an audit from its last batch. What cells of a
scenario share is read once in a process (`Workshop`); what the reference said is kept in
out/reference/<digest>/ for all processes.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from guardkeel.errors import DataError, RunError
from guardkeel.evaluation.audit import Known, Source, audit_guards, score_reference
from guardkeel.evaluation.runs import read_audit
from guardkeel.evaluation.settings import AuditSettings
from guardkeel.guards.load import AnyGuard, guard_path, load_checkpoint, with_adapter
from guardkeel.models.adapters import is_adapter
from guardkeel.models.loading import checkpoint_digest
from guardkeel.records import claim, read_record, value_digest, write_json
from guardkeel.results import AuditResults
from guardkeel.tuning.collapse.cell import FILE, Cell, CellTune, read_cell
from guardkeel.tuning.collapse.grid import Plan
from guardkeel.tuning.collapse.material import Material, material
from guardkeel.tuning.collapse.repair import repair
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.gather import Watch
from guardkeel.tuning.results import TuneResults
from guardkeel.tuning.run import TUNED
from guardkeel.tuning.run import run as run_tune

TUNE, AUDIT = "tune", "audit"


class Workshop:
    """Makes cells in a folder, and keeps what the next one may need too."""

    def __init__(
        self,
        out: Path,
        *,
        offline: bool | None = None,
        command: Sequence[str] = (),
        watch: Watch = lambda what, done, total: None,
    ) -> None:
        self.out, self.offline, self.command, self.watch = out, offline, command, watch
        self._material: tuple[str, Material] | None = None
        self._known: tuple[str, Known] | None = None

    def folder(self, name: str) -> Path:
        """Of a cell."""
        return self.out / "cells" / name

    def make(self, plan: Plan) -> tuple[Cell, AuditResults | None]:
        """Make a cell, or go on with it. A fine-tune that could not go on is a cell too, with its error.

        Raises:
            InputError: the cell cannot be made as the grid says.
        """
        folder, config = self.folder(plan.name), plan.config(self.offline)
        claim(folder, plan.digest, begun=f"{TUNE}/*")
        shared = self.material(plan, config)
        known = self.known(config, shared, plan)
        started = time.perf_counter()
        tuned, audit, error = None, None, ""
        try:
            tuned = self._tuned(plan, config, shared, folder / TUNE)
            audit = self._audited(plan, config, shared, known, folder)
        except RunError as e:
            error = e.problem
        cell = Cell(
            scenario=plan.scenario.name,
            arm=plan.arm.name,
            method=plan.method,
            options=plan.arm.options,
            variant=plan.variant.name if plan.variant else "",
            seed=plan.seed,
            family=plan.family,
            kind="guard" if _labelled(shared) else "instructions",
            after=plan.arm.after,
            learning_rate=config.learning_rate,
            steps=config.steps or (tuned.steps if tuned else 0),
            digest=plan.digest,
            tune=_told(tuned) if tuned else None,
            seconds=time.perf_counter() - started,
            error=error,
        )
        write_json(folder / FILE, cell.model_dump(mode="json"))
        (folder / "plan.json").unlink(missing_ok=True)
        return cell, audit

    def material(self, plan: Plan, config: TuneConfig) -> Material:
        """Rows and items of a plan's scenario."""
        key = value_digest(
            [
                config.model_dump(
                    include={"data", "kind", "source", "held_out", "most", "guard_data", "guard_items"}
                ),
                plan.judged_on,
            ]
        )
        if self._material is None or self._material[0] != key:
            self._material = key, material(plan, config, self.watch)
        return self._material[1]

    def known(self, config: TuneConfig, shared: Material, plan: Plan) -> Known:
        """What the reference said of the judged items."""
        settings, source = audit_settings(plan), self._reference(config)
        options = _options(config, plan)
        key = value_digest(
            [
                source.digest,
                {k: v for k, v in options.items() if k != "offline"},
                settings.model_dump(),
                [[i.judgement.id, i.split] for suite in shared.judged for i in suite.items()],
                [suite.digest for suite in shared.judged],
            ]
        )
        if self._known is None or self._known[0] != key:
            with filelock.FileLock(_lock(self.out, f"reference-{key[:16]}")):
                found = score_reference(
                    _judge(config.guard, progress=self.watch, **options),
                    shared.judged,
                    self.out / "reference" / key[:16],
                    source=source,
                    settings=settings,
                    watch=self.watch,
                )
            self._known = key, found
        return self._known[1]

    def _reference(self, config: TuneConfig) -> Source:
        path = guard_path(config.guard, progress=self.watch, offline=config.offline)
        return Source(reference=config.guard, digest=checkpoint_digest(path))

    def _tuned(self, plan: Plan, config: TuneConfig, shared: Material, folder: Path) -> TuneResults:
        if (folder / "run.json").is_file():
            return TuneResults.model_validate(read_record(folder).results)
        if not plan.after:
            _forget_peak()
            return run_tune(config, folder, gathered=shared.gathered, command=self.command, watch=self.watch)
        trained = read_cell(self.folder(plan.after))
        if trained is None:
            raise DataError(f"{plan.after}: not finished", remedy="make it first")
        if trained.error:
            raise RunError(f"there is nothing to repair: {plan.after}: {trained.error}")
        return repair(
            config,
            self.folder(plan.after) / trained.tune_run,
            folder,
            gathered=shared.gathered,
            source=plan.after,
            command=self.command,
            watch=self.watch,
        )

    def _audited(
        self, plan: Plan, config: TuneConfig, shared: Material, known: Known, folder: Path
    ) -> AuditResults:
        if (folder / AUDIT / "run.json").is_file():
            return read_audit(folder / AUDIT)
        tuned, options = folder / TUNE / TUNED, _options(config, plan)
        return audit_guards(
            self._candidate(config, tuned, plan),
            shared.judged,
            folder / AUDIT,
            sources={
                "reference": self._reference(config),
                "candidate": Source(reference=str(tuned), digest=checkpoint_digest(tuned)),
            },
            settings=audit_settings(plan),
            options={k: v for k, v in options.items() if k != "offline"},
            known={"reference": known},
            command=self.command,
            watch=self.watch,
        )

    def _candidate(self, config: TuneConfig, tuned: Path, plan: Plan) -> Iterator[tuple[str, AnyGuard]]:
        options = _options(config, plan)
        if not is_adapter(tuned):
            yield "candidate", _judge(str(tuned), progress=self.watch, **options)
            return
        guard = _judge(config.guard, progress=self.watch, **options)
        with with_adapter(guard, tuned) as candidate:
            yield "candidate", candidate


def _told(results: TuneResults) -> CellTune:
    return CellTune(**results.model_dump(include=set(CellTune.model_fields)))


def audit_settings(plan: Plan) -> AuditSettings:
    """How every cell of a grid is audited; the suites are cut down already."""
    settings = plan.grid.settings
    return AuditSettings(
        geometry=settings.geometry,
        layers=settings.layers,
        geometry_items=settings.geometry_items,
        rank=settings.rank,
        draws=settings.draws,
    )


@contextlib.contextmanager
def taken(out: Path, name: str) -> Iterator[bool]:
    """Hold a cell among all processes that work on a folder; False where another one holds it.

    The operating system drops the hold when its process dies, however it dies.
    """
    lock = filelock.FileLock(_lock(out, name.replace("/", "--")))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(out: Path, name: str) -> Path:
    folder = out / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def _judge(reference: str, **options: Any) -> AnyGuard:
    """A guard that gives verdicts without naming categories, which no table reads and which cost a quarter more."""
    guard = load_checkpoint(reference, **options)
    guard.batches = partial(guard.batches, categories=False)  # type: ignore[method-assign]
    return guard


def _options(config: TuneConfig, plan: Plan) -> dict[str, Any]:
    """Of load_checkpoint, for judging."""
    chosen = config.model_dump(include={"family", "dtype", "device", "offline"})
    return chosen | {"max_tokens": plan.grid.settings.max_tokens}


def _labelled(shared: Material) -> bool:
    from guardkeel.tuning.targets import Target

    return isinstance(shared.gathered.task[0], Target)


def _forget_peak() -> None:
    """Let the peak of memory begin anew, where the system can, for it is measured by cell."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
