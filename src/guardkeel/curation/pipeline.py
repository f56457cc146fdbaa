"""The pipeline: its steps in order, each made once.

A step is made in a hidden folder, which takes its name when it is finished: a kill leaves nothing half-done behind.
It is made again only if what it follows from has changed: its table, the files that it reads, the rows before it, its
own version. The jury besides keeps every single vote (jury/cache.py), so that it goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import ValidationError

from guardkeel.curation.config import CurateConfig, read_config
from guardkeel.curation.jury.cache import MEMORY, VoteCache
from guardkeel.curation.jury.cost import CostEstimate
from guardkeel.curation.jury.jurors import open_jurors
from guardkeel.curation.steps import STEPS, Context, Done, Step
from guardkeel.curation.steps.adjudicate import Adjudicate
from guardkeel.curation.steps.base import STEP, OnCost, Watch
from guardkeel.curation.steps.jury import Jury, plan
from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.records import RunRecord, toml_text, write_json, write_record, write_text

CONFIG = "config.toml"

State = Literal["done", "to do", "depends"]


@dataclass(frozen=True)
class Planned:
    """A step before the run. `depends`: whether it is done is known when the steps before it are."""

    step: str
    state: State
    done: Done | None = None
    estimates: tuple[CostEstimate, ...] = ()


@dataclass
class Curated:
    """What a run left: its folder, every step, and the names of those that were made now."""

    out: Path
    steps: list[Done] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    @property
    def dataset(self) -> Path:
        """The folder of the finished set."""
        return self.out / "dataset"

    def step(self, name: str) -> Done:
        """What a step found; raises DataError where the pipeline has none of this name."""
        found = next((s for s in self.steps if s.step == name), None)
        if found is None:
            raise DataError(f"no step {name!r}", remedy=f"there are {', '.join(s.step for s in self.steps)}")
        return found


def curate(config: CurateConfig | Mapping[str, Any], out: str | Path, **options: Any) -> Curated:
    """Build a set of guard data.

    Args:
        config: the pipeline, or its tables.
        out: its folder. What is done there already is not done again.
        options: those of `run`.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    given = config if isinstance(config, CurateConfig) else read_config(None, config)
    return run(given, Path(out), **options)


def accept(estimates: Sequence[CostEstimate], currency: str) -> None:
    """Go on whatever it costs; the budget still holds."""


def refuse_unbounded(budget: float | None) -> OnCost:
    """Ask nobody for money unless there is a budget that covers it."""

    def check(estimates: Sequence[CostEstimate], currency: str) -> None:
        total = sum(e.money or 0.0 for e in estimates)
        if total and budget is None:
            raise ConfigError(
                f"the jury would cost about {total:.2f} {currency}, and there is no budget",
                remedy="set jury.budget, or say --yes",
            )
        if budget is not None and total > budget:
            raise ConfigError(
                f"the jury would cost about {total:.2f} {currency}, more than its budget of {budget:.2f}",
                remedy="raise jury.budget, take cheaper jurors or fewer items",
            )

    return check


def run(
    config: CurateConfig,
    out: Path,
    *,
    command: Sequence[str] = (),
    until: str | None = None,
    redo: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
    on_cost: OnCost | None = None,
    on_step: Callable[[Done, bool], None] = lambda done, now: None,
) -> Curated:
    """Run, or go on with, a pipeline.

    Args:
        config: the pipeline.
        out: its folder.
        command: for the record.
        until: the last step to make; default: all.
        redo: steps to make again although nothing changed.
        watch: called with (what, done, total).
        on_cost: called with the jury's estimates before anybody is asked; raises to stop. Default: a jury that costs
            money needs a budget.
        on_step: called with each step and whether it was made now.
    """
    steps = _steps(config, until, redo)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    made = Curated(out)
    before: list[tuple[Done, Path]] = []
    with _held(out):
        write_text(out / CONFIG, toml_text(config.model_dump(mode="json")))
        for step in steps:
            inputs = _inputs(step, config, out, watch)
            digest = step.digest(inputs, made.steps)
            done = None if step.name in redo else _done(step, out, digest)
            if done is None:
                context = Context(
                    config=config,
                    out=out,
                    folder=_hidden(step, out, "new"),
                    before=before,
                    watch=watch,
                    on_cost=on_cost or refuse_unbounded(config.jury.budget if config.jury else None),
                )
                done = _make(step, context, inputs, digest)
                made.made.append(step.name)
            before.append((done, step.folder(out)))
            made.steps.append(done)
            on_step(done, step.name in made.made)
        if until is None:
            write_record(out, _record(config, made, begun, command))
    return made


