import itertools

import numpy as np

from guardkeel.geometry.inputs import group_ids
from guardkeel.geometry.resampling import (
    bootstrap_weights,
    group_sums,
    jackknife_error,
    permutations,
    renumbered,
    stratified_folds,
)


def test_folds_balance_classes():
    y = np.arange(103) % 3 == 0
    folds = stratified_folds(y, np.arange(103), 5, np.random.default_rng(0))
    for c in (True, False):
        counts = np.bincount(folds[y == c], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_folds_keep_groups_whole_and_balanced():
    r = np.random.default_rng(1)
    groups = group_ids(r.integers(0, 40, size=200), 200)
    y = r.random(200) < 0.4
    folds = stratified_folds(y, groups, 4, r)
    for g in range(groups.max() + 1):
        assert np.unique(folds[groups == g]).size == 1
    for c in (True, False):
        counts = np.bincount(folds[y == c], minlength=4)
        assert counts.max() - counts.min() <= 6


def test_folds_are_random_and_repeatable():
    y = np.arange(40) % 2 == 0
    a, b, c = (stratified_folds(y, np.arange(40), 2, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_permutations_without_groups_reach_all_orders_inside_strata():
    strata = np.array([0, 1, 0, 1, 0])
    drawn = permutations(np.arange(5), strata, 600, np.random.default_rng(2))
    expected = set()
    for p, q in itertools.product(itertools.permutations([0, 2, 4]), itertools.permutations([1, 3])):
        expected.add((p[0], q[0], p[1], q[1], p[2]))
    seen, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(s) for s in seen.tolist()} == expected
    assert counts.min() > 20  # 12 orders, 50 expected of each


def test_permutations_keep_twins_together():
    groups = np.array([0, 1, 0, 1, 2])  # two pairs, one single
    drawn = permutations(groups, np.zeros(5, dtype=int), 400, np.random.default_rng(3))
    seen = {tuple(s) for s in drawn.tolist()}
    # pairs swap places (2) and each pair swaps inside (2 · 2); the single has nobody of its size
    assert len(seen) == 8
    for s in seen:
        assert s[4] == 4
        assert groups[s[0]] == groups[s[2]]
        assert groups[s[1]] == groups[s[3]]


def test_no_draws():
    assert permutations(np.arange(4), np.zeros(4, dtype=int), 0, np.random.default_rng(0)).shape == (0, 4)


def test_bootstrap_keeps_class_totals_and_draws_groups_whole():
    y = np.array([1, 0, 1, 0, 1, 1, 0], dtype=bool)
    groups = np.array([0, 0, 1, 1, 2, 3, 4])  # two mixed twins, two unsafe, one safe
    w = bootstrap_weights(y, groups, np.zeros(7, dtype=int), 300, np.random.default_rng(4))
    np.testing.assert_array_equal(w[:, 0], w[:, 1])
    np.testing.assert_array_equal(w[:, 2], w[:, 3])
    np.testing.assert_array_equal(w[:, 0] + w[:, 2], 2)
    np.testing.assert_array_equal(w[:, 4] + w[:, 5], 2)
    np.testing.assert_array_equal(w[:, 6], 1)
    assert 0.9 < w[:, 4].mean() < 1.1
    assert set(np.unique(w[:, 4])) == {0, 1, 2}


def test_bootstrap_stays_inside_strata():
    w = bootstrap_weights(
        np.ones(6, bool), np.arange(6), np.array([0, 0, 1, 1, 1, 1]), 50, np.random.default_rng(5)
    )
    np.testing.assert_array_equal(w[:, :2].sum(axis=1), 2)


def test_group_sums_and_renumbering():
    groups = np.array([2, 0, 2, 1])
    np.testing.assert_array_equal(group_sums(np.array([[1.0], [2], [4], [8]]), groups), [[2], [8], [5]])
    np.testing.assert_array_equal(
        group_sums(np.array([[1.0], [2], [4]]), np.array([2, 0, 1])), [[2], [4], [1]]
    )
    np.testing.assert_array_equal(renumbered(groups, np.array([0, 2, 3])), [1, 1, 0])


def test_group_ids_count_by_first_appearance():
    np.testing.assert_array_equal(group_ids(["b", "a", "b"], 3), [0, 1, 0])
    np.testing.assert_array_equal(group_ids(np.array(["b", "a", "b"]), 3), [0, 1, 0])
    np.testing.assert_array_equal(group_ids(None, 3), [0, 1, 2])


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.array([1.0, 2.0, 4.0, 9.0])
    left_out = (x.sum() - x) / 3
    np.testing.assert_allclose(jackknife_error(left_out), x.std(ddof=1) / 2)
