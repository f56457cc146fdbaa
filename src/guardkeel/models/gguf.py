"""GGUF checkpoint → transformers folder: bf16 safetensors, config.json, tokenizer.

The weights are dequantised with the `gguf` package's own reference code and named for transformers; the
things that llama.cpp changes when it writes a GGUF are undone (rotary permutation of query and key rows,
the 1 that it adds to Gemma's norm weights, the frequency factors of Llama 3's long context).
The folder appears under its name only when it is complete (temporary folder, fsync, rename).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError
from guardkeel.models import gguf_tokenizer
from guardkeel.resources import Progress, lock

CONVERSION = 1
"""Raised when the written bytes change, so that a cache does not serve an older conversion."""

SHARD_BYTES = 4 * 1024**3

_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_PLAIN_NORMS = {"ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# GGUF architecture → (transformers model_type, class, rotary rows permuted, Gemma norms)
_ARCHITECTURES: dict[str, tuple[str, str, bool, bool]] = {
    "llama": ("llama", "LlamaForCausalLM", True, False),
    "granite": ("granite", "GraniteForCausalLM", True, False),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", False, False),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", False, False),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", False, True),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", False, True),
}


def convert_gguf(gguf_path: str | Path, out_dir: str | Path, progress: Progress | None = None) -> Path:
    """Convert one GGUF file to a transformers folder and return the folder.

    A folder that is already there is returned as it is: it can only be there complete.

    Raises:
        ModelError: the file is missing, is not GGUF, is cut short, or has an architecture, a tensor or a
            tokenizer that this conversion does not know.
    """
    gguf_path, out_dir = Path(gguf_path), Path(out_dir)
    if (out_dir / "config.json").is_file():
        return out_dir
    if out_dir.exists():
        raise ModelError(
            f"{out_dir}: exists and is not a converted model",
            remedy="give another folder, or remove this one",
        )
    reader = _open(gguf_path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    architecture = str(fields.get("general.architecture", ""))
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{gguf_path}: GGUF architecture {architecture!r} is not supported",
            remedy=f"use one of {', '.join(sorted(_ARCHITECTURES))}, or the model's safetensors checkpoint",
        )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with lock(out_dir, progress):
        if (out_dir / "config.json").is_file():  # another process was first
            return out_dir
        # One name, used under the lock: what a killed process left there is removed by the next.
        temporary = out_dir.parent / f".{out_dir.name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write(gguf_path, reader, fields, temporary, progress)
            temporary.rename(out_dir)
        except OSError as e:
            raise ModelError(
                f"{out_dir}: the converted model cannot be written: {e}",
                remedy="free disk space, or give another folder",
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def _write(path: Path, reader: Any, fields: dict[str, Any], folder: Path, progress: Progress | None) -> None:
    config = _config(path, fields, reader)
    architecture = str(fields["general.architecture"])
    _write_weights(folder, _tensors(path, reader, architecture, config, progress))
    gguf_tokenizer.write_tokenizer(path, fields, folder)
    generation = {k: v for k, v in config.items() if k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
    for file in folder.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file", remedy="check the path")
    with path.open("rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{path}: not a GGUF file (it begins with {magic!r})", remedy="fetch the file again")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except Exception as e:  # the reader fails with whatever numpy or struct says about missing bytes
        raise ModelError(
            f"{path}: the GGUF file is corrupt or cut short ({e})", remedy="fetch the file again"
        ) from e
    if not reader.tensors or end > path.stat().st_size:
        raise ModelError(f"{path}: the GGUF file is cut short", remedy="fetch the file again")
    return reader


def _round(value: float) -> float:
    """The shortest decimal that is this float32: 9.999999747378752e-06 is 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))


