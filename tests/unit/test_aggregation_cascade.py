import itertools

import numpy as np
import pytest

from aggregation_streams import advice_stream
from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation import Cascade, Costs, fit_reach, run_cascade, simulate

PRICES = (5.0, 1.0, 20.0)
EVEN = np.full(3, 1 / 3)


def asked_in_turn(cascade, advice, weights, costs=None):
    """One item at a time, as a service would: who was asked."""
    heard, asked = [None] * len(advice), [False] * len(advice)
    while (turn := cascade.next_expert(heard, asked, weights, costs)) is not None:
        asked[turn] = True
        heard[turn] = None if np.isnan(advice[turn]) else float(advice[turn])
    return asked


def test_cheapest_first_and_only_where_it_could_matter():
    cascade = Cascade(PRICES)
    assert cascade.order == (1, 0, 2)
    assert asked_in_turn(cascade, (0.9, 0.9, 0.9), EVEN) == [True, True, False]  # 0.6 whatever the third says
    assert asked_in_turn(cascade, (0.2, 0.9, 0.9), EVEN) == [True, True, True]
    assert asked_in_turn(cascade, (0.2, 0.9, 0.9), np.array([0.1, 0.8, 0.1])) == [False, True, False]


def test_the_confident_are_believed():
    cascade = Cascade(PRICES, reach=0.54)  # two thirds are not asked: 0.36 from the middle
    assert asked_in_turn(cascade, (0.5, 0.87, 0.5), EVEN) == [False, True, False]
    assert asked_in_turn(cascade, (0.5, 0.85, 0.5), EVEN) == [True, True, True]
    assert asked_in_turn(cascade, (0.5, 0.87, 0.5), np.array([0.4, 0.2, 0.4])) == [True, True, True]
    torn = Cascade(PRICES, reach=0.1, disagreement=0.3)
    assert asked_in_turn(torn, (0.3, 0.55, 0.5), EVEN) == [True, True, False]
    assert asked_in_turn(torn, (0.1, 0.55, 0.5), EVEN) == [True, True, True]  # they disagree by 0.45
    assert asked_in_turn(Cascade(PRICES, reach=0.0, disagreement=0.0), (0.1, 0.55, 0.5), EVEN) == [
        False,
        True,
        False,
    ]


def test_an_expert_that_abstains_is_passed_over():
    cascade = Cascade(PRICES, reach=0.0)
    assert asked_in_turn(cascade, (0.9, np.nan, 0.5), EVEN) == [True, True, False]
    assert asked_in_turn(cascade, (np.nan, np.nan, np.nan), EVEN) == [True, True, True]
    # abstention of the weighty first one must not settle anything
    assert asked_in_turn(Cascade(PRICES), (np.nan, 0.9, 0.2), np.array([0.5, 0.3, 0.2])) == [
        True,
        True,
        False,
    ]


def test_the_threshold_is_that_of_the_costs():
    harm = Costs(miss=9)  # flag from 0.1 on
    cascade = Cascade(PRICES, reach=0.5, disagreement=1.0)
    assert asked_in_turn(cascade, (0.5, 0.4, 0.5), EVEN, harm) == [False, True, False]
    assert asked_in_turn(cascade, (0.5, 0.4, 0.5), EVEN) == [True, True, True]


def stream(seed=0, rounds=800):
    """Five experts, the first the noisiest."""
    advice, unsafe = advice_stream(np.random.default_rng(seed), rounds=rounds, n=5)
    advice = advice[:, ::-1]
    advice = np.where(np.random.default_rng(seed + 1).random(advice.shape) < 0.1, np.nan, advice)
    return advice, unsafe


def test_simulation_asks_whom_the_service_would_ask():
    advice, _ = stream(rounds=150)
    weights = np.random.default_rng(3).dirichlet(np.ones(5), size=150)
    for cascade in (Cascade((5.0, 4.0, 3.0, 2.0, 1.0)), Cascade((1.0, 1.0, 3.0, 2.0, 1.0), reach=0.3)):
        for costs in (None, Costs(miss=3)):
            asked, mean = run_cascade(cascade, advice, weights, costs)
            for t in range(150):
                assert asked[t].tolist() == asked_in_turn(cascade, advice[t], weights[t], costs)
                if np.isnan(advice[t][asked[t]]).all():
                    assert np.isnan(mean[t])


def test_settled_items_are_decided_as_by_everyone():
    advice, unsafe = stream()
    weights = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    found = simulate(Cascade((5.0, 4.0, 3.0, 2.0, 1.0)), advice, weights, unsafe)
    assert found.changed == 0
    assert (found.loss.low, found.loss.high) == (0, 0)
    dear_last = simulate(Cascade((1.0, 2.0, 3.0, 4.0, 50.0)), advice, weights, unsafe)
    assert dear_last.calls.low > 0.2
    assert dear_last.cost.value > dear_last.calls.value


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75), (0.25, 0.5, 0.25), (0.5, 0.25, 0.25)])
def test_ties_of_experts_that_say_all_or_nothing_are_decided_as_by_everyone(weights):
    cascade, w = Cascade(tuple(range(1, len(weights) + 1))), np.array(weights)
    for advice in itertools.product((0.0, 0.5, 1.0), repeat=len(weights)):
        asked = np.array(asked_in_turn(cascade, advice, w))
        some = (w * advice)[asked].sum() / w[asked].sum()
        assert (some >= 0.5) == ((w * advice).sum() >= 0.5), advice


def test_the_reach_is_fitted_to_a_margin_and_saves_on_other_items():
    weights, prices = np.array([0.1, 0.1, 0.2, 0.25, 0.35]), (1.0, 2.0, 5.0, 10.0, 30.0)
    advice, unsafe = stream(0)
    fitted = fit_reach(Cascade(prices), advice, weights, unsafe, margin=0.02)
    assert 0 < fitted.reach < 1
    assert simulate(fitted, advice, weights, unsafe).loss.high <= 0.02
    other, labels = stream(50)
    found, free = (simulate(c, other, weights, labels) for c in (fitted, Cascade(prices)))
    assert found.calls.value > free.calls.value + 0.05
    assert found.loss.value < 0.03
    loose = fit_reach(Cascade(prices), advice, weights, unsafe, margin=1.0)
    assert loose.reach == 0
    tight = fit_reach(Cascade(prices), advice, weights, unsafe, margin=-1.0)
    assert simulate(tight, advice, weights, unsafe).changed == 0


def test_unscored_items_are_wrong_in_both():
    advice = np.full((4, 3), np.nan)
    found = simulate(Cascade(PRICES), advice, EVEN, np.array([True, False, True, False]))
    assert (found.loss.value, found.calls.value) == (0, 0)


def test_prices_that_make_no_sense():
    for prices in ((), (-1.0,), (float("inf"),)):
        with pytest.raises(ConfigError, match="cascade with costs"):
            Cascade(prices)
