"""Which engine runs the guards, and with what. Part of the configuration of every verb that asks guards."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

EngineName = Literal["local", "ray", "vllm"]


class EngineSettings(BaseModel):
    """Where guards whose weights are here are run. A guard behind a server is asked from here whatever this says."""

    model_config = ConfigDict(extra="forbid")

    engine: EngineName = Field(default="local", description="what runs the guards: local, ray or vllm")
    workers: int = Field(
        default=2, ge=1, le=4096, description="ray: guards that are loaded and asked at once"
    )
    worker_cpus: float = Field(default=1, gt=0, description="ray: processors of each worker")
    worker_gpus: float = Field(default=0, ge=0, description="ray: accelerators of each worker")
    worker_retries: int = Field(
        default=3, ge=0, description="ray: how often items are sent again whose worker was lost"
    )
    ray_address: str | None = Field(
        default=None,
        description="ray: the cluster, such as auto or ray://host:10001; default: RAY_ADDRESS, else this machine",
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="vllm: further arguments of vllm.LLM, such as tensor_parallel_size = 4",
    )

    @model_validator(mode="after")
    def _vllm_only(self) -> Self:
        if self.vllm and self.engine != "vllm":
            raise ValueError("vllm: its arguments are of engine 'vllm'")
        return self

    def engine_settings(self) -> EngineSettings:
        """This part of a larger configuration."""
        return EngineSettings(**self.model_dump(include=ENGINE_FIELDS))

    def engine_mark(self) -> dict[str, Any]:
        """What results follow from: nothing between local and ray, which give the same verdicts."""
        return {"engine": "vllm", "vllm": self.vllm} if self.engine == "vllm" else {}


ENGINE_FIELDS = set(EngineSettings.model_fields)
