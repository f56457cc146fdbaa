import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.metrics import roc_auc_score

from guardkeel.errors import DataError
from guardkeel.geometry import probe
from guardkeel.geometry.inputs import centred_gram
from guardkeel.geometry.probe import _pairs_won, newcombe, shrinkage
from guardkeel.geometry.resampling import permutations, stratified_folds


def noise(n, d, seed):
    return np.random.default_rng(seed).standard_normal((n, d)) * (np.exp(-np.arange(d) / 15) + 0.1)


def slow_auroc(x, y, folds):
    """Discriminants solved feature by feature, ranked by another library, fold by fold."""
    won = pairs = 0.0
    for f in np.unique(folds):
        here = (y[folds == f]).sum() * (~y[folds == f]).sum()
        won += here * held_out(x, y, folds == f)
        pairs += here
    return won / pairs


def held_out(x, y, test):
    test = test.astype(bool)
    train = ~test
    c = x[train] - x[train].mean(axis=0)
    delta = max(1e-3, ledoit_wolf_shrinkage(c, assume_centered=True))
    s = c.T @ c / len(c)
    d = x.shape[1]
    shrunk = (1 - delta) * s + delta * np.trace(s) / d * np.eye(d)
    w = np.linalg.solve(shrunk, x[train & y].mean(axis=0) - x[train & ~y].mean(axis=0))
    return roc_auc_score(y[test], x[test] @ w)


@pytest.mark.parametrize(("n", "d"), [(50, 80), (80, 10)])
def test_fast_path_against_retraining_every_permutation(n, d):
    x, y = noise(n, d, 0), np.arange(n) % 2 == 0
    x[y, 1] += 1.0
    m = probe(x, y, draws=15, seed=4)
    rng = np.random.default_rng((4, 2))
    folds = stratified_folds(y, np.arange(n), 5, rng)
    null = np.array([slow_auroc(x, y[p], folds) for p in permutations(np.arange(n), folds, 15, rng)])
    assert m.estimate.value == pytest.approx(slow_auroc(x, y, folds), abs=1e-12)
    assert m.null_mean == pytest.approx(null.mean())
    assert m.null_high == pytest.approx(np.quantile(null, 0.95))
    assert m.p == (1 + np.sum(null >= m.estimate.value - 1e-9)) / 16


@pytest.mark.parametrize(("n", "d"), [(30, 100), (200, 8), (6, 6)])
def test_shrinkage_is_ledoit_wolf(n, d):
    x = noise(n, d, 1)
    x -= x.mean(axis=0)
    assert shrinkage(centred_gram(x), d) == pytest.approx(ledoit_wolf_shrinkage(x, assume_centered=True))


def test_shrinkage_at_its_ends():
    assert shrinkage(np.eye(4) - 0.25, 3) == 1.0  # spread the same way in all three dimensions
    line = np.concatenate([-np.ones(5000), np.ones(5000)])[:, None] * np.array([[1.0, 0.0]])
    few = line[::100]
    assert shrinkage(few @ few.T, 2) == 1e-3  # no noise at all about S


