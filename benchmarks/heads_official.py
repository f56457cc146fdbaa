"""Runs the released Ships loop of arXiv:2410.13708 in an environment of its own; benchmarks/heads.py calls it.

    python heads_official.py CHECKOUT JOB.json

It imports the checkout's model and its loop as they are, with eager attention: under SDPA, their attention loses the
causal mask. Modules that the checkout lacks or that only load data are stood in for by empty ones.
"""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path


class Tokens:
    """Stands where the loop has a tokenizer: texts are numbers of prompts."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __call__(self, text: str, return_tensors: str = "pt") -> dict[str, object]:
        import torch

        ids = torch.tensor([self.rows[int(text)]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def stand_ins() -> None:
    for name, members in {
        "lib.utils.format": ("get_time_str", "set_seed"),
        "lib.utils.load_conv": ("load_conv",),
        "datasets": ("load_dataset",),
    }.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module


def main() -> None:
    checkout, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    import torch
    import transformers  # noqa: F401 - looks for datasets while it is imported

    torch.set_num_threads(job["threads"])
    sys.path.insert(0, str(checkout))
    stand_ins()
    from lib.SHIPS.get_ships import SHIPS
    from lib.utils.custommodel import CustomLlamaModelForCausalLM

    model = CustomLlamaModelForCausalLM.from_pretrained(
        job["model"], torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    loop = object.__new__(SHIPS)
    loop.tokenizer, loop.model = Tokens(job["rows"]), model
    loop.mask_cfg = {"mask_qkv": ["q"], "scale_factor": job["epsilon"], "mask_type": "scale_mask"}
    loop.layers, loop.heads = model.config.num_hidden_layers, model.config.num_attention_heads
    loop.get_ships("0", layers=(0, 1), heads=(0, 1))  # warm
    cpu, wall, kl = time.process_time(), time.perf_counter(), []
    for row in range(len(job["rows"])):
        found: dict[tuple[int, int], torch.Tensor] = {}
        for layer, head in job["heads"]:
            found |= loop.get_ships(str(row), layers=(layer, layer + 1), heads=(head, head + 1))
        kl.append([float(found[layer, head]) for layer, head in job["heads"]])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(
        json.dumps({"cpu": cpu, "wall": wall, "kl": kl, "forwards": len(job["rows"]) * len(job["heads"]) * 2})
    )


if __name__ == "__main__":
    main()
