"""Every rule against its bound, with the constants of its paper."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from aggregation_streams import (
    EXPERTS,
    ROUNDS,
    advice_stream,
    alternating,
    best_path,
    coins,
    drifting,
    flipped,
    hunter,
    play,
    sleepy,
    stochastic,
)
from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation import (
    AdaHedge,
    Aggregator,
    Feedback,
    FixedShare,
    FollowTheLeader,
    Hedge,
    Squint,
    Uniform,
    bounds,
    log_mixture,
    make_rule,
)
from guardkeel.moderation.aggregation.squint import log_evidence

STREAMS = {"stochastic": stochastic, "coins": coins, "drifting": drifting, "flipped": flipped}
ADVERSARIES = {"hunter": hunter, "alternating": alternating}
ROUNDING = 1e-9


def rng():
    return np.random.default_rng(7)


def every_stream():
    yield from ((name, make(rng())) for name, make in STREAMS.items())
    yield from ADVERSARIES.items()
    yield from ((f"sleepy {name}", sleepy(rng(), make(rng()))) for name, make in STREAMS.items())


CASES = {
    "hedge at a fixed rate": (Hedge(rate=0.3), lambda g, v: bounds.hedge(EXPERTS, 0.3, v)),
    "hedge, horizon known": (Hedge(horizon=ROUNDS), lambda g, v: bounds.hedge_horizon(EXPERTS, ROUNDS)),
    "hedge, anytime": (Hedge(), lambda g, v: bounds.hedge_anytime(EXPERTS, v)),
    "adahedge": (AdaHedge(), lambda g, v: bounds.adahedge(EXPERTS, v)),
    "adahedge by its own gap": (AdaHedge(), lambda g, v: 2 * g.state[-1]),
    "squint": (Squint(), lambda g, v: np.array([bounds.squint(EXPERTS, x, ROUNDS) for x in g.variance])),
    "fixed share": (FixedShare(0.3, 0.01), lambda g, v: bounds.fixed_share(EXPERTS, 0.3, 0.01, 0, ROUNDS)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stream", [name for name, _ in every_stream()])
def test_regret_is_within_the_bound(case, stream):
    rule, bound = CASES[case]
    game = play(rule, dict(every_stream())[stream])
    assert (game.regret <= bound(game, ROUNDS) + ROUNDING).all()


@pytest.mark.parametrize("case", CASES)
def test_bounds_hold_for_weighted_rounds(case):
    rule, bound = CASES[case]
    s = rng().uniform(0.02, 1.0, ROUNDS)
    game = play(rule, sleepy(rng(), coins(rng())), weights=s)
    assert (game.regret <= bound(game, float(s @ s)) + ROUNDING).all()


def test_the_bounds_are_not_idle():
    """On fair coins the regret of a tuned Hedge is of the order of its bound, so a wrong rate would show."""
    game = play(Hedge(horizon=ROUNDS), coins(rng()))
    assert game.regret.max() > 0.4 * bounds.hedge_horizon(EXPERTS, ROUNDS)
    reckless = play(Hedge(rate=20.0), alternating)
    assert reckless.regret.max() > bounds.hedge_horizon(EXPERTS, ROUNDS)


def test_following_the_leader_and_equal_weights_have_no_bound():
    assert play(FollowTheLeader(), alternating).regret.max() > 0.45 * ROUNDS
    assert play(Uniform(), stochastic(rng())).regret.max() > bounds.hedge_horizon(EXPERTS, ROUNDS) / 2
    easy = np.tile(np.linspace(0.1, 0.9, EXPERTS), (ROUNDS, 1))
    assert play(FollowTheLeader(), easy).regret.max() < 1
    assert play(AdaHedge(), easy).regret.max() < 3


@pytest.mark.parametrize("switches", [1, 2, 4])
@pytest.mark.parametrize("make", [flipped, drifting, coins])
def test_fixed_share_follows_the_best_sequence(switches, make):
    losses = make(rng())
    rule = FixedShare.tuned(EXPERTS, ROUNDS, switches)
    regret = play(rule, losses).own.sum() - best_path(losses, switches)
    bound = bounds.fixed_share(EXPERTS, rule.rate, rule.share, switches, ROUNDS)
    assert regret <= bound + ROUNDING
    entropy = -rule.share * math.log(rule.share) - (1 - rule.share) * math.log1p(-rule.share)
    tuned = math.sqrt(ROUNDS / 2 * ((switches + 1) * math.log(EXPERTS) + (ROUNDS - 1) * entropy))
    assert bound == pytest.approx(tuned, rel=1e-9)  # corollary 5.1


def test_only_a_rule_that_forgets_survives_a_flip():
    losses = flipped(rng())
    segments = best_path(losses, 1)
    sharing, hedging = (
        play(rule, losses).own.sum() - segments for rule in (FixedShare.tuned(EXPERTS, ROUNDS, 1), Hedge())
    )
    assert sharing < 0.25 * hedging


def learnt(aggregator, advice, unsafe):
    """Losses of the weighted mean (T,) and of the experts (T, n), as the log is learnt."""
    own, other = [], []
    for t, (row, y) in enumerate(zip(advice, unsafe, strict=True)):
        own.append(aggregator.loss_of(aggregator.predict(row), bool(y)))
        other.append(aggregator.losses(row, bool(y)))
        aggregator.learn(Feedback(t, tuple(row), bool(y), 1.0))
    return np.array(own), np.array(other)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("asleep", [0.0, 0.3])
@pytest.mark.parametrize(
    ("rule", "loss", "rate"), [(log_mixture(), "log", 1.0), (Hedge(rate=0.5), "brier", 0.5)]
)
def test_curved_losses_cost_a_constant(rule, loss, rate, flip, asleep):
    advice, unsafe = advice_stream(rng(), flip=flip)
    advice = np.where(rng().random(advice.shape) < asleep, np.nan, advice)
    own, other = learnt(Aggregator([f"e{i}" for i in range(EXPERTS)], rule, loss=loss), advice, unsafe)
    regret = np.nansum(own[:, None] - other, axis=0)
    assert (regret <= bounds.curved(EXPERTS, rate) + ROUNDING).all()


def test_log_loss_of_the_mixture_is_its_mix_loss():
    """Σ −ln p̂ = −ln Σ_i e^{−L_i} / N: the probability of the outcomes under the Bayesian mixture."""
    advice, unsafe = advice_stream(rng())
    own, other = learnt(
        Aggregator([f"e{i}" for i in range(EXPERTS)], log_mixture(), loss="log"), advice, unsafe
    )
    total = -np.logaddexp.reduce(-other.sum(axis=0) - math.log(EXPERTS))
    assert own.sum() == pytest.approx(total, rel=1e-10)


def test_fixed_share_under_curved_losses():
    advice, unsafe = advice_stream(rng(), flip=True)
    for loss, rate in (("brier", 0.5), ("log", 1.0)):
        rule = FixedShare(rate, 1 / (ROUNDS - 1))
        own, other = learnt(Aggregator([f"e{i}" for i in range(EXPERTS)], rule, loss=loss), advice, unsafe)
        bound = bounds.fixed_share(EXPERTS, rate, rule.share, 1, ROUNDS, curved=True)
        assert own.sum() - best_path(other, 1) <= bound + ROUNDING


@pytest.mark.parametrize("loss", ["brier", "absolute", "decision"])
def test_bounds_carry_over_to_the_mixed_advice(loss):
    advice, unsafe = advice_stream(rng(), flip=True)
    aggregator = Aggregator([f"e{i}" for i in range(EXPERTS)], AdaHedge(), loss=loss)
    own, other = learnt(aggregator, advice, unsafe)
    assert (own.sum() - other.sum(axis=0)).max() <= bounds.adahedge(EXPERTS, ROUNDS)


def test_delayed_feedback_costs_what_was_outstanding():
    rate, generator = 0.1, rng()
    losses = coins(generator)
    arrival = np.arange(ROUNDS) + generator.integers(0, 60, ROUNDS)
    order = np.lexsort((np.arange(ROUNDS), arrival))  # the log
    rule, everyone = Hedge(rate=rate), np.ones(EXPERTS, dtype=bool)
    state, own, known, outstanding = rule.start(EXPERTS), np.zeros(ROUNDS), 0, 0
    place = np.argsort(order)
    for t in range(ROUNDS):
        while known < ROUNDS and arrival[order[known]] < t:
            state = rule.update(state, losses[order[known]], everyone)
            known += 1
        own[t] = rule.weights(state, everyone) @ losses[t]
        outstanding += int(place[t]) - known
    regret = own.sum() - losses.sum(axis=0).min()
    assert outstanding > 10 * ROUNDS
    assert regret <= bounds.hedge(EXPERTS, rate, ROUNDS) + bounds.delay(rate, outstanding)


def test_adahedge_as_its_paper_writes_it():
    """Step by step with η = ∞ at the start, against the vectorised rule."""
    losses = coins(rng(), rounds=120)
    total, gap, own = np.zeros(EXPERTS), 0.0, []
    for row in losses:
        if gap == 0:
            w = (total == total.min()).astype(float)
        else:
            w = np.exp(-math.log(EXPERTS) / gap * (total - total.min()))
        w /= w.sum()
        h = w @ row
        if gap == 0:
            m = row[w > 0].min()
        else:
            eta = math.log(EXPERTS) / gap
            m = -math.log(w @ np.exp(-eta * row)) / eta
        own.append(h)
        gap += max(0.0, h - m)
        total += row
    np.testing.assert_allclose(play(AdaHedge(), losses).own, own, atol=1e-9)


@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e-9, 1e-5, 0.01, 1.0, 30.0, 900.0])
def test_squints_weights_are_the_integral(variance):
    reach = math.sqrt(1e4 * variance)  # R² ≤ T V
    for regret in np.array([-1, -0.3, -0.01, 0, 0.01, 0.3, 1]) * reach:
        peak = min(0.5, max(0.0, regret / (2 * variance))) if variance else 0.25
        top = peak * regret - peak * peak * variance
        value, _ = quad(
            lambda e, r=regret, m=top: math.exp(e * r - e * e * variance - m), 0, 0.5, points=[peak], epsabs=0
        )
        found = float(log_evidence(np.array(regret), np.array(variance)))
        assert found == pytest.approx(math.log(value) + top, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("n", [2, 10, 100])
@pytest.mark.parametrize("rounds", [100, 10_000])
def test_squints_closed_bound_is_above_what_its_potential_allows(n, rounds):
    """Φ(R, V) ≤ (N − 1) · max −Φ, and −Φ is largest at R = −T, V = T."""

    def potential(r, v):
        return quad(lambda e: math.expm1(min(700.0, e * r - e * e * v)) / e, 0, 0.5, limit=200)[0]

    most = -(n - 1) * potential(-rounds, rounds)
    for variance in (0.0, 1.0, 0.1 * rounds):
        allowed = brentq(lambda r, v=variance: potential(r, v) - most, 0.0, 1000.0)
        assert allowed <= bounds.squint(n, variance, rounds)


def test_audited_feedback_is_within_its_bound_in_expectation():
    floor, seeds, rounds = 0.1, 20, ROUNDS
    rule = Hedge(rate=math.sqrt(8 * math.log(EXPERTS) / (floor * rounds)))
    regrets = []
    everyone = np.ones(EXPERTS, dtype=bool)
    for seed in range(seeds):
        r = np.random.default_rng(seed)
        losses = stochastic(r, rounds)
        q = r.uniform(floor, 0.5, rounds)
        audited = r.random(rounds) < q
        state, own = rule.start(EXPERTS), 0.0
        for t in range(rounds):
            own += float(rule.weights(state, everyone) @ losses[t])
            if audited[t]:
                state = rule.update(state, losses[t], everyone, floor / q[t])
        regrets.append(own - losses.sum(axis=0)[2])
    mean, error = np.mean(regrets), np.std(regrets) / math.sqrt(seeds)
    assert mean + 2 * error <= bounds.audited(EXPERTS, rounds, floor)


def test_one_expert_is_simply_followed():
    for name in ("hedge", "adahedge", "squint", "fixed-share", "follow-the-leader", "uniform"):
        game = play(make_rule(name), coins(rng(), rounds=20, n=1))
        assert game.regret.max() == 0


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("hedge", {"rate": -1.0}, "rate is -1.0"),
        ("hedge", {"rate": 1.0, "horizon": 5}, "both a rate and a horizon"),
        ("fixed-share", {"share": 1.0}, "share is 1.0"),
        ("squint", {"rate": 1.0}, "rule 'squint'"),
        ("exp3", {}, "'exp3' is not known"),
    ],
)
def test_parameters_that_make_no_sense(name, parameters, says):
    with pytest.raises(ConfigError, match=says):
        make_rule(name, **parameters)
