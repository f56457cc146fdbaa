"""Trained guards on items that none of them learned from: scores, kept, and paired comparisons of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import FOLDS, OTHER_ORIGIN, Arm

from guardkeel.evaluation.behaviour import measure
from guardkeel.evaluation.ranking import auroc_change
from guardkeel.evaluation.suites import SuiteItem, load_suite, split_many
from guardkeel.guards.base import Judgement
from guardkeel.guards.guard_policy import GuardPolicy, PolicyCategory
from guardkeel.guards.load import load_checkpoint
from guardkeel.records import write_json
from guardkeel.taxonomy import AEGIS2
from guardkeel.tuning.gather import first
from guardkeel.tuning.guard_training.measuring import paired, scores_of
from guardkeel.tuning.guard_training.preparing import some_rows
from guardkeel.tuning.guard_training.rows import read_training

FULL = GuardPolicy(name="aegis-2", categories=tuple(PolicyCategory(name=n) for n in AEGIS2))

Told = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Items:
    """What is judged, and under which policy (None: the guard's own)."""

    name: str
    judgements: Sequence[Judgement]
    unsafe: np.ndarray
    policy: GuardPolicy | None = None


@dataclass(frozen=True)
class Scored:
    """P(unsafe) of items by a guard at its threshold."""

    scores: np.ndarray
    unsafe: np.ndarray
    threshold: float


def items_of(arm: Arm, sets: dict[str, Path], data: Path, most: int) -> Items:
    """What an arm is judged on: the same for all arms that are compared."""
    if arm.part == "a":
        held = FOLDS[int(arm.name[4])]
        rows = [
            r for r in read_training([str(sets["mixture"])]).rows if r.policy is None and r.split != "fit"
        ]
        unsafe = [r for r in rows if r.label == "unsafe" and set(held) & set(r.categories)]
        safe = [r for r in rows if r.label == "safe" and r.split == "test"]
        chosen = [*some_rows(unsafe, most), *some_rows(safe, most)]
        return _items(f"a-{arm.name[:5]}", [r.item() for r in chosen], FULL)
    if arm.part in ("d", "e"):
        suites = split_many([load_suite(s, data=data, offline=True) for s in OTHER_ORIGIN])
        some = [i for s in suites for i in first([i for i in s.items() if i.split == "test"], most // 2)]
        return _items("d", some)
    if arm.name.startswith("dices"):
        rows = [r for r in read_training([str(sets[arm.set])]).rows if r.split == "test"]
        return _items("dices", [r.item() for r in rows])
    found = load_suite("toxicchat@local", data=data, offline=True).items("test")
    unsafe = first([i for i in found if i.label == "unsafe"], most)
    return _items("toxic", [*unsafe, *first([i for i in found if i.label == "safe"], 2 * most)])


def _items(name: str, found: Sequence[SuiteItem], policy: GuardPolicy | None = None) -> Items:
    unsafe = np.array([i.label == "unsafe" for i in found])
    return Items(name, [i.judgement for i in found], unsafe, policy)


def judged(out: Path, guard: str, name: str, items: Items, told: Told) -> Scored:
    """A guard's scores, from the file where they are kept."""
    path = out / "scores" / f"{name}-{items.name}.json"
    if not path.is_file():
        loaded = load_checkpoint(guard, offline=True)
        scores = scores_of(
            loaded, items.judgements, items.policy, lambda n: told(f"judge {name}", n, len(items.judgements))
        )
        write_json(
            path,
            {
                "threshold": loaded.threshold,
                "scores": [None if np.isnan(s) else float(s) for s in scores],
                "ids": [j.id for j in items.judgements],
            },
        )
    said = json.loads(path.read_text())
    if said["ids"] != [j.id for j in items.judgements]:
        raise SystemExit(f"{path}: scores of other items; delete the file")
    scores = np.array([np.nan if s is None else s for s in said["scores"]], float)
    return Scored(scores, items.unsafe, said["threshold"])


def behaviour(one: Scored) -> dict[str, Any]:
    """Recall, FPR, AUROC with intervals."""
    found = measure(one.scores, one.unsafe, one.threshold)
    return {k: getattr(found, k).model_dump() for k in ("recall", "fpr", "auroc", "unscored")}


def compared(one: Scored, other: Scored) -> dict[str, Any]:
    """`one` − `other` on the same items: AUROC (DeLong), recall and FPR at each guard's own threshold (Tango)."""
    ranking = auroc_change("*", other.scores, one.scores, one.unsafe)
    found: dict[str, Any] = {"auroc": ranking.difference.model_dump()}
    for name, chosen in (("recall", one.unsafe), ("fpr", ~one.unsafe)):
        mine, theirs = _flags(one, chosen), _flags(other, chosen)
        contrast = paired(mine, theirs, 0.5)
        found[name] = contrast.gain.model_dump() | {"p_change": contrast.p_change}
    return found


def _flags(scored: Scored, chosen: np.ndarray) -> np.ndarray:
    """1 where flagged, 0 where not, NaN where unscored: thresholds differ from guard to guard."""
    scores = scored.scores[chosen]
    return np.where(np.isnan(scores), np.nan, (scores >= scored.threshold).astype(float))
