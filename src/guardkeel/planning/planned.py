"""What a plan says: memory of a device by what takes it, time by what takes it, cost, and what was assumed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from guardkeel.planning.hardware import Hardware

HOUR = 3600.0
FULL = 0.95
"""Share of a device's memory that tensors can have: the rest goes to the driver, and to holes between them."""


class Planned(BaseModel):
    """A plan in numbers: bytes, seconds, and the currency of the hardware's price."""

    model_config = ConfigDict(extra="forbid")

    verb: str
    model: str
    parameters: int
    dtype: str
    hardware: Hardware
    memory: dict[str, float] = Field(description="bytes of one device, by what takes them")
    seconds: dict[str, float] = Field(default_factory=dict, description="by what takes them")
    numbers: dict[str, float] = Field(default_factory=dict, description="what the verb does and gives")
    assumed: list[str] = Field(default_factory=list, description="what the plan rests on")
    remedies: list[str] = Field(default_factory=list, description="what makes it take less memory")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def needed(self) -> float:
        """Bytes of one device."""
        return sum(self.memory.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fits(self) -> bool:
        """Whether they are there, with some to spare."""
        return self.needed <= FULL * self.hardware.memory

    @computed_field  # type: ignore[prop-decorator]
    @property
    def time(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost(self) -> float | None:
        """All devices for that time; None where no price is known, or the verb does not end."""
        price = self.hardware.price
        return None if price is None or not self.seconds else self.time / HOUR * price * self.hardware.devices

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return self.model_dump(mode="json")
