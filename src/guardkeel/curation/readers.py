"""Sources → rows, and what had to be left out.

A source is a suite, files in a released format, or other files under a field mapping as in a suite's card. Ids are
`<source>/<id>`; an id that a source has twice gets `~2`, and the rows stay one group. A record that cannot be a row is
`Rejected` with its place and the reason, or ends the run.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from guardkeel.conversation import Side, text_digest
from guardkeel.curation.config import MAPPING, Reconstruct, SourceConfig
from guardkeel.curation.formats import REDACTED, Aegis2, Own, Parsed, Released, format_named, recognise
from guardkeel.curation.formats.base import said
from guardkeel.curation.mapping import home_names, taxonomy_table
from guardkeel.curation.rows import Row, SideLabel
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites import load_suite
from guardkeel.evaluation.suites import mapping as fields_mapping
from guardkeel.evaluation.suites.applying import apply
from guardkeel.evaluation.suites.readers import Format, RawRow, format_of, plain_stem, read_rows
from guardkeel.evaluation.suites.values import lookup, value_key
from guardkeel.resources import Progress, resolve_many

HIDDEN = "reconstruction_id_if_redacted"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no row: where it is, its id if it has one, and why."""

    where: str
    reason: str
    id: str = ""


@dataclass(slots=True)
class Seen:
    """Ids of a source, and what was counted while reading it."""

    ids: dict[str, tuple[int, str]]
    counts: Counter[str]


def source_files(
    source: SourceConfig, *, offline: bool | None = None, progress: Progress | None = None
) -> list[Path]:
    """The local files of a source that is no suite, fetched where need be; raises ResourceError, DataError."""
    references: list[str] = []
    for given in [source.data] if isinstance(source.data, str) else source.data:
        found = sorted(map(str, _matching(given))) if _starred(given) else [given]
        if not found:
            raise DataError(f"source {source.name!r}: no file is named like {given}", remedy="check the path")
        references += found
    paths = resolve_many(references, progress=progress, offline=offline)
    folder = next((p for p in paths if p.is_dir()), None)
    if folder is not None:
        raise DataError(
            f"source {source.name!r}: {folder} is a folder", remedy="name its files: folder/*.jsonl"
        )
    return paths


def _matching(given: str) -> Iterator[Path]:
    path = Path(given).expanduser()
    return Path(path.anchor).glob(str(path.relative_to(path.anchor)))


def _starred(given: str) -> bool:
    return "*" in given and not given.startswith(("hub:", "pypi:", "path:"))


def read_source(
    source: SourceConfig,
    *,
    data: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    counts: Counter[str] | None = None,
) -> Iterator[Row | Rejected]:
    """Stream the rows of a source.

    Args:
        source: the source.
        data: the folder that data: references of suites start from.
        offline: True never uses the network.
        progress: called with (what, done, total) while files are fetched.
        counts: filled with what was met: encodings, ids that repeat, reasons of rejections.

    Raises:
        DataError, ConfigError, ResourceError: naming source, place, value and remedy.
    """
    seen = Seen({}, Counter() if counts is None else counts)
    given = (
        _suite(source, data, offline, progress) if source.suite else _files(source, seen, offline, progress)
    )
    for number, made in enumerate(given, 1):
        if isinstance(made, Rejected):
            seen.counts[f"rejected: {_kind(made.reason)}"] += 1
            yield made
        else:
            yield _distinct(made, seen)
        if number == source.limit:
            return


def _kind(reason: str) -> str:
    """A reason without the value that it names: reasons are counted, and values may be texts."""
    return re.sub(r"""(not|label|role|unknown|field \S+:?|has) ?['"{\[(].*""", r"\1 …", reason)[:120]


def _distinct(row: Row, seen: Seen) -> Row:
    digest = text_digest(row.conversation.text)
    times, first = seen.ids.get(row.id, (0, digest))
    seen.ids[row.id] = (times + 1, first)
    if not times:
        return row
    seen.counts["ids that repeat" + (", with another text" if digest != first else "")] += 1
    return replace(row, id=f"{row.id}~{times + 1}", group=row.group or row.id)


def _suite(
    source: SourceConfig, data: str | Path | None, offline: bool | None, progress: Progress | None
) -> Iterator[Row | Rejected]:
    suite = load_suite(source.suite, data=data, offline=offline, progress=progress)
    for example in suite.examples:
        if source.part is None or suite.splits[example.id] == source.part:
            labels = {s: SideLabel(v, source.label_source or suite.name) for s, v in example.labels.items()}
            yield Row(
                id=f"{source.name}/{example.id}",
                conversation=example.conversation,
                labels=labels,
                categories=_categories(source, example.categories),
                group=f"{source.name}/{example.group}" if example.group else "",
                source=source.name,
                origin=f"{suite.card.full_name} {suite.version}",
                licence=source.licence or suite.card.licence,
                language=example.language or source.language,
                split=source.split,
                extra={"suite_source": example.source} if example.source else {},
            )


