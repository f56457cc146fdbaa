"""What holds of every rule on any stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_streams import play
from guardkeel.moderation.aggregation import (
    AdaHedge,
    Aggregator,
    Costs,
    Feedback,
    FixedShare,
    FollowTheLeader,
    Hedge,
    Replay,
    Squint,
    Uniform,
    fit,
    replay,
)
from guardkeel.moderation.aggregation.feedback import weight_of

RULES = {
    "hedge": Hedge(rate=0.7),
    "horizon": Hedge(horizon=50),
    "anytime": Hedge(),
    "adahedge": AdaHedge(),
    "fixed share": FixedShare(0.7, 0.05),
    "squint": Squint(),
    "leader": FollowTheLeader(),
    "uniform": Uniform(),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
FREE_OF_N = ("hedge", "horizon fixed", "squint", "leader", "uniform")
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def stream(seed, sleep=0.3, least=2):
    r = np.random.default_rng(seed)
    n, rounds = int(r.integers(least, 7)), int(r.integers(1, 25))
    losses = r.random((rounds, n)) if r.random() < 0.7 else r.integers(0, 2, (rounds, n)).astype(float)
    return np.where(r.random(losses.shape) < sleep, np.nan, losses), r


def last(rule, losses, awake=None):
    everyone = np.ones(losses.shape[1], dtype=bool) if awake is None else awake
    return rule.weights(play(rule, losses).state, everyone)


@rules
@few
@given(seeds)
def test_weights_are_a_distribution_over_the_awake(rule, seed):
    losses, r = stream(seed)
    awake = r.random(losses.shape[1]) < 0.6
    awake[0] = True
    w = last(rule, losses, awake)
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert (w >= 0).all()
    assert (w[~awake] == 0).all()


@rules
@few
@given(seeds)
def test_no_expert_has_a_place_of_its_own(rule, seed):
    losses, r = stream(seed)
    order = r.permutation(losses.shape[1])
    if rule == FollowTheLeader():
        losses = np.round(losses * 64) / 64  # so that ties are ties in any order of summing
        losses = np.where(np.isnan(losses).any(axis=1, keepdims=True), np.nan, losses)
    np.testing.assert_allclose(last(rule, losses[:, order]), last(rule, losses)[order], atol=1e-7)


@pytest.mark.parametrize("name", ["hedge", "horizon", "anytime", "adahedge", "squint", "fixed share"])
@few
@given(seeds, st.floats(-2, 2))
def test_a_loss_that_all_bear_changes_nothing(name, seed, shift):
    losses, _ = stream(seed)
    np.testing.assert_allclose(last(RULES[name], losses + shift), last(RULES[name], losses), atol=1e-6)


@few
@given(seeds, st.floats(0.01, 100))
def test_adahedge_does_not_mind_the_unit_of_losses(seed, unit):
    losses, _ = stream(seed)
    np.testing.assert_allclose(last(AdaHedge(), losses * unit), last(AdaHedge(), losses), atol=1e-5)


@pytest.mark.parametrize("name", ["hedge", "fixed share", "squint", "leader", "uniform"])
@few
@given(seeds)
def test_always_asleep_is_as_good_as_absent(name, seed):
    """Where the rate does not know N: bit for bit is not promised, the same weights are."""
    losses, _ = stream(seed)
    more = np.column_stack((losses, np.full(len(losses), np.nan)))
    awake = np.arange(more.shape[1]) < losses.shape[1]
    np.testing.assert_allclose(last(RULES[name], more, awake)[:-1], last(RULES[name], losses), atol=1e-10)


@rules
@few
@given(seeds)
def test_who_sleeps_keeps_its_share_of_the_whole(rule, seed):
    """A round changes the weights of the awake among themselves only (sharing and rates apart)."""
    if rule not in (Hedge(rate=0.7), Hedge(horizon=50)):
        return
    losses, _ = stream(seed)
    before = last(rule, losses)
    row = np.full((1, losses.shape[1]), np.nan)
    row[0, : losses.shape[1] // 2 + 1] = np.linspace(0, 1, losses.shape[1] // 2 + 1)
    after = last(rule, np.concatenate((losses, row)))
    asleep = np.isnan(row[0])
    np.testing.assert_allclose(after[asleep], before[asleep], atol=1e-12)


@rules
@few
@given(seeds)
def test_a_duplicate_shares_alike_and_does_not_set_others_against_each_other(rule, seed):
    losses, _ = stream(seed, least=3)
    doubled = np.column_stack((losses, losses[:, 0]))
    w = last(rule, doubled)
    assert w[-1] == pytest.approx(w[0], abs=1e-12)
    if rule in (Hedge(rate=0.7), Hedge(horizon=50)) and not np.isnan(losses).any():
        alone = last(rule, losses)
        np.testing.assert_allclose(w[1:-1] / w[1:-1].sum(), alone[1:] / alone[1:].sum(), atol=1e-10)
        if isinstance(rule, Hedge) and rule.rate:
            assert w[0] / w[1] == pytest.approx(alone[0] / alone[1], rel=1e-9)


@rules
@few
@given(seeds)
def test_stacked_states_are_learnt_as_single_ones(rule, seed):
    losses, r = stream(seed, sleep=0.0)
    awake = np.ones(losses.shape[1], dtype=bool)
    states = np.stack(
        [play(rule, losses[:k]).state if k else rule.start(len(awake)) for k in (0, len(losses) // 2)]
    )
    row, s = r.random(len(awake)), 0.4
    together = rule.update(states, row, awake, s)
    for state, found in zip(states, together, strict=True):
        np.testing.assert_allclose(found, rule.update(state, row, awake, s), atol=1e-12)
        np.testing.assert_allclose(
            rule.weights(found, awake), rule.weights(rule.update(state, row, awake, s), awake), atol=1e-9
        )


def feedback_log(seed, n=4):
    r = np.random.default_rng(seed)
    return [
        Feedback(
            k,
            tuple(None if r.random() < 0.2 else float(p) for p in r.random(n)),
            bool(r.random() < 0.5),
            float(r.uniform(0.1, 1)),
            tuple(r.choice(["x", "y"], size=int(r.integers(0, 3)))),
        )
        for k in range(int(r.integers(1, 30)))
    ], r


@pytest.mark.parametrize(
    "rule", [r for r in RULES.values() if r != Uniform()], ids=[k for k in RULES if k != "uniform"]
)
@few
@given(seeds)
def test_incremental_is_replay_whatever_the_order(rule, seed):
    log, r = feedback_log(seed)
    whole = Aggregator("abcd", rule, floor=0.1, costs=Costs(miss=3))
    replay(whole, log)
    live = Replay(Aggregator("abcd", rule, floor=0.1, costs=Costs(miss=3)), every=3)
    for k in r.permutation(len(log)):
        live.add(log[k])
    for context in ((), ("x",), ("x", "y"), ("y", "y"), ("z",)):
        np.testing.assert_array_equal(live.aggregator.weights(context), whole.weights(context))


@few
@given(seeds, st.sampled_from(["brier", "absolute", "log"]), st.floats(0.1, 10))
def test_the_mixture_loses_no_more_than_the_experts_on_average(seed, loss, miss):
    log, _ = feedback_log(seed)
    a = Aggregator("abcd", Hedge(rate=1.0), loss=loss, costs=Costs(miss=miss), floor=0.1)
    for row in log:
        mixture = a.predict(row.advice, row.context)
        if mixture.scored:
            mean = np.nansum(mixture.weights * np.nan_to_num(a.losses(row.advice, row.unsafe)))
            assert a.loss_of(mixture, row.unsafe) <= mean + 1e-9
            assert 0 <= mixture.unsafe <= 1
            assert mixture.weights.sum() == pytest.approx(1)
        a.learn(row)


@few
@given(seeds)
def test_importance_weighting_is_unbiased(seed):
    """The mean of audited losses weighted by floor / q, over floor, against the loss over all, within CLT bounds."""
    r = np.random.default_rng(seed)
    n, floor = 20_000, 0.05
    loss = r.random(n) ** 2
    q = np.maximum(floor, loss * r.random())  # dearer items are audited more: unweighted would be far off
    drawn = np.flatnonzero(r.random(n) < q)
    weights = [weight_of(Feedback(0, (0.5,), True, float(q[k])), floor, 0.0) for k in drawn[:50]]
    np.testing.assert_allclose(weights, floor / q[drawn[:50]])
    estimate = (floor / q[drawn]) @ loss[drawn] / floor / n
    error = np.sqrt(((1 - q) / q * loss**2).sum()) / n
    assert abs(estimate - loss.mean()) < 5 * error


@few
@given(seeds, st.sampled_from(["temperature", "platt", "isotonic"]))
def test_calibrations_never_turn_an_order_round(seed, kind):
    r = np.random.default_rng(seed)
    n = int(r.integers(4, 60))
    scores = np.round(r.random(n), int(r.integers(1, 9)))
    unsafe = r.random(n) < r.random()
    unsafe[:2] = (True, False)
    found = fit(kind, scores, unsafe)
    at = np.sort(np.concatenate((scores, r.random(50), [0, 1])))
    assert (np.diff(found(at)) >= -1e-15).all()
    assert ((found(at) >= 0) & (found(at) <= 1)).all()