def _config(path: Path, fields: dict[str, Any], reader: Any) -> dict[str, Any]:
    """config.json from the GGUF's fields; `fields[architecture.…]` are llama.cpp's names."""
    architecture = str(fields["general.architecture"])
    model_type, cls, _, gemma = _ARCHITECTURES[architecture]

    def need(key: str) -> Any:
        full = f"{architecture}.{key}"
        if full not in fields:
            raise ModelError(
                f"{path}: GGUF field {full!r} is missing", remedy="convert the model to GGUF again"
            )
        return fields[full]

    def have(key: str) -> Any:
        return fields.get(f"{architecture}.{key}")

    names = {t.name for t in reader.tensors}
    heads, hidden = int(need("attention.head_count")), int(need("embedding_length"))
    config: dict[str, Any] = {
        "architectures": [cls],
        "model_type": model_type,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": int(need("feed_forward_length")),
        "num_hidden_layers": int(need("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(have("attention.head_count_kv") or heads),
        "head_dim": int(have("attention.key_length") or have("rope.dimension_count") or hidden // heads),
        "max_position_embeddings": int(need("context_length")),
        "rms_norm_eps": _round(need("attention.layer_norm_rms_epsilon")),
        "vocab_size": next(int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "gelu_pytorch_tanh" if gemma else "silu",
        "use_cache": True,
    }
    theta = have("rope.freq_base")
    config["rope_theta"] = _round(theta) if theta else 10000.0
    scaling = _rope_scaling(path, config, reader)
    if scaling:
        config["rope_scaling"] = scaling
    elif str(have("rope.scaling.type") or "none") not in ("none", ""):
        kind, factor = str(have("rope.scaling.type")), float(have("rope.scaling.factor") or 1.0)
        if kind != "linear":
            raise ModelError(
                f"{path}: rotary scaling {kind!r} is not supported",
                remedy="use the model's safetensors checkpoint",
            )
        config["rope_scaling"] = {"rope_type": "linear", "type": "linear", "factor": factor}
    for token in ("bos", "eos", "unknown", "padding"):
        value = fields.get(f"tokenizer.ggml.{token}_token_id")
        if value is not None:
            config[f"{({'unknown': 'unk', 'padding': 'pad'}).get(token, token)}_token_id"] = int(value)
    if architecture == "granite":
        for ours, theirs in (
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
        ):
            config[ours] = _round(need(theirs))
    if gemma:
        config["sliding_window"] = int(need("attention.sliding_window"))
        config["hidden_activation"] = "gelu_pytorch_tanh"
        if architecture == "gemma2":
            config["attn_logit_softcapping"] = _round(have("attn_logit_softcapping") or 50.0)
            config["final_logit_softcapping"] = _round(have("final_logit_softcapping") or 30.0)
        # The query scale of the 27B models is hidden/heads; llama.cpp keeps it by layer count as we do here.
        large = (architecture, config["num_hidden_layers"]) in {("gemma2", 46), ("gemma3", 62)}
        config["query_pre_attn_scalar"] = hidden // heads if large else config["head_dim"]
    return config


def _rope_scaling(path: Path, config: dict[str, Any], reader: Any) -> dict[str, Any] | None:
    """Llama 3's long-context scaling from its stored frequency factors (shape (head_dim / 2,)).

    llama.cpp stores the factors, transformers the recipe: the recipe is rebuilt and must give the factors.
    """
    import numpy as np

    stored = next(
        (np.asarray(t.data, dtype=np.float64) for t in reader.tensors if t.name == "rope_freqs.weight"), None
    )
    if stored is None:
        return None
    low, high, original, factor = 1.0, 4.0, 8192, float(np.round(stored.max()))
    wave = 2 * np.pi * config["rope_theta"] ** (np.arange(0, config["head_dim"], 2) / config["head_dim"])
    smooth = np.clip((original / wave - low) / (high - low), 0.0, 1.0)
    if stored.shape != wave.shape or not np.allclose(
        1.0 / ((1 - smooth) / factor + smooth), stored, rtol=1e-3
    ):
        raise ModelError(
            f"{path}: rope_freqs.weight is not Llama 3's scaling",
            remedy="use the model's safetensors checkpoint",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _name(path: Path, name: str, gemma: bool) -> str:
    if name in _TOP:
        return _TOP[name]
    match = re.fullmatch(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)", name)
    part = match and ({**_BLOCK, **(_GEMMA_NORMS if gemma else _PLAIN_NORMS)}).get(match[2])
    if not match or not part:
        raise ModelError(
            f"{path}: GGUF tensor {name!r} is not known", remedy="use the model's safetensors checkpoint"
        )
    return f"model.layers.{match[1]}.{part}.{match[3]}"


def _unpermute(values: Any, heads: int) -> Any:
    """Undo llama.cpp's rotary row order: (heads, d/2, 2, …) back to (heads, 2, d/2, …)."""
    rows = values.shape[0]
    shaped = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return shaped.swapaxes(1, 2).reshape(values.shape)


def _tensors(
    path: Path, reader: Any, architecture: str, config: dict[str, Any], progress: Progress | None
) -> Iterator[tuple[str, Any]]:
    """(name, bf16 tensor), in name order, one dequantised at a time."""
    import gguf
    import numpy as np
    import torch

    _, _, permuted, gemma = _ARCHITECTURES[architecture]
    kept = [t for t in reader.tensors if t.name != "rope_freqs.weight"]
    named = sorted((_name(path, t.name, gemma), t) for t in kept)
    for done, (name, tensor) in enumerate(named):
        if progress:
            progress("convert weights", done, len(named))
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as e:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has quantisation {tensor.tensor_type.name}, "
                "which cannot be read",
                remedy="use a Q8_0, F16 or BF16 file, or the model's safetensors checkpoint",
            ) from e
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if permuted and ".q_proj." in name:
            values = _unpermute(values, config["num_attention_heads"])
        elif permuted and ".k_proj." in name:
            values = _unpermute(values, config["num_key_value_heads"])
        elif gemma and name.endswith("norm.weight"):
            values = values - 1
        yield name, torch.from_numpy(np.array(values, dtype=np.float32, order="C")).to(torch.bfloat16)
    if progress:
        progress("convert weights", len(named), len(named))


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Any]]) -> None:
    """model.safetensors, or numbered shards and their index when it would pass SHARD_BYTES."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    pending: dict[str, Any] = {}
    size = total = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards):05d}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        n_bytes = tensor.numel() * tensor.element_size()
        if pending and size + n_bytes > SHARD_BYTES:
            flush()
            size = 0
        pending[name] = tensor
        size += n_bytes
        total += n_bytes
    flush()
    if len(shards) == 1:
        (folder / "shard-00000").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{i:05d}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8"
    )
