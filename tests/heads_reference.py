"""The slow obvious way to ablate a head: float64, one full forward for each, attention as the whole table.

Nothing here comes from guardkeel.heads: blocks are transformers' own, their attention and norms are written anew.
"""

from __future__ import annotations

import copy
import random
from functools import cache

import numpy as np
import torch

ARCHITECTURES = ("llama", "mistral", "granite", "gemma", "gemma2", "gemma3", "qwen2", "qwen3")
WINDOW = 5  # of sliding layers; shorter than the prompts


@cache
def tiny_model(architecture, heads=4, groups=2, layers=3, seed=0, **more):
    """A random model, float32 and in evaluation mode. Its norms' weights and its biases are random too."""
    import transformers as tf

    config = {
        "vocab_size": 96, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": 6, "max_position_embeddings": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    name, special = {
        "llama": ("Llama", {"attention_bias": True}),
        "mistral": ("Mistral", {"sliding_window": WINDOW}),
        "granite": (
            "Granite",
            {
                "attention_multiplier": 0.3, "embedding_multiplier": 4.0, "residual_multiplier": 0.6,
                "logits_scaling": 2.0,
            },
        ),
        "gemma": ("Gemma", {}),
        "gemma2": (
            "Gemma2",
            {
                "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 4.0,
            },
        ),
        "gemma3": (
            "Gemma3",
            {
                "query_pre_attn_scalar": 8, "sliding_window": WINDOW,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"][:layers],
            },
        ),
        "qwen2": ("Qwen2", {}),
        "qwen3": (
            "Qwen3",
            {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
    }[architecture]  # fmt: skip
    config |= special | more
    if architecture in ("qwen2", "granite"):  # theirs is the quotient
        del config["head_dim"]
        config["hidden_size"] = 6 * heads
    kind = name + ("TextConfig" if name == "Gemma3" else "Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(tf, name + "ForCausalLM")(getattr(tf, kind)(**config)).eval()
        for parameter, weight in model.named_parameters():
            offset = 1.0 if "norm" in parameter and not name.startswith("Gemma") else 0.0
            scale = 0.05 if "embed" in parameter else 0.3 if weight.dim() == 2 else 0.2
            weight.data = offset + scale * torch.randn_like(weight)
    return model.requires_grad_(False)


def prompts(count=5, seed=0, shared=4, vocabulary=96):
    """Rows of different length, two thirds of which begin alike; some go on alike, one is the beginning of another."""
    rng = random.Random(seed)
    head = [rng.randrange(3, vocabulary) for _ in range(shared)]
    rows = []
    for i in range(count):
        body = [rng.randrange(3, vocabulary) for _ in range(rng.randint(2, 9))]
        rows.append(body if i % 3 == 2 else head + body)
    if count > 3:
        rows[3] = [*rows[0], *rows[3][-2:]]
    return rows


def naive_kl(model, rows, ablations, mode="q", epsilon=1e-5, base=()):
    """KL(original ‖ ablated), (n, number of ablations); each ablation is a list of (layer, head)."""
    return np.array(naive(model, rows, ablations, mode, epsilon, base)[0])


def naive(model, rows, ablations, mode="q", epsilon=1e-5, base=()):
    """KL and final-norm states of the last token, (n, ablations) and (n, ablations, width), and clean states."""
    exact = _exact(model)
    kls, states, clean = [], [], []
    with torch.no_grad():
        for row in rows:
            first, state = _forward(exact, row, {}, mode, epsilon)
            clean.append(state.numpy())
            kls.append([])
            states.append([])
            for heads in ablations:
                found, state = _forward(exact, row, {*heads, *base}, mode, epsilon)
                kls[-1].append(float((first.exp() * (first - found)).sum()))
                states[-1].append(state.numpy())
    return np.array(kls), np.array(states), np.array(clean)


def every_head(model, mode="q"):
    """One ablation for each head, in order of layer and head; key/value heads in kv-group mode."""
    config = model.config
    count = config.num_key_value_heads if mode == "kv-group" else config.num_attention_heads
    return [[(layer, head)] for layer in range(config.num_hidden_layers) for head in range(count)]


def _forward(model, row, heads, mode, epsilon):
    kept = {}
    handle = model.model.norm.register_forward_hook(lambda m, i, out: kept.update(state=out[0, -1]))
    for layer, block in enumerate(model.model.layers):
        block.self_attn.ablate = ({h for at, h in heads if at == layer}, mode, epsilon)
    logits = model(torch.tensor([row]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits.log_softmax(-1), kept["state"]


@cache
def _exact(model):
    """A float64 copy whose attention and norms are the functions below."""
    exact = copy.deepcopy(model).double()
    exact.model.rotary_emb = model.model.rotary_emb  # its table is float32 for everyone
    gemma = type(model).__name__.startswith("Gemma")
    for module in exact.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = _norm(module, 1.0 if gemma else 0.0)
        if type(module).__name__.endswith("Attention"):
            module.forward = _attention(module, type(model).__name__)
    return exact


def _norm(module, offset):
    epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return lambda x: (module.weight + offset) * x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon)


def _attention(module, name):
    config = module.config
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, module.head_dim
    cap = config.attn_logit_softcapping if name.startswith("Gemma2") else None
    window = config.sliding_window if name.startswith("Mistral") else getattr(module, "sliding_window", None)

    def turned(x, cos, sin):  # (heads, tokens, width)
        half = width // 2
        other = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos + other * sin

    def forward(hidden_states, position_embeddings=None, **ignored):
        n = hidden_states.shape[1]
        cos, sin = (t[0].double() for t in position_embeddings)

        def split(projection, norm):
            made = projection(hidden_states)[0].view(n, -1, width).transpose(0, 1)
            return norm(made) if norm is not None else made

        q = turned(split(module.q_proj, getattr(module, "q_norm", None)), cos, sin)
        k = turned(split(module.k_proj, getattr(module, "k_norm", None)), cos, sin)
        v = split(module.v_proj, None)
        k, v = (
            torch.stack([t[h * groups // heads] for h in range(heads)]) for t in (k, v)
        )  # each its own copy
        chosen, mode, epsilon = module.ablate
        if mode == "kv-group":
            chosen = {h for h in range(heads) if h * groups // heads in chosen}
        edited_q, edited_k = q.clone(), k.clone()
        for h in chosen:
            if mode == "q":
                edited_q[h] = epsilon * q[h]
            elif mode in ("k", "kv-group"):
                edited_k[h] = epsilon * k[h]
            elif mode == "mean-q":
                edited_q[h] = epsilon * q[h] + (1 - epsilon) * q.mean(0)
            elif mode == "mean-k":
                edited_k[h] = epsilon * k[h] + (1 - epsilon) * k.mean(0)
        scores = torch.einsum("hiw,hjw->hij", edited_q, edited_k) * module.scaling
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        seen = torch.tensor(
            [[j <= i and (window is None or j > i - window) for j in range(n)] for i in range(n)]
        )
        weights = torch.where(seen, torch.exp(scores - scores.amax(-1, keepdim=True)), 0.0)
        z = torch.einsum("hij,hjw->hiw", weights / weights.sum(-1, keepdim=True), v)
        edited = z.clone()
        for h in chosen:
            if mode == "v":
                edited[h] = epsilon * z[h]
            elif mode == "mean-v":
                edited[h] = epsilon * z[h] + (1 - epsilon) * z.mean(0)
        return module.o_proj(edited.transpose(0, 1).reshape(1, n, -1)), None

    return forward


def same_top(ours, reference, count=10, near=1e-4):
    """Whether the highest `count` of ours are the reference's, ties (within `near`) apart."""
    ours, reference = np.ravel(ours), np.ravel(reference)
    count = min(count, ours.size)
    last = np.sort(reference)[-count]
    best = np.argsort(-ours, kind="stable")[:count]
    return bool((reference[best] >= last - near).all())
