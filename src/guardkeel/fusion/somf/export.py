"""The learned mask as a file, and what is known of it.

mask.safetensors holds every mask m in [0, 1] in float32, by the name of the tensor and in a shape that broadcasts to
its rows, as the method `somf` wants it. Its metadata say how it was made, under `means` the mean of each m, which is
all that a control which keeps as much by chance needs, and under `options` the settings of `somf` that put the fused
guard together as it was learned. Masks that are rescaled over the model need its scale for that: Merge is homogeneous,
so that Merge({δ_i ⊙ m / M}) = Merge({δ_i ⊙ m}) / M. In space `factors` names are those in the adapter's file; see
`masked_adapter`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from guardkeel.errors import ConfigError
from guardkeel.fusion.diagnostics import measure, summarised
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.results import Diagnostics
from guardkeel.fusion.somf.files import read_tensors, write_tensors
from guardkeel.fusion.somf.fused import Fused
from guardkeel.fusion.somf.mask import Draw, moments, rescaled
from guardkeel.fusion.somf.merging import scale_of
from guardkeel.guards.embedded import SETTINGS
from guardkeel.models.adapters import CONFIG, WEIGHTS, adapter_base, check_adapter
from guardkeel.models.checks import read_json
from guardkeel.records import write_json

MASK = "mask.safetensors"
FORMAT = "guardkeel mask 1"


class MaskTensor(BaseModel):
    """One tensor's mask."""

    model_config = ConfigDict(extra="forbid")

    name: str
    values: int = Field(description="numbers of the tensor")
    masks: int = Field(description="how many of them have a mask of their own")
    mean: float = Field(description="of the mask as it was written, before it is rescaled")
    variance: float = Field(description="mean variance over draws of the masks as they were learned")


def describe(fused: Fused, draw: Draw, temperature: float) -> list[MaskTensor]:
    """Every tensor's mask, as written by `draw` and as it varies when it is drawn."""
    found = []
    with torch.no_grad():
        for name, logits in fused.logits.each.items():
            found.append(
                MaskTensor(
                    name=name,
                    values=torch.Size(fused.logits.shapes[name]).numel(),
                    masks=logits.numel(),
                    mean=float(fused.logits.mask(name, draw).double().mean()),
                    variance=float(moments(logits, temperature)[1].double().mean()),
                )
            )
    return found


def options(fused: Fused, draw: Draw) -> dict[str, Any]:
    """Settings of the method `somf` under which it makes of these masks what was learned."""
    how = fused.how
    said: dict[str, Any] = {"merge": how.merge, "rescale": fused.logits.rescale == "tensor"}
    said |= (
        {"density": how.density} if how.merge == "ties" else {"drop": how.drop} if how.merge == "dare" else {}
    )
    if fused.logits.rescale == "model":
        count = len(next(iter(fused.changes.values())).deltas())
        said["scale"] = scale_of(how, count) / max(float(fused.logits.density(draw)), 1e-12)
    elif how.scale is not None:
        said["scale"] = how.scale
    return said


def write_mask(
    path: Path, fused: Fused, draw: Draw, known: list[MaskTensor], metadata: Mapping[str, Any]
) -> None:
    """Write the masks of a draw with their means, the options of `somf`, and what else is said of them."""
    with torch.no_grad():
        tensors = {name: fused.logits.mask(name, draw) for name in fused.logits.each}
    said = {
        "format": FORMAT,
        "rescale": fused.logits.rescale,
        "density": repr(float(fused.logits.density(draw))),
        "means": json.dumps({t.name: t.mean for t in known}),
        "options": json.dumps(options(fused, draw)),
    }
    more = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    write_tensors(path, tensors, said | more)


def distances(fused: Fused, draw: Draw) -> Diagnostics:
    """What the masked fusion keeps of every candidate's change: whether it is just the safe model."""
    candidates = len(next(iter(fused.changes.values())).deltas())
    safe = dict(fused.model.named_parameters(remove_duplicate=False))

    def lines() -> Any:
        density = fused.logits.density(draw)
        for name, change in fused.changes.items():
            start = safe[name].float()
            each = tuple(start + d for d in change.deltas())
            yield measure(Tensors(name, start, each), start + fused.change(name, draw, density))

    with torch.no_grad():
        return summarised(lines(), candidates)


def masked_adapter(adapter: Path, mask: Path, folder: Path) -> Path:
    """An adapter whose factors are masked, A ⊙ m_A / mean and B ⊙ m_B / mean, in the number format that they have.

    Args:
        adapter: the candidate that the mask was learned for.
        mask: mask.safetensors of space `factors`.
        folder: made, all of it or nothing; must not exist.

    Raises:
        ConfigError: the mask is of another space or adapter, or the folder exists.
    """
    factors, said = read_tensors(mask)
    tensors, _ = _adapter(adapter)
    if said.get("space") != "factors" or factors.keys() != tensors.keys():
        raise ConfigError(
            f"{mask}: no mask of the factors of {adapter}",
            remedy="learn one with space = factors for this adapter, or fuse with a dense mask",
        )
    if folder.exists():
        raise ConfigError(f"{folder}: is there already", remedy="choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        config = read_json(adapter / CONFIG, "")
        base = adapter.parent / adapter_base(adapter)
        if base.exists():  # it was found beside the adapter, and is not beside this one
            config["base_model_name_or_path"] = str(base.resolve())
        write_json(temporary / CONFIG, config)
        if (adapter / SETTINGS).is_file():
            shutil.copyfile(adapter / SETTINGS, temporary / SETTINGS)
        means = json.loads(said["means"])
        over = {"none": dict.fromkeys(means, 1.0), "model": dict.fromkeys(means, float(said["density"]))}
        by = over.get(said["rescale"], means)
        masked = {n: (t.float() * rescaled(factors[n], by[n])).to(t.dtype) for n, t in tensors.items()}
        write_tensors(temporary / WEIGHTS, masked)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    check_adapter(folder)
    return read_tensors(folder / WEIGHTS)