def test_pairs_count_ties_half():
    scores = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    y = np.array([[True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(_pairs_won(scores, y), [1.5, 1.0])


@pytest.mark.parametrize("kind", ["single", "twins"])
def test_noise_cannot_be_ranked(kind):
    groups = np.arange(60) // 2 if kind == "twins" else None
    ps, values, covered = [], [], []
    for seed in range(120):
        x, y = noise(60, 90, seed), np.arange(60) % 2 == 0
        if groups is not None:
            x = x + 1.5 * noise(60, 90, 1000 + seed)[groups]
        m = probe(x, y, draws=39, seed=seed, groups=groups)
        ps.append(m.p)
        values.append(m.estimate.value)
        covered.append(m.estimate.low <= 0.5 <= m.estimate.high)
    assert 0.41 < np.mean(ps) < 0.62
    assert np.mean(np.array(ps) <= 0.05) <= 0.13
    assert abs(np.mean(values) - 0.5) < 3.5 * np.std(values) / np.sqrt(120)
    assert np.mean(covered) > 0.9


def test_more_features_than_items_are_no_excuse():
    # A probe scored on its own training items would rank this noise perfectly.
    x, y = noise(40, 400, 3), np.arange(40) % 2 == 0
    w = np.linalg.lstsq(x - x.mean(axis=0), y - 0.5, rcond=None)[0]
    assert roc_auc_score(y, x @ w) == 1.0
    assert probe(x, y).p > 0.05


def test_planted_difference_is_found_under_a_louder_nuisance():
    x, y = noise(160, 60, 5), np.arange(160) % 2 == 0
    nuisance = 20 * np.random.default_rng(6).standard_normal(160)
    x[:, 0] += nuisance
    x[:, 3] += 2.0 * y + 0.5 * nuisance  # hidden from the mean difference, not from the discriminant
    m = probe(x, y)
    # The best possible is Φ(2/1.07/√2) = 0.91; along the mean difference it would be Φ(2/10/√2) = 0.56.
    assert m.estimate.value > 0.8
    assert m.p == pytest.approx(1 / 101)
    assert m.null_high < m.estimate.low < m.estimate.value < m.estimate.high < 1


def test_interval_covers_what_the_probe_gives_on_average():
    measured = []
    for seed in range(120):
        x, y = noise(80, 20, seed), np.arange(80) % 2 == 0
        x[y, 4] += 1.5
        measured.append(probe(x, y, draws=0, seed=seed).estimate)
    mean = np.mean([e.value for e in measured])
    assert np.mean([e.low <= mean <= e.high for e in measured]) > 0.93


def test_perfect_ranking_keeps_the_doubt_that_few_items_leave():
    y = np.arange(24) % 2 == 0
    x = noise(24, 4, 7) * 0.01
    x[:, 0] += y
    up, down = probe(x, y).estimate, probe(x[:12], y[:12]).estimate
    assert up.value == up.high == down.value == down.high == 1.0
    assert down.low < up.low < 0.95
    assert up.low == pytest.approx(newcombe(1.0, 12, 12)[0])


def test_newcombe_solves_its_equation():
    for auroc, m, n in [(1.0, 12, 12), (0.0, 5, 40), (0.8, 30, 50)]:
        low, high = newcombe(auroc, m, n)
        for theta in {low, high} - {0.0, 1.0}:
            v = theta * (1 - theta) / (m * n)
            v *= 1 + ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            assert abs(theta - auroc) == pytest.approx(1.959964 * np.sqrt(v), rel=1e-5)
        assert low <= auroc <= high
    mirrored = newcombe(0.2, 30, 50)
    assert newcombe(0.8, 30, 50) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


def test_folds_stay_whole_with_groups():
    # Each group's items are copies. Torn apart, copies would tell each other's labels.
    r = np.random.default_rng(8)
    groups = np.repeat(np.arange(20), 5)
    x = noise(20, 60, 8)[groups]
    y = (r.permutation(20) < 10)[groups]
    assert probe(x, y, draws=0).estimate.value == 1.0
    honest = probe(x, y, groups=groups)
    assert honest.estimate.value < 0.85
    assert honest.p > 0.05


def test_what_cannot_be_measured_has_no_number():
    x, y = noise(20, 5, 9), np.arange(20) % 2 == 0
    for bad, why in [
        (probe(x, np.ones(20, bool)), "at least 5 independent items of each class, got 0"),
        (probe(x, np.arange(20) < 4), "at least 5 independent items of each class, got 4"),
        (probe(np.full((20, 5), 0.1), y), "do not vary"),
        (
            probe(x, np.arange(20) < 10, groups=np.arange(20) // 5),
            "at least 5 independent items of each class, got 2",
        ),
    ]:
        assert bad.estimate.value is bad.estimate.low is bad.p is None
        assert why in bad.estimate.note
    with pytest.raises(DataError, match="not finite"):
        probe(np.full((20, 5), np.inf), y)


def test_a_fold_without_a_class_has_no_pairs():
    # A group of 20 safe items leaves no room beside it for five groups of one unsafe and three safe each.
    groups = np.concatenate([np.zeros(20, int), 1 + np.arange(20) // 4])
    y = (np.arange(40) >= 20) & (np.arange(40) % 4 == 0)
    folds = stratified_folds(y, groups, 5, np.random.default_rng((0, 2)))
    alone = [f for f in range(5) if not y[folds == f].any()]
    assert len(alone) == 1
    x = noise(40, 6, 10)
    x[y, 0] += 3.0
    slow = pairs = 0.0
    for f in set(range(5)) - set(alone):
        here = y[folds == f].sum() * (~y[folds == f]).sum()
        slow += here * held_out(x, y, folds == f)
        pairs += here
    assert probe(x, y, draws=0, groups=groups).estimate.value == pytest.approx(slow / pairs)


def test_items_that_are_all_alike_but_one_are_ties():
    x, y = np.zeros((20, 3)), np.arange(20) % 2 == 0
    x[3] = 1.0
    e = probe(x, y, draws=0).estimate
    assert 0.3 <= e.value <= 0.7
