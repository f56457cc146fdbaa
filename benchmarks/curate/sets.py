"""The sets of the experiment, made from public data: rows as `guardkeel curate` writes them. Made once.

mixture    the rows of keel-135m (permissive licences, recipes/keel-135m/build_data.py) with topic-following rows
toxic-…    ToxicChat's fit part, labelled by people, by one small guard, or by a jury of three
dices-…    DICES-990's dialogues, labelled by some 70 people, by one of them, or by three of them
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from guardkeel.conversation import Label
from guardkeel.curation.mapping import majority
from guardkeel.curation.pipeline import curate
from guardkeel.curation.rows import Row, SideLabel, Vote, read_rows, write_rows
from guardkeel.evaluation.suites import load_suite, split_many
from guardkeel.evaluation.suites.splits import position
from guardkeel.guards.linear import fit_linear

ROOT = Path(__file__).parents[2]
RAW = {"Yes": "unsafe", "No": "safe", "Unsure": None}


def mixture(out: Path, data: Path) -> Path:
    """The folder of a curated set: the mixture, split, with 1,600 topic-following rows from templates."""
    made = out / "mixture"
    rows = out / "mixture.jsonl"
    if not rows.is_file():
        out.mkdir(parents=True, exist_ok=True)
        script = ROOT / "recipes" / "keel-135m" / "build_data.py"
        subprocess.run([sys.executable, script, "--data", data, "--out", rows], check=True)
    curate(
        {
            "name": "mixture",
            "source": [
                {
                    "name": "mix",
                    "data": str(rows),
                    "format": "guardkeel",
                    "label_source": "author",
                    "licence": "see keel-135m",
                }
            ],
            "synthesis": {"topics": {"templates": 1600}},
            "export": {"formats": ["jsonl"]},
            "offline": True,
        },
        made,
    )
    return made


def toxic(out: Path, data: Path, watch: Callable[[str, int, int | None], None]) -> dict[str, Path]:
    """Sets of one text with three kinds of labels on the fit split; calibrate rows keep those of people."""
    folder = out / "toxic"
    linear = out / "linear"
    if not (linear / "linear.json").is_file():
        fit_linear(split_many([load_suite(out / "mixture.jsonl")]), linear)
    source = {"name": "toxic", "suite": "toxicchat-train@local", "label_source": "human"}
    curate(
        {
            "name": "toxic",
            "source": [source],
            "dedup": {},
            "jury": {
                "juror": [
                    {"guard": "keel-135m"},
                    {"guard": "rules"},
                    {"guard": str(linear), "name": "linear"},
                ],
                "items": "all",
                "sides": ["prompt"],
            },
            "split": {"proportions": [0.8, 0.2, 0.0], "against": ["toxicchat@local"]},
            "data_folder": str(data),
            "offline": True,
        },
        folder,
        until="split",
        watch=watch,
    )
    rows = list(read_rows(folder / "steps" / "split" / "rows.jsonl"))
    return {
        "human": _written(folder / "human.jsonl", rows),
        "single": _written(folder / "single.jsonl", (_relabelled(r, "keel-135m", _one) for r in rows)),
        "jury": _written(folder / "jury.jsonl", (_relabelled(r, "jury", majority) for r in rows)),
        "mixed": _written(
            folder / "mixed.jsonl",
            (r if _part(r.id) < 1 / 3 else _relabelled(r, "jury", majority) for r in rows),
        ),
        "third": _written(
            folder / "third.jsonl", (r for r in rows if r.split != "fit" or _part(r.id) < 1 / 3)
        ),
    }


def dices(out: Path, data: Path) -> dict[str, Path]:
    """The last replies of DICES, labelled by the whole crowd, by three of it, and by one; tested on the crowd's."""
    folder = out / "dices"
    with gzip.open(data / "dices" / "dices_990.json.gz", "rt", encoding="utf-8") as f:
        raters = {
            str(i["id"]): i["annotations"]["safety"]["individual_human_scores"]
            for i in json.load(f)["instances"]
        }
    crowd: list[Row] = []
    for e in load_suite("dices-990", data=data, offline=True).examples:
        own = raters.get(e.id) or raters[e.id.rpartition("-")[2]]
        votes = tuple(Vote(f"rater{n}", RAW[said]) for n, said in enumerate(own))  # type: ignore[arg-type]
        at = _part(e.id)
        crowd.append(
            Row(
                f"dices/{e.id}",
                e.conversation,
                {"response": SideLabel(majority(votes), "human", votes)},
                split="fit" if at < 0.6 else "calibrate" if at < 0.75 else "test",
                source="dices",
                licence="CC BY 4.0",
            )
        )
    return {
        "human": _written(folder / "human.jsonl", crowd),
        "jury": _written(folder / "jury.jsonl", (_raters(r, 3) for r in crowd)),
        "single": _written(folder / "single.jsonl", (_raters(r, 1) for r in crowd)),
    }


def label_skill(labelled: Path, people: Path) -> tuple[float, float, int]:
    """Sensitivity and specificity of the labels of fit rows against those of people, over so many rows with both."""
    wanted = {r.id: _label(r) for r in read_rows(people) if r.split == "fit"}
    pairs = [(_label(r), wanted[r.id]) for r in read_rows(labelled) if r.id in wanted]
    hits = {kind: [own == kind for own, true in pairs if true == kind] for kind in ("unsafe", "safe")}
    return (*(sum(h) / len(h) for h in hits.values()), len(pairs))  # type: ignore[return-value]


def _label(row: Row) -> Label | None:
    return next(side.label for side in row.labels.values())


def _written(path: Path, rows: Iterable[Row]) -> Path:
    """The rows that have a label; written once."""
    if not path.is_file():
        write_rows(path, (r for r in rows if any(s.label for s in r.labels.values())))
    return path


def _relabelled(row: Row, by: str, rule: Callable[[tuple[Vote, ...]], Label | None]) -> Row:
    """A fit row with a label from its jurors' votes in place of its own."""
    if row.split != "fit":
        return row
    given = row.labels["prompt"]
    return replace(row, labels={"prompt": SideLabel(rule(given.votes), by, given.votes)})


def _one(votes: tuple[Vote, ...]) -> Label | None:
    return next((v.label for v in votes if v.by == "keel-135m"), None)


def _raters(row: Row, count: int) -> Row:
    """A fit row labelled by a few of its raters, which its id chooses."""
    if row.split != "fit":
        return row
    given = row.labels["response"]
    order = sorted(given.votes, key=lambda v: hashlib.sha256(f"{row.id} {v.by}".encode()).digest())
    some = tuple(order[:count])
    by = "rater" if count == 1 else "jury"
    return replace(row, labels={"response": SideLabel(majority(some), by, some)})


def _part(identity: str) -> float:
    return position(f"curate bench {identity}")
