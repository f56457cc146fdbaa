import json
import math

import numpy as np
import pytest

from guardkeel.errors import ConfigError, DataError
from guardkeel.moderation.aggregation import (
    AdaHedge,
    Aggregator,
    Costs,
    Feedback,
    FixedShare,
    FollowTheLeader,
    Hedge,
    Squint,
    State,
    Uniform,
)


def learner(rule=None, experts=("a", "b", "c"), **options):
    return Aggregator(experts, rule or Hedge(rate=1.0), **options)


def row(sequence, advice, unsafe, context=(), q=1.0):
    return Feedback(sequence, advice, unsafe, q, context)


def test_the_weights_of_the_paper():
    """w_i ∝ exp(−η ℓ_i), by hand."""
    a = learner(Hedge(rate=2.0), loss="absolute")
    a.learn(row(1, (0.9, 0.5, 0.1), True))
    w = np.exp(-2 * np.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(a.weights(), w / w.sum(), rtol=1e-14)
    found = a.predict((0.9, 0.5, 0.1))
    assert found.unsafe == pytest.approx(w @ (0.9, 0.5, 0.1) / w.sum())
    assert found.vote == pytest.approx((w[0] + w[1]) / w.sum())
    mean = w @ (0.9, 0.5, 0.1) / w.sum()
    assert found.disagreement == pytest.approx(
        2 * math.sqrt(w @ (np.array((0.9, 0.5, 0.1)) - mean) ** 2 / w.sum())
    )


def test_the_anytime_rate():
    """At round t the rate is √(8 ln N / t)."""
    a = learner(Hedge(), loss="absolute")
    for t in range(3):
        a.learn(row(t, (1.0, 0.5, 0.0), True))
    x = -math.sqrt(8 * math.log(3) / 4) * 3 * np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(a.weights(), np.exp(x) / np.exp(x).sum(), rtol=1e-12)


def test_an_expert_that_abstains_is_neither_heard_nor_charged():
    a = learner()
    a.learn(row(1, (0.9, 0.1, None), True))
    two = learner(experts=("a", "b"))
    two.learn(row(1, (0.9, 0.1), True))
    w = a.weights()
    assert w[2] == pytest.approx(1 / 3)  # its share of the whole stays
    np.testing.assert_allclose(w[:2] / w[:2].sum(), two.weights(), rtol=1e-14)
    heard = a.predict((0.2, float("nan"), 0.8))
    assert heard.weights[1] == 0
    assert heard.weights.sum() == pytest.approx(1)
    assert heard.unsafe == pytest.approx((w[0] * 0.2 + w[2] * 0.8) / (w[0] + w[2]))


def test_all_asleep_is_unscored_and_teaches_nothing():
    a = learner()
    found = a.predict((None, None, None))
    assert (found.unsafe, found.flagged, found.scored) == (None, None, False)
    assert found.weights.tolist() == [0, 0, 0]
    assert math.isnan(a.loss_of(found, False))
    before = a.state
    a.learn(row(5, (None, None, None), True))
    assert a.sequence == 5
    np.testing.assert_array_equal(a.state.rows, before.rows)


def test_an_expert_that_joins_later_slept_until_then():
    log = [row(k, (0.8, 0.3), k % 2 == 0) for k in range(6)]
    old = learner(AdaHedge(), experts=("a", "b"))
    new = learner(AdaHedge(), experts=("a", "b", "c"))
    for r in log:
        old.learn(r)
        new.learn(r)
    assert new.weights()[:2].argmax() == old.weights().argmax()
    assert new.predict((0.8, 0.3)).weights[2] == 0
    assert new.weights()[2] > 0


@pytest.mark.parametrize(
    ("costs", "threshold"), [(Costs(), 0.5), (Costs(miss=4), 0.2), (Costs(alarm=9), 0.9), (Costs(1, 3), 0.75)]
)
def test_the_threshold_follows_from_the_costs(costs, threshold):
    assert costs.threshold == pytest.approx(threshold)
    a = learner(Uniform(), costs=costs)
    for shift, flagged in ((0.01, True), (-0.01, False)):
        found = a.predict([threshold + shift] * 3)
        assert found.flagged is flagged
        assert found.unsafe == pytest.approx(threshold + shift)
    # flagging at the threshold costs as much as not flagging
    assert (1 - threshold) * costs.alarm == pytest.approx(threshold * costs.miss)


@pytest.mark.parametrize("loss", ["brier", "log"])
@pytest.mark.parametrize("costs", [Costs(), Costs(miss=5), Costs(alarm=3)])
def test_calibrated_advice_is_cheapest_whatever_the_costs(loss, costs):
    """Proper: with P(unsafe) = p, advice p has the least expected loss."""
    advice = np.linspace(0.02, 0.98, 49)
    a = learner(Hedge(rate=0.1), experts=[str(k) for k in range(49)], loss=loss, costs=costs)
    for p in advice[[3, 20, 44]]:
        expected = p * a.losses(advice, True) + (1 - p) * a.losses(advice, False)
        assert advice[expected.argmin()] == p


def test_losses_lie_in_0_1_and_misses_cost_what_they_should():
    for loss in ("brier", "absolute", "decision"):
        a = learner(loss=loss, costs=Costs(miss=1, alarm=4))
        worst_miss, worst_alarm = a.losses((0.0, 1.0, None), True)[0], a.losses((0.0, 1.0, None), False)[1]
        assert (worst_miss, worst_alarm) == (0.25, 1.0)
        assert np.isnan(a.losses((0.0, 1.0, None), True)[2])
    a = learner(loss="decision", costs=Costs(miss=4))
    assert a.losses((0.21, 0.19, 0.9), True).tolist() == [0, 1, 0]
    assert a.losses((0.21, 0.19, 0.9), False).tolist() == [0.25, 0, 0.25]


def test_under_decision_loss_the_vote_decides():
    a = learner(Uniform(), loss="decision")
    found = a.predict((0.51, 0.51, 0.0))
    assert found.unsafe < 0.5
    assert found.flagged
    assert a.loss_of(found, False) == pytest.approx(2 / 3)


def test_contexts_are_shrunk_to_the_one_above():
    """λ = n / (n + m), by hand, and unseen contexts fall back."""
    a = learner(Hedge(rate=1.0), prior_strength=3.0)
    for k in range(4):
        a.learn(row(k, (0.9, 0.1, 0.5), True, ("prompt", "en")))
    a.learn(row(4, (0.9, 0.1, 0.5), False, ("prompt", "de")))
    a.learn(row(5, (0.9, 0.1, 0.5), False))
    table = {}
    for context, unsafe, safe in (
        ((), 4, 2),
        (("prompt",), 4, 1),
        (("prompt", "en"), 4, 0),
        (("prompt", "de"), 0, 1),
    ):
        x = np.exp(-(unsafe * np.array([0.01, 0.81, 0.25]) + safe * np.array([0.81, 0.01, 0.25])))
        table[context] = x / x.sum()
    side = table[()] + 5 / (5 + 3) * (table["prompt",] - table[()])
    english = side + 4 / (4 + 3) * (table["prompt", "en"] - side)
    german = side + 1 / (1 + 3) * (table["prompt", "de"] - side)
    np.testing.assert_allclose(a.weights(), table[()])
    np.testing.assert_allclose(a.weights(("prompt",)), side)
    np.testing.assert_allclose(a.weights(("prompt", "en")), english)
    np.testing.assert_allclose(a.weights(("prompt", "de")), german)
    np.testing.assert_allclose(a.weights(("prompt", "fr", "Violence")), side)
    np.testing.assert_allclose(a.weights(("response",)), table[()])
    assert a.predict((0.5, 0.5, 0.5), ("response", "en")).scored
    assert ("response",) not in a.contexts()  # asking makes no table
    assert a.rounds(("prompt",)) == 5
    assert a.rounds(("response",)) == 0


def test_how_much_a_context_is_believed():
    for m, believes in ((0.0, True), (math.inf, False)):
        a = learner(prior_strength=m)
        a.learn(row(1, (0.9, 0.1, 0.5), True, ("x",)))
        a.learn(row(2, (0.1, 0.9, 0.5), True, ("y",)))
        w = a.weights(("x",))
        assert bool(w[0] > w[1]) is believes
        if not believes:
            np.testing.assert_allclose(w, a.weights())


def test_effective_rounds_of_weighted_feedback():
    a = learner(floor=0.1)
    for k, q in enumerate((0.1, 0.2, 1.0)):
        a.learn(row(k, (0.9, 0.1, 0.5), True, q=q))
    s = np.array([1.0, 0.5, 0.1])
    assert a.rounds() == pytest.approx(s.sum() ** 2 / (s @ s))


def test_a_context_is_believed_by_its_effective_rounds():
    a = learner(floor=0.1, prior_strength=2.0)
    for k, q in enumerate((0.1, 1.0, 1.0)):
        a.learn(row(k, (0.9, 0.1, 0.5), k > 0, ("x",) if k else (), q=q))
    ours = np.exp(-0.2 * np.array([0.01, 0.81, 0.25]))
    ours /= ours.sum()
    n = 2.0  # two rounds of equal weight, however small
    np.testing.assert_allclose(a.weights(("x",)), a.weights() + n / (n + 2) * (ours - a.weights()))


def test_a_leader_that_sleeps_keeps_its_distance():
    a = learner(FollowTheLeader(), loss="absolute")
    a.learn(row(1, (0.9, 0.6, 0.8), True))
    for k in range(2, 5):
        a.learn(row(k, (None, 0.6, None), True))  # the ensemble loses 0.4 each time, and so do they
    assert a.weights().tolist() == [1, 0, 0]
    a.learn(row(9, (0.5, 1.0, 0.5), True))
    assert a.weights().tolist() == [0, 1, 0]
    asleep = learner(FollowTheLeader(), loss="absolute")
    asleep.learn(row(1, (0.8, 0.9, 0.6), True))
    for k in range(2, 5):
        asleep.learn(row(k, (None, 0.6, None), True))
    assert asleep.weights().tolist() == [0, 1, 0]  # not charged, the others would have overtaken it


@pytest.mark.parametrize(
    "rule", [Hedge(), AdaHedge(), Squint(), FixedShare()], ids=lambda r: type(r).__name__
)
def test_a_state_survives_json_bit_by_bit(rule):
    rng = np.random.default_rng(3)
    rows = [row(k, rng.random(3), bool(rng.random() < 0.4), ("p", str(k % 3)), 0.3) for k in range(40)]
    whole, half = learner(rule, floor=0.1), learner(rule, floor=0.1)
    for r in rows:
        whole.learn(r)
    for r in rows[:20]:
        half.learn(r)
    again = learner(rule, floor=0.1)
    again.restore(State.from_record(json.loads(json.dumps(half.state.record()))))
    for r in rows[20:]:
        again.learn(r)
    assert again.contexts() == whole.contexts()
    assert again.sequence == whole.sequence == 39
    np.testing.assert_array_equal(again.state.rows, whole.state.rows)
    kept = whole.state
    whole.learn(row(40, (1.0, 1.0, 1.0), False))
    assert not np.array_equal(kept.rows[0], whole.state.rows[0])  # a state is a copy


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"contexts": [], "rows": [], "sequence": 1},
        {"contexts": [["x"]], "rows": [[0.0]], "sequence": 1},
        {"contexts": [[]], "rows": "no", "sequence": 1},
    ],
)
def test_a_state_that_is_none(record):
    with pytest.raises(DataError, match="not a learner's state"):
        State.from_record(record)


