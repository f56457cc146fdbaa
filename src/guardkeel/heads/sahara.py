"""Sahara (arXiv:2410.13708): a group of heads that matter together, found greedily.

Each step ablates G ∪ {h} for every remaining head h and adds the best. Its trunk is the run with G ablated, so a step
costs what the first one does. Scores are against the model as it is, never against G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from guardkeel.errors import ConfigError
from guardkeel.heads.ablation import EPSILON, check, per_layer
from guardkeel.heads.layout import Head, layout_of
from guardkeel.heads.prompts import Prompt
from guardkeel.heads.ships import angles, check_rank, top, verdict
from guardkeel.heads.sweep import Floats, Sweep, sweep_heads
from guardkeel.resources import Progress

LARGEST = 5
"""Heads in a group; the paper's effects peak near 3."""

Measure = Literal["dataset", "kl", "verdict"]


@dataclass(frozen=True)
class Group:
    """A greedy group.

    Attributes:
        heads: in the order in which they were added.
        scores: of the group after each addition: degrees (`dataset`), mean nats (`kl`) or mean log-odds (`verdict`).
        steps: (size, layers, heads), what every candidate would have given; NaN for those already in.
        measure, mode, epsilon: how it was made.
    """

    heads: tuple[Head, ...]
    scores: tuple[float, ...]
    steps: Floats
    measure: Measure
    mode: str
    epsilon: float


def find_group(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    size: int = 3,
    measure: Measure = "dataset",
    rank: int = 1,
    mode: str = "q",
    epsilon: float = EPSILON,
    start: Sweep | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Group:
    """Find a group of heads.

    Args:
        model, prompts, mode, epsilon: see `sweep_heads`.
        size: heads in it, 1 to LARGEST.
        measure: `dataset` (summed principal angles, see ships.py), `kl` (mean over the prompts) or `verdict` (how far a
            guard's log P(unsafe)/P(safe) falls, mean over the prompts).
        rank: of the data set's subspaces.
        start: a sweep of all candidates over these very prompts, which is the first step where it is at hand.
        progress: called over all steps together.
        **options: of `sweep_heads`: share, memory, folder, heads (candidates).

    Raises:
        ConfigError: the size, the measure or the rank is no good.
        DataError: too few prompts for the rank.
    """
    check(mode, epsilon)
    found = layout_of(model)
    candidates = set(options.pop("heads", None) or _all(found.layers, per_layer(found, mode)))
    if measure not in ("dataset", "kl", "verdict"):
        raise ConfigError(f"no measure {measure!r}", remedy="use dataset, kl or verdict")
    if start is not None:
        _check_start(start, mode, epsilon, candidates, prompts)
    if not 1 <= size <= min(LARGEST, len(candidates)):
        raise ConfigError(
            f"a group of {size} heads",
            remedy=f"use 1 to {min(LARGEST, len(candidates))}; effects peak near 3",
        )
    if measure == "dataset":
        check_rank(rank, len(prompts))
    group: list[Head] = []
    scores, steps = [], []
    for number in range(size):
        swept = (
            start
            if start is not None and number == 0
            else sweep_heads(
                model,
                prompts,
                mode=mode,
                epsilon=epsilon,
                heads=candidates - set(group),
                within=group,
                kl=measure != "dataset",
                hidden=measure == "dataset",
                progress=_share(progress, number - (start is not None), size - (start is not None)),
                **options,
            )
        )
        values = score(swept, measure, rank)
        best = top(values, 1)[0]
        group.append(best)
        scores.append(float(values[best]))
        steps.append(values)
    return Group(tuple(group), tuple(scores), np.stack(steps), measure, mode, epsilon)


def score(swept: Sweep, measure: Measure, rank: int = 1) -> Floats:
    """(layers, heads) of a sweep that kept what the measure is of; NaN where not swept."""
    if measure == "dataset":
        return angles(swept, rank)
    if swept.kl is None:
        raise ConfigError(f"the sweep has no {measure}", remedy="sweep with kl=True")
    found: Floats = swept.kl.mean(0) if measure == "kl" else verdict(swept).mean(0)
    return found


def _check_start(
    start: Sweep, mode: str, epsilon: float, candidates: set[Head], prompts: Sequence[Prompt]
) -> None:
    same = (start.mode, start.epsilon, start.within) == (mode, epsilon, ())
    if not (same and start.ids == tuple(p.id for p in prompts) and candidates <= set(start.plan.variants)):
        raise ConfigError(
            "start is a sweep of other prompts, heads or settings",
            remedy="leave it out, or sweep these first",
        )


def _all(layers: int, heads: int) -> list[Head]:
    return [(layer, head) for layer in range(layers) for head in range(heads)]


def _share(progress: Progress | None, number: int, steps: int) -> Progress | None:
    """Progress of one of `steps` equal steps, as part of the whole, in thousandths of a step."""
    if progress is None:
        return None

    def report(what: str, done: int, total: int | None) -> None:
        if total:
            progress(what, 1000 * number + 1000 * done // total, 1000 * steps)

    return report
