"""Which point is shipped: a rule that is written down before the points are seen.

    the highest recall at the reference's FPR, among settings whose
        task gain kept      ≥ floor
        FPR as shipped      ≤ the reference's + fpr_margin
        unscored            ≤ the reference's + unscored_margin

"As shipped" is with the reference's own threshold, before it may be moved for the confirmation.

A setting that draws counts by its means over seeds, for the best of several draws is luck; its first seed is what is
shipped. Of equal recall the larger gain wins, then the lower FPR. Reference and candidates are never chosen: they are
what is to be got between. A value that is not known satisfies nothing. Where no setting satisfies the rule the nearest
one may be taken: the smallest sum of what it lacks, each in units of its own limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from guardkeel.fusion.sweep.results import Choice, Point

_ROOM = 1e-9  # limits are met up to rounding


@dataclass(frozen=True, slots=True)
class Rule:
    """The limits, as fractions."""

    floor: float = 0.9
    fpr_margin: float = 0.05
    unscored_margin: float = 0.01
    fallback: bool = True

    def words(self) -> str:
        """The rule as a sentence."""
        return (
            f"highest recall at the reference’s FPR, subject to task gain kept ≥ {self.floor:.0%}, FPR as shipped ≤ "
            f"the reference’s + {100 * self.fpr_margin:g} points, unscored ≤ the reference’s + "
            f"{100 * self.unscored_margin:g} points"
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """Points that differ in their seed alone; their means, NaN where one is not known."""

    first: Point
    recall: float
    gain: float
    fpr: float
    unscored: float
    seeds: int

    def lacks(self, rule: Rule, reference: Point) -> float:
        """0 where the rule is satisfied; else how far from it, infinite where that cannot be known."""
        base, silent = reference.fpr.value, reference.unscored.value
        if (
            base is None
            or silent is None
            or any(map(math.isnan, (self.recall, self.gain, self.fpr, self.unscored)))
        ):
            return math.inf
        missing = (
            (rule.floor - self.gain, rule.floor),
            (self.fpr - base - rule.fpr_margin, rule.fpr_margin),
            (self.unscored - silent - rule.unscored_margin, rule.unscored_margin),
        )
        return sum(gap / max(limit, 0.01) for gap, limit in missing if gap > _ROOM)


def choose(points: Sequence[Point], rule: Rule) -> Choice:
    """Apply the rule to the points of a sweep, the reference among them."""
    reference = reference_of(points)
    settings = settings_of(points)
    good = [s for s in settings if s.lacks(rule, reference) == 0]
    best = best_of(settings, rule, reference)

    def told(satisfied: bool, reason: str, chosen: Setting | None = best) -> Choice:
        return Choice(
            rule=rule.words(),
            chosen=chosen.first.id if chosen else None,
            satisfied=satisfied,
            reason=reason,
            eligible=len(good),
            considered=len(settings),
        )

    none = f"none of {len(settings)} settings satisfies the rule"
    if best is None:
        return told(False, f"{none}, and of none is all known that it asks for" if settings else none)
    if good:
        return told(True, f"{len(good)} of {len(settings)} settings satisfy the rule; {_said(best)}")
    if not rule.fallback:
        return told(False, f"{none}; the nearest is {best.first.name}: {_said(best)}", None)
    return told(False, f"{none}; this is the nearest: {_said(best)}")


def reference_of(points: Sequence[Point]) -> Point:
    """The reference among the points."""
    return next(p for p in points if p.control == "reference")


def best_of(settings: Sequence[Setting], rule: Rule, reference: Point) -> Setting | None:
    """The best of those that satisfy the rule, or else the nearest to it; None where of none enough is known."""
    good = [s for s in settings if s.lacks(rule, reference) == 0]
    known = [s for s in settings if math.isfinite(s.lacks(rule, reference))]
    if good:
        return max(good, key=_rank)
    return min(known, key=lambda s: (s.lacks(rule, reference), *(-v for v in _rank(s))), default=None)


def settings_of(points: Sequence[Point]) -> list[Setting]:
    """What was tried between reference and candidates, seeds together."""
    groups: dict[str, list[Point]] = {}
    for p in points:
        if p.control in ("reference", "candidate"):
            continue
        key = repr((p.method, sorted(p.settings.items()), sorted(p.extras.items())))
        groups.setdefault(key, []).append(p)
    return [
        Setting(
            first=min(found, key=lambda p: -1 if p.seed is None else p.seed),
            recall=_mean([p.recall_matched.value for p in found]),
            gain=_mean([p.gain.value for p in found]),
            fpr=_mean([p.fpr.value for p in found]),
            unscored=_mean([p.unscored.value for p in found]),
            seeds=len(found),
        )
        for found in groups.values()
    ]


def _mean(values: Sequence[float | None]) -> float:
    known = [math.nan if v is None else v for v in values]
    return math.fsum(known) / len(known)


def _rank(s: Setting) -> tuple[float, float, float]:
    return (s.recall, s.gain, -s.fpr)


def _said(s: Setting) -> str:
    over = f", means over {s.seeds} seeds" if s.seeds > 1 else ""
    return f"recall {s.recall:.1%}, task gain kept {s.gain:.0%}, FPR {s.fpr:.1%}{over}"
