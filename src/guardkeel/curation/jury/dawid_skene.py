"""Dawid–Skene: who is right, and how good each judge is, from votes alone.

Dawid & Skene 1979, Applied Statistics 28:20. Each item has one true label, drawn with prevalence π; judge j, asked
about an item whose truth is t, votes v with probability θ_jtv, whatever the others say. Judges that share training data
or a prompt err together: then this model is too sure of itself, which is why the share of votes stands beside it and
calibration items anchor it.

EM (section 3 of the paper):

    E   q_it ∝ π_t Π_j θ_j,t,v_ij      over the votes that there are; items with a known label keep it
    M   π_t = (Σ_i q_it + a) / (n + Ka),   θ_jtv = (Σ_{i: v_ij = v} q_it + a) / (Σ_{i: v_ij given} q_it + Ka)

begun at each item's shares of votes. Items with a known label (calibration) teach θ and not π: their own prevalence is
whatever their makers chose. Pseudo-counts a keep a judge that was never wrong from being infallible; they are
ours. With a = 0 this is the paper's maximum likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Votes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PSEUDO = 0.5
MOST_STEPS = 500
TOLERANCE = 1e-7
_TINY = 1e-300


@dataclass(frozen=True)
class DawidSkene:
    """`posterior` (items, K); `prevalence` (K,); `confusion` (judges, K truth, K vote); `likelihood` of each step.

    An item without a vote has the prevalence as its posterior. `likelihood` is the log of the observed votes', with the
    pseudo-counts' prior: what EM climbs.
    """

    posterior: Floats
    prevalence: Floats
    confusion: Floats
    likelihood: tuple[float, ...]

    @property
    def converged(self) -> bool:
        """Whether it ended before `MOST_STEPS`."""
        return len(self.likelihood) < MOST_STEPS


def dawid_skene(
    votes: Votes,
    *,
    classes: int = 2,
    known: Votes | None = None,
    pseudo: float = PSEUDO,
    steps: int = MOST_STEPS,
    tolerance: float = TOLERANCE,
) -> DawidSkene:
    """Fit the model.

    Args:
        votes: (items, judges), values 0 … K-1, -1 for none.
        classes: K.
        known: (items,), the true label where it is known, else -1.
        pseudo: the pseudo-count a.
        steps: most EM steps.
        tolerance: of the likelihood's growth by an item, at which EM ends.

    Raises:
        ValueError: shapes or values do not fit.
    """
    if votes.ndim != 2 or (votes.size and not -1 <= votes.min() <= votes.max() < classes):
        raise ValueError(f"votes must be (items, judges) of -1 … {classes - 1}")
    onehot = (votes[:, :, None] == np.arange(classes)).astype(np.float64)  # (items, judges, K)
    truth = np.full(len(votes), -1) if known is None else known
    fixed = truth >= 0
    given = np.eye(classes)[truth[fixed]]
    posterior = _start(onehot)
    likelihood: list[float] = []
    prevalence, confusion = np.full(classes, 1 / classes), np.zeros((votes.shape[1], classes, classes))
    for _ in range(steps):
        posterior[fixed] = given
        prevalence, confusion = _maximise(onehot, posterior, ~fixed, pseudo)
        joint = _log_votes(onehot, confusion)
        joint[~fixed] += np.log(np.maximum(prevalence, _TINY))
        joint[fixed] = np.where(given > 0, joint[fixed], -np.inf)
        top = joint.max(axis=1, keepdims=True, initial=-np.inf)
        weights = np.exp(joint - top)
        posterior = weights / weights.sum(axis=1, keepdims=True)
        prior = pseudo * float(
            np.log(np.maximum(prevalence, _TINY)).sum() + np.log(np.maximum(confusion, _TINY)).sum()
        )
        likelihood.append(float((np.log(weights.sum(axis=1)) + top[:, 0]).sum()) + prior)
        if len(likelihood) > 1 and likelihood[-1] - likelihood[-2] < tolerance * max(1, len(votes)):
            break
    return DawidSkene(posterior, prevalence, confusion, tuple(likelihood))


def _start(onehot: Floats) -> Floats:
    shares = onehot.sum(axis=1)
    total = shares.sum(axis=1, keepdims=True)
    even = np.full(shares.shape[1], 1 / shares.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, shares / total, even)


def _maximise(
    onehot: Floats, posterior: Floats, unknown: npt.NDArray[np.bool_], pseudo: float
) -> tuple[Floats, Floats]:
    prevalence = posterior[unknown].sum(axis=0) + pseudo
    counts = np.einsum("it,ijv->jtv", posterior, onehot) + pseudo
    total = counts.sum(axis=2, keepdims=True)
    even = 1 / onehot.shape[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        confusion = np.where(total > 0, counts / total, even)
        share = np.where(prevalence.sum() > 0, prevalence / prevalence.sum(), even)
    return share, confusion


def _log_votes(onehot: Floats, confusion: Floats) -> Floats:
    """Σ_j log θ_j,t,v_ij: (items, K). An absent vote adds nothing."""
    joint: Floats = np.einsum("ijv,jtv->it", onehot, np.log(np.maximum(confusion, _TINY)))
    return joint
