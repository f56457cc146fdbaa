"""Tiny random models with a real tokenizer, for tests: real architectures, real files, no download.

Two layers of 32 hidden units, about 600 tokens: a model is written in well under a second. Weights are
wider than in real initialisations, so that different texts give clearly different outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.models.quiet import quiet

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|start_of_role|>", "<|end_of_role|>",
    "[INST]", "[/INST]", "[CLS]", "[SEP]", "[MASK]", "[UNK]",
)  # fmt: skip

SENTENCES = (
    "safe",
    "unsafe",
    "safe safe safe safe",
    "unsafe unsafe unsafe unsafe",
    "yes no yes no Yes No Yes No",
    "The user asks how to reset a bank password and the assistant explains the steps.",
    "Is this message safe or unsafe? The answer is safe.",
    "Is this message safe or unsafe? The answer is unsafe.",
    "system user assistant tool system user assistant tool",
    "Task: check if there is unsafe content in the conversation below.",
    "Please write a short poem about the sea and the ships that sail on it.",
    "My account shows a payment of 120.50 that I did not make on 3 May.",
    "What is the derivative of x squared? It is two x.",
    "Violence Harassment Privacy Fraud Weapons Other",
    "Provide your safety assessment for the user in this conversation.",
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

CAUSAL = ("llama", "mistral", "granite", "gemma2", "gemma3", "qwen2", "qwen3")
CLASSIFIERS = ("deberta-v2", "bert")
ARCHITECTURES = (*CAUSAL, *CLASSIFIERS)

_LENGTH = 2048


def make_tiny(
    architecture: str,
    folder: str | Path,
    seed: int = 0,
    *,
    layers: int = 2,
    labels: Sequence[str] = ("safe", "unsafe"),
) -> Path:
    """Write a tiny random model and its tokenizer to `folder`; the same arguments give the same bytes.

    Args:
        architecture: one of ARCHITECTURES. Classifiers are sequence classifiers with `labels`.
        folder: created when it is not there.
        seed: of the weights.
        layers: number of layers.
        labels: of a classifier, in order.

    Raises:
        ConfigError: the architecture is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"no tiny {architecture!r}", remedy=f"use one of {', '.join(ARCHITECTURES)}")
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(architecture, tokenizer, layers, labels)
    with quiet():
        model.eval().save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def tiny_tokenizer(architecture: str = "llama") -> Any:
    """A byte-level BPE tokenizer trained on SENTENCES, with the special tokens of the guards' templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    template = CHATML
    if architecture == "llama":
        named["eos_token"], template = "<|eot_id|>", LLAMA3
    if architecture in CLASSIFIERS:
        named = {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "unk_token": "[UNK]",
            "pad_token": "<pad>",
        }
        ends = [(t, bpe.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
        bpe.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=_LENGTH, padding_side="right", **named
    )
    if architecture in CAUSAL:
        tokenizer.chat_template = template
    return tokenizer


def _model(architecture: str, tokenizer: Any, layers: int, labels: Sequence[str]) -> Any:
    import transformers as tf

    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": _LENGTH,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture in CLASSIFIERS:
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        if architecture == "bert":
            return tf.BertForSequenceClassification(tf.BertConfig(**shared, **names))
        disentangled: dict[str, Any] = {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
        }
        return tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**shared, **names, **disentangled))
    causal = {
        **shared,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": architecture in ("gemma2", "gemma3", "granite", "qwen3"),
    }
    if architecture in ("gemma2", "gemma3"):
        causal |= {"query_pre_attn_scalar": 8, "sliding_window": 512}
    if architecture == "granite":
        causal |= {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 4.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        }
        del causal["head_dim"]
    if architecture == "qwen2":
        del causal["head_dim"]
    config, model = {
        "llama": (tf.LlamaConfig, tf.LlamaForCausalLM),
        "mistral": (tf.MistralConfig, tf.MistralForCausalLM),
        "granite": (tf.GraniteConfig, tf.GraniteForCausalLM),
        "gemma2": (tf.Gemma2Config, tf.Gemma2ForCausalLM),
        "gemma3": (tf.Gemma3TextConfig, tf.Gemma3ForCausalLM),
        "qwen2": (tf.Qwen2Config, tf.Qwen2ForCausalLM),
        "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM),
    }[architecture]
    return model(config(**causal))
