"""What fuse.py compares: checkpoints of any size, and the commands that fuse them, each a process of its own."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 250_000_000
ALPHA, DENSITY = 0.5, 0.2
CP = "cp"
OURS = ("guardkeel interpolation", "guardkeel ties")
LIMITS = (
    ("guardkeel interpolation", "mergekit linear", 3.0),
    ("guardkeel ties", "mergekit ties", 10.0),
    ("guardkeel slerp", "mergekit slerp", 1.0),
)
"""Ours, theirs, and how many times as fast ours is to be."""


@dataclass(frozen=True)
class Shape:
    """A llama-like model."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int = 32_000
    heads: int = 16
    shared: int = 4

    @classmethod
    def of_bytes(cls, size: int) -> Shape:
        """As many layers as a bfloat16 checkpoint of about that size has."""
        hidden, intermediate = (1024, 2816) if size >= 400e6 else (256, 704)
        bare = cls(hidden, intermediate, 0)
        one = cls(hidden, intermediate, 1).values - bare.values
        return cls(hidden, intermediate, max(1, round((size / 2 - bare.values) / one)))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in the order in which save_pretrained keeps them."""
        h, i, kv = self.hidden, self.intermediate, self.hidden // self.heads * self.shared
        found: dict[str, tuple[int, ...]] = {"lm_head.weight": (self.vocabulary, h)}
        found["model.embed_tokens.weight"] = (self.vocabulary, h)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            found |= {f"{at}{norm}_layernorm.weight": (h,) for norm in ("input", "post_attention")}
            found |= {
                f"{at}self_attn.{p}_proj.weight": (n, h)
                for p, n in (("q", h), ("k", kv), ("v", kv), ("o", h))
            }
            found |= {f"{at}mlp.{p}_proj.weight": (i, h) for p in ("gate", "up")}
            found[f"{at}mlp.down_proj.weight"] = (h, i)
        found["model.norm.weight"] = (h,)
        return found

    @property
    def values(self) -> int:
        """Parameters."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.shared, "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip


def make(folder: Path, shape: Shape, tuned: int = 0) -> None:
    """Random weights in bfloat16, sharded; `tuned` > 0 is the same model with noise on it, another for each number."""
    from safetensors.torch import save_file

    said = folder / "config.json"
    if said.exists() and json.loads(said.read_text()) == shape.config():
        return
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[str]] = [[]]
    filled, tensors = 0, shape.tensors()
    for name, size in tensors.items():
        count = 2 * math.prod(size)
        if groups[-1] and filled + count > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += count
    where: dict[str, str] = {}
    for i, group in enumerate(groups, start=1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file(
            {name: _random(name, tensors[name], tuned) for name in group}, folder / file, {"format": "pt"}
        )
        where |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": 2 * shape.values}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said.write_text(json.dumps(shape.config()))


def _random(name: str, shape: tuple[int, ...], tuned: int) -> torch.Tensor:
    import torch

    seed = int.from_bytes(name.encode()[-4:], "little") + sum(name.encode())
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.02)
    if tuned:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed + tuned))
        values.add_(noise, alpha=0.002)
    return values.bfloat16()


@dataclass(frozen=True)
class Job:
    """Checkpoints to fuse, and where what is written goes; `out` is the folder of the fused checkpoint."""

    reference: Path
    candidates: tuple[Path, ...]
    work: Path

    @property
    def out(self) -> Path:
        """Removed before each turn."""
        return self.work / "out"

    @property
    def cache(self) -> Path:
        """guardkeel's; removed before each turn too."""
        return self.work / "cache"


@dataclass(frozen=True)
class Way:
    """A tool with a method, and the command that does the job."""

    name: str
    command: Callable[[Job], list[str]]


def copy(job: Job) -> list[str]:
    """`cp` of what a fuse writes: it reads one model and computes nothing."""
    return ["cp", "-r", str(job.reference), str(job.out)]


def copy_to_disk(job: Job) -> list[str]:
    """The same, and the wait until it is on the disk."""
    return ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', str(job.reference), str(job.out)]


def ours(method: str, options: dict[str, float], diagnostics: bool = False) -> Callable[[Job], list[str]]:
    """guardkeel fuse, as a user runs it."""

    def command(job: Job) -> list[str]:
        config = job.work / f"{method}.toml"
        lines = [
            f'method = "{method}"',
            f'reference = "{job.reference}"',
            f"candidates = {json.dumps([str(c) for c in job.candidates])}",
            f"diagnostics = {str(diagnostics).lower()}",
            f"[options.{method}]",
            *(f"{key} = {value}" for key, value in options.items()),
        ]
        config.write_text("\n".join(lines) + "\n")
        return [sys.executable, "-m", "guardkeel", "fuse", "--config", str(config), "--out", str(job.out)]

    return command


def mergekit(python: Path, method: str) -> Callable[[Job], list[str]]:
    """mergekit-yaml of its own environment, with the same weights, written in bfloat16."""

    def command(job: Job) -> list[str]:
        first, second = str(job.reference), str(job.candidates[0])
        both = [
            {"model": first, "parameters": {"weight": 1 - ALPHA}},
            {"model": second, "parameters": {"weight": ALPHA}},
        ]
        tuned = [{"model": second, "parameters": {"weight": 1.0, "density": DENSITY}}]
        said: dict[str, dict[str, object]] = {
            "linear": {"models": both},
            "ties": {"models": tuned, "base_model": first},
            "slerp": {
                "models": [{"model": first}, {"model": second}],
                "base_model": first,
                "parameters": {"t": ALPHA},
            },
        }
        config = job.work / f"mergekit-{method}.yaml"
        config.write_text(
            json.dumps({"merge_method": method, "dtype": "bfloat16"} | said[method])
        )  # JSON is YAML
        return [str(python.parent / "mergekit-yaml"), str(config), str(job.out)]

    return command


def ways(python: Path | None) -> dict[str, Way]:
    """Every way; mergekit's where its environment's python is given."""
    found = [
        Way(CP, copy),
        Way("cp, and on the disk", copy_to_disk),
        Way("guardkeel interpolation", ours("interpolation", {"alpha": ALPHA})),
        Way("guardkeel interpolation, diagnosed", ours("interpolation", {"alpha": ALPHA}, diagnostics=True)),
        Way("guardkeel ties", ours("ties", {"density": DENSITY})),
        Way("guardkeel slerp", ours("slerp", {"t": ALPHA})),
    ]
    if python:
        found += [
            Way(f"mergekit {method}", mergekit(python, method)) for method in ("linear", "ties", "slerp")
        ]
    return {way.name: way for way in found}
