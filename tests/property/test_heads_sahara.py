"""Every step of Sahara takes the best head there is: all groups tried one by one, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.errors import ConfigError, DataError
from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.sahara import find_group
from heads_reference import every_head, naive, prompts, tiny_model

NEAR = {"kl": 1e-4, "dataset": 0.05}  # nats; degrees


def brute(model, rows, group, candidates, mode, measure):
    """The score of every G ∪ {h}."""
    kl, states, clean = naive(model, rows, [[h] for h in candidates], mode, base=group)
    if measure == "kl":
        return kl.mean(0)
    before = np.linalg.svd(clean)[0][:, 0]
    after = [np.linalg.svd(states[:, i])[0][:, 0] for i in range(len(candidates))]
    return np.array([np.degrees(np.arccos(min(1.0, abs(before @ a)))) for a in after])


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 50),
    architecture=st.sampled_from(["llama", "gemma2", "qwen3"]),
    mode=st.sampled_from(["q", "v", "mean-q", "kv-group"]),
    measure=st.sampled_from(["kl", "dataset"]),
)
def test_greedy_choice(seed, architecture, mode, measure):
    model = tiny_model(architecture, layers=2, seed=seed)
    rows = prompts(3, seed=seed)
    found = find_group(model, token_prompts(rows), size=2, measure=measure, mode=mode)
    left = [h for (h,) in every_head(model, mode)]
    group = []
    for step, (head, score) in enumerate(zip(found.heads, found.scores, strict=True)):
        reference = brute(model, rows, group, left, mode, measure)
        ours = np.array([found.steps[step][h] for h in left])
        assert np.abs(ours - reference).max() <= NEAR[measure]
        assert reference[left.index(head)] >= reference.max() - NEAR[measure]
        assert score == ours.max() == found.steps[step][head]
        assert all(np.isnan(found.steps[step][h]) for h in group)
        group.append(head)
        left.remove(head)


def test_progress_runs_over_all_steps_and_resumes(tmp_path):
    model, asked, done = tiny_model("llama"), token_prompts(prompts(4)), []
    first = find_group(
        model, asked, size=3, folder=tmp_path, progress=lambda *said: done.append(said[1] / said[2])
    )
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert len(list(tmp_path.iterdir())) == 3
    again = find_group(model, asked, size=3, folder=tmp_path)
    assert again.heads == first.heads
    assert len(set(first.heads)) == 3
    assert again.scores == first.scores


def test_candidates():
    found = find_group(
        tiny_model("llama"), token_prompts(prompts(4)), size=2, heads=[(0, 1), (2, 2)], measure="kl"
    )
    assert sorted(found.heads) == [(0, 1), (2, 2)]


def test_bad_options():
    model, asked = tiny_model("llama"), token_prompts(prompts(4))
    for options in (
        {"size": 0},
        {"size": 6},
        {"measure": "loss"},
        {"size": 2, "heads": [(0, 0)]},
        {"rank": 0},
    ):
        with pytest.raises(ConfigError):
            find_group(model, asked, **options)
    with pytest.raises(DataError):
        find_group(model, asked[:1])
