"""How good people and jurors are, as adjudication shows.

People: Krippendorff's α and Cohen's κ over the independent labels of an item, the first `people` of them; the one more
that decides a tie is asked for where people disagree, and would bend both.

Jurors: sensitivity and specificity against what people decided, for contested and for audited items by themselves, and
over all items. There an item of stratum h (contested, agreed) stands for N_h / n_h items, of N_h that there are and n_h
that were decided (post-stratification), and a share p = Σ w hit / Σ w has Wilson's interval at Kish's effective number
of items, (Σ w)² / Σ w². That is honest where what is decided is a fair draw of its stratum: audited items always are,
contested ones are asked about from the most bits on, so all of them must be decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import Label
from guardkeel.curation.adjudication.queue import Queue
from guardkeel.curation.adjudication.resolving import Outcome, Said
from guardkeel.curation.agreement import CODES, MISSING, Agreement, Skill, agreement, skill
from guardkeel.curation.jury.pooling import JURY
from guardkeel.curation.mapping import Strictness
from guardkeel.curation.rows import Vote, vote_from_json
from guardkeel.evaluation.intervals import undefined, wilson
from guardkeel.evaluation.items import Floats
from guardkeel.records import Estimate

CONTESTED, AUDITED, ALL = "contested", "audited", "all items"


class Annotator(BaseModel):
    """One person: labels that stand, by answer; the median of the seconds that one took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    answers: dict[str, int]
    seconds: float | None
    not_blind: int = 0


class AdjudicationResults(BaseModel):
    """What the step found. `population` counts distinct items, `jury_skills` are against what people decided."""

    model_config = ConfigDict(extra="forbid")

    population: dict[str, int]
    queued: int
    decided: int
    people: int
    unsure: tuple[float, float]
    audit: float
    calibrated: dict[str, int]
    reasons: dict[str, int]
    annotators: list[Annotator]
    agreement: Agreement | None
    skills: list[Skill]
    complete: bool
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Decided:
    """One decided item: who judged how, what people say, its stratum."""

    votes: tuple[Vote, ...]
    truth: Label
    audit: bool


def annotators(records: Sequence[Mapping[str, Any]]) -> list[Annotator]:
    """Each person by the labels that stand."""
    found = []
    for name in sorted({r["annotator"] for r in records}):
        mine = [r for r in records if r["annotator"] == name]
        took = [r["seconds"] for r in mine if r["seconds"] is not None]
        found.append(
            Annotator(
                name=name,
                answers=dict(sorted(Counter(r["choice"] for r in mine).items())),
                seconds=round(median(took), 1) if took else None,
                not_blind=sum(not r["blind"] for r in mine),
            )
        )
    return found


def between_people(
    said: Mapping[str, Sequence[Said]], people: int, strictness: Strictness, *, seed: int = 0
) -> Agreement | None:
    """Agreement of annotators over the independent labels; None where no two have labelled one item."""
    names = sorted({s.by for given in said.values() for s in given})
    if not any(len(given[:people]) > 1 for given in said.values()):
        return None
    votes = np.full((len(said), len(names)), MISSING, dtype=np.int64)
    for i, given in enumerate(said.values()):
        for one in given[:people]:
            votes[i, names.index(one.by)] = CODES[one.label(strictness)]
    return agreement(votes, names, seed=seed)


def jurors_against_people(
    kept: Mapping[str, Mapping[str, Any]],
    outcomes: Mapping[str, Outcome],
    audits: Mapping[str, bool],
    population: Mapping[str, int],
) -> list[Skill]:
    """Each juror, and the jury's own label, against decisions: contested items, audited ones, and all.

    Args:
        kept: votes and label of items, as the store has them.
        outcomes: what people made of items.
        audits: the items that count, those of the queue; whether each is there for audit.
        population: how many items are contested, and how many agreed.
    """
    found = list(_decided(kept, outcomes, audits))
    names = sorted({v.by for d in found for v in d.votes if v.by != JURY})
    names += [JURY] if any(v.by == JURY for d in found for v in d.votes) else []
    made = []
    for name in names:
        votes = np.array([_vote(d, name) for d in found], dtype=np.int64)
        truth = np.array([CODES[d.truth] for d in found], dtype=np.int64)
        audit = np.array([d.audit for d in found], dtype=np.bool_)
        for at, source in ((~audit, CONTESTED), (audit, AUDITED)):
            if at.any():
                made.append(skill(name, votes[at], truth[at], source))
        weights = _weights(audit, population)
        if weights is not None:
            made.append(
                Skill(
                    judge=name,
                    source=ALL,
                    sensitivity=_share(votes[truth == 1] == 1, weights[truth == 1], votes[truth == 1] >= 0),
                    specificity=_share(votes[truth == 0] == 0, weights[truth == 0], votes[truth == 0] >= 0),
                    abstained=_share(votes < 0, weights, np.ones(len(votes), dtype=np.bool_)),
                )
            )
    return made


def _decided(
    kept: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, Outcome], audits: Mapping[str, bool]
) -> Iterator[_Decided]:
    for key, audit in audits.items():
        found = outcomes.get(key)
        if found is None or found.open or found.label is None or key not in kept:
            continue
        votes = [vote_from_json(v) for v in kept[key]["votes"]]
        given = kept[key]["label"]
        if given["source"] == JURY:
            votes.append(Vote(JURY, given["label"]))
        yield _Decided(tuple(votes), found.label, audit)


def _vote(one: _Decided, name: str) -> int:
    return next((CODES[v.label] for v in one.votes if v.by == name), MISSING)


def _weights(audit: Any, population: Mapping[str, int]) -> Floats | None:
    """N_h / n_h of each item; None where a stratum that there is has no decided item."""
    sizes = {True: population["agreed"], False: population["contested"]}
    counts = {True: int(audit.sum()), False: int((~audit).sum())}
    if any(sizes[h] and not counts[h] for h in sizes) or not len(audit):
        return None
    return np.array([sizes[bool(a)] / counts[bool(a)] for a in audit], dtype=np.float64)


def _share(hits: Any, weights: Floats, counted: Any) -> Estimate:
    """A weighted share; see the module's text."""
    hits, weights = hits[counted], weights[counted]
    if not weights.sum():
        return undefined("no decided item of this kind has a vote")
    value = float((hits * weights).sum() / weights.sum())
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    low, high = wilson(value * effective, effective)
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=len(weights))


def population(queue: Queue) -> dict[str, int]:
    """How many distinct items are contested, and how many agreed."""
    return {"contested": queue.contested.total(), "agreed": queue.agreed.total()}


def reasons(queue: Queue) -> dict[str, int]:
    """How many items each kind of reason speaks for; one item may have several."""
    found: Counter[str] = Counter()
    for one in queue.items:
        found.update({_kind(r) for r in one.reasons})
    return dict(found.most_common())


def _kind(reason: str) -> str:
    head = reason.split(":", maxsplit=1)[0]
    if head.endswith(" is unsure") and head != "Dawid–Skene is unsure":
        return "a calibrated juror is unsure"
    return "jurors contradict the label" if " contradict the label " in head else head
