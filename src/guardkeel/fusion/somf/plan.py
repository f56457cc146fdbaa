"""What learning a mask will hold in memory, said before the model is loaded, and refused where it is too much.

    masks     16 bytes each: logit, gradient and Adam's two moments, in float32
    changes   4 bytes for each masked number of every candidate
    model     θ_safe once, in the forward's number format, and of every changed weight a second copy and its gradient
    work      the largest tensor some times over, in float32, while its mask is made and followed back

The activations of one batch come on top; they grow with `batch` and `max_tokens`, not with the masks.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.errors import RunError
from guardkeel.fusion.somf.changes import touched
from guardkeel.fusion.somf.config import MaskConfig
from guardkeel.fusion.somf.mask import count, logits_shape
from guardkeel.fusion.sources import Source
from guardkeel.models.devices import DTYPES, free_memory, pick_device, pick_dtype

MASK_BYTES = 16
LARGE = 16 * 10**9
"""Bytes for masks alone from which learning is refused unless it is forced."""
_LIBRARIES = 6 * 10**8


class MaskPlan(BaseModel):
    """Sizes in bytes."""

    model_config = ConfigDict(extra="forbid")

    granularity: str
    space: str
    candidates: int
    weights: int = Field(description="weights that are changed")
    values: int = Field(description="masked numbers of one candidate")
    masks: int
    mask_bytes: int
    change_bytes: int
    model_bytes: int
    work_bytes: int
    dtype: str
    device: str
    free: int

    @property
    def memory(self) -> int:
        """All of it."""
        libraries = 0 if self.device.startswith("cuda") else _LIBRARIES
        return self.mask_bytes + self.change_bytes + self.model_bytes + self.work_bytes + libraries

    @property
    def arithmetic(self) -> str:
        """How the masks' memory comes about, in words."""
        return (
            f"{self.masks:,} masks × {MASK_BYTES} bytes (logit, gradient, two moments of Adam) = "
            f"{size(self.mask_bytes)}"
        )

    @property
    def words(self) -> str:
        """The whole sum as one line."""
        return (
            f"{self.arithmetic}; changes of {self.candidates} candidate{'s' * (self.candidates > 1)} "
            f"{size(self.change_bytes)}, model in {self.dtype} {size(self.model_bytes)}, "
            f"work {size(self.work_bytes)}: {size(self.memory)} and the activations of one batch"
        )

    def check(self, *, force: bool = False) -> None:
        """RunError, with the arithmetic, where the masks are large or all does not fit; never with `force`."""
        large = self.mask_bytes > LARGE
        if force or not (large or self.memory > self.free):
            return
        why = f"{self.words}. " + (
            "That is large" if self.memory <= self.free else f"{size(self.free)} are free on {self.device}"
        )
        raise RunError(
            why,
            remedy="learn one mask a row (granularity = row) or a tensor, mask the factors of an adapter "
            "(space = factors), or insist with --force",
        )


def size(count: float) -> str:
    """Bytes in words: 107.8 GB, 2.5 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def planned(config: MaskConfig, reference: Source, candidates: Sequence[Source]) -> MaskPlan:
    """The plan of a configuration, from headers alone.

    Of full checkpoints every tensor counts; those that turn out not to have changed get no mask.

    Raises:
        ModelError: a candidate lacks a tensor of the reference, or has it in another shape.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    names = [name for name in touched(reference, candidates) if reference.specs[name].floating]
    weights = [reference.specs[name].values for name in names]
    lora = candidates[0].lora
    if config.space == "factors" and lora is not None:
        shapes = [lora.file.specs[key].shape for pair in lora.pairs.values() for key in (pair.a, pair.b)]
    else:
        shapes = [reference.specs[name].shape for name in names]
    values = sum(map(count, shapes))
    masks = sum(count(logits_shape(shape, config.granularity)) for shape in shapes)
    return MaskPlan(
        granularity=config.granularity,
        space=config.space,
        candidates=len(candidates),
        weights=len(weights),
        values=values,
        masks=masks,
        mask_bytes=MASK_BYTES * masks,
        change_bytes=4 * len(candidates) * values,
        model_bytes=DTYPES[dtype] * (sum(s.values for s in reference.specs.values()) + 2 * sum(weights)),
        work_bytes=4 * max(weights, default=0) * (6 + 3 * len(candidates)),
        dtype=dtype,
        device=device,
        free=free_memory(device),
    )
