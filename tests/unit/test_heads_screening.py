"""Screening estimates beside exact values: how well they rank, and that what is exact is said and is exact."""

import copy

import numpy as np
import pytest
from scipy.stats import spearmanr

from guardkeel.errors import ConfigError
from guardkeel.heads.ablation import ablated
from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.screening import screen
from guardkeel.heads.ships import dataset_ships, query_ships
from heads_reference import prompts, tiny_model

ROWS = prompts(5, seed=6)


def gentle(architecture="llama", **options):
    """A model in which one head does little beside the rest, as in real ones: there the estimates hold."""
    model = copy.deepcopy(tiny_model(architecture, **options))
    for block in model.model.layers:
        block.self_attn.o_proj.weight.data *= 0.005
        if architecture == "gemma2":  # whose norm would make up for it; its factor is 1 + weight
            norm = block.post_attention_layernorm.weight
            norm.data = 0.005 * (1 + norm) - 1
    return model


@pytest.mark.parametrize("mode", ["q", "v", "mean-k", "kv-group"])
@pytest.mark.parametrize("architecture", ["llama", "granite", "gemma2"])
def test_second_order(architecture, mode):
    """At small effects the form is the KL itself, as far as the tokens it looks at hold the mass."""
    model = gentle(architecture, vocab_size=16)
    exact = query_ships(model, token_prompts([[t % 16 for t in row] for row in ROWS]), mode=mode)
    asked = token_prompts([[t % 16 for t in row] for row in ROWS])
    found = screen(model, asked, how="second-order", mode=mode, rescore=3)
    if architecture != "gemma2":  # a norm of what the heads give is not linear, however small they are
        assert found.estimates == pytest.approx(exact.mean, rel=0.2, abs=1e-7)
    assert spearmanr(found.estimates.ravel(), exact.mean.ravel()).statistic > 0.8
    assert found.exact.sum() == 3
    assert np.abs(found.values - exact.mean)[found.exact].max() < 1e-6
    assert found.top(2) == exact.top(2)


@pytest.mark.parametrize("rank", [1, 2])
def test_gradient(rank):
    model, asked = gentle(), token_prompts(ROWS)
    exact = dataset_ships(model, asked, rank=rank)
    found = screen(model, asked, how="gradient", measure="dataset", rank=rank, rescore=4)
    assert spearmanr(found.estimates.ravel(), exact.angles.ravel()).statistic > 0.8
    assert np.abs(found.values - exact.angles)[found.exact].max() < 1e-4
    assert exact.top(1)[0] in found.top(4)


@pytest.mark.parametrize("measure", ["kl", "dataset"])
def test_bf16(measure):
    model, asked = tiny_model("qwen3"), token_prompts(ROWS)
    found = screen(model, asked, how="bf16", measure=measure, rescore=6)
    options = {"kl": query_ships(model, asked).mean, "dataset": dataset_ships(model, asked).angles}
    exact = options[measure]
    assert spearmanr(found.estimates.ravel(), exact.ravel()).statistic > 0.9
    assert np.abs(found.estimates - exact).max() > 1e-6  # they are estimates
    assert np.abs(found.values - exact)[found.exact].max() < 1e-4
    assert np.array_equal(found.values[~found.exact], found.estimates[~found.exact])
    assert next(model.parameters()).dtype.itemsize == 4  # the model is what it was


def test_plain_first_order_would_give_nothing():
    """Why the form is of second order: KL has no slope at the clean point."""
    import torch

    model, row = gentle(), torch.tensor([ROWS[0]])
    p = model(row).logits[0, -1].log_softmax(-1)
    kls = []
    for epsilon in (0.5, 0.75):  # half the step, a quarter of the KL
        with ablated(model, [(1, 1)], "v", epsilon):
            q = model(row).logits[0, -1].log_softmax(-1)
        kls.append(float((p.double().exp() * (p.double() - q.double())).sum()))
    assert kls[0] / kls[1] == pytest.approx(4, rel=0.1)


def test_bad_options():
    model, asked = tiny_model("llama"), token_prompts(ROWS)
    for options in (
        {"how": "magic"},
        {"how": "second-order", "measure": "dataset"},
        {"how": "gradient", "measure": "kl"},
        {"rescore": 0},
    ):
        with pytest.raises(ConfigError):
            screen(model, asked, **options)
