"""How an adaptation and a multi-image run train the language part: what their configurations have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.models.devices import pick_device, pick_dtype


class LanguageTraining(BaseModel):
    """Settings of the language part."""

    model_config = ConfigDict(extra="forbid")

    adapter: Literal["full", "lora"] = Field(
        default="full",
        description="how the language part is trained: all weights in float32, or LoRA over weights in `dtype`",
    )
    rank: int = Field(default=16, ge=1, description="of LoRA, whose updates are scaled by 2")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="under lora: of the language part's own weights, which are not trained"
    )
    language_rate: float | None = Field(
        default=None, gt=0, description="learning rate of the language part; default: 5e-5, of LoRA 3e-4"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")

    @property
    def language_dtype(self) -> str:
        """The number format in which the language part is held."""
        return "float32" if self.adapter == "full" else pick_dtype(self.dtype, pick_device(self.device))

    @property
    def rate(self) -> float:
        """The language part's learning rate."""
        return self.language_rate or {"full": 5e-5, "lora": 3e-4}[self.adapter]
