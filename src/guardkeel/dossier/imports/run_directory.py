"""Run directories of guardkeel: an audit gives a run with its results; a fine-tune or a fuse gives a model.

An audit says by digest which guards it judged. The one that is the registered model is taken; where neither is, or its
operating point, base or policy is another, the run is no evidence about that model and is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardkeel.dossier import evidence
from guardkeel.dossier.canonical import digest as value_digest
from guardkeel.dossier.imports.common import Imported, Under, as_used, moment_of, result, results, used_sets
from guardkeel.dossier.kinds import EvalSpec, Exposure, Model, Parent, PromptSet, Result, Run
from guardkeel.dossier.kinds.base import plain_id
from guardkeel.dossier.state import State
from guardkeel.errors import DataError
from guardkeel.evaluation.runs import read_audit
from guardkeel.records import RunRecord, read_record
from guardkeel.resources import digest, folder_digest
from guardkeel.results import AuditResults, GuardResult

MADE = {"tune": "tuned", "fuse": "fused"}
INHERITED = ("intended_use", "licence", "release_mode", "general_purpose", "parameters")


def is_run(path: Path) -> bool:
    """Whether a folder is a finished run of guardkeel's."""
    return (path / "run.json").is_file()


def audit(state: State, folder: Path, under: Under) -> Imported:
    """A run and its results from an audit's directory.

    Raises:
        DataError: no finished audit, not of the model as it is registered, or on sets that somebody has to register.
    """
    record, found = read_record(folder), read_audit(folder)
    model, spec = state.get(Model, under.model), state.get(EvalSpec, under.spec)
    role, guard = _judged(state, found, record, model, folder)
    sets = [(s.name, s.version, s.digest, s.n, s.licence) for s in found.suites if s.split == "test"]
    made = used_sets(state, spec, sets)
    name = under.id or plain_id(folder.resolve().name)
    decision = found.decision
    if decision is not None and role != "candidate" and found.candidate is not None:
        decision = None  # it is about the other guard
    made.records.append(
        Run(
            id=name,
            spec=spec.id,
            model=model.id,
            fingerprint=model.fingerprint,
            prompt_sets=as_used(sets),
            evaluator=under.evaluator,
            judge=under.judge,
            tool="guardkeel audit",
            tool_version=record.guardkeel,
            started_at=moment_of(record.started_at, str(folder)),
            finished_at=moment_of(record.finished_at, str(folder)),
            status="completed",
            role=role,
            decision=decision.decision if decision else "",
            seeds=record.seeds,
            elicitation=under.elicitation,
            location=str(folder.resolve()),
            files=evidence.taken(folder),
        )
    )
    made.records += _numbers(name, guard, role, found)
    made.notes += [f"not measured: {why}" for why in record.not_measured]
    return made


def _judged(
    state: State, found: AuditResults, record: RunRecord, model: Model, folder: Path
) -> tuple[str, GuardResult]:
    guards = {"candidate": found.candidate, "reference": found.reference}
    for role, guard in guards.items():
        if guard is None or guard.info.digest != model.digest:
            continue
        policy = record.config.get("guard_policy")
        was: dict[str, Any] = {
            "base": record.inputs.get(f"base of {role}", ""),
            "threshold": guard.info.threshold,
            "guard_policy": value_digest(policy) if policy else "",
        }
        said = {"base": model.base, "threshold": model.threshold, "guard_policy": model.guard_policy}
        for name, value in was.items():
            if said[name] != value:
                raise DataError(
                    f"{folder}: the {role} was run with {name} {value!r}, model {model.id!r} is registered with "
                    f"{said[name]!r}",
                    remedy=f"register the model with the {name} that it has, or audit it with its own",
                )
        return role, guard
    had = ", ".join(
        f"{r} {g.info.name} {_named(state, g.info.digest)}" for r, g in guards.items() if g is not None
    )
    raise DataError(
        f"{folder}: did not judge model {model.id!r} ({model.digest[:12]}…), but {had}",
        remedy="register the model that it judged, or name that one",
    )


def _named(state: State, digest: str) -> str:
    """A digest, and the model that is registered with it."""
    known = state.model_of(digest)
    return f"{digest[:12]}…" + (f", which is model {known.id!r}" if known else "")


