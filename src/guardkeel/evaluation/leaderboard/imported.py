"""What another tool's results are read into, so that they can stand beside guardkeel's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from guardkeel.conversation import Label, Side


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """What another tool wrote about one item.

    `id` is what the tool calls it: a guardkeel item id, an example's id, or the item's text_digest. `score` is
    P(unsafe) in [0, 1], or None where the tool gave none; `unscored` then says why. `label` is the gold label of the
    tool's own data, None where its files hold none. A tool that only flags gives the scores 0.0
    and 1.0, and says so in the notes.
    """

    id: str
    side: Side
    score: float | None
    label: Label | None
    unscored: str = ""

    def __post_init__(self) -> None:
        if self.score is None:
            if not self.unscored:
                raise ValueError("an unscored row needs its reason")
        elif self.unscored or not 0.0 <= self.score <= 1.0:  # also refuses NaN
            raise ValueError(f"a score must be in [0, 1] and without a reason, got {self.score}")


@dataclass(frozen=True, slots=True)
class ImportedScores:
    """One guard's rows on one suite, as one results file of a tool holds them."""

    name: str
    tool: str
    suite: str
    rows: list[ImportedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
