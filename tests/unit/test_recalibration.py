import numpy as np
import pytest

from guardkeel.evaluation.intervals import wilson
from guardkeel.evaluation.items import ItemMeta, Pair
from guardkeel.evaluation.paired import tango_interval
from guardkeel.evaluation.recalibration import (
    matched_by_side,
    matched_threshold,
    of_suite,
    recalibrate,
    threshold_ladder,
)


def pair(unsafe, reference, candidate, suite="s", split="t"):
    items = [
        ItemMeta(f"{suite}/{split}{k}#prompt", suite, "prompt", "unsafe" if u else "safe")
        for k, u in enumerate(unsafe)
    ]
    return Pair(items, reference, candidate)


def test_the_ladder_interpolates_between_distinct_scores():
    ladder = threshold_ladder(np.array([0.2, 0.6, 0.6, 0.4]))
    assert ladder[0] > 0.6
    assert ladder[0] == np.nextafter(0.6, 1)
    assert ladder[1:] == pytest.approx([0.5, 0.3, 0.2])


def test_a_midpoint_never_rounds_down_on_the_lower_score():
    low = 0.5
    high = np.nextafter(low, 1)
    assert threshold_ladder(np.array([low, high]))[1] > low


@pytest.mark.parametrize(
    ("flagged", "expected"),
    # descending .8 .7 .2 .2 .1: three may be flagged, but the third and fourth tie, so two are
    [(0, np.nextafter(0.8, 1)), (1, 0.75), (2, 0.45), (3, 0.45), (4, 0.15), (5, 0.1)],
)
def test_matched_threshold_by_hand(flagged, expected):
    safe = np.array([0.1, 0.8, 0.2, 0.7, 0.2])
    threshold = matched_threshold(np.arange(5) < flagged, safe)
    assert threshold == pytest.approx(expected, abs=1e-12)
    assert (safe >= threshold).sum() == (flagged if flagged != 3 else 2)


def shifted():
    """The candidate ranks like the reference, but all its scores are halved."""
    rng = np.random.default_rng(0)
    unsafe = np.arange(400) % 2 == 0
    reference = np.clip(rng.normal(0.35 + 0.4 * unsafe, 0.15), 0, 1)
    return unsafe, reference, reference / 2


def test_a_moved_operating_point_is_won_back():
    unsafe, reference, candidate = shifted()
    calibrate = pair(unsafe[:200], reference[:200], candidate[:200], split="c")
    test = pair(unsafe[200:], reference[200:], candidate[200:])
    found = recalibrate("s", calibrate, test, 0.5, 0.5)
    assert found.threshold == pytest.approx(0.25, abs=0.02)
    assert found.recall_shipped.value < 0.05
    assert found.recall_recalibrated.value == pytest.approx(found.recall_reference.value, abs=0.03)
    assert found.lost_to_ranking.low <= 0 <= found.lost_to_ranking.high
    assert found.lost_to_operating_point.low > 0.8
    lost = found.recall_reference.value - found.recall_shipped.value
    assert found.lost_to_ranking.value + found.lost_to_operating_point.value == pytest.approx(lost)
    assert found == recalibrate("s", calibrate, test, 0.5, 0.5)


def test_lost_ranking_is_not_won_back():
    unsafe, reference, _ = shifted()
    noise = np.random.default_rng(1).random(400)
    calibrate = pair(unsafe[:200], reference[:200], noise[:200], split="c")
    found = recalibrate("s", calibrate, pair(unsafe[200:], reference[200:], noise[200:]), 0.5, 0.95)
    assert found.lost_to_ranking.low > 0.4
    assert found.recall_recalibrated.value < 0.4


def test_intervals_hold_the_thresholds_own_uncertainty():
    unsafe, reference, candidate = shifted()
    test = pair(unsafe[100:], reference[100:], candidate[100:])
    found = recalibrate("s", pair(unsafe[:30], reference[:30], candidate[:30], split="c"), test, 0.5, 0.5)
    hits = round(found.recall_recalibrated.value * 150)
    low, high = wilson(hits, 150)
    assert found.recall_recalibrated.high - found.recall_recalibrated.low > 1.2 * (high - low)


