import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.geometry import fisher_ratio, mean_direction, safety_basis, separability
from guardkeel.geometry.resampling import permutations, stratified_folds


def noise(n, d, seed, groups=None):
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, d))
    if groups is not None:
        x = x + 1.5 * r.standard_normal((n, d))[groups]
    return x * (np.exp(-np.arange(d) / 20) + 0.1)


def slow_ratio(z, y, groups=None):
    """Class by class, item by item."""
    one, zero = z[y], z[~y]
    delta = one.mean(axis=0) - zero.mean(axis=0)
    within = np.sum((one - one.mean(axis=0)) ** 2) + np.sum((zero - zero.mean(axis=0)) ** 2)
    if groups is None:
        noise = one.var(axis=0, ddof=1).sum() / len(one) + zero.var(axis=0, ddof=1).sum() / len(zero)
    else:
        noise = 0.0
        g1, g0 = len(set(groups[y])), len(set(groups[~y]))
        for g in set(groups.tolist()):
            e = np.zeros(z.shape[1])
            for i in np.flatnonzero(groups == g):
                if y[i]:
                    e += np.sqrt(g1 / (g1 - 1)) * (z[i] - one.mean(axis=0)) / len(one)
                else:
                    e -= np.sqrt(g0 / (g0 - 1)) * (z[i] - zero.mean(axis=0)) / len(zero)
            noise += e @ e
    p = y.mean()
    return p * (1 - p) * (delta @ delta - noise) / (within / (len(y) - 2))


def slow_cross_fit(x, y, folds, rank, groups=None):
    """Fit on one fold, score on the other, with nothing shared between the two ways."""
    total = 0.0
    for f in range(2):
        fit, score = folds != f, folds == f
        basis = safety_basis(x[fit], y[fit], rank)
        total += score.mean() * slow_ratio(
            x[score] @ basis, y[score], None if groups is None else groups[score]
        )
    return total


def slow_direction(x, y, folds):
    total = 0.0
    for f in range(2):
        fit, score = folds != f, folds == f
        w = x[fit & y].mean(axis=0) - x[fit & ~y].mean(axis=0)
        one, zero = x[score & y] @ w, x[score & ~y] @ w
        spread = (np.sum((one - one.mean()) ** 2) + np.sum((zero - zero.mean()) ** 2)) / (score.sum() - 2)
        total += score.mean() * (one.mean() - zero.mean()) / np.sqrt(spread)
    return total


def test_ratio_by_hand():
    # Means 4 and 1, so ‖Δ‖² = 9; each class scatters 2, so S_w = 4/2 = 2 and tr Cov(Δ) = 1 + 1.
    z = np.array([[3.0], [5.0], [0.0], [2.0]])
    y = np.array([True, True, False, False])
    assert fisher_ratio(z, y) == pytest.approx(0.25 * (9 - 2) / 2)
    # Twins (3, 0) and (5, 2): every pair differs by 3 exactly, so Δ has no noise at all.
    assert fisher_ratio(z, y, groups=[0, 1, 0, 1]) == pytest.approx(0.25 * 9 / 2)


def test_ratio_in_a_basis_and_with_groups():
    x = noise(30, 8, 0)
    y = np.arange(30) % 3 == 0
    basis = np.eye(8)[:, :3]
    groups = np.arange(30) // 4
    assert fisher_ratio(x, y, basis=basis) == pytest.approx(slow_ratio(x[:, :3], y))
    assert fisher_ratio(x, y, groups=groups) == pytest.approx(slow_ratio(x, y, groups))


def test_ratio_undefined_is_nan():
    y = np.array([True, True, False, False])
    assert np.isnan(fisher_ratio(np.array([[1.0], [1], [0], [0]]), y))  # no spread inside the classes
    assert np.isnan(fisher_ratio(np.array([[1.0], [2], [3], [4]]), np.array([True, False, False, False])))


@pytest.mark.parametrize(("n", "d", "rank"), [(40, 60, 5), (60, 12, 4), (30, 50, 32)])
@pytest.mark.parametrize("twins", [False, True])
def test_fast_path_against_refitting_every_permutation(n, d, rank, twins):
    groups = np.arange(n) // 2 if twins else None
    ids = np.arange(n) if groups is None else groups
    x, y = noise(n, d, 1, groups), np.arange(n) % 2 == 0
    x[y, 2] += 1.0
    draws = 35  # more than are held in memory at once
    m = separability(x, y, rank=rank, draws=draws, seed=7, groups=groups)
    rng = np.random.default_rng((7, 1))
    folds = stratified_folds(y, ids, 2, rng)
    perms = permutations(ids, folds, draws, rng)
    null = np.array([slow_cross_fit(x, y[p], folds, rank, groups) for p in perms])
    value = slow_cross_fit(x, y, folds, rank, groups)
    assert m.estimate.value == pytest.approx(value, rel=1e-7)
    assert m.null_mean == pytest.approx(null.mean(), rel=1e-6, abs=1e-9)
    assert m.null_high == pytest.approx(np.quantile(null, 0.95), rel=1e-6, abs=1e-9)
    assert m.p == (1 + np.sum(null >= value - 1e-9)) / (1 + draws)


def test_direction_against_refitting_every_permutation():
    x, y = noise(40, 60, 2), np.arange(40) % 2 == 0
    x[y, 0] += 1.0
    m = mean_direction(x, y, draws=25, seed=3)
    rng = np.random.default_rng((3, 1))
    folds = stratified_folds(y, np.arange(40), 2, rng)
    null = [slow_direction(x, y[p], folds) for p in permutations(np.arange(40), folds, 25, rng)]
    assert m.estimate.value == pytest.approx(slow_direction(x, y, folds))
    assert m.null_mean == pytest.approx(np.mean(null))
    assert m.null_high == pytest.approx(np.quantile(null, 0.95))


