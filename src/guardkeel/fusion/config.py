"""The whole configuration of a fuse as one TOML file: `guardkeel fuse --config fuse.toml --set seed=1`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardkeel.configuration import read_configuration

DEFAULT_METHOD = "interpolation"

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}

HOW = frozenset({"offline", "processes"})
"""Keys that do not change what is written: a run may go on under others."""


class FuseConfig(BaseModel):
    """What a fuse reads and writes. The resolved configuration is saved with the run."""

    model_config = ConfigDict(extra="forbid")

    candidates: list[str] = Field(
        min_length=1,
        description="the damaged guards: checkpoints, LoRA adapters, GGUF files or run directories of tune",
    )
    reference: str = Field(
        default="keel-135m", description="the guard to get back to: a name, folder or reference"
    )
    unaligned: str | None = Field(
        default=None,
        description="the model that the reference was made from, for methods that compare with it; keel-135m knows "
        "its own",
    )
    method: str = Field(default=DEFAULT_METHOD, description="how the weights are put together")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of a method, by its name"
    )
    extras: dict[str, str] = Field(
        default_factory=dict,
        description="files of what a method needs beside weights (mask, safe-hessian, harmful-norms), by that name",
    )
    only: list[str] = Field(
        default_factory=list, description="fuse only tensors of these names, with * for any; empty: all"
    )
    skip: list[str] = Field(
        default_factory=list,
        description="leave out tensors of these names, with * for any, as in `*embed_tokens*`",
    )
    rest: Literal["reference", "candidate"] = Field(
        default="reference",
        description="where tensors that are not fused come from: reference, or candidate, the first one",
    )
    output: Literal["checkpoint", "adapter"] = Field(
        default="checkpoint", description="whole weights, or the change as a LoRA adapter on the reference"
    )
    rank: int | None = Field(
        default=None,
        ge=1,
        description="rank of an adapter; default: what its tolerance takes, module by module",
    )
    tolerance: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="relative error up to which an adapter's module may miss its change",
    )
    dtype: str | None = Field(
        default=None,
        description="number format of the output: float32, bfloat16 or float16; default: the reference's, and "
        "float32 for an adapter's factors",
    )
    shard_size: str = Field(default="5GB", description="largest file of weights")
    name: str | None = Field(default=None, description="the fused guard's name; default: the run directory's")
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    diagnostics: bool = Field(default=True, description="measure what changed, layer by layer")
    seed: int = Field(default=0, description="of what a method draws")
    device: str = Field(default="cpu", description="where the arithmetic runs: auto, cpu, cuda or cuda:N")
    processes: int = Field(
        default=1,
        ge=1,
        description="worker processes that share the tensors of a checkpoint; each takes the memory of one",
    )
    offline: bool | None = Field(default=None, description="never use the network")

    @field_validator("shard_size")
    @classmethod
    def _a_size(cls, text: str) -> str:
        size_in_bytes(text)
        return text

    @field_validator("dtype")
    @classmethod
    def _a_dtype(cls, text: str | None) -> str | None:
        from guardkeel.models.devices import DTYPES

        if text is not None and text not in DTYPES:
            raise ValueError(f"is none of {', '.join(DTYPES)}")
        return text

    @model_validator(mode="after")
    def _a_checkpoint(self) -> FuseConfig:
        if self.processes > 1 and self.output == "adapter":
            raise ValueError(
                "processes: an adapter is made by one process; write a checkpoint, or leave it out"
            )
        return self

    @property
    def shard_bytes(self) -> int:
        """`shard_size` in bytes."""
        return size_in_bytes(self.shard_size)

    def chosen(self, name: str) -> bool:
        """Whether the tensor of this name goes through the method."""
        wanted = not self.only or any(fnmatchcase(name, p) for p in self.only)
        return wanted and not any(fnmatchcase(name, p) for p in self.skip)


def size_in_bytes(text: str) -> int:
    """`4GB` → 4,000,000,000; `512MiB` → 536,870,912. ValueError where it is no size of a kilobyte or more."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1000:
        raise ValueError("is no size of a kilobyte or more; write it as 4GB, 500MB or 2GiB")
    return size


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> FuseConfig:
    """See configuration.read_configuration."""
    return read_configuration(FuseConfig, "fuse", path, given, changes)
