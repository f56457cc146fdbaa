"""The fast sweep against one full float64 forward for every head: every architecture, every mode, every way to run."""

import numpy as np
import pytest
import torch

from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.sweep import sweep_heads
from heads_reference import ARCHITECTURES, every_head, naive, naive_kl, prompts, same_top, tiny_model

TOLERANCE = 1e-4
ROWS = prompts(4)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def agree(model, rows, mode="q", epsilon=1e-5, **options):
    found = sweep_heads(model, token_prompts(rows), mode=mode, epsilon=epsilon, **options)
    reference = naive_kl(model, rows, every_head(model, mode), mode, epsilon).reshape(found.kl.shape)
    assert reference.max() > 100 * TOLERANCE  # there is something to find
    assert found.kl.dtype == np.float64
    assert np.abs(found.kl - reference).max() <= TOLERANCE
    assert same_top(found.kl.mean(0), reference.mean(0), near=TOLERANCE)
    for mine, theirs in zip(found.kl, reference, strict=True):
        assert same_top(mine, theirs, near=TOLERANCE)
    return found


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture, groups):
    agree(tiny_model(architecture, groups=groups, seed=groups), ROWS)


@pytest.mark.parametrize("mode", ["k", "v", "mean-q", "mean-k", "mean-v", "kv-group"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_every_mode(architecture, mode):
    agree(tiny_model(architecture), ROWS, mode)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_every_strength(epsilon):
    agree(tiny_model("llama"), ROWS, epsilon=epsilon)


def test_deeper_model_of_other_width():
    agree(tiny_model("llama", heads=6, groups=3, layers=4, seed=5, head_dim=10), ROWS[:3])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_ways_to_run_it_change_nothing(architecture):
    """Sharing, waves of one variant, shards of a prompt or two: rounding apart, the same numbers."""
    model = tiny_model(architecture)
    rows = prompts(7, seed=3)
    plain = agree(model, rows, share=False)
    shared = sweep_heads(model, token_prompts(rows))
    least = least_memory(model, rows)
    tight = sweep_heads(model, token_prompts(rows), memory=least)
    assert shared.plan.shard_tokens[0] < plain.plan.shard_tokens[0]
    assert tight.plan.wave == 1
    assert len(tight.plan.shards) > 1
    assert tight.plan.bytes <= least
    assert len(tight.notes) == 2  # what memory cost is said
    for other in (shared, tight):
        assert np.abs(other.kl - plain.kl).max() < 1e-5
        assert np.abs(other.clean_hidden - plain.clean_hidden).max() < 1e-4


def least_memory(model, rows):
    """The smallest budget, within a factor of 1.05, under which a sweep is planned."""
    from guardkeel.errors import RunError
    from guardkeel.heads.plan import plan_sweep

    budget = plan_sweep(model, token_prompts(rows)).bytes
    while True:
        try:
            plan_sweep(model, token_prompts(rows), memory=int(budget / 1.05))
        except RunError:
            return int(budget)
        budget /= 1.05


def test_long_prompts_go_through_attention_in_pieces():
    """Longer than a stretch of queries, with branches at odd places."""
    model = tiny_model("gemma2", layers=2)
    long = prompts(1, shared=90)[0]
    rows = [long, [*long[:70], 5, 6, 7], long[:30] + [9] * 41, [8, 9]]
    found = sweep_heads(model, token_prompts(rows))
    alone = [sweep_heads(model, token_prompts([row])).kl[0] for row in rows]
    assert found.plan.shard_tokens[0] < sum(map(len, rows)) - 90
    assert np.abs(found.kl - np.array(alone)).max() < 1e-5
    reference = naive_kl(model, rows[2:], every_head(model)).reshape(2, 2, 4)
    assert np.abs(found.kl[2:] - reference).max() <= TOLERANCE


@pytest.mark.parametrize("mode", ["q", "k", "v", "mean-q", "mean-k", "mean-v", "kv-group"])
def test_epsilon_one_is_exactly_nothing(mode):
    found = sweep_heads(tiny_model("llama"), token_prompts(ROWS), mode=mode, epsilon=1.0, hidden=True)
    assert (found.kl == 0.0).all()
    assert (found.hidden == found.clean_hidden[:, None, None]).all()


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
@pytest.mark.parametrize("mode", ["q", "mean-k", "kv-group"])
def test_on_top_of_an_ablated_group(architecture, mode):
    model = tiny_model(architecture)
    group = [(0, 1), (1, 0), (2, 1)]
    others = [h for h in every_head(model, mode) if h[0] not in group]
    found = sweep_heads(model, token_prompts(ROWS), mode=mode, within=group, hidden=True)
    kl, states, clean = naive(model, ROWS, others, mode, base=group)
    at = tuple(np.array([h[0] for h in others]).T)
    assert np.abs(found.kl[:, *at] - kl).max() <= TOLERANCE
    assert np.abs(found.hidden[:, *at] - states).max() < 1e-3
    assert np.abs(found.clean_hidden - clean).max() < 1e-3
    base = naive_kl(model, ROWS, [group], mode)[:, 0]
    assert np.abs(found.base_kl - base).max() <= TOLERANCE
    for layer, head in group:  # what is ablated already changes nothing more
        assert (found.kl[:, layer, head] == found.base_kl).all()


def test_only_some_heads():
    model = tiny_model("llama")
    every = sweep_heads(model, token_prompts(ROWS))
    some = sweep_heads(model, token_prompts(ROWS), heads=[(2, 3), (0, 1)])
    for head in ((2, 3), (0, 1)):
        assert np.abs(some.kl[:, *head] - every.kl[:, *head]).max() < 1e-6
    assert np.isnan(some.kl).sum() == some.kl.size - 2 * len(ROWS)


def test_verdict_log_odds():
    """Of every variant and of the model as it is: log P(unsafe tokens) / P(safe tokens)."""
    from dataclasses import replace

    from guardkeel.heads.ablation import ablated

    model = tiny_model("qwen2")
    asked = [replace(p, unsafe=(5, 7), safe=(6,)) for p in token_prompts(ROWS)]
    asked[1] = replace(asked[1], unsafe=(), safe=())
    found = sweep_heads(model, asked)

    def odds(row):
        p = model(torch.tensor([row])).logits[0, -1].double().softmax(-1)
        return float(torch.log((p[5] + p[7]) / p[6]))

    assert found.clean_log_odds[[0, 2, 3]] == pytest.approx([odds(ROWS[i]) for i in (0, 2, 3)], abs=1e-5)
    assert np.isnan(found.clean_log_odds[1])
    assert np.isnan(found.log_odds[1]).all()
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        with ablated(model, [(layer, head)]):
            for i in (0, 2, 3):
                assert found.log_odds[i, layer, head] == pytest.approx(odds(ROWS[i]), abs=1e-4)


def test_an_adapter_that_is_not_merged():
    """LoRA on every projection, the feed-forward part included: as if it were merged."""
    import copy

    import peft

    base = copy.deepcopy(tiny_model("llama"))
    torch.manual_seed(1)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    ).eval()
    found = sweep_heads(model, token_prompts(ROWS))
    merged = copy.deepcopy(model).merge_and_unload()
    other = sweep_heads(merged, token_prompts(ROWS))
    assert (
        np.abs(other.kl - sweep_heads(tiny_model("llama"), token_prompts(ROWS)).kl).max() > 0.01
    )  # it does something
    assert np.abs(found.kl - other.kl).max() < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_on_cuda(architecture):
    import copy

    model = copy.deepcopy(tiny_model(architecture))
    reference = naive_kl(model, ROWS, every_head(model)).reshape(len(ROWS), 3, 4)
    found = sweep_heads(model.cuda(), token_prompts(ROWS))
    assert np.abs(found.kl - reference).max() <= TOLERANCE
