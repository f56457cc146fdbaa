"""The damaged guards: where their weights are, and the rows of their task that were kept aside to measure its gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from guardkeel.errors import ConfigError, DataError, InputError
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.guards.load import guard_path
from guardkeel.records import RunRecord, read_record, value_digest
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.data import read_data
from guardkeel.tuning.gather import Gathered, Task, Watch, first, gather, gather_beside
from guardkeel.tuning.results import Learned, TuneResults
from guardkeel.tuning.run import TUNED
from guardkeel.tuning.targets import Target

_GIVE = "give rows that it has not learned with --task"


@dataclass(frozen=True)
class Candidate:
    """A damaged guard. `reference` is what loads it; `run` its fine-tune, where that is known."""

    name: str
    reference: str
    path: Path
    run: RunRecord | None = None


@dataclass(frozen=True)
class TaskData:
    """Rows of a task that were not learned, how they are to be read, and what the reference's loss on them was."""

    rows: Sequence[Task]
    digest: str
    max_tokens: int = 512
    answer_weight: float = 0.3
    before: Learned | None = None


def candidates(config: SweepConfig, watch: Watch) -> list[Candidate]:
    """The candidates in their order, under names of their own.

    Raises:
        DataError, ModelError, ResourceError: naming which cannot be used.
    """
    found: list[Candidate] = []
    for text in config.candidates:
        called, said = _named(text)
        folder = Path(said).expanduser()
        run = read_record(folder) if (folder / "run.json").is_file() else None
        if run is not None and run.verb != "tune":
            raise DataError(
                f"{folder}: a run of {run.verb!r}, not of tune", remedy="give a run of tune, or a checkpoint"
            )
        where = str(folder / TUNED) if run is not None else said
        path = guard_path(where, progress=watch, offline=config.offline)
        name = called or Path(said.split("@")[0]).name
        others = {c.name for c in found}
        tries = (name, *(f"{name}-{k}" for k in range(2, len(config.candidates) + 2)))
        found.append(Candidate(next(n for n in tries if n not in others), where, path, run))
    return found


def _named(text: str) -> tuple[str, str]:
    """NAME=REFERENCE parted; the name is empty where there is none, or where the whole is a path."""
    name, equals, reference = text.partition("=")
    plain = equals and name.isidentifier() and not Path(text).expanduser().exists()
    return (name, reference) if plain else ("", text)


def task_data(
    config: SweepConfig, found: Sequence[Candidate], watch: Watch, given: Mapping[str, Gathered] | None = None
) -> list[TaskData]:
    """The rows of each candidate's task: `given` by its name, else those of --task, else those its tune run kept aside.

    Raises:
        ConfigError: a candidate does not know its task, or --task does not fit the candidates.
        DataError: the data of a tune run are not what they were.
    """
    if config.task and len(config.task) not in (1, len(found)):
        raise ConfigError(
            f"{len(config.task)} tasks for {len(found)} candidates",
            remedy="give each its own, or one for all",
        )
    tasks = []
    for k, candidate in enumerate(found):
        if given and candidate.name in given:
            task = _kept(candidate, given[candidate.name])
        elif config.task:
            task = _told(config.task[k % len(config.task)], config, watch)
        elif candidate.run is not None:
            task = _kept(candidate, _gathered(candidate, watch))
        else:
            raise ConfigError(f"{candidate.reference}: what it was tuned on is not known", remedy=_GIVE)
        tasks.append(replace(task, rows=first(task.rows, config.task_rows)))
    return tasks


def _told(reference: str, config: SweepConfig, watch: Watch) -> TaskData:
    data = read_data(reference, data=config.data, offline=config.offline, progress=watch)
    return TaskData((*data.targets, *data.instructions), data.digest)


def _kept(candidate: Candidate, gathered: Gathered) -> TaskData:
    if not gathered.aside:
        raise DataError(f"{candidate.name}: its fine-tune kept no row aside", remedy=_GIVE)
    rows = value_digest([r.judgement.id if isinstance(r, Target) else r.id for r in gathered.aside])
    task = TaskData(gathered.aside, value_digest([gathered.digests, rows]))
    if candidate.run is None:
        return task
    config, before = _tune_config(candidate), TuneResults.model_validate(candidate.run.results).before
    return replace(task, max_tokens=config.max_tokens, answer_weight=config.answer_weight, before=before)


def _gathered(candidate: Candidate, watch: Watch) -> Gathered:
    """What the fine-tune read, read and split again as it was; DataError where it comes out otherwise."""
    assert candidate.run is not None
    config, run = _tune_config(candidate), candidate.run
    tries: list[Callable[[], Gathered]] = [lambda: gather(config, watch)]
    audit = Path(candidate.reference).parent / "audit"
    if (audit / "run.json").is_file():
        suites = list(read_record(audit).config.get("suites", []))
        tries.append(lambda: gather_beside(config, suites, watch))
    for attempt in tries:
        try:
            found = attempt()
        except InputError as e:
            problem = e.problem
            continue
        if any(run.inputs.get(name) != digest for name, digest in found.digests.items()):
            problem = "the data are not what they were"
        elif any(run.counts.get(what) != n for what, n in found.counts.items()):
            problem = "its rows were parted beside other suites"
        else:
            return found
    raise DataError(f"{candidate.name}: which rows it kept aside cannot be told: {problem}", remedy=_GIVE)


def _tune_config(candidate: Candidate) -> TuneConfig:
    assert candidate.run is not None
    try:
        return TuneConfig.model_validate(candidate.run.config)
    except ValidationError as e:
        key = ".".join(map(str, e.errors()[0]["loc"]))
        raise DataError(f"{candidate.name}: its run.json has another config ({key})", remedy=_GIVE) from e