def clusters(r, n):
    return np.repeat(r.permutation(np.arange(n // 4) % 2 == 0), 4), np.arange(n) // 4


@pytest.mark.parametrize("kind", ["single", "twins", "clusters"])
def test_noise_does_not_look_separable(kind):
    """P-values spread evenly, values have mean zero, intervals hold zero, however the items hang together."""
    found = {separability: [], mean_direction: []}
    for seed in range(120):
        r = np.random.default_rng(seed)
        y, groups = np.arange(64) % 2 == 0, None
        if kind == "twins":
            groups = np.arange(64) // 2
        elif kind == "clusters":
            y, groups = clusters(r, 64)
        x = noise(64, 90, seed, groups)
        found[separability].append(separability(x, y, rank=8, draws=39, seed=seed, groups=groups))
        found[mean_direction].append(mean_direction(x, y, draws=39, seed=seed, groups=groups))
    for measures in found.values():
        ps = np.array([m.p for m in measures])
        values = np.array([m.estimate.value for m in measures])
        assert 0.41 < ps.mean() < 0.61  # ± 3.5 standard errors of the mean of 120
        assert np.mean(ps <= 0.05) <= 0.13
        assert abs(values.mean()) < 3.5 * values.std() / np.sqrt(120)
        assert np.mean([m.estimate.low <= 0 <= m.estimate.high for m in measures]) > 0.9


def test_the_same_noise_looks_separable_without_cross_fitting():
    x, y = np.random.default_rng(0).standard_normal((64, 400)), np.arange(64) % 2 == 0
    honest = separability(x, y, rank=8, seed=0)
    assert honest.p > 0.05
    # The basis holds all of the chance difference of the means, but little of the spread.
    assert fisher_ratio(x @ safety_basis(x, y, 8), y) > 2 * honest.null_high
    # Along its own mean difference, noise of 400 features lies √(400·4/64) = 5 standard deviations apart.
    delta = x[y].mean(axis=0) - x[~y].mean(axis=0)
    on_line = x @ delta / np.linalg.norm(delta)
    assert on_line[y].mean() - on_line[~y].mean() > 4
    assert abs(mean_direction(x, y).estimate.value) < 1


@pytest.mark.parametrize("measure", [separability, mean_direction])
def test_planted_difference_is_found(measure):
    x, y = noise(120, 200, 4), np.arange(120) % 2 == 0
    x[:, 7] += 2.5 * y
    m = measure(x, y)
    assert m.p == pytest.approx(1 / 101)
    assert m.null_high < m.estimate.low < m.estimate.value < m.estimate.high


def test_value_does_not_depend_on_how_many_items_there_are():
    # Two classes of unit variance, 2 apart on one axis of four: π_hπ_b·4/4 = 0.25.
    for n in (40, 2000):
        values = []
        for seed in range(30 if n == 40 else 1):
            r = np.random.default_rng(seed)
            x, y = r.standard_normal((n, 4)), np.arange(n) % 2 == 0
            x[:, 0] += 2.0 * y
            values.append(separability(x, y, rank=4, draws=0).estimate.value)
        assert np.mean(values) == pytest.approx(0.25, abs=0.05)


def test_interval_covers():
    # All four directions are kept, so the true value does not depend on the basis.
    hits = []
    for seed in range(150):
        r = np.random.default_rng(seed)
        x, y = r.standard_normal((80, 4)), np.arange(80) % 2 == 0
        x[:, 0] += 2.0 * y
        e = separability(x, y, rank=4, draws=0, seed=seed).estimate
        hits.append(e.low <= 0.25 <= e.high)
    assert 0.88 <= np.mean(hits) <= 0.99


def test_same_seed_same_answer():
    x, y = noise(40, 30, 5), np.arange(40) % 2 == 0
    assert separability(x, y, seed=1) == separability(x, y, seed=1)
    assert separability(x, y, seed=1) != separability(x, y, seed=2)


def test_what_cannot_be_measured_has_no_number():
    x, y = noise(20, 5, 6), np.arange(20) % 2 == 0
    few = np.arange(20) < 3
    for bad, why in [
        (separability(x, few), "at least 4 independent items of each class"),
        (separability(x, np.ones(20, bool)), "at least 4 independent items of each class"),
        (separability(x, y, groups=np.arange(20) // 10), "at least 4 independent items of each class"),
        (separability(np.full((20, 5), 0.1), y), "do not vary"),
        (separability(np.outer(y, np.ones(5)), y), "no spread inside the classes"),
        (mean_direction(np.outer(y, np.ones(5)), y), "no spread inside the classes"),
    ]:
        assert bad.estimate.value is bad.estimate.low is bad.estimate.high is bad.p is bad.null_high is None
        assert why in bad.estimate.note
    with pytest.raises(DataError, match="20 of 20 items are not finite"):
        separability(np.full((20, 5), np.nan), y)
    with pytest.raises(ValueError, match="groups: expected 20 entries, got 19"):
        separability(x, y, groups=range(19))
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        separability(x, y, rank=0)


def test_value_without_interval_says_so():
    # Class spread that hangs on one item: leaving it out leaves none.
    y = np.array([True] * 4 + [False] * 4)
    x = np.zeros((8, 1))
    x[y] = 1.0
    for i in range(4):
        trial = x.copy()
        trial[[i, i + 4]] += [[0.5], [0.25]]
        e = mean_direction(trial, y, draws=0, seed=0).estimate
        if e.value is not None:
            assert e.low is e.high is None
            assert "no interval" in e.note
            break
    else:
        pytest.fail("no fold had both varying items apart")
