import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from guardkeel.errors import DataError
from guardkeel.evaluation import intervals
from guardkeel.evaluation.items import ItemMeta, as_scores, group_codes, positions


@pytest.mark.parametrize(
    ("x", "n", "low", "high"),  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(x, n, low, high):
    assert intervals.wilson(x, n) == pytest.approx((low, high), abs=5e-5)
    assert intervals.wilson(x, n) == pytest.approx(proportion_confint(x, n, method="wilson"), abs=1e-12)


def test_wilson_is_exact_at_the_ends():
    assert intervals.wilson(0, 7)[0] == 0.0
    assert intervals.wilson(7, 7)[1] == 1.0
    assert intervals.wilson(7, 7)[0] == pytest.approx(7 / (7 + intervals.z_value() ** 2))


def test_z_value_is_the_normal_quantile():
    assert intervals.z_value() == pytest.approx(1.959964, abs=1e-6)
    assert intervals.z_value(0.9) == pytest.approx(1.644854, abs=1e-6)


def test_a_share_of_nothing_is_undefined_and_says_why():
    estimate = intervals.proportion(np.array([], dtype=bool), empty="nothing here")
    assert (estimate.value, estimate.low, estimate.n, estimate.note) == (None, None, 0, "nothing here")


def test_design_effect_by_hand():
    values = np.repeat([1.0, 0.0, 1.0, 1.0], 2)
    groups = np.repeat(np.arange(4), 2)
    # by hand: e = ±; Σ e_i² = 2·3·(¼)² + 2·(¾)² = 1.5, Σ e_g² = 3·(½)² + (3/2)² = 3
    assert intervals.design_effect(values, groups) == pytest.approx((3 * 4 / 3) / (1.5 * 8 / 7))


def test_design_effect_is_one_without_clusters_and_never_less():
    assert intervals.design_effect(np.array([1.0, 0.0, 1.0]), np.array([4, 9, 2])) == 1.0
    opposed = np.tile([1.0, 0.0], 5)  # each pair sums to its mean: less varied than independent items
    assert intervals.design_effect(opposed, np.repeat(np.arange(5), 2)) == 1.0
    assert intervals.design_effect(np.array([]), np.array([], dtype=np.int64)) == 1.0


def test_without_variation_or_with_one_cluster_correlation_is_taken_as_complete():
    assert intervals.design_effect(np.ones(6), np.repeat(np.arange(3), 2)) == 2.0
    assert intervals.design_effect(np.array([1.0, 0.0, 1.0]), np.zeros(3, dtype=np.int64)) == 3.0


def test_clusters_widen_a_proportion():
    hits = np.repeat([True, False, True, True, False], 4)
    plain = intervals.proportion(hits, empty="")
    clustered = intervals.proportion(hits, empty="", groups=np.repeat(np.arange(5), 4))
    assert clustered.value == plain.value == 0.6
    assert clustered.low < plain.low
    assert clustered.high > plain.high
    assert clustered.n == 20


def test_logit_interval_by_hand():
    low, high = intervals.logit_interval(0.5, 0.1)
    half = 1.959964 * 0.1 / 0.25
    assert high == pytest.approx(1 / (1 + np.exp(-half)), abs=1e-6)
    assert low == pytest.approx(1 - high)


def mean_of(values):
    return lambda counts: counts @ values / counts.sum(axis=1)


def test_bootstrap_spread_is_the_standard_error_and_repeats_with_its_seed():
    values = np.random.default_rng(5).normal(size=200)

    def draw(seed):
        return intervals.bootstrap(mean_of(values), 200, draws=2000, rng=np.random.default_rng(seed))

    assert draw(1).std() == pytest.approx(values.std() / np.sqrt(200), rel=0.1)
    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    low, high = intervals.percentile(draw(1))
    assert low < values.mean() < high


def test_bootstrap_keeps_strata_and_draws_groups_whole():
    strata = np.array([0, 0, 0, 1, 1, 1, 1])
    groups = np.array([5, 5, 6, 7, 7, 8, 9])
    rng = np.random.default_rng(0)
    counts = intervals.bootstrap(lambda c: c.copy(), 7, draws=50, rng=rng, strata=strata, groups=groups)
    assert counts.shape == (50, 7)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])  # group 5
    np.testing.assert_array_equal(counts[:, 3], counts[:, 4])  # group 7
    assert (counts[:, 0] + counts[:, 2] == 2).all()  # two groups in stratum 0
    assert (counts[:, 3] + counts[:, 5] + counts[:, 6] == 3).all()
    plain = intervals.bootstrap(lambda c: c.copy(), 7, draws=50, rng=rng, strata=strata)
    assert (plain[:, :3].sum(axis=1) == 3).all()
    assert (plain[:, 3:].sum(axis=1) == 4).all()


def test_a_group_over_two_strata_is_refused():
    with pytest.raises(ValueError, match="more than one stratum"):
        intervals.bootstrap(
            lambda c: c,
            2,
            draws=1,
            rng=np.random.default_rng(0),
            strata=np.array([0, 1]),
            groups=np.array([3, 3]),
        )


def test_bootstrap_in_blocks_has_all_draws(monkeypatch):
    monkeypatch.setattr(intervals, "_BLOCK", 30)
    values = np.arange(10.0)
    drawn = intervals.bootstrap(mean_of(values), 10, draws=8, rng=np.random.default_rng(3))
    assert drawn.shape == (8,)
    assert len(set(drawn)) > 4


def test_scores_outside_their_range_are_refused_by_position():
    with pytest.raises(DataError, match=r"score 1 is .*1\.5"):
        as_scores([0.5, 1.5], 2)
    with pytest.raises(DataError, match=r"score 0 is .*inf"):
        as_scores([np.inf], 1)
    with pytest.raises(DataError, match=r"shape \(2,\) for 3 items"):
        as_scores([0.1, 0.2], 3)
    assert np.isnan(as_scores([np.nan, 0.0], 2)[0])


def test_items_know_their_group_and_label():
    items = [
        ItemMeta("s/a#1#prompt", "s", "prompt", "unsafe", ("x", "y", "x")),
        ItemMeta("s/a#1#response", "s", "response", "safe", ("y",)),
        ItemMeta("plain", "s", "prompt", "safe"),
    ]
    assert [i.group for i in items] == ["s/a#1", "s/a#1", "plain"]
    assert [i.unsafe for i in items] == [True, False, False]
    assert group_codes(items).tolist() == [0, 0, 1]
    found = positions(items, lambda i: i.categories)
    assert {k: v.tolist() for k, v in found.items()} == {"x": [0], "y": [0, 1]}