def planned(
    config: CurateConfig, out: Path, *, watch: Watch = lambda what, done, total: None
) -> list[Planned]:
    """What `run` would do. Sources are resolved, nobody is asked and nothing is written."""
    found: list[Planned] = []
    before: list[tuple[Done, Path]] = []
    known = True
    for step in _steps(config, None, ()):
        inputs = _inputs(step, config, out, watch)
        done = _done(step, out, step.digest(inputs, [d for d, _ in before])) if known else None
        estimates: tuple[CostEstimate, ...] = ()
        if known and done is None and isinstance(step, Jury):
            estimates = _estimates(config, out, before, watch)
        state: State = "done" if done else "to do" if known else "depends"
        found.append(Planned(step.name, state, done, estimates))
        known = known and done is not None
        if done is not None:
            before.append((done, step.folder(out)))
    return found


def _inputs(step: Step, config: CurateConfig, out: Path, watch: Watch) -> dict[str, Any]:
    """What the rows of a step follow from: for adjudication also what people have decided since."""
    found = step.inputs(config, watch)
    return found | step.decided(config, out) if isinstance(step, Adjudicate) else found


def _estimates(
    config: CurateConfig, out: Path, before: list[tuple[Done, Path]], watch: Watch
) -> tuple[CostEstimate, ...]:
    assert config.jury is not None
    jurors = open_jurors(
        config.jury.juror, offline=config.offline, watch=watch, engine=config.engine_settings()
    )
    path = Path(config.jury.cache) if config.jury.cache else out / "jury.sqlite"
    context = Context(config, out, out, before, watch, accept)
    with VoteCache(path if path.exists() else MEMORY) as cache:
        return tuple(plan(context, jurors, cache))


def _steps(config: CurateConfig, until: str | None, redo: Sequence[str]) -> list[Step]:
    steps = [s for s in STEPS if s.wanted(config)]
    names = [s.name for s in steps]
    unknown = next((n for n in (*([until] if until else []), *redo) if n not in names), None)
    if unknown is not None:
        raise ConfigError(
            f"this pipeline has no step {unknown!r}", remedy=f"its steps are {', '.join(names)}"
        )
    return steps[: names.index(until) + 1] if until else steps


def _make(step: Step, context: Context, inputs: dict[str, Any], digest: str) -> Done:
    """Make a step in its hidden folder, then put it in its place."""
    new, old, place = context.folder, _hidden(step, context.out, "old"), step.folder(context.out)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    begun = time.monotonic()
    step.run(context)
    shutil.rmtree(new / "scratch", ignore_errors=True)
    rows, rows_digest = context.written
    done = Done(
        step=step.name,
        version=step.version,
        digest=digest,
        inputs=inputs,
        rows=rows,
        rows_digest=rows_digest,
        left_out=context.left_out,
        counts={k: v for k, v in context.counts.items() if v},
        results=context.results,
        seconds=round(time.monotonic() - begun, 3),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(new / STEP, done.model_dump(mode="json"))
    _sync(new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return done


def _sync(folder: Path) -> None:
    """Let everything reach the disk before the folder gets its name."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _hidden(step: Step, out: Path, ending: str) -> Path:
    place = step.folder(out)
    return place.with_name(f".{place.name}.{ending}")


def _done(step: Step, out: Path, digest: str) -> Done | None:
    """What a finished step left; None where it is not there, or was made from something else."""
    try:
        done = Done.model_validate_json((step.folder(out) / STEP).read_bytes())
    except (OSError, ValidationError):
        return None
    return done if done.digest == digest else None


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder for this process alone; raises ConfigError for a folder of something else, RunError for a busy one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in out.iterdir()}
    except OSError as e:
        raise ConfigError(f"{out}: cannot be written ({e.strerror})", remedy="choose another --out") from e
    if names - {".lock"} and CONFIG not in names:
        raise ConfigError(f"{out}: is not empty, and no curate pipeline's", remedy="choose another --out")
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as e:
        raise RunError(f"{out}: another process is at work there", remedy="wait for it") from e
    try:
        yield
    finally:
        lock.release()


def _record(config: CurateConfig, made: Curated, begun: str, command: Sequence[str]) -> RunRecord:
    return RunRecord.finished(
        verb="curate",
        started_at=begun,
        command=list(command),
        inputs={s.step: s.digest for s in made.steps},
        config=config.model_dump(mode="json"),
        seeds={"seed": config.seed},
        timings={s.step: s.seconds for s in made.steps},
        counts={"rows": made.steps[-1].rows} | {f"{s.step}: left out": s.left_out for s in made.steps},
        results={s.step: {"counts": s.counts, **s.results} for s in made.steps},
        not_measured=[f"split against {k}: {v}" for k, v in made.step("split").results["unread"].items()],
    )
