"""Files and suites → what a guard is taught: labelled guard conversations, or instructions with their answers.

A row with `labels` is a guard conversation, as in a suite. A row without is an instruction: `messages` that end in
the assistant's answer, or one of the pairs of fields in `PAIRS`. One file holds one kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from guardkeel.conversation import Conversation, Example
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites import Suite, available, load_suite
from guardkeel.evaluation.suites.readers import RawRow, plain_stem, read_rows
from guardkeel.evaluation.suites.suite import sides_present
from guardkeel.records import value_digest
from guardkeel.resources import Progress, resolve_many
from guardkeel.tuning.targets import Instruction, Target, target, targets

Kind = Literal["guard", "instructions"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PAIRS = (
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
)
"""Fields of a request and of its answer. Beside `instruction` there may be `input`, which is put after it."""

_NAMES = {"guard": "a guard conversation", "instructions": "an instruction"}


@dataclass(frozen=True)
class TuningData:
    """What was read: `targets` where the kind is guard, else `instructions`.

    `split` is the split that was taken, empty for a whole file. `digest` is the sha256 of the rows in their order.
    """

    kind: Kind
    targets: tuple[Target, ...]
    instructions: tuple[Instruction, ...]
    split: str
    digest: str

    def __len__(self) -> int:
        return len(self.targets) + len(self.instructions)


def read_data(
    reference: str | Path,
    *,
    kind: Kind | None = None,
    source: str | None = None,
    data: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> TuningData:
    """Read domain data or guard data.

    Args:
        reference: a data file (path, hub:, pypi:, path:), which is used whole; or a suite's name or card, of which the
            `fit` split is taken.
        kind: read every row as this; None goes by the rows.
        source: use only rows whose `source` is this.
        data: the folder that data: references of cards start from.
        offline: True never uses the network; None goes by the environment.
        progress: called with (what, done, total) while files are fetched.

    Raises:
        DataError: unknown name, unreadable file, bad row, rows of both kinds, no labels, no `fit` split.
        ConfigError: the card cannot be used, or there is no such kind.
        ResourceError: the reference cannot be resolved.
    """
    path = data_file(reference, offline=offline, progress=progress)
    if path is not None:
        return read_file(path, kind=kind, source=source)
    if kind == "instructions":
        raise DataError(
            f"{reference} is a suite, whose rows are guard conversations",
            remedy="give the data file itself, without a card, or leave out the kind",
        )
    return suite_data(load_suite(reference, data=data, offline=offline, progress=progress), source=source)


def data_file(
    reference: str | Path, *, offline: bool | None = None, progress: Progress | None = None
) -> Path | None:
    """The data file that a reference means; None for a suite, and for what only load_suite can explain."""
    text = str(reference)
    if text.startswith(("hub:", "pypi:", "path:")):
        path = resolve_many([text], progress=progress, offline=offline)[0]
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not a data file", remedy="name the file inside it")
    else:
        path = Path(reference).expanduser()
        if not path.is_file() or any(card.name == text for card in available()):
            return None
    return None if path.suffix == ".toml" else path


def suite_data(suite: Suite, *, source: str | None = None) -> TuningData:
    """The `fit` split of a suite; raises DataError where there is none."""
    items = [i for i in suite.items("fit") if source in (None, i.example.source)]
    if not items:
        raise _no_source(f"suite {suite.name!r}", source, {e.source for e in suite.examples})
    return _guard([target(i.judgement, i.label, i.example.categories) for i in items], "fit")


def read_file(path: Path, *, kind: Kind | None = None, source: str | None = None) -> TuningData:
    """All rows of a data file, their ids after its name as in a suite. See read_data."""
    if kind not in (None, *KINDS):
        raise ConfigError(f"unknown kind of data {kind!r}", remedy=f"kinds are {', '.join(KINDS)}")
    rows = list(_fitting(path, kind))
    if not rows:
        raise DataError(f"{path}: no rows", remedy="give at least one row")
    _check_ids(rows)
    sources = {str(row.fields.get("source", "")) for row, _ in rows}
    rows = [(row, k) for row, k in rows if source in (None, str(row.fields.get("source", "")))]
    if not rows:
        raise _no_source(str(path), source, sources)
    if rows[0][1] == "instructions":
        read = (_placed(row, _instruction) for row, _ in rows)
        instructions = tuple(replace(i, id=f"{plain_stem(path)}/{i.id}") for i in read)
        digest = value_digest([[i.id, i.conversation.to_messages()] for i in instructions])
        return TuningData("instructions", (), instructions, "", digest)
    examples = (_placed(row, _example) for row, _ in rows)
    found = targets(replace(e, id=f"{plain_stem(path)}/{e.id}") for e in examples)
    if not found:
        raise DataError(f"{path}: no row has a label", remedy='label a side: {"labels": {"prompt": "safe"}}')
    return _guard(found, "")


def _guard(found: Sequence[Target], split: str) -> TuningData:
    learned = [
        [t.judgement.id, t.judgement.side, t.label, t.categories, t.judgement.conversation.to_messages()]
        for t in found
    ]
    return TuningData("guard", tuple(found), (), split, value_digest(learned))


def _no_source(where: str, source: str | None, known: set[str]) -> DataError:
    listed = ", ".join(sorted(known - {""})) or "none"
    return DataError(
        f"{where}: no row to learn from has the source {source!r}", remedy=f"its sources are {listed:.300}"
    )


def _fitting(path: Path, wanted: Kind | None) -> Iterator[tuple[RawRow, Kind]]:
    """The rows with their kind, all of one."""
    first: tuple[RawRow, Kind] | None = None
    for raw in read_rows(path):
        row = RawRow(raw.where, raw.number, _filled(raw.fields))
        kind = wanted or _placed(row, _kind)
        first = first or (row, kind)
        if kind != first[1]:
            raise DataError(
                f"{row.where}: {_NAMES[kind]}, but {first[0].where} is {_NAMES[first[1]]}",
                remedy="put the two into files of their own, or say which kind they all are",
            )
        yield row, kind


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without what a table has where a row has nothing: nulls, and empty cells of what is no text."""
    no_text = ("id", "messages", "labels", "categories")
    return {k: v for k, v in fields.items() if v is not None and not (v == "" and k in no_text)}


