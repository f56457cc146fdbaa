"""Which weights are trained, and how they are kept: LoRA, DoRA or all of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guardkeel.activations.blocks import blocks
from guardkeel.errors import ConfigError
from guardkeel.models.quiet import quiet
from guardkeel.records import write_json


def trainable(
    model: Any, *, adapter: str, rank: int, alpha: float, first_layer: int, seed: int, task: str
) -> Any:
    """The model with its trainable weights: a PeftModel for `lora` and `dora`, itself in float32 for `full`.

    Updates are zero at the start, so the model is still the reference. A classifier's head is trained with them.
    """
    if adapter == "full":
        found = blocks(model)
        check_first_layer(first_layer, len(found))
        model.float().requires_grad_(True)
        for block in found[:first_layer]:
            block.requires_grad_(False)
        if first_layer:
            model.get_input_embeddings().requires_grad_(False)
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=block_linears(model, first_layer),
        use_dora=adapter == "dora",
        task_type="CAUSAL_LM" if task == "causal" else "SEQ_CLS",
    )
    return get_peft_model(model, config)


def block_linears(model: Any, first_layer: int = 0) -> list[str]:
    """Names of the linear layers inside the blocks from `first_layer` on; ConfigError where there is none."""
    found = blocks(model)
    check_first_layer(first_layer, len(found))
    where = next(name for name, module in model.named_modules() if module is found)
    return [
        f"{where}.{i}.{name}"
        for i in range(first_layer, len(found))
        for name, module in found[i].named_modules()
        if isinstance(module, torch.nn.Linear)
    ]


def check_first_layer(first_layer: int, count: int) -> None:
    """ConfigError where nothing would be trained."""
    if first_layer >= count:
        raise ConfigError(
            f"first_layer is {first_layer}, the model has {count} blocks: nothing would be trained",
            remedy=f"choose 0 to {count - 1}",
        )


def save(
    model: Any,
    folder: Path,
    *,
    base: str,
    beside: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Save an adapter made on `base` (a name or reference), or a whole checkpoint; all of it or nothing.

    Args:
        model: the PeftModel, or the model.
        folder: replaced.
        base: what the adapter says it was made on.
        beside: the folder whose tokenizer goes with a whole checkpoint.
        settings: guardkeel.json.
        dtype: of the saved weights; None keeps theirs.
        state: the weights, where the model itself holds but shards of them (see `sharding.weights`).
    """
    from safetensors.torch import load_file, save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with quiet():
            model.save_pretrained(temporary, **({} if state is None else {"state_dict": dict(state)}))
        weights = temporary / "adapter_model.safetensors"
        if weights.exists():
            if dtype is not None:
                # Copies, because the file goes away under them.
                tensors = {k: v.to(dtype, copy=True) for k, v in load_file(weights).items()}
                save_file(tensors, weights, metadata={"format": "pt"})
            config = json.loads((temporary / "adapter_config.json").read_text())
            config |= {
                "base_model_name_or_path": base,
                "target_modules": sorted(config["target_modules"]),
            }
            write_json(temporary / "adapter_config.json", config)
            weights.chmod(0o644)
            (temporary / "README.md").unlink(missing_ok=True)  # peft's empty model card
        elif beside is not None:
            for file in beside.iterdir():
                if (
                    "token" in file.name
                    or file.suffix == ".jinja"
                    or file.name in ("vocab.json", "merges.txt")
                ):
                    shutil.copyfile(file, temporary / file.name)
        if settings is not None:
            write_json(temporary / "guardkeel.json", dict(settings))
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
