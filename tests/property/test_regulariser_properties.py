"""What holds for any numbers: low-rank algebra, divergences, projections, schedules."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.tuning.posthoc import interpolated
from guardkeel.tuning.regularisers import factors, kl
from guardkeel.tuning.regularisers.asft import along
from guardkeel.tuning.regularisers.ewc import spread
from guardkeel.tuning.regularisers.lisa import aligning
from guardkeel.tuning.regularisers.safegrad import dot, project

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**31)


def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_low_rank_algebra_equals_dense(out, width, rank, seed):
    draw = draws(seed)
    left, right, left0, right0 = draw(out, rank), draw(rank, width), draw(out, rank), draw(rank, width)
    change = factors.since((left, right), (left0, right0))
    dense = left @ right - left0 @ right0
    torch.testing.assert_close(change[0] @ change[1], dense)
    torch.testing.assert_close(factors.squared_norm(*change), dense.square().sum())
    other = draw(out, rank)
    torch.testing.assert_close(factors.inner(left, other, right), ((left @ right) * (other @ right)).sum())
    still = factors.since((left, right), (left, right))
    assert float(factors.squared_norm(*still)) == 0


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_alignment_never_turns_an_update_round(out, width, rank, seed):
    draw = draws(seed)
    v, x = draw(out, width), draw(out, rank)
    kept = along(v, x)
    torch.testing.assert_close(kept, v @ v.T / v.norm() @ x)
    assert float((x * kept).sum()) >= 0  # Ĉ is positive semi-definite
    torch.testing.assert_close(along(3 * v, x), 3 * kept)  # it is no projector: it scales with V


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(2, 40), st.floats(0.1, 8), st.floats(0, 5), seeds)
def test_divergence_is_never_negative_and_near_the_exact_one(rows, words, spread_of, moved, seed):
    draw = draws(seed)
    logits = spread_of * draw(rows, words)
    before = kl.log_probabilities(logits)
    now = kl.log_probabilities(logits + moved * draw(rows, words))
    found = float(kl.divergence(before.half(), now))
    exact = float((before.exp() * (before - now)).sum(-1).mean())
    assert found >= 0
    assert abs(found - exact) <= 2e-3 * (1 + exact) * (1 + spread_of)
    assert float(kl.divergence(before.half(), before)) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), seeds)
def test_projection_removes_conflict_and_only_conflict(shapes, seed):
    draw = draws(seed)
    task = {str(i): draw(n) for i, n in enumerate(shapes)}
    guard = {str(i): draw(n) for i, n in enumerate(shapes)}
    before = {n: t.clone() for n, t in task.items()}
    conflict = float(dot(before, guard)) < 0
    cosine, projected = project(task, guard)
    assert projected is conflict and -1 - 1e-9 <= cosine <= 1 + 1e-9
    assert float(dot(task, guard)) >= -1e-9
    if not conflict:
        assert all(torch.equal(task[n], before[n]) for n in task)
    assert float(dot(task, task)) <= float(dot(before, before)) + 1e-9


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20))
def test_lisa_keeps_its_budget_in_every_cycle(align, task, cycle):
    start = cycle * (align + task)
    turns = [aligning(step, align, task) for step in range(start, start + align + task)]
    assert turns == [False] * task + [True] * align


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 70))
def test_samples_are_distinct_and_as_even_as_can_be(flags, count):
    picks = spread(torch.tensor(flags), count)
    assert len(set(picks)) == len(picks) == min(count, len(flags))
    unsafe = sum(flags[p] for p in picks)
    both = min(sum(flags), len(flags) - sum(flags))
    assert min(unsafe, len(picks) - unsafe) >= min(both, len(picks) // 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.floats(0, 1), seeds)
def test_interpolation_runs_straight_between_its_ends(size, alpha, seed):
    draw = draws(seed)
    before, after = {"w": draw(size)}, {"w": draw(size)}
    found = interpolated(before, after, alpha)["w"]
    torch.testing.assert_close(found, before["w"] + alpha * (after["w"] - before["w"]))
    torch.testing.assert_close(found, interpolated(after, before, 1 - alpha)["w"])
