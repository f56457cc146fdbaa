"""What all records share: an id, who wrote it, fields that refer to other records, fields that can be withheld."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9*][A-Za-z0-9._:/@+#*=, -]{0,199}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Rate = Annotated[float, Field(ge=0, le=1)]


def moment(at: datetime) -> str:
    """A time as records write it: UTC with microseconds, so that text order is time order."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


When = Annotated[
    AwareDatetime,
    AfterValidator(lambda at: at.astimezone(UTC)),
    PlainSerializer(moment, return_type=str),
]
"""A time with its offset. Without one it would mean another moment on another machine, so it is refused."""


def plain_id(text: str) -> str:
    """A text made an id: what ids may not have becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9._:/@+#*=, -]", "_", text).lstrip(" ._:/@+#=,-")[:200] or "_"


class Ref:
    """Marks a field that names a record of this kind, or a list of them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Private:
    """Marks a field that a releasable copy withholds: people, paths, free text about incidents."""


class Part(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Record(Part):
    """A record. A later one of the same kind and id replaces it; both stay in the chain."""

    kind: ClassVar[str]

    id: Id
    """Its name, unique among records of its kind."""
    by: Annotated[str, Private()] = ""
    """Who wrote it."""
    note: Annotated[str, Private()] = ""
    """Free text."""

    @classmethod
    def private(cls) -> frozenset[str]:
        """Fields that a releasable copy withholds."""
        return frozenset(
            name for name, f in cls.model_fields.items() if any(isinstance(m, Private) for m in f.metadata)
        )

    def references(self) -> Iterator[tuple[str, str, str]]:
        """(field, kind, id) of every record that this one names."""
        for name, info in type(self).model_fields.items():
            for mark in info.metadata:
                if isinstance(mark, Ref):
                    value: Any = getattr(self, name)
                    for one in value if isinstance(value, list | tuple) else [value]:
                        if one:
                            yield name, mark.kind, one
