"""`with ablated(model, heads): …` on tiny models: what it changes, and that nothing is left of it."""

import copy

import numpy as np
import pytest
import torch

from guardkeel.errors import ConfigError, ModelError
from guardkeel.heads.ablation import MODES, ablated
from guardkeel.heads.layout import layout_of
from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.sweep import sweep_heads
from heads_reference import ARCHITECTURES, naive_kl, prompts, tiny_model

ROWS = prompts(3)


def logits(model, row=ROWS[0]):
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0, -1].double()


def kl(before, after):
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_as_the_reference_does(architecture):
    model = tiny_model(architecture)
    before = logits(model)
    for heads in ([(1, 2)], [(0, 0), (0, 3), (2, 1)]):
        with ablated(model, heads):
            found = kl(before, logits(model))
        assert found == pytest.approx(naive_kl(model, ROWS[:1], [heads])[0, 0], abs=1e-4)
    assert torch.equal(before, logits(model))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_with_either_attention(mode, implementation):
    model = copy.deepcopy(tiny_model("llama"))
    model.set_attn_implementation(implementation)
    before = logits(model)
    with ablated(model, [(0, 1), (2, 0)], mode):
        found = kl(before, logits(model))
    assert found == pytest.approx(
        naive_kl(tiny_model("llama"), ROWS[:1], [[(0, 1), (2, 0)]], mode)[0, 0], abs=1e-4
    )
    assert model.config._attn_implementation == implementation


def test_weights_are_means_over_visible_tokens():
    """Undifferentiated attention: the head's output is the running mean of its values."""
    model = tiny_model("llama")
    seen = {}
    block = model.model.layers[1].self_attn
    handles = [
        block.v_proj.register_forward_hook(lambda m, i, out: seen.update(v=out[0])),
        block.o_proj.register_forward_pre_hook(lambda m, i: seen.update(z=i[0][0])),
    ]
    with ablated(model, [(1, 3)], epsilon=0.0):
        logits(model)
    for handle in handles:
        handle.remove()
    values = seen["v"].view(len(ROWS[0]), 2, 6)[:, 1]  # head 3 is of the second key/value head
    means = values.cumsum(0) / torch.arange(1, len(ROWS[0]) + 1)[:, None]
    assert torch.allclose(seen["z"][:, 18:24], means, atol=1e-6)


def test_nothing_is_left_after_an_exception():
    model = tiny_model("gemma3")
    before, attributes = logits(model), [sorted(vars(b.attention)) for b in layout_of(model).blocks]
    name = model.config._attn_implementation
    with pytest.raises(KeyError), ablated(model, [(0, 0), (1, 1)]):
        assert not torch.equal(logits(model), before)
        raise KeyError
    assert torch.equal(logits(model), before)
    assert [sorted(vars(b.attention)) for b in layout_of(model).blocks] == attributes
    assert model.config._attn_implementation == name


def test_nested():
    model = tiny_model("qwen3")
    before = logits(model)
    with ablated(model, [(0, 1)]):
        one = logits(model)
        with pytest.raises(ValueError, match="inside"), ablated(model, [(2, 3), (0, 2)]):
            both = logits(model)
            raise ValueError("inside")
        assert torch.equal(logits(model), one)
    with ablated(model, [(0, 1), (0, 2), (2, 3)]):
        assert torch.allclose(logits(model), both, atol=1e-6)
    with ablated(model, [(0, 1)], "v"), ablated(model, [(0, 1)], "q"):
        assert torch.allclose(logits(model), one, atol=1e-6)  # the inner one has the word
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("mode", MODES)
def test_epsilon_one_is_exactly_nothing(mode):
    model = tiny_model("llama")
    before = logits(model)
    with ablated(model, [(0, 1), (1, 0)], mode, epsilon=1.0):
        assert torch.equal(logits(model), before)


def test_other_models_are_not_touched():
    model = tiny_model("llama")
    other = copy.deepcopy(model)
    before = logits(other)
    with ablated(model, [(0, 0)]):
        assert torch.equal(logits(other), before)
        assert not torch.equal(logits(model), before)


def test_generation_with_a_cache():
    """Token by token from a cache as in one forward: the cache holds what is not ablated."""
    model = tiny_model("qwen2")
    with ablated(model, [(0, 0), (1, 2), (2, 1)], "mean-k"):
        made = model.generate(
            torch.tensor([ROWS[0]]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()
        greedy = list(ROWS[0])
        for _ in range(6):
            greedy.append(int(logits(model, greedy).argmax()))
    plain = model.generate(
        torch.tensor([ROWS[0]]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    assert made == greedy
    assert made != plain


def test_a_guard_scores_under_it(tiny_loaded):
    """Verdicts through the guard's own engine, shared prefix included, are those of the ablated model."""
    from guard_doubles import EveryToken, items
    from guardkeel.guards.causal import CausalGuard

    model, tokenizer = tiny_loaded("llama")
    guard = CausalGuard(model, tokenizer, EveryToken(), name="tiny")
    before = [v.unsafe for v in guard.score(items()[:4])]
    with ablated(model, [(0, 1), (1, 3)]):
        shared = [v.unsafe for v in guard.score(items()[:4])]
        plain = CausalGuard(model, tokenizer, EveryToken(), name="tiny", share_prefix=False)
        alone = [v.unsafe for v in plain.score(items()[:4])]
    assert shared == pytest.approx(alone, abs=1e-5)
    assert np.abs(np.array(shared) - before).max() > 1e-3
    assert [v.unsafe for v in guard.score(items()[:4])] == before


def test_fused_attention_is_left_for_the_time_and_said():
    model = copy.deepcopy(tiny_model("llama"))
    before = logits(model)
    model.config._attn_implementation = "flex_attention"
    with pytest.warns(UserWarning, match=r"flex_attention.*eager"), ablated(model, [(1, 2)]):
        found = kl(before, logits(model))
    assert found == pytest.approx(naive_kl(tiny_model("llama"), ROWS[:1], [[(1, 2)]])[0, 0], abs=1e-4)
    assert model.config._attn_implementation == "flex_attention"
    assert "flex_attention" in layout_of(model).notes[0]


def test_an_adapter_is_seen_through():
    import peft

    torch.manual_seed(0)
    base = copy.deepcopy(tiny_model("llama"))
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    before = logits(model)
    swept = sweep_heads(model, token_prompts(ROWS[:1]))
    with ablated(model, [(1, 2)]):
        assert kl(before, logits(model)) == pytest.approx(swept.kl[0, 1, 2], abs=1e-5)


@pytest.mark.parametrize("heads", [[(3, 0)], [(0, 4)], [(-1, 0)], [(0, 0), (0, -1)]])
def test_heads_that_are_not_there(heads):
    with (
        pytest.raises(ModelError, match=r"no head .*-.*\n.*layers are 0 to 2, heads 0 to 3"),
        ablated(tiny_model("llama"), heads),
    ):
        pass


def test_there_are_fewer_groups_than_heads():
    with pytest.raises(ModelError, match="heads 0 to 1"), ablated(tiny_model("llama"), [(0, 2)], "kv-group"):
        pass


@pytest.mark.parametrize(("mode", "epsilon"), [("o", 1e-5), ("q", -1.0), ("q", 1.5), ("q", float("nan"))])
def test_bad_options(mode, epsilon):
    with pytest.raises(ConfigError), ablated(tiny_model("llama"), [(0, 0)], mode, epsilon):
        pass
    with pytest.raises(ConfigError):
        sweep_heads(tiny_model("llama"), token_prompts(ROWS), mode=mode, epsilon=epsilon)
