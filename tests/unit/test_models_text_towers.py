"""Guards that see images (Llama Guard 4, Llama Guard 3 Vision) judge texts with their language model alone."""

import pytest
import torch

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import load_guard
from guardkeel.models.tiny import tiny_tokenizer

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "pad_token_id": 3, "bos_token_id": 4, "eos_token_id": 8,
}  # fmt: skip


def llama4(vocabulary):
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = {
        **TEXT, "vocab_size": vocabulary, "intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 1,
        "num_experts_per_tok": 1, "attention_chunk_size": 64, "moe_layers": [],
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
        "projector_output_dim": 16,
    }  # fmt: skip
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))


def mllama(vocabulary):
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    text = {**TEXT, "vocab_size": vocabulary, "cross_attention_layers": [1]}
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
        "intermediate_size": 32, "image_size": 28, "patch_size": 14, "vision_output_dim": 32,
        "intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    return MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=vision))


@pytest.mark.parametrize("make", [llama4, mllama])
def test_a_guard_with_eyes_judges_texts(make, tmp_path, recwarn):
    tokenizer = tiny_tokenizer("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = make(len(tokenizer)).eval()
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    guard = load_guard(str(tmp_path), family="keel", dtype="float32")
    assert not [w for w in recwarn if "stored weights" in str(w.message)]
    assert type(guard.model).__name__.endswith("ForCausalLM")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        assert torch.allclose(guard.model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    (verdict,) = guard.score([Judgement("a", Conversation.of("Please write a poem."), "prompt")])
    assert verdict.unsafe is not None or "not a verdict" in verdict.unscored
