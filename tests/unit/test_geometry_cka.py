import itertools

import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.geometry import cka
from guardkeel.geometry.cka import _leave_out, u_centred
from guardkeel.geometry.inputs import centred_gram


def hsic_by_definition(k, l):  # noqa: E741
    """The U-statistic over ordered four-tuples of different items (Song et al. 2012)."""
    n = len(k)
    total = sum(
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(n), 4)
    )
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def slow_cka(x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic_by_definition(k, l) / np.sqrt(hsic_by_definition(k, k) * hsic_by_definition(l, l))


def biased_cka(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.sum((x.T @ y) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))


def pair(n, d, e, noise=1.0, seed=0):
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, d)) + 2.0
    return x, x @ r.standard_normal((d, e)) + noise * r.standard_normal((n, e))


def test_value_is_the_u_statistic():
    x, y = pair(7, 3, 4)
    np.testing.assert_allclose(cka(x, y, draws=0).estimate.value, slow_cka(x, y), rtol=1e-10)


def test_four_items_by_hand():
    # U-centred matrices of 4 items: entries (12, 34) share a, (13, 24) share b, (14, 23) share −a − b.
    k = np.diag([1.0, 1, 0, 0]).copy()
    k[0, 1] = k[1, 0] = 1.0  # items 1 and 2 alike, 3 and 4 at the origin
    expected = np.array([[0, 1, -0.5, -0.5], [1, 0, -0.5, -0.5], [-0.5, -0.5, 0, 1], [-0.5, -0.5, 1, 0]]) / 3
    np.testing.assert_allclose(u_centred(k), expected, atol=1e-15)


@pytest.mark.parametrize(
    "groups", [np.arange(14), np.arange(14) // 2, np.array([0, 1, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 9])]
)
def test_leaving_groups_out_equals_starting_again(groups):
    x, y = pair(14, 5, 6)
    a, b = u_centred(centred_gram(x)), u_centred(centred_gram(y))
    for g, value in enumerate(_leave_out(a, b, groups)):
        stay = groups != g
        k, l = x[stay] @ x[stay].T, y[stay] @ y[stay].T  # noqa: E741
        m = stay.sum()
        slow = np.vdot(u_centred(k), u_centred(l)) / (m * (m - 3))
        np.testing.assert_allclose(value, slow, rtol=1e-8)


def test_ignores_rotation_scale_and_shift():
    x, y = pair(40, 12, 9)
    r = np.random.default_rng(1)
    q = np.linalg.qr(r.standard_normal((12, 12)))[0]
    a, b = cka(x, y), cka(7.0 * x @ q + 100.0, -0.01 * y)
    np.testing.assert_allclose(a.estimate.value, b.estimate.value, rtol=1e-9)
    np.testing.assert_allclose([a.estimate.low, a.null_high], [b.estimate.low, b.null_high], rtol=1e-7)


def test_the_same_representation_is_one_without_doubt():
    x, _ = pair(30, 50, 3)
    same = cka(x, 3 * x + 1).estimate
    assert same.value == pytest.approx(1.0, abs=1e-12)
    assert same.low == same.high == same.value


def test_unrelated_data_have_mean_zero_where_the_biased_one_nears_one():
    ours, naive = [], []
    for seed in range(60):
        r = np.random.default_rng(seed)
        x, y = r.standard_normal((20, 100)), r.standard_normal((20, 100))
        ours.append(cka(x, y, draws=0).estimate.value)
        naive.append(biased_cka(x, y))
    assert np.mean(naive) > 0.8
    error = np.std(ours) / np.sqrt(60)
    assert abs(np.mean(ours)) < 3.5 * error < 0.05
    assert min(ours) < 0 < max(ours)  # not clipped


def test_null_is_calibrated_on_noise_and_finds_what_is_related():
    ps, covered = [], []
    for seed in range(100):
        r = np.random.default_rng(seed)
        m = cka(r.standard_normal((24, 40)), r.standard_normal((24, 40)), draws=39, seed=seed)
        ps.append(m.p)
        covered.append(m.estimate.low <= 0 <= m.estimate.high)
    assert 0.40 < np.mean(ps) < 0.62
    assert np.mean(np.array(ps) <= 0.05) <= 0.12
    assert np.mean(covered) > 0.9
    x, y = pair(60, 10, 10, noise=2.0)
    related = cka(x, y)
    assert related.p == pytest.approx(1 / 101)
    assert related.null_high < 0.2 < related.estimate.low < related.estimate.value < related.estimate.high < 1


def test_interval_covers_the_value_of_many_items():
    def draw(n, seed):
        r = np.random.default_rng(seed)
        x = r.standard_normal((n, 6)) * np.array([3, 2, 1, 1, 1, 1])
        return x, x + 1.2 * r.standard_normal((n, 6))

    truth = cka(*draw(1500, 10**6), draws=0).estimate.value
    hits = []
    for seed in range(100):
        e = cka(*draw(60, seed), draws=0).estimate
        hits.append(e.low <= truth <= e.high)
    assert 0.88 <= np.mean(hits) <= 1.0


def test_null_against_one_permutation_at_a_time():
    from guardkeel.geometry.resampling import permutations

    x, y = pair(12, 4, 4, noise=5.0)
    m = cka(x, y, draws=20, seed=3)
    perms = permutations(np.arange(12), np.zeros(12, dtype=int), 20, np.random.default_rng(3))
    null = [cka(x, y[p], draws=0).estimate.value for p in perms]
    assert m.null_mean == pytest.approx(np.mean(null))
    assert m.null_high == pytest.approx(np.quantile(null, 0.95))
    assert m.p == (1 + np.sum(np.array(null) >= m.estimate.value)) / 21


def test_what_cannot_be_measured_has_no_number():
    r = np.random.default_rng(0)
    x = r.standard_normal((10, 3))
    for bad, why in [
        (cka(x[:4], x[:4]), "at least 5"),
        (cka(x, x, groups=np.arange(10) // 3), "at least 5 independent items, got 4"),
        (cka(x, np.full((10, 3), 0.1)), "do not vary"),
        (cka(np.eye(10), np.eye(10)), "no likeness between items"),
    ]:
        assert bad.estimate.value is bad.estimate.low is bad.p is bad.null_mean is None
        assert why in bad.estimate.note
    # Without the only item that varies, nothing is left to compare: a value, but no interval.
    spike = np.zeros((10, 3))
    spike[0] = 5.0
    spike[1] = 2.0
    one = cka(spike, x, groups=np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    assert one.estimate.value is not None
    assert one.estimate.low is one.estimate.high is None
    assert "no interval" in one.estimate.note
    with pytest.raises(DataError, match="second activations: 1 of 10"):
        cka(x, np.where(np.arange(30).reshape(10, 3) == 4, np.inf, x))
    with pytest.raises(ValueError, match="got 10 and 9"):
        cka(x, x[:9])
