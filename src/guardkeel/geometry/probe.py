"""How well a linear probe, trained on some items, ranks others: cross-fitted AUROC.

The probe is linear discriminant analysis with a shrunk covariance, in closed form:

    w = ((1 − δ)S + δmI)⁻¹ (μ_h − μ_b),   S the total covariance, m = tr(S)/d,

δ after Ledoit & Wolf (2004), at least 0.001. It is solved in the span of the training items, from their
Gram matrix, so that one factorisation serves the observed labels and every permutation of them.

AUROC is counted inside each held-out fold, over all pairs there (ties count half), and pooled over the pairs:
scores of different folds come from different probes and are not compared. So on noise it has mean exactly ½.

The null permutes labels inside folds and retrains. The interval's error is a bootstrap of the out-of-fold
scores over items (or groups), which takes the probes as given and so is too small; it is widened by Nadeau &
Bengio's (2003) factor √(1 + K/(K − 1)) for K folds with common training items, and laid on the log-odds of
AUROC. That errs on the wide side. Where AUROC is 0 or 1 and a bootstrap cannot vary, the interval is
Newcombe's (2006, method 5), which keeps the uncertainty that few items leave.

A probe that still ranks well in a collapsed guard says that the knowledge is there and no longer used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.geometry.inputs import Groups, Labels, activations, centred_gram, group_ids, labels, recentred
from guardkeel.geometry.resampling import bootstrap_weights, permutations, stratified_folds
from guardkeel.geometry.values import Array, Indices, MeasureValue, Value, against_null, interval, unmeasured

FOLDS = 5
LEAST_SHRINKAGE = 1e-3
RESAMPLES = 500
_NORMAL = 1.959963984540054


def probe(
    x: ArrayLike, y: ArrayLike, *, draws: int = 100, seed: int = 0, groups: Groups | None = None
) -> MeasureValue:
    """Cross-fitted AUROC of a shrunk linear discriminant, with interval and null.

    Undefined (None, with a note) where a class has fewer than five independent items or nothing varies.

    Args:
        x: activations (n, d).
        y: bool (n,), True = unsafe.
        draws: label permutations.
        seed: of folds, permutations and bootstrap.
        groups: items that are not independent of each other share an entry; folds keep them whole.

    Raises:
        DataError: NaN or infinite activations.
    """
    x = activations(x)
    unsafe, ids = labels(y, len(x)), group_ids(groups, len(x))
    return probe_of_gram(centred_gram(x), x.shape[1], unsafe, ids, draws=draws, seed=seed)


def probe_of_gram(
    gram: Array, d: int, unsafe: Labels, groups: Indices, *, draws: int, seed: int
) -> MeasureValue:
    """The same from the centred Gram matrix (n, n), the number of features and group numbers."""
    n = unsafe.size
    independent = min(np.unique(groups[unsafe]).size, np.unique(groups[~unsafe]).size)
    if independent < FOLDS:
        return unmeasured(
            n, f"a probe needs at least {FOLDS} independent items of each class, got {independent}"
        )
    if not gram.any():
        return unmeasured(n, "activations do not vary")
    rng = np.random.default_rng((seed, 2))
    folds = stratified_folds(unsafe, groups, FOLDS, rng)
    orders = np.vstack([np.arange(n), permutations(groups, folds, draws, rng)])
    y = unsafe[orders].T  # (n, draws + 1), column 0 the observed labels
    # Drawn over all folds: inside a fold there may be two groups of a class, which hardly vary.
    resampled = bootstrap_weights(unsafe, groups, np.zeros(n, dtype=np.int64), RESAMPLES, rng)
    won, pairs = np.zeros(draws + 1), np.zeros(draws + 1)
    boot_won, boot_pairs = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for fold in range(FOLDS):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        y_test = y[test]
        if y_test[:, 0].all() or not y_test[:, 0].any() or y[train, 0].all() or not y[train, 0].any():
            continue  # large mixed groups can leave a fold without a class, and so without pairs
        scores = _scores(gram, d, y, train, test)
        won += _pairs_won(scores, y_test)
        pairs += y_test.sum(axis=0) * (~y_test).sum(axis=0)
        up, down = scores[y_test[:, 0], 0], scores[~y_test[:, 0], 0]
        beats = np.sign(up[:, None] - down) / 2 + 0.5
        w_up, w_down = resampled[:, test[y_test[:, 0]]], resampled[:, test[~y_test[:, 0]]]
        boot_won += np.sum((w_up @ beats) * w_down, axis=1)
        boot_pairs += w_up.sum(axis=1) * w_down.sum(axis=1)
    auroc = won / pairs
    value = float(auroc[0])
    if value in (0.0, 1.0):
        low, high = newcombe(value, np.unique(groups[unsafe]).size, np.unique(groups[~unsafe]).size)
    else:
        drawn = boot_won[boot_pairs > 0] / boot_pairs[boot_pairs > 0]
        error = float(drawn.std()) * float(np.sqrt(1 + FOLDS / (FOLDS - 1)))
        low, high = _on_odds(value, error, int(groups.max()))
    return against_null(Value(value, low, high, n), auroc[1:])


def shrinkage(gram: Array, d: int) -> float:
    """Ledoit & Wolf's weight δ of the identity for the covariance of n items, from their centred Gram matrix.

    With S = X_cᵀX_c/n and m = tr(S)/d:  δ = min(1, (1/n²)Σ_i‖x_ix_iᵀ − S‖² / ‖S − mI‖²), all norms Frobenius.
    """
    n = len(gram)
    s2 = float(np.vdot(gram, gram)) / n**2
    spread = s2 - (float(np.trace(gram)) / n) ** 2 / d
    noise = (float(np.sum(np.diag(gram) ** 2)) / n - s2) / n
    if spread <= 0.0:
        return 1.0
    return float(np.clip(noise / spread, LEAST_SHRINKAGE, 1.0))


def newcombe(auroc: float, n_unsafe: int, n_safe: int) -> tuple[float, float]:
    """95% interval for AUROC: the θ whose own Hanley–McNeil variance reaches the value, by bisection.

    V(θ) = θ(1−θ)[1 + ((m+n)/2 − 1)((1−θ)/(2−θ) + θ/(1+θ))]/(mn)   (Newcombe 2006, method 5)
    """

    def reaches(theta: float) -> bool:
        each = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + ((n_unsafe + n_safe) / 2 - 1) * each) / (n_unsafe * n_safe)
        return abs(theta - auroc) <= _NORMAL * float(np.sqrt(variance))

    ends = []
    for bound in (0.0, 1.0):
        inside, outside = auroc, bound
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if reaches(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def _on_odds(value: float, error: float, freedom: int) -> tuple[float, float]:
    """Interval for a fraction strictly between 0 and 1, laid on its log-odds."""
    odds = float(np.log(value / (1 - value)))
    low, high = interval(odds, error / (value * (1 - value)), freedom)
    return float(1 / (1 + np.exp(-low))), float(1 / (1 + np.exp(-high)))


def _scores(gram: Array, d: int, y: Labels, train: Indices, test: Indices) -> Array:
    """Scores (n_test, draws) of the test items, one probe for each column of labels."""
    k = gram[np.ix_(train, train)]
    cross = gram[np.ix_(test, train)]
    # About the training mean; a constant added to all scores of a fold changes no order.
    cross = cross - k.mean(axis=0) - cross.mean(axis=1, keepdims=True)
    k = recentred(k)
    n = len(train)
    delta = shrinkage(k, d)
    ridge = delta * float(np.trace(k)) / (n * d)
    if ridge <= 0.0:  # the training items are all alike: nothing to rank by, every pair a tie
        return np.zeros((len(test), y.shape[1]))
    y_train = y[train]
    n1 = y_train.sum(axis=0)
    t = np.where(y_train, 1.0 / n1, -1.0 / (n - n1))
    out: Array = cross @ np.linalg.solve((1 - delta) / n * k + ridge * np.eye(n), t)
    return out


def _pairs_won(scores: Array, y: Labels) -> Array:
    """For each column, pairs in which the unsafe item scores higher, ties counting half."""
    # Ranks by counting: exact about ties, and the folds are small.
    higher = scores[:, None] > scores
    level = scores[:, None] == scores
    ranks = higher.sum(axis=1) + 0.5 * (level.sum(axis=1) + 1)
    n1 = y.sum(axis=0)
    out: Array = np.sum(ranks * y, axis=0) - n1 * (n1 + 1) / 2
    return out
