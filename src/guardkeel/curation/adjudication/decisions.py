"""The log as JSONL, out and in: one record a line, with who, when, what, and how the item came to be asked about.

    {"sequence": 7, "id": "…", "kind": "label", "item": "…", "row": "logs/7", "side": "prompt", "annotator": "ann",
     "choice": "unsafe", "categories": ["Threat"], "note": "", "created": "2025-01-31T10:00:00.000000+00:00",
     "seconds": 8.1, "undoes": null, "blind": true, "audit": false, "propensity": 1.0,
     "reasons": ["jurors disagree: …"]}

Nothing of the texts is in it. `propensity` is the probability with which the item was put before people; `blind`, that
the jurors' votes were not shown before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from guardkeel.conversation import Side
from guardkeel.curation.adjudication.resolving import Choice
from guardkeel.errors import DataError
from guardkeel.records import atomic_writer

ANNOTATOR = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_ID = r"^[A-Za-z0-9._-]{1,64}$"


def seconds_of(value: Any) -> Any:
    """A time of ISO 8601 as seconds since 1970."""
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


class Decision(BaseModel):
    """One record. `created` is seconds since 1970, or ISO 8601 in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sequence: int = 0
    id: str = Field(pattern=_ID)
    kind: Literal["label", "skip", "undo"]
    item: str = Field(pattern=r"^[0-9a-f]{40}$")
    row: str
    side: Side
    annotator: str = Field(pattern=ANNOTATOR)
    choice: Choice | None = None
    categories: list[str] = Field(default_factory=list)
    note: str = ""
    created: Annotated[float, BeforeValidator(seconds_of)]
    seconds: float | None = None
    undoes: str | None = None
    blind: bool = True
    audit: bool = False
    propensity: float = Field(default=1.0, gt=0, le=1)
    reasons: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole(self) -> Decision:
        if (self.kind == "label") != (self.choice is not None):
            raise ValueError("a label, and nothing else, has a choice")
        if (self.kind == "undo") != (self.undoes is not None):
            raise ValueError("an undo, and nothing else, says what it undoes")
        return self


def line(record: dict[str, Any]) -> bytes:
    """One record as a line of JSONL."""
    made = Decision.model_validate(record).model_dump(mode="json")
    made["created"] = datetime.fromtimestamp(record["created"], UTC).isoformat(timespec="microseconds")
    return json.dumps(made, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_decisions(path: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Write the records of a log and return their number. The file appears whole or not at all."""
    count = 0
    with atomic_writer(path) as out:
        for record in records:
            out.write(line(record))
            count += 1
    return count


def read_decisions(path: str | Path) -> Iterator[dict[str, Any]]:
    """Records for a log, without their numbers; raises DataError naming file, line and field."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            yield Decision.model_validate(json.loads(raw)).model_dump(mode="json", exclude={"sequence"})
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "record"
            raise DataError(
                f"{path}:{number}: {where}: {first['msg']}", remedy="take the file as --export wrote it"
            ) from e
        except ValueError as e:
            raise DataError(
                f"{path}:{number}: not JSON ({e})", remedy="take the file as --export wrote it"
            ) from e
