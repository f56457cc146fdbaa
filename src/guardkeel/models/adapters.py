"""LoRA adapter folders: recognised, checked against the base they are put on, attached through peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError
from guardkeel.models.checks import read_json, refuse_pickles
from guardkeel.models.headers import TensorEntry, check_finite, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder is a peft adapter."""
    return (Path(folder) / CONFIG).is_file()


def adapter_base(folder: str | Path) -> str:
    """What the adapter says it was trained on (a repository or a path); empty when it does not say.

    Raises:
        ModelError: there is no adapter, or its configuration is damaged.
    """
    return str(_config(Path(folder)).get("base_model_name_or_path") or "")


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG, "an adapter folder is what peft's save_pretrained writes")


def check_adapter(folder: str | Path) -> dict[str, TensorEntry]:
    """Check an adapter folder by itself and return its tensors.

    Raises:
        UnsafeFileError: its weights are pickles.
        ModelError: it is not a LoRA adapter, or a file is missing, damaged or has NaN or Inf.
    """
    folder = Path(folder)
    kind = _config(folder).get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{folder / CONFIG}: peft_type is {kind!r}",
            remedy="only LoRA adapters are supported; merge others",
        )
    if not (folder / WEIGHTS).is_file():
        refuse_pickles(folder)
        raise ModelError(
            f"{folder}: no {WEIGHTS}", remedy="an adapter folder is what peft's save_pretrained writes"
        )
    tensors = read_header(folder / WEIGHTS)
    check_finite(folder / WEIGHTS)
    return tensors


def attach_adapter(model: Any, folder: str | Path, name: str = "default", *, trainable: bool = False) -> Any:
    """Put an adapter on a loaded model and make it the active one; returns the peft model.

    A model that already carries adapters gets one more, under `name`.

    Raises:
        ModelError: the adapter is damaged, its name is taken, or its shapes do not fit this base.
        UnsafeFileError: its weights are pickles.
    """
    from peft import PeftModel

    folder = Path(folder)
    tensors = check_adapter(folder)
    carries = isinstance(model, PeftModel)
    if carries and name in model.peft_config:
        raise ModelError(f"an adapter named {name!r} is already attached", remedy="choose another name")
    _check_fit(folder, tensors, model.get_base_model() if carries else model)
    try:
        if carries:
            model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    except (ValueError, TypeError, RuntimeError, KeyError) as e:
        raise ModelError(
            f"{folder}: peft could not attach the adapter: {(str(e).splitlines() or [type(e).__name__])[0]}",
            remedy="check that it was made with this base and a peft version no newer than yours",
        ) from e
    model.set_adapter(name)
    if not trainable:
        model.requires_grad_(False)  # peft freezes the base only for training, and wakes an active adapter
    return model.train(trainable)


def _check_fit(folder: Path, tensors: dict[str, TensorEntry], base: Any) -> None:
    """Each LoRA pair must name a module of the base, with A (r, in) and B (out, r) of its shape."""
    modules = {_plain(n): m for n, m in base.named_modules()}
    parameters = {_plain(n): tuple(p.shape) for n, p in base.named_parameters()}
    said = adapter_base(folder)
    remedy = f"put it on the base it was trained on{f' ({said})' if said else ''}"
    for key, entry in sorted(tensors.items()):
        target = key.removeprefix(_PREFIX)
        name, _, rest = target.partition(".lora_")
        if not rest:  # a module saved whole, such as a classifier's head
            expected = parameters.get(target)
            if expected is not None and expected != entry.shape:
                raise ModelError(
                    f"{folder}: {target!r} has shape {entry.shape}, the base has {expected}", remedy=remedy
                )
            continue
        module = modules.get(name)
        if module is None:
            raise ModelError(f"{folder}: the base has no module {name!r}", remedy=remedy)
        weight = getattr(module, "weight", None)
        if not rest.startswith(("A.", "B.")) or weight is None or weight.dim() != 2:
            continue  # embeddings, convolutions and peft's other pieces are left to peft's own check
        rows, columns = (int(n) for n in weight.shape)
        ok = entry.shape[-1:] == (columns,) if rest.startswith("A.") else entry.shape[:1] == (rows,)
        if not ok and type(module).__name__ != "Conv1D":  # GPT-2 keeps (in, out)
            raise ModelError(
                f"{folder}: {key.removeprefix(_PREFIX)!r} has shape {entry.shape}, "
                f"which does not fit the base's {name!r} of {rows} × {columns}",
                remedy=remedy,
            )


def _plain(name: str) -> str:
    """A module's name without what peft put around it."""
    return name.replace(".base_layer", "")
