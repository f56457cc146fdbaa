"""Vision-language adaptation of a small guard and a small chat model: arms and seeds, merging, and two-picture items.

    GUARDKEEL_DATA=… python benchmarks/vision/run.py [--out runs/vision] [--only 'guard/*'] [--plan] [--table]

Runs what is not there yet, job by job, in the order of seeds, so that every arm has one seed before any has two. A
killed run is resumed by repeating the command; several processes may work on one folder. `--plan` lists the jobs,
`--table` writes table.json, table.md and figure.svg from what is finished.

    out/<subject>/start/                 a model that has learned to describe drawings (see vision/captions.py)
    out/<subject>/<arm>/seed-K/          an adaptation (see docs/vision.md), from that start
    out/<subject>/mis-<labels>/seed-K/   two-picture items, from the plain arm's model

Time: a step (8 rows of 78 tokens, SmolLM2-135M) takes 3 s of one busy core with LoRA, with fwssr or safety-sft about
half as much again, and twice that with `--set all.adapter=full`; a question on a picture half a second, a look about a
minute. So a start takes 5 minutes, an arm 5 (freeze-language) to 12, a two-picture run 8.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from figure import figure

from guardkeel.configuration import read_configuration
from guardkeel.models.base import BASE_NAME, base_model_path
from guardkeel.records import write_json, write_text
from guardkeel.report.vision import write_vision_report
from guardkeel.vision.adapt.config import AdaptConfig
from guardkeel.vision.adapt.results import AdaptResults, Look, read_adaptation
from guardkeel.vision.adapt.run import ADAPTED
from guardkeel.vision.adapt.run import run as adapt
from guardkeel.vision.llava import build_llava
from guardkeel.vision.mis.config import MisConfig
from guardkeel.vision.mis.run import read_mis_run
from guardkeel.vision.mis.run import run as mis
from guardkeel.vision.shape import VisionShape

HERE = Path(__file__).parent
START = "start"


@dataclass(frozen=True)
class Start:
    """A model that has learned to describe drawings, and whose language part is as it was."""

    model: str
    captions: int
    vision: VisionShape


@dataclass(frozen=True)
class Job:
    name: str
    needs: str
    config: Start | AdaptConfig | MisConfig


def jobs(grid: Mapping[str, Any], out: Path) -> Iterator[Job]:
    for subject, named in grid["subjects"].items():
        start = Start(named["model"], grid["start"]["captions"], VisionShape.model_validate(grid["vision"]))
        yield Job(f"{subject}/{START}", "", start)
    for seed in grid["seeds"]:
        for subject, named in grid["subjects"].items():
            own = dict(named)
            arms = own.pop("arms", grid["arms"])
            start = f"{subject}/{START}"
            for arm in arms:
                given = own | grid["all"] | {"vision": grid["vision"], "seed": seed, "arm": arm}
                config = AdaptConfig.model_validate(given | {"start": str(out / start)})
                yield Job(f"{subject}/{arm}/seed-{seed}", start, config)
            two = dict(grid["mis"])
            if subject in two.pop("subjects") and seed in two.pop("seeds"):
                plain = f"{subject}/plain/seed-{seed}"
                for labels in two.pop("labels"):
                    given = two | {"labels": labels, "seed": seed, "size": grid["vision"]["size"]}
                    given |= {"start": str(out / plain / ADAPTED)}
                    yield Job(f"{subject}/mis-{labels}/seed-{seed}", plain, MisConfig.model_validate(given))


def work(job: Job, out: Path) -> None:
    folder = out / job.name

    def watch(what: str, done: int, total: int | None) -> None:
        if total and (done == total or done % max(1, total // 10) == 0):
            print(f"  {job.name}: {what} {done}/{total}", file=sys.stderr, flush=True)

    command = ["python", "benchmarks/vision/run.py", "--only", job.name]
    if isinstance(job.config, Start):
        model = str(base_model_path()) if job.config.model == BASE_NAME else job.config.model
        build_llava(model, folder, shape=job.config.vision, captions=job.config.captions, progress=watch)
        return
    if isinstance(job.config, AdaptConfig):
        adapt(job.config, folder, command=command, watch=watch)
    else:
        mis(job.config, folder, command=command, watch=watch)
    write_vision_report(folder)


def finished(out: Path, name: str) -> bool:
    return (out / name / ("config.json" if name.endswith(START) else "run.json")).is_file()


def table(grid: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Every finished arm: what each number was with every seed, their mean and their range."""
    found: dict[str, Any] = {}
    for job in jobs(grid, out):
        if isinstance(job.config, Start) or not finished(out, job.name):
            continue
        subject, arm, seed = job.name.split("/")
        rows: dict[str, dict[str, float | None]] = {}
        if isinstance(job.config, AdaptConfig):
            _, results = read_adaptation(out / job.name)
            rows["before"] = {"recall": results.reference.recall.value, "fpr": results.reference.fpr.value}
            rows |= {f"step {look.step}": _numbers(look) for look in results.looks}
            rows |= {f"alpha {look.alpha:g}": _numbers(look) for look in results.merged}
        else:
            _, results = read_mis_run(out / job.name)
            for when, tiers in (("before", results.before), ("after", results.after)):
                for tier, t in tiers.items():
                    rows[f"{tier}, {when}"] = {
                        **t.outcomes.percentages(),
                        "twins refused": t.twins.over_refused.value,
                        "accuracy": t.accuracy.value,
                        "in form": t.form,
                    }
        for moment, numbers in rows.items():
            for name, value in numbers.items():
                found.setdefault(subject, {}).setdefault(arm, {}).setdefault(moment, {}).setdefault(name, {})[
                    seed
                ] = value
    return found


