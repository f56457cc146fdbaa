"""A name, path or reference → a suite."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from guardkeel.conversation import Example
from guardkeel.errors import DataError, PinError, ResourceError
from guardkeel.evaluation.suites import registry
from guardkeel.evaluation.suites.applying import Mapped, apply
from guardkeel.evaluation.suites.card import COPY_MARK, SuiteCard, read_card
from guardkeel.evaluation.suites.mapping import Mapping
from guardkeel.evaluation.suites.readers import PACKED, RawRow, format_of, plain_stem, read_rows
from guardkeel.evaluation.suites.splits import Split
from guardkeel.evaluation.suites.suite import Suite, build
from guardkeel.resources import Progress, resolve_many

_PREFIXES = ("hub:", "pypi:", "path:")
_FILE_ENDINGS = frozenset(
    {".toml", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".yaml", ".yml", *PACKED}
)


def load_suite(
    what: str | Path | SuiteCard,
    *,
    data: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Suite:
    """Load a suite.

    Args:
        what: a registered name; name@copy; a card, or the path of its TOML file (also file.toml@copy); the
            path or reference (hub:, pypi:, path:) of a card or of a data file in guardkeel's JSONL format.
        data: the folder that data: references start from; None goes by GUARDKEEL_DATA.
        offline: True never uses the network; None goes by the environment.
        progress: called with (what, done, total) while files are fetched.

    A bare name always reads the card's own reference and name@copy that copy: neither falls back to the other.

    Raises:
        DataError: unknown name or copy, unreadable file, bad row, nothing in it, counts other than the card's.
        ConfigError: the card cannot be used.
        ResourceError: a reference cannot be resolved.
    """
    card = what if isinstance(what, SuiteCard) else find_card(what, offline=offline, progress=progress)
    references = [card.located(part.reference, data) for part in card.files]
    try:
        paths = resolve_many(references, progress=progress, offline=offline)
    except ResourceError as e:
        copies = [f"{card.name}{COPY_MARK}{c.name}" for c in card.copies if card.copied(c.name).is_local]
        ways = [f"read a copy in the data folder: {', '.join(copies)}"] * bool(copies)
        ways += [f"get it from {card.home}"] * bool(card.home and card.is_local)
        if not ways or isinstance(e, PinError):
            raise
        raise type(e)(e.problem, remedy=f"{e.remedy}; or {'; or '.join(ways)}") from e
    examples: list[Example] = []
    declared: dict[str, Split] = {}
    left_out = 0
    for index, path in enumerate(paths):
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not a data file", remedy="name the file inside it")
        prefix = f"{card.files[index].name or plain_stem(path)}-" if len(paths) > 1 else ""
        mapping = card.mapping_of(index)
        for row in _rows(path, mapping):
            mapped = apply(mapping, row, prefix=prefix) if mapping else _own(row, prefix, path.parent)
            if mapped is None:
                left_out += 1
                continue
            examples.append(mapped.example)
            if mapped.split:
                declared[mapped.example.id] = mapped.split
    return build(card, examples, declared=declared, left_out=left_out)


def find_card(
    what: str | Path, *, offline: bool | None = None, progress: Progress | None = None
) -> SuiteCard:
    """The card that a name, path or reference means, without its data; errors and arguments as in load_suite."""
    text = str(what)
    if isinstance(what, str) and text.startswith(_PREFIXES):
        path = resolve_many([text], progress=progress, offline=offline)[0]
        return read_card(path) if path.suffix == ".toml" else _bare(path, text)
    if isinstance(what, str) and (card := _copy(text)) is not None:
        return card
    path = Path(what).expanduser()
    is_name = isinstance(what, str) and path.name == text and path.suffix.lower() not in _FILE_ENDINGS
    if is_name and (not path.is_file() or any(card.name == text for card in registry.available())):
        return registry.find(text)
    if path.is_file():
        return read_card(path) if path.suffix == ".toml" else _bare(path, f"path:{path.absolute()}")
    raise DataError(
        f"{path}: {'is a folder' if path.is_dir() else 'no such file'}",
        remedy="give the path of a card or data file; `guardkeel suites` lists the names",
    )


def _copy(text: str) -> SuiteCard | None:
    """The card that name@copy or file.toml@copy means; None for all else."""
    before, mark, copy = text.rpartition(COPY_MARK)
    if not mark or Path(text).expanduser().exists():
        return None
    file = Path(before).expanduser()
    if file.suffix == ".toml" and file.is_file():
        return read_card(file).copied(copy)
    if file.name == before and Path(text).suffix.lower() not in _FILE_ENDINGS:
        return registry.find(before).copied(copy)
    return None


def _bare(path: Path, reference: str) -> SuiteCard:
    """The card of a data file that has none."""
    if path.is_file() and format_of(path) != "jsonl":
        raise DataError(
            f"{path}: without a card only guardkeel's JSONL can be read",
            remedy="write a card: a TOML file with [suite] name, reference and [mapping] prompt, labels",
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain_stem(path)).strip("-._") or "suite"
    return SuiteCard(name=name, reference=reference, origin=reference)


def _rows(path: Path, mapping: Mapping | None) -> Iterator[RawRow]:
    if mapping is None:
        return read_rows(path, format="jsonl")
    return read_rows(
        path,
        format=mapping.format,
        rows=mapping.rows,
        preamble=mapping.preamble,
        encoding=mapping.encoding,
    )


def _own(row: RawRow, prefix: str, folder: Path) -> Mapped:
    try:
        example = Example.from_row(row.fields)
    except DataError as e:
        raise DataError(f"{row.where}: {e.problem}", remedy=e.remedy) from e
    conversation = example.conversation.anchored(folder)
    return Mapped(replace(example, id=prefix + example.id, conversation=conversation), None)
