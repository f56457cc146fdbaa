"""A study of one model's heads, from its configuration: rankings, a group, its effect, other models beside it.

Run directory: run.json · config.toml · heads.npz, .csv, .json, .jsonl · effects.jsonl (every answer under every
ablation) · progress/ (finished shards and batches, while it is unfinished). A study that was killed goes on there.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.errors import ConfigError, InputError, ModelError
from guardkeel.evaluation.audit import Watch
from guardkeel.evaluation.items import Floats
from guardkeel.evaluation.selection import meta
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.heads import summary
from guardkeel.heads.ablation import ablated, per_layer
from guardkeel.heads.config import HeadsConfig, read_config
from guardkeel.heads.controls import Trial, trials
from guardkeel.heads.effects import effect
from guardkeel.heads.layout import layout_of
from guardkeel.heads.material import Material, material
from guardkeel.heads.official import label
from guardkeel.heads.outputs import VERB, write_outputs
from guardkeel.heads.ranking import Ranking, ranked
from guardkeel.heads.refusal import calibrate
from guardkeel.heads.results import Against, Effect, Group, HeadsResults, Judge
from guardkeel.heads.sahara import Group as Found
from guardkeel.heads.sahara import find_group
from guardkeel.heads.subject import Subject, digest_of, info, open_subject, short_name
from guardkeel.heads.summary import Rankings
from guardkeel.records import (
    RunRecord,
    atomic_writer,
    claim,
    toml_text,
    value_digest,
    write_record,
    write_text,
)

PROGRESS = "progress"
_LIMITS = {"memory", "offline", "top"}
"""What may change while a study is unfinished: nothing that was measured follows from it."""


def study(guard: str = "keel-135m", *, out: str | Path, **config: Any) -> HeadsResults:
    """Rank a guard's heads, find a group, and see what ablating it does.

    Args:
        guard: `keel-135m`, a folder, a hub:, pypi: or path: reference, or a run directory of tune.
        out: the run directory. An unfinished study of the same guard and items in it is resumed.
        config: any field of HeadsConfig: against, suites, items, modes, measure, size, effect, …

    Returns:
        The results, which are also in out/run.json; the arrays are in out/heads.npz.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    return run(read_config(None, config | {"guard": guard}), Path(out))


