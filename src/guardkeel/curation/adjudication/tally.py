"""How often people and jurors say the same, counted as the log grows: every record is read once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from guardkeel.curation.adjudication.reading import Reader, said_of
from guardkeel.curation.jury.pooling import JURY
from guardkeel.curation.mapping import Strictness


@dataclass(slots=True)
class Tally:
    """`same` of `both`, by annotator and juror, over labels that stand."""

    reader: Reader
    strictness: Strictness
    sequence: int = 0
    same: Counter[tuple[str, str]] = field(default_factory=Counter)
    both: Counter[tuple[str, str]] = field(default_factory=Counter)
    _labels: dict[str, Any] = field(default_factory=dict)

    def follow(self) -> None:
        """Read on in the log. Not for two threads at once."""
        new = self.reader.records(self.sequence)
        kept = self.reader.votes(sorted({r["item"] for r in new}))
        for record in new:
            if record["kind"] == "label" and record["item"] in kept:
                self._labels[record["id"]] = record["annotator"], self._compared(record, kept[record["item"]])
                self._add(record["id"], 1)
            elif record["undoes"] in self._labels:
                self._add(record["undoes"], -1)
            self.sequence = record["sequence"]

    def of(self, annotator: str) -> list[tuple[str, int, int]]:
        """(juror, same, both) of one person, by name, the jury's own label last."""
        mine = [juror for who, juror in self.both if who == annotator and self.both[who, juror]]
        ordered = sorted(mine, key=lambda juror: (juror == JURY, juror))
        return [(j, self.same[annotator, j], self.both[annotator, j]) for j in ordered]

    def _compared(self, record: Any, kept: Any) -> dict[str, bool]:
        """Whether each juror that gave a label says what this record says."""
        label = said_of(record).label(self.strictness)
        said = {v["by"]: v["label"] for v in kept["votes"]}
        if kept["label"]["source"] == JURY:
            said[JURY] = kept["label"]["label"]
        return {j: v == label for j, v in said.items() if v is not None} if label else {}

    def _add(self, identity: str, by: int) -> None:
        who, compared = self._labels[identity]
        for juror, same in compared.items():
            self.both[who, juror] += by
            self.same[who, juror] += by * same