def adaptations(grid: Mapping[str, Any], out: Path) -> dict[str, dict[str, list[AdaptResults]]]:
    """The finished adaptations by subject and arm, seed by seed."""
    found: dict[str, dict[str, list[AdaptResults]]] = {}
    for job in jobs(grid, out):
        if isinstance(job.config, AdaptConfig) and finished(out, job.name):
            subject, arm, _ = job.name.split("/")
            found.setdefault(subject, {}).setdefault(arm, []).append(read_adaptation(out / job.name)[1])
    return found


def _numbers(look: Look) -> dict[str, float | None]:
    last = look.layers[-1] if look.layers else None
    return {
        "recall": look.text.recall.value,
        "fpr": look.text.fpr.value,
        "auroc": look.text.auroc.value,
        "recall matched": look.text.recall_matched.value if look.text.recall_matched else None,
        "unscored": look.text.unscored.value,
        "recall, pictures": look.image.recall.value if look.image else None,
        "fpr, pictures": look.image.fpr.value if look.image else None,
        "auroc, pictures": look.image.auroc.value if look.image else None,
        "accuracy": look.accuracy.value,
        "drift, last layer": last.drift if last else None,
        "CKA, last layer": last.cka if last else None,
    }


def markdown(found: Mapping[str, Any]) -> str:
    lines = []
    for subject, arms in found.items():
        for arm, moments in arms.items():
            names = list(dict.fromkeys(name for numbers in moments.values() for name in numbers))
            lines += [
                f"## {subject}, {arm}",
                "",
                f"| | {' | '.join(names)} |",
                "|---" * (len(names) + 1) + "|",
            ]
            for moment, numbers in moments.items():
                cells = [_cell(numbers.get(name, {})) for name in names]
                lines.append(f"| {moment} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


SHORT = ("recall", "fpr", "auroc", "recall matched", "auroc, pictures", "accuracy")


def summary(found: Mapping[str, Any]) -> str:
    """The tables of docs/vision.md: for each subject its start, whose language part is what it was, and each arm at its
    end and merged over α.
    """
    lines = []
    for subject, arms in found.items():
        lines += [f"### {subject}", "", f"| arm | {' | '.join(SHORT)} |", "|---" * (len(SHORT) + 1) + "|"]
        for number, (arm, moments) in enumerate(arms.items()):
            first, last = (m := [m for m in moments if m.startswith("step ")])[:1], m[-1:]
            begun = [("before", *first)] if number == 0 and m else []
            shown = [(arm, *last)] if m else []
            shown += [
                (f"{arm}, α = {a[6:]}", a) for a in moments if a.startswith("alpha ") and a != "alpha 1"
            ]
            for name, moment in [*begun, *shown]:
                cells = [_cell(moments[moment].get(value, {})) for value in SHORT]
                lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: Mapping[str, float | None]) -> str:
    known = [v for v in values.values() if v is not None]
    if not known:
        return "–"
    mean = f"{np.mean(known):.3f}"
    return mean if len(set(known)) == 1 else f"{mean} ({min(known):.3f} to {max(known):.3f})"


def read_grid(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    from pydantic import BaseModel, ConfigDict

    class Grid(BaseModel):
        model_config = ConfigDict(extra="forbid")
        seeds: list[int]
        arms: list[str]
        subjects: dict[str, dict[str, Any]]
        start: dict[str, Any]
        all: dict[str, Any]
        vision: dict[str, Any]
        mis: dict[str, Any]

    tomllib.loads(path.read_text())  # says where it is not TOML
    return read_configuration(Grid, "benchmarks/vision/run.py", path, {}, changes).model_dump()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", type=Path, default=HERE / "grid.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/vision"))
    parser.add_argument("--only", default="*", help="jobs of these names, with * for any")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    grid, out = read_grid(arguments.grid, arguments.changes), arguments.out
    if arguments.table:
        found = table(grid, out)
        write_json(out / "table.json", found)
        write_text(out / "table.md", f"{summary(found)}\n{markdown(found)}")
        write_text(out / "figure.svg", figure(adaptations(grid, out), grid["all"]["alphas"]))
        print(out / "table.md")
        return
    chosen = [job for job in jobs(grid, out) if fnmatchcase(job.name, arguments.only)]
    if arguments.plan:
        for job in chosen:
            print("done   " if finished(out, job.name) else "to do  ", job.name)
        return
    for job in chosen:
        if finished(out, job.name) or (job.needs and not finished(out, job.needs)):
            continue
        lock = out / "locks" / f"{job.name.replace('/', '--')}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(lock).acquire(timeout=0):
                print(json.dumps({"job": job.name}), flush=True)
                work(job, out)
        except filelock.Timeout:
            print(f"{job.name}: with another process", file=sys.stderr)


if __name__ == "__main__":
    main()
