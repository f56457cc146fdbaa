"""A sweep in words: the headline, whether the fine-tuning was just undone, and how controls did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardkeel.fusion.sweep.results import Confirmation, Point, SweepResults
from guardkeel.records import Estimate
from guardkeel.report import words

OUTCOMES = {"non-inferior": "pass", "inferior": "fail", "insufficient evidence": "hold", None: "none"}
SIGNS = {"non-inferior": "✓", "inferior": "✗", "insufficient evidence": "?", None: "–"}
ANSWERS = {"allow": "pass", "hold": "hold", "deny": "fail"}
UNDONE = 0.05
"""Shares of the change below this are told as undone, as by the diagnostics of a fuse (which need torch)."""
KINDS = {
    "reference": "reference",
    "candidate": "candidate",
    "random mask": "control: random mask",
    "interpolation": "control: interpolation",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """What a reader who stops after three lines must know; `outcome` is pass, fail, hold or none."""

    outcome: str
    badge: str
    lead: str
    sentence: str
    why: str


def headline(results: SweepResults) -> Headline:
    """The first lines of the report."""
    point = results.point(results.choice.chosen)
    found = results.confirmation
    why = f"Rule: {results.choice.rule}. {_capital(results.choice.reason)}."
    if point is None:
        return Headline("fail", "NO REPAIR", "No point of this sweep can be chosen.", "", why)
    said = _kept(point)
    if found is None:
        badge = "CHOSEN" if results.choice.satisfied else "NO REPAIR"
        outcome = "none" if results.choice.satisfied else "fail"
        return Headline(outcome, badge, f"{point.name}, not confirmed on test items.", said, why)
    shown = {
        "non-inferior": f"on every test suite its recall is within {100 * found.margin:g} points of the reference’s",
        "inferior": f"on a test suite its recall is more than {100 * found.margin:g} points below the reference’s",
        "insufficient evidence": "the test items do not settle whether its recall is "
        f"within {100 * found.margin:g} points of the reference’s on every suite",
    }[found.verdict]
    if not results.choice.satisfied:
        lead = f"No point satisfies the rule; the nearest is {point.name}."
        return Headline("fail", "NO REPAIR", lead, f"{said} {_capital(shown)}.", why)
    badges = {"non-inferior": "REPAIRED", "inferior": "NOT REPAIRED", "insufficient evidence": "NOT SETTLED"}
    return Headline(OUTCOMES[found.verdict], badges[found.verdict], f"{point.name}: {shown}.", said, why)


def _kept(point: Point) -> str:
    return (
        f"It keeps {share(point.gain)} of the task gain. On calibrate items its recall is "
        f"{words.percent(point.recall_matched.value)} at the reference’s false-positive rate."
    )


def undone(results: SweepResults) -> str:
    """Did we just undo the fine-tuning? In a sentence or two, of the chosen point."""
    point = results.point(results.choice.chosen)
    if point is None or point.weights is None:
        return ""
    shares = [s for s in point.weights.shares if s is not None]
    gain = point.gain.value
    if not shares:
        return "The candidates changed no weight."
    of = "of the change" if len(shares) == 1 else "of the changes"
    length = f"By length {' and '.join(f'{s:.0%}' for s in shares)} {of} is left"
    if all(s < UNDONE for s in shares):
        return f"Yes: {length.lower()}, the result is all but the reference."
    if gain is None:
        return f"{length}; how much of the task is left is not known."
    if gain < 0.5:
        return f"Largely: {length.lower()}, and {gain:.0%} of the task gain."
    near = twin(results)
    like = ""
    if near is not None and near.gain.value is not None and near.recall_matched.value is not None:
        like = (
            f" Plain interpolation at the nearest gain ({near.name}, {near.gain.value:.0%}) has recall "
            f"{words.percent(near.recall_matched.value)}."
        )
    return f"No: {length.lower()}, and {gain:.0%} of the task gain.{like}"


def twin(results: SweepResults) -> Point | None:
    """The plain interpolation whose task gain is nearest to the chosen point's; none where it is one itself."""
    point = results.point(results.choice.chosen)
    if point is None or point.gain.value is None or point.control == "interpolation":
        return None
    gain = point.gain.value
    plain = [p for p in results.points if p.control == "interpolation" and p.gain.value is not None]
    return min(plain, key=lambda p: abs((p.gain.value or 0.0) - gain), default=None)


def ordered(points: Sequence[Point]) -> list[Point]:
    """Reference and candidates first, then by recall at the reference's FPR."""
    ends = {"reference": 0, "candidate": 1}
    return sorted(points, key=lambda p: (ends.get(p.control, 2), -(p.recall_matched.value or -1.0), p.name))


def share(estimate: Estimate) -> str:
    """0.934 → '93%'."""
    return words.NOTHING if estimate.value is None else f"{100 * estimate.value:.0f}%".replace("-", "−")


def shares(values: Sequence[float | None]) -> str:
    """Shares of the candidates' changes, in their order."""
    return ", ".join(words.NOTHING if v is None else f"{v:.0%}" for v in values)


def cosines(values: Sequence[float | None]) -> str:
    """Cosines with the candidates' changes, in their order."""
    return ", ".join(words.decimal(v, 2) for v in values)


def shipped(found: Confirmation) -> str:
    """How the guard that was written differs from the weights alone."""
    if not found.moved:
        return "with the reference’s threshold"
    offsets = ", ".join(f"{side} {words.change(v)}" for side, v in sorted(found.offsets.items()))
    return f"with its threshold at {found.threshold:.3f}" + (
        f" and log-odds offsets ({offsets})" if offsets else ""
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
