import json

import numpy as np
import pytest
from scipy.special import expit, logit

from guardkeel.errors import ConfigError, DataError
from guardkeel.moderation.aggregation import Calibration, calibrated, fit


def skewed(n=4000, slope=2.5, shift=1.5, seed=0):
    """Scores whose log-odds are slope · truth + shift."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, n)
    return expit(slope * odds + shift), rng.random(n) < expit(odds), expit(odds)


def test_platt_undoes_what_was_done_to_the_log_odds():
    scores, unsafe, truth = skewed()
    found = fit("platt", scores, unsafe)
    assert found.slope == pytest.approx(1 / 2.5, rel=0.1)
    assert found.intercept == pytest.approx(-1.5 / 2.5, abs=0.12)
    assert np.abs(found(scores) - truth).max() < 0.06


def test_temperature_keeps_the_middle():
    scores, unsafe, _ = skewed(shift=0.0)
    found = fit("temperature", scores, unsafe)
    assert found.slope == pytest.approx(1 / 2.5, rel=0.1)
    assert found(0.5) == 0.5


def test_isotonic_needs_no_shape():
    rng = np.random.default_rng(1)
    scores = rng.random(6000)
    truth = np.where(scores < 0.4, 0.1, np.where(scores < 0.7, 0.35, 0.9))
    found = fit("isotonic", scores, rng.random(6000) < truth)
    inside = np.abs(scores[:, None] - [0.4, 0.7]).min(axis=1) > 0.03
    assert np.abs(found(scores) - truth)[inside].mean() < 0.03
    assert len(found.knots) < 120


def test_isotonic_by_hand():
    """Levels 0.1 … 0.4 with means 0, 1, 0, 1 pool to 0, ½, ½, 1, kept inside [1/6, 5/6]."""
    found = fit("isotonic", [0.1, 0.2, 0.3, 0.4], [False, True, False, True])
    assert found.knots == (0.1, 0.2, 0.3, 0.4)
    assert found.values == pytest.approx((1 / 6, 0.5, 0.5, 5 / 6))
    assert found(0.35) == pytest.approx((0.5 + 5 / 6) / 2)
    assert found([0.0, 1.0]) == pytest.approx([1 / 6, 5 / 6])


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_maps_are_monotone_and_abstentions_stay(kind):
    scores, unsafe, _ = skewed(300)
    found = fit(kind, np.append(scores, np.nan), np.append(unsafe, True))
    assert found == fit(kind, scores, unsafe)
    grid = np.linspace(0, 1, 501)
    assert (np.diff(found(grid)) >= 0).all()
    assert ((found(grid) > 0) & (found(grid) < 1)).all()
    assert np.isnan(found([0.2, np.nan])).tolist() == [False, True]


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_calibration_lowers_the_loss_on_other_items(kind):
    scores, unsafe, _ = skewed(600)
    held, labels, _ = skewed(3000, seed=9)
    found = fit(kind, scores, unsafe)

    def log_loss(p):
        return -np.log(np.where(labels, p, 1 - p)).mean()

    assert log_loss(found(held)) < log_loss(np.clip(held, 1e-6, 1 - 1e-6)) - 0.05


def test_certain_and_separated_scores_stay_finite():
    scores, unsafe = [0.0] * 20 + [1.0] * 5, [False] * 20 + [True] * 5
    found = fit("platt", scores, unsafe)
    assert found([0.0, 1.0]) == pytest.approx([1 / 22, 6 / 7], abs=1e-4)


def test_an_expert_that_is_always_wrong_says_the_base_rate():
    rng = np.random.default_rng(2)
    unsafe = rng.random(500) < 0.3
    scores = np.where(unsafe, 0.1, 0.9)
    found = fit("platt", scores, unsafe)
    assert found.slope == 0
    assert found([0.1, 0.9]) == pytest.approx([unsafe.mean()] * 2, abs=0.01)
    flat = fit("isotonic", scores, unsafe)([0.1, 0.9])
    assert flat == pytest.approx([unsafe.mean()] * 2)


def test_plain_numbers_and_back():
    scores, unsafe, _ = skewed(200)
    for kind in ("identity", "temperature", "platt", "isotonic"):
        found = fit(kind, scores, unsafe)
        again = Calibration.from_record(json.loads(json.dumps(found.record())))
        assert again == found
        np.testing.assert_array_equal(again(scores), found(scores))


def test_an_item_through_its_experts_maps():
    maps = (Calibration(), Calibration("platt", slope=0.5, intercept=1.0))
    assert calibrated(maps, (0.3, 0.8)) == pytest.approx([0.3, expit(0.5 * logit(0.8) + 1)])
    assert np.isnan(calibrated(maps, (0.3, None))).tolist() == [False, True]
    with pytest.raises(ValueError, match="zip"):
        calibrated(maps, (0.3,))


def test_what_cannot_be_fitted():
    with pytest.raises(DataError, match="2 scored items to calibrate on, 2 of them unsafe"):
        fit("platt", [0.2, 0.4, np.nan], [True, True, False])
    with pytest.raises(DataError, match="outside"):
        fit("platt", [0.2, 1.4], [True, False])


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "spline"},
        {"kind": "platt", "slope": -1.0},
        {"kind": "platt", "intercept": float("nan")},
        {"kind": "isotonic"},
        {"kind": "isotonic", "knots": [0.1, 0.2], "values": [0.5, 0.4]},
        {"kind": "isotonic", "knots": [0.1, 0.2], "values": [0.5, 1.4]},
        {"kind": "isotonic", "knots": [0.1], "values": [0.5, 0.6]},
        {"kind": "platt", "temperature": 2},
    ],
)
def test_numbers_that_are_no_calibration(record):
    with pytest.raises(ConfigError, match="calibration"):
        Calibration.from_record(record)
