"""What goes beside fused weights: the reference's configuration, tokenizer, processor and guard settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from guardkeel.fusion.sources import Source
from guardkeel.models.adapters import CONFIG as ADAPTER_CONFIG

_KINDS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_FOLDERS = ("additional_chat_templates",)
_NOT = (ADAPTER_CONFIG, "trainer_state.json", "run.json", "plan.json", "all_results.json")
_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def beside(
    reference: Source, dtype: str | None = None, files: Mapping[str, bytes] | None = None
) -> tuple[list[Path], dict[str, bytes]]:
    """Files to copy, an adapter's own before its base's, and contents to write.

    Args:
        reference: whose files they are.
        dtype: of the weights, as safetensors names it, where config.json is to say another than the reference's.
        files: more contents to write.
    """
    copies: dict[str, Path] = {}
    for folder in dict.fromkeys((reference.checkpoint, reference.folder)):
        for path in sorted(folder.iterdir()):
            taken = path.is_dir() and path.name in _FOLDERS
            taken |= path.is_file() and path.suffix in _KINDS and path.name not in _NOT
            if taken and not path.name.endswith(".safetensors.index.json"):
                copies[path.name] = path
    contents = dict(files or {})
    if dtype and "config.json" not in contents:
        key = "torch_dtype" if "torch_dtype" in reference.config else "dtype"
        config = reference.config | {key: _NAMES[dtype]}
        contents["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return list(copies.values()), contents