def _files(
    source: SourceConfig, seen: Seen, offline: bool | None, progress: Progress | None
) -> Iterator[Row | Rejected]:
    paths = source_files(source, offline=offline, progress=progress)
    mapping = declared_mapping(source)
    restored = _restored(source.reconstruct, paths, source) if source.reconstruct else {}
    for path in paths:
        prefix = f"{plain_stem(path)}-" if len(paths) > 1 else ""
        chosen: Released | None = None
        for raw in _raw(path, source, mapping, seen.counts):
            if isinstance(raw, Rejected):
                if source.on_error == "stop":
                    raise DataError(
                        f"{raw.where}: {raw.reason}", remedy="repair it, or read with on_error = 'reject'"
                    )
                yield raw
                continue
            try:
                if mapping is not None:
                    yield from _mapped(raw, mapping, source, prefix)
                    continue
                if chosen is None:
                    named = source.format != "auto"
                    chosen = format_named(source.format) if named else recognise(raw.fields, raw.where)
                yield _released(raw, chosen, source, prefix, restored)
            except DataError as e:
                problem = e.problem if e.problem.startswith(raw.where) else f"{raw.where}: {e.problem}"
                if source.on_error == "stop" or (chosen is None and mapping is None):
                    raise DataError(problem, remedy=e.remedy) from e
                yield Rejected(raw.where, e.problem)


def declared_mapping(source: SourceConfig) -> fields_mapping.Mapping | None:
    """A source's field mapping; raises ConfigError.

    Records without a label are wanted here, which a suite has no use for: the trajectory is given a label, which is
    taken away again after reading.
    """
    if source.mapping is None:
        if source.format == MAPPING:
            raise ConfigError(f"source {source.name!r}: no [source.mapping]", remedy="declare one")
        return None
    try:
        labels = {"trajectory": "safe"} | dict(source.mapping.get("labels", {}))
        return fields_mapping.Mapping.model_validate(source.mapping | {"labels": labels})
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"source {source.name!r}: mapping.{place}: {first['msg']}",
            remedy="see docs/suites.md, Field mappings",
        ) from e


def _mapped(
    raw: RawRow, mapping: fields_mapping.Mapping, source: SourceConfig, prefix: str
) -> Iterator[Row | Rejected]:
    found = apply(mapping, raw, prefix=f"{source.name}/{prefix}")
    if found is None:
        yield Rejected(raw.where, "left out by the mapping's keep or drop")
        return
    example = found.example
    assert source.mapping is not None
    own = set(source.mapping.get("labels", {}))
    by = source.label_source or "source"
    labels = {s: SideLabel(v, by) for s, v in example.labels.items() if s in own}
    group = example.group or _group(raw.fields, source)
    yield Row(
        id=example.id,
        conversation=example.conversation,
        labels=_with_constants(labels, source),
        categories=_categories(source, example.categories),
        group=f"{source.name}/{group}" if group else "",
        source=source.name,
        origin=_place(raw.where),
        licence=source.licence,
        language=example.language or source.language,
        split=source.split or found.split,
        extra={"suite_source": example.source} if example.source else {},
    )


def _released(
    raw: RawRow, chosen: Released, source: SourceConfig, prefix: str, restored: Mapping[str, str]
) -> Row | Rejected:
    fields = raw.fields
    missing = [c for c in chosen.columns if c not in fields and c not in chosen.optional]
    if missing and not isinstance(chosen, Own):
        raise DataError(
            f"no column {missing[0]!r}, which {chosen.name} has",
            remedy=f"there is: {', '.join(fields)}"[:200],
        )
    if isinstance(chosen, Own):
        row = chosen.row(fields, source.label_source or "source")
        return replace(
            row,
            id=f"{source.name}/{prefix}{row.id}",
            labels=_with_constants(dict(row.labels), source),
            categories=_categories(source, row.categories),
            group=f"{source.name}/{row.group}" if row.group else "",
            source=row.source or source.name,
            origin=row.origin or _place(raw.where),
            licence=row.licence or source.licence,
            language=row.language or source.language,
            split=source.split or row.split,
        )
    back = restored.get(value_key(fields.get(HIDDEN))) if restored else None
    parsed: Parsed = chosen.read(fields if back is None else {**fields, "prompt": back, HIDDEN: None})
    if parsed.conversation is None:
        return Rejected(raw.where, parsed.left_out, parsed.id)
    identity = f"{source.name}/{prefix}{parsed.id or raw.number}"
    group = _group(fields, source) or parsed.group
    labels = dict(parsed.labels)
    if source.label_source:
        labels = {s: replace(v, source=source.label_source) for s, v in labels.items()}
    return Row(
        id=identity,
        conversation=parsed.conversation,
        labels=_with_constants(labels, source),
        categories=_categories(source, parsed.categories),
        group=f"{source.name}/{group}" if group else "",
        source=source.name,
        origin=_place(raw.where),
        licence=source.licence or chosen.licence,
        language=parsed.language or source.language,
        split=source.split,
        history=("read: the prompt was put back in, and is not ours to pass on",) if back is not None else (),
        extra=chosen.kept(fields),
    )


