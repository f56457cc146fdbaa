import numpy as np
import pytest
from scipy.linalg import subspace_angles

from guardkeel.geometry import (
    alignment,
    expected_overlap,
    overlap,
    principal_angles,
    random_basis,
    random_overlaps,
    random_shares,
    safety_basis,
)
from guardkeel.geometry.alignment import BLOCKS, wide_basis
from guardkeel.geometry.resampling import jackknife_error, stratified_folds


def test_angles_by_hand():
    u = np.eye(3)[:, :2]
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    v = np.array([[1.0, 0.0], [0.0, c], [0.0, s]])  # the plane turned by 30° about axis 0
    np.testing.assert_allclose(principal_angles(u, v), [0.0, 30.0], atol=1e-12)
    assert overlap(u, v) == pytest.approx((1 + 0.75) / 2)
    assert overlap(u, np.eye(3)[:, 2:]) == 0.0
    np.testing.assert_allclose(principal_angles(u, np.eye(3)[:, 2:]), [90.0])


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-5, 44.9999, 45.0001, 89.9999999])
def test_angles_keep_their_digits(angle):
    t = np.radians(angle)
    v = np.array([[np.cos(t)], [np.sin(t)], [0.0]])
    np.testing.assert_allclose(principal_angles(np.eye(3)[:, :1], v), [angle], rtol=1e-7)


def test_angles_against_scipy():
    r = np.random.default_rng(0)
    for d, k1, k2 in [(20, 5, 5), (20, 3, 8), (20, 8, 3), (6, 5, 4)]:
        u, v = random_basis(d, k1, r), random_basis(d, k2, r)
        expected = np.degrees(subspace_angles(u, v))[::-1]
        np.testing.assert_allclose(principal_angles(u, v), expected, atol=1e-6)
        assert overlap(u, v) == pytest.approx(np.mean(np.cos(np.radians(expected)) ** 2))


def test_angles_refuse_what_is_no_basis():
    with pytest.raises(ValueError, match="3 and 4"):
        principal_angles(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="second basis is not orthonormal"):
        principal_angles(np.eye(3)[:, :1], 2 * np.eye(3)[:, :1])


@pytest.mark.parametrize(("d", "k1", "k2"), [(30, 4, 4), (30, 2, 6), (9, 5, 6), (40, 30, 3)])
def test_random_overlaps_follow_the_distribution_of_random_bases(d, k1, k2):
    r = np.random.default_rng(1)
    fast = random_overlaps(d, k1, k2, 3000, r)
    u = random_basis(d, k1, r)
    slow = np.array([overlap(u, random_basis(d, k2, r)) for _ in range(3000)])
    error = np.hypot(fast.std(), slow.std()) / np.sqrt(3000)
    assert abs(fast.mean() - expected_overlap(d, k1, k2)) < 4 * error
    assert abs(fast.mean() - slow.mean()) < 4 * error
    assert fast.std() == pytest.approx(slow.std(), rel=0.12)
    np.testing.assert_allclose(np.quantile(fast, 0.95), np.quantile(slow, 0.95), rtol=0.03)


def test_random_shares_follow_uneven_spread():
    r = np.random.default_rng(2)
    weights = np.array([10.0, 3.0, 1.0, 0.0])
    fast = random_shares(weights, 25, 5, 3000, r)
    axes = random_basis(25, 4, r)
    slow = (
        np.array([weights @ np.sum((axes.T @ random_basis(25, 5, r)) ** 2, axis=1) for _ in range(3000)]) / 14
    )
    assert fast.mean() == pytest.approx(0.2, abs=0.008)
    assert fast.std() == pytest.approx(slow.std(), rel=0.12)
    np.testing.assert_allclose(np.quantile(fast, 0.95), np.quantile(slow, 0.95), rtol=0.05)


def test_random_shares_of_the_whole_space_are_everything():
    np.testing.assert_allclose(random_shares(np.array([2.0, 1.0]), 4, 4, 20, np.random.default_rng(3)), 1.0)
    with pytest.raises(ValueError, match="5 directions and 2 eigenvalues"):
        random_shares(np.ones(2), 4, 5, 1, np.random.default_rng(0))


def guards(n, d, turn, seed=0):
    r = np.random.default_rng(seed)
    scale = np.exp(-np.arange(d) / 4) + 0.02
    y = np.arange(n) % 2 == 0
    x = r.standard_normal((n, d)) * scale
    x[y, 2] += 1.5
    return x, x + turn * r.standard_normal((n, d)) * scale, y


def aligned(x, x2, y, rank=4, **options):
    groups = np.arange(len(x))
    given = {"rank": rank, "draws": 50, "seed": 0} | options
    return alignment(x, x2, wide_basis(x, y, rank), y, groups, **given)


def test_alignment_is_that_of_the_two_bases():
    x, x2, y = guards(80, 120, 0.5)
    angles, m = aligned(x, x2, y)
    u, v = safety_basis(x, y, 4), safety_basis(x2, y, 4)
    np.testing.assert_allclose(angles, principal_angles(u, v), atol=1e-6)
    assert m.estimate.value == pytest.approx(overlap(u, v))
    assert m.null_mean == pytest.approx(4 / 120)
    assert m.null_high < 0.1 < m.estimate.low < m.estimate.high <= 1
    assert m.p == pytest.approx(1 / 51)


def test_block_jackknife_within_wide_bases_is_close_to_refitting_in_full():
    for turn in (0.2, 1.0):
        x, x2, y = guards(120, 60, turn)
        e = aligned(x, x2, y)[1].estimate
        blocks = stratified_folds(y, np.arange(120), BLOCKS, np.random.default_rng((0, 6)))
        slow = np.array(
            [
                overlap(
                    safety_basis(x[blocks != b], y[blocks != b], 4),
                    safety_basis(x2[blocks != b], y[blocks != b], 4),
                )
                for b in range(BLOCKS)
            ]
        )
        reach = 2.3646 * jackknife_error(slow)  # Student's t, 7 degrees of freedom
        assert e.value - e.low == pytest.approx(reach, rel=0.25)


def test_alignment_falls_as_the_candidate_turns_away():
    overlaps = [aligned(*guards(80, 60, turn))[1].estimate.value for turn in (0.0, 0.3, 1.0, 5.0)]
    assert overlaps[0] == pytest.approx(1.0)
    assert overlaps == sorted(overlaps, reverse=True)


def test_unrelated_guards_overlap_like_random_subspaces():
    ps = []
    for seed in range(60):
        r = np.random.default_rng(seed)
        x, x2 = r.standard_normal((30, 80)), r.standard_normal((30, 80))
        ps.append(aligned(x, x2, r.permutation(np.arange(30) % 2 == 0), draws=39, seed=seed)[1].p)
    assert 0.37 < np.mean(ps) < 0.65
    assert np.mean(np.array(ps) <= 0.05) <= 0.15


def test_small_classes_get_no_interval():
    x, x2, y = guards(14, 20, 0.5)
    e = aligned(x, x2, y)[1].estimate
    assert e.value is not None
    assert e.low is e.high is None
    assert "too few independent items" in e.note
    # Enough items, but all that varies is in one block.
    spike = np.zeros((40, 5))
    spike[0, 0], spike[1, 1] = 1.0, 2.0
    y = np.arange(40) % 2 == 0
    x = np.random.default_rng(0).standard_normal((40, 5))
    groups = np.arange(40)
    groups[1] = 0
    groups = np.unique(groups, return_inverse=True)[1]
    e = alignment(x, spike, wide_basis(x, y, 2), y, groups, rank=2, draws=5, seed=0)[1].estimate
    assert e.low is None
