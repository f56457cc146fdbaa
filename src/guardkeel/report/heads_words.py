"""A study of heads in words: the headline, what overlaps say, and what the effect shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardkeel.heads.results import Beside, Effect, Head, HeadsResults, Metric, Overlap, SharedTop, Trial
from guardkeel.records import Estimate
from guardkeel.report import words

UNITS = {"kl": "KL in nats", "dataset": "angle in degrees", "verdict": "fall of log-odds in nats"}
MEASURES = {"kl": "Ships per query (mean)", "dataset": "Ships of the data set", "verdict": "Verdict log-odds"}
STAMMERS = 0.5
"""Share of items without an answer from which rates over the others say nothing."""
KINDS = {"found": "found", "random": "random heads", "matched": "heads of the same layers"}
WHATS = {
    "sets": "unsafe and benign",
    "suites": "suites",
    "modes": "modes",
    "measures": "measures",
    "models": "models",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """What a reader who stops after three lines must know."""

    badge: str
    lead: str
    sentence: str
    why: str


def metrics(results: HeadsResults) -> dict[Metric, str]:
    """What the rates are called: of a guard, or of a chat model that refuses."""
    if results.chat:
        return {"recall": "Refusal of unsafe", "fpr": "Refusal of benign", "unscored": "No reply"}
    return {"recall": "Recall", "fpr": "FPR", "unscored": "Unscored"}


def headline(results: HeadsResults) -> Headline:
    """The first lines of the report."""
    name = results.model.name
    first = results.top[results.modes[0]]
    best = ", ".join(h.head for h in first[:3])
    total = next(r.heads for r in results.ranked)
    lead = f"Of {total} heads, {best} matter most where {name} reads unsafe items."
    if results.group is None:
        return Headline("RANKED", lead, "No group was looked for.", alike(results))
    if results.effect is None:
        heads = ", ".join(results.group.heads)
        return Headline(
            "RANKED", lead, f"Found together: {heads}. Their effect was not measured.", alike(results)
        )
    return Headline(_badge(results.effect), lead, told(results), alike(results))


def _badge(found: Effect) -> str:
    """What the effect shows, in a word.

    VERDICT BREAKS where most items are left without an answer; THEY CARRY IT where recall falls further than without
    any control group, and clearly; else NOT TOLD APART.
    """
    whole, telling = _whole(found), _telling(found)
    if (whole.unscored.after or 0.0) >= STAMMERS:
        return "VERDICT BREAKS"
    if telling is None or telling.recall.difference.value is None:
        return "NOT TOLD APART"
    fall, rows = telling.recall.difference.value, _beside(found, telling.size, "recall")
    clear = [r.excess.high is not None and r.excess.high < 0 and fall < r.low for r in rows]
    return "THEY CARRY IT" if rows and all(clear) else "NOT TOLD APART"


def _whole(found: Effect) -> Trial:
    return max((t for t in found.trials if t.kind == "found"), key=lambda t: t.size)


def _telling(found: Effect) -> Trial | None:
    """The largest found group without which most items still have an answer."""
    kept = [t for t in trials(found, "found") if (t.unscored.after or 0.0) < STAMMERS]
    return kept[-1] if kept else None


def _beside(found: Effect, size: int, metric: Metric) -> list[Beside]:
    return [b for b in found.beside if (b.size, b.metric) == (size, metric)]


def told(results: HeadsResults) -> str:
    """What ablating the group did, beside its controls."""
    assert results.effect is not None
    found, names = results.effect, metrics(results)
    whole, telling = _whole(found), _telling(found)
    said = []
    if telling is not None:
        parts = []
        for metric, change in (("recall", telling.recall), ("fpr", telling.fpr)):
            if change.before is not None:
                name = names[metric] if metric == "fpr" and not results.chat else names[metric].lower()  # type: ignore[index]
                was, now = words.percent(change.before), words.percent(change.after)
                parts.append(f"{name} stays at {was}" if was == now else f"{name} goes from {was} to {now}")
        said.append(
            f"Without {', '.join(telling.heads)} {' and '.join(parts) or 'nothing could be measured'}."
        )
        rows = _beside(found, telling.size, "recall")
        if rows:
            beside = "; ".join(
                f"{KINDS[r.kind]} {words.points(r.low)} to {words.points(r.high)} points" for r in rows
            )
            said.append(f"{names['recall']} without as many others: {beside} ({rows[0].draws} draws each).")
    if whole is not telling or whole.unscored.after:
        lost = words.percent(whole.unscored.after)
        said.append(f"Without {', '.join(whole.heads)} {lost} of items are left without an answer.")
    return " ".join(said)


def alike(results: HeadsResults) -> str:
    """Whether the ranking is one of safety at all: unsafe beside benign."""
    mode = results.modes[0]
    row = next((o for o in results.overlaps if o.what == "sets" and o.mode == mode), None)
    if row is None or row.spearman is None:
        return "There were no benign prompts to set beside."
    ten = next((t for t in row.top if t.k == 10), row.top[-1] if row.top else None)
    shared = f", and {ten.count} of the {ten.k} best are the same" if ten else ""
    return f"On benign prompts the ranking is {_alike(row.spearman)} (ρ = {row.spearman:.2f}{shared}): " + (
        "what is ranked is what matters for any verdict."
        if row.spearman > 0.8
        else "part of it is of unsafe items alone."
    )


def _alike(rho: float) -> str:
    return (
        "nearly the same"
        if rho > 0.9
        else "much the same"
        if rho > 0.7
        else "another one"
        if rho < 0.4
        else "related"
    )


def measures(heads: Sequence[Head]) -> list[str]:
    """The measures of a table, in one order for all."""
    return [m for m in MEASURES if heads and m in heads[0].unsafe]


def where(overlap: Overlap) -> str:
    """Mode and set of a row, where it has them."""
    return ", ".join(p for p in (overlap.mode, overlap.set) if p) or words.NOTHING


def shared(overlap: Overlap, k: int) -> SharedTop | None:
    """Of the k best; None where there are not so many heads."""
    return next((t for t in overlap.top if t.k == k), None)


def span(estimate: Estimate) -> str:
    """An interval in points."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{words.points(estimate.low)} to {words.points(estimate.high)}"


def trials(found: Effect, kind: str) -> list[Trial]:
    """Trials of a kind, by size."""
    return sorted((t for t in found.trials if t.kind == kind), key=lambda t: (t.size, t.draw))


def size(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.3g}".replace("-", "−")