def _numbers(run: str, guard: GuardResult, role: str, found: AuditResults) -> list[Result]:
    rows = f"{role}.jsonl"
    made = results(run, guard.overall, "*", rows)
    for part in guard.slices:
        name = part.value if part.by == "suite" else f"{part.by}={part.value}"
        made += results(run, part.behaviour, name[:80], rows)
    if role == "candidate" and found.comparison is not None:
        for test in found.comparison.tests:
            metric = f"{test.metric} change"
            made.append(
                result(run, metric, test.suite, test.difference, rows=rows, lower=test.metric != "recall")
            )
    layers = [
        g.cka.estimate for g in found.geometry if g.cka is not None and g.cka.estimate.value is not None
    ]
    if role == "candidate" and layers:
        made.append(result(run, "cka", "*", min(layers, key=lambda e: e.value or 0.0)))
    return list({r.id: r for r in made}.values())


def made_model(state: State, folder: Path, id: str, trainers: list[str], **more: Any) -> Imported:
    """The model that a fine-tune or a fuse made, with its lineage, and what its training exposed.

    What it is for, its licence and how it is released are as of its first registered parent; `more` overrides that.

    Raises:
        DataError: the directory is not of such a run, or its model is not there.
    """
    record = read_record(folder)
    if record.verb not in MADE:
        raise DataError(
            f"{folder}: a run of {record.verb!r} makes no model",
            remedy="import an audit with --spec; register models from runs of tune and fuse",
        )
    weights = folder / MADE[record.verb]
    if not weights.exists():
        weights = Path(str(record.results.get("output", weights)))
    if not weights.exists():
        raise DataError(f"{weights}: the model of this run is not there", remedy="restore it, or run again")
    adapter = (weights / "adapter_config.json").is_file()
    said: dict[str, Any] = {"data_summary": _data(record)}
    if record.verb == "tune":
        parent = record.inputs["guard"]
        parents = [Parent(digest=parent, relation="adapter" if adapter else "fine-tune")]
        said["threshold"] = record.results.get("threshold")
        if adapter:
            said["base"] = parent
    else:
        named = [v for k, v in sorted(record.inputs.items()) if not k.startswith("base of")]
        parents = [Parent(digest=d, relation="merge") for d in dict.fromkeys(named)]
        if adapter:
            said["base"] = record.inputs.get("reference", "")
    of = next((m for p in parents if (m := state.model_of(p.digest))), None)
    said |= {k: getattr(of, k) for k in INHERITED if of is not None} | {
        k: v for k, v in more.items() if v is not None
    }
    model = Model(
        id=id,
        digest=folder_digest(weights) if weights.is_dir() else digest(weights),
        parents=parents,
        trainers=trainers,
        location=str(weights.resolve()),
        files={n: f.sha256 for n, f in evidence.taken(weights, _files(weights)).items()},
        **said,
    )
    made = Imported([model])
    known = {s.record.digest: s.record for s in state.every(PromptSet)}
    at = moment_of(record.started_at, str(folder))
    for name, seen in record.inputs.items():
        if seen in known:
            made.records.append(
                Exposure(
                    id=plain_id(f"{folder.resolve().name} {name}"),
                    prompt_set=known[seen].id,
                    digest=seen,
                    to="calibration" if name.startswith("monitor ") else "training",
                    at=at,
                    how=f"input {name!r} of {record.verb} {folder.resolve().name}",
                )
            )
            made.notes.append(f"prompt-set {known[seen].id} was used to make it: exposed")
    return made


def _data(record: RunRecord) -> str:
    """What a fine-tune learned, in a sentence; nothing of a fuse."""
    if record.verb != "tune":
        return ""
    config, rows = record.config, record.counts.get("task rows", 0)
    source = f" (source {config['source']})" if config.get("source") else ""
    names = ", ".join(map(str, config.get("data", ())))
    return f"{rows:,} rows of {names}{source}; method {config.get('method')}, {record.counts.get('steps', 0):,} steps"


def _files(weights: Path) -> tuple[str, ...]:
    if not weights.is_dir():
        return ()
    return tuple(sorted(p.name for p in weights.iterdir() if p.suffix in (".safetensors", ".json", ".gguf")))
