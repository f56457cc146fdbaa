"""What each method came to at its best under the rule, and how far that is from plain interpolation at its best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from guardkeel.evaluation.intervals import undefined
from guardkeel.evaluation.items import Floats
from guardkeel.fusion.sweep.choice import Rule, Setting, best_of, reference_of, settings_of
from guardkeel.fusion.sweep.measuring import Yardstick
from guardkeel.fusion.sweep.results import Point, Standing

PLAIN = "interpolation"
"""The control that a method has to beat to be worth its trouble."""


def standings(
    points: Sequence[Point], rule: Rule, yardstick: Yardstick, scores: Mapping[str, Floats]
) -> list[Standing]:
    """One for each method and control: those that satisfy the rule first, then by recall at the reference's FPR.

    Args:
        points: of the sweep, the reference among them.
        rule: what the best is chosen by, among a method's own settings.
        yardstick: against the reference.
        scores: of the points by id, (items,).
    """
    reference = reference_of(points)
    groups: dict[str, list[Setting]] = {}
    for setting in settings_of(points):
        groups.setdefault(setting.first.control or setting.first.method, []).append(setting)
    best = {name: best_of(found, rule, reference) for name, found in groups.items()}
    plain = best.get(PLAIN)

    def standing(name: str, s: Setting) -> Standing:
        against = undefined(
            "plain interpolation itself" if s is plain else "no plain interpolation was tried"
        )
        if plain is not None and s is not plain:
            against = yardstick.against(scores[plain.first.id], scores[s.first.id])
        return Standing(
            method=name,
            point=s.first.id,
            satisfied=s.lacks(rule, reference) == 0,
            recall=_known(s.recall),
            gain=_known(s.gain),
            fpr=_known(s.fpr),
            seeds=s.seeds,
            against=against,
        )

    found = [standing(name, s) for name, s in best.items() if s is not None]
    return sorted(found, key=lambda s: (not s.satisfied, -(s.recall or 0.0), -(s.gain or 0.0)))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
