"""From a folder, a GGUF file or an adapter folder to a model in evaluation mode, and its tokenizer.

Nothing is downloaded here (see guardkeel.resources) and no code of a checkpoint runs unless
`trust_remote_code=True` is passed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from guardkeel.errors import ModelError
from guardkeel.models import gguf
from guardkeel.models.adapters import adapter_base, attach_adapter, is_adapter
from guardkeel.models.base import BASE_NAME, base_model_path
from guardkeel.models.checks import Checkpoint, check_checkpoint, read_json
from guardkeel.models.devices import (
    DTYPES,
    check_memory,
    is_out_of_memory,
    out_of_memory,
    pick_device,
    pick_dtype,
)
from guardkeel.models.quiet import quiet
from guardkeel.models.towers import has_tower, language_tower
from guardkeel.resources import Progress, cache_dir, digest, resolve

Task = Literal["causal", "classifier"]

TEXT_TOWERS = ("llama4", "mllama", "gemma3")
"""Kinds of image-and-text checkpoints that transformers loads as a language model, their image part left out."""
_IMAGE_PART = ("vision", "multi_modal", "model.vision", "model.multi_modal")


def local_checkpoint(path: str | Path, progress: Progress | None = None) -> Path:
    """The folder to load: a GGUF file is converted into the cache once; a folder is itself."""
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                f"{path}: not a model folder and not a GGUF file",
                remedy="give the folder that holds config.json",
            )
        folder = cache_dir() / "models" / f"gguf-{digest(path)[:16]}-v{gguf.CONVERSION}"
        return gguf.convert_gguf(path, folder, progress)
    if not path.is_dir():
        raise ModelError(
            f"{path}: no such folder", remedy="give the folder that holds config.json and the weights"
        )
    return path


def task_of(config: dict[str, Any], where: Path) -> Task:
    """What a checkpoint is, from its `architectures`.

    Raises:
        ModelError: neither a causal language model nor a sequence classifier.
    """
    names = config.get("architectures") or [""]
    sees = str(names[0]).endswith("ForConditionalGeneration") and (
        config.get("model_type") in TEXT_TOWERS or has_tower(config)
    )
    if str(names[0]).endswith("ForCausalLM") or sees:
        return "causal"
    if str(names[0]).endswith("ForSequenceClassification"):
        return "classifier"
    raise ModelError(
        f"{where}: architecture {names[0]!r} is neither a causal language model nor a sequence classifier",
        remedy="give a …ForCausalLM or …ForSequenceClassification checkpoint",
    )


def load_model(
    path: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    *,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
    images: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Load a checked model, in evaluation mode. Of a model that sees images: its language model, unless `images`.

    Args:
        path: a transformers folder, a GGUF file, or a LoRA adapter folder (then on its base).
        dtype: auto, float32, bfloat16 or float16; see `devices.pick_dtype`.
        device: auto, cpu, cuda or cuda:N.
        base: the base of an adapter folder, where its own word for it should not be used.
        trust_remote_code: run the checkpoint's own Python code. Never set it for code you have not read.
        images: the whole of a model that sees images.
        progress: called with (what, done, total).

    Raises:
        ModelError: the checkpoint cannot be used, or weights that the architecture needs are not in it.
        UnsafeFileError: pickles.
        RunError: it does not fit into memory.
        ConfigError: dtype or device is unknown.
    """
    folder = local_checkpoint(path, progress)
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    if is_adapter(folder):
        below = local_checkpoint(base or base_folder(folder, progress), progress)
        model = load_model(
            below, dtype, device, trust_remote_code=trust_remote_code, images=images, progress=progress
        )
        return attach_adapter(model, folder).to(device)
    checkpoint = check_checkpoint(folder, progress=progress)
    task = task_of(checkpoint.config, folder / "config.json")
    needed = max(checkpoint.weight_bytes, checkpoint.parameters * DTYPES[dtype])
    check_memory(needed, device, str(folder))
    try:
        return _load(checkpoint, task, dtype, device, trust_remote_code, images)
    except Exception as e:
        if is_out_of_memory(e):
            raise out_of_memory(str(folder), device, f"it needs {needed / 1e9:.1f} GB") from e
        if isinstance(
            e, (ValueError, KeyError, RuntimeError, OSError, ImportError, AttributeError, TypeError)
        ):
            raise _explained(checkpoint, e) from e
        raise


