"""Two audits on the same items, row by row: what changed between two runs of the dossier, with paired intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.dossier.evidence import on_disk
from guardkeel.dossier.kinds import Comparison, Model, Run
from guardkeel.dossier.kinds.base import plain_id
from guardkeel.dossier.rules import comparable
from guardkeel.dossier.state import State
from guardkeel.errors import DataError, EvidenceError
from guardkeel.evaluation.compare import compare
from guardkeel.evaluation.items import ItemMeta


def compared(state: State, reference: str, candidate: str) -> list[Comparison]:
    """Paired tests of two runs' verdicts on the test items that both judged.

    Raises:
        RuleError: the runs are not on the same versions of the same prompt sets.
        EvidenceError: files of one of them are gone or changed.
        DataError: one is no audit of guardkeel's, whose rows could be paired.
    """
    comparable(state, reference, candidate)
    before, after = (_rows(state, state.get(Run, r)) for r in (reference, candidate))
    shared = [id for id in before[0] if id in after[0]]
    if len(shared) != len(before[0]) or len(shared) != len(after[0]):
        raise DataError(
            f"runs {reference!r} and {candidate!r} share {len(shared)} of {len(before[0])} and {len(after[0])} items",
            remedy="audit both with the same limit and seed",
        )
    metas = [before[0][id] for id in shared]
    scores = [np.array([found[1][id] for id in shared]) for found in (before, after)]
    lines = [_line(state, state.get(Run, r)) for r in (reference, candidate)]
    tests = compare(metas, scores[0], scores[1], lines[0], lines[1], draws=2).tests
    return [
        Comparison(
            id=plain_id(f"{candidate} against {reference}/{t.suite}/{t.metric}"),
            reference=reference,
            candidate=candidate,
            metric=t.metric,
            slice=t.suite,
            n=t.n,
            worse=t.worse,
            better=t.better,
            difference=t.difference.value,
            low=t.difference.low,
            high=t.difference.high,
            margin=t.margin,
            p=t.p_holm,
            outcome=t.outcome,
        )
        for t in tests
    ]


def _line(state: State, run: Run) -> float:
    threshold = state.get(Model, run.model).threshold
    return 0.5 if threshold is None else threshold


def _rows(state: State, run: Run) -> tuple[dict[str, ItemMeta], dict[str, float]]:
    if run.tool != "guardkeel audit" or "items.jsonl" not in run.files:
        raise DataError(
            f"run {run.id!r} is of {run.tool}: it has no rows to pair", remedy="compare audits of guardkeel"
        )
    found = on_disk(run)
    if not found.sound:
        raise EvidenceError(f"{found.what}", remedy="restore the run directory, or run again")
    place = Path(run.location)
    metas = {
        m["id"]: ItemMeta(m["id"], m["suite"], m["side"], m["label"]) for m in _lines(place / "items.jsonl")
        if m["split"] == "test"
    }  # fmt: skip
    verdicts = {v["id"]: v["unsafe"] for v in _lines(place / f"{run.role}.jsonl")}
    return metas, {id: float("nan") if verdicts.get(id) is None else verdicts[id] for id in metas}


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as lines:
        return [json.loads(one) for one in lines]
