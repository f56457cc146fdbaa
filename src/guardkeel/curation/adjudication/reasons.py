"""Why people are asked about a side, and how much is learnt by asking. Pure.

What is known of a side before anybody looks are beliefs in P(unsafe): Dawid–Skene's q, the smoothed share of unsafe
votes (k + ½) / (n + 1), and what each calibrated juror says. Of these, with mean m, one answer by a person who is right
is worth, in bits,

    H(m) = −m log₂ m − (1 − m) log₂(1 − m)  =  mean of the H(beliefs)  +  their Jensen–Shannon divergence:

how unsure the beliefs are by themselves, and how far they are apart (the split of arXiv:1112.5745). The share of votes
stands beside Dawid–Skene, which is too sure of jurors that err together. Items are asked about from the most bits on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guardkeel.conversation import Label
from guardkeel.curation.jury.pooling import DAWID_SKENE, MAJORITY
from guardkeel.curation.rows import DISAGREEMENT, SideLabel, Vote


@dataclass(frozen=True, slots=True)
class Looked:
    """Reasons in words (none: nothing speaks for asking), and the bits of an answer."""

    reasons: tuple[str, ...]
    information: float


def look(
    given: SideLabel | None,
    votes: Sequence[Vote],
    calibrated: Mapping[str, float],
    unsure: tuple[float, float],
) -> Looked:
    """What speaks for asking people about a side.

    Args:
        given: its label so far; None where nobody judged it.
        votes: those of the jurors.
        calibrated: P(unsafe) of those jurors that could be calibrated.
        unsure: between these a probability is unsure.
    """
    if given is None:
        return Looked(("nobody has judged it",), 1.0)
    definite = [v for v in votes if v.label is not None]
    unsafe = [v.by for v in definite if v.label == "unsafe"]
    safe = [v.by for v in definite if v.label == "safe"]
    share, chance = given.scores.get(MAJORITY), given.scores.get(DAWID_SKENE)
    reasons = []
    if unsafe and safe:
        reasons.append(f"jurors disagree: unsafe {', '.join(unsafe)}; safe {', '.join(safe)}")
    if share is not None and chance is not None and (share - 0.5) * (chance - 0.5) < 0:
        reasons.append(f"majority and Dawid–Skene differ: {share:.2f} of the votes, P(unsafe) {chance:.2f}")
    if chance is not None and unsure[0] < chance < unsure[1]:
        reasons.append(f"Dawid–Skene is unsure: P(unsafe) {chance:.2f}")
    reasons += [
        f"{by} is unsure: calibrated P(unsafe) {p:.2f}"
        for by, p in calibrated.items()
        if unsure[0] < p < unsure[1]
    ]
    if given.source == DISAGREEMENT:
        reasons.append("sources contradict each other")
    elif given.label is None:
        reasons.append("no label came of the votes")
    beliefs = [*([chance] if chance is not None else []), *calibrated.values()]
    beliefs.append((len(unsafe) + 0.5) / (len(definite) + 1))
    return Looked(tuple(reasons), bits(sum(beliefs) / len(beliefs)))


def contradiction(label: Label, source: str, votes: Sequence[Vote]) -> str:
    """Where more than half of the jurors contradict a label that a side had before them, the words for it; else ""."""
    definite = [v for v in votes if v.label is not None]
    against = [v.by for v in definite if v.label != label]
    if 2 * len(against) <= len(definite):
        return ""
    return f"{', '.join(against)} contradict the label {label} by {source}"


def bits(chance: float) -> float:
    """H of a probability, in bits."""
    if not 0 < chance < 1:
        return 0.0
    return -chance * math.log2(chance) - (1 - chance) * math.log2(1 - chance)