def _load(
    checkpoint: Checkpoint, task: Task, dtype: str, device: str, trust_remote_code: bool, images: bool
) -> Any:
    import torch
    import transformers

    tower = has_tower(checkpoint.config) and not images
    auto = (
        transformers.AutoModelForImageTextToText
        if images or tower
        else transformers.AutoModelForCausalLM
        if task == "causal"
        else transformers.AutoModelForSequenceClassification
    )
    with quiet():
        model, info = auto.from_pretrained(
            str(checkpoint.folder),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{checkpoint.folder}: {len(missing)} weights of {type(model).__name__} are not in it: "
            f"{', '.join(missing[:3])}; they would be random",
            remedy="give the complete checkpoint; for an adapter, its adapter folder",
        )
    unused = sorted(
        k for k in info["unexpected_keys"] if not (k.endswith("inv_freq") or k.startswith(_IMAGE_PART))
    )
    if unused:
        warnings.warn(
            f"{checkpoint.folder}: {len(unused)} stored weights are not part of {type(model).__name__}: "
            f"{', '.join(unused[:3])}",
            stacklevel=4,
        )
    if tower:
        model = language_tower(model)
    return model.to(device).eval()


def _explained(checkpoint: Checkpoint, error: Exception) -> ModelError:
    config = checkpoint.folder / "config.json"
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModelError):
        return error
    if "trust_remote_code" in said:
        return ModelError(
            f"{config}: this checkpoint brings its own Python code, which is not run",
            remedy="take an architecture that transformers has; trust_remote_code runs code: read it first",
        )
    kind = checkpoint.config.get("model_type")
    if "does not recognize this architecture" in said or "Unrecognized" in said:
        return ModelError(
            f"{config}: the installed transformers does not know model_type {kind!r}",
            remedy="update transformers (pip install -U transformers), or correct config.json",
        )
    return ModelError(
        f"{checkpoint.folder}: transformers could not load it: {said[:300]}",
        remedy="check that config.json belongs to these weights",
    )


def base_folder(adapter: str | Path, progress: Progress | None = None) -> Path:
    """The local folder of an adapter's base, fetched when it is a reference.

    A relative path is looked for beside the adapter first. The embedded guard's base is known by its name.

    Raises:
        ModelError: the adapter does not say what its base is.
        ResourceError: the base cannot be had.
    """
    said = adapter_base(adapter)
    if not said:
        raise ModelError(
            f"{adapter}: the adapter does not name its base", remedy="give the base model as well"
        )
    beside = Path(adapter).parent / said
    if beside.exists():
        return beside
    if said.rsplit("/", 1)[-1] == BASE_NAME and not Path(said).exists():
        return base_model_path(progress)
    return resolve(said, progress=progress)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint folder, or of an adapter folder that carries one (else of its base).

    Raises:
        ModelError: there is none, or it is damaged.
    """
    folder = local_checkpoint(path)
    if is_adapter(folder) and not (folder / "tokenizer_config.json").is_file():
        folder = local_checkpoint(base_folder(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(folder / name, "")
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as e:  # tokenizers raises plain Exception for a damaged file
        said = " ".join(str(e).split())[:300]
        raise ModelError(
            f"{folder}: no usable tokenizer: {said}",
            remedy="put the model's tokenizer files beside config.json",
        ) from e


def checkpoint_digest(path: str | Path) -> str:
    """sha256 that names a checkpoint or an adapter: a file by its bytes, a folder by its content."""
    return digest(path)
