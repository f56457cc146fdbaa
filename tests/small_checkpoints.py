"""Checkpoints of random weights written without a model library, for tests of what reads and writes them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama_tensors(seed=0, *, layers=2, hidden=40, vocabulary=300, dtype=torch.bfloat16, head=True):
    """name → tensor of a llama-like model; `seed` is of its noise, so that all seeds are tunings of one model."""
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if head:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"{at}.mlp.up_proj.weight"] = (2 * hidden + 1, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, 2 * hidden + 1)
    first, noise = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=first) * 0.02
        if seed:
            values += torch.randn(shape, generator=noise) * 0.003
        found[name] = values.to(dtype)
    return found


def write_checkpoint(folder, tensors, *, shards=1, tokens=("a", "b"), **config):
    """Write a folder; the tensors are dealt out to so many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(tensors)
        where = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
            save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
            where |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    shape = tensors["model.embed_tokens.weight"].shape if "model.embed_tokens.weight" in tensors else (0, 0)
    sizes = {"vocab_size": shape[0], "hidden_size": shape[1]}
    (folder / "config.json").write_text(json.dumps(LLAMA | sizes | config))
    if tokens:
        vocabulary = {"model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}}
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary | {"added_tokens": []}))
    return folder


def weights_of(folder):
    """name → tensor of a written checkpoint, single or sharded."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
