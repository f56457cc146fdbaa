"""What a plan is made for: one machine's devices in numbers, read from a table, from the user, or measured here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources as package
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.configuration import read_configuration
from guardkeel.errors import ConfigError

DISK = 1e9
SCORING = 0.52
"""Of the rate of products, on a processor: what audits of keel-135m reached on two machines, 0.47 to 0.59."""
TRAINING = 0.22
"""Of the rate of products: steps of keel-135m with LoRA, on a core of an EPYC in bfloat16, took 1.6 times as long as
SHARE foretold, by the processor's time."""


class Hardware(BaseModel):
    """Devices of one kind; all numbers are of one device."""

    model_config = ConfigDict(extra="forbid")

    name: str
    devices: int = Field(default=1, ge=1, description="how many there are")
    memory: float = Field(gt=0, description="bytes")
    flops: dict[str, float] = Field(description="dense operations a second, by number format")
    bandwidth: float | None = Field(default=None, gt=0, description="bytes a second of its memory")
    link: float | None = Field(default=None, gt=0, description="bytes a second to its neighbours, one way")
    disk: float = Field(default=DISK, gt=0, description="bytes a second read and written")
    share: float = Field(gt=0, le=1, description="what a model's products reach of flops")
    training: float | None = Field(
        default=None, gt=0, le=1, description="what a training step reaches of flops; default: share"
    )
    cpu: bool = Field(default=False, description="the processor itself, where libraries take memory too")
    source: str = ""
    price: float | None = Field(default=None, ge=0, description="of one device, an hour")
    currency: str = "USD"
    price_date: str | None = None
    price_source: str | None = None

    def rate(self, dtype: str, *, training: bool = False) -> float:
        """Operations a second that a model's products reach on one device."""
        if dtype not in self.flops:
            raise ConfigError(
                f"{self.name}: no rate is known for {dtype}",
                remedy=f"use {' or '.join(self.flops)}, or give --with flops.{dtype}=…",
            )
        return ((self.training if training else None) or self.share) * self.flops[dtype]


@cache
def known() -> dict[str, dict[str, object]]:
    """Devices by name."""
    text = package.files("guardkeel.planning").joinpath("data/hardware.toml").read_text("utf-8")
    return tomllib.loads(text)


def hardware(name: str, changes: Sequence[str] = ()) -> Hardware:
    """Devices by name and number (`h200`, `h200x8`), or a TOML file of the same keys; KEY=VALUE changes override.

    Raises:
        ConfigError: neither is there, or a key or value cannot be used.
    """
    if Path(name).suffix == ".toml":
        return read_configuration(Hardware, "plan", Path(name), {}, _own_price(changes))
    found = re.fullmatch(r"(.+?)(?:x(\d+))?", name.lower())
    if found is None or found[1] not in known():
        raise ConfigError(
            f"hardware {name!r} is not known",
            remedy=f"take {', '.join(known())}, as in h200x8, a TOML file of your own, or --here",
        )
    given = {"name": found[1], "devices": int(found[2] or 1), **known()[found[1]]}
    return read_configuration(Hardware, "plan", None, given, _own_price(changes))


def here(dtype: str, changes: Sequence[str] = ()) -> Hardware:
    """This machine: its processor or its CUDA device, whose rate of products is measured now."""
    import torch

    from guardkeel.evaluation.estimate import SHARE, matmul_rate
    from guardkeel.models.devices import free_memory, pick_device, pick_dtype

    device = pick_device("auto")
    kinds = dict.fromkeys((pick_dtype(dtype, device), "float32"))
    given = {
        "name": "this machine",
        "devices": max(1, torch.cuda.device_count()) if device == "cuda" else 1,
        "memory": float(free_memory(device)),
        "flops": {kind: matmul_rate(kind, device) for kind in kinds},
        "share": SCORING if device == "cpu" else SHARE,
        "training": TRAINING if device == "cpu" else None,
        "cpu": device == "cpu",
        "source": "a product of matrices, measured for a moment; memory that is free now",
    }
    return read_configuration(Hardware, "plan", None, given, _own_price(changes))


def _own_price(changes: Sequence[str]) -> list[str]:
    """A price of the user's own has neither the date nor the source of the table's."""
    if any(change.partition("=")[0].strip() == "price" for change in changes):
        return ["price_date=null", 'price_source="given"', *changes]
    return list(changes)