def test_a_state_of_another_ensemble_is_refused():
    with pytest.raises(DataError, match="rows of 6 numbers"):
        learner(experts=("a", "b")).restore(learner().state)


def test_what_cannot_be_learnt_changes_nothing():
    a = learner(floor=0.1)
    a.learn(row(3, (0.9, 0.1, 0.5), True))
    before = a.state
    for wrong, says in (
        (row(3, (0.9, 0.1, 0.5), True), "3 comes after 3"),
        (row(2, (0.9, 0.1, 0.5), True), "2 comes after 3"),
        (row(4, (0.9, 0.1, 0.5, 0.5), True), "for 3 experts"),
        (row(4, (0.9, 0.1, 0.5), True, q=0.05), "under the floor of 0.1"),
    ):
        with pytest.raises(DataError, match=says):
            a.learn(wrong)
    assert a.sequence == before.sequence
    np.testing.assert_array_equal(a.state.rows, before.rows)


def test_rows_that_cannot_be():
    for advice, q, says in (
        ((1.5,), 1.0, "advice 1.5"),
        ((0.5,), 0.0, "propensity 0.0"),
        ((0.5,), 1.1, "1.1"),
    ):
        with pytest.raises(DataError, match=says):
            row(1, advice, True, q=q)
    assert row(1, (float("nan"),), True) == row(1, (None,), True)


def test_an_ensemble_that_cannot_be():
    for options, says in (
        ({"experts": ()}, "experts are"),
        ({"experts": ("a", "a")}, "experts are"),
        ({"loss": "hinge"}, "'hinge' is not known"),
        ({"floor": 0.0}, "floor is 0.0"),
        ({"unsolicited": 2.0}, "unsolicited 2.0"),
        ({"prior_strength": -1.0}, "prior_strength is -1.0"),
        ({"loss": "log", "rule": Squint()}, "log loss has no bound"),
        ({"loss": "log", "rule": Hedge()}, "log loss has no bound"),
    ):
        with pytest.raises(ConfigError, match=says):
            learner(**options)
    with pytest.raises(ConfigError, match="missed harm is 0"):
        Costs(miss=0)
