import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from guardkeel.errors import DataError
from guardkeel.evaluation.behaviour import ece_bins, length_band, measure, slices
from guardkeel.evaluation.intervals import wilson
from guardkeel.evaluation.items import ItemMeta

SCORES = np.array([0.9, 0.5, 0.3, np.nan, 0.6, 0.4, 0.1, np.nan])
UNSAFE = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)


def test_rates_by_hand():
    b = measure(SCORES, UNSAFE, 0.5)
    assert (b.n, b.n_unsafe, b.n_safe, b.n_unscored, b.threshold) == (8, 4, 4, 2, 0.5)
    assert b.recall.value == pytest.approx(2 / 3)  # .5 is flagged at threshold .5; the unscored is left out
    assert (b.recall.low, b.recall.high) == pytest.approx(wilson(2, 3))
    assert (b.recall.n, b.fpr.n, b.precision.n, b.unscored.n) == (3, 3, 3, 8)
    assert b.fpr.value == pytest.approx(1 / 3)
    assert b.precision.value == pytest.approx(2 / 3)
    assert b.f1.value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert b.unscored.value == 0.25
    assert b.auroc.value == pytest.approx(6 / 9)  # wrong order: (.5, .6), (.3, .6), (.3, .4)
    assert b.auprc.value == pytest.approx(
        average_precision_score(UNSAFE[~np.isnan(SCORES)], SCORES[~np.isnan(SCORES)])
    )