def _kind(row: RawRow) -> Kind:
    if "labels" in row.fields:
        return "guard"
    if "messages" in row.fields or _pairs(row):
        return "instructions"
    raise DataError(
        f"neither a guard conversation nor an instruction: the fields are {', '.join(row.fields)}"[:300],
        remedy="give messages with labels, messages that end in an answer, or "
        f"{' or '.join(f'{a} and {b}' for a, b in PAIRS)}; a card maps others to guard conversations",
    )


def _pairs(row: RawRow) -> list[tuple[str, str]]:
    return [(a, b) for a, b in PAIRS if a in row.fields and b in row.fields]


def _instruction(row: RawRow) -> Instruction:
    fields = row.fields
    identity = str(fields.get("id", row.number))
    if "messages" in fields:
        return Instruction(identity, Conversation.from_messages(_loaded(row, "messages")))
    pairs = _pairs(row)
    if len(pairs) != 1:
        found = " and ".join(f"{a}/{b}" for a, b in pairs) or ", ".join(fields)
        raise DataError(
            f"which fields are the request and its answer? There are {found:.200}",
            remedy=f"leave one pair of {', '.join(f'{a}/{b}' for a, b in PAIRS)}",
        )
    request, answer = pairs[0]
    asked = _text(fields, request)
    if not asked.strip():
        raise DataError(f"field {request!r} holds no text", remedy="fill it, or drop the row")
    if request == "instruction" and "input" in fields and (more := _text(fields, "input")).strip():
        asked += f"\n\n{more}"
    return Instruction(identity, Conversation.of(asked, _text(fields, answer)))


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise DataError(
            f"field {name!r} must be text, not {value!r:.80}",
            remedy="give a string, or conversations as messages",
        )
    return value


def _example(row: RawRow) -> Example:
    fields = {"id": str(row.number), **row.fields}
    if "labels" not in fields:
        raise DataError("field 'labels' is missing", remedy='write labels like {"prompt": "unsafe"}')
    for name in ("messages", "labels", "categories"):
        if name in fields:
            fields[name] = _loaded(row, name)
    if isinstance(fields["labels"], dict):
        fields["labels"] = {k: v for k, v in fields["labels"].items() if v is not None}
    example = Example.from_row(fields)
    absent = set(example.labels) - sides_present(example.conversation)
    if absent:
        raise DataError(
            f"labelled on side {min(absent)!r}, but there is no such turn",
            remedy="a prompt needs a user turn, a response an assistant turn; or label the trajectory",
        )
    return example


def _loaded(row: RawRow, name: str) -> Any:
    """A list or object, which tables keep as JSON text."""
    value = row.fields[name]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise DataError(f"field {name!r} must be JSON, not {value!r:.80}", remedy="write it as JSON") from e


def _placed(row: RawRow, read: Any) -> Any:
    """What `read` makes of a row; its errors say where the row is."""
    try:
        return read(row)
    except DataError as e:
        raise DataError(f"{row.where}: {e.problem}", remedy=e.remedy) from e


def _check_ids(rows: Sequence[tuple[RawRow, Kind]]) -> None:
    seen: dict[str, str] = {}
    for row, _ in rows:
        identity = str(row.fields.get("id", row.number))
        if identity in seen:
            raise DataError(
                f"{row.where}: the id {identity!r} is at {seen[identity]} too",
                remedy="make ids unique, or leave them out: rows are then numbered",
            )
        seen[identity] = row.where
