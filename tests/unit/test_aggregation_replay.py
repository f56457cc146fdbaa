import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.moderation.aggregation import AdaHedge, Aggregator, Feedback, FixedShare, Replay, replay

RULES = (AdaHedge(), FixedShare())


def log(n=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        advice = [None if rng.random() < 0.2 else float(p) for p in rng.random(4)]
        q = None if rng.random() < 0.1 else float(rng.uniform(0.2, 1))
        rows.append(Feedback(3 * k + 1, tuple(advice), bool(rng.random() < 0.4), q, ("prompt", str(k % 3))))
    return rows


def learner(rule=RULES[0]):
    return Aggregator("abcd", rule, floor=0.2, unsolicited=0.1)


def state_of(aggregator):
    tables = dict(zip(aggregator.contexts(), aggregator.state.rows.tolist(), strict=True))
    return tables, aggregator.sequence


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_any_order_of_arrival_gives_the_bits_of_the_replay(rule):
    rows = log()
    whole = learner(rule)
    for r in rows:
        whole.learn(r)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        if seed:  # late by at most a few
            order = np.argsort(np.arange(len(rows)) + np.random.default_rng(seed).uniform(0, 9, len(rows)))
        live = Replay(learner(rule), every=7)
        for count, k in enumerate(order, start=1):
            assert live.add(rows[k])
            if count % 20 == 0:
                now = learner(rule)
                replay(now, [rows[j] for j in order[:count]])
                assert state_of(live.aggregator) == state_of(now)
        assert state_of(live.aggregator) == state_of(whole)
        shuffled = learner(rule)
        replay(shuffled, [rows[k] for k in order] + rows[:5])
        assert state_of(shuffled) == state_of(whole)


def test_a_row_counts_once():
    rows = log(20)
    live = Replay(learner())
    assert [live.add(r) for r in rows[:10] + rows[5:12]] == [True] * 10 + [False] * 5 + [True] * 2
    once = learner()
    replay(once, rows[:12])
    assert state_of(live.aggregator) == state_of(once)


def test_two_rows_under_one_number():
    rows = log(5)
    other = Feedback(
        rows[2].sequence, rows[2].advice, not rows[2].unsafe, rows[2].propensity, rows[2].context
    )
    live = Replay(learner())
    for r in rows:
        live.add(r)
    before = state_of(live.aggregator)
    with pytest.raises(DataError, match="two different rows"):
        live.add(other)
    assert state_of(live.aggregator) == before
    with pytest.raises(DataError, match="two different rows"):
        replay(learner(), [*rows, other])


def test_a_late_row_that_cannot_be_learnt_leaves_the_weights_as_they_were():
    rows = log(20)
    live = Replay(learner(), every=4)
    for r in rows:
        live.add(r)
    before = state_of(live.aggregator)
    with pytest.raises(DataError, match="under the floor"):
        live.add(Feedback(5, (0.5,) * 4, True, 0.01))
    assert state_of(live.aggregator) == before
    late = Feedback(5, (0.9, 0.1, 0.2, None), True, 0.5)
    live.add(late)
    whole = learner()
    replay(whole, [*rows, late])
    assert state_of(live.aggregator) == state_of(whole)


def test_only_so_much_can_be_rewound():
    rows = log(60)
    late = Feedback(rows[50].sequence + 1, (0.5, 0.6, 0.7, None), True, 0.5)
    too_late = Feedback(2, (0.5, 0.6, 0.7, None), True, 0.5)
    live = Replay(learner(), every=5, keep=15)
    for r in rows:
        live.add(r)
    with pytest.raises(DataError, match="older than what can be rewound"):
        live.add(too_late)
    live.add(late)
    whole = learner()
    replay(whole, [*rows, late])
    assert state_of(live.aggregator) == state_of(whole)


def test_going_on_from_a_restored_state():
    rows = log(30)
    first = learner()
    replay(first, rows[:15])
    second = learner()
    second.restore(first.state)
    live = Replay(second)
    for r in reversed(rows[15:]):
        live.add(r)
    whole = learner()
    replay(whole, rows)
    assert state_of(live.aggregator) == state_of(whole)
    with pytest.raises(DataError, match="older than"):
        live.add(Feedback(2, (0.5,) * 4, True, 0.5))
