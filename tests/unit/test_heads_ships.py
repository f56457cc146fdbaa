"""Ships per query and per data set, against the formula done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from guardkeel.errors import ConfigError, DataError
from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.ships import angles, dataset_ships, query_ships, top
from guardkeel.heads.sweep import sweep_heads
from heads_reference import every_head, naive, prompts, tiny_model

ROWS = prompts(5, seed=4)


def test_per_query():
    model = tiny_model("qwen3")
    found = query_ships(model, token_prompts(ROWS), mode="v")
    assert found.kl.shape == (5, 3, 4)
    assert np.array_equal(found.mean, found.kl.mean(0))
    best = found.top(3)
    assert found.mean[best[0]] == found.mean.max()
    assert [found.mean[h] for h in best] == sorted(found.mean.ravel())[::-1][:3]
    assert found.kl[2][found.top_of(2)[0]] == found.kl[2].max()
    assert found.sweep.mode == "v"


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_per_data_set_against_float64(rank):
    """arccos of the singular values of UᵀU', from states of full forwards."""
    model = tiny_model("llama")
    found = dataset_ships(model, token_prompts(ROWS), rank=rank)
    assert found.sweep.kl is None  # the language-model head is not run
    _, states, clean = naive(model, ROWS, every_head(model))
    before = np.linalg.svd(clean)[0][:, :rank]
    for i, ((head,),) in enumerate(zip(every_head(model), strict=True)):
        after = np.linalg.svd(states[:, i])[0][:, :rank]
        cosines = np.linalg.svd(before.T @ after, compute_uv=False).clip(-1, 1)
        assert found.angles[head] == pytest.approx(np.degrees(np.arccos(cosines)).sum(), abs=2e-2)
    assert found.angles.max() > 1


def test_small_angles_are_not_zero():
    """Where a float32 arc cosine gives 0: states turned by a millionth of a radian."""
    found = sweep_heads(tiny_model("llama"), token_prompts(ROWS), hidden=True, heads=[(0, 0)])
    u, s, v = np.linalg.svd(np.random.default_rng(0).standard_normal((5, 8)), full_matrices=False)
    s[:] = (9, 4, 3, 2, 1)
    turn = np.eye(5)
    turn[:2, :2] = [[np.cos(1e-6), -np.sin(1e-6)], [np.sin(1e-6), np.cos(1e-6)]]
    hidden = np.full((5, 3, 4, 8), np.nan)
    hidden[:, 0, 0] = (u @ turn) * s @ v
    turned = replace(found, clean_hidden=u * s @ v, hidden=hidden)
    assert angles(turned)[0, 0] == pytest.approx(np.degrees(1e-6), rel=1e-6)
    assert np.isnan(angles(turned)).sum() == 11


def test_an_ablation_that_changes_nothing_has_no_angle():
    found = dataset_ships(tiny_model("llama"), token_prompts(ROWS), epsilon=1.0, kl=True)
    assert (found.angles == 0).all()
    assert (found.sweep.kl == 0).all()


def test_too_few_prompts_and_bad_ranks():
    model = tiny_model("llama")
    with pytest.raises(DataError, match="1 prompts span"):
        dataset_ships(model, token_prompts(ROWS[:1]))
    with pytest.raises(DataError, match="every angle is 0"):
        dataset_ships(model, token_prompts(ROWS), rank=5)
    with pytest.raises(ConfigError, match="rank 0"):
        dataset_ships(model, token_prompts(ROWS), rank=0)
    with pytest.raises(ConfigError, match="hidden=True"):
        angles(sweep_heads(model, token_prompts(ROWS)))


def test_top_leaves_out_what_was_not_measured_and_keeps_order_in_ties():
    scores = np.array([[1.0, np.nan, 3.0], [3.0, 0.0, -np.inf]])
    assert top(scores, 9) == [(0, 2), (1, 0), (0, 0), (1, 1)]
    assert top(scores, 1) == [(0, 2)]
