"""Which models can be looked at by head, and what is said of those that cannot."""

import copy

import peft
import pytest
import torch
import transformers as tf

from guardkeel.errors import ConfigError, DataError, ModelError
from guardkeel.heads.ablation import ablated
from guardkeel.heads.layout import layout_of
from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.sweep import sweep_heads
from heads_reference import ARCHITECTURES, WINDOW, tiny_model

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_found(architecture):
    found = layout_of(tiny_model(architecture))
    assert (found.layers, found.heads, found.groups, found.width) == (3, 4, 2, 6)
    windows = {"mistral": [WINDOW] * 3, "gemma2": [WINDOW, None, WINDOW], "gemma3": [WINDOW, None, WINDOW]}
    windows["qwen3"] = [None, WINDOW, WINDOW]
    assert [b.window for b in found.blocks] == windows.get(architecture, [None] * 3)
    assert found.softcap == (2.0 if architecture == "gemma2" else None)
    assert found.residual == (0.6 if architecture == "granite" else 1.0)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2), "GPT2LMHeadModel"),
        (tf.PhiConfig(**SMALL, intermediate_size=16), "PhiAttention"),
        (tf.Olmo2Config(**SMALL, intermediate_size=16), "Olmo2Attention"),
    ],
)
def test_other_attention_is_named_with_what_is_supported(config, words):
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match=rf"(?s){words}.*supported are Llama, Mistral, .*Qwen3"):
        layout_of(model)


def llama(**options):
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, intermediate_size=16, **options)).eval()


def test_a_classifier_has_no_next_token():
    model = tf.LlamaForSequenceClassification(tf.LlamaConfig(**SMALL, intermediate_size=16)).eval()
    with pytest.raises(ModelError, match="no language-model head"):
        layout_of(model)


def test_rotary_embeddings_that_change_with_the_length():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match=r"dynamic.*length"):
        layout_of(llama(rope_parameters=rope))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
            "original_max_position_embeddings": 16,
        },
    ],
)  # fmt: skip
def test_other_rotary_embeddings(rope):
    """The sweep compares itself with the model's own forward: here it must agree."""
    found = sweep_heads(llama(rope_parameters=rope), token_prompts([list(range(3, 30))]))
    assert (found.kl >= 0).all()


def test_training_mode():
    with pytest.raises(ModelError, match=r"(?s)training mode.*eval"):
        sweep_heads(llama().train(), token_prompts([[3]]))


def test_token_ids_of_another_tokenizer():
    with pytest.raises(DataError, match=r"'1' has token ids from 3 to 32, the model knows 0 to 31"):
        sweep_heads(llama(), token_prompts([[3], [3, 32]]))


def test_where_a_heads_weights_are():
    """Scaling those rows and columns is ablating the head, where no bias and no norm is in between."""
    model = tiny_model("granite")
    row = token_prompts([[5, 6, 7, 8, 9]])
    swept = {
        mode: sweep_heads(model, row, mode=mode, epsilon=0.1).kl[0, 1] for mode in ("q", "v", "kv-group")
    }
    found = layout_of(model)

    def scaled(projections, head):
        other = copy.deepcopy(model)
        for name in projections:
            axis, where = found.slices(head)[name]
            getattr(other.model.layers[1].self_attn, name).weight.data.narrow(
                axis, where.start, where.stop - where.start
            ).mul_(0.1)
        p, q = (m(torch.tensor([row[0].ids])).logits[0, -1].double().log_softmax(-1) for m in (model, other))
        return float((p.exp() * (p - q)).sum())

    assert scaled(["q_proj"], 2) == pytest.approx(swept["q"][2], abs=1e-5)
    assert scaled(["o_proj"], 2) == pytest.approx(swept["v"][2], abs=1e-5)
    assert scaled(["k_proj"], 3) == pytest.approx(swept["kv-group"][1], abs=1e-5)


def test_tokens_that_see_later_ones():
    config = tf.Gemma3TextConfig(**SMALL, intermediate_size=16, head_dim=8, use_bidirectional_attention=True)
    with pytest.raises(ModelError, match="see later ones"):
        layout_of(tf.Gemma3ForCausalLM(config).eval())


def test_prompt_learning_adapters():
    model = peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="prompt-learning"):
        layout_of(model.eval())


def test_a_model_that_is_being_ablated_is_not_swept():
    model = tiny_model("llama")
    with ablated(model, [(0, 0)]), pytest.raises(ConfigError, match="being ablated"):
        sweep_heads(model, token_prompts([[3, 4]]))


def test_a_forward_that_is_not_what_its_parts_say():
    """A block that does more than layout.py knows is noticed, never swept wrongly."""
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[1].register_forward_hook(lambda m, i, out: out * 1.5)
    with pytest.raises(ModelError, match="computes otherwise"):
        sweep_heads(model, token_prompts([[3, 4, 5]]))


def test_numbers_that_are_not_finite():
    model = copy.deepcopy(tiny_model("llama"))
    model.lm_head.weight.data[3] = torch.inf
    with pytest.raises(ModelError, match=r"(?s)'0'.*not finite.*float32"):
        sweep_heads(model, token_prompts([[3, 4, 5]]))
