"""Row: one conversation with where its text and every one of its labels come from. One JSON object a line:

    {"id": "aegis2/7f3a", "messages": […], "labels": {"prompt": {"label": "unsafe", "source": "human"}},
     "categories": ["Threat"], "group": "aegis2/7f3a", "source": "aegis2", "origin": "train.json: row 12",
     "licence": "CC BY 4.0", "language": "en", "redactions": {"EMAIL": 1}, "absorbed": ["wild/88"],
     "history": ["dedup: absorbed 1"], "split": "fit", "extra": {…}}

A side without an entry in `labels` was judged by nobody. One whose `label` is null was judged, and no label came of
it: a tie, judges that all abstained, or sources that contradict each other. Both are unknown, never safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from guardkeel.conversation import LABELS, SIDES, Conversation, Example, Label, Side
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.splits import SPLITS, Split
from guardkeel.records import atomic_writer

DISAGREEMENT = "disagreement"
"""The source of a label that other labels contradict; it is null until somebody decides."""

_EMPTY: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Vote:
    """What one judge said of a side: a person, a guard, a model, a data set.

    `label` is None for an abstention, and `reason` says why. `unsafe` is P(unsafe) where the judge gave one; `dropped`
    counts tokens that it did not read, because the text was too long for it.
    """

    by: str
    label: Label | None
    unsafe: float | None = None
    categories: tuple[str, ...] = ()
    reason: str = ""
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class SideLabel:
    """The label of a side, who it is from, and what it was made of.

    `source` says who: human, author (true by construction), a model, jury, disagreement, … `scores` holds what ways
    of pooling votes found, each in [0, 1]: `majority` the share of unsafe votes, `dawid-skene` P(unsafe).
    """

    label: Label | None
    source: str
    votes: tuple[Vote, ...] = ()
    scores: Mapping[str, float] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class Row:
    """See the module's text. Rows of one `group` stay in one split; `extra` is what the record held besides."""

    id: str
    conversation: Conversation
    labels: Mapping[Side, SideLabel] = field(default_factory=lambda: _EMPTY)
    categories: tuple[str, ...] = ()
    group: str = ""
    source: str = ""
    origin: str = ""
    licence: str = ""
    language: str = ""
    redactions: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    absorbed: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    split: Split | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    @property
    def own_policy(self) -> bool:
        """Whether its labels are true under a policy of its own alone (see synthesis/rules.py)."""
        return bool(self.extra.get("policy"))

    def label(self, side: Side) -> Label | None:
        """The label of a side; None where it is unknown."""
        found = self.labels.get(side)
        return found.label if found else None

    def example(self) -> Example:
        """As an example of a suite: sides without a label are left out, and categories where nothing is unsafe."""
        labels = {s: v.label for s, v in self.labels.items() if v.label is not None}
        return Example(
            id=self.id,
            conversation=self.conversation,
            labels=labels,
            categories=self.categories if "unsafe" in labels.values() else (),
            source=self.source,
            language=self.language,
            group=self.group,
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this row, without empty fields."""
        row: dict[str, Any] = {
            "id": self.id,
            "messages": self.conversation.to_messages(),
            "labels": {side: _label_json(self.labels[side]) for side in SIDES if side in self.labels},
            "categories": list(self.categories),
            "group": self.group,
            "source": self.source,
            "origin": self.origin,
            "licence": self.licence,
            "language": self.language,
            "redactions": dict(self.redactions),
            "absorbed": list(self.absorbed),
            "history": list(self.history),
            "split": self.split,
            "extra": dict(self.extra),
        }
        return {k: v for k, v in row.items() if v or k in ("id", "messages")}

    def line(self) -> bytes:
        """One line of JSONL."""
        text = json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace") + b"\n"  # lone surrogates as JSON escapes


def row_from_json(value: Any) -> Row:
    """Read one JSON object; raises DataError naming the field."""
    if not isinstance(value, Mapping):
        raise DataError(f"a row must be an object, not {type(value).__name__}", remedy="see curation/rows.py")
    known = {
        "id", "messages", "labels", "categories", "group", "source", "origin", "licence", "language", "redactions",
        "absorbed", "history", "split", "extra",
    }  # fmt: skip
    unknown = sorted(map(str, set(value) - known))
    if unknown:
        raise DataError(
            f"unknown field {unknown[0]!r} in a row", remedy=f"fields are {', '.join(sorted(known))}"
        )
    split = value.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"unknown split {split!r}", remedy=f"splits are {', '.join(SPLITS)}")
    return Row(
        id=_text(value, "id", needed=True),
        conversation=Conversation.from_messages(cast(Any, value.get("messages"))),
        labels=MappingProxyType(_labels(value.get("labels", {}))),
        categories=_texts(value, "categories"),
        group=_text(value, "group"),
        source=_text(value, "source"),
        origin=_text(value, "origin"),
        licence=_text(value, "licence"),
        language=_text(value, "language"),
        redactions=MappingProxyType(dict(value.get("redactions", {}))),
        absorbed=_texts(value, "absorbed"),
        history=_texts(value, "history"),
        split=split,
        extra=MappingProxyType(dict(value.get("extra", {}))),
    )


def parse_line(raw: bytes, where: str) -> Row:
    """Read one line of JSONL; raises DataError naming the place."""
    try:
        return row_from_json(json.loads(raw))
    except ValueError as e:
        raise DataError(f"{where}: not JSON ({e})", remedy="make the file again: repeat its step") from e
    except DataError as e:
        raise DataError(f"{where}: {e.problem}", remedy=e.remedy) from e


def read_rows(path: str | Path) -> Iterator[Row]:
    """Stream rows from JSONL; raises DataError naming file and line."""
    path = Path(path)
    try:
        handle = path.open("rb")
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
    with handle:
        for number, raw in enumerate(handle, 1):
            if raw.strip():
                yield parse_line(raw, f"{path}:{number}")


def write_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows as JSONL and return their number. The file appears whole or not at all."""
    count = 0
    with atomic_writer(path) as out:
        for row in rows:
            out.write(row.line())
            count += 1
    return count


def merged(first: SideLabel, second: SideLabel) -> SideLabel:
    """Two labels of one text: what both say, or what one says alone; contradicting labels become a disagreement.

    Every vote is kept. A label without votes becomes one, by its source.
    """
    votes = tuple(dict.fromkeys((*_votes(first), *_votes(second))))
    if first.label == second.label:
        return SideLabel(
            first.label, first.source, votes if first.votes or second.votes else (), first.scores
        )
    known = [s for s in (first, second) if s.label is not None]
    contested = DISAGREEMENT in (first.source, second.source)
    if len(known) == 2 or contested:
        return SideLabel(None, DISAGREEMENT, votes)
    return SideLabel(known[0].label, known[0].source, votes, known[0].scores)


def _votes(given: SideLabel) -> tuple[Vote, ...]:
    return given.votes or ((Vote(given.source, given.label),) if given.label is not None else ())


def _label_json(given: SideLabel) -> dict[str, Any]:
    value: dict[str, Any] = {"label": given.label, "source": given.source}
    if given.votes:
        value["votes"] = [vote_json(v) for v in given.votes]
    if given.scores:
        value["scores"] = dict(given.scores)
    return value


def vote_json(vote: Vote) -> dict[str, Any]:
    """The JSON object of a vote, without empty fields."""
    row = {
        "by": vote.by,
        "label": vote.label,
        "unsafe": vote.unsafe,
        "categories": list(vote.categories),
        "reason": vote.reason,
        "dropped": vote.dropped,
    }
    return {k: v for k, v in row.items() if v or k in ("by", "label") or (k == "unsafe" and v is not None)}


def vote_from_json(value: Mapping[str, Any]) -> Vote:
    """Read one; raises DataError."""
    return Vote(
        by=_text(value, "by", needed=True),
        label=_label(value.get("label")),
        unsafe=value.get("unsafe"),
        categories=_texts(value, "categories"),
        reason=_text(value, "reason"),
        dropped=int(value.get("dropped", 0)),
    )


def _labels(value: Any) -> dict[Side, SideLabel]:
    if not isinstance(value, Mapping):
        raise DataError(f"labels must be an object, not {value!r:.80}", remedy="see curation/rows.py")
    found: dict[Side, SideLabel] = {}
    for side, given in value.items():
        if side not in SIDES or not isinstance(given, Mapping):
            raise DataError(f"labels has {side!r}: {given!r:.80}", remedy=f"sides are {', '.join(SIDES)}")
        found[side] = SideLabel(
            _label(given.get("label")),
            _text(given, "source"),
            tuple(vote_from_json(v) for v in given.get("votes", ())),
            MappingProxyType(dict(given.get("scores", {}))),
        )
    return found


def _label(value: Any) -> Label | None:
    if value is not None and value not in LABELS:
        raise DataError(f"unknown label {value!r:.80}", remedy="labels are 'safe', 'unsafe' and null")
    return cast("Label | None", value)


def _text(value: Mapping[str, Any], key: str, *, needed: bool = False) -> str:
    found = value.get(key, "")
    if not isinstance(found, str) or (needed and not found):
        raise DataError(f"field {key!r} must be a text, not {found!r:.80}", remedy="see curation/rows.py")
    return found


def _texts(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = value.get(key, ())
    if not isinstance(found, list | tuple) or not all(isinstance(v, str) for v in found):
        raise DataError(
            f"field {key!r} must be a list of texts, not {found!r:.80}", remedy="see curation/rows.py"
        )
    return tuple(found)
