"""What an audit measures and how."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AuditSettings(BaseModel):
    """Settings of an audit. The resolved ones are saved with the run."""

    model_config = ConfigDict(extra="forbid")

    limit: int | None = Field(default=None, ge=1, description="most items of each suite and split")
    geometry: bool = Field(default=True, description="measure activations at the verdict position too")
    layers: list[int] | None = Field(
        default=None, description="blocks to watch, counted from 1; default: eight of them"
    )
    geometry_items: int = Field(default=400, ge=20, description="most items the geometry is measured on")
    geometry_held: int = Field(
        default=4000,
        ge=0,
        description="most of them whose activations are kept; those of more are summed up where they arise",
    )
    rank: int = Field(default=32, ge=1, description="rank of the safety subspace")
    draws: int = Field(default=100, ge=19, description="draws of each permutation or random-subspace null")
    seed: int = Field(default=0, description="of folds, bootstraps and nulls")
