"""One model's heads on one set of prompts, in one mode: what every measure says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardkeel.heads.config import HeadsConfig
from guardkeel.heads.layout import Head, Layout
from guardkeel.heads.plan import SweepPlan, plan_sweep
from guardkeel.heads.prompts import Prompt
from guardkeel.heads.sahara import Measure, score
from guardkeel.heads.screening import screen
from guardkeel.heads.ships import top, verdict
from guardkeel.heads.sweep import Floats, Sweep, sweep_heads
from guardkeel.resources import Progress

_STATES = 256 << 20
"""Bytes of hidden states that are kept for the data set's measure where it does not rank."""


@dataclass(frozen=True)
class Ranking:
    """Attributes beside the sweep: `estimates` (layers, heads) where it was screened, and `rank` of the angles."""

    sweep: Sweep
    rank: int
    estimates: Floats | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that the sweep kept what they are of."""
        found: list[Measure] = ["kl"] if self.sweep.kl is not None else []
        if self.sweep.hidden is not None and len(self.sweep.ids) > self.rank:
            found.append("dataset")
        if self.sweep.kl is not None and not np.isnan(self.sweep.clean_log_odds).any():
            found.append("verdict")
        return tuple(found)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Which heads were swept."""
        shape = (self.sweep.kl if self.sweep.kl is not None else self.sweep.log_odds).shape[1:]
        found = np.zeros(shape, bool)
        for head in self.sweep.plan.variants:
            found[head] = True
        return found

    def values(self, measure: Measure, rows: Sequence[int] | None = None) -> Floats:
        """(layers, heads), over all prompts or some; NaN where not exact."""
        return score(self.sweep if rows is None else _some(self.sweep, rows), measure, self.rank)

    def by_prompt(self, measure: Measure) -> Floats | None:
        """(n, layers, heads); None for the data set's measure, which is of all prompts together."""
        if measure == "verdict":
            return verdict(self.sweep)
        return self.sweep.kl if measure == "kl" else None

    def top(self, measure: Measure, count: int) -> list[Head]:
        """The best of those that are exact."""
        return top(self.values(measure), count)


def ranked(
    model: Any,
    prompts: Sequence[Prompt],
    mode: str,
    config: HeadsConfig,
    *,
    heads: Sequence[Head] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Sweep as the configuration says: exactly, or screened with the best exact.

    `heads` limits it to these, all exact. Arguments and errors otherwise as in `sweep_heads`.
    """
    common: dict[str, Any] = {
        "mode": mode,
        "epsilon": config.epsilon,
        "memory": config.bytes,
        "folder": folder,
        "progress": progress,
    }
    if config.screen and heads is None:
        found = screen(
            model,
            prompts,
            how=config.screen,
            measure=config.measure,
            rescore=config.rescore,
            rank=config.rank,
            kl=True,
            hidden=True,
            **common,
        )
        return Ranking(found.sweep, config.rank, found.estimates)
    states = keeps_states(plan_sweep(model, prompts, mode=mode, heads=heads), len(prompts), model, config)
    swept = sweep_heads(model, prompts, heads=heads, kl=True, hidden=states, **common)
    return Ranking(swept, config.rank)


def keeps_states(planned: SweepPlan, prompts: int, model: Any, config: HeadsConfig) -> bool:
    """Whether hidden states are kept: where they rank, or are few."""
    config_of = model.config if isinstance(model, Layout) else model.config.get_text_config(decoder=True)
    size = 4 * prompts * len(planned.variants) * int(config_of.hidden_size)
    return config.measure == "dataset" or size <= _STATES


def _some(swept: Sweep, rows: Sequence[int]) -> Sweep:
    """The sweep of some prompts."""
    chosen = list(rows)
    return replace(
        swept,
        ids=tuple(swept.ids[i] for i in chosen),
        kl=None if swept.kl is None else swept.kl[chosen],
        log_odds=swept.log_odds[chosen],
        clean_log_odds=swept.clean_log_odds[chosen],
        hidden=None if swept.hidden is None else swept.hidden[chosen],
        clean_hidden=swept.clean_hidden[chosen],
        base_kl=swept.base_kl[chosen],
    )
