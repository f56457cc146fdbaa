"""Measures the trials of a bench, each once; trials on the same items share their draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from guardkeel.evaluation.items import Bools, Floats
from guardkeel.tuning.collapse.reading import Bench, Items, Trial
from guardkeel.tuning.collapse.resampling import Measured, Resampling


class Measuring:
    """What `table`, `contrasts` and `prediction` ask of a bench."""

    def __init__(self, bench: Bench, draws: int, seed: int = 0) -> None:
        self.bench, self.draws, self.seed = bench, draws, seed
        self._resampled: dict[str, Resampling] = {}
        self._arms: dict[tuple[int, bytes], Measured] = {}
        self._references: dict[tuple[str, bytes, bytes], Measured] = {}

    def resampling(self, items: Items) -> Resampling:
        """The draws of these items."""
        if items.digest not in self._resampled:
            self._resampled[items.digest] = Resampling(items, self.draws, self.seed)
        return self._resampled[items.digest]

    def arm(self, trial: Trial, within: Bools | None = None) -> Measured:
        """The trained guard of a trial, on test items that it and the reference scored, and of those `within`."""
        key = (id(trial), b"" if within is None else within.tobytes())
        if key not in self._arms:
            self._arms[key] = self.resampling(trial.items).measure(
                trial.scores, trial.reference, trial.thresholds, within
            )
        return self._arms[key]

    def reference(self, trial: Trial) -> Measured:
        """The reference on the same items as `arm(trial)`, its other thresholds found in the same way."""
        within = self.scored(trial)
        key = (trial.items.digest, within.tobytes(), trial.reference.tobytes())
        if key not in self._references:
            before = trial.thresholds[0]
            self._references[key] = self.resampling(trial.items).measure(
                trial.reference, trial.reference, (before, before), within
            )
        return self._references[key]

    def scored(self, trial: Trial) -> Bools:
        """Which test items the trained guard scored."""
        found: Bools = ~np.isnan(trial.scores[self.resampling(trial.items).tested])
        return found


def recalibrated(measured: Measured) -> Measured:
    """The same guard shipped with the operating point that was matched to the reference's FPR: that costs nothing."""
    draws, hits = measured.draws, measured.hits
    return replace(
        measured,
        draws=draws | {"shipped": draws["recalibrated"], "fpr": draws["fpr_recalibrated"]},
        hits=hits | {"shipped": hits["recalibrated"]},
    )


def first_row(measured: Measured, name: str, column: int = 0) -> float:
    """The estimate itself: a number of `draws` on the items as they are."""
    row: Floats = measured.draws[name][0]
    return float(row[column])