def test_no_disagreement_still_has_an_interval():
    unsafe = np.array([True] * 20 + [False] * 20)
    scores = np.where(unsafe, 0.9, 0.1)
    found = recalibrate("s", pair(unsafe, scores, scores, split="c"), pair(unsafe, scores, scores), 0.5, 0.5)
    assert found.lost_to_ranking.value == 0
    assert (found.lost_to_ranking.low, found.lost_to_ranking.high) == pytest.approx(tango_interval(0, 0, 20))
    assert found.recall_recalibrated.low == pytest.approx(wilson(20, 20)[0])


def test_ties_are_flagged_all_or_none_and_noted():
    unsafe = np.array([False] * 10 + [True] * 10)
    reference = np.concatenate((np.linspace(0.05, 0.95, 10), np.full(10, 0.9)))
    candidate = np.concatenate((np.full(10, 0.3), np.full(10, 0.8)))
    found = recalibrate(
        "s", pair(unsafe, reference, candidate, split="c"), pair(unsafe, reference, candidate), 0.5, 0.5
    )
    assert found.threshold == np.nextafter(0.3, 1)
    assert "ties" in found.note
    assert "0.000" in found.note
    assert found.recall_recalibrated.value == 1.0


@pytest.mark.parametrize(
    ("calibrate", "test", "why"),
    [
        (None, "both", "no calibrate split"),
        ("unsafe", "both", "no safe calibrate items scored by both"),
        ("both", "safe", "no unsafe test items scored by both"),
        ("lost", "both", "no safe calibrate items scored by both"),
    ],
)
def test_where_it_is_impossible_it_says_why(calibrate, test, why):
    labels = {"both": [True, False] * 3, "unsafe": [True] * 6, "safe": [False] * 6, "lost": [True, False] * 3}

    def make(kind, split):
        candidate = np.full(6, np.nan if kind == "lost" else 0.4)
        return pair(np.array(labels[kind]), np.linspace(0.1, 0.9, 6), candidate, split=split)

    found = recalibrate("s", None if calibrate is None else make(calibrate, "c"), make(test, "t"), 0.5, 0.5)
    assert found.note == why
    assert (
        found.recall_recalibrated.value
        is found.lost_to_ranking.value
        is found.lost_to_operating_point.value
        is None
    )
    assert (found.recall_reference.value is None) == (test == "safe")
    assert (found.threshold is None) == (test != "safe")


def test_of_suite_takes_its_rows():
    both = Pair(
        [ItemMeta("a/1#prompt", "a", "prompt", "safe"), ItemMeta("b/1#prompt", "b", "prompt", "safe")],
        [0.1, 0.2],
        [0.3, 0.4],
    )
    part = of_suite(both, "b")
    assert [i.id for i in part.items] == ["b/1#prompt"]
    assert (list(part.reference), list(part.candidate)) == ([0.2], [0.4])
    assert len(of_suite(both, "*").items) == 2
    assert len(of_suite(both, "c").items) == 0


def test_a_side_with_enough_items_has_a_threshold_of_its_own():
    before = np.concatenate([np.linspace(0.1, 0.9, 30), np.linspace(0.1, 0.9, 20), [0.9] * 19])
    sides = ["prompt"] * 30 + ["trajectory"] * 20 + ["response"] * 19
    after = before.copy()
    after[30:50] /= 100  # trajectories slid
    common, own = matched_by_side(sides, before >= 0.6, after)
    assert set(own) == {"prompt", "trajectory"}  # 19 are too few
    assert own["prompt"] == matched_threshold(before[:30] >= 0.6, after[:30])
    assert own["trajectory"] == matched_threshold(before[30:50] >= 0.6, after[30:50]) < 0.01
    assert common == matched_threshold(before >= 0.6, after)
    assert matched_by_side(["prompt"] * 69, before >= 0.6, after) == (common, {})
