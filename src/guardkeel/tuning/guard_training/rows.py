"""What a training reads: labelled sides of conversations, with who labelled them and the split that they are in.

A curated set is a folder that `guardkeel curate` wrote (or its `dataset/`), or a JSONL or Parquet file of one; its
rows say their split. A suite is split by its card. Topic-following rows carry a policy of their own in
`extra.policy`: they are judged by that and by nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from guardkeel.conversation import LABELS, SIDES, Conversation, Example, Label, Side
from guardkeel.errors import DataError
from guardkeel.evaluation.suites import SPLITS, Split, SuiteItem, load_suite
from guardkeel.evaluation.suites.readers import RawRow, read_rows
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.evaluation.suites.suite import judged_texts, sides_present
from guardkeel.guards.base import Judgement
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.records import file_digest, value_digest
from guardkeel.resources import resolve_many

Watch = Callable[[str, int, int | None], None]

UNKNOWN = "not known"
"""Who gave a label, where the data do not say."""

_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.xz")


@dataclass(frozen=True, slots=True)
class GuardRow:
    """One labelled side. `by` is who labelled it; `policy` what it is judged by, where that is its own."""

    judgement: Judgement
    label: Label
    split: Split
    by: str = UNKNOWN
    categories: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    language: str = ""
    group: str = ""
    policy: GuardPolicy | None = None

    @property
    def side(self) -> Side:
        """The side."""
        return self.judgement.side

    @property
    def example(self) -> Example:
        """As an example of a suite; its `source` is who labelled it, so that figures can be read by that."""
        asked = self.judgement
        return Example(
            asked.id,
            asked.conversation,
            {asked.side: self.label},
            self.categories if self.label == "unsafe" else (),
            self.by,
            self.language,
            self.group,
        )

    def item(self) -> SuiteItem:
        """As an item of a suite that is called by the row's source."""
        return SuiteItem(
            self.judgement, self.source or "data", self.side, self.label, self.split, self.example
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """What must not be shared between splits, normalised."""
        return tuple(t for t in map(comparable, judged_texts(self.example)) if t)


@dataclass(frozen=True)
class TrainingData:
    """All rows, digests of what was read, and how many labelled sides were left out, by why."""

    rows: tuple[GuardRow, ...]
    digests: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def split(self, split: Split) -> list[GuardRow]:
        """The rows of a split, in order."""
        return [row for row in self.rows if row.split == split]


def read_training(
    names: Sequence[str],
    *,
    data: str | None = None,
    offline: bool | None = None,
    watch: Watch = lambda what, done, total: None,
) -> TrainingData:
    """Read all of the data. A fit row whose text is also calibrated or tested on is left out, and counted.

    Args:
        names: curated sets, files and suites, in any mixture.
        data: the folder that data: references of suites start from.
        offline: never use the network.
        watch: called with (what, done, total).

    Raises:
        DataError, ConfigError, ResourceError: naming what cannot be read.
    """
    rows: list[GuardRow] = []
    digests: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in dict.fromkeys(names):
        files = curated_files(name, offline=offline, watch=watch)
        if files:
            found = [row for path in files for row in read_curated(path, counts)]
            digests[f"data {name}"] = value_digest([file_digest(p) for p in files])
        else:
            suite = load_suite(name, data=data, offline=offline, progress=watch)
            found = [_of_suite(item, suite.card.licence) for item in suite.items()]
            digests[f"data {name}"] = suite.digest
        rows += found
        watch("read the data", len(rows), None)
    watched = {text for row in rows if row.split != "fit" for text in row.texts}
    kept = [row for row in rows if row.split != "fit" or watched.isdisjoint(row.texts)]
    counts["fit items whose text is calibrated or tested on"] = len(rows) - len(kept)
    if not any(row.split == "fit" for row in kept):
        raise DataError(
            f"{', '.join(names)}: no labelled row of the fit split",
            remedy="give a curated set with labels; guardkeel curate makes one",
        )
    return TrainingData(tuple(kept), digests, {k: n for k, n in counts.items() if n})


def curated_files(name: str, *, offline: bool | None = None, watch: Watch | None = None) -> list[Path]:
    """The files of a curated set, of one format; none where the name is a suite's.

    Raises DataError for a folder without such files.
    """
    if name.startswith(("hub:", "pypi:", "path:")):
        path = resolve_many([name], progress=watch, offline=offline)[0]
    else:
        path = Path(name).expanduser()
    if path.is_dir():
        for place in (path / "dataset" / "data", path / "data", path):
            for ending in _ENDINGS:
                if found := sorted(p for p in place.glob(f"*{ending}") if not p.name.startswith(".")):
                    return found
        raise DataError(
            f"{path}: no curated set in this folder", remedy="give the folder that guardkeel curate wrote"
        )
    if not path.is_file() or not path.name.endswith(_ENDINGS):
        return []
    first = next(iter(read_rows(path)), None)
    return [path] if first is not None and is_curated(first.fields) else []


def is_curated(fields: Mapping[str, Any]) -> bool:
    """Whether a record is a row of a curated set: labels with who gave them, or their columns in Parquet."""
    labels = fields.get("labels")
    if isinstance(labels, Mapping):
        return any(isinstance(v, Mapping) for v in labels.values())
    return any(f"{side}_label_source" in fields for side in SIDES)


def read_curated(path: Path, counts: Counter[str]) -> Iterator[GuardRow]:
    """The labelled sides of a file; what has no label is counted under "sides without a label"."""
    for raw in read_rows(path):
        try:
            yield from _sides(raw, counts)
        except DataError as e:
            raise DataError(f"{raw.where}: {e.problem}", remedy=e.remedy) from e


def _sides(raw: RawRow, counts: Counter[str]) -> Iterator[GuardRow]:
    fields = raw.fields
    split = fields.get("split")
    if split not in SPLITS:
        raise DataError(
            f"a row's split is {split!r:.40}", remedy="give the finished set (dataset/), whose rows have one"
        )
    conversation = Conversation.from_messages([_message(m) for m in fields.get("messages") or ()])
    there = sides_present(conversation)
    row = GuardRow(
        Judgement("", conversation, "prompt"),
        "safe",
        split,
        categories=tuple(fields.get("categories") or ()),
        source=str(fields.get("source") or ""),
        licence=str(fields.get("licence") or ""),
        language=str(fields.get("language") or ""),
        group=str(fields.get("group") or fields.get("id") or ""),
        policy=_policy(fields.get("extra")),
    )
    for side in SIDES:
        label, by = _label(fields, side)
        if label is None or side not in there:
            counts["sides without a label"] += side in there and label is None and bool(by)
            continue
        asked = Judgement(f"{fields.get('id')}#{side}", conversation, side)
        yield replace(row, judgement=asked, label=label, by=by or UNKNOWN)


def _label(fields: Mapping[str, Any], side: Side) -> tuple[Label | None, str]:
    """Label of a side and who gave it, from either form of a row."""
    labels = fields.get("labels")
    if isinstance(labels, Mapping):
        given = labels.get(side) or {}
        label, by = given.get("label"), given.get("source")
    else:
        label, by = fields.get(f"{side}_label"), fields.get(f"{side}_label_source")
    if label is not None and label not in LABELS:
        raise DataError(f"unknown label {label!r:.80}", remedy="labels are 'safe', 'unsafe' and null")
    return cast("Label | None", label), str(by or "")


def _message(given: Any) -> Any:
    """A message as OpenAI has it; Parquet has all fields, and tool calls without their nesting."""
    if not isinstance(given, Mapping):
        return given
    made = {k: v for k, v in given.items() if v is not None}
    if calls := made.pop("tool_calls", None):
        made["tool_calls"] = [
            c
            if "function" in c
            else {
                "id": c.get("id") or "",
                "type": "function",
                "function": {"name": c["name"], "arguments": c["arguments"]},
            }
            for c in calls
        ]
    return made


def _policy(extra: Any) -> GuardPolicy | None:
    if isinstance(extra, str) and extra:
        try:
            extra = json.loads(extra)
        except ValueError as e:
            raise DataError(f"extra is not JSON ({e})", remedy="make the set again") from e
    given = extra.get("policy") if isinstance(extra, Mapping) else None
    if given is None:
        return None
    try:
        return GuardPolicy.model_validate(given)
    except ValidationError as e:
        raise DataError(
            f"extra.policy: {e.errors()[0]['msg']}", remedy="it needs name and categories, as guard policies"
        ) from e


def _of_suite(item: SuiteItem, licence: str) -> GuardRow:
    e = item.example
    return GuardRow(
        item.judgement,
        item.label,
        item.split,
        f"suite {item.suite}",
        e.categories,
        item.suite,
        licence,
        e.language,
        e.group,
    )
