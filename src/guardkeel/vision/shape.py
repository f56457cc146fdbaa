"""The vision tower that a language model is given."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VisionShape(BaseModel):
    """The vision tower (a CLIP vision transformer) and the pictures that it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(
        default=96, ge=8, description="side of the square that every picture is made, in pixels"
    )
    patch: int = Field(
        default=16, ge=2, description="side of a patch; a picture takes (size / patch)² places"
    )
    width: int = Field(default=192, ge=8, description="hidden size of the vision tower")
    layers: int = Field(default=4, ge=1, description="its layers")
    heads: int = Field(default=6, ge=1, description="its attention heads")
    weights: Literal["auto", "drawn", "random"] = Field(
        default="auto",
        description="drawn: those that guardkeel brings, which have learned drawn pictures; auto: the same where the "
        "shape is theirs, else random",
    )
