"""Results of other tools: inspect_ai, lm-evaluation-harness, geh and GuardBench.

Where a file holds rows with gold labels, behaviour is measured from them as from guardkeel's own. Where it holds only
figures, those are taken as they are, with the interval that a stated standard error gives; a figure without one has no
interval, and the gate holds where a whole interval is asked for. A log that ended in an error is an errored run.

Such files name neither the digest of the model nor that of the data: both are as the one who imports says, and the
record says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.dossier import evidence
from guardkeel.dossier.imports.common import Imported, Under, moment_of, result, results
from guardkeel.dossier.kinds import EvalSpec, File, Model, PromptSet, Record, Run, UsedSet
from guardkeel.dossier.kinds.base import plain_id
from guardkeel.dossier.state import State
from guardkeel.errors import DataError
from guardkeel.evaluation.behaviour import measure
from guardkeel.evaluation.imports import Reading, read_all
from guardkeel.evaluation.imports.files import an_object, inner, listed, parse, read_json
from guardkeel.evaluation.imports.zips import member, open_zip
from guardkeel.evaluation.intervals import z_value
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores
from guardkeel.records import Estimate

LOWER = ("error", "loss", "perplexity", "ppl", "ece", "toxicity", "fpr", "unscored", "attack_success")


@dataclass(frozen=True)
class About:
    """What a tool's file says of itself."""

    tool: str
    version: str = ""
    started: Any = None
    finished: Any = None
    error: str = ""


def read(state: State, path: Path, under: Under, reading: Reading | None = None) -> Imported:
    """A run and its results from another tool's file or folder.

    Raises:
        DataError: nothing known, rows without labels, or a bad field.
    """
    model, spec = state.get(Model, under.model), state.get(EvalSpec, under.spec)
    about = _about(path)
    name = under.id or plain_id(path.resolve().stem)
    files = _files(path)
    made = Imported(notes=["the tool's files name no digests: model and prompt sets are as you say"])
    run = Run(
        id=name,
        spec=spec.id,
        model=model.id,
        fingerprint=model.fingerprint,
        prompt_sets=_sets(state, spec),
        evaluator=under.evaluator,
        judge=under.judge,
        tool=about.tool,
        tool_version=about.version,
        started_at=moment_of(about.started if about.started is not None else path.stat().st_mtime, str(path)),
        finished_at=None if about.finished is None else moment_of(about.finished, str(path)),
        status="errored" if about.error else "completed",
        errors=about.error,
        elicitation=under.elicitation,
        location=str(path.resolve()),
        files=files,
    )
    made.records.append(run)
    if about.error:
        return made
    found: Sequence[ImportedScores] = ()
    trouble = None
    try:
        found = read_all(path, reading)
    except DataError as e:  # not a guard's verdicts: perhaps figures of a model
        trouble = e
    rows = [s for s in found if any(r.label is not None for r in s.rows)]
    made.notes += [f"{s.suite}: {note}" for s in found for note in s.notes]
    if rows:
        made.records += _measured(name, rows, model.threshold, next(iter(files)))
    else:
        figures = list(_figures(path, name))
        if not figures:
            raise trouble or DataError(
                f"{path}: its rows have no gold labels, and it has no figures",
                remedy='give labels: guardkeel dossier import --reading reading.toml, with labels = { id = "unsafe" }',
            )
        made.records += figures
    return made


def _measured(run: str, found: Sequence[ImportedScores], threshold: float | None, rows: str) -> list[Record]:
    line = 0.5 if threshold is None else threshold

    def of(some: Sequence[ImportedRow], part: str) -> list[Record]:
        kept = [r for r in some if r.label is not None]
        scores = np.array([np.nan if r.score is None else r.score for r in kept])
        return [*results(run, measure(scores, [r.label == "unsafe" for r in kept], line), part, rows)]

    made = of([r for s in found for r in s.rows], "*")
    for one in found if len(found) > 1 else ():
        made += of(one.rows, one.suite[:80])
    return made


def _sets(state: State, spec: EvalSpec) -> list[UsedSet]:
    found = [state.get(PromptSet, p) for p in spec.prompt_sets]
    return [UsedSet(id=p.id, version=p.version, digest=p.digest) for p in found]


def _files(path: Path) -> dict[str, File]:
    if path.is_file():
        return {path.name: evidence.of_file(path)}
    names = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl", ".eval"))
    return {p.relative_to(path).as_posix(): evidence.of_file(p) for p in names}


def _headers(path: Path) -> Iterator[dict[str, Any]]:
    """Headers of logs and results in a file or folder, with no samples in them where that can be had."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix == ".eval":
            with open_zip(file) as archive:
                yield an_object(parse(member(archive, "header.json"), str(file)), str(file))
        elif file.suffix == ".json":
            found = read_json(file)
            if isinstance(found, dict):
                yield found


def _about(path: Path) -> About:
    for said in _headers(path):
        if "eval" in said and "status" in said:
            stats, evaluated = inner(said, "stats"), inner(said, "eval")
            error = said.get("error") or {}
            status = str(said["status"])
            why = (
                ""
                if status == "success"
                else str(error.get("message", status) if isinstance(error, dict) else error)
            )
            version = str(inner(evaluated, "packages").get("inspect_ai", ""))
            begun = stats.get("started_at") or evaluated.get("created")
            return About("inspect_ai", version, begun, stats.get("completed_at") or None, why[:400])
        if "lm_eval_version" in said or ("results" in said and "configs" in said):
            return About("lm-eval", str(said.get("lm_eval_version", "")), said.get("date"))
        if "adapter_capabilities" in said:
            return About(
                "geh", str(said.get("tool_version", "")), said.get("started_at"), said.get("finished_at")
            )
    return About("other")


def _figures(path: Path, run: str) -> Iterator[Record]:
    for said in _headers(path):
        if "eval" in said and "status" in said:
            yield from _inspect_figures(said, run)
        elif "results" in said and "configs" in said:
            yield from _lm_eval_figures(said, run)


def _inspect_figures(said: dict[str, Any], run: str) -> Iterator[Record]:
    for scored in listed(inner(said, "results"), "scores"):
        metrics = inner(scored, "metrics")
        error = inner(metrics, "stderr").get("value")
        n, lost = int(scored.get("scored_samples") or 0), int(scored.get("unscored_samples") or 0)
        for name, metric in metrics.items():
            if name != "stderr" and isinstance(metric, dict):
                label = f"{scored.get('name')} {name}"
                yield _figure(
                    run, label, str(inner(said, "eval").get("task", "*")), metric.get("value"), error, n, lost
                )


def _lm_eval_figures(said: dict[str, Any], run: str) -> Iterator[Record]:
    samples = inner(said, "n-samples")
    for task, metrics in inner(said, "results").items():
        n = int(inner(samples, task).get("effective") or inner(samples, task).get("original") or 0)
        for key, value in metrics.items():
            name, comma, kept = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            label = name if kept == "none" else f"{name} {kept}"
            yield _figure(run, label, task, value, metrics.get(f"{name}_stderr,{kept}"), n, 0)


def _figure(run: str, metric: str, part: str, value: Any, error: Any, n: int, unscored: int) -> Record:
    number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    half = z_value() * float(error) if isinstance(error, int | float) and np.isfinite(error) else None
    estimate = Estimate(
        value=float(value) if number else None,
        low=float(value) - half if number and half is not None else None,
        high=float(value) + half if number and half is not None else None,
        n=n,
        note="" if number else f"the tool wrote {value!r:.40}",
    )
    lower = any(word in metric.lower() for word in LOWER)
    return result(run, metric, part[:80], estimate, unscored=unscored, lower=lower)