def test_f1_interval_is_wilson_of_the_jaccard_share():
    b = measure(SCORES, UNSAFE, 0.5)
    low, high = wilson(2, 4)  # TP 2 of TP + FP + FN = 4
    assert (b.f1.low, b.f1.high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    assert b.f1.n == 4


def test_unscored_is_never_safe():
    """Losing scores moves the unscored rate; recall stays a rate of what was scored."""
    lost = np.where(np.arange(8) == 0, np.nan, SCORES)
    b = measure(lost, UNSAFE, 0.5)
    assert b.unscored.value == 3 / 8
    assert b.recall.n == 2
    nothing = measure(np.full(8, np.nan), UNSAFE, 0.5)
    assert nothing.recall.value is None
    assert nothing.recall.note == "no scored unsafe items"
    assert nothing.auroc.note == "no scored items"
    assert nothing.unscored.value == 1.0


@pytest.mark.parametrize(("label", "missing"), [(True, "fpr"), (False, "recall")])
def test_one_class_reports_only_what_is_defined(label, missing):
    b = measure([0.9, 0.2, 0.7], [label] * 3, 0.5)
    undefined = {
        k
        for k in ("recall", "fpr", "precision", "f1", "auroc", "auprc", "ece")
        if getattr(b, k).value is None
    }
    assert undefined == {missing, "precision", "f1", "auroc", "auprc", "ece"}
    assert all(getattr(b, k).note for k in undefined)
    assert b.unscored.value == 0.0


def test_nothing_flagged_has_no_precision_but_an_f1_of_zero():
    b = measure([0.1, 0.2, 0.3], [True, False, True], 0.5)
    assert b.precision.value is None
    assert b.precision.note == "nothing was flagged"
    assert (b.f1.value, b.f1.low) == (0.0, 0.0)
    assert b.f1.high > 0.5


def test_f1_equals_sklearn_on_many():
    rng = np.random.default_rng(0)
    scores, unsafe = rng.random(300), rng.random(300) < 0.3
    assert measure(scores, unsafe, 0.4).f1.value == pytest.approx(f1_score(unsafe, scores >= 0.4))


def test_ece_by_hand():
    # 30 items, two a bin: the pair in bin k has scores k/15 and one unsafe item
    scores = np.repeat(np.arange(15) / 15, 2)
    unsafe = np.tile([True, False], 15)
    expected = np.abs(0.5 - np.arange(15) / 15).mean()
    b = measure(scores, unsafe, 0.5)
    assert b.ece.value == pytest.approx(expected)
    assert "biased upwards" in b.ece.note
    assert b.ece.low <= b.ece.value <= b.ece.high


def test_equal_scores_share_a_bin_whatever_their_order():
    assert len(set(ece_bins(np.full(40, 0.7)).tolist())) == 1
    assert ece_bins(np.arange(30) / 30).tolist() == np.repeat(np.arange(15), 2).tolist()
    scores = np.tile([0.2, 0.8], 20)
    unsafe = np.tile([False, True], 20)
    order = np.random.default_rng(1).permutation(40)
    assert measure(scores, unsafe, 0.5).ece.value == pytest.approx(0.2)
    assert measure(scores[order], unsafe[order], 0.5).ece.value == pytest.approx(0.2)


def test_intervals_cover_the_truth():
    """Calibrated scores: ECE is truly 0. AUROC and AUPRC against a large sample."""
    rng = np.random.default_rng(2)
    truth = 1 / (1 + np.exp(-2 * rng.normal(size=60_000)))
    unsafe = rng.random(60_000) < truth
    big = measure(truth, unsafe, 0.5, draws=20)
    hits = {"ece": 0, "auroc": 0, "auprc": 0, "f1": 0}
    for k in range(100):
        part = slice(k * 200, (k + 1) * 200)
        b = measure(truth[part], unsafe[part], 0.5, draws=100, seed=k)
        for name in hits:
            estimate, true = getattr(b, name), 0.0 if name == "ece" else getattr(big, name).value
            hits[name] += estimate.low <= true <= estimate.high
    assert min(hits.values()) >= 88, hits


def test_ece_of_a_miscalibrated_guard_lies_above_zero():
    rng = np.random.default_rng(4)
    unsafe = rng.random(400) < 0.5
    right = rng.random(400) < 0.9
    b = measure(np.where(unsafe == right, 0.6, 0.4), unsafe, 0.5)  # says 60% and is right nine times in ten
    assert b.ece.value == pytest.approx(right.mean() - 0.6, abs=1e-9)
    assert 0.2 < b.ece.low < b.ece.value < b.ece.high < 0.4


def test_ece_without_variation_keeps_an_interval():
    b = measure([1.0] * 10 + [0.0] * 10, [True] * 10 + [False] * 10, 0.5)
    assert (b.ece.value, b.ece.low) == (0.0, 0.0)
    assert b.ece.high == pytest.approx(wilson(0, 20)[1])


def test_auprc_of_a_perfect_guard_keeps_an_interval():
    b = measure([0.9, 0.8, 0.1], [True, True, False], 0.5)
    assert (b.auprc.value, b.auprc.high) == (1.0, 1.0)
    assert b.auprc.low == pytest.approx(wilson(2, 2)[0])


def test_groups_widen_and_the_seed_decides():
    rng = np.random.default_rng(6)
    unsafe = np.repeat(rng.random(50) < 0.5, 2)
    scores = np.repeat(rng.random(50), 2)
    plain = measure(scores, unsafe, 0.5)
    clustered = measure(scores, unsafe, 0.5, groups=np.repeat(np.arange(50), 2))
    assert clustered.recall.value == plain.recall.value
    assert clustered.recall.high - clustered.recall.low > plain.recall.high - plain.recall.low
    assert measure(scores, unsafe, 0.5, seed=1) == measure(scores, unsafe, 0.5, seed=1)
    assert measure(scores, unsafe, 0.5, seed=1).ece != measure(scores, unsafe, 0.5, seed=2).ece


def test_bad_input_is_named():
    with pytest.raises(DataError, match="score 1 is"):
        measure([0.2, -0.1], [True, False], 0.5)
    with pytest.raises(DataError, match="shape"):
        measure([0.2], [True, False], 0.5)
    with pytest.raises(DataError, match="threshold is NaN"):
        measure([0.2], [True], float("nan"))


def items():
    return [
        ItemMeta("b/1#prompt", "b", "prompt", "unsafe", ("Threat", "Violence"), "x", "en", 10),
        ItemMeta("b/1#response", "b", "response", "safe", (), "x", "en", 250),
        ItemMeta("a/2#prompt", "a", "prompt", "unsafe", ("Threat",), "", "", 4000),
        ItemMeta("a/3#prompt", "a", "prompt", "safe", (), "y", "de", 199),
    ]


def test_slices_by_everything():
    found = slices(items(), [0.9, 0.1, np.nan, 0.7], 0.5)
    names = [(s.by, s.value, s.behaviour.n) for s in found]
    assert names == [
        ("suite", "a", 2),
        ("suite", "b", 2),
        ("category", "Threat", 2),
        ("category", "Violence", 1),
        ("side", "prompt", 3),
        ("side", "response", 1),
        ("source", "x", 2),
        ("source", "y", 1),
        ("language", "de", 1),
        ("language", "en", 2),
        ("length", "0–199", 2),
        ("length", "200–999", 1),
        ("length", "4000+", 1),
    ]
    threat = found[2].behaviour
    assert (threat.recall.value, threat.recall.n, threat.unscored.value) == (1.0, 1, 0.5)
    assert threat.fpr.value is None


def test_length_bands_meet_at_their_edges():
    assert [length_band(n) for n in (0, 199, 200, 999, 1000, 3999, 4000, 10**6)] == [
        "0–199", "0–199", "200–999", "200–999", "1000–3999", "1000–3999", "4000+", "4000+",
    ]  # fmt: skip