def _place(where: str) -> str:
    """A record's place without the folders of this machine."""
    return where.rpartition("/")[2]


def _with_constants(labels: dict[Side, SideLabel], source: SourceConfig) -> dict[Side, SideLabel]:
    constant = {s: SideLabel(v, source.label_source or "author") for s, v in source.labels.items()}
    return {**constant, **labels}


def _categories(source: SourceConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    return home_names(names, taxonomy_table(source.taxonomy) if source.taxonomy else None)


def _group(fields: Mapping[str, Any], source: SourceConfig) -> str:
    return str(lookup(fields, source.group)) if source.group else ""


def _raw(
    path: Path, source: SourceConfig, mapping: fields_mapping.Mapping | None, counts: Counter[str]
) -> Iterator[RawRow | Rejected]:
    """The records of a file, each line of JSONL in the first encoding that fits it."""
    chosen: Format = source.file_format or (mapping.format if mapping else None) or format_of(path)
    if chosen == "jsonl":
        yield from _lines(path, source.encodings, counts)
        return
    encoding = "utf-8" if chosen == "parquet" else _encoding(path, source.encodings)
    if encoding != source.encodings[0]:
        counts[f"files read as {encoding}"] += 1
    rows = source.rows or (mapping.rows if mapping else "")
    preamble = mapping.preamble if mapping else ""
    yield from read_rows(path, format=chosen, rows=rows, preamble=preamble, encoding=encoding)


def _lines(path: Path, encodings: list[str], counts: Counter[str]) -> Iterator[RawRow | Rejected]:
    number = 0
    with _unpacked(path) as handle:
        for line, raw in enumerate(handle, 1):
            if not raw.strip():
                continue
            number += 1
            where = f"{path}:{line}"
            text, encoding = _decoded(raw.removeprefix(b"\xef\xbb\xbf"), encodings)
            if text is None:
                yield Rejected(where, f"not {' or '.join(encodings)}")
                continue
            if encoding != encodings[0]:
                counts[f"lines read as {encoding}"] += 1
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
                yield Rejected(where, "not JSON")
                continue
            if isinstance(value, dict):
                yield RawRow(where, number, value)
            else:
                yield Rejected(where, f"a line must be a JSON object, not {type(value).__name__}")


def _decoded(raw: bytes, encodings: list[str]) -> tuple[str | None, str]:
    for encoding in encodings:
        try:
            return raw.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
        except LookupError as e:
            raise ConfigError(
                f"unknown encoding {encoding!r}", remedy="use a name like utf-8 or cp1252"
            ) from e
    return None, ""


def _encoding(path: Path, encodings: list[str]) -> str:
    if len(encodings) == 1:
        return encodings[0]
    with _unpacked(path) as handle:
        return _decoded(handle.read(), encodings)[1] or encodings[0]  # whose error then says where


def _unpacked(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".gz":
            return gzip.open(path)
        return lzma.open(path) if path.suffix.lower() == ".xz" else path.open("rb")
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e


def _restored(given: Reconstruct, paths: list[Path], source: SourceConfig) -> dict[str, str]:
    """The texts of the ids that the source's records name as hidden."""
    wanted = {
        value_key(raw.fields.get(HIDDEN))
        for path in paths
        for raw in _raw(path, source, None, Counter())
        if isinstance(raw, RawRow) and raw.fields.get("prompt") == REDACTED and said(raw.fields.get(HIDDEN))
    }
    found: dict[str, str] = {}
    for raw in read_rows(Path(given.file)):
        column = given.id or next(iter(raw.fields))
        key = value_key(lookup(raw.fields, column))
        if key in wanted:
            found[key] = str(lookup(raw.fields, given.text))
    if wanted and not found:
        raise DataError(
            f"{given.file}: none of the {len(wanted)} hidden prompts is there", remedy="check reconstruct.id"
        )
    return found


__all__ = ["Aegis2", "Rejected", "declared_mapping", "read_source", "source_files"]
