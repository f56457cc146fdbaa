"""Ships, the safety head importance score (arXiv:2410.13708), per query and per data set.

Per query it is KL(original ‖ ablated) of the next token. Per data set the last-token, final-norm states of N prompts
are stacked into X (N × d); of X as it is and X' with the head ablated, the first r left singular vectors span two
subspaces of R^N, and the score is the sum of the principal angles between them, in degrees. The released code has
r = 1 and takes the arc cosine in float32, which gives exact zeros below about 0.03°; here angles are float64 and small
ones come from the sine.

Ships measures *any* change of the distribution: a head that matters for grammar has a high score as well. Set benign
prompts beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardkeel.errors import ConfigError, DataError
from guardkeel.geometry.angles import principal_angles
from guardkeel.heads.layout import Head
from guardkeel.heads.prompts import Prompt
from guardkeel.heads.sweep import Floats, Sweep, sweep_heads


@dataclass(frozen=True)
class QueryShips:
    """KL by prompt and head; `sweep` has the rest (verdict log-odds, notes, what was done)."""

    sweep: Sweep

    @property
    def kl(self) -> Floats:
        """(n, layers, heads), nats."""
        assert self.sweep.kl is not None
        return self.sweep.kl

    @property
    def mean(self) -> Floats:
        """(layers, heads), over the prompts."""
        found: Floats = self.kl.mean(0)
        return found

    def top(self, count: int = 10) -> list[Head]:
        """The heads with the highest mean, best first."""
        return top(self.mean, count)

    def top_of(self, prompt: int, count: int = 10) -> list[Head]:
        """Those of one prompt."""
        return top(self.kl[prompt], count)


@dataclass(frozen=True)
class DatasetShips:
    """Angles (layers, heads) in degrees between the data set's subspaces of `rank` before and after."""

    angles: Floats
    rank: int
    sweep: Sweep

    def top(self, count: int = 10) -> list[Head]:
        """The heads with the widest angle, best first."""
        return top(self.angles, count)


def query_ships(model: Any, prompts: Sequence[Prompt], **options: Any) -> QueryShips:
    """Ships of every head, per query; options are those of `sweep_heads`."""
    return QueryShips(sweep_heads(model, prompts, **{**options, "kl": True}))


def dataset_ships(model: Any, prompts: Sequence[Prompt], *, rank: int = 1, **options: Any) -> DatasetShips:
    """Ships of every head on the data set; options are those of `sweep_heads`, where kl is False by default.

    Raises:
        ConfigError: the rank is not positive.
        DataError: there are not more prompts than that (r = N spans everything: all angles are 0).
    """
    check_rank(rank, len(prompts))
    found = sweep_heads(model, prompts, **{"kl": False, **options, "hidden": True})
    return DatasetShips(angles(found, rank), rank, found)


def angles(found: Sweep, rank: int = 1) -> Floats:
    """Summed principal angles (layers, heads) in degrees, from a sweep with hidden states; NaN where not swept."""
    if found.hidden is None:
        raise ConfigError("the sweep kept no hidden states", remedy="sweep with hidden=True")
    check_rank(rank, len(found.ids))
    before = left(found.clean_hidden, rank)
    result = np.full(found.hidden.shape[1:3], np.nan)
    for layer, head in found.plan.variants:
        after = found.hidden[:, layer, head]
        if np.array_equal(after, found.clean_hidden):
            result[layer, head] = 0.0
        else:
            result[layer, head] = principal_angles(before, left(after, rank)).sum()
    return result


def verdict(found: Sweep) -> Floats:
    """How far the log-odds of unsafe fall when a head is ablated: (n, layers, heads), nats; a guard's sweep only.

    Unlike Ships it has a direction: heads above 0 speak for *unsafe*, heads below 0 against it.

    Raises:
        ConfigError: the prompts have no answers.
    """
    if np.isnan(found.clean_log_odds).any():
        raise ConfigError(
            "the prompts have no answers: a chat model has no verdict", remedy="rank it by kl or dataset"
        )
    result: Floats = found.clean_log_odds[:, None, None] - found.log_odds
    return result


def left(states: np.ndarray[Any, Any], rank: int) -> Floats:
    """The first left singular vectors (N, rank) of (N, d), in float64."""
    found: Floats = np.linalg.svd(states.astype(np.float64), full_matrices=False)[0][:, :rank]
    return found


def check_rank(rank: int, prompts: int) -> None:
    """Raises ConfigError or DataError where angles of this rank mean nothing."""
    if rank < 1:
        raise ConfigError(f"rank {rank}", remedy="use 1 (the released code's) or more")
    if prompts <= rank:
        raise DataError(
            f"{prompts} prompts span what {rank} singular vectors do: every angle is 0",
            remedy="give more prompts than the rank",
        )


def top(scores: Floats, count: int) -> list[Head]:
    """Highest first; equals in order of layer and head. What is NaN is left out."""
    flat = np.where(np.isnan(scores), -np.inf, scores).ravel()
    order = np.argsort(-flat, kind="stable")[:count]
    return [(int(i // scores.shape[1]), int(i % scores.shape[1])) for i in order if np.isfinite(flat[i])]