def run(
    config: HeadsConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> HeadsResults:
    """Run, or resume, the study of a configuration in a folder."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    read = material(config, watch)
    others = named(config.against)
    inputs = digests(config, read, others, watch)
    measured = config.model_dump(mode="json", exclude=_LIMITS)
    ids = [[i.judgement.id for i in items] for items in (*read.ranked.values(), read.judged)]
    claim(folder, value_digest([inputs, measured, ids]), begun=f"{PROGRESS}/*")
    write_text(folder / "config.toml", toml_text(config.model_dump(mode="json")))
    (folder / PROGRESS).mkdir(exist_ok=True)

    subject = open_subject(config.guard, config, read.ranked["unsafe"], watch)
    looking = _Looking(config, folder / PROGRESS, read, watch)
    mine = looking.rankings(subject, subject.name)
    group = looking.group(subject, mine[config.modes[0], "unsafe"]) if config.size else None
    found = looking.effect(subject, group, folder) if config.effect and group else None
    results = _results(config, read, subject, inputs["guard"], mine, group, found, looking)
    models: dict[str, Rankings] = {"model": mine}
    names = {"model": subject.name}
    del subject
    for number, (name, reference) in enumerate(others.items(), 1):
        gc.collect()  # one model at a time
        key = f"against{number}"
        names[key] = name
        other = _against(
            config, read, looking, name, reference, inputs[f"against {name}"], key, results, mine
        )
        models[key] = other
    results.notes = list(dict.fromkeys(results.notes + looking.notes))
    results.memory, results.plans = looking.memory, looking.plans
    write_outputs(folder, models, names, results)
    _write(folder, config, read, results, inputs, started_at, time.perf_counter() - started, command)
    return results


def named(references: Sequence[str]) -> dict[str, str]:
    """Other models by name: NAME=… gives one, else its last part does; no two are alike."""
    found: dict[str, str] = {}
    for text in references:
        name, equals, reference = text.partition("=")
        if not equals or "/" in name:
            name, reference = short_name(text), text
        if name in found:
            raise ConfigError(
                f"two models are named {name!r}", remedy="name them: --against first=… --against second=…"
            )
        found[name] = reference
    return found


def digests(config: HeadsConfig, read: Material, others: Mapping[str, str], watch: Watch) -> dict[str, str]:
    """sha256 of everything that is read, by what it is."""
    found = {"guard": digest_of(config.guard, progress=watch, offline=config.offline)}
    for name, reference in others.items():
        found[f"against {name}"] = digest_of(reference, progress=watch, offline=config.offline)
    return found | {f"suite {s.name}": s.digest for s in read.suites}


class _Looking:
    """Sweeps, groups and effects, kept in a folder while the study is unfinished."""

    def __init__(self, config: HeadsConfig, folder: Path, read: Material, watch: Watch) -> None:
        self.config, self.folder, self.read, self.watch = config, folder, read, watch
        self.plans: list[str] = []
        self.notes: list[str] = []
        self.memory = 0

    def rankings(self, subject: Subject, name: str) -> Rankings:
        """Every mode on every set. Screened heads are chosen on unsafe items, and swept on the others too."""
        found: dict[tuple[str, str], Ranking] = {}
        prompts = {of: subject.prompts(items) for of, items in self.read.ranked.items()}
        for mode in self.config.modes:
            for of, asked in prompts.items():
                above = found.get((mode, "unsafe"))
                only = above.sweep.plan.variants if self.config.screen and above else None
                bar = self._bar(f"{name}: {mode} on {of}")
                ranking = ranked(
                    subject.model, asked, mode, self.config, heads=only, folder=self.folder, progress=bar
                )
                found[mode, of] = ranking
                self._planned(f"{name}, {mode}, {of}", ranking.sweep.plan)
                self.notes += ranking.sweep.notes
        if layout_of(subject.model).dtype.itemsize < 4:
            self.notes.append(
                f"{name} has {layout_of(subject.model).dtype} weights: KL below about 1e-3 is rounding"
            )
        return found

    def group(self, subject: Subject, ranking: Ranking) -> Found:
        """A greedy group on unsafe items; its first step is the sweep that is there."""
        config = self.config
        return find_group(
            subject.model,
            subject.prompts(self.read.ranked["unsafe"]),
            size=min(config.size, int(ranking.exact.sum())),
            measure=config.measure,
            rank=config.rank,
            mode=config.modes[0],
            epsilon=config.epsilon,
            start=ranking.sweep,
            heads=list(ranking.sweep.plan.variants),
            memory=config.bytes,
            folder=self.folder,
            progress=self._bar("group"),
        )

    def effect(self, subject: Subject, group: Found, folder: Path) -> Effect | None:
        """See effects.py. Items that cannot be asked are unscored."""
        config, layout = self.config, layout_of(subject.model)
        items = self.read.judged
        if not items:
            self.notes.append("the effect was not measured: the suites have no test items")
            return None
        asked = trials(
            group.heads, (layout.layers, per_layer(layout, group.mode)), config.controls, config.seed
        )
        wanted = {kind: config.controls * len(group.heads) for kind in ("random", "matched")}
        for kind, count in wanted.items():
            if (there := sum(t.kind == kind for t in asked)) < count:
                self.notes.append(f"only {there} of {count} {kind} groups: the model has too few other heads")
        total = (len(asked) + 1) * len(items)
        done = 0
        answers: list[dict[str, Any]] = []

        def ask(trial: Trial | None) -> Floats:
            nonlocal done
            role = trial.name if trial else "as-it-is"
            inside = (
                ablated(subject.model, trial.heads, group.mode, group.epsilon) if trial else nullcontext()
            )
            with inside:
                scores = subject.answers(
                    items, role, self.folder.parent, lambda n, of: self.watch("effect", done + n, total)
                )
            done += len(items)
            heads = [label(h) for h in trial.heads] if trial else []
            row = {"trial": role, "heads": heads, "scores": [_json(s) for s in scores]}
            replies = getattr(subject, "said", {}).get(role)
            answers.append(row | ({"replies": replies} if replies is not None else {}))
            return scores

        found = effect([meta(i) for i in items], asked, ask, subject.threshold, seed=config.seed)
        with atomic_writer(folder / "effects.jsonl") as out:
            for row in ({"items": [i.judgement.id for i in items]}, *answers):
                out.write(json.dumps(row).encode() + b"\n")
        return found

    def _bar(self, what: str) -> Any:
        return lambda _, done, total: self.watch(what, done, total)

    def _planned(self, what: str, plan: Any) -> None:
        self.plans.append(f"{what}: {plan.text}")
        self.memory = max(self.memory, plan.bytes)


def _against(
    config: HeadsConfig,
    read: Material,
    looking: _Looking,
    name: str,
    reference: str,
    digest: str,
    key: str,
    results: HeadsResults,
    mine: Rankings,
) -> Rankings:
    other = open_subject(reference, config, read.ranked["unsafe"], looking.watch)
    layout = layout_of(other.model)
    shape = (results.layers, results.query_heads, results.key_heads)
    if (layout.layers, layout.heads, layout.groups) != shape:
        raise ModelError(
            f"{reference}: {layout.layers} layers of {layout.heads} heads, {results.model.name} has "
            f"{shape[0]} of {shape[1]}",
            remedy="compare models of one architecture",
        )
    theirs = looking.rankings(other, name)
    measure = config.measure
    first = (config.modes[0], "unsafe")
    results.against.append(
        Against(
            info=info(other, reference, digest).model_copy(update={"name": name}),
            key=key,
            top=[label(h) for h in theirs[first].top(measure, config.top)],
            moved=summary.moved(mine[first], theirs[first], measure, config.top),
        )
    )
    if other.template != results.template:
        results.notes.append(f"{name} reads items through another template than {results.model.name}")
    results.ranked += _ranked(config, theirs, name)
    results.overlaps += summary.between(results.model.name, name, mine, theirs, measure)
    return theirs


def _results(
    config: HeadsConfig,
    read: Material,
    subject: Subject,
    digest: str,
    mine: Rankings,
    group: Found | None,
    found: Effect | None,
    looking: _Looking,
) -> HeadsResults:
    layout = layout_of(subject.model)
    used = {**read.ranked, "effect": read.judged if found else []}
    return HeadsResults(
        model=info(subject, config.guard, digest),
        architecture=type(layout.model).__name__,
        chat=config.chat,
        layers=layout.layers,
        query_heads=layout.heads,
        key_heads=layout.groups,
        head_width=layout.width,
        template=subject.template,
        modes=list(config.modes),
        epsilon=config.epsilon,
        measure=config.measure,
        rank=config.rank,
        suites={of: _counts(items) for of, items in used.items() if items},
        top={m: summary.table(mine, m, config.measure, config.top, config.seed) for m in config.modes},
        ranked=_ranked(config, mine, subject.name),
        overlaps=summary.within(mine, config.measure, [i.suite for i in read.ranked["unsafe"]]),
        group=Group(
            mode=group.mode,
            measure=group.measure,
            heads=[label(h) for h in group.heads],
            scores=list(group.scores),
        )
        if group
        else None,
        effect=found,
        judge=_judged(config, looking.notes) if config.chat and found else [],
        plans=[],
        memory=0,
        notes=list(read.notes),
    )


def _ranked(config: HeadsConfig, rankings: Rankings, name: str) -> list[Any]:
    return [
        summary.ranked(r, name, mode, of, config.measure, config.seed) for (mode, of), r in rankings.items()
    ]


def _judged(config: HeadsConfig, notes: list[str]) -> list[Judge]:
    """The refusal judge against people, where there are replies that they labelled."""
    found: list[Judge] = []
    for what, source in (("refusal", config.refusals), ("attack", None)):
        try:
            measured = calibrate(what, source, data=config.data)
        except InputError as e:
            if source:
                raise
            notes.append(f"the judge of {what} was not measured against people: {e.problem}")
            continue
        found.append(Judge.model_validate(vars(measured)))
    return found


def _counts(items: Sequence[SuiteItem]) -> dict[str, int]:
    names = [i.suite for i in items]
    return {name: names.count(name) for name in sorted(set(names))}


def _json(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _write(
    folder: Path,
    config: HeadsConfig,
    read: Material,
    results: HeadsResults,
    inputs: dict[str, str],
    started_at: str,
    seconds: float,
    command: Sequence[str],
) -> None:
    """run.json, which marks the study as finished."""
    missing = [n for n in results.notes if "not measured" in n or n.startswith("no safe items")]
    write_record(
        folder,
        RunRecord.finished(
            verb=VERB,
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings={"total": seconds, "sweeps": sum(r.seconds for r in results.ranked)},
            counts={f"{of} prompts": len(items) for of, items in read.ranked.items()}
            | {"effect items": len(read.judged)},
            results=results.model_dump(mode="json"),
            not_measured=missing,
        ),
    )
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    (folder / "plan.json").unlink(missing_ok=True)
